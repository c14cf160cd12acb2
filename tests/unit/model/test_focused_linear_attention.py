import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.attention.focused_linear import FocusedLinearAttention, focus, map_size

GOLDEN = (
    "pvt_c32_h2_8x8_p4_k3_nobias",
    "pvt_c32_h4_16x16_sr2",
    "pvt_c64_h4_12x12",
    "pvt_c64_h8_10x16_rect",
    "pvt_c64_h8_8x8_all_negative",
    "swin_c32_h8_20x20",
    "swin_c64_h4_8x8",
)


def golden_case(path: Path, dtype: torch.dtype) -> tuple[FocusedLinearAttention, Any, Any]:
    """The module with a published module's weights, its input map and the output it must give."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays["meta"]))
    map_hw = meta["height"], meta["width"]
    attention = FocusedLinearAttention(
        arrays["input"].shape[2],
        map_hw,
        num_heads=meta["num_heads"],
        qkv_bias=meta["qkv_bias"],
        sr_ratio=meta["sr_ratio"],
        focusing_factor=meta["focusing_factor"],
        kernel_size=meta["kernel_size"],
        fused_qkv=meta["variant"] == "swin",
    ).to(dtype)
    prefix = "state/"
    attention.load_state_dict(
        {
            name.removeprefix(prefix): torch.from_numpy(array)
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
    )

    def as_map(tokens: Any) -> torch.Tensor:
        rows = torch.from_numpy(tokens).to(dtype).transpose(1, 2)
        return rows.reshape(*rows.shape[:2], *map_hw)

    return attention, as_map(arrays["input"]), as_map(arrays["output"])


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_published_modules_are_matched(
    shared_dir: Path, name: str, dtype: torch.dtype, limit: float
) -> None:
    attention, x, expected = golden_case(shared_dir / "golden" / "fla" / f"{name}.npz", dtype)
    with torch.inference_mode():
        difference = (attention(x) - expected).abs().max()
    relative = 1 if dtype == torch.float64 else float(expected.abs().max())
    assert float(difference) <= limit * relative


def test_every_golden_file_is_tested(shared_dir: Path) -> None:
    assert {path.stem for path in (shared_dir / "golden" / "fla").glob("*.npz")} == set(GOLDEN)


def test_the_encoding_is_interpolated_over_the_map_and_not_along_the_line() -> None:
    attention = FocusedLinearAttention(8, (4, 4), num_heads=2)
    ramp = torch.arange(4.0).repeat(4, 1)  # rises from left to right, the same in every row
    assert attention.positional_encoding is not None
    attention.positional_encoding.data = ramp.reshape(1, 16, 1).repeat(1, 1, 8)
    at = attention.positional_encoding_at((2, 8)).reshape(2, 8, 8)
    torch.testing.assert_close(at[0], at[1])
    assert bool((at[0, 1:, 0] >= at[0, :-1, 0]).all())
    assert attention.positional_encoding_at((4, 4)) is attention.positional_encoding


@pytest.mark.parametrize("map_hw", [(5, 7), (1, 9), (12, 3)])
def test_maps_need_not_be_square_nor_of_the_encoded_size(map_hw: tuple[int, int]) -> None:
    attention = FocusedLinearAttention(16, 25, num_heads=4, qkv_bias=True)
    x = torch.randn(2, 16, *map_hw)
    y = attention(x)
    assert y.shape == x.shape
    assert bool(y.isfinite().all())


def test_one_image_does_not_see_its_neighbours_in_the_batch() -> None:
    torch.manual_seed(0)
    attention = FocusedLinearAttention(16, 16, num_heads=4).double()
    x = torch.randn(3, 16, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(attention(x)[1:2], attention(x[1:2]))


def test_attention_is_what_its_definition_says_token_by_token() -> None:
    """The formula written out with an explicit N x N attention matrix, one head at a time."""
    torch.manual_seed(1)
    attention = FocusedLinearAttention(12, (3, 4), num_heads=3, qkv_bias=True).double()
    x = torch.randn(1, 12, 3, 4, dtype=torch.float64)
    tokens = x.flatten(2)[0].T
    k, v = attention.kv(tokens).chunk(2, dim=1)
    assert attention.positional_encoding is not None
    q = attention.phi(attention.q(tokens)[None])[0]
    k = attention.phi((k + attention.positional_encoding[0])[None])[0]
    heads = []
    for head in range(3):
        own = slice(4 * head, 4 * head + 4)
        similarity = q[:, own] @ k[:, own].T / len(tokens)
        rows = similarity / (similarity.sum(1, keepdim=True) + 1e-6)
        local = attention.dwc(v[:, own].T.reshape(1, 4, 3, 4))[0].flatten(1).T
        heads.append(rows @ v[:, own] + local)
    expected = attention.proj(torch.cat(heads, dim=1)).T.reshape(1, 12, 3, 4)
    torch.testing.assert_close(attention(x), expected)


def test_focusing_keeps_the_norm_and_sharpens_the_direction() -> None:
    t = torch.rand(5, 8, dtype=torch.float64) + 0.01
    focused = focus(t, 3)
    torch.testing.assert_close(focused.norm(dim=1), t.norm(dim=1))
    share = (t.max(1).values / t.norm(dim=1), focused.max(1).values / focused.norm(dim=1))
    assert bool((share[1] > share[0]).all())
    torch.testing.assert_close(focus(t, 1), t)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_numbers_even_for_negative_tokens(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    attention = FocusedLinearAttention(16, None, num_heads=4, qkv_bias=True)
    torch.nn.init.constant_(attention.q.bias, -100)
    torch.nn.init.constant_(attention.kv.bias[:16], -100)
    y = attention.to(dtype)(torch.randn(1, 16, 6, 6, dtype=dtype))
    assert y.dtype == dtype
    assert bool(y.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_numbers_forwards_and_backwards(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    attention = FocusedLinearAttention(32, None, num_heads=8)
    x = torch.randn(1, 32, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = attention(x)
    y.float().sum().backward()
    assert bool(y.isfinite().all())
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("focusing_factor", [1, 2.5, 4, 8])
def test_all_negative_tokens_give_numbers_at_any_focusing_factor(focusing_factor: float) -> None:
    attention = FocusedLinearAttention(16, num_heads=4, qkv_bias=True)
    attention.focusing_factor = focusing_factor
    torch.nn.init.constant_(attention.q.bias, -100)
    torch.nn.init.constant_(attention.kv.bias[:16], -100)
    assert bool(attention(torch.randn(1, 16, 6, 6)).isfinite().all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 30, "num_heads": 8}, "dim 30 .* num_heads 8"),
        ({"dim": 16, "sr_ratio": 0}, "sr_ratio 0"),
        ({"dim": 16, "sr_ratio": 2, "fused_qkv": True}, "not 2"),
        ({"dim": 16, "kernel_size": 4}, "kernel_size 4"),
        ({"dim": 16, "focusing_factor": 0}, "focusing_factor 0"),
        ({"dim": 16, "focusing_factor": float("nan")}, "focusing_factor nan"),
        ({"dim": 16, "focusing_factor": float("inf")}, "focusing_factor inf"),
        ({"dim": 16, "num_patches": 160}, "160 is not a square"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FocusedLinearAttention(**arguments)


def test_a_number_of_patches_stands_for_a_square() -> None:
    assert map_size(400) == (20, 20)
    assert map_size((10, 16)) == (10, 16)
