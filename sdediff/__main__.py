"""``python -m sdediff`` is the command ``sdediff``."""

import sys

from .cli import main

sys.exit(main())
