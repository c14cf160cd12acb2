"""Makes a release in dist/ and the local images, and publishes nothing: docs/release.md.

What may not be released as it is, it refuses: a tree with changes, a version without a section in
CHANGELOG.md, and tags that say something else.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sbom

REPO = Path(__file__).resolve().parents[1]
NAME = "yolov8-fla"
IMAGES = ("cpu", "gpu")
CONTAINER_TOOLS = REPO / ".ci/container_tools.sh"


class Refused(Exception):
    """There must be no release of this; the text says why."""


@dataclass(frozen=True, slots=True)
class Release:
    """What is released: the project's version and extras, and the commit in 40 hex digits."""

    version: str
    commit: str
    extras: tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    """Makes it, step by step; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    parser.add_argument(
        "--images", nargs="*", choices=IMAGES, default=IMAGES, help="those to build"
    )
    variants = parser.parse_args(arguments).images
    out = REPO / "dist"
    try:
        release = examine(REPO)
        shutil.rmtree(out, ignore_errors=True)  # no file of another version is left
        out.mkdir()
        with tempfile.TemporaryDirectory() as name:
            source = cloned(REPO, release.commit, Path(name))
            build_distributions(release, source, out)
            images = build_images(release, variants, source, out) if variants else []
        files = sorted(path.name for path in out.iterdir())
        sums = subprocess.run(["sha256sum", *files], cwd=out, check=True, capture_output=True)
        (out / "SHA256SUMS").write_bytes(sums.stdout)
    except Refused as error:
        print(f"no release: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:  # which has said why
        print(f"no release: `{shlex.join(map(str, error.cmd))}` failed", file=sys.stderr)
        return 1
    print("", f"{NAME} {release.version} of commit {release.commit}", sep="\n")
    print(*(f"dist/{name}" for name in [*files, "SHA256SUMS"]), *images, sep="\n")
    print("Nothing was published: docs/release.md says how to.")
    return 0


def examine(repo: Path) -> Release:
    """Reads what a checkout would release.

    Raises:
        Refused: files differ from the commit, CHANGELOG.md tells nothing of the version, the commit
            has another version's tag, or the version's tag is another commit's.
    """
    changed = output("git", "-C", repo, "status", "--porcelain").splitlines()
    if changed:
        raise Refused(
            f"{len(changed)} files differ from the commit, {changed[0].split()[-1]} first"
        )
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project["version"]
    refuse_untold(version, (repo / "CHANGELOG.md").read_text(encoding="utf-8"))
    commit, tag = output("git", "-C", repo, "rev-parse", "HEAD"), f"v{version}"
    tags = output("git", "-C", repo, "tag", "--points-at", "HEAD").split()
    for other in tags:
        if re.match(r"v\d", other) and other != tag:
            raise Refused(f"the commit is tagged {other}, and pyproject.toml says {version}")
    if tag not in tags and output("git", "-C", repo, "tag", "--list", tag):
        raise Refused(f"the tag {tag} is another commit's: {version} was released before")
    return Release(version, commit, tuple(project["optional-dependencies"]))


def refuse_untold(version: str, changelog: str) -> None:
    """Raises `Refused` unless the changelog has a dated section of the version, with a point."""
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    section = re.search(rf"{heading}(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if not section or not re.search(r"^- ", section[1], re.MULTILINE):
        raise Refused(f"CHANGELOG.md has no points under '## [{version}] - YYYY-MM-DD'")


def cloned(repo: Path, commit: str, folder: Path) -> Path:
    """Writes the files of a commit into a folder, which it returns.

    All is built there: a file that git was told to overlook, or one that changes while images are
    built, is in none.
    """
    output("git", "clone", "--quiet", "--no-checkout", repo, folder)
    output("git", "-C", folder, "checkout", "--quiet", "--detach", commit)
    return folder


def build_distributions(release: Release, source: Path, out: Path) -> None:
    """Writes source archives and wheels of server and client, the pins, and a bill for each extra.

    Raises:
        Refused: the wheel is not of that version and commit.
    """
    epoch = output("git", "-C", source, "show", "--no-patch", "--format=%ct", release.commit)
    for project in (source, source / "client"):
        output(
            *(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, project),
            SOURCE_DATE_EPOCH=epoch,  # so that the files come out the same each time
            REVISION=release.commit,
        )
    (wheel,) = out.glob("yolov8_fla-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        revision = archive.read("server/revision.txt").decode().strip()
    if wheel.name.split("-")[1] != release.version or revision != release.commit:
        raise Refused(f"{wheel.name} is of {revision}, not {release.version} of {release.commit}")
    stem = out / f"{NAME}-{release.version}"
    pins = shutil.copy(source / "constraints.txt", f"{stem}-constraints.txt")
    for extra in release.extras:
        print(f"bill of materials: extra {extra}", flush=True)
        bill = sbom.of_requirement(f"{wheel}[{extra}]", Path(pins))
        Path(f"{stem}-extra-{extra}.cdx.json").write_text(bill)
    (client,) = out.glob(f"yolov8_fla_client-{release.version}-*.whl")
    bill = sbom.of_requirement(str(client), Path(pins))
    (out / f"{NAME}-client-{release.version}.cdx.json").write_text(bill)


def build_images(release: Release, variants: Sequence[str], source: Path, out: Path) -> list[str]:
    """Builds images, asks each what it is, and writes its bill and `images.txt`.

    Returns:
        A line for each: name, id, bytes.

    Raises:
        Refused: there is nothing to build with, or an image says that it is something else.
    """
    found = subprocess.run([CONTAINER_TOOLS, "tool"], stdout=subprocess.PIPE, text=True)
    if found.returncode != 0:
        raise Refused("images can't be built here; `make release ARGS=--images` leaves them out")
    tool, lines = found.stdout.split(), []
    for variant in variants:
        image = f"{NAME}:{release.version}-{variant}"
        print(f"image: {image}", flush=True)
        arguments = {"EXTRA": variant, "REVISION": release.commit, "VERSION": release.version}
        flags = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        subprocess.run([CONTAINER_TOOLS, "build", *flags, "-t", image, source], check=True)
        told = output(*tool, "run", "--rm", image, "--version")
        if told != f"{NAME} {release.version} ({release.commit})":
            raise Refused(f"{image} says that it is {told}")
        bill = out / f"{NAME}-{release.version}-image-{variant}.cdx.json"
        bill.write_text(sbom.of_image(tool, image))
        form = "{{.Id}} {{.Size}}"
        lines.append(f"{image} {output(*tool, 'image', 'inspect', '--format', form, image)}")
    (out / "images.txt").write_text("".join(f"{line}\n" for line in lines))
    return lines


def output(*command: str | Path, **variables: str) -> str:
    """What a command prints; raises `CalledProcessError` when it fails."""
    environment = os.environ | variables
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
