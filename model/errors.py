"""What a command refuses for a reason that its user should read."""


class CheckpointRefused(ValueError):
    """A `.pt` is missing, damaged, or names something outside the allow-list."""


def printable(text: str, keep: str = "") -> str:
    """Text of a file that nobody vouches for, without what would steer a terminal."""
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def missing_library(error: ModuleNotFoundError) -> str:
    """One line on what to install, for a library that training and export need.

    Raises:
        ModuleNotFoundError: the module is one of ours; installing would not help.
    """
    if (error.name or "").partition(".")[0] in ("export", "model", "server"):
        raise error
    return (
        f"{error.name} is missing, as in the environment for serving: in a checkout say `make env` "
        "and .venv/bin/python, elsewhere install yolov8-fla[export]"
    )
