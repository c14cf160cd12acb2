"""The parts of the endurance scenarios that decide what was seen."""

import asyncio
import itertools
import json
import math
import random
import struct
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.endurance.broken import bad_files, broken_shots, png_bomb
from benchmarks.endurance.corpus import FORMATS, SIZES, Bounds, Image, corpus, fitted
from benchmarks.endurance.drains import Drain, Fate, judge
from benchmarks.endurance.forms import (
    DETECT,
    BadFile,
    annotated,
    deepstack,
    document,
    form,
    infer,
    raw,
)
from benchmarks.endurance.lag import LoopLag, Stalls
from benchmarks.endurance.mix import POLITE, RUDE, mix
from benchmarks.endurance.mixed import book, increase, is_fault
from benchmarks.endurance.overload import late_refusals, refusable
from benchmarks.endurance.probe import Sample, constant, flat_memory
from benchmarks.endurance.process import parse_metrics
from benchmarks.endurance.reloads import memory_per_reload
from benchmarks.endurance.rude import parse_answer, pieces
from benchmarks.endurance.shots import Ledger, Shot
from benchmarks.endurance.swaps import Swap, misplaced, put_bad, served_meanwhile, steps
from benchmarks.endurance.trend import second_half, slope
from benchmarks.endurance.verdict import Criterion, Report, none_of, table
from benchmarks.load.http_client import Answer
from benchmarks.load.loops import Outcome
from server.errors import ArtifactInvalid, BadInput
from server.inference.artifact import load_artifact
from server.vision.decode import decode
from tests.support.artifacts import tiny_artifact

LIMIT = 50_000_000
JPEG = Image("a.jpg", "image/jpeg", b"\xff\xd8\xff" + bytes(100), (480, 640))
PNG = Image("b.png", "image/png", b"\x89PNG" + bytes(50), (90, 700))
CUT = BadFile("cut.jpg", b"\xff\xd8\xff", "undecodable_image")
EXPECTED = {(each.name, conf): Bounds(2, 3) for each in (JPEG, PNG) for conf in (0.25, 0.4, 0.001)}


@pytest.fixture(scope="module")
def images(repo_dir: Path) -> list[Image]:
    return corpus(repo_dir / "samples", most=1)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "tiny.onnx")


def result(image: Image, boxes: int, **other: Any) -> dict[str, Any]:
    height, width = image.hw
    found = {"filename": image.name, "width": width, "height": height, "error": None}
    return found | {"detections": [{}] * boxes} | other


def answer(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {"x-request-id": "me"} | dict(headers or {}), content)


def wrong(shot: Shot, *results: object) -> str | None:
    return shot.wrong(answer({"results": results}), "me")


def outcome(
    status: int, *, began_s: float = 0.0, ended_s: float = 0.0, error: str | None = None
) -> Outcome:
    return Outcome(began_s, began_s, ended_s, status, 1, error, "me")


# ---- trend


@given(st.floats(-5, 5), st.floats(-100, 100), st.integers(2, 200), st.integers(2, 40))
def test_a_straight_line_has_its_slope_and_no_error(
    rise: float, start: float, points: int, blocks: int
) -> None:
    xs = [float(i) for i in range(points)]
    line = slope(xs, [start + rise * x for x in xs], blocks)
    assert line.per_unit == pytest.approx(rise, abs=1e-8)
    assert line.growth == pytest.approx(rise * (points - 1), abs=1e-6)
    assert math.isnan(line.error) or line.error == pytest.approx(0, abs=1e-8)


def test_the_error_is_that_of_least_squares() -> None:
    xs = np.arange(12.0)
    ys = np.random.default_rng(1).normal(0, 1, 12) + xs
    (rise, _), covariance = np.polyfit(xs, ys, 1, cov=True)
    line = slope(xs.tolist(), ys.tolist(), blocks=12)
    assert line.per_unit == pytest.approx(rise)
    assert line.error == pytest.approx(math.sqrt(covariance[0, 0]))


@pytest.mark.parametrize(
    ("per_step", "noise", "flat"), [(0.0, 1.0, True), (1.0, 1.0, False), (0.01, 0.1, True)]
)
def test_a_leak_is_sure_and_larger_than_what_an_allocator_keeps(
    per_step: float, noise: float, flat: bool
) -> None:
    chance = np.random.default_rng(0)
    ys = 300 + per_step * np.arange(200) + chance.normal(0, noise, 200)
    assert slope(range(200), ys.tolist()).flat is flat


def test_no_line_goes_through_a_point() -> None:
    with pytest.raises(ValueError, match="no line"):
        slope([1, 1], [1, 2])


def test_the_second_half_is_one_of_time_not_of_samples() -> None:
    assert second_half([0, 1, 2, 3, 10]) == 4
    assert second_half([0, 8, 9, 10]) == 1


# ---- the generator's own lateness


@given(st.lists(st.floats(0.01, 5), max_size=20), st.floats(0, 30), st.floats(0, 30))
def test_stalls_within_a_request_are_what_both_share(
    steps: list[float], begin_s: float, length_s: float
) -> None:
    edges = list(itertools.accumulate(steps))
    stalls = Stalls()
    for first, last in zip(edges[::2], edges[1::2], strict=False):
        stalls.add(first, last)
    end_s = begin_s + length_s
    shared = sum(
        max(0.0, min(last, end_s) - max(first, begin_s))
        for first, last in zip(edges[::2], edges[1::2], strict=False)
    )
    assert stalls.within(begin_s, end_s) == pytest.approx(shared, abs=1e-9)


def test_only_what_the_server_took_counts_as_late() -> None:
    stalls = Stalls()
    stalls.add(1.0, 1.3)
    on_time = outcome(503, began_s=0.0, ended_s=0.1)
    through_us = outcome(503, began_s=1.0, ended_s=1.35)
    through_the_server = outcome(503, began_s=1.2, ended_s=1.5)
    [(sent_s, took_ms)] = late_refusals([on_time, through_us, through_the_server], stalls)
    assert sent_s == 1.2
    assert took_ms == pytest.approx(200)


def test_a_blocked_loop_is_a_stall() -> None:
    async def block() -> Stalls:
        async with LoopLag() as lag:
            ticked = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.01, ticked.set_result, None)
            await ticked
            end_s = time.perf_counter() + 0.05
            while time.perf_counter() < end_s:
                pass
            again = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.01, again.set_result, None)
            await again
            return lag.stalls

    assert max(asyncio.run(block()).lengths_s()) > 0.04


# ---- processes


def samples(*rss_mb: float, threads: int = 5) -> list[Sample]:
    return [Sample(float(i), int(mb * 1e6), 9, threads) for i, mb in enumerate(rss_mb)]


def test_memory_that_grew_at_first_is_flat() -> None:
    settled = samples(*(100 + 3 * min(i, 40) for i in range(100)))
    growing = samples(*(100 + 3 * i for i in range(100)))
    assert flat_memory(settled).met
    assert not flat_memory(growing).met


@pytest.mark.parametrize(
    ("files", "threads", "met"), [(9, 6, True), (8, 5, True), (10, 6, False), (9, 7, False)]
)
def test_more_files_or_threads_are_a_leak(files: int, threads: int, met: bool) -> None:
    seen = [*samples(1, 1, threads=6), Sample(9.0, 1, 50, 7)]
    before = Sample(0.0, 1, 9, 5)
    assert constant(before, seen, Sample(10.0, 1, files, threads)).met is met


def test_memory_is_compared_over_pairs_of_reloads() -> None:
    two_models = [250.0 + 100 * (i % 2) for i in range(40)]
    assert memory_per_reload(two_models).met
    assert not memory_per_reload([mb + i for i, mb in enumerate(two_models)]).met


def test_metrics_are_read_by_name_and_labels() -> None:
    text = '# TYPE a counter\na_total{x="1",b="2"} 3\n# TYPE g gauge\ng 4\n'
    scrape = parse_metrics(text)
    assert scrape == {"a_total": {(("b", "2"), ("x", "1")): 3.0}, "g": {(): 4.0}}
    later = parse_metrics(text.replace("} 3", "} 5"))
    assert increase(scrape, later, "a_total", ("x", "b")) == {("1", "2"): 2.0}
    assert increase({}, later, "a_total", ("x",)) == {("1",): 5.0}


# ---- requests and their answers


def test_images_come_in_all_sizes_and_formats(images: list[Image]) -> None:
    assert {each.hw for each in images} == {(height, width) for width, height in SIZES}
    assert {each.media_type for each in images} == set(FORMATS.values())
    assert len({each.name for each in images}) == len(images)
    for each in images:
        assert decode(each.data, max_pixels=LIMIT).shape == (*each.hw, 3)


def test_a_image_is_cut_and_not_stretched() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[40:60, 90:110] = 255
    small = fitted(image, (50, 50))
    assert small.shape == (50, 50, 3)
    rows, columns = np.nonzero(small[..., 0] > 128)
    assert np.ptp(rows) == np.ptp(columns)


def test_files_are_broken_in_the_way_that_is_said(images: list[Image]) -> None:
    for file in bad_files(images[0]):
        with pytest.raises(BadInput) as caught:
            decode(file.data, max_pixels=LIMIT)
        assert caught.value.code == file.code, file.name
    assert len(png_bomb()) < 200


def test_a_form_needs_a_result_for_each_file_in_order() -> None:
    shot = form([JPEG, CUT, PNG], EXPECTED)
    error = {"code": "undecodable_image"}
    bad: dict[str, Any] = {
        "filename": "cut.jpg",
        "width": None,
        "height": None,
        "detections": [],
        "error": error,
    }
    good = [result(JPEG, 2), bad, result(PNG, 3)]
    assert shot.images == {"ok": 2, "undecodable_image": 1}
    assert wrong(shot, *good) is None
    for changed, said in (
        (good[:2], "2 results for 3"),
        ([good[2], good[1], good[0]], "700 x 90 pixels"),
        ([result(JPEG, 4), *good[1:]], "4 boxes, expected 2 to 3"),
        ([good[0], result(CUT_AS_IMAGE, 0), good[2]], "error None"),
        ([good[0] | {"filename": "x"}, *good[1:]], "the result is of x"),
        ([good[0] | {"error": {"code": "bad_input"}}, *good[1:]], "error {'code'"),
    ):
        assert said in (wrong(shot, *changed) or ""), changed


CUT_AS_IMAGE = Image("cut.jpg", "image/jpeg", b"", (1, 1))


def test_an_answer_to_another_request_is_wrong() -> None:
    shot = raw(JPEG, EXPECTED)
    body = {"results": [result(JPEG, 2)]}
    assert shot.wrong(answer(body), "me") is None
    assert "the id me for the request you" in (shot.wrong(answer(body), "you") or "")


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (503, {"retry-after": "1"}, None),
        (503, {}, "without Retry-After"),
        (500, {}, "500 instead of 200"),
        (504, {}, "504 instead of 200"),
    ],
)
def test_only_a_503_that_says_when_to_come_again_is_right(
    status: int, headers: dict[str, str], said: str | None
) -> None:
    found = raw(JPEG, EXPECTED).wrong(answer({}, status, headers), "me")
    assert found is None if said is None else said in (found or "")
    check = refusable(b"").check
    assert check is not None
    assert (check(answer({}, status, headers)) is None) == (said != "without Retry-After")


def test_the_other_apis_answers_are_counted() -> None:
    def tensors(*counts: int) -> dict[str, Any]:
        return {"outputs": [{"name": "counts", "data": counts}]}

    asked = infer("m", [JPEG, PNG], EXPECTED, binary=False)
    assert asked.wrong(answer(tensors(2, 3)), "me") is None
    assert asked.wrong(answer(tensors(2)), "me") == "infer: 1 counts for 2 images"
    assert asked.wrong(answer(tensors(2, 4)), "me") == "infer: 4 boxes"
    camera = deepstack(JPEG, EXPECTED)
    assert camera.wrong(answer({"success": True, "predictions": [1, 2]}), "me") is None
    assert camera.wrong(answer({"success": True, "predictions": [1]}), "me") is not None
    assert camera.wrong(answer({"success": False, "predictions": [1, 2]}), "me") is not None
    image = annotated(JPEG)
    jpeg = {"content-type": "image/jpeg"}
    assert image.wrong(answer(b"\xff\xd8\xff..\xff\xd9", 200, jpeg), "me") is None
    assert image.wrong(answer(b"\xff\xd8\xff..", 200, jpeg), "me") is not None


def test_binary_tensors_hold_the_files_behind_their_lengths() -> None:
    shot = infer("m", [JPEG, PNG], EXPECTED, binary=True)
    head_bytes = int(shot.headers["Inference-Header-Content-Length"])
    (tensor,) = json.loads(shot.body[:head_bytes])["inputs"]
    blob = shot.body[head_bytes:]
    assert tensor["parameters"]["binary_data_size"] == len(blob)
    (length,) = struct.unpack_from("<I", blob)
    assert blob[4 : 4 + length] == JPEG.data
    assert blob[8 + length :] == PNG.data


def test_every_kind_of_the_mix_can_be_chosen(images: list[Image]) -> None:
    known = {(p.name, conf): Bounds(0, 9) for p in images for conf in (0.25, 0.4, 0.001)}
    choose = mix(images, known, "m", random.Random(0))
    kinds = {kind: choose({kind: 1}) for kind in POLITE}
    assert {shot.kind for shot in kinds.values()} == set(POLITE)
    assert {choose(POLITE).kind for _ in range(500)} == set(POLITE)
    assert sum(POLITE.values()) + sum(RUDE.values()) == 100
    wire = kinds["form"].wire("an-id")
    assert b"X-Request-ID: an-id\r\n" in wire
    assert wire.endswith(kinds["form"].body)


# ---- the books

GOOD_AND_BAD = document([JPEG, CUT], EXPECTED)


def books() -> Ledger:
    ledger = Ledger()
    ledger.answered(GOOD_AND_BAD, 200)
    ledger.answered(GOOD_AND_BAD, 503)
    ledger.left(raw(JPEG, EXPECTED))
    return ledger


@pytest.mark.parametrize(
    ("images", "requests", "said"),
    [
        ({"ok": 1, "undecodable_image": 1}, {"200": 1, "503": 1}, []),
        ({"ok": 2, "undecodable_image": 1}, {"200": 1, "503": 1, "499": 1}, []),
        ({"ok": 2, "undecodable_image": 1}, {"200": 2, "503": 1}, []),
        ({"ok": 3, "undecodable_image": 1}, {"200": 1, "503": 1}, ["images ok"]),
        ({"undecodable_image": 1}, {"200": 1, "503": 1}, ["images ok"]),
        ({"ok": 1, "undecodable_image": 2}, {"200": 1, "503": 1}, ["images undecodable"]),
        ({"ok": 1, "undecodable_image": 1, "x": 1}, {"200": 1, "503": 1}, ["images x"]),
        ({"ok": 1, "undecodable_image": 1}, {"200": 1, "503": 3}, ["/detect: "]),
        ({"ok": 1, "undecodable_image": 1}, {"200": 1, "499": 1}, ["/detect 503"]),
    ],
)
def test_the_books_hold_what_was_answered_and_at_most_what_was_left(
    images: Mapping[str, int], requests: Mapping[str, int], said: list[str]
) -> None:
    by_route = {(DETECT, status): count for status, count in requests.items()}
    found = books().differences(images, by_route)
    assert [any(line.startswith(start) for line in found) for start in said] == [True] * len(said)
    assert len(found) == len(said)


def test_a_broken_request_counts_its_image_and_none_before_that(images: list[Image]) -> None:
    ledger = Ledger()
    for shot in broken_shots(images[0]):
        ledger.answered(shot, shot.status)
    codes = {"undecodable_image": 2, "too_many_pixels": 1, "unsupported_image": 1}
    assert ledger.images == Counter(codes)


@pytest.mark.parametrize(
    ("kind", "status", "error", "said"),
    [
        ("raw", 200, None, None),
        ("raw", 200, "2 results", "raw: 2 results"),
        ("slow", 0, "left", None),
        ("raw", 0, "left", "raw, json: no answer, left"),
        ("slow", 0, "disconnected", "slow, json: no answer, disconnected"),
    ],
)
def test_only_rude_clients_may_go_without_an_answer(
    kind: str, status: int, error: str | None, said: str | None
) -> None:
    ledger = Ledger()
    assert book(ledger, kind, GOOD_AND_BAD, outcome(status, error=error)) == said
    assert bool(ledger.requests) == bool(status)
    assert bool(ledger.loose_requests) == (not status)


def test_503_is_the_only_5xx_that_may_be() -> None:
    statuses = ("200", "404", "499", "500", "503", "504")
    assert [status for status in statuses if is_fault(status)] == ["500", "504"]


# ---- answers without a library


@given(st.binary(max_size=100), st.integers(1, 10))
def test_pieces_are_the_body(body: bytes, count: int) -> None:
    cut = pieces(body, count)
    assert b"".join(cut) == body
    assert len(cut) <= count
    assert all(cut)


def test_an_answer_is_whole_or_none() -> None:
    wire = b"HTTP/1.1 503 X\r\nContent-Length: 2\r\nRetry-After: 1\r\n\r\nno"
    whole = parse_answer(wire)
    assert whole is not None
    assert (whole.status, whole.headers["retry-after"], whole.body) == (503, "1", b"no")
    assert all(parse_answer(wire[:end]) is None for end in range(len(wire)))


# ---- drains and reloads


@pytest.mark.parametrize(
    ("status", "error", "ended_s", "logged", "fate"),
    [
        (200, None, 12, True, "answered"),
        (200, "1 results for 2 images", 12, True, "failed"),
        (503, None, 12, True, "refused"),
        (503, None, 30, True, "failed"),
        (500, "500", 12, True, "failed"),
        (0, "disconnected", 12, True, "failed"),
        (0, "disconnected", 12, False, "not accepted"),
        (0, "disconnected", 9, False, "failed"),
        (0, "connect", 12, False, "not accepted"),
        (0, "connect", 9, False, "failed"),
        (0, "timeout", 12, False, "failed"),
    ],
)
def test_what_the_server_read_it_has_to_answer(
    status: int, error: str | None, ended_s: float, logged: bool, fate: Fate
) -> None:
    drain = Drain([], 10.0, {"me"} if logged else set(), 0, 1.0)
    assert judge(outcome(status, ended_s=ended_s, error=error), drain, 20.0)[0] == fate


SWAPS = [Swap(0, 1, "a"), Swap(10, 12, "b"), Swap(20, 22, "a"), Swap(30, 31, "c")]


@pytest.mark.parametrize(
    ("begin_s", "end_s", "versions"),
    [(2, 3, "a"), (2, 10.5, "ab"), (11, 11.5, "ab"), (13, 14, "b"), (13, 35, "bac"), (32, 33, "c")],
)
def test_a_request_is_answered_by_a_model_of_its_time(
    begin_s: float, end_s: float, versions: str
) -> None:
    assert served_meanwhile(SWAPS, begin_s, end_s) == set(versions)
    one = outcome(200, began_s=begin_s, ended_s=end_s)
    for version in "abc":
        assert bool(misplaced([one], {"me": version}, SWAPS)) == (version not in versions)
    assert misplaced([one], {}, SWAPS) == []


def test_reloads_alternate_between_models_and_ways() -> None:
    to_come = steps(200)
    good = [step for step in to_come if step.good]
    bad = [step for step in to_come if not step.good]
    assert [step.model for step in good] == [1, 0] * 90
    assert len(bad) == 20
    for chosen in (good, bad):
        ways = Counter(step.by_http for step in chosen)
        assert ways[True] == ways[False]


def test_a_bad_file_is_no_artifact(artifact: Path, tmp_path: Path) -> None:
    place = tmp_path / "model.onnx"
    put_bad(artifact, place)
    with pytest.raises(ArtifactInvalid):
        load_artifact(place)


# ---- the verdict


def test_a_report_is_met_when_all_of_it_is() -> None:
    met, unmet = none_of("a", []), none_of("b", ["x|y", "z"])
    assert (met.met, unmet.met) == (True, False)
    assert Report("s", [met]).met
    report = Report("s", [met, unmet], {"rate": 1.23456, "raw": [1]}, ("rate",))
    assert not report.met
    text = table(report)
    assert "## s: NOT MET" in text
    assert "| b | 2: x/y; z | **NO** |" in text
    assert "| rate | 1.235 |" in text
    assert "raw" not in text
    assert Criterion("a", "none", True) == met
