"""What a command refuses for a reason that its user should read."""


class CheckpointRefused(ValueError):
    """A `.pt` is missing, damaged, or names something outside the allow-list."""


def printable(text: str, keep: str = "") -> str:
    """Text of a file that nobody vouches for, without what would steer a terminal."""
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)
