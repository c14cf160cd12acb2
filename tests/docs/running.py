"""Does with a page's blocks what `tests/docs/blocks.py` says that a comment asks for."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.blocks import Block, has_a_server, read_blocks
from tests.docs.checkout import Checkout
from tests.docs.likeness import json_differences, text_differences
from tests.support.processes import LIMIT_S, ServerProcess

STEP_S = 240
READY_S = 900  # `make serve` makes an environment first, `docker build` an image
SHELLS = ("sh", "bash", "console")
PROGRAMS = {"js": ("node", "--input-type=module", "-"), "python": (".venv/bin/python", "-")}


class BlockFailed(AssertionError):
    """A block did something else than its page says."""


@dataclass
class Printed:
    """What a command printed."""

    out: str
    err: str = ""


@dataclass
class Run:
    """One page's run.

    Attributes:
        checkout: where.
        environment: of every command.
        skipped: blocks whose program this machine lacks, with the reason.
    """

    checkout: Checkout
    environment: Mapping[str, str]
    skipped: list[str] = field(default_factory=list)
    last: Printed | None = None

    def do(self, block: Block) -> None:
        """Does what the block's comment says; `by` and `container` blocks are other tests'."""
        match block.kind:
            case "run":
                self._run(block)
            case "output":
                self._compare(block)
            case "file":
                (self.checkout.folder / block.rest).write_text(block.text, encoding="utf-8")

    def _run(self, block: Block) -> None:
        command = _command(block)
        if block.language not in SHELLS and not self._there(command[0]):
            self.skipped.append(f"{block.where}: {command[0]} is not on this machine")
            self.last = None
            return
        done = subprocess.run(
            command,
            cwd=self.checkout.folder,
            env=self.environment,
            input=self.checkout.here(block.text),
            capture_output=True,
            text=True,
            timeout=STEP_S,
        )
        wanted = int(found[1]) if (found := re.search(r"exits (\d+)", block.rest)) else 0
        if done.returncode != wanted:
            raise BlockFailed(
                f"{block.where} ended with {done.returncode}, not {wanted}:\n{block.text}\n"
                f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        self.last = Printed(done.stdout, done.stderr)

    def _there(self, program: str) -> bool:
        return bool(shutil.which(program) or (self.checkout.folder / program).exists())

    def _compare(self, block: Block) -> None:
        if self.last is None:
            if self.skipped:
                return
            raise BlockFailed(f"{block.where}: nothing was run before this output")
        printed = self.last
        if block.language == "json":
            differences = json_differences(json.loads(block.text), json.loads(printed.out))
        else:
            shown = self.checkout.here(block.text)
            differences = text_differences(shown, f"{printed.out}\n{printed.err}")
        if differences:
            listed = "\n".join(differences)
            raise BlockFailed(
                f"{block.where} shows something else than is printed:\n{listed}\n"
                f"printed:\n{printed.out[-3000:]}\n{printed.err[-3000:]}"
            )


def run_page(repo: Path, page: str, checkout: Checkout) -> list[str]:
    """Runs a page's blocks in their order, as a reader would.

    Args:
        repo: whose page.
        page: its path in the repository.
        checkout: where the commands run.

    Returns:
        A line for each block that could not be run here, with the reason.

    Raises:
        BlockFailed: a block ended otherwise than its page says, or printed something else.
        Undeclared: a block has no comment.
    """
    checkout.clean()
    blocks = read_blocks(repo, page)
    run = Run(checkout, checkout.environment())
    at = 0
    if has_a_server(repo, page):
        with serving(run, "make serve"):
            at = _until_served(run, blocks, at)
    else:
        at = _until_served(run, blocks, at)
    while at < len(blocks):
        with serving(run, blocks[at].text):
            at = _until_served(run, blocks, at + 1)
    return run.skipped


def _until_served(run: Run, blocks: list[Block], at: int) -> int:
    while at < len(blocks) and blocks[at].kind != "serve":
        run.do(blocks[at])
        at += 1
    return at


@contextmanager
def serving(run: Run, command: str) -> Iterator[None]:
    """Has a command that serves run behind; it has to say `ready`."""
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", run.checkout.here(command)],
        cwd=run.checkout.folder,
        env=run.environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # make, its shell and the server
    ) as process:
        server = ServerProcess(process)
        reader = threading.Thread(target=server.follow)
        reader.start()
        try:
            server.wait_for("ready", limit_s=READY_S)
            server.wait_for("listening")
            run.last = Printed("", "\n".join(server.lines))
            yield
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(LIMIT_S)
        finally:
            _kill_group(process)
            reader.join()


def _kill_group(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _command(block: Block) -> tuple[str, ...]:
    if block.language in SHELLS:
        return ("bash", "-euo", "pipefail", "-s")
    if found := re.search(r"with (\S+)", block.rest):
        return (found[1], "-")
    if block.language not in PROGRAMS:
        raise BlockFailed(f"{block.where}: nothing runs {block.language!r} blocks")
    return PROGRAMS[block.language]
