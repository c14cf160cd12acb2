import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.observability.log_output import LogOutput


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for each in ends:
        os.close(each)


def test_what_was_written_before_the_end_is_there_in_its_order(pipe: tuple[int, int]) -> None:
    source, sink = pipe
    output = LogOutput(sink)
    lines = [f"{i}: {'x' * (i * 7 % 300)} \ud800\n" for i in range(300)]
    for line in lines:
        output.write(line)
    output.close()
    expected = "".join(lines).encode("utf-8", "backslashreplace")
    assert os.read(source, 2**20) == expected
    assert output.dropped == 0


def test_what_a_pipe_that_nobody_reads_cannot_take_is_dropped_and_counted(
    pipe: tuple[int, int],
) -> None:
    source, sink = pipe
    os.set_blocking(sink, False)
    while True:
        try:
            os.write(sink, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(sink, True)
    output = LogOutput(sink, max_queued_bytes=1000)
    for _ in range(1000):
        output.write("x" * 99 + "\n")
    # Ten wait, and the writer may hold ten more.
    assert 980 <= output.dropped <= 990
    dropped, written = output.dropped, 0
    while dropped + written < 1000:
        written += received(source).count(b"\n")
    output.close()
    assert output.dropped == dropped


def received(source: int) -> bytes:
    return os.read(source, 2**20)


def test_a_pipe_that_does_not_block_is_waited_for(pipe: tuple[int, int]) -> None:
    source, sink = pipe
    os.set_blocking(sink, False)
    output = LogOutput(sink)
    line = "x" * 999 + "\n"
    for _ in range(300):  # the pipe takes 65
        output.write(line)
    count = 0
    while count < 300 * len(line):
        count += len(received(source))
    output.close()
    assert output.dropped == 0


def test_lines_that_come_too_late_or_that_no_file_takes_are_counted() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        output = LogOutput(full.fileno())
        for _ in range(5):
            output.write("x\n")
        output.close()
        assert output.dropped == 5
        output.write("late\n")
        assert output.dropped == 6


def test_a_line_after_one_that_was_written_in_part_begins_anew(tmp_path: Path) -> None:
    """As when a disk is full in the middle of a line, and has room again."""
    file = tmp_path / "log"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with file.open("ab") as log:
        output = LogOutput(log.fileno())
        resource.setrlimit(resource.RLIMIT_FSIZE, (3, hard))
        try:
            output.write("torn\n")
            while not output.dropped:
                pass
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        output.write("whole\n")
        output.close()
    assert file.read_text(encoding="utf-8") == "tor\nwhole\n"
    assert output.dropped == 1
