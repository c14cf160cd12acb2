import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.command import COMMANDS, main
from server.version import this_build


def run(*arguments: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The command as a process, where libraries can be missing."""
    missing = "".join(f"sys.modules[{each!r}] = None; " for each in without)
    program = f"import sys; {missing}from server.command import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that is printed for a wrong command line."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err.strip()


def test_help_lists_every_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    for name, (_, does) in COMMANDS.items():
        assert [name, does] in lines


def test_version_is_that_of_the_build(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{this_build()}\n"


def test_an_unknown_command_is_refused_with_a_near_match(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(capsys, "exprt", "best.pt")
    assert line == "yolov8-fla: unknown command 'exprt'; did you mean export?"
    line = refused(capsys, "\x1b[2J")
    assert line == (
        r"yolov8-fla: unknown command '\x1b[2J'; `yolov8-fla --help` lists the commands"
    )


def test_no_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in refused(capsys)


@pytest.mark.parametrize("name", [each for each in COMMANDS if each != "doctor"])
def test_a_commands_help_names_the_command_and_needs_no_training_library(name: str) -> None:
    done = run(name, "--help", without=("torch", "ultralytics", "onnx", "yaml"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: yolov8-fla {name} ")
    assert "python -m" not in done.stdout.partition("\n\n")[0]


def test_doctor_takes_the_servers_flags() -> None:
    done = run("doctor", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: yolov8-fla doctor ")


@pytest.mark.parametrize("module", [module for module, _ in COMMANDS.values()])
def test_the_modules_behind_the_commands_are_there(module: str) -> None:
    assert importlib.util.find_spec(f"{module.split()[0]}.__main__")


def test_serving_imports_nothing_of_training_and_export() -> None:
    done = run("serve", "--prot", "1", without=("model", "export", "torch", "yaml"))
    assert done.returncode == 2
    assert done.stderr == "error: unrecognized arguments: --prot 1\n"


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("yaml", ["train", "--data", "data.yaml"]),
        ("torch", ["train", "--data", "data.yaml"]),
        ("torch", ["export", "{pt}", "-o", "model.onnx"]),
    ],
)
def test_without_a_library_of_the_extra_one_line_says_which_extra_is_missing(
    missing: str, arguments: list[str], repo_dir: Path
) -> None:
    checkpoint = str(repo_dir / "weights" / "yolov8n-fla-bccd.pt")
    done = run(*(each.format(pt=checkpoint) for each in arguments), without=(missing,))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"yolov8-fla {arguments[0]}: {missing} is missing")
    assert line.endswith("install yolov8-fla[export]")


def test_errors_of_a_command_begin_with_its_name() -> None:
    for name in ("inspect", "export"):
        done = run(name, "missing", *(["-o", "a.onnx"] if name == "export" else []))
        assert done.returncode == 2
        assert done.stderr.startswith(f"yolov8-fla {name}: missing: "), done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pre"], ["predict"]),
        (["v"], ["verify", "val"]),
        (["comp"], ["completion"]),
        (["train", "v"], []),
    ],
)
def test_bash_completes_the_names_of_commands(
    words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    script = (
        f"{capsys.readouterr().out}\n"
        f'COMP_CWORD={len(words)}; _yolov8_fla yolov8-fla "{words[-1]}"; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_zsh_can_read_its_completion(capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    assert main(["completion", "zsh"]) == 0
    script = f"autoload -U compinit; compinit -D; {capsys.readouterr().out}echo $_comps[yolov8-fla]"
    done = subprocess.run(["zsh", "-fc", script], capture_output=True, text=True, check=True)
    assert done.stdout == "_yolov8_fla\n"
