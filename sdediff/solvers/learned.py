"""What an adjoint differentiates by: the parameters that a process computes with, wherever they are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MethodType

from torch import Tensor, nn

from ..score import Score
from ..sde import SDE


def adjoint_parameters(process: SDE, x: Tensor) -> tuple[nn.Parameter, ...]:
    """The parameters that want gradients, each once, for a backend's adjoint.

    Found are those of the process, of its score, and of the processes, scores, modules, methods and containers that these
    keep as attributes, however deeply. Not found are those hidden in a plain function, which shows no attributes.

    Args:
        process: what is solved.
        x: the starting states.

    Raises:
        ValueError: there are none, and x wants no gradient either: the adjoint would have nothing to do, quietly.
    """
    parameters = tuple(p for p in _kept(process, set()) if p.requires_grad)
    if not parameters and not x.requires_grad:
        raise ValueError(
            "The adjoint finds no parameters and x wants no gradient: give the network as an nn.Module, as in "
            "NoisePrediction(sde, net) or FunctionScore(net), and not inside a function."
        )
    return parameters


def _kept(part: object, seen: set[int]) -> Iterator[nn.Parameter]:
    if id(part) in seen:  # shared, or a score and a process that know each other
        return
    seen.add(id(part))
    inner: list[object] = []
    if isinstance(part, nn.Parameter):
        yield part
    elif isinstance(part, MethodType):
        inner = [part.__self__]
    elif isinstance(part, Mapping):
        inner = list(part.values())
    elif isinstance(part, (list, tuple)):
        inner = list(part)
    elif isinstance(part, (SDE, Score, nn.Module)):
        inner = list(vars(part).values())  # a module keeps its parameters and modules in dictionaries there
    for value in inner:
        yield from _kept(value, seen)
