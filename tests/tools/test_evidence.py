import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.attention import page as page_module
from benchmarks.attention.__main__ import main
from benchmarks.attention.attention_maps import (
    dwc_maps,
    effective_rank,
    focused_map,
    numerical_rank,
    row_entropy,
    softmax_map,
    split_heads,
)
from benchmarks.attention.cost import (
    SoftmaxAttention,
    exported_forms,
    fitted_exponent,
    gflops_fla,
    gflops_softmax,
    measure_cost,
    softmax_gigabytes,
)
from benchmarks.attention.diversity import measure_diversity
from benchmarks.attention.focus import FACTORS, attention_rows, measure_focus
from benchmarks.attention.page import page
from benchmarks.attention.trained import Tokens, gaussian_tokens, tokens_of
from benchmarks.figures_file import write_figures
from model.attention.focused_linear import FocusedLinearAttention

HW = (5, 8)
N = HW[0] * HW[1]


def attention(seed: int = 0, dim: int = 24, heads: int = 3) -> FocusedLinearAttention:
    """Random parameters, float64, an encoding of another map size."""
    torch.manual_seed(seed)
    module = FocusedLinearAttention(dim, (4, 4), num_heads=heads, qkv_bias=True).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module.eval().requires_grad_(False)


def tokens(seed: int = 0) -> Tokens:
    module = attention(seed)
    return tokens_of("made", module, torch.randn(1, module.dim, *HW).double())


def test_a_row_that_weighs_all_tokens_alike_has_entropy_one_and_a_choice_of_one_has_zero() -> None:
    rows = torch.stack([torch.full((N,), 0.3), F.one_hot(torch.tensor(3), N).float()])
    assert row_entropy(rows).tolist() == pytest.approx([1.0, 0.0])


def test_a_row_on_a_quarter_of_the_tokens_has_the_entropy_of_a_quarter() -> None:
    row = torch.zeros(64, dtype=torch.float64)
    row[::4] = 7.0
    assert float(row_entropy(row)) == pytest.approx(math.log(16) / math.log(64))


def test_the_focused_map_with_the_convolutions_is_what_the_module_computes() -> None:
    module = attention()
    x = torch.randn(1, module.dim, *HW).double()
    seen = tokens_of("made", module, x)
    v = module.project(x.flatten(2).transpose(1, 2), HW)[2][0]  # (N, C)
    p = module.focusing_factor
    maps = focused_map(seen.q, seen.k, seen.heads, p, seen.scale)
    assert seen.dwc_weight is not None
    maps = maps[:, None] + dwc_maps(seen.dwc_weight, HW)  # (h, d, N, N)
    o = torch.einsum("hcnm,hmc->nhc", maps, split_heads(v, seen.heads))
    assert module.dwc.bias is not None
    o = (o + module.dwc.bias).reshape(N, module.dim)
    y = module.proj(o).T.reshape(x.shape)
    torch.testing.assert_close(y, module(x), rtol=1e-9, atol=1e-9)


def test_the_softmax_map_is_that_of_torch() -> None:
    q, k, v = torch.randn(3, N, 24, dtype=torch.float64)
    ours = softmax_map(q, k, 3) @ split_heads(v, 3)
    q, k, v = (split_heads(t, 3) for t in (q, k, v))
    theirs = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(ours, theirs)


def test_without_the_convolution_no_map_but_that_of_softmax_exceeds_the_channels_of_a_head() -> (
    None
):
    (image,) = measure_diversity([tokens()])["images"]
    forms, head_dim = image["forms"], image["head_dim"]
    assert image["tokens"] == N
    assert max(forms["linear"]["rank"] + forms["focused"]["rank"]) <= head_dim == 8
    assert min(forms["softmax"]["rank"]) > head_dim
    assert min(forms["focused + DWC"]["rank"]) > head_dim
    assert all(len(form["spectrum"]) == N for form in forms.values())
    assert all(form["spectrum"][0] == 1 for form in forms.values())


def test_ranks_count_what_float32_tells_from_zero() -> None:
    values = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1e-3, 1e-9, 0.0]], dtype=torch.float64)
    assert numerical_rank(values).tolist() == [4, 2]
    assert effective_rank(values).tolist() == pytest.approx([4.0, 1.0], abs=0.01)


def test_gaussian_rows_get_sharper_with_every_step_of_the_focusing_factor() -> None:
    figures = measure_focus([gaussian_tokens(0)])
    means = [figures["focused"][str(p)]["mean"] for p in FACTORS]
    assert means == sorted(means, reverse=True)
    assert 0 < means[-1] < figures["softmax"]["mean"] < means[0] < 1


def test_attention_rows_are_of_one_head_and_sum_to_one() -> None:
    head, rows = attention_rows(tokens(), 7)
    assert 0 <= head < 3
    for row in rows.values():
        assert row.shape == HW
        assert float(row.sum()) == pytest.approx(1)


def test_the_fit_recovers_a_known_power() -> None:
    sizes = [100, 400, 1600, 25_600]
    assert fitted_exponent(sizes, [3e-5 * n**1.7 for n in sizes]) == pytest.approx(1.7)


def counted(module: torch.nn.Module, dim: int) -> float:
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        module(torch.zeros(1, dim, *HW))
    return counter.get_total_flops() / 1e9


def test_operations_are_as_many_as_torch_counts() -> None:
    module = attention().float()
    assert gflops_fla(N, 24, 3) == pytest.approx(counted(module, 24))
    assert gflops_softmax(N, 24) == pytest.approx(counted(SoftmaxAttention(module), 24))


def test_the_softmax_form_is_softmax_attention_with_the_modules_projections() -> None:
    module = attention()
    x = torch.randn(1, module.dim, *HW).double()
    seen = tokens_of("made", module, x)
    v = module.project(x.flatten(2).transpose(1, 2), HW)[2][0]
    o = softmax_map(seen.q, seen.k, seen.heads) @ split_heads(v, seen.heads)
    y = module.proj(o.transpose(0, 1).reshape(N, -1)).T.reshape(x.shape).float()
    ours = SoftmaxAttention(module)(x.float())
    torch.testing.assert_close(ours, y, rtol=1e-4, atol=1e-4)


def test_both_exported_forms_take_maps_of_other_sizes() -> None:
    for model in exported_forms(16, 2).values():
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        for height, width in ((4, 6), (9, 9)):
            x = np.ones((1, 16, height, width), np.float32)
            assert session.run(None, {"x": x})[0].shape == x.shape


def test_softmax_is_left_out_where_its_map_would_not_fit() -> None:
    limit = softmax_gigabytes(16)
    figures = measure_cost([4, 5], 16, 2, 1, 1, limit, report=lambda _: None)
    assert figures["skipped"] == [25]
    first, second = figures["points"]
    assert first["softmax"]["ms"] > 0
    assert second["fla"]["ms"] > 0
    assert "ms" not in second["softmax"]
    assert figures["exponents"]["softmax"] == {"asymptotic": None, "whole": None}
    text = page({"focus": None, "diversity": None, "cost": figures})
    assert "left out at 25 tokens" in text
    assert text.count("Not measured yet.") == 2


def made_cost() -> dict[str, Any]:
    sizes = (100, 1600, 25_600)
    return {
        "machine": {"processor": "made", "onnxruntime": "1"},
        **{"threads": 1, "rounds": 3, "dim": 64, "heads": 2, "memory_gb": 9.0},
        "fit_from_tokens": 1600,
        "skipped": [],
        "points": [
            {
                "tokens": n,
                "fla": {"gflops": 1.0, "ms": n / 100 + 1},
                "softmax": {"gflops": 2.0, "ms": n * n / 10_000},
            }
            for n in sizes
        ],
        "exponents": {
            "fla": {"asymptotic": 1.04, "whole": 0.91},
            "softmax": {"asymptotic": 1.98, "whole": 1.77},
        },
    }


def test_the_page_says_what_was_measured() -> None:
    text = page({"focus": None, "diversity": None, "cost": made_cost()})
    assert "| 100 to 25,600 tokens | 0.91 | 1.77 |" in text
    assert "| from 1,600 tokens on | 1.04 | 1.98 |" in text
    assert "FLA was the faster one above 100 tokens." in " ".join(text.split())
    assert "| 1,600 | 17 | 256 | 15.1 | 10.62 | 1.0000 | 2.0000 |" in text


def test_the_page_in_docs_is_what_its_figures_give(repo_dir: Path) -> None:
    folder = repo_dir / "docs" / "evidence"
    kept = {claim: folder / f"{claim}.json" for claim in ("focus", "diversity", "cost")}
    figures = {
        claim: json.loads(path.read_text()) if path.exists() else None
        for claim, path in kept.items()
    }
    assert (repo_dir / "docs" / "focused-linear-attention.md").read_text() == page(figures)


def test_the_page_claims_no_lead_that_was_not_measured() -> None:
    figures = made_cost()
    figures["points"][-1]["softmax"]["ms"] = 0.5
    text = " ".join(page({"focus": None, "diversity": None, "cost": figures}).split())
    assert "faster one above" not in text
    assert "Softmax was at least as fast as FLA at 25,600 tokens." in text
    for point in figures["points"]:
        del point["softmax"]["ms"]
    assert "faster one" not in page({"focus": None, "diversity": None, "cost": figures})


def test_prose_is_wrapped_and_tables_are_not() -> None:
    for line in page({"focus": None, "diversity": None, "cost": made_cost()}).splitlines():
        assert line.startswith("|") or len(line) <= page_module.WIDTH, line


def test_kept_figures_come_back_as_they_were_with_a_list_of_numbers_a_line(tmp_path: Path) -> None:
    figures = {"a": [1, -2.5e-7, 3], "b": [{"c": [], "d": ["x", "1 ,  2"]}], "e": [[1, 2], [3]]}
    write_figures(figures, tmp_path / "kept.json")
    text = (tmp_path / "kept.json").read_text()
    assert json.loads(text) == figures
    assert "[ 1, -2.5e-07, 3 ]" in text


@pytest.mark.slow
def test_the_command_writes_the_page_the_plots_and_the_figures(
    tmp_path: Path,
) -> None:
    main(["--only", "focus", "--output", str(tmp_path)])
    main(["--only", "cost", "--output", str(tmp_path), "--rounds", "1", "--most-tokens", "200"])
    text = (tmp_path / "focused-linear-attention.md").read_text()
    folder = tmp_path / "evidence"
    figures = json.loads((folder / "focus.json").read_text())
    assert f"{figures['trained']['focused']['3']['mean']:.3f}" in text
    assert "100 to 196" in text
    assert "Not measured yet." in text  # the rank
    for name in ("focus", "attention_rows", "cost"):
        assert 5_000 < (folder / f"{name}.png").stat().st_size < 200_000
        assert f"evidence/{name}.png" in text
