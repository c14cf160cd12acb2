"""What the engine process and its workers have between them: slots, messages, metrics, shares."""

import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from server.errors import QueueFull
from server.http.auth import Keys
from server.inference.artifact import load_artifact
from server.observability.metrics import Metrics
from server.observability.metrics_merge import counted, exposition, merged, snapshot, worker_part
from server.serving.interface import QueueStatus
from server.settings import Settings
from server.workers.connection_passing import _received, passing_sockets
from server.workers.messages import (
    KINDS,
    MAX_MESSAGE_BYTES,
    BadMessage,
    Inferred,
    Message,
    MessageReader,
    Ready,
    Release,
    SlotsGranted,
    Submit,
    decode,
    encode,
)
from server.workers.remote_engine import RemoteEngine, described, read_description
from server.workers.shared_memory import PAGE_BYTES, SharedFile, SlotLayout, SlotPool
from server.workers.supervisor import MIN_CONNECTIONS, shares
from tests.support.artifacts import tiny_artifact
from tests.support.metrics import fresh

LAYOUT = SlotLayout(pixel_bytes=64 * 64 * 3, rows=10)


@pytest.fixture
def slots() -> Iterator[SlotPool]:
    made = SlotPool()
    yield made
    made.close()


# ---- slots


def test_what_one_process_writes_the_other_reads(slots: SlotPool) -> None:
    slots.fit(LAYOUT, 3)
    worker = SharedFile(slots.shared.file)
    (lease,) = slots.take(1)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    worker.pixels(lease.slot, 64, 64)[:] = pixels
    assert (lease.pixels(64, 64) == pixels).all()
    found = np.random.default_rng(1).random((7, 6)).astype(np.float32)
    lease.enter()
    lease.keep(found)
    lease.leave()
    assert (worker.candidates(lease.slot + LAYOUT.candidates_at, 7) == found).all()
    assert (lease.pixels(64, 64) == pixels).all()


def test_slots_do_not_overlap_and_none_is_handed_out_twice(slots: SlotPool) -> None:
    slots.fit(LAYOUT, 5)
    leases = slots.take(2) + slots.take(3)
    starts = sorted(lease.slot for lease in leases)
    assert starts[0] >= PAGE_BYTES  # behind the shared status
    assert all(b - a >= LAYOUT.slot_bytes for a, b in itertools.pairwise(starts))
    with pytest.raises(QueueFull, match="5 of 5 images"):
        slots.take(1)
    leases[0].release()
    assert slots.taken == 4
    assert slots.take(1)[0].slot == leases[0].slot


def test_a_slot_that_an_inference_uses_comes_back_only_after_it(slots: SlotPool) -> None:
    slots.fit(LAYOUT, 1)
    (lease,) = slots.take(1)
    lease.enter()
    lease.release()
    assert slots.taken == 1
    lease.leave()
    assert slots.taken == 0


def test_a_call_that_begins_with_what_was_released_writes_nothing(slots: SlotPool) -> None:
    slots.fit(LAYOUT, 1)
    (left,) = slots.take(1)
    left.release()
    (next_one,) = slots.take(1)  # the same memory, of another request
    next_one.enter()
    next_one.keep(np.ones((2, 6), np.float32))
    left.enter()
    left.keep(np.zeros((2, 6), np.float32))
    left.leave()
    start = next_one.slot + LAYOUT.candidates_at
    assert slots.shared.candidates(start, 2).all()
    assert slots.taken == 1


def test_a_larger_model_gets_larger_slots_and_the_small_ones_go_with_their_requests(
    slots: SlotPool,
) -> None:
    slots.fit(LAYOUT, 2)
    worker = SharedFile(slots.shared.file)
    (old,) = slots.take(1)
    old.pixels(64, 64)[:] = 7
    large = SlotLayout(128 * 128 * 3, 20)
    slots.fit(large, 2)
    new = slots.take(2)
    for lease in new:
        worker.pixels(lease.slot, 128, 128)[:] = 9  # it sees what came behind its map
    assert (old.pixels(64, 64) == 7).all()
    assert slots.taken == 3
    old.release()
    assert slots.taken == 2
    assert not old.pixels(64, 64).any()  # given back to the system
    assert (new[0].pixels(128, 128) == 9).all()
    size = os.fstat(slots.shared.file).st_size
    slots.fit(LAYOUT, 2)  # a smaller model uses what is there
    assert os.fstat(slots.shared.file).st_size == size
    assert slots.count == 2


def test_a_larger_model_gets_its_slots_before_any_image_came(slots: SlotPool) -> None:
    slots.fit(LAYOUT, 2)
    assert slots.shared.size >= 2 * LAYOUT.slot_bytes  # which is what the budget of memory counts
    slots.fit(SlotLayout(128 * 128 * 3, 20), 2)
    assert slots.count == 2
    (lease,) = slots.take(1)
    lease.pixels(128, 128)[:] = 1


def test_a_worker_cannot_cut_the_memory_off_under_the_engine_process(slots: SlotPool) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(slots.shared.file, 0)


def test_what_no_image_has_used_takes_no_memory(slots: SlotPool) -> None:
    slots.fit(SlotLayout(2**20, 1000), 500)
    (lease,) = slots.take(1)
    lease.pixels(512, 512)[:] = 1
    assert os.fstat(slots.shared.file).st_blocks * 512 < 2 * 2**20


def test_the_shared_status_reads_as_it_was_written(slots: SlotPool) -> None:
    status = QueueStatus(5, 3, 2, 1, float("inf"), 12.5)
    slots.shared.status.write(status)
    assert SharedFile(slots.shared.file).status.read() == status


# ---- messages

numbers = st.integers(0, 2**53)
messages: st.SearchStrategy[Message] = st.one_of(
    st.just(Ready()),
    st.builds(Submit, numbers, numbers, numbers, st.none() | st.floats(0, 1e6)),
    st.builds(Release, st.lists(numbers)),
    st.builds(SlotsGranted, numbers, st.lists(numbers), numbers),
    st.builds(Inferred, numbers, numbers, st.floats(0, 1e6), st.floats(0, 1e6)),
)


@given(st.lists(messages), st.data())
def test_messages_arrive_whole_however_they_are_cut(
    sent: list[Message], data: st.DataObject
) -> None:
    wire = b"".join(encode(each) for each in sent)
    reader = MessageReader()
    came: list[Message] = []
    while wire:
        cut = data.draw(st.integers(1, len(wire)))
        came += reader.feed(wire[:cut])
        wire = wire[cut:]
    assert came == sent


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b"[99]", b"[-99]", b'["x"]', b"[3, 1]", b"[0, 1]", b"\xff", b"[3"]
)
def test_what_is_no_message_is_told(line: bytes) -> None:
    with pytest.raises(BadMessage):
        decode(line)


def test_a_message_without_end_is_not_kept() -> None:
    reader = MessageReader()
    assert list(reader.feed(bytes(MAX_MESSAGE_BYTES))) == []
    with pytest.raises(BadMessage, match=str(MAX_MESSAGE_BYTES)):
        list(reader.feed(b"x"))


def test_every_message_has_a_number_of_its_own() -> None:
    assert len(set(KINDS)) == len(KINDS)


# ---- metrics


def worker(requests: int) -> Metrics:
    metrics = fresh("queue_full", inflight_body_bytes=100 * requests, queue_images=77)
    metrics.requests.labels("/detect", "200").inc(requests)
    for _ in range(requests):
        metrics.stage_seconds["decode"].observe(0.003)
    metrics.inflight_requests.set(requests)
    return metrics


def values(text: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for each in family.samples:
            found.setdefault(each.name, {})[tuple(each.labels.items())] = each.value
    return found


def test_what_workers_count_is_added_and_the_rest_is_the_engine_process_own() -> None:
    own = fresh("queue_full", queue_images=4)
    own.batch_size.observe(3)
    own.set_model(name="n", version="v", precision="fp32", provider="P", device="cpu")
    parts = [worker_part(snapshot(worker(each).registry)) for each in (2, 5)]
    there = values(exposition(merged(snapshot(own.registry), parts)))
    assert there["detector_requests_total"] == {(("route", "/detect"), ("status", "200")): 7}
    decoded = (("stage", "decode"),)
    assert there["detector_stage_seconds_count"][decoded] == 7
    assert there["detector_stage_seconds_sum"][decoded] == pytest.approx(0.021)
    assert there["detector_stage_seconds_bucket"][(("le", "0.005"), *decoded)] == 7
    assert there["detector_batch_size_sum"][()] == 3
    assert there["detector_inflight_requests"][()] == 7
    assert there["detector_inflight_body_bytes"][()] == 700
    assert there["detector_queue_images"][()] == 4
    assert there["detector_model_info"] == values(own.exposition())["detector_model_info"]


def test_one_process_alone_reads_as_it_would_by_itself() -> None:
    own = worker(3)
    alone = exposition(merged(snapshot(own.registry), []))
    ours = {name: each for name, each in values(alone).items() if name.startswith("detector_")}
    gauges = (
        "detector_inflight_requests",
        "detector_inflight_body_bytes",
        "detector_max_inflight_body_bytes",
    )
    expected = values(own.exposition())
    assert set(expected) == set(values(alone))
    for name, each in ours.items():
        if name not in gauges:
            assert each == expected[name], name


def test_what_the_dead_have_counted_stays_and_what_they_had_goes() -> None:
    own = snapshot(fresh("queue_full").registry)
    dead = counted(worker_part(snapshot(worker(2).registry)))
    there = values(exposition(merged(own, [dead])))
    assert there["detector_requests_total"][(("route", "/detect"), ("status", "200"))] == 2
    assert there["detector_inflight_requests"][()] == 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_sum() -> None:
    parts = [worker_part(snapshot(worker(each).registry)) for each in (2, 5)]
    text = exposition(merged(snapshot(fresh("queue_full").registry), parts))
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout


# ---- what each worker has


def settings(**given: object) -> Settings:
    return Settings.model_validate({"http_workers": 4} | given)


def test_what_there_is_is_divided_and_one_request_always_fits() -> None:
    part = shares(settings(max_inflight_body_bytes=400 * 2**20), 8 * 2**30, cpus=16)
    assert (part.decode_threads, part.inflight_body_bytes) == (4, 100 * 2**20)
    assert part.memory_bytes == 2 * 2**30
    assert part.connections == 1024
    small = shares(settings(max_body_bytes=50 * 2**20, decode_threads=2), 2**30, cpus=1)
    assert (small.decode_threads, small.inflight_body_bytes) == (1, 50 * 2**20)
    assert shares(settings(http_workers=64), 2**36, cpus=2).connections == MIN_CONNECTIONS


# ---- the rest


def test_keys_are_known_by_their_digests_alone() -> None:
    ours = Keys(settings(api_keys="one,two").api_keys)
    theirs = Keys(())
    theirs.take_over(ours.digests)
    assert [theirs.allows(key) for key in ("one", "two", "three")] == [True, True, False]


def test_a_connection_passes_from_one_process_to_another() -> None:
    ours, theirs = passing_sockets()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            accepted, _ = listener.accept()
            with accepted:
                socket.send_fds(ours, [b"c"], [accepted.fileno()])
            received = _received(theirs)
            assert received is not None
            with received:
                received.sendall(b"hello")
                assert client.recv(5) == b"hello"
        assert _received(theirs) is None


def test_a_description_is_read_as_it_was_written(tmp_path: Path) -> None:
    artifact = load_artifact(tiny_artifact(tmp_path / "tiny.onnx"))
    engine = RemoteEngine(3, artifact, "why", "P", "cuda:0", None, 2, 8)
    again = read_description(described(3, engine))
    assert vars(again) == vars(engine)
