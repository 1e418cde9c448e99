"""Arguments of every wrong kind and size, damaged files, and command lines made of noise.

What may happen: a right answer, or a documented exception that says what was wrong. What may not: another exception, NaN in a
result, a hang, a traceback on the command line. ``make soak`` sweeps all of it and runs random command lines for a minute.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import sdediff as sd
from sdediff import grids, solvers
from sdediff.cli import main

JUNK = {
    "None": None, "text": "a", "nan": math.nan, "inf": math.inf, "-1": -1, "0": 0, "tiny": 1e-300, "huge": 1e300, "True": True,
    "list": [], "nan tensor": torch.tensor(math.nan), "complex": 1j, "dict": {}, "object": object(), "2.5": 2.5, "1e30": 10**30,
    "vector": torch.tensor([1.0, 2.0, 3.0]),
}  # fmt: skip
DOCUMENTED = (ValueError, TypeError, NotImplementedError, sd.SolveError)
# What Python and torch say when nobody looked at an argument before using it.
UNSEEN = re.compile(
    r"unsupported operand|invalid data type|not supported between|could not convert|not iterable|must be real number, not|"
    r"object has no attribute|cannot be interpreted|not subscriptable|invalid combination|failed to unpack|only one element|"
    r"out of range|Boolean value of Tensor|only integer tensors|size of tensor|mat1 and mat2"
)
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
RING = sd.densities.ring(3)
VP = sd.VP()
BACK = VP.reverse(sd.ExactScore(VP, RING))
FLOW = VP.probability_flow(sd.ExactScore(VP, RING))


def verdict(call: Callable[[], object], finite: bool = True) -> str | None:
    """What is wrong with the answer to a call, or None."""
    started = time.perf_counter()
    try:
        answer = call()
    except DOCUMENTED as error:
        text = str(error)
        if len(text) < 15 or UNSEEN.search(text):
            return f"{type(error).__name__} that nobody wrote: {text[:120]}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:120]}"
    finally:
        taken = time.perf_counter() - started
    if taken > 20:
        return f"took {taken:.0f} s"
    for value in answer if isinstance(answer, (tuple, list)) else (answer,):
        value = getattr(value, "x", value)
        if finite and isinstance(value, torch.Tensor) and bool(value.isnan().any()):
            return "NaN, and no word of it"
    return None


def sweep(call: Callable[..., object], arguments: dict[str, object], names: list[str], **options: bool) -> None:
    """Each argument replaced by each piece of junk, one at a time."""
    wrong = {
        f"{name}={label}": fault
        for name in names
        for label, junk in JUNK.items()
        if (fault := verdict(lambda name=name, junk=junk: call(**(arguments | {name: junk})), **options)) is not None
    }
    assert not wrong, "\n".join(f"{where}: {fault}" for where, fault in wrong.items())


def parameters(function: Callable[..., object]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]


# ---- the library --------------------------------------------------------------------------------------------------

PROCESSES = ["VP", "VE", "SubVP", "OU", "EDM", "CosineVP", "RectifiedFlow", "CIR", "Jacobi", "GeometricBrownianMotion"]


@pytest.mark.parametrize("name", PROCESSES)
def test_processes(name):
    """Numbers too large for float32 overflow to inf, which a solve names; NaN is what may not come of a finite state."""
    make = getattr(sd, name)
    x = X.abs().clamp(0.1, 0.9).double()

    def use(**arguments):
        sde = make(**arguments)
        return (
            sde.alpha(0.3 * min(1.0, sde.t_max))
            if isinstance(sde, sd.LinearSDE)
            else sde.drift(x, 0.3 * min(1, sde.t_max))
        )

    sweep(use, {}, parameters(make), finite=name != "Jacobi")


LAWS = [name for name in sd.densities.__all__ if inspect.isfunction(getattr(sd.densities, name))] + ["Banana", "Funnel"]


@pytest.mark.parametrize("name", sorted({*LAWS, "Checkerboard", "Mixture"} - {"as_density", "ribbon"}))
def test_laws(name):
    make = getattr(sd.densities, name)

    def use(**arguments):
        law = make(**arguments)
        x = law.sample(3, seed=0)
        return x, law.log_prob(x)

    given = {"means": [[0.0, 1.0]], "std": 0.5} if name == "Mixture" else {}
    sweep(use, given, parameters(make))


def test_what_laws_are_asked():
    for method, given in (("sample", {"n": 2}), ("log_prob", {"x": X}), ("score", {"x": X})):
        sweep(getattr(RING, method), given, parameters(getattr(RING, method)))
    sweep(lambda dtype: RING.to(dtype=dtype).sample(2), {}, ["dtype"])


def test_methods_of_a_process():
    given = {"x": X, "x0": X, "noise": X, "t": 0.5, "s": 0.2, "event_shape": (2,), "score": lambda x, t: -x}
    for method in ("drift", "diffusion", "gram_divergence", "perturb", "marginal", "prior", "alpha", "transition"):
        bound = getattr(VP, method)
        names = parameters(bound)
        sweep(bound, {name: given[name] for name in names if name in given}, names, finite=False)
    sweep(lambda **a: VP.reverse(**a).drift(X, 0.5), {"score": given["score"]}, parameters(VP.reverse))


SWITCHES = {"progress", "denoise", "differentiable"}  # read as true or false, whatever they are


def test_solve():
    names = [name for name in parameters(sd.solve) if name not in SWITCHES | {"dt", "grid", "x"}]
    given = {"process": BACK, "x": X, "solver": sd.EulerMaruyama(), "steps": 3}
    sweep(sd.solve, given, names)
    sweep(sd.solve, {**given, "steps": None}, ["dt", "grid"])


def test_sample():
    names = [name for name in parameters(sd.sample) if name not in SWITCHES | {"device", "cond"}]
    sweep(sd.sample, {"process": BACK, "n": 4, "solver": sd.EulerMaruyama(), "steps": 3}, names)


def test_states_of_another_shape_than_the_score_was_made_for():
    for x in (torch.ones(3), torch.ones(3, 1), torch.ones(3, 2, 2)):
        with pytest.raises(ValueError, match=r"needs \(B, 2\)"):
            sd.solve(BACK, x, solver=sd.EulerMaruyama(), steps=2)


@pytest.mark.parametrize("name", ["Uniform", "Power", "Quadratic", "LogSNR", "Karras"])
def test_grids(name):
    make = getattr(grids, name)
    given = {"steps": 3, "rho": 2.0, "power": 2.0}
    names = parameters(make)
    sweep(
        lambda **a: sd.solve(BACK, X, t1=0.1, solver=sd.EulerMaruyama(), grid=make(**a)),
        {name: given[name] for name in names if name in given},
        ["steps"],
    )


def test_solver_parts():
    sweep(
        lambda **a: sd.solve(BACK, X, solver=sd.PredictorCorrector(**a), steps=2),
        {"predictor": sd.EulerMaruyama()},
        ["predictor", "corrector"],
    )
    for junk in JUNK.values():
        with pytest.raises(TypeError, match="solver must be a solver object"):
            sd.solve(BACK, X, solver=junk, steps=2)


HEUN = sd.Heun()
MADE_WITH = {  # the solvers that cannot be made of nothing
    "Checkpointed": {"solver": HEUN},
    "EmbeddedRungeKutta": {"a": HEUN.a, "error": (0.5, -0.5), "order": 2},
    "PredictorCorrector": {"predictor": sd.EulerMaruyama()},
    "Restart": {"solver": sd.EDMHeun(), "low": 0.3, "high": 0.6, "inner": grids.Karras(2)},
    "RungeKutta": {"a": HEUN.a, "b": HEUN.b, "order": 2},
}


UNDERDAMPED, CLD = sd.Underdamped(lambda x, t: -x), sd.CLD()
JOINT = sd.ExactScore(CLD, RING)
TAKEN_FOR = {  # what is solved by the solvers that take no reversed linear SDE
    "BAOAB": (UNDERDAMPED, torch.cat([X, X], 1), 0.0),
    "CoupledMultistep": (CLD.reverse(JOINT), JOINT.sample(4, 1.0, seed=0), 1.0),
    "CoupledTrapezoid": (CLD.reverse(JOINT), JOINT.sample(4, 1.0, seed=0), 1.0),
    "ExactTransition": (VP, X, 0.0),
    "EDMHeun": (FLOW, X, 1.0),
    "Restart": (FLOW, X, 1.0),
}


def makers() -> list[str]:
    """The names of everything that a solver comes from, without the parts of solvers."""
    found = []
    for name in sorted(set(solvers.__all__) - {"Langevin", "Method", "Orders", "Solver"}):
        make = getattr(solvers, name)
        if inspect.isfunction(make) or (inspect.isclass(make) and not inspect.isabstract(make)):
            required = [p for p in inspect.signature(make).parameters.values() if p.default is p.empty]
            if name in MADE_WITH or not required:
                found.append(name)
    return found


def solved_by(name: str, **arguments: object) -> torch.Tensor:
    """A short solve by a solver made with these arguments, of what it is for."""
    solver = getattr(solvers, name)(**MADE_WITH.get(name, {}) | arguments)
    process, x, t0 = TAKEN_FOR.get(name, (FLOW if "ODE" in str(getattr(solver, "requires", "")) else BACK, X, 1.0))
    chooses = isinstance(solver, solvers.Integrator) and not solver.fixed
    return sd.solve(process, x, t0=t0, t1=abs(t0 - 0.9), solver=solver, **({} if chooses else {"steps": 3})).x


@pytest.mark.soak
@pytest.mark.parametrize("name", makers())
def test_solvers_never_give_nan_quietly(name):
    """Made as usual they solve; whatever else they are made with, an exception of some kind, or finite states."""
    assert bool(solved_by(name).isfinite().all())
    for argument in parameters(getattr(solvers, name)):
        for label, junk in JUNK.items():
            if (argument, label) == ("repeats", "1e30"):
                continue  # as many restarts as were asked for
            try:
                x = solved_by(name, **{argument: junk})
            except Exception:
                continue
            assert bool(x.isfinite().all()), f"{name}({argument}={label})"


def test_the_grid_and_the_kernels():
    solver = sd.FokkerPlanck(sd.OU(), sd.Cells(-4, 4, 20))
    data = sd.densities.Mixture(torch.zeros(1, 1), std=0.5)
    sweep(lambda **a: solver.solve(**a).p, {"initial": data, "steps": 2, "t1": 0.2}, parameters(solver.solve))
    sweep(sd.Cells, {"low": -1.0, "high": 1.0, "count": 10}, ["low", "high", "count"])
    law = solver.solve(data, t1=0.2, steps=2)
    x = torch.zeros(3, 1)
    for method, given in (("log_prob", {"x": x, "t": 0.1}), ("score", {"x": x, "t": 0.1}), ("at", {"t": 0.2}),
                          ("sample", {"n": 2, "t": 0.2}), ("marginal", {"axis": 0, "t": 0.2}), ("relative", {"density": data}),
                          ("total_variation", {"density": data, "t": 0.2}), ("plot", {})):  # fmt: skip
        sweep(getattr(law, method), given, parameters(getattr(law, method)), finite=method == "score")
    cir = sd.CIR()
    sweep(lambda **a: cir.marginal(**a).sample(), {"x0": x + 1, "t": 0.5}, ["x0", "t"])
    exact = sd.KernelScore(cir, x + 1)
    sweep(exact, {"x": x + 1, "t": 0.5}, ["x", "t"])
    sweep(sd.KernelScore, {"sde": cir, "points": x + 1}, ["sde", "points", "weights"])
    sweep(exact.sample, {"n": 2, "t": 0.5}, ["n", "t", "seed", "generator"])


def test_paths_and_losses():
    given = {"sde": sd.CIR(), "x0": torch.ones(3, 1), "solver": sd.EulerMaruyama(), "steps": 3, "times": 2}
    simulate = sd.training.Paths.simulate
    sweep(lambda **a: simulate(**a).xs, given, parameters(simulate))
    score = sd.training.ScoreNetwork(sd.networks.MLP(1, width=4, depth=1))
    for loss in (sd.training.ImplicitLoss(score), sd.training.SlicedLoss(score)):
        sweep(lambda loss=loss, **a: loss(**a).detach(), {"x": torch.ones(3, 1), "t": 0.5}, ["x"])


# ---- files --------------------------------------------------------------------------------------------------------


def damaged(content: bytes, generator: random.Random) -> dict[str, bytes]:
    """A file cut, flipped, overwritten and replaced."""
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    return {
        "empty": b"",
        "short": content[:5],
        "half": content[: len(content) // 2],
        "a byte missing": content[:-1],
        "flipped": bytes(flipped),
        "lying about its length": (2**63 - 1).to_bytes(8, "little") + content[8:],
        "a header of noise": content[:20] + b"\xff" * 200,
        "noise": generator.randbytes(300),
    }


def test_checkpoints(tmp_path):
    """Each piece of damage is told; so is each of 100 random flips of one byte, wherever it falls."""
    good = tmp_path / "good.safetensors"
    sd.training.save(good, sd.NoisePrediction(VP, sd.networks.MLP(2, width=4, depth=1)))
    content, generator = good.read_bytes(), random.Random(0)
    cases = damaged(content, generator)
    for k in range(100):
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        cases[f"flip {k}"] = bytes(flipped)
    bad = tmp_path / "bad.safetensors"
    for label, what in cases.items():
        bad.write_bytes(what)
        with pytest.raises(ValueError, match=r".{15}"):
            sd.training.load(bad)
            pytest.fail(f"{label} was loaded")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data, good and bad."""
    monkeypatch.chdir(tmp_path)
    good = np.random.default_rng(0).normal(size=(60, 2)).astype("float32")
    arrays = {
        "good": good, "nan": np.where(np.eye(60, 2) > 0, np.nan, good), "none": np.zeros((0, 2)), "one": np.zeros((1, 2)),
        "scalar": np.array(3.0), "text": np.array(["a", "b"]), "huge": np.full((60, 2), 1e300), "complex": good + 1j,
        "labels": np.arange(60) % 3, "negative": -np.arange(60),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    content = Path("good.npy").read_bytes()
    for name, what in damaged(content, random.Random(0)).items():
        Path(f"{name}.npy").write_bytes(what)
    Path("lies.npy").write_bytes(content.replace(b"(60, 2), }    ", b"(6000000000,),}"[:14]))
    return tmp_path


def run(line: list[str]) -> tuple[int, str]:
    """The exit code of a command line, and what it said on stderr; nothing may be raised."""
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        code = main(line)
    return code, said.getvalue()


def check_line(line: list[str]) -> int:
    code, said = run(line)
    errors = [text for text in said.splitlines() if text.startswith("sdediff:") and "note:" not in text]
    assert code in (0, 1, 2), (line, code, said[-300:])
    assert "Traceback" not in said, line
    assert code != 2 or len(errors) == 1, (line, said[-300:])
    return code


BAD_DATA = ["nan", "none", "one", "scalar", "text", "huge", "complex", "objects", "empty", "short", "half", "a byte missing",
            "lying about its length", "a header of noise", "noise", "lies", "absent"]  # fmt: skip


def test_damaged_data_on_the_command_line(folder):
    train = ["train", "--out", "run", "--steps", "1", "--width", "4", "--depth", "1"]
    for name in BAD_DATA:
        assert check_line([*train, "--data", f"{name}.npy"]) == 2, name
    for name in ["good", "negative", "text", "half", "a header of noise", "absent"]:
        assert check_line([*train, "--data", "good.npy", "--labels", f"{name}.npy"]) == 2, name
    for name in ["good.npy", "noise.npy", "absent", ".", "/dev/null"]:
        assert check_line(["sample", "-c", name]) == 2, name


WORDS = [
    "VP", "VP(", "VP(beta_max=nan)", "VP(beta_max=1e400)", "VP(beta_max=-1)", "EDM", "Heun", "ring", "ring(modes=0)",
    "ring(modes=1000000000)", "ring(std=nan)", "Mixture([[1]])", "Mixture([[nan,1]],std=1)", "Funnel(dim=1)", "Scipy('nope')",
    "Scipy('RK45',rtol=-1)", "DDIM", "RectifiedFlow", "RK4", "-1", "0", "nan", "inf", "1e400", "99999999999999999999", "abc",
    "",
    "--", "None", "True", "[]", "{}", "'", "\\", "%s", "💥", "x" * 3000, "(" * 300, "1,2", "10,", "3.5", "Karras(sigma_data=0)",
    "MinSNR(nan)", "cuda:99", "meta", "spam", "good.npy", "a\0b", "/", "absent/absent", "PredictorCorrector(3)",
]  # fmt: skip
OPTIONS = {
    "verify": ["-d", "-p", "--t", "--n", "--level", "--seed", "--out"],
    "compare": ["-d", "-p", "-s", "-f", "--steps", "--n", "--eta", "--seed", "--out"],
    "train": [
        "--data",
        "--labels",
        "--out",
        "-p",
        "--prediction",
        "--weighting",
        "--lr",
        "--ema",
        "--device",
        "--seed",
    ],
    "sample": [
        "-c",
        "--out",
        "-s",
        "--steps",
        "--eta",
        "--label",
        "--guidance",
        "--batch-size",
        "--device",
        "--seed",
        "--n",
    ],
    "nope": ["-x"],
}
BEGINNINGS = {
    "verify": ["--n", "1000", "--out", "o"],
    "compare": ["--n", "100", "--steps", "2", "-s", "EulerMaruyama", "--out", "o"],
    "train": ["--steps", "1", "--width", "4", "--depth", "1", "--data", "good.npy", "--out", "o"],
    "sample": ["--n", "2", "--steps", "2", "-c", "run", "--out", "o.npy"],
    "nope": [],
}


def random_line(generator: random.Random) -> list[str]:
    command = generator.choice(list(OPTIONS))
    line = [command, *BEGINNINGS[command]]
    for _ in range(generator.choice([1, 1, 2])):
        line += [generator.choice(OPTIONS[command]), generator.choice(WORDS)]
    return line


def test_words_that_no_option_takes(folder):
    """Options read before any work: each bad word, one exit code, one line."""
    for word in ("VP(", "ring(modes=0)", "nan", "-1", "99999999999999999999", "", "💥", "x" * 3000, "(" * 300, "a\0b"):
        for line in (["verify", "-p", word or "?"], ["verify", "--n", word], ["compare", "--steps", word],
                     ["sample", "-c", word], ["train", "--data", word, "--out", "o"], [word]):  # fmt: skip
            assert check_line(line) == 2, line


@pytest.mark.soak
def test_random_command_lines(folder):
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(2**32))
    assert run(["train", *BEGINNINGS["train"], "--out", "run"])[0] == 0
    generator, codes = random.Random(seed), set()
    end = time.monotonic() + 60
    try:
        while time.monotonic() < end:
            codes.add(check_line(random_line(generator)))
    except BaseException as error:
        error.add_note(f"Found with seed {seed}: repeat with SOAK_SEED={seed} make soak ARGS='-k random_command'")
        raise
    assert {0, 2} <= codes
