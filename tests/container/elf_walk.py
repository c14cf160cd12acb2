"""Runs inside an image: which shared libraries does a program of it need, and which are missing?

Prints JSON: for each library reached from those in `sys.argv`, where it was found (null if nowhere)
and by whom it is needed. Libraries are reached by an ELF file's DT_NEEDED entries, and by names
that stand in its text, as a program calls dlopen with them. Needs pyelftools on the path.
"""

import json
import re
import sys
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

SYSTEM = [Path("/lib/x86_64-linux-gnu"), Path("/usr/lib/x86_64-linux-gnu")]
# Libraries of NVIDIA's that are opened by name; cuDNN adds its major version to its parts' names.
BY_NAME = re.compile(
    rb"lib(?:cublas|cublasLt|cuda|cudart|cudnn(?:_[a-z_]+)?|cufft|curand|nvJitLink|nvrtc)"
    rb"\.so(?:\.[0-9]+)?(?=\0)"
)


def needed(path: Path) -> tuple[list[str], list[Path]]:
    """The DT_NEEDED entries of a file, and the folders that it says to look for them in."""
    with path.open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        assert isinstance(dynamic, DynamicSection), path
        names, folders = [], []
        for tag in dynamic.iter_tags():
            if tag.entry.d_tag == "DT_NEEDED":
                names.append(vars(tag)["needed"])
            elif tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                text: str = vars(tag)[tag.entry.d_tag.removeprefix("DT_").lower()]
                folders += [
                    Path(each.replace("$ORIGIN", str(path.parent))) for each in text.split(":")
                ]
    return names, folders


def named(path: Path) -> list[str]:
    """Libraries whose names stand in a file, as they are called on disk."""
    names = {match.decode() for match in BY_NAME.findall(path.read_bytes())}
    return sorted(
        f"{each}.9" if each.startswith("libcudnn") and each[-1] != "9" else each for each in names
    )


def walk(start: list[Path], preloaded: list[Path]) -> dict[str, dict[str, object]]:
    """Follows every library from the first ones.

    Args:
        start: the first ones.
        preloaded: folders whose libraries are loaded by path before, so that any file finds them.
    """
    found: dict[str, dict[str, object]] = {
        each.name: {"path": str(each), "by": []} for each in start
    }
    waiting = list(start)
    for path in waiting:  # grows while it is walked
        linked, folders = needed(path)
        of_nvidia = "nvidia" in path.parts or path.name.startswith("libonnxruntime")
        opened = [each for each in named(path) if of_nvidia and each != path.name]
        for name in dict.fromkeys([*linked, *opened]):
            if name not in found:
                places = [folder / name for folder in (*folders, *preloaded, *SYSTEM)]
                where = next((each for each in places if each.exists()), None)
                found[name] = {"path": str(where) if where else None, "by": []}
                if where:
                    waiting.append(where)
            by = found[name]["by"]
            assert isinstance(by, list)
            by.append(f"{path.name} ({'linked' if name in linked else 'opened by name'})")
    return found


if __name__ == "__main__":
    site = Path(sys.prefix, "lib/python3.11/site-packages")
    print(json.dumps(walk([site / each for each in sys.argv[1:]], list(site.glob("nvidia/*/lib")))))
