"""A process of the user's own: ``my_sde.py:MySDE``, ``package.module:Name``, or ``my_sde.py:MySDE(2.0)``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..sde import SDE
from ..verify.attempt import told


def load_process(text: str) -> SDE:
    """The process that ``text`` names.

    Args:
        text: ``FILE.py:NAME`` or ``MODULE:NAME``; NAME is a subclass of SDE, an SDE, or a function without arguments that
            returns one, and may be called with literal arguments. Without NAME, the one subclass of SDE in the file.

    Raises:
        ValueError: no such file, module or name; it cannot be imported or made; what it gives is no SDE.
    """
    where, what = _parts(text)
    module = _module(where)
    call = _call(what or _only_process(module, where), text)
    name, positional, named = call
    if not hasattr(module, name):
        offered = [key for key, value in vars(module).items() if _is_process(value, module)]
        hint = f" It has {', '.join(offered)}." if offered else " It defines no SDE."
        raise ValueError(f"There is no {name} in {where}.{hint}")
    value = getattr(module, name)
    if isinstance(value, SDE):
        return value
    if not callable(value):
        raise ValueError(
            f"{name} in {where} is {_described(value)}, no SDE: name a subclass of sdediff.SDE or an instance."
        )
    try:
        made = value(*positional, **named)
    except Exception as error:
        raise ValueError(f"{name} of {where} cannot be made: {told(error)}") from error
    if not isinstance(made, SDE):
        raise ValueError(f"{name} of {where} gives {_described(made)}, no SDE.")
    return made


def _parts(text: str) -> tuple[str, str]:
    """The file or module, and what is named in it."""
    head, colon, tail = text.partition(".py:") if ".py:" in text else text.rpartition(":")
    if ".py:" in text:
        return f"{head}.py", tail.strip()
    if text.endswith(".py"):
        return text, ""
    if not colon or not head:
        raise ValueError(f"{text!r} names no process: write my_sde.py:MySDE or package.module:Name.")
    return head, tail.strip()


def _module(where: str) -> ModuleType:
    """The file or module, imported, whatever it does on the way."""
    if where.endswith(".py") and not Path(where).is_file():
        raise ValueError(f"There is no file {where}.")
    try:
        return _imported(where)
    except SyntaxError as error:
        said = f"{error.msg} in line {error.lineno}."
    except SystemExit:
        said = "it calls sys.exit; put that under if __name__ == '__main__'"
    except Exception as error:
        said = told(error)
    raise ValueError(f"{where} cannot be imported: {said}")


def _imported(where: str) -> ModuleType:
    if not where.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(where)
    path = Path(where)
    sys.path.insert(0, str(path.resolve().parent))  # for what lies beside it
    spec = importlib.util.spec_from_file_location(f"_verified_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _call(what: str, text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """A name, and the literal arguments that it is called with."""
    try:
        node = ast.parse(what, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
            named = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            return node.func.id, [ast.literal_eval(arg) for arg in node.args], named
    except (SyntaxError, ValueError):
        pass
    raise ValueError(
        f"{what!r} in {text!r} is no name and no call with literal arguments: write MySDE or 'MySDE(2.0)'."
    )


def _only_process(module: ModuleType, where: str) -> str:
    """The name of the one process that a file defines."""
    found = [name for name, value in vars(module).items() if _is_process(value, module)]
    if len(found) == 1:
        return found[0]
    many = f"several processes: {', '.join(found)}" if found else "no subclass of sdediff.SDE"
    raise ValueError(f"{where} defines {many}. Name one: {where}:{found[0] if found else 'MySDE'}.")


def _is_process(value: object, module: ModuleType) -> bool:
    """A concrete subclass of SDE written there, or an instance."""
    if isinstance(value, type):
        return issubclass(value, SDE) and not inspect.isabstract(value) and value.__module__ == module.__name__
    return isinstance(value, SDE)


def _described(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
