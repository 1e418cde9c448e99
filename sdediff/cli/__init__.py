"""The command line: ``sdediff demo | verify | compare | sample | train``, one file a command."""

from .main import main

__all__ = ["main"]
