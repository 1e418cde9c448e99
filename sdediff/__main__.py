"""``python -m sdediff`` is the command ``sdediff``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
