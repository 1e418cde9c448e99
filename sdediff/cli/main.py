"""The command ``sdediff``: its subcommands, and what becomes of an error.

Exit codes: 0, all well; 1, a check failed; 2, an option, a file or a value is wrong; 70, an error inside sdediff; 130,
stopped by Ctrl-C; 141, nobody reads the output any more. An error is one line on stderr; ``--debug`` anywhere on the
line shows the traceback instead.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, Any

import torch
import typer

from .. import __version__
from ..errors import SolveError
from ..training import TrainingError
from . import compare, demo, sample, train, verify
from .names import DENSITY, NETWORK, PREDICTION, PROCESS, SOLVER, TIMES, VERIFIED, WEIGHTING
from .options import known

app = typer.Typer(
    name="sdediff",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

WRONG, BROKEN, STOPPED, UNREAD = 2, 70, 130, 141
FORESEEN = (ValueError, TypeError, NotImplementedError, OSError, ImportError, SolveError, TrainingError)
"""Errors whose message says what is wrong with what was asked for."""

_REPORT = "Run it again with --debug to see the traceback"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sdediff {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="On an error show the traceback.")] = False,
) -> None:
    """Continuous-time diffusion SDEs: write f and g, get everything else, and proof that it is right.

    \b
    Start here:
      sdediff demo                               train on handwritten digits, sample in four ways; two minutes
      sdediff compare -d ring -s Heun -s Scipy   solvers against an exact law
      sdediff verify -d moons -p VE              the Langevin identity and the duality
      sdediff verify my_sde.py:MySDE             a process of your own
      sdediff train --data mine.npy --out run    a score for an array of your own, and then
      sdediff sample -c run --out new.npy        samples of it
    """


app.command("demo")(demo.command)
app.command("verify", epilog=known(DENSITY, VERIFIED))(verify.command)
app.command("compare", epilog=known(DENSITY, PROCESS, SOLVER))(compare.command)
app.command("train", epilog=known(PROCESS, PREDICTION, WEIGHTING, TIMES, NETWORK))(train.command)
app.command("sample", epilog=known(SOLVER))(sample.command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (by default that of the process) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ─ or η is no reason to fail
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            status = app(words, prog_name="sdediff", standalone_mode=False)
            sys.stdout.flush()
            if status == STOPPED:  # typer turns Ctrl-C into this
                print("sdediff: stopped.", file=sys.stderr)
            return status if isinstance(status, int) else 0
        except (BrokenPipeError, SystemExit):  # the reader of a pipe, such as `head`, has left; typer makes it an exit
            return UNREAD
        except BaseException as error:
            if debug and not hasattr(error, "format_message"):
                raise
            code, line = _verdict(error)
            print(f"sdediff: {line}", file=sys.stderr)
            return code


def _verdict(error: BaseException) -> tuple[int, str]:
    """The exit code of an error, and the line to print."""
    if hasattr(error, "format_message"):  # typer's own, for options
        path = getattr(getattr(error, "ctx", None), "command_path", "sdediff")
        return WRONG, f"{_one_line(error.format_message())} See '{path} --help'."
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return STOPPED, "stopped."
    if _out_of_memory(error):
        return WRONG, f"out of memory: ask for fewer samples at a time. ({_one_line(str(error))[:120]})"
    if isinstance(error, OverflowError) or "without overflow" in str(error):
        return WRONG, f"a number is larger than can be computed with: {_one_line(str(error))}."
    if isinstance(error, FORESEEN):
        return WRONG, _one_line(_told(error))
    return BROKEN, f"an error inside sdediff: {type(error).__name__}: {_one_line(str(error))[:300]}. {_REPORT}."


def _told(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return str(error)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in str(error)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the code."""
    print(f"sdediff: note: {_one_line(str(message))}", file=sys.stderr)
