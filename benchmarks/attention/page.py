"""The page about focused linear attention; every figure in it comes from what was measured."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

COMMAND = ".venv/bin/python -m benchmarks.attention"
WIDTH = 120

Figures = Mapping[str, Any]


def page(figures: Mapping[str, Figures | None]) -> str:
    """The page as Markdown.

    Args:
        figures: `focus`, `diversity` and `cost` as their modules measured them, each None where it
            was not.
    """
    sections = {
        "focus": ("Focus: the rows get sharper", focus_section),
        "diversity": ("Diversity: the DWC gives the map its rank", diversity_section),
        "cost": ("Cost: linear in the tokens", cost_section),
    }
    parts = [*MECHANISM]
    for claim, (title, section) in sections.items():
        measured = figures[claim]
        parts.append(f"## {title}")
        parts += section(measured) if measured else ["Not measured yet."]
        parts.append(f"The command: `{COMMAND} --only {claim}`")
    return "\n\n".join(wrapped(part) for part in parts) + "\n"


def wrapped(part: str) -> str:
    """Paragraphs and list items in lines of `WIDTH`; tables, titles and images as they are."""
    if part.startswith(("|", "#", "!")):
        return part
    indent = "  " if part.startswith("- ") else ""
    return textwrap.fill(
        " ".join(part.split()),
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


MECHANISM = (
    "# Focused linear attention",
    f"This page is written by `{COMMAND}`; its figures are what that command measured, raw in "
    "[evidence/](evidence/).",
    """Softmax attention compares each of N tokens with every other: `softmax(QKᵀ/√d) V` forms an
    N × N map, and its cost grows with N². Linear attention takes a feature map φ of queries and
    keys apart instead. Then the brackets can move, `φ(Q) (φ(K)ᵀ V)`, what they hold is only
    d × d, and the cost grows with N. Plain linear attention pays for that in two ways, and focused
    linear attention (FLA; [Han et al., ICCV 2023, arXiv
    2308.00442](https://arxiv.org/abs/2308.00442)) mends both:""",
    """- Its rows are flat: a token weighs all the others nearly equally. The focusing map
    `φ_p(x) = f_p(ReLU(x))`, `f_p(x) = ‖x‖ / ‖x^p‖ · x^p`, keeps the length of a vector and turns
    it towards its largest channels: similar queries and keys come closer, others move apart. p is
    3 here; 1 is plain linear attention with ReLU.""",
    """- Its map has a rank of at most d, the channels of a head: many rows are mixtures of the same
    few. A depthwise convolution (DWC) of V is added, `O = φ_p(Q) φ_p(K)ᵀ V + DWC(V)`. It acts as
    one more N × N map, sparse and local.""",
    """Here are these two claims and the third, the cost, as measured with this project's module,
    its default weights ([model card](../weights/README.md); one attention behind SPPF) and its
    export.""",
)


def focus_section(figures: Figures) -> Iterable[str]:
    """Claim (a) in words."""
    trained, gaussian = figures["trained"], figures["gaussian"]
    factors = list(trained["focused"])
    yield "![Entropy of attention rows over p](evidence/focus.png)"
    yield f"""The entropy of a row divided by log N: 1 means that a token weighs all tokens equally,
        0 that it looks at one. Means over rows, heads and images (the rendered smears
        `samples/*.jpg` at {figures["imgsz"]} px, N = {listed(trained["tokens"])}; Gaussian: N =
        {listed(gaussian["tokens"])}, {len(gaussian["tokens"])} seeds):"""
    yield table(
        ["q and k", "softmax", *(f"p = {p}" for p in factors)],
        [
            [name, f"{source['softmax']['mean']:.3f}"]
            + [f"{source['focused'][p]['mean']:.3f}" for p in factors]
            for name, source in (("trained", trained), ("Gaussian", gaussian))
        ],
    )
    linear, focused = (trained["focused"][p]["mean"] for p in ("1", "3"))
    softmax = trained["softmax"]["mean"]
    yield f"""The focusing map {"sharpens" if focused < linear else "does not sharpen"} the rows:
        from {linear:.3f} for linear attention to {focused:.3f} at the default p = 3, with trained
        queries and keys; {steadily(trained)}. Softmax rows of the same queries and keys, at
        {softmax:.3f}, are {"flatter" if softmax > focused else "sharper"} than the focused ones,
        but that says little about softmax: **these q and k were trained for the focused form**,
        and a network trained with softmax would have found others. Gaussian q and k were
        made for neither: there softmax has {gaussian["softmax"]["mean"]:.3f}, linear attention
        {gaussian["focused"]["1"]["mean"]:.3f}, and the focused rows are sharper than softmax's
        {crossing(gaussian)}."""
    yield "![What one token attends to](evidence/attention_rows.png)"
    yield """One such row, of the token at the centre of the white cell in `samples/smear_1.jpg`,
        in the head that is sharpest there. It shows what sharper means, and proves nothing."""


def steadily(source: Figures) -> str:
    """Whether the entropy falls at every step of p."""
    means = [each["mean"] for each in source["focused"].values()]
    falling = all(after < before for before, after in pairwise(means))
    return "they get sharper with every step of p" if falling else "not with every step of p"


def crossing(source: Figures) -> str:
    """From which p on the focused rows are sharper than those of softmax."""
    softmax = source["softmax"]["mean"]
    below = [p for p, each in source["focused"].items() if each["mean"] < softmax]
    return f"from p = {below[0]} on" if below else "at none of these p"


def diversity_section(figures: Figures) -> Iterable[str]:
    """Claim (b) in words."""
    images = figures["images"]
    names = {
        "softmax": "softmax",
        "linear": "linear (p = 1)",
        "focused": "focused (p = 3)",
        "DWC": "DWC alone",
        "linear + DWC": "linear (p = 1) + DWC",
        "focused + DWC": "focused (p = 3) + DWC",
    }
    heads, head_dim = len(images[0]["forms"]["focused"]["rank"]), images[0]["head_dim"]
    yield "![Spectra and ranks of attention maps](evidence/diversity.png)"
    yield f"""Means over the {heads} heads of the numerical rank (singular values that float32 can
        tell from zero, above N · 2⁻²³ of the largest) and, in brackets, of the effective rank (exp
        of the entropy of the singular values, which weighs how large they are). Weights and
        images as above at {figures["imgsz"]} px, so that N is far above d = {head_dim}; the plots
        show the first image."""
    yield table(
        ["", *(f"{each['name']}, N = {each['tokens']}" for each in images)],
        [[name, *(ranks(each["forms"][form]) for each in images)] for form, name in names.items()],
    )
    first = images[0]["forms"]
    most = max(
        max(each["forms"][form]["rank"]) for each in images for form in ("linear", "focused")
    )
    weak, strong = (
        max(mean(each["forms"][form]["effective_rank"]) for each in images for form in forms)
        for forms in (("linear", "focused"), ("softmax",))
    )
    lowers = mean(first["focused"]["rank"]) < mean(first["linear"]["rank"])
    full, alone = (
        100 * mean(mean(each["forms"][form]["rank"]) / each["tokens"] for each in images)
        for form in ("focused + DWC", "DWC")
    )
    few = max(weak, strong) < min(each["tokens"] for each in images) / 10
    ratio = mean(each["dwc_to_attention"] for each in images)
    yield f"""Without the DWC the map of a head is N × d times d × N and can't have a rank above
        d = {head_dim}; float32 sees at most {most:.0f}. {FEWER if lowers else ""}
        By the effective rank, both have at most {weak:.1f}, softmax
        {strong:.1f}{FEW if few else ""}.
        With the DWC the map reaches {full:.0f} % of full rank. In fairness: the convolution's
        banded matrix has {alone:.0f} % alone, and is {ratio:.1f} times as
        large as the attention here (Frobenius norms). It tells neighbours apart; it does not look
        further. Each channel has a convolution of its own, so with it a head has d maps, and their
        figures are averaged. Biases and the output projection are left out."""


FEWER = "Focusing lowers it further: sharper features lean on fewer channels."
FEW = ": a few directions carry nearly everything in all three"


def ranks(form: Figures) -> str:
    """Numerical and effective rank, means of the heads."""
    return f"{mean(form['rank']):.0f} ({mean(form['effective_rank']):.1f})"


def cost_section(figures: Figures) -> Iterable[str]:
    """Claim (c) in words."""
    machine, threads = figures["machine"], figures["threads"]
    yield "![Time and operations over tokens](evidence/cost.png)"
    yield f"""One map of {figures["dim"]} channels in {figures["heads"]} heads, batch 1, in ONNX
        Runtime {machine["onnxruntime"]} on a CPU ({machine["processor"]},
        {threads} thread{"s" if threads > 1 else ""}). FLA is the form that `python -m export`
        writes (`ChannelFirstFLA` in `export/attention`). Softmax attention has the same projections
        and positional encoding around MatMul, Softmax, MatMul, and is converted by the same
        function. The forms take turns at each size for {figures["rounds"]} rounds; a figure is the
        median of the rounds, and of a round its fastest run. Bars show the range of the rounds."""
    yield table(
        [
            *("tokens", "FLA, ms", "softmax, ms", "softmax / FLA", "FLA, µs a token"),
            *("FLA, GFLOPs", "softmax, GFLOPs"),
        ],
        [cost_row(each) for each in figures["points"]],
    )
    if figures["skipped"]:
        yield f"""Softmax was left out at {listed(figures["skipped"])} tokens, where one head's map
            needs more than {figures["memory_gb"]:.1f} GB."""
    first, last = figures["points"][0]["tokens"], figures["points"][-1]["tokens"]
    yield """Time as a power of the tokens, N^b, fitted by least squares on the logarithms:"""
    yield table(
        ["b", "FLA", "softmax"],
        [
            [where, *(power(figures["exponents"][form][fit]) for form in ("fla", "softmax"))]
            for where, fit in (
                (f"{first:,} to {last:,} tokens", "whole"),
                (f"from {figures['fit_from_tokens']:,} tokens on", "asymptotic"),
            )
        ],
    )
    yield f"""Among few tokens the start of each operator and the projections, linear in N for both,
        bend the curves; among many, maps outgrow the caches of the CPU, which can lift FLA's
        exponent above 1, although its operations per token don't change.
        {overtaking(figures)} A YOLOv8 at 640 px has 400 tokens behind SPPF and 6,400 on its finest
        map."""
    yield """The operations are counted, not measured: 8NC² + 4NCd + 52NC for FLA (projections, the
        two products with a d × d matrix, z and the 5 × 5 DWC) and 8NC² + 4N²C for
        softmax; what is done by element (powers, norms, exponentials) is in neither. A fused
        kernel for softmax (Flash Attention) would store no N × N map and be faster by a factor; its
        operations grow with N² all the same."""
    yield "Times want a machine that does nothing else."


def cost_row(point: Figures) -> list[str]:
    """One size, a cell a column."""
    fla, softmax = point["fla"], point["softmax"]
    return [
        f"{point['tokens']:,}",
        milliseconds(fla),
        milliseconds(softmax),
        f"{softmax['ms'] / fla['ms']:.1f}" if "ms" in softmax else "–",
        f"{1e3 * fla['ms'] / point['tokens']:.2f}",
        f"{fla['gflops']:.4f}",
        f"{softmax['gflops']:.4f}",
    ]


def milliseconds(figures: Figures) -> str:
    """A time with three digits; a dash where it was not measured."""
    if "ms" not in figures:
        return "–"
    value = figures["ms"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def power(value: float | None) -> str:
    """An exponent with two digits; a dash where there were too few points."""
    return "–" if value is None else f"{value:.2f}"


def overtaking(figures: Figures) -> str:
    """From which size on FLA is the faster one."""
    both = [each for each in figures["points"] if "ms" in each["softmax"]]
    slower = [each["tokens"] for each in both if each["fla"]["ms"] >= each["softmax"]["ms"]]
    if not both:
        return ""
    if not slower:
        return f"FLA was the faster one at every size from {both[0]['tokens']:,} tokens on."
    if max(slower) == both[-1]["tokens"]:
        return f"Softmax was at least as fast as FLA at {max(slower):,} tokens."
    return f"FLA was the faster one above {max(slower):,} tokens."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def listed(numbers: Iterable[int]) -> str:
    """The different numbers in words: "135 and 180"."""
    texts = [f"{number:,}" for number in sorted(set(numbers))]
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else texts[0]
