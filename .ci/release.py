"""Makes a release in dist/ and the local images, and publishes nothing: `make release`.

It refuses a tree with changes, a version without a section in CHANGELOG.md, a tag that says
something else, and pins with known vulnerabilities. docs/release.md tells the whole way.
"""

import argparse
import hashlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import audit
import sbom
import yaml
from packaging.version import InvalidVersion, Version

REPO = Path(__file__).resolve().parents[1]
NAME = "yolov8-fla"
IMAGES = ("cpu", "gpu")
PINS = "constraints.txt"
CONTAINER_TOOLS = REPO / ".ci/container_tools.sh"


class Refused(Exception):
    """There must be no release of this; the text says why."""


@dataclass(frozen=True, slots=True)
class Release:
    """What is released.

    Attributes:
        version: of the project.
        commit: that it is made of, 40 hex digits.
        epoch: the time of that commit, seconds since 1970; files get it, so that they come out
            the same each time.
        tagged: `v` and the version is a tag of this commit.
        extras: of the wheel.
    """

    version: str
    commit: str
    epoch: int
    tagged: bool
    extras: tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    """Makes it, step by step; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    parser.add_argument(
        "--images", nargs="*", choices=IMAGES, default=IMAGES, help="those to build"
    )
    asked = parser.parse_args(arguments)
    try:
        release = examine(REPO)
        audited = refuse_vulnerable()
        out = emptied(REPO / "dist")
        with tempfile.TemporaryDirectory() as name:
            source = exported(REPO, release.commit, Path(name))
            wheel = build_distributions(release, source, out)
            shutil.copy(source / PINS, out / f"{NAME}-{release.version}-{PINS}")
            describe_extras(release, wheel, source / PINS, out)
            images = build_images(release, asked.images, source, out) if asked.images else []
        write_sums(out)
    except Refused as error:
        print(f"no release: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:  # which has said why
        print(f"no release: `{shlex.join(error.cmd)}` failed", file=sys.stderr)
        return 1
    print(farewell(release, images, audited, sorted(path.name for path in out.iterdir())))
    return 0


# -- what may be released --


def examine(repo: Path) -> Release:
    """Reads what a checkout would release.

    Raises:
        Refused: files differ from the commit, CHANGELOG.md tells nothing of the version, a
            manifest names another version's image, or tags don't fit.
    """
    changed = git(repo, "status", "--porcelain").splitlines()
    if changed:
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        raise Refused(f"files differ from the commit: {changed[0].split()[-1]}{more}")
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = checked_version(project["version"])
    refuse_untold(version, (repo / "CHANGELOG.md").read_text(encoding="utf-8"))
    for file in sorted((repo / "deploy").rglob("kustomization.yaml")):
        refuse_other_images(version, file.relative_to(repo), file.read_text(encoding="utf-8"))
    commit = git(repo, "rev-parse", "HEAD")
    tags = git(repo, "tag", "--points-at", "HEAD").split()
    tagged = f"v{version}" in tags
    elsewhere = not tagged and bool(git(repo, "tag", "--list", f"v{version}"))
    refuse_misleading_tags(version, tags, elsewhere=elsewhere)
    return Release(
        version=version,
        commit=commit,
        epoch=int(git(repo, "show", "--no-patch", "--format=%ct", "HEAD")),
        tagged=tagged,
        extras=tuple(project["optional-dependencies"]),
    )


def checked_version(version: str) -> str:
    """A version as it is, if tags of images and of git can carry it.

    Raises:
        Refused: it is none, not in its plain form, or a local one (`1.0+mine`).
    """
    try:
        plain = Version(version)
    except InvalidVersion:
        raise Refused(f"{version!r} is no version") from None
    if str(plain) != version or plain.local:
        raise Refused(f"the version is written {plain.public}, not {version}")
    return version


def refuse_untold(version: str, changelog: str) -> None:
    """Raises `Refused` unless the changelog has a dated section of the version, with a point."""
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    heading = re.compile(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d")
    for section in sections:
        first, _, told = section.partition("\n")
        if heading.fullmatch(first.strip()):
            if not re.search(r"^- ", told, flags=re.MULTILINE):
                raise Refused(f"CHANGELOG.md tells nothing of {version}")
            return
    raise Refused(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'")


def refuse_other_images(version: str, file: Path, kustomization: str) -> None:
    """Raises `Refused` where a manifest takes an image that is not of this version."""
    for image in yaml.safe_load(kustomization).get("images", ()):
        tag = image.get("newTag")
        if image["name"] == NAME and tag not in [f"{version}-{variant}" for variant in IMAGES]:
            raise Refused(f"{file} takes the image {tag}, and pyproject.toml says {version}")


def refuse_misleading_tags(version: str, tags: Sequence[str], *, elsewhere: bool) -> None:
    """Raises `Refused` where git calls this commit or this version by another name.

    Args:
        version: to be released.
        tags: of the commit.
        elsewhere: the tag of the version is another commit's.
    """
    others = [tag for tag in tags if re.match(r"v\d", tag) and tag != f"v{version}"]
    if others:
        raise Refused(f"the commit is tagged {others[0]}, and pyproject.toml says {version}")
    if elsewhere:
        raise Refused(f"the tag v{version} is another commit's: {version} was released before")


def refuse_vulnerable() -> str:
    """Looks the pins up; returns what came of it.

    Raises:
        Refused: one has a known vulnerability that is not accepted in `.ci/audit.py`.
    """
    findings = audit.audit(audit.read_pins(audit.CONSTRAINTS), audit.ask_pip_audit)
    if findings.vulnerable:
        raise Refused(f"pins have known vulnerabilities\n{findings.text()}")
    return findings.text().splitlines()[-1]


# -- what is made --


def emptied(folder: Path) -> Path:
    """A folder with nothing in it: no file of another version is left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def exported(repo: Path, commit: str, folder: Path) -> Path:
    """Writes the files of a commit into a folder, which it returns.

    All is built there: a file that git was told to overlook, or one that changes while images are
    built, is in none.
    """
    command = ["git", "-C", str(repo), "archive", "--format=tar", commit]
    files = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def build_distributions(release: Release, source: Path, out: Path) -> Path:
    """Writes the source archive, and the wheel made of that archive; returns the wheel.

    Args:
        release: what is released.
        source: folder with the files of its commit.
        out: folder of the files.

    Raises:
        Refused: the wheel does not say which commit it was made of.
    """
    told = {"SOURCE_DATE_EPOCH": str(release.epoch), "REVISION": release.commit}
    environment = os.environ | told
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        revision = archive.read("server/revision.txt").decode().strip()
    if revision != release.commit:
        raise Refused(f"{wheel.name} calls itself {revision}, and the commit is {release.commit}")
    return wheel


def describe_extras(release: Release, wheel: Path, pins: Path, out: Path) -> None:
    """Writes the bill of materials of each extra."""
    for extra in release.extras:
        print(f"bill of materials: extra {extra}", flush=True)
        told = {"revision": release.commit}
        bill = sbom.of_extra(wheel, extra, pins, told)
        (out / f"{NAME}-{release.version}-extra-{extra}.cdx.json").write_text(bill)


def build_images(release: Release, variants: Sequence[str], source: Path, out: Path) -> list[str]:
    """Builds images, asks each what it is, and writes its bill and `images.txt`.

    Args:
        release: what is released.
        variants: some of `IMAGES`.
        source: folder with the files of its commit.
        out: folder of the files.

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
        flags = [
            part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")
        ]
        command = [str(CONTAINER_TOOLS), "build", *flags, "-t", image, str(source)]
        subprocess.run(command, check=True)
        told = output([*tool, "run", "--rm", image, "--version"])
        if told != f"{NAME} {release.version} ({release.commit})":
            raise Refused(f"{image} says that it is {told}")
        bill = sbom.of_image(tool, image, {"image": image, "revision": release.commit})
        (out / f"{NAME}-{release.version}-image-{variant}.cdx.json").write_text(bill)
        form = "{{.Id}} {{.Size}}"
        lines.append(f"{image} {output([*tool, 'image', 'inspect', '--format', form, image])}")
    (out / "images.txt").write_text("".join(f"{line}\n" for line in lines))
    return lines


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS of all files of a folder, as `sha256sum --check` reads it."""
    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = []
    for path in files:
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    (folder / "SHA256SUMS").write_text("".join(lines))


def farewell(release: Release, images: Sequence[str], audited: str, files: Sequence[str]) -> str:
    """What there is now, and what a person does to publish it."""
    tag = f"v{release.version}"
    lines = [
        "",
        f"{NAME} {release.version} of commit {release.commit}",
        audited,
        *(f"dist/{name}" for name in files),
        *images,
        "",
        "Nothing was published. To do so:",
    ]
    if not release.tagged:
        lines.append(f"  git tag -a {tag} -m '{NAME} {release.version}' {release.commit}")
    lines += [f"  git push origin {tag}", "  twine upload dist/*.whl dist/*.tar.gz"]
    for line in images:  # by the id: the name may mean another image by then
        image, identifier, _ = line.split()
        lines.append(f"  docker tag {identifier} REGISTRY/{image} && docker push REGISTRY/{image}")
    lines.append(f"  and put the files of dist/ beside the tag {tag}, with CHANGELOG.md's section")
    return "\n".join(lines)


def git(repo: Path, *arguments: str) -> str:
    """What git says."""
    return output(["git", "-C", str(repo), *arguments])


def output(command: Sequence[Any]) -> str:
    """What a command prints; raises `CalledProcessError` when it fails."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
