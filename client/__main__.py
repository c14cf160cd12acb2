"""`python -m client detect DIR|FILE...`, `python -m client health`; docs/client.md is the guide."""

import os
import sys

from client.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
