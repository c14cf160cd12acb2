"""What clients send in a mix of everything, and how the rude ones go about it."""

import random
from collections.abc import Callable, Mapping, Sequence

from benchmarks.endurance.broken import bad_files, broken_shots
from benchmarks.endurance.corpus import Expected, Image
from benchmarks.endurance.forms import (
    BadFile,
    annotated,
    deepstack,
    document,
    form,
    infer,
    many_boxes,
    raw,
)
from benchmarks.endurance.rude import (
    leaves_in_answer,
    leaves_in_body,
    leaves_waiting,
    sends_slowly,
)
from benchmarks.endurance.shots import Shot
from benchmarks.load.http_client import Client
from benchmarks.load.loops import Outcome, send

MOST_IN_FORM = 8
# Weights of 100.
POLITE = {
    "raw": 43, "many boxes": 10, "form": 12, "json": 8, "annotated": 5, "infer, JSON": 3,
    "infer, binary": 4, "deepstack": 5, "broken": 5,
}  # fmt: skip
RUDE = {"leaves in body": 1.5, "leaves waiting": 1.5, "leaves in answer": 1, "slow": 1}
# What a rude client asks for; in the midst of an answer one can leave only where it is long.
RUDE_SHOTS = {
    "leaves in body": POLITE,
    "leaves waiting": POLITE,
    "leaves in answer": {"many boxes": 1, "annotated": 1},
    "slow": POLITE,
}
BAD_IN_FORM = 0.25  # of forms and documents hold a file that can't be read
OF_A_KIND = 16

Choose = Callable[[Mapping[str, float]], Shot]


def mix(images: Sequence[Image], known: Expected, model: str, chance: random.Random) -> Choose:
    """Makes requests of every kind; gives a function that takes one of a kind chosen by weight."""
    jpeg = next(each for each in images if each.media_type == "image/jpeg")
    bad = bad_files(jpeg)
    several = [each for each in images if each.hw[0] * each.hw[1] <= 640 * 480]

    def one() -> Image:
        return chance.choice(several)

    def some(most: int = MOST_IN_FORM) -> list[Image]:
        return chance.choices(several, k=chance.randint(1, most))

    def some_with_bad() -> list[Image | BadFile]:
        chosen: list[Image | BadFile] = [*some(MOST_IN_FORM - 1)]
        if chance.random() < BAD_IN_FORM:
            chosen.insert(chance.randint(0, len(chosen)), chance.choice(bad))
        return chosen

    def many(make: Callable[[], Shot]) -> list[Shot]:
        return [make() for _ in range(OF_A_KIND)]

    # Made once: the generator should spend its time on sending.
    shots: dict[str, list[Shot]] = {
        "raw": [raw(each, known) for each in images],
        "many boxes": [many_boxes(each, known) for each in several],
        "form": many(lambda: form(some_with_bad(), known)),
        "json": many(lambda: document(some_with_bad(), known)),
        "annotated": [annotated(each) for each in several],
        "infer, JSON": many(lambda: infer(model, some(3), known, binary=False)),
        "infer, binary": many(lambda: infer(model, some(3), known, binary=True)),
        "deepstack": many(lambda: deepstack(one(), known)),
        "broken": broken_shots(jpeg),
    }

    def choose(weights: Mapping[str, float]) -> Shot:
        (kind,) = chance.choices(list(weights), list(weights.values()))
        return chance.choice(shots[kind])

    return choose


async def ask(
    client: Client,
    url: str,
    kind: str,
    shot: Shot,
    request_id: str,
    intended_s: float,
    chance: random.Random,
) -> Outcome:
    """One request of a polite or rude client."""
    if kind == "leaves in body":
        return await leaves_in_body(client, shot, request_id, chance.uniform(0.01, 0.3))
    if kind == "leaves waiting":
        return await leaves_waiting(client, shot, request_id, chance.uniform(0.001, 0.05))
    if kind == "leaves in answer":
        return await leaves_in_answer(url, shot, request_id)
    if kind == "slow":
        return await sends_slowly(url, shot, request_id, chance.uniform(0.5, 4))
    return await send(client, shot.request(request_id), intended_s)
