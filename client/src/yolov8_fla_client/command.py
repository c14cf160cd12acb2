"""The command line: options, exit codes, and what a person reads on standard error."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from yolov8_fla_client.async_client import AsyncClient
from yolov8_fla_client.errors import DetectClientError, Unauthorized
from yolov8_fla_client.parameters import Parameters
from yolov8_fla_client.progress import Bar, Progress, Silent
from yolov8_fla_client.retry import Retry
from yolov8_fla_client.settings import DISTRIBUTION, this_version
from yolov8_fla_client.sync_client import Client
from yolov8_fla_client.work import Images, Job, Tally, run

EXIT_ALL, EXIT_SOME_FAILED, EXIT_ENDED, EXIT_SIGNAL = 0, 1, 2, 130
DEFAULT_URL = "http://127.0.0.1:8000"
# Not YOLO_FLA_...: the server refuses variables of that prefix that it does not know.
URL_VARIABLE, KEY_VARIABLE = "FLA_CLIENT_URL", "FLA_CLIENT_API_KEY"
FORMS = ("jsonl", "coco", "yolo", "images")


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs a command; returns the exit code."""
    program = parser(environment)
    options = program.parse_args(arguments)
    try:
        if options.command == "health":
            return health(options, environment)
        return detect(options, environment, program)
    except (DetectClientError, ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # as by `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_SIGNAL
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, Unauthorized):
            print(f"a key is given by --api-key, or better {KEY_VARIABLE}", file=sys.stderr)
        return EXIT_ENDED
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stopped", file=sys.stderr)
        return EXIT_SIGNAL


def health(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints the server's state as JSON; 0 where it is ready, 1 where it is not."""
    key = options.api_key or environment.get(KEY_VARIABLE) or None
    with Client(options.url, api_key=key, timeout_s=options.timeout) as client:
        state = client.health()
    print(json.dumps(asdict(state), indent=2), flush=True)
    return EXIT_ALL if state.status == "ready" else EXIT_SOME_FAILED


def detect(
    options: argparse.Namespace,
    environment: Mapping[str, str],
    program: argparse.ArgumentParser,
) -> int:
    """Detects in folders and files; 1 where some images failed."""
    out = None if options.out in (None, "-") else Path(options.out)
    if out is None and options.form != "jsonl":
        program.error(f"--format {options.form} needs -o OUT")
    if options.resume and (options.form != "jsonl" or out is None):
        program.error("--resume goes with --format jsonl and -o FILE")
    if options.resume and options.force:
        program.error("--resume goes on, --force begins anew: one of the two")
    if options.save_conf and options.form != "yolo":
        program.error("--save-conf goes with --format yolo")
    job = Job(
        sources=options.sources,
        out=out,
        form=options.form,
        parameters=Parameters(
            conf=options.conf,
            iou=options.iou,
            max_det=options.max_det,
            classes=options.classes.split(",") if options.classes else None,
            agnostic_nms=True if options.agnostic_nms else None,
        ),
        all_files=options.all_files,
        force=options.force,
        resume=options.resume,
        with_scores=options.save_conf,
        in_flight=options.in_flight,
        images_per_request=options.images_per_request,
    )
    key = options.api_key or environment.get(KEY_VARIABLE) or None
    retry = Retry(deadline_s=options.deadline)
    images = Images(job.sources, all_files=job.all_files, out=job.out)
    count = images.count()
    progress: Progress = Silent() if options.quiet else Bar(count, always=False)

    async def whole() -> Tally:
        task = asyncio.current_task()
        assert task is not None
        # SIGINT is handled so by asyncio.run itself.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with AsyncClient(
            options.url, api_key=key, timeout_s=options.timeout, retry=retry
        ) as client:
            return await run(job, client, images, progress)

    try:
        tally = asyncio.run(whole())
    finally:
        progress.close()
    if not options.quiet:
        print(summary(tally, out), file=sys.stderr)
    return EXIT_SOME_FAILED if tally.failed else EXIT_ALL


def summary(tally: Tally, out: Path | None) -> str:
    """What came of a run, in a line."""
    parts = [f"{tally.done} of {tally.done + tally.failed} images done"]
    if tally.before:
        parts.append(f"{tally.before} were done before")
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    if tally.truncated:
        parts.append(f"{tally.truncated} with more candidates than the model hands out")
    return ", ".join(parts) + (f": {out}" if out is not None else "")


def parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """The command line."""
    program = argparse.ArgumentParser(
        prog="yolov8-fla-client",
        description="Sends images to a detection server.",
        epilog="Exit codes: 0 all done, 1 some images failed (health: not ready), 2 the arguments "
        "are wrong or the server ended it, 130 stopped by a signal.",
        allow_abbrev=False,
    )
    program.add_argument("--version", action="version", version=f"{DISTRIBUTION} {this_version()}")
    commands = program.add_subparsers(dest="command", required=True)
    found = commands.add_parser("detect", help="detect in folders and files", allow_abbrev=False)
    state = commands.add_parser("health", help="the server's state as JSON", allow_abbrev=False)
    for each in (found, state):
        server = each.add_argument_group("server")
        url = environment.get(URL_VARIABLE) or DEFAULT_URL
        server.add_argument("--url", default=url, help=f"[{DEFAULT_URL}, or {URL_VARIABLE}]")
        server.add_argument("--api-key", help=f"seen by others in `ps`; better {KEY_VARIABLE}")
        server.add_argument(
            "--timeout", type=float, default=60.0, help="seconds without progress [60]"
        )
    add = found.add_argument
    add("sources", metavar="DIR|FILE", type=Path, nargs="+", help="folders and images")
    add("--all-files", action="store_true", help="of folders, whatever their names end in")
    results = found.add_argument_group("results")
    add = results.add_argument
    add("--format", dest="form", choices=FORMS, default="jsonl", help="[jsonl]")
    add("-o", "--out", metavar="OUT", help="file, or folder of yolo and images [standard output]")
    add("--force", action="store_true", help="write over what is there")
    add("--resume", action="store_true", help="go on with a file of JSON Lines")
    add("--save-conf", action="store_true", help="YOLO labels with the score as a sixth column")
    add("--quiet", action="store_true", help="no progress and no summary")
    detection = found.add_argument_group("detection; the server has the defaults")
    add = detection.add_argument
    add("--conf", type=float, help="confidence threshold, 0..1")
    add("--iou", type=float, help="IoU threshold of the suppression, 0..1")
    add("--max-det", type=int, help="detections per image at most")
    add("--classes", help="ids or names, with commas")
    add("--agnostic-nms", action="store_true", help="suppress overlaps across classes")
    flow = found.add_argument_group("requests")
    add = flow.add_argument
    add("--in-flight", type=int, default=4, help="requests at once [4]")
    add("--images-per-request", type=int, default=4, help="at most [4]")
    add("--deadline", type=float, default=300.0, help="seconds that one is repeated for [300]")
    return program
