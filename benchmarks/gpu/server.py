"""(c) The server, a process of its own, under load: at saturation and at given rates.

In each round the session alone, the pipeline without HTTP and the server have a window each, so
that the server's share of both is one within a round. All three are loaded all the time: an idle
one costs memory, and next to nothing of the CPUs and of the GPU.
"""

import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from benchmarks.gpu.bench import PARAMETERS, Bench, Figures
from benchmarks.gpu.parity import detections
from benchmarks.gpu.pipeline import WARM_S, Instances, best_known
from benchmarks.gpu.raw import reason
from benchmarks.gpu.rounds import Contender, Deadline, Window, ratio, spread, turns, window
from benchmarks.load.contestants import Contestant
from benchmarks.load.generators import Generators, generating
from benchmarks.load.http_client import image_request
from benchmarks.load.process import DidNotStart, free_port, running
from server.settings import Settings

SHARES = (0.3, 0.5, 0.7, 0.9)  # of the saturated rate
TRIAL_S = 1.5
ENDING_S = 0.8  # of a load, around its window and its warm-up
ROUNDS_SHARE = 0.5  # of an arrangement's time, for the saturation
PATH = f"/detect?conf={PARAMETERS.conf}&max_det={PARAMETERS.max_det}"
RAW, PIPELINE, SERVER = "session alone", "pipeline", "server"


def measure(bench: Bench) -> Generator[Figures]:
    """Every number of HTTP workers, one after the other."""
    best = best_known(bench.job.known, bench.job.batches)
    figures: Figures = {
        "model": bench.served,
        "pipeline": str(best),
        "arrangements": [],
        "failed": {},
        "enough": False,
    }
    with ExitStack() as opened:
        batch = bench.job.batches[-1]
        instances = Instances(bench, opened, max(best.batch, batch))
        square = bench.square(bench.served)
        session = opened.enter_context(bench.session(square, batch))
        canvases = bench.canvases(square, batch)
        alone = Contender(RAW, partial(session.run, canvases), batch)
        lone = Contender("batch 1", partial(session.run, canvases[:1]), 1)
        boxes = counts(bench, instances)
        todo = bench.job.http_workers
        for i, processes in enumerate(todo):
            own = Deadline(time.monotonic() + bench.deadline.left_s / (len(todo) - i))
            row: Figures = {"http_workers": processes, "rates": [], "enough": False}
            try:
                with serving(bench, processes, boxes) as (load, start_s):
                    figures["arrangements"].append(row)
                    row |= {"start_s": start_s, "clients_tried": {}}
                    for clients in bench.job.clients:
                        found = load.closed(clients, TRIAL_S, WARM_S)
                        row["clients_tried"][str(clients)] = found["images_per_s"]
                    yield figures
                    clients = fewest_that_saturate(row["clients_tried"])
                    for part in saturated(load, clients, alone, instances.window, best, own):
                        row |= part
                        yield figures
                    row |= {"batch_1_ms": window(lone, 0.5).call_ms}
                    for number, share in enumerate(SHARES):
                        rate = share * row["images_per_s"]["median"]
                        seconds = own.left_s / (len(SHARES) - number) - WARM_S - ENDING_S
                        found = load.open(rate, min(8.0, max(0.5, seconds)), WARM_S, number)
                        row["rates"].append({"share": share} | found)
                        yield figures
                    row["enough"] = True
            except (DidNotStart, RuntimeError) as error:
                figures["failed"][f"{processes} HTTP workers"] = reason(error)
    figures["enough"] = any(each["enough"] for each in figures["arrangements"])
    if not figures["arrangements"]:
        raise RuntimeError(f"no server could be measured: {figures['failed']}")
    yield figures


def saturated(
    load: Generators,
    clients: int,
    alone: Contender,
    pipeline: Callable[[Any, float], Callable[[], Window]],
    best: Any,
    own: Deadline,
) -> Generator[Figures]:
    """The session alone, the pipeline and the server in turns, for a share of the time left."""
    until = Deadline(time.monotonic() + ROUNDS_SHARE * own.left_s)
    seconds = min(4.0, max(0.3, (until.left_s / 4 - 0.5) / 2 - 2 * WARM_S))
    loads: list[Figures] = []

    def server() -> Window:
        loads.append(load.closed(clients, seconds, WARM_S))
        return Window(loads[-1]["images_per_s"], loads[-1]["p50_ms"], loads[-1]["requests"])

    measures = {
        RAW: lambda: window(alone, min(0.5, seconds)),
        PIPELINE: pipeline(best, seconds),
        SERVER: server,
    }
    for rounds in turns(measures, until, at_most=8):
        yield {
            "clients": clients,
            "images_per_s": spread([each[SERVER].images_per_s for each in rounds]),
            "pipeline_images_per_s": spread([each[PIPELINE].images_per_s for each in rounds]),
            "raw_images_per_s": spread([each[RAW].images_per_s for each in rounds]),
            "to_pipeline": ratio(rounds, SERVER, PIPELINE),
            "to_raw": ratio(rounds, SERVER, RAW),
            "loads": loads,
        }


@contextmanager
def serving(
    bench: Bench,
    processes: int,
    boxes: Sequence[int],
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[Generators, float]]:
    """A server that answers, and what makes load on it; and the seconds that its start took.

    Args:
        bench: what is measured with.
        processes: that speak HTTP; 1 sets nothing.
        boxes: about how many the answer to each image holds.
        environment: of the server, beside what every one has.

    Raises:
        DidNotStart: it did not, or knows no such setting.
    """
    port = free_port()
    command = [sys.executable, "-m", "server", "--port", str(port)]
    command += ["--model", str(bench.inputs.models[bench.served]), "--device", bench.job.device]
    if processes > 1:
        if "http_workers" not in Settings.model_fields:
            raise DidNotStart("this server has no setting http_workers")
        command += ["--http-workers", str(processes)]
    command += bench.job.server_flags
    ours = Contestant("ours", f"{processes}", command, port, PATH, environment or {})
    with (
        running(ours, image_request(PATH, bench.images[0])) as server,
        generating(
            bench.job.generators, server.url, PATH, bench.inputs.images, boxes, server.pid
        ) as load,
    ):
        yield load, server.start_s


def counts(bench: Bench, instances: Instances) -> list[int]:
    """How many boxes this device finds in each image."""
    found = detections(instances.session(1, 1), bench.met(bench.served), bench.images)
    return [len(each.scores) for each in found]


def fewest_that_saturate(tried: Mapping[str, float]) -> int:
    """The smallest number of clients that brings all but 3 % of the most images a second.

    More of them only wait longer.
    """
    most = max(tried.values())
    return min(int(clients) for clients, rate in tried.items() if rate >= 0.97 * most)
