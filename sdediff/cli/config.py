"""Options from a file: what is written there stands in for what is not typed."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer


def _read(path: Path) -> Any:
    """The table in a .toml or .json file.

    Raises:
        ValueError: no such file, another kind of file, or one that cannot be read.
    """
    if path.suffix not in (".toml", ".json"):
        raise ValueError(f"--config {path} must be a .toml or .json file.")
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} must hold a table of options, such as steps = 5000, not a {type(table).__name__}.")
    return table


def _long_names(command: Any) -> dict[str, str]:
    """The long name of each option, with underscores, and the parameter that it fills."""
    return {
        option.removeprefix("--").replace("-", "_"): parameter.name
        for parameter in command.params
        if parameter.name not in ("config", "help")
        for option in parameter.opts
        if option.startswith("--")
    }


def _take(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's options the defaults of this command."""
    if path is not None:
        known = _long_names(context.command)
        table = {key.replace("-", "_"): value for key, value in _read(path).items()}
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                meant = f" Did you mean {near[0]}?" if near else ""
                raise ValueError(f"{path} names {key!r}, which is no option.{meant} Options: {', '.join(known)}.")
        context.default_map = {**(context.default_map or {}), **{known[key]: value for key, value in table.items()}}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="A .toml or .json file of options under their long names; those on the command line come first.",
        callback=_take,
        is_eager=True,
        show_default=False,
    ),
]
