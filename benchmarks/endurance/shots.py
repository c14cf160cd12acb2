"""Requests of a scenario, what each answer must be, and what the server then must have counted."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.http_client import Answer, Request, request_wire

# Says what is wrong with an answer of the expected status, or None.
Check = Callable[[Answer], str | None]


@dataclass(frozen=True, slots=True)
class Shot:
    """A request that may be sent many times, each time with another id.

    Attributes:
        kind: for the tables.
        route: as the server's metrics call it.
        path: with the query.
        body: of the POST.
        headers: without those that every request has.
        images: what the server counts when it has answered: images by outcome.
        status: that an accepted one is answered with.
        check: of an answer of that status.
    """

    kind: str
    route: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    images: Mapping[str, int]
    status: int = 200
    check: Check | None = None

    def wire(self, request_id: str) -> bytes:
        """Its bytes."""
        headers = {**self.headers, "X-Request-ID": request_id}
        return request_wire("POST", self.path, self.body, headers)

    def request(self, request_id: str) -> Request:
        """It as the load generator sends it; `check` then sees answers of any status."""
        return Request(
            self.wire(request_id),
            sum(self.images.values()),
            lambda answer: self.wrong(answer, request_id),
            name=request_id,
            check_all=True,
        )

    def wrong(self, answer: Answer, request_id: str) -> str | None:
        """What is wrong with an answer; a refusal for a while is right as well."""
        if answer.headers.get("x-request-id") != request_id:
            return (
                f"{self.kind}: a {answer.status} with the id {answer.headers.get('x-request-id')} "
                f"for the request {request_id}: {answer.body[:200]!r}"
            )
        if answer.status == 503:
            waits = answer.headers.get("retry-after", "").isdecimal()
            return None if waits else f"{self.kind}: 503 without Retry-After"
        if answer.status != self.status:
            return f"{self.kind}: {answer.status} instead of {self.status}: {answer.body[:200]!r}"
        return self.check(answer) if self.check else None


@dataclass(slots=True)
class Ledger:
    """What clients know: how many images and requests the server must have counted.

    Attributes:
        images: by outcome, of answered requests.
        loose_images: by outcome, of requests whose client left: counted or not.
        requests: by route and status, of answered requests.
        loose_requests: by route, of requests whose client left: counted with any status, or not.
    """

    images: Counter[str] = field(default_factory=Counter)
    loose_images: Counter[str] = field(default_factory=Counter)
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    loose_requests: Counter[str] = field(default_factory=Counter)

    def answered(self, shot: Shot, status: int) -> None:
        """An answer came whole. What is refused has none of its images counted."""
        self.requests[shot.route, str(status)] += 1
        if status == shot.status:
            self.images.update(shot.images)

    def left(self, shot: Shot) -> None:
        """The client did not wait for the answer."""
        self.loose_requests[shot.route] += 1
        self.loose_images.update(shot.images)

    def differences(
        self, images: Mapping[str, float], requests: Mapping[tuple[str, str], float]
    ) -> list[str]:
        """Where the server's own counts can't be right.

        Args:
            images: counted by the server meanwhile, by outcome.
            requests: counted by the server meanwhile, by route and status.
        """
        found = []
        for outcome in sorted({*images, *self.images}):
            low = self.images[outcome]
            high = low + self.loose_images[outcome]
            if not low <= images.get(outcome, 0) <= high:
                seen = images.get(outcome, 0)
                found.append(f"images {outcome}: clients {_span(low, high)}, server {seen:.0f}")
        for route in sorted({route for route, _ in self.requests} | {*self.loose_requests}):
            of_route = {s: n for (r, s), n in requests.items() if r == route}
            known = {s: n for (r, s), n in self.requests.items() if r == route}
            for status, low in known.items():
                if of_route.get(status, 0) < low:
                    seen = of_route.get(status, 0)
                    found.append(f"{route} {status}: clients {low}, server {seen:.0f}")
            low = sum(known.values())
            high = low + self.loose_requests[route]
            total = sum(of_route.values())
            if not low <= total <= high:
                found.append(f"{route}: clients {_span(low, high)}, server {total:.0f}")
        return found


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def loaded(answer: Answer) -> Any:
    """The JSON of an answer; None where it is none."""
    try:
        return json.loads(answer.body)
    except ValueError:
        return None
