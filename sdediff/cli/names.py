"""Objects from the command line: ``VP(beta_max=12)`` typed in a shell becomes the object.

What may be typed are the public constructors of the package under their own names, with literal arguments or further
such constructors: ``PredictorCorrector(EulerMaruyama(), Langevin(r=0.1))``. The text is parsed, never evaluated, so
nothing else can be reached through it. A bare name is a call without arguments.
"""

from __future__ import annotations

import ast
import collections.abc
import difflib
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Generic, TypeVar

from torch import Tensor

from .. import coupled, densities, grids, networks, predictions, processes, solvers
from ..densities import Density
from ..grids import Grid
from ..linear import LinearSDE
from ..networks import Network
from ..predictions import NetworkScore
from ..sde import Linear
from ..solvers import Method
from ..training import Times, weightings
from ..training import times as laws

T = TypeVar("T")
Constructor = Callable[..., Any]

_LONGEST = 500  # characters that describe one object
_READABLE = "give a name such as VP, or a call such as VP(beta_max=12)"


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One kind of object that an option takes.

    Args:
        noun: what messages call it.
        base: its class.
        modules: where its public constructors are found.
        elsewhere: what else there is, for the message about a name that is not among them.
    """

    noun: str
    base: type[T]
    modules: tuple[ModuleType, ...]
    elsewhere: str = ""

    def constructors(self) -> dict[str, Constructor]:
        """The public constructors of this kind by their own names, in alphabetical order."""
        return {
            name: made
            for name, made in _public(*self.modules).items()
            if made is not self.base and issubclass(_product(made), self.base)
        }

    @property
    def plural(self) -> str:
        """The noun for a list of them."""
        if " of " in self.noun:
            return self.noun.replace(" of ", "s of ", 1)
        return (
            f"{self.noun[:-1]}ies"
            if self.noun.endswith("y")
            else f"{self.noun}{'es' if self.noun.endswith('s') else 's'}"
        )

    @property
    def known(self) -> str:
        """The names, for messages and help texts."""
        return ", ".join(self.constructors())

    def parse(self, text: str) -> T:
        """The object that ``text`` describes.

        Raises:
            ValueError: the text is no constructor with literal arguments, names something unknown, or the arguments do
                not fit; the message says what would.
        """
        call = _call(_parsed(text, self.noun), text, self.noun)
        self._check(_name(call))
        value = _build(call, text, _public(*self.modules))
        assert isinstance(value, self.base)
        return value

    def deferred(self, text: str, *first: str) -> Constructor:
        """The constructor that ``text`` describes, still to be given its ``first`` arguments.

        ``deferred("Preconditioned(sigma_data=1)", "sde", "net")(sde, net)`` is ``Preconditioned(sde, net, sigma_data=1)``.

        Raises:
            ValueError: as :meth:`parse`.
        """
        call = _call(_parsed(text, self.noun), text, self.noun)
        self._check(_name(call))
        constructor, positional, named = _arguments(call, text, _public(*self.modules))
        _bind(_name(call), constructor, [*first, *positional], named)
        return lambda *given, **more: constructor(*given, *positional, **named, **more)

    def _check(self, name: str) -> None:
        known = self.constructors()
        if name not in known:
            where = "that this command knows" if self.elsewhere else "of this package"
            near = _nearest(name, known)
            raise ValueError(f"{name!r} is no {self.noun} {where}. {near}Known: {self.known}.{self.elsewhere}")


DENSITY = Kind("density", Density, (densities,))  # type: ignore[type-abstract]
PROCESS = Kind(
    "process",
    LinearSDE,
    (processes,),
    " Those with matrices for coefficients, such as CLD, are for sdediff verify and for Python.",
)
VERIFIED = Kind(
    "process",
    Linear,  # type: ignore[type-abstract]
    (processes, coupled),
    " Any other is named by its place: sdediff verify my_sde.py:MySDE, or 'sdediff:CorrelatedOU([[1.0, 0.0], [0.5, 1.0]])'.",
)
SOLVER = Kind("solver", Method, (solvers,))
GRID = Kind("grid", Grid, (grids,))  # type: ignore[type-abstract]
PREDICTION = Kind("prediction", NetworkScore, (predictions,))
WEIGHTING: Kind[Any] = Kind("weighting", object, (weightings,))
TIMES = Kind("law of times", Times, (laws,))  # type: ignore[type-abstract]
NETWORK = Kind("network", Network, (networks,))


@cache
def _public(*modules: ModuleType) -> dict[str, Constructor]:
    """The classes and functions that modules offer and whose required arguments can be typed, in alphabetical order."""
    found = {name: value for module in modules for name, value in _offered(module).items()}
    return {name: found[name] for name in sorted(found, key=str.casefold)}


def _offered(module: ModuleType) -> dict[str, Constructor]:
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    found = {name: getattr(module, name) for name in names}
    return {name: value for name, value in found.items() if _product(value) is not object and _typable(value)}


def _product(constructor: Any) -> type:
    """What a constructor makes: a concrete class itself, a function what it says it returns; object for all others."""
    module = getattr(constructor, "__module__", "")
    if not module.startswith(densities.__name__.partition(".")[0]) or module.endswith(".base"):
        return object  # not ours, or one of the classes that ours are made from
    if inspect.isclass(constructor):
        return object if inspect.isabstract(constructor) else constructor
    made = typing.get_type_hints(constructor).get("return") if inspect.isfunction(constructor) else None
    return made if inspect.isclass(made) else object


def _typable(constructor: Any) -> bool:
    """False where a required argument is a tensor or a function, which have no literals."""
    function = constructor.__init__ if inspect.isclass(constructor) else constructor
    hints = typing.get_type_hints(function)
    required = [p for p in inspect.signature(constructor).parameters.values() if p.default is p.empty]
    return not any(
        hints.get(p.name) is Tensor or typing.get_origin(hints.get(p.name)) is collections.abc.Callable
        for p in required
    )


def _parsed(text: str, noun: str) -> ast.expr:
    if len(text) > _LONGEST:
        raise ValueError(f"A {noun} of {len(text)} characters: {_READABLE}.")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"{_short(text)!r} cannot be read as a {noun}: {_READABLE}.") from None


def _call(node: ast.expr, text: str, noun: str) -> ast.Call:
    """The expression as a call; a bare name is one without arguments."""
    if isinstance(node, ast.Name):
        node = ast.Call(node, [], [])
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f"{_short(text)!r} cannot be read as a {noun}: {_READABLE}.")
    if any(isinstance(arg, ast.Starred) for arg in node.args) or any(k.arg is None for k in node.keywords):
        raise ValueError(f"{text!r} unpacks arguments with a star: write them out.")
    return node


def _name(call: ast.Call) -> str:
    assert isinstance(call.func, ast.Name)
    return call.func.id


def _build(call: ast.Call, text: str, public: dict[str, Constructor]) -> Any:
    """The object of a call whose arguments are literals or such calls."""
    constructor, positional, named = _arguments(call, text, public)
    _bind(_name(call), constructor, positional, named)
    try:
        return constructor(*positional, **named)
    except (TypeError, ValueError, AttributeError) as error:  # whose own message does not say which of them speaks
        raise ValueError(f"{_name(call)}: {error}") from error


def _arguments(
    call: ast.Call, text: str, public: dict[str, Constructor]
) -> tuple[Constructor, list[Any], dict[str, Any]]:
    name = _name(call)
    if name not in public:
        raise ValueError(f"{name!r} in {text!r} is unknown. {_nearest(name, public)}Known: {', '.join(public)}.")
    positional = [_argument(arg, text, public) for arg in call.args]
    return public[name], positional, {str(k.arg): _argument(k.value, text, public) for k in call.keywords}


def _bind(name: str, constructor: Constructor, positional: list[Any], named: dict[str, Any]) -> None:
    signature = inspect.signature(constructor)
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise ValueError(f"{name}: {error}. It is called as {name}{_bare(signature)}.") from None


def _argument(node: ast.expr, text: str, public: dict[str, Constructor]) -> Any:
    if isinstance(node, (ast.Call, ast.Name)):
        return _build(_call(node, text, "constructor"), text, public)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{ast.unparse(node)!r} in {text!r} is no literal: give numbers, strings or lists.") from None


def _bare(signature: inspect.Signature) -> str:
    """The signature without its annotations."""
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest(name: str, known: dict[str, Constructor]) -> str:
    folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.5)
    return f"Did you mean {folded[near[0]]}? " if near else ""
