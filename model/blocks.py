"""The YOLO blocks that hold focused linear attention."""

from torch import Tensor, nn
from ultralytics.nn.modules import C2f
from ultralytics.nn.modules.block import Bottleneck

from model.focused_linear_attention import FocusedLinearAttention


class FLABlock(nn.Module):
    """A residual layer: x + attention(x). Keeps the shape of its input.

    Its output projection starts at zero, so a new block is the identity: a trained network that
    gets one inserted computes what it did before.

    Args:
        dim: channels C, a multiple of `num_heads`.
        map_side: side of the square map that the positional encoding is made for, in cells; it
            is interpolated at every other size.
        num_heads: heads of the attention.
    """

    def __init__(self, dim: int, map_side: int = 20, num_heads: int = 8) -> None:
        super().__init__()
        self.attention = FocusedLinearAttention(
            dim, (map_side, map_side), num_heads=num_heads, qkv_bias=True
        )
        nn.init.zeros_(self.attention.proj.weight)
        nn.init.zeros_(self.attention.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float to the same shape."""
        y: Tensor = x + self.attention(x)
        return y


class BottleneckFLA(Bottleneck):  # type: ignore[misc]  # ultralytics has no type information
    """YOLOv8's bottleneck, with attention behind its convolutions where it has no shortcut.

    Source: the `Bottleneck_FLA` of the published tutorials, which has no positional encoding and
    leaves the bottlenecks with a shortcut as they are.
    """

    def __init__(
        self, c1: int, c2: int, shortcut: bool = True, num_heads: int = 8, e: float = 0.5
    ) -> None:
        super().__init__(c1, c2, shortcut, 1, (3, 3), e)
        self.attention = None if self.add else FocusedLinearAttention(c2, num_heads=num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) float to (B, c2, H, W)."""
        y: Tensor = self.cv2(self.cv1(x))
        if self.attention is None:
            return x + y
        attended: Tensor = self.attention(y)
        return attended


class C2fFLA(C2f):  # type: ignore[misc]  # ultralytics has no type information
    """YOLOv8's C2f with `BottleneckFLA` inside.

    Args:
        c1: input channels.
        c2: output channels; half of them, a multiple of `num_heads`, pass through attention.
        n: number of bottlenecks.
        shortcut: whether the bottlenecks add their input; then there is no attention in them.
        num_heads: heads of the attention.
    """

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = False, num_heads: int = 8
    ) -> None:
        super().__init__(c1, c2, n, shortcut)
        self.m = nn.ModuleList(
            BottleneckFLA(self.c, self.c, shortcut, num_heads, e=1.0) for _ in range(n)
        )
