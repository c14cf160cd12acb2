"""Time from the start of the process until it is ready, and its memory at rest.

    .venv-serve/bin/python -m benchmarks.micro.startup

Starts `python -m server` with the Python that runs this, several times, on a free port. Needs no
more than the server itself.
"""

import argparse
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.figures import print_spread
from benchmarks.load.usage import tree_usage

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.005


def ask(url: str, method: str, path: str, body: bytes | None = None) -> int:
    """The status of one request."""
    address = urlsplit(url)
    assert address.hostname
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    headers = {"Content-Type": "application/octet-stream"} if body else {}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def measure(flags: list[str], image: bytes, requests: int) -> dict[str, float]:
    """Starts one server, waits until it is ready, and posts the image some times."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "--port", "0", "--log-format", "json", *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    reader = None
    try:
        event: dict[str, str] = {}
        while "url" not in event:
            event = json.loads(process.stderr.readline())
        # A log that nobody reads fills its pipe, and the server would wait.
        reader = threading.Thread(target=process.stderr.read, daemon=True)
        reader.start()
        while ask(event["url"], "GET", "/health/ready") != 200:
            time.sleep(POLL_S)
        ready_s = time.perf_counter() - started
        at_start = tree_usage(process.pid)
        for _ in range(requests):
            if (status := ask(event["url"], "POST", "/detect", image)) != 200:
                raise SystemExit(f"/detect answered {status}")
        return {
            "ready_s": ready_s,
            "cpu_until_ready_s": at_start.cpu_s,
            "memory_ready_mb": at_start.rss_bytes / 1e6,
            "memory_after_requests_mb": tree_usage(process.pid).rss_bytes / 1e6,
        }
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        if reader:
            reader.join()
        process.stderr.close()


def main() -> None:
    """Prints minimum, median and maximum of each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--image", type=Path, default=ROOT / "samples" / "smear_1.jpg")
    arguments, flags = parser.parse_known_args()
    image = arguments.image.read_bytes()
    runs = [measure(flags, image, arguments.requests) for _ in range(arguments.runs)]
    print_spread(runs)


if __name__ == "__main__":
    main()
