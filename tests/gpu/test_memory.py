import gc
import json
import signal
from itertools import count

import pytest

from server.inference.artifact import Artifact
from tests.support.gpu_machine import Reading
from tests.support.gpu_server import ready, run_to_the_end, samples
from tests.support.gpu_sessions import CALLS, Calls, RecordProperty, open_session
from tests.support.gpu_soak import grown

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

SHARE = 0.01
BATCHES = 10_000
RELOADS = 6


@pytest.mark.parametrize("calls", CALLS)
def test_memory_is_flat_over_ten_thousand_varied_batches(
    device: str, rehearsal: bool, record_property: RecordProperty, calls: Calls
) -> None:
    batches = 40 if rehearsal else BATCHES
    flags = ("--device", device, "--calls", calls, "--batches", str(batches))
    done = run_to_the_end("-m", "tests.support.gpu_soak", *flags, limit_s=500)
    assert done.returncode == 0
    seen = json.loads(done.stdout.splitlines()[-1])
    for name in ("before", "warm", "after", "seconds", "images"):
        record_property(name, seen[name])
    assert seen["batches"] == batches
    assert seen["warm"] > seen["before"]
    print(f"grown by {grown(seen):.4f} of {seen['warm'] - seen['before']} bytes")
    if not rehearsal:  # a CPU's C library keeps and gives back as it likes
        assert abs(grown(seen)) <= SHARE


@pytest.mark.parametrize("calls", CALLS)
def test_a_closed_session_gives_its_memory_back(
    artifacts: dict[str, Artifact], device: str, memory: Reading, rehearsal: bool, calls: Calls
) -> None:
    used = []
    for _ in range(2 if rehearsal else 6):
        with open_session(artifacts["fp16"], device, calls) as session:
            opened = memory()
            assert session.device == device
        gc.collect()
        used.append((opened, memory()))
    print(used)
    if not rehearsal:
        # The first brings the context and the libraries' kernels, which stay.
        after_two, after_all = used[1][1], used[-1][1]
        assert abs(after_all - after_two) <= SHARE * used[1][0]
        assert used[-1][1] < used[-1][0]


def test_reloads_do_not_add_up(
    device: str, memory: Reading, rehearsal: bool, record_property: RecordProperty
) -> None:
    reloads = 2 if rehearsal else RELOADS
    images, seen = [each for _, each in samples()], []
    with ready(device) as (server, client):
        for i in count(1):
            assert client.post("/detect", content=images[i % 3]).status_code == 200
            seen.append(memory())
            if i > reloads:
                break
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("reloaded", i, limit_s=120)
    print(seen)
    record_property("used", seen)
    if not rehearsal:
        assert abs(seen[-1] - seen[2]) <= SHARE * seen[2]
