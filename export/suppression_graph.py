"""Writes the graph that the server suppresses overlapping boxes with.

    python -m export.suppression_graph

One node, because that is all of ONNX that a request's own thresholds need: see
`server.vision.nms`.
"""

from onnx import TensorProto, ValueInfoProto, checker, helper

from server.vision.nms import GRAPH

_OPSET, _IR_VERSION = 17, 8  # those of artifacts


def suppression_graph() -> bytes:
    """A serialised ModelProto: NonMaxSuppression of one image and one class."""

    def value(name: str, kind: int, shape: list[int | str]) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou"], ["chosen"])],
        "suppression",
        [
            value("boxes", TensorProto.FLOAT, [1, "N", 4]),
            value("scores", TensorProto.FLOAT, [1, 1, "N"]),
            value("most", TensorProto.INT64, [1]),
            value("iou", TensorProto.FLOAT, [1]),
        ],
        [value("chosen", TensorProto.INT64, ["M", 3])],
    )
    model = helper.make_model(
        graph,
        producer_name="yolov8-fla",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


if __name__ == "__main__":
    GRAPH.write_bytes(suppression_graph())
