"""Objects as data: the class and constructor arguments of a process, a network or a score, without pickle.

An object can be described if it keeps every constructor argument under the argument's own name, as all classes here do,
and those are numbers, strings, lists of such, or describable objects again. A description is rebuilt only from classes
of this package, and only from those that are loaded already: to read a file imports nothing, as a file must not choose
which code runs.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

from torch import nn

from ..derived import DerivedAffine, DerivedLinear
from ..sde import SDE

_PACKAGE = __name__.partition(".")[0]


def describe(value: Any) -> Any:
    """``value`` as JSON: plain values as they are, objects as {"class": ..., "args": ...}.

    What cannot be described (a function, say) leaves {"class": ..., "obstacle": the reason} in its place.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, (DerivedLinear, DerivedAffine)):
        value = value.origin  # what its author wrote
    cls = type(value)
    path = f"{cls.__module__}:{cls.__qualname__}"
    if not isinstance(value, (SDE, nn.Module)):
        return {"class": path, "obstacle": f"a {cls.__name__} cannot be kept in a file"}
    args: dict[str, Any] = {}
    if cls.__module__.split(".")[0] != _PACKAGE:  # will not be rebuilt, so its arguments are of no use
        return {"class": path, "args": args}
    for name in _arguments(cls):
        if not hasattr(value, name):
            return {"class": path, "obstacle": f"{cls.__name__} does not keep its argument {name} as an attribute"}
        args[name] = describe(getattr(value, name))
    return {"class": path, "args": args}


def rebuild(description: Any, given: dict[str, Any], name: str = "score") -> Any:
    """The object described; the arguments in ``given`` are used in place of their description, wherever they occur.

    Raises:
        ValueError: it is no description, or a class is outside this package, has an obstacle, or does not take these
            arguments.
    """
    if isinstance(description, list):
        return [rebuild(item, given, name) for item in description]
    if not isinstance(description, dict):
        return description
    path = _path(description)
    if "obstacle" in description:
        raise ValueError(f"The file cannot rebuild the {name}: {description['obstacle']}. So {_cure(name)}.")
    cls = _class(path, name)
    args = {  # by the name of the nearest argument that can be given
        key: given[key] if given.get(key) is not None else rebuild(value, given, key if key in given else name)
        for key, value in description["args"].items()
    }
    try:
        return cls(**args)
    except ImportError:  # a library that is missing here: its message says which
        raise
    except Exception as error:  # a constructor meets anything here, and need not foresee it
        raise ValueError(f"{path} does not accept the arguments in the file ({error}): {_cure(name)}.") from error


def _path(description: dict[str, Any]) -> str:
    """The class that a description names, if it is one."""
    path = description.get("class")
    if not isinstance(path, str) or not ("obstacle" in description or isinstance(description.get("args"), dict)):
        seen = ", ".join(f"{key}: {type(value).__name__}" for key, value in description.items())
        raise ValueError(
            f"The file describes an object by {{{seen}}}, where its class as text and its args as a table belong: it is "
            "damaged, or save did not write it."
        )
    return path


def _class(path: str, name: str) -> type:
    module, _, qualified = path.partition(":")
    if module.split(".")[0] != _PACKAGE:
        raise ValueError(
            f"The file names {path} for its {name}. Only classes of {_PACKAGE} are built from a file, since to import "
            f"others would let the file choose what code runs: {_cure(name)}."
        )
    loaded = sys.modules.get(module)  # what can be saved is loaded with the package
    if loaded is None or qualified not in vars(loaded):
        raise ValueError(f"This version of {_PACKAGE} has no {path}: {_cure(name)}.")
    cls = vars(loaded)[qualified]
    # A class may move within the package, so its old place will do too; what it lies in must be this package.
    own = isinstance(cls, type) and cls.__module__.split(".")[0] == _PACKAGE
    if not (own and issubclass(cls, (SDE, nn.Module))):
        raise ValueError(f"{path} is neither a process nor a module of {_PACKAGE}: the file is not to be trusted.")
    return cls


def _arguments(cls: type) -> list[str]:
    return list(inspect.signature(cls).parameters)


def _cure(name: str) -> str:
    if name in ("sde", "net"):
        return f"make the {name} yourself and pass it, load(path, {name}=...)"
    return "make sde and net yourself and pass them, load(path, sde=..., net=...)"
