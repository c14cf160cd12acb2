from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yolov8_fla_client.window import WAITING_FOR_A_LATE_ONE, Window, groups_of

Numbers = Future[list[int]]


def done(task: Numbers, *values: int) -> Numbers:
    task.set_result(list(values))
    return task


@given(st.data(), st.integers(1, 5), st.booleans())
def test_whatever_is_done_first_all_come_out_once_and_in_order_if_asked(
    data: st.DataObject, in_flight: int, ordered: bool
) -> None:
    window: Window[Numbers, int] = Window(in_flight, ordered)
    begun = 0
    out: list[int] = []
    while begun < 40 or window.running:
        while begun < 40 and window.has_room():
            window.begin(Future())
            begun += 1
        assert len(window.running) <= in_flight
        assert not ordered or begun - len(out) <= in_flight * WAITING_FOR_A_LATE_ONE
        some = data.draw(st.lists(st.sampled_from(list(window.running)), min_size=1, unique=True))
        finished = [done(each, window.running[each]) for each in some]
        out += window.finish(finished, Future.result)
    assert sorted(out) == list(range(40))
    assert not ordered or out == sorted(out)


def test_what_is_done_comes_out_before_an_error_is_raised() -> None:
    window: Window[Numbers, int] = Window(3, ordered=False)
    first, second, third = Future(), Future(), Future()  # type: ignore[var-annotated]
    for each in (first, second, third):
        window.begin(each)
    second.set_exception(OSError("broken"))
    out = window.finish([done(third, 3), second, done(first, 1)], Future.result)
    assert [next(out), next(out)] == [1, 3]
    with pytest.raises(OSError, match="broken"):
        next(out)


def test_a_window_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="in_flight"):
        Window(0, ordered=True)
    with pytest.raises(ValueError, match="images_per_request"):
        list(groups_of([b""], 0))


def test_groups_take_no_more_than_they_hold() -> None:
    source = iter([b"%d" % i for i in range(7)])
    groups = groups_of(source, 3)
    assert next(groups) == [b"0", b"1", b"2"]
    assert next(source) == b"3"
    assert list(groups) == [[b"4", b"5", b"6"]]
