"""The command line: `python -m hifuse_timm COMMAND --help`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
