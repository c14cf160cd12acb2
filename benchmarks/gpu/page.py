"""The figures as Markdown: the targets first, then a table for each part."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.gpu.pipeline import describe
from benchmarks.gpu.record import Record
from benchmarks.gpu.targets import spread_text, verdicts

Figures = Mapping[str, Any]
GPU_TITLE = "# GPU benchmark"
CPU_TITLE = "# CPU: a trial of the GPU benchmark's script, no GPU was measured"


def page(record: Record) -> str:
    """The whole text."""
    parts = [CPU_TITLE if record["device"] == "cpu" else GPU_TITLE, about(record)]
    rows = [[v.target, v.wanted, v.measured, v.verdict, v.remark] for v in verdicts(record)]
    parts += ["## Targets", table(["target", "wanted", "measured", "verdict", "remark"], rows)]
    for name, (title, tables) in TABLES.items():
        part = record["parts"].get(name)
        if part is None:
            continue
        parts.append(f"## {title}")
        parts.append(state(name, part))
        if part.get("figures"):
            parts += tables(part["figures"])
            parts += failures(part["figures"])
    return "\n\n".join(each for each in parts if each) + "\n"


def about(record: Record) -> str:
    """What it was measured on, in two lines."""
    machine = record["machine"]
    words = [f"{machine['cpu']}, {machine['cpus']} CPUs"]
    if machine.get("gpu"):
        words.insert(0, machine["gpu"])
        words += [f"driver {machine['driver']}", f"CUDA {machine['cuda']}"]
        words.append(f"cuDNN {machine['cudnn']}")
    words.append(f"onnxruntime {machine['onnxruntime']}")
    proof = machine.get("proof", {})
    nodes = ", ".join(f"{count} on {name}" for name, count in proof.get("nodes", {}).items())
    return (
        f"{', '.join(words)}.\nThe served model's nodes: {nodes}. Inputs {record['inputs'][:12]}."
    )


def state(name: str, part: Figures) -> str:
    """How a part ended, and the GPU's clocks around it."""
    words = [f"Part `{name}`, {part['began']}: {part['status']}"]
    if "seconds" in part:
        words.append(f"{part['seconds']:.0f} s")
    for when in ("before", "after"):
        gpu = part.get(f"gpu_{when}") or {}
        if "sm_mhz" in gpu:
            heat = f", {gpu['celsius']} °C" if "celsius" in gpu else ""
            words.append(f"{when} it {gpu['sm_mhz']:.0f} MHz{heat}")
    if chosen := part.get("settings", {}).get("cuda"):
        words.append("CUDA options " + ", ".join(f"{k}={v}" for k, v in chosen.items()))
    text = "; ".join(words) + "."
    return text + (f"\n\n```text\n{part['error']}\n```" if part.get("error") else "")


def failures(figures: Figures) -> list[str]:
    """What could not be measured, a line each."""
    failed = figures.get("failed") or {}
    return ["\n".join(f"- not measured: {name}: {why}" for name, why in failed.items())]


def parity(figures: Figures) -> list[str]:
    """Detections against the CPU's."""
    rows = [
        [name, f"{one['same']} of {one['expected']}", f"{one['found']}", f"{one['box_px']:.3f}",
         f"{one['score']:.4f}"]
        for name, one in figures["models"].items()
    ]  # fmt: skip
    head = ["model", "found again", "found", "largest difference, px", "largest of scores"]
    return [table(head, rows)]


def raw(figures: Figures) -> list[str]:
    """Images a second by batch."""
    if not figures.get("rows"):
        return [str(figures.get("reason", ""))]
    batches = sorted({row["batch"] for row in figures["rows"]})
    kinds = dict.fromkeys((row["variant"], row["precision"]) for row in figures["rows"])
    cells = {(row["variant"], row["precision"], row["batch"]): row for row in figures["rows"]}
    lines = []
    for kind in kinds:
        found = [cells.get((*kind, batch)) for batch in batches]
        rates = [f"{row['images_per_s']['median']:,.0f}" if row else "" for row in found]
        lines.append([", ".join(kind), *rates])
    tables = [table(["images/s at batch", *map(str, batches)], lines)]
    halves = figures.get("fp16_to_fp32") or []
    if halves:
        lines = [[row["variant"], str(row["batch"]), spread_text(row["ratio"])] for row in halves]
        tables.append(table(["fp16 to fp32", "batch", "ratio"], lines))
    return tables


def options(figures: Figures) -> list[str]:
    """Each option's ratio."""
    rows = [
        [
            row["name"],
            f"{row['images_per_s']['median']:,.0f}",
            f"{row['call_ms']['median']:.2f}",
            spread_text(row["ratio"]) if row["ratio"] else "",
            (row["against"] or "").split(",")[0],
        ]
        for row in figures.get("rows", [])
    ]
    return [table(["option", "images/s", "ms a call", "times as fast", "as"], rows)]


def pipeline(figures: Figures) -> list[str]:
    """The finalists."""
    rows = [
        [
            describe(row["arrangement"]),
            spread_text(row["images_per_s"], 0),
            f"{row['cpu_ms_per_image']['median']:.2f}",
        ]
        for row in figures.get("rows", [])
    ]
    best = f"Best: {describe(figures['best'])}." if "best" in figures else ""
    return [table(["arrangement", "images/s", "CPU ms an image"], rows), best]


def server(figures: Figures) -> list[str]:
    """Saturation and given rates."""
    rows, rates = [], []
    for row in figures["arrangements"]:
        many = str(row["http_workers"])
        if "to_pipeline" in row:
            loads = row["loads"]
            rows.append(
                [
                    many,
                    str(row["clients"]),
                    spread_text(row["images_per_s"], 0),
                    spread_text(row["to_pipeline"]),
                    spread_text(row["to_raw"]),
                    *[f"{max(e[key] for e in loads):.1f}" for key in ("server_cpus", "busiest")],
                    f"{sum(sum(e['wrong'].values()) for e in loads)}",
                ]
            )
        rates += [
            [
                many,
                f"{100 * load['share']:.0f} %",
                f"{load['offered_per_s']:,.0f}",
                *[number(load[key]) for key in ("images_per_s", "p50_ms", "p99_ms")],
                *[number(load[key]) for key in ("server_cpus", "late_p99_ms")],
                ", ".join(f"{count} × {status}" for status, count in load["statuses"].items()),
            ]
            for load in row["rates"]
        ]
    saturated = ["HTTP workers", "clients", "images/s", "to the pipeline", "to the session"]
    saturated += ["server's CPUs", "busiest generator's CPU", "not right"]
    given = ["HTTP workers", "load", "offered/s", "images/s", "p50 ms", "p99 ms"]
    given += ["server's CPUs", "sent late, p99 ms", "statuses"]
    return [table(saturated, rows), table(given, rates)]


def fla(figures: Figures) -> list[str]:
    """With attention and without."""
    rows = [
        [
            row["variant"],
            row["precision"],
            str(row["batch"]),
            *[f"{row[each]['call_ms']['median']:.2f}" for each in ("fla", "plain")],
            spread_text(row["time_ratio"]),
        ]
        for row in figures.get("rows", [])
    ]
    return [table(["calls", "precision", "batch", "with, ms", "without, ms", "ratio"], rows)]


def block(figures: Figures) -> list[str]:
    """Our block and the published one."""
    rows = [
        [
            f"{row['tokens']} × {row['channels']}",
            row["precision"],
            str(row["batch"]),
            "CUDA graph" if row["graph"] else "kernels",
            *[f"{row[each]['call_ms']['median']:.3f}" for each in ("ours", "published")],
            spread_text(row["time_ratio"]),
        ]
        for row in figures.get("rows", [])
    ]
    head = ["tokens × channels", "precision", "batch", "launched as", "ours, ms", "published, ms"]
    return [table([*head, "ratio"], rows)]


def kernels(figures: Figures) -> list[str]:
    """Shares of time by operator."""
    tables = []
    for row in figures["rows"]:
        shape = "fixed shape" if row["fixed"] else "any shape"
        title = f"{row['precision']}, batch {row['batch']}, {shape}"
        title += f": {row['nodes_ms']:.2f} ms of {row['of']} in a call of {row['call_ms']:.2f} ms"
        lines = [
            [
                each["operator"],
                each["provider"],
                f"{each['nodes']:.0f}",
                f"{each['ms']:.3f}",
                f"{100 * each['share']:.1f} %",
            ]
            for each in row["operators"][:12]
        ]
        tables += [title, table(["operator", "provider", "nodes", "ms", "share"], lines)]
    return tables


def memory(figures: Figures) -> list[str]:
    """Bytes in use."""
    names = {"before": "before the model", "warm": "after the warm-up", "after": "after the soak"}
    rows = [
        [words, f"{figures[f'{name}_bytes'] / 1e6:,.1f} MB"]
        for name, words in names.items()
        if f"{name}_bytes" in figures
    ]
    batches = f"{figures['batches']:,} batches of 1 to {figures['largest_batch']}."
    return [table([figures["of"], ""], rows), batches]


TABLES: dict[str, tuple[str, Callable[[Figures], list[str]]]] = {
    "parity": ("Detections against the CPU's", parity),
    "raw": ("(a) Session alone", raw),
    "tensorrt": ("(a) Session alone, TensorRT", raw),
    "options": ("(a) CUDA options, one at a time", options),
    "pipeline": ("(b) Pipeline without HTTP", pipeline),
    "server": ("(c) Server", server),
    "fla": ("(d) With the attention and without", fla),
    "block": ("(d) The attention block", block),
    "kernels": ("(e) Time by operator", kernels),
    "memory": ("(f) Memory", memory),
}


def number(value: float | None, digits: int = 1) -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None else f"{value:,.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; "" without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in lines
    )
