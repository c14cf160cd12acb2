import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import TooLarge, UploadsFull
from server.serving.body_budget import ByteBudget, announced_bytes


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 60)), max_size=60))
def test_never_more_is_taken_than_there_is_and_all_comes_back(
    steps: list[tuple[int, int]],
) -> None:
    budget = ByteBudget(100)
    reservations = [budget.reserve() for _ in range(4)]
    held = [0] * 4
    for index, count in steps:  # -1: gives back
        if count < 0:
            reservations[index].release()
            held[index] = 0
        else:
            try:
                reservations[index].take(count)
            except TooLarge:
                assert held[index] + count > 100
            except UploadsFull:
                assert held[index] + count <= 100 < sum(held) + count
            else:
                held[index] += count
        assert budget.taken == sum(held) <= 100
    for reservation in reservations:
        reservation.release()
        reservation.release()
    assert budget.taken == 0


@pytest.mark.parametrize(
    ("sent", "announced"),
    [
        ("0", 0), ("12", 12), ("12".zfill(5_000), 12), ("9" * 19, 10**19 - 1), ("9" * 5_000, 0),
        ("", 0), ("-1", 0), ("+1", 0), ("1_0", 0), ("1 ", 0), ("1\n", 0), ("0x1", 0), ("\u0663", 0),
    ],
)  # fmt: skip
def test_what_is_no_length_announces_nothing(sent: str, announced: int) -> None:
    assert announced_bytes({"content-length": sent}) == announced


def test_no_header_announces_nothing() -> None:
    assert announced_bytes({}) == 0
