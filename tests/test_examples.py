"""Every example runs, with small settings, and what it prints is right."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    """Examples write below the current folder, and may not need a display."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    return tmp_path


def test_the_four_examples_are_there():
    named = {"custom_sde", "langevin_identity", "train_and_sample", "compare_solvers"}
    assert named <= {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_an_example_is_short_and_says_what_it_is(script):
    text = script.read_text()
    assert len(text.splitlines()) <= 100
    assert text.startswith(('"""', 'r"""')), "an example begins with a docstring"
    assert f"python examples/{script.name}" in text, "and says how to run it"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--sede=1", 2)])
def test_an_example_has_help_and_refuses_what_it_does_not_know(script, option, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), option])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr()
    assert end.value.code == code
    assert "--out" in printed.out if code == 0 else "--sede" in printed.err


def test_custom_sde(capsys, somewhere_else):
    example("custom_sde").main(n=4000, steps=100, out="custom.png")
    printed = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split()[-4:] for line in printed.splitlines()[1:4]}
    assert set(rows) == {"forward", "reverse SDE", "flow"}
    for measured_mean, mean, measured_std, std in (map(float, row) for row in rows.values()):
        # 4.4 standard errors (level 1e-5 each), and 0.01 for the steps of Euler-Maruyama
        assert abs(measured_mean - mean) < 4.4 * std / 4000**0.5 + 0.01
        assert abs(measured_std - std) < 4.4 * std / 8000**0.5 + 0.01
    assert "reverse of reverse is the original: True" in printed
    assert printed.count("PASS: all") == 2 and "FAIL" not in printed
    assert (somewhere_else / "custom.png").stat().st_size > 10_000


def test_langevin_identity(capsys, somewhere_else, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["langevin_identity.py", "--out", "pictures", "--particles", "2000"])
    example("langevin_identity").main()
    verdicts = [line[:4] for line in capsys.readouterr().out.splitlines() if line.startswith(("PASS", "FAIL"))]
    assert verdicts == ["PASS", "PASS", "FAIL", "PASS"]  # the third forgets a term, and is caught
    pictures = list((somewhere_else / "pictures").glob("*.png"))
    assert len(pictures) == 4 and all(picture.stat().st_size > 10_000 for picture in pictures)


def test_compare_solvers(capsys, somewhere_else):
    errors, floor = example("compare_solvers").main(n=2000, budgets=(24, 48, 96), out="solvers.png")
    flow, noisy = errors.values()
    halved = {name: row[-2] / row[-1] for name, row in flow.items()}
    assert 1.7 < halved["Euler"] < 2.5 and 1.7 < halved["DDIM"] < 2.5  # first order
    assert 3 < halved["Heun"] < 7 and 3 < halved["DPM-Solver++ 2M"] < 7  # second
    assert halved["RK4"] > 9  # fourth
    assert all(row[0] > row[-1] for row in noisy.values()) and max(row[-1] for row in noisy.values()) < 0.3
    assert floor == pytest.approx(2000**-0.5)
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*flow, *noisy]) and "noise floor" in printed
    assert (somewhere_else / "solvers.png").stat().st_size > 10_000


def test_train_and_sample(capsys, somewhere_else):
    errors, distances = example("train_and_sample").main(n=1000, steps=200, out="there/picture.png")
    # After 20 steps these are 0.35, 0.07, 0.007, and the distances 0.03.
    assert errors[0.0] < 0.2 and errors[-2.0] < 0.04 and errors[-4.0] < 0.005
    assert distances["noise floor"] < 0.005 and max(distances.values()) < 0.025
    printed = capsys.readouterr().out
    assert "200 steps" in printed and "energy distance from the exact law" in printed
    assert (somewhere_else / "there" / "score.safetensors").is_file()
    assert (somewhere_else / "there" / "picture.png").stat().st_size > 10_000
