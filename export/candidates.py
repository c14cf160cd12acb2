"""The artifact's graph: a YOLOv8 network between uint8 images and the K best candidates."""

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Concat, Detect
from ultralytics.nn.tasks import DetectionModel

from export.attention.operators import constant
from export.errors import ModelUnsupported

MAX_CANDIDATES = 1000


class Candidates(nn.Module):
    """Network, box decoding and the choice of the K best anchor points, as one graph.

    Only the chosen anchor points are decoded: the distributions of the others, most of the
    head's arithmetic after its convolutions, never become boxes.

    Args:
        model: rewritten by `export.rewrite.rewrite`; it belongs to this module afterwards.

    Raises:
        ModelUnsupported: when the last layer is not YOLOv8's detection head.
    """

    def __init__(self, model: DetectionModel) -> None:
        super().__init__()
        head = model.model[-1]
        if type(head) is not Detect or head.end2end:
            raise ModelUnsupported(f"the last layer is {type(head).__name__}, not YOLOv8's Detect")
        first = getattr(model.model[0], "conv", None)
        if not isinstance(first, nn.Conv2d):
            raise ModelUnsupported(f"the first layer is {type(model.model[0]).__name__}, not Conv")
        self.layers = model.model[:-1]
        self.head = head
        self.strides = [int(stride) for stride in head.stride]
        self.bins = constant(torch.arange(head.reg_max).reshape(1, 1, head.reg_max, 1))
        # Images come as 0..255, the network was trained on 0..1.
        fold_input_scaling(first, 255)

    def forward(self, images: Tensor) -> Tensor:
        """Finds the best candidates.

        Args:
            images: (B, H, W, 3) uint8, RGB; H and W multiples of the largest stride.

        Returns:
            (B, K, 6) float32: x1, y1, x2, y2 in input pixels, score in 0..1, class id; best
            first; K = min(1000, number of anchor points).
        """
        maps = self.features(images.permute(0, 3, 1, 2).float())
        distributions = [self.head.cv2[i](map_).flatten(2) for i, map_ in enumerate(maps)]
        logits = torch.cat(
            [self.head.cv3[i](map_).flatten(2) for i, map_ in enumerate(maps)], dim=2
        )  # (B, classes, A)

        # Logits order as their sigmoids do, without the ties that saturation makes.
        best_logits, class_ids = logits.max(dim=1)  # (B, A)
        # A tensor, so that a trace keeps it dynamic.
        k = torch.minimum(torch.tensor(MAX_CANDIDATES), torch._shape_as_tensor(best_logits)[1])
        chosen_logits, chosen = torch.topk(best_logits, k, dim=1)  # type: ignore[arg-type]

        every = torch.cat(distributions, dim=2)  # (B, 4·bins, A)
        picked = every.gather(2, chosen[:, None].expand(-1, every.shape[1], -1))  # (B, 4·bins, K)
        sides = picked.reshape(picked.shape[0], 4, self.head.reg_max, -1).softmax(2)
        sides = (sides * self.bins).sum(2)  # (B, 4, K) left, top, right, bottom, in cells
        centres, strides = self.anchor_points(maps)  # (2, A) in cells, (A,) in pixels
        centre = centres[:, chosen].transpose(0, 1)  # (B, 2, K)
        corners = torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], dim=1)
        boxes = corners * strides[chosen][:, None]  # (B, 4, K) xyxy in input pixels

        best_classes = class_ids.gather(1, chosen).float()
        rows = torch.cat(
            [boxes, torch.stack([chosen_logits.sigmoid(), best_classes], dim=1)], dim=1
        )
        return rows.transpose(1, 2)

    def features(self, x: Tensor) -> list[Tensor]:
        """The head's inputs, one (B, C, H/stride, W/stride) map a level."""
        outputs: list[Tensor] = []
        for layer in self.layers:
            if layer.f != -1:
                sources = [layer.f] if isinstance(layer.f, int) else layer.f
                inputs = [x if source == -1 else outputs[source] for source in sources]
                x = inputs if isinstance(layer, Concat) else inputs[0]  # type: ignore[assignment]
            x = layer(x)
            outputs.append(x)
        return [outputs[source] for source in self.head.f]

    def anchor_points(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Centres (2, A) as x, y in cells of their level, and strides (A,) in input pixels."""
        centres, strides = [], []
        for map_, stride in zip(maps, self.strides, strict=True):
            height, width = map_.shape[2], map_.shape[3]
            x = torch.arange(width, dtype=torch.float32)[None] + 0.5
            y = torch.arange(height, dtype=torch.float32)[:, None] + 0.5
            zeros = torch.zeros_like(x * y)
            centres.append(torch.stack([(x + zeros).flatten(), (y + zeros).flatten()]))
            strides.append((zeros + stride).flatten())
        return torch.cat(centres, dim=1), torch.cat(strides)


def fold_input_scaling(convolution: nn.Conv2d, factor: float) -> None:
    """Makes a convolution without padding bias expect inputs `factor` times as large.

    Zero padding is zero at either scale, so only the weight changes.
    """
    convolution.weight.data /= factor
