"""The shape of the package, read from its imports: no cycles, and solvers that know an SDE and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdediff
from sdediff import processes

ROOT = Path(sdediff.__file__).parent
FILES = {
    ".".join(("sdediff", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in FILES.items()}
PROCESSES = {
    name
    for name, value in vars(processes).items()
    if isinstance(value, type) and value.__module__ == processes.__name__
}


def package_of(name: str) -> list[str]:
    parts = name.split(".")
    return parts if FILES[name].name == "__init__.py" else parts[:-1]


def imports(name: str, tree: ast.AST) -> Iterator[str]:
    """The modules of sdediff that this one imports, whatever way it says so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package_of(name)
            base = base[: len(base) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            targets = [(module, alias.name) for alias in node.names]
        else:
            continue
        for module, member in targets:
            inner = f"{module}.{member}"
            if inner in FILES:
                yield inner
            elif module in FILES:
                yield module


def top_level(tree: ast.Module) -> ast.Module:
    """The tree without function bodies: what is imported when the module is."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

    strip = Strip()
    return ast.Module([kept for node in tree.body if (kept := strip.visit(node)) is not None], [])


def fresh(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


GRAPH = {name: set(imports(name, top_level(fresh(name)))) - {name} for name in FILES}
# A module of a package is run after the package's __init__ was begun; what counts is who names whom.
SOLVERS = {name for name in FILES if name.startswith("sdediff.solvers.")}


def test_the_graph_is_read():
    """The reader sees what there is: absolute, relative and package imports."""
    assert {"sdediff.checks", "sdediff.diffusion", "sdediff.score"} <= GRAPH["sdediff.sde"]
    assert {"sdediff.sde", "sdediff.gaussian"} <= GRAPH["sdediff.linear"]
    assert {"sdediff.sde", "sdediff.solvers.base"} <= GRAPH["sdediff.solvers.onestep"]
    assert "sdediff.solvers" in GRAPH["sdediff.solve"]
    assert len(FILES) > 40 and {"VP", "EDM", "RectifiedFlow"} <= PROCESSES


def test_no_cycles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "import cycle: " + " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in sorted(GRAPH[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in GRAPH:
        visit(name, ())


def reachable(name: str) -> set[str]:
    seen, todo = set(), [name]
    while todo:
        for target in GRAPH[todo.pop()] - seen:
            seen.add(target)
            todo.append(target)
    return seen


@pytest.mark.parametrize(
    "name", ["sde", "diffusion", "score", "forms", "linear", "processes", "gaussian", "quadrature"]
)
def test_the_mathematics_knows_no_numerics(name):
    """An SDE knows nothing of solvers, grids, noise or networks."""
    numerics = re.compile(
        r"sdediff\.(solve|sample|solvers|noise|grids|networks|training|predictions|verify|plot|cli)\b"
    )
    assert not [target for target in reachable(f"sdediff.{name}") if numerics.match(target)]


# What a solver may know. `score` and `forms` are what a semilinear SDE hands out; `brownian` is noise; `checks`,
# `counting`, `autodiff`, `blocks` and `collocation` know nothing themselves.
KNOWABLE = {
    "sde",
    "diffusion",
    "score",
    "forms",
    "noise",
    "brownian",
    "grids",
    "errors",
    "checks",
    "counting",
    "autodiff",
    "blocks",
    "collocation",
}


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_solvers_know_an_sde_and_nothing_else(name):
    """No solver imports processes, linear, densities, exact, networks, training, ... - not even inside a function."""
    allowed = {f"sdediff.{module}" for module in KNOWABLE}
    for target in imports(name, TREES[name]):
        fine = target in allowed or target.startswith(("sdediff.solvers", "sdediff.grids."))
        assert fine, f"{name} imports {target}"
    for grid in (target for target in FILES if target.startswith("sdediff.grids")):
        assert not [t for t in reachable(grid) if re.match(r"sdediff\.(processes|linear|densities|exact)\b", t)]


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_solvers_name_no_process(name):
    for node in ast.walk(TREES[name]):
        used = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        assert used not in PROCESSES, f"{name}, line {node.lineno}: {used}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            assert node.value not in PROCESSES, f"{name}, line {node.lineno}: {node.value!r}"


def strings(node: ast.AST) -> bool:
    """A string, or a display of strings."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(strings(element) for element in node.elts)
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def of_a_device(node: ast.AST) -> bool:
    """``x.device.type``: torch says it by a string."""
    return isinstance(node, ast.Attribute) and node.attr == "type"


BACKENDS = {"sdediff.solvers.scipy", "sdediff.solvers.torchsde", "sdediff.solvers.torchdiffeq"}


@pytest.mark.parametrize("name", sorted(SOLVERS - BACKENDS))
def test_solvers_are_objects_and_not_strings(name):
    """No comparison with a string decides what a solver does; backends alone pass method names on."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            dispatch = any(strings(side) for side in sides) and not any(of_a_device(side) for side in sides)
            assert not dispatch, f"{name}, line {node.lineno}: {ast.unparse(node)}"
        assert not isinstance(node, ast.Match), f"{name}, line {node.lineno}: a match statement"


def test_no_arguments_are_swallowed():
    """No public solver, grid or process takes ``**kwargs``, which would let a misspelt option pass."""
    for name, tree in TREES.items():
        if not re.match(
            r"sdediff\.(solvers|grids|processes|sde|linear|solve|sample|noise|keyed|brownian|langevin)\b", name
        ):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.args.kwarg is not None:
                private = node.name.startswith("_") and node.name != "__init__"
                assert private, f"{name}, line {node.lineno}: {node.name} takes **kwargs"
