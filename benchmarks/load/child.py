"""Starts a part in a process of its own, follows what it says, and ends it when its time is up."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from benchmarks.load.envs import ROOT
from benchmarks.load.usage import tree

GRACE_S = 15.0  # past its deadline, for a call that is under way
ENDING_S = 8.0  # to end servers and generators after SIGTERM
POLL_S = 0.2
SAID = 2000  # characters of what a part printed that failed


def run_part(
    command: Sequence[str],
    job: Mapping[str, Any],
    note: Callable[[dict[str, Any]], None],
    *,
    deadline_s: float,
    environment: Mapping[str, str] | None = None,
    grace_s: float = GRACE_S,
) -> dict[str, Any]:
    """Runs a part to its end.

    Args:
        command: of its process, which reads the job and prints lines as `benchmarks.gpu.part` does.
        job: for it.
        note: gets the figures that it has so far, each time that there are more.
        deadline_s: on `time.monotonic`; some time after it the process is ended.
        environment: beside this process' own.
        grace_s: how long after it.

    Returns:
        `status`, and `error` where it failed; and `figures`, the last it had, if any.

    Raises:
        KeyboardInterrupt: as it came; the process has ended then, too.
    """
    result: dict[str, Any] = {}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,  # Ctrl-C is for the one who keeps the figures
        )
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(process, lines))
        reader.start()
        try:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it says on stderr why it has ended
                process.stdin.write(json.dumps(dict(job)))
                process.stdin.close()
            while (line := _next(lines, deadline_s + grace_s)) is not None:
                result |= json.loads(line)
                if "figures" in result and "status" not in result:
                    note(result["figures"])
            code = process.wait()
            if "status" not in result or code:
                result |= {"status": "failed", "error": _failure(code, said)}
        except TimeoutError:
            result |= _late(result)
        finally:
            end(process)
            reader.join()
            if process.stdout is not None:
                process.stdout.close()
    return result


def end(process: subprocess.Popen[str]) -> None:
    """Ends a process: asks it to, and kills what is left of it and of all below it."""
    if process.poll() is not None:
        return
    below = tree(process.pid)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(ENDING_S)
        return
    for each in below:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.wait()


def python(module: str, *arguments: str) -> list[str]:
    """The command of a module in this Python."""
    return [sys.executable, "-m", module, *arguments]


def _read(process: subprocess.Popen[str], lines: "queue.SimpleQueue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _next(lines: "queue.SimpleQueue[str | None]", until_s: float) -> str | None:
    while True:
        # Short waits, so that Ctrl-C is heard.
        with suppress(queue.Empty):
            return lines.get(timeout=POLL_S)
        if time.monotonic() > until_s:
            raise TimeoutError


def _late(result: Mapping[str, Any]) -> dict[str, Any]:
    error = "it was ended: its time was up and it did not come back from a call"
    return {"status": "cut short" if "figures" in result else "failed", "error": error}


def _failure(code: int, said: Any) -> str:
    said.seek(0)
    text = said.read().decode(errors="replace").strip()[-SAID:]
    return f"exit code {code}: {text}"
