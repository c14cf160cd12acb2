import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fuzz.images import examine, fuzz, main, small_metadata
from benchmarks.fuzz.mutations import damaged
from benchmarks.fuzz.seeds import refused_seeds, seeds
from server.inference.artifact import Metadata

SEED = 20_261_122


def aborts(data: bytes, _: Metadata) -> str:
    if data in [damaged(seeds(), SEED, number) for number in (3, 5)]:
        os.abort()
    return "refused"


def hangs(data: bytes, _: Metadata) -> str:
    if data == damaged(seeds(), SEED, 2):
        time.sleep(600)
    return "accepted"


def burns(data: bytes, _: Metadata) -> str:
    if data == damaged(seeds(), SEED, 6):
        end = time.process_time() + 0.2 * max(1, len(data) / 1024)
        while time.process_time() < end:
            pass
    return "accepted"


def complains(data: bytes, _: Metadata) -> str:
    return "odd" if data == damaged(seeds(), SEED, 4) else "refused"


def test_every_undamaged_file_gives_a_image() -> None:
    metadata = small_metadata()
    images = seeds()[: -len(refused_seeds())]
    assert {examine(seed, metadata) for seed in images} == {"accepted"}
    assert {examine(seed, metadata) for seed in refused_seeds()} == {"refused"}


def test_inputs_follow_from_seed_and_number_alone() -> None:
    first = [damaged(seeds(), 1, number) for number in range(50)]
    assert first == [damaged(seeds(), 1, number) for number in range(50)]
    assert first != [damaged(seeds(), 2, number) for number in range(50)]


@pytest.mark.slow
def test_damaged_images_are_refused_or_decoded_and_nothing_else(tmp_path: Path) -> None:
    outcome = fuzz(inputs=3000, seed=SEED, keep=tmp_path / "kept")
    assert outcome.findings == {}
    assert outcome.examined == 3000
    assert 300 < outcome.accepted < 2700
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("examine_one", "timeout_s", "expected"),
    [
        (aborts, 60.0, {3: "the process ended: -6", 5: "the process ended: -6"}),
        (hangs, 3.0, {2: "a hang"}),
        (complains, 60.0, {4: "odd"}),
        (burns, 60.0, {6: "over 0.1 s of CPU per KB"}),
    ],
)
def test_what_escapes_is_found_and_kept(
    examine_one: Callable[[bytes, Metadata], str],
    timeout_s: float,
    expected: dict[int, str],
    tmp_path: Path,
) -> None:
    outcome = fuzz(
        inputs=8, seed=SEED, keep=tmp_path / "kept", examine=examine_one, timeout_s=timeout_s
    )
    assert outcome.findings == expected
    kept = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert kept == {f"{SEED}-{number}": damaged(seeds(), SEED, number) for number in expected}


@pytest.mark.slow
def test_the_command_prints_what_it_saw(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--inputs", "100", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert "100 inputs" in printed
    assert "0 findings" in printed
    assert "peak memory" in printed
