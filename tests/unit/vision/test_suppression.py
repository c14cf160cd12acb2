import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.vision.nms import GRAPH, suppress


def plain(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], *, iou: float, most: int
) -> list[int]:
    """The rule, box by box, in torch's float32 arithmetic."""
    chosen: list[int] = []
    with np.errstate(all="ignore"):
        for i in np.argsort(-scores, kind="stable").tolist():
            x1, y1, x2, y2 = boxes[i]
            others = boxes[chosen]
            zero = np.float32(0)
            inner_w = np.maximum(np.minimum(x2, others[:, 2]) - np.maximum(x1, others[:, 0]), zero)
            inner_h = np.maximum(np.minimum(y2, others[:, 3]) - np.maximum(y1, others[:, 1]), zero)
            inner = inner_w * inner_h
            area = (x2 - x1) * (y2 - y1)
            areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
            if not (inner / (areas + area - inner) > np.float32(iou)).any():
                chosen.append(i)
                if len(chosen) == most:
                    break
    return chosen


# Few different values, so that boxes meet in edges, corners and wholly.
coordinate = st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.5, 7680.0, 614400.1])
odd = st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e-30, 1e19, 3e38, -3e38])


@st.composite
def problems(draw: st.DrawFn) -> tuple[object, ...]:
    rows = draw(
        st.lists(
            st.tuples(*[coordinate | odd] * 4, st.sampled_from([0.1, 0.25, 0.5, 0.9])), max_size=25
        )
    )
    table = np.array(rows, np.float32).reshape(-1, 5)
    iou = draw(st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.7, 1.0]) | st.floats(0, 1))
    return table[:, :4], table[:, 4], iou, draw(st.integers(1, 30))


@settings(max_examples=500, deadline=None)
@given(problems())
def test_boxes_and_odd_numbers_are_chosen_as_by_the_plain_rule(
    problem: tuple[object, ...],
) -> None:
    boxes, scores, iou, most = problem
    expected = plain(boxes, scores, iou=iou, most=most)  # type: ignore[arg-type]
    found = suppress(boxes, scores, iou=iou, most=most)  # type: ignore[arg-type]
    assert found.tolist() == expected


@pytest.mark.parametrize("iou", [0.0, 0.1, 0.45, 0.7, 1.0])
@pytest.mark.parametrize("offset", [0.0, 7680.0 * 79])
def test_a_thousand_boxes_are_chosen_as_by_the_plain_rule(iou: float, offset: float) -> None:
    random = np.random.default_rng(7)
    centre = random.uniform(0, 640, (1000, 2))
    extent = random.uniform(2, 200, (1000, 2))
    boxes = np.concatenate([centre - extent / 2, centre + extent / 2], 1).astype(np.float32)
    boxes += np.float32(offset)
    scores = (random.integers(1, 500, 1000) / 500).astype(np.float32)
    for most in (1, 300, 10**30):
        expected = plain(boxes, scores, iou=iou, most=most)
        assert suppress(boxes, scores, iou=iou, most=most).tolist() == expected


def test_no_boxes_give_none() -> None:
    none = suppress(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), iou=0.5, most=9)
    assert none.shape == (0,)
    assert none.dtype == np.int64


def test_threads_may_choose_at_the_same_time() -> None:
    random = np.random.default_rng(2)
    tables = [random.uniform(0, 50, (300, 5)).astype(np.float32) for _ in range(8)]
    alone = [suppress(t[:, :4], t[:, 4], iou=0.3, most=300).tolist() for t in tables]
    together: list[list[list[int]]] = [[] for _ in tables]

    def work(i: int) -> None:
        for _ in range(50):
            boxes, scores = tables[i][:, :4], tables[i][:, 4]
            together[i].append(suppress(boxes, scores, iou=0.3, most=300).tolist())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(tables))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found == [alone[i]] * 50 for i, found in enumerate(together))


def test_the_shipped_graph_is_the_one_that_the_export_writes() -> None:
    pytest.importorskip("onnx", reason="onnx not installed")
    from export.suppression_graph import suppression_graph

    assert GRAPH.read_bytes() == suppression_graph()
