"""`yolov8-fla-client`, also as `python -m yolov8_fla_client`; docs/client.md is the guide."""

import os
import sys

from yolov8_fla_client import command


def main() -> int:
    """Runs the command line; returns the exit code."""
    return command.main(sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
