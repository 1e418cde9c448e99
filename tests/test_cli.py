"""The command line: each command on tiny sizes, its outputs looked into; wrong input gives one line and exit code 2."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import sdediff as sd
from sdediff import verify as real_verify
from sdediff.cli import main
from sdediff.cli import train as train_command
from sdediff.cli import verify as verify_command
from sdediff.cli.load import load_process
from sdediff.cli.names import DENSITY, PREDICTION, PROCESS, SOLVER, VERIFIED, WEIGHTING, Kind
from sdediff.compare import compare
from sdediff.suited import process_for


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- objects by name ----------------------------------------------------------------------------------------------


def test_arguments_reach_the_object() -> None:
    assert PROCESS.parse("VP(beta_max=12)").beta_max == 12
    assert PROCESS.parse(" VE(0.02, 7) ").sigma_max == 7
    assert len(DENSITY.parse("ring(modes=5)").weights) == 5
    assert SOLVER.parse("Scipy('DOP853', rtol=1e-3)").method == "DOP853"
    corrected = SOLVER.parse("PredictorCorrector(EulerMaruyama, Langevin(r=0.25, steps=3))")
    assert isinstance(corrected.predictor, sd.EulerMaruyama)
    assert (corrected.corrector.r, corrected.corrector.steps) == (0.25, 3)
    mixture = DENSITY.parse("Mixture([[-1, 0], [2, 0]], std=[0.1, 0.2])")
    assert mixture.means.tolist() == [[-1, 0], [2, 0]]


def test_a_score_is_described_before_its_network_exists() -> None:
    score = PREDICTION.deferred("Preconditioned(sigma_data=0.5)", "sde", "net")(sd.VP(), torch.nn.Linear(2, 2))
    assert isinstance(score, sd.Preconditioned)
    assert score.sigma_data == 0.5
    with pytest.raises(ValueError, match=r"missing a required.*sigma_data"):
        PREDICTION.deferred("Preconditioned", "sde", "net")


@pytest.mark.parametrize("kind", [DENSITY, PROCESS, VERIFIED, SOLVER, WEIGHTING], ids=lambda kind: kind.noun)
def test_every_name_that_is_listed_is_of_its_kind(kind: Kind) -> None:
    built = 0
    for name in kind.constructors():
        try:
            assert isinstance(kind.parse(name), kind.base), name
            built += 1
        except ValueError as error:  # some need arguments, and say so
            assert "missing a required" in str(error), name
    assert built >= 5


def test_what_others_define_is_not_listed() -> None:
    listed = {*DENSITY.constructors(), *PROCESS.constructors(), *SOLVER.constructors(), *PREDICTION.constructors()}
    assert {"ring", "moons", "VP", "RectifiedFlow", "Heun", "Scipy", "NoisePrediction"} <= listed
    assert not listed & {
        "LinearSDE", "NetworkScore", "Solver", "Integrator", "Method", "Density", "Distribution", "as_density", "Empirical",
        "CustomVP", "Tensor", "annotations",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch seen')",
        "VP(beta_max=__import__('os').system('touch seen'))",
        "VP(beta_max=(lambda: 3)())",
        "VP(beta_max=2**3)",
        "VP(*[1, 2])",
        "VP(**{'beta_max': 3})",
        "VP.beta",
        "VP()()",
        "[VP() for _ in range(3)]",
        "VP(beta_max=open('seen', 'w'))",
        "VP(beta_max=eval('3'))",
        "VP(",
        "VP; VP",
        "",
        "(" * 400,
        "V" * 5000,
        "VP(beta_max='big')",
        "VP(beta=3)",
        "VP(1, 2, 3, 4, 5)",
        "Heun",
        "vp",
    ],
)
def test_nothing_but_constructors_with_literals_is_accepted(text: str) -> None:
    with pytest.raises(ValueError):
        PROCESS.parse(text)
    assert not Path("seen").exists()


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list() -> None:
    with pytest.raises(ValueError, match=r"no solver.*Did you mean EulerMaruyama\?.*Heun.*Scipy"):
        SOLVER.parse("eulermaruyma")
    with pytest.raises(ValueError, match=r"Lngevin.*Did you mean Langevin"):
        SOLVER.parse("PredictorCorrector(EulerMaruyama, Lngevin())")


# ---- compare ------------------------------------------------------------------------------------------------------


def _compare(*words: str) -> dict:
    assert main(["compare", "--n", "400", "--out", "out", *words]) == 0
    return json.loads(Path("out/compare.json").read_text())


def test_compare_prints_and_writes_what_it_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = _compare("-d", "ring(modes=4)", "-s", "EulerMaruyama", "-s", "Heun", "-s", "Scipy", "--steps", "6,48")
    runs = {(run["solver"], run["steps"]): run for run in found["runs"]}
    assert set(runs) == {("EulerMaruyama", 6), ("EulerMaruyama", 48), ("Heun", 6), ("Heun", 48), ("Scipy", None)}
    assert [run["process"] for run in found["runs"]] == ["reverse SDE"] * 2 + ["flow"] * 3
    assert [runs[name, k]["nfe"] for name in ("EulerMaruyama", "Heun") for k in (6, 48)] == [6, 48, 12, 96]
    assert runs["EulerMaruyama", 48]["map_median"] is None
    # Heun is of second order: eight times the steps take the error down at least twentyfold.
    assert runs["Heun", 48]["map_median"] < runs["Heun", 6]["map_median"] / 20
    assert runs["Scipy", None]["map_median"] < 1e-3 < runs["Heun", 48]["map_median"]
    for name in ("EulerMaruyama", "Heun"):
        assert runs[name, 48]["errors"]["mode width"] < runs[name, 6]["errors"]["mode width"] / 5
    assert set(found["floors"]) == {"energy distance", "sliced W2", "mode shares", "mode width"}
    assert runs["EulerMaruyama", 6]["errors"]["mode width"] > 10 * found["floors"]["mode width"]["upper"]
    assert runs["Scipy", None]["errors"]["mode width"] < 2 * found["floors"]["mode width"]["upper"]
    printed = capsys.readouterr().out
    assert "ring(modes=4) under VP" in printed
    assert f"{runs['Heun', 6]['errors']['energy distance']:.4f}" in printed
    assert Path("out/compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_seed_repeats_the_comparison() -> None:
    found = _compare("-s", "EulerMaruyama", "--steps", "20", "--seed", "5")
    solvers = {"EulerMaruyama": sd.EulerMaruyama()}
    again = compare(sd.VP(), sd.densities.ring(), solvers, steps=[20], n=400, seed=5)
    assert again.runs[0].errors == found["runs"][0]["errors"]
    assert {name: {"mean": a, "upper": b} for name, (a, b) in again.floors.items()} == found["floors"]
    other = compare(sd.VP(), sd.densities.ring(), solvers, steps=[20], n=400, seed=6)
    assert other.runs[0].errors != again.runs[0].errors


def test_eta_changes_what_is_solved() -> None:
    solvers = {"EulerMaruyama": sd.EulerMaruyama()}
    flow = compare(sd.VP(), sd.densities.ring(), solvers, steps=[20], n=400, eta=0.0).runs[0]
    assert flow.process == "flow" and flow.map_median is not None


def test_compare_on_another_grid() -> None:
    asked = ("-d", "moons", "-f", "DPMSolverPP2M", "-s", "TorchSDE", "--steps", "10", "--n", "200")
    even, fine = (_compare(*asked, "--grid", grid)["runs"] for grid in ("Uniform", "LogSNR"))
    assert fine[1]["map_median"] < even[1]["map_median"] / 3
    assert fine[0]["errors"] == even[0]["errors"]  # a backend of equal steps takes their number


def test_compare_where_alpha_vanishes_and_without_modes() -> None:
    found = _compare("-d", "Checkerboard", "-p", "CosineVP", "-s", "EulerMaruyama", "--steps", "200")
    assert set(found["floors"]) == {"energy distance", "sliced W2"}
    assert found["runs"][0]["errors"]["sliced W2"] < 2 * found["floors"]["sliced W2"]["upper"]


def test_a_solver_that_gives_up_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    found = _compare("-s", "Scipy(max_evaluations=9)", "-s", "Heun", "--steps", "5")
    assert "max_evaluations" in found["runs"][0]["failure"]
    assert found["runs"][0]["errors"] is None
    assert found["runs"][1]["nfe"] == 10
    assert "failed: The solve reached max_evaluations = 9" in capsys.readouterr().out


class _TooMuchNoise(sd.EulerMaruyama):
    """Half as much noise again."""

    def prepare(self, process, grid, noise):  # type: ignore[no-untyped-def]
        return sd.solvers.Solver.prepare(self, process, grid, noise)

    def step(self, process, x, s, t, noise):  # type: ignore[no-untyped-def]
        return x + process.drift(x, s) * (t - s) + process.diffusion(x, s) @ (1.5 * noise.increment(s, t))


def test_compare_sees_a_solver_with_too_much_noise() -> None:
    solvers = {"right": sd.EulerMaruyama(), "wrong": _TooMuchNoise()}
    found = compare(sd.VP(), sd.densities.ring(), solvers, steps=[400], n=1000)
    right, wrong = found.runs
    assert right.errors and wrong.errors
    limit = found.floors["mode width"][1]
    assert right.errors["mode width"] < 3 * limit < 0.3 < wrong.errors["mode width"]


def test_solvers_get_what_they_are_for() -> None:
    sde = sd.VP()
    score = sd.ExactScore(sde, sd.densities.ring())
    kinds = {text: process_for(SOLVER.parse(text), sde, score).direction for text in ("EulerMaruyama", "Heun", "Scipy")}
    assert kinds == {"EulerMaruyama": -1, "Heun": 0, "Scipy": 0}
    assert process_for(SOLVER.parse("EulerMaruyama"), sde, score, eta=0.0).direction == 0
    found = _compare("-s", "DDIM", "-f", "DDIM", "-f", "DPMSolverPP2M", "--steps", "9")
    assert [(run["solver"], run["process"]) for run in found["runs"]] == [
        ("DDIM", "reverse SDE"), ("DDIM (flow)", "flow"), ("DPMSolverPP2M", "flow"),
    ]  # fmt: skip


# ---- verify -------------------------------------------------------------------------------------------------------


def test_verify_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "-d", "ring(modes=3, std=0.4)", "--n", "1000", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "PASS: ring(modes=3, std=0.4) under VP" in printed
    assert printed.count("forward + backward") == 1
    for name in ("langevin_identity", "duality"):
        report = json.loads(Path(f"out/{name}.json").read_text())
        assert report["passed"] and len(report["rows"]) >= 8
        assert Path(f"out/{name}.png").stat().st_size > 5000
    # By default the identity is checked where signal and noise are equal.
    t = float(json.loads(Path("out/langevin_identity.json").read_text())["title"].split("t = ")[1])
    assert float(sd.VP().log_snr(t)) == pytest.approx(0, abs=1e-4)


def test_verify_takes_coupled_processes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blurring = VERIFIED.parse("Blurring((3, 4), width=2.5, base=VE(sigma_max=7))")
    assert isinstance(blurring, sd.Blurring) and blurring.event_shape == (3, 4) and blurring.base.sigma_max == 7
    monkeypatch.setattr(verify_command.verify, "duality", partial(real_verify.duality, steps=40, times=[0.5]))
    assert main(["verify", "-p", "CLD(mass=0.3)", "--n", "1000", "--out", "out"]) == 0
    assert "PASS: ring under CLD(mass=0.3)" in capsys.readouterr().out
    assert "CLD" in json.loads(Path("out/langevin_identity.json").read_text())["title"]


def test_processes_that_a_command_does_not_take_are_told_where_to_go(capsys: pytest.CaptureFixture[str]) -> None:
    for line, said in (
        (["compare", "-p", "CLD"], "are for sdediff verify"),
        (["verify", "-p", "CorrelatedOU"], "'sdediff:CorrelatedOU([[1.0, 0.0], [0.5, 1.0]])'"),
        (["verify", "-p", "Blurring"], "missing a required argument: 'event_shape'"),
    ):
        assert main(line) == 2
        assert said in capsys.readouterr().err
    target = "sdediff:CorrelatedOU([[1.0, 0.0], [0.5, 1.0]])"
    assert load_process(target).matrix.tolist() == [[1.0, 0.0], [0.5, 1.0]]


def test_verify_says_fail_by_its_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    law = sd.ExactScore(sd.VP(), sd.densities.ring().to(dtype=torch.float64))
    wrong = partial(real_verify.langevin_identity, score=lambda x, t: 1.1 * law(x, t), particles=False)
    monkeypatch.setattr(verify_command.verify, "langevin_identity", wrong)
    monkeypatch.setattr(verify_command.verify, "duality", partial(real_verify.duality, steps=40, times=[0.5]))
    assert main(["verify", "--n", "1000", "--out", "out"]) == 1
    assert "FAIL: ring under VP" in capsys.readouterr().out
    assert not json.loads(Path("out/langevin_identity.json").read_text())["passed"]
    assert json.loads(Path("out/duality.json").read_text())["passed"]


# ---- train and sample ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two classes in the plane, far from unit size: class 0 around (95, -3), class 1 around (105, -1)."""
    folder = tmp_path_factory.mktemp("trained")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 2
    x = torch.tensor([95.0, -3.0]) + labels[:, None] * torch.tensor([10.0, 2.0])
    x = x + torch.tensor([1.0, 0.2]) * torch.randn(600, 2, generator=generator)
    np.save(folder / "data.npy", x.double().numpy())
    np.save(folder / "labels.npy", labels.numpy().astype(np.int16))
    words = f"train --data {folder}/data.npy --labels {folder}/labels.npy --out {folder}/run --steps 400 --width 48 --depth 2"
    assert main([*words.split(), "--lr", "5e-3", "--ema", "0.98", "--batch-size", "128"]) == 0
    return folder


def test_train_writes_what_it_did(trained: Path) -> None:
    about = json.loads((trained / "run/train.json").read_text())
    assert about["classes"] == 2 and about["shape"] == [600, 2] and about["steps"] == 400
    assert about["shared_scale"] is False
    with open(trained / "run/loss.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows]
    assert [int(row["step"]) for row in rows] == list(range(1, 401))
    assert sum(losses[-50:]) < 0.8 * sum(losses[:50])
    assert about["loss"] == pytest.approx(sum(losses[-100:]) / 100, rel=1e-5)
    assert (trained / "run/loss.png").read_bytes().startswith(b"\x89PNG")
    kept = sd.training.load(trained / "run/model.safetensors")
    assert isinstance(kept.score, sd.VelocityPrediction) and isinstance(kept.score.sde, sd.VP)
    assert kept.standardisation is not None
    assert kept.standardisation.mean.tolist() == pytest.approx([100, -2], abs=0.3)


@pytest.mark.parametrize("solver", ["EulerMaruyama", "Heun", "Scipy(rtol=1e-3, atol=1e-3)", "DPMSolverPP2M"])
def test_samples_come_back_in_the_users_units(trained: Path, solver: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "-c", str(trained / "run"), "--n", "300", "-s", solver, "--out", "new/x.npy", "--eta", "0.5"]
    assert main(words + ([] if solver.startswith("Scipy") else ["--steps", "40"])) == 0
    x = np.load("new/x.npy")
    assert x.shape == (300, 2) and x.dtype == np.float32
    # Data: standard deviations 5.1 and 1.02 around (100, -2); a tenth of that is far beyond 300 samples' error.
    assert x.mean(0) == pytest.approx([100, -2], abs=1.5)
    assert x.std(0) == pytest.approx([5.1, 1.02], rel=0.25)
    assert "300 samples of shape (2,)" in capsys.readouterr().out


def test_a_label_is_obeyed_and_guidance_costs_twice(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["sample", "-c", str(trained / "run/model.safetensors"), "--n", "200", "-s", "Heun", "--steps", "15"]
    for label, centre in ((0, [95, -3]), (1, [105, -1])):
        assert main([*base, "--label", str(label), "--out", f"{label}.npy"]) == 0
        assert np.load(f"{label}.npy").mean(0) == pytest.approx(centre, abs=1.2)
    assert main([*base, "--label", "1", "--guidance", "1.5"]) == 0
    assert "30 score evaluations each" in (text := capsys.readouterr().out)
    assert "60 score evaluations each" in text


def test_a_seed_repeats_samples_bit_for_bit(trained: Path) -> None:
    def drawn(*words: str) -> np.ndarray:
        assert main(["sample", "-c", str(trained / "run"), "--n", "50", "--steps", "10", *words]) == 0
        return np.load("samples.npy")

    first = drawn()
    assert np.array_equal(first, drawn("--seed", "0"))
    assert not np.array_equal(first, drawn("--seed", "1"))
    assert drawn("--batch-size", "20").shape == (50, 2)


def test_images_keep_their_shape_and_a_constant_pixel_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).normal(50, 9, size=(64, 1, 3, 5)).astype(">f8")
    images[..., 0, 0] = 7
    np.save("images.npy", images)
    words = "train --data images.npy --out run -p CosineVP --prediction NoisePrediction --steps 5 --width 8 --depth 1"
    assert main(words.split()) == 0
    notes = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("sdediff:")]
    assert len(notes) == 1 and "1 of 15 coordinates of the data never change" in notes[0]
    assert json.loads(Path("run/train.json").read_text())["shared_scale"] is True
    assert (
        main(["sample", "-c", "run", "--n", "7", "--steps", "5"]) == 0
    )  # f and g are infinite at the noise end of CosineVP
    assert np.load("samples.npy").shape == (7, 1, 3, 5)
    own = [*words.split(), "--own-scales"]
    assert main(own) == 2
    assert "Another training was begun in run: data was" in capsys.readouterr().err
    assert main([*own, "--out", "own"]) == 0
    assert sd.training.load("own/model.safetensors").standardisation.mean.shape == (1, 3, 5)


def test_ctrl_c_keeps_what_training_reached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    np.save("data.npy", np.random.default_rng(0).normal(size=(30, 2)))
    command = ["train", "--data", "data.npy", "--out", "run", "--steps", "50", "--width", "4", "--depth", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(train_command, "_lines", lambda steps: interrupt)
        assert main(command) == 130
    said = capsys.readouterr()
    assert said.err == "sdediff: stopped.\n" and "4 steps" in said.out and "the same command goes on" in said.out
    assert json.loads(Path("run/train.json").read_text())["steps"] == 4
    assert main(["sample", "-c", "run", "--n", "3", "--steps", "2"]) == 0
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr()
    assert "Going on at step 4 of 50." in said.out and "Next: sdediff sample" in said.out
    assert [line.split(",")[0] for line in said.err.splitlines()] == [f"step {k} of 50" for k in range(5, 55, 5)]


def test_whole_numbers_are_data_too() -> None:
    np.save("counts.npy", np.arange(40).reshape(20, 2))
    assert main(["train", "--data", "counts.npy", "--out", "run", "--steps", "2", "--width", "4", "--depth", "1"]) == 0
    assert main(["sample", "-c", "run", "--n", "3", "--steps", "2"]) == 0


# ---- what goes wrong ----------------------------------------------------------------------------------------------


def _bad_files() -> None:
    np.save("good.npy", np.random.default_rng(0).normal(size=(30, 2)))
    np.save("nan.npy", np.array([[1.0, 2.0], [np.nan, 3.0], [0.0, np.inf]]))
    np.save("infinite.npy", np.array([[1.0, 2.0], [-np.inf, 3.0]]))
    np.save("one.npy", np.ones((1, 2)))
    np.save("empty.npy", np.ones((0, 2)))
    np.save("scalar.npy", np.float64(3))
    np.save("complex.npy", np.ones((4, 2), dtype=complex))
    np.save("text.npy", np.array(["a", "b"]))
    np.save("objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.save("long.npy", np.zeros(31, dtype=int))
    np.save("negative.npy", np.full(30, -1))
    np.save("sparse.npy", np.full(30, 30))
    np.save("fraction.npy", np.full(30, 0.5))
    whole = Path("good.npy").read_bytes()
    Path("cut.npy").write_bytes(whole[: len(whole) // 2])
    Path("header.npy").write_bytes(whole[:20])
    Path("nothing.npy").write_bytes(b"")
    Path("noise.npy").write_bytes(os.urandom(500))
    Path("good.txt").write_text("1 2\n3 4\n")
    Path("folder.npy").mkdir()
    Path("wall").write_text("a file where a folder is wanted")
    Path("cut.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{")
    Path("hollow").mkdir()


_TRAIN = "train --out run --steps 2 --width 4 --depth 1"
WRONG = [
    ("nonsense", "No such command"),
    ("compare --nonsense", "--nonsense"),
    ("compare --n -5", "--n"),
    ("compare --n many", "--n"),
    ("compare --seed -1", "--seed"),
    ("compare --eta -1", "--eta"),
    ("compare --steps 10,x", "10,x"),
    ("compare --steps 0", "whole numbers"),
    ("compare --steps 10,-3", "whole numbers"),
    ("compare --steps ,", "whole numbers"),
    ("compare --solver Eulr", "Known: A"),
    ("compare --solver Scipy(method='RK46')", "RK46"),
    ("compare --solver Scipy(rtol=-1)", "rtol"),
    ("compare --solver Heun(", "cannot be read"),
    ("compare --solver ExactTransition", "ExactTransition needs a linear SDE"),
    ("compare --solver Ancestral --eta 0.5", "stochasticity 1"),
    ("compare --density rng", "Did you mean ring?"),
    ("compare --density ring(modes=0)", "ring: "),
    ("compare --density Funnel", "closed form"),
    ("compare --density Mixture([[0,0]],std=-1)", "std"),
    ("compare --process VP(beta_max=-1)", "beta_max"),
    ("compare --process VP(t_min=2)", "t_min"),
    ("compare --out wall/inside", "wall/inside"),
    ("compare --out wall", "wall"),
    ("verify --t 7", "outside"),
    ("verify --n 3", "--n"),
    ("verify --level 2", "--level"),
    ("verify --process LinearSDE", "no process"),
    (f"{_TRAIN}", "--data"),
    (f"{_TRAIN} --data missing.npy", "There is no file missing.npy"),
    (f"{_TRAIN} --data good.txt", "no .npy file"),
    (f"{_TRAIN} --data folder.npy", "no file folder.npy"),
    (f"{_TRAIN} --data cut.npy", "cut.npy cannot be read"),
    (f"{_TRAIN} --data header.npy", "header.npy cannot be read"),
    ("compare --grid Foo --n 100", "'Foo' is no grid of this package"),
    (f"{_TRAIN} --data nothing.npy", "nothing.npy cannot be read"),
    (f"{_TRAIN} --data noise.npy", "noise.npy cannot be read"),
    (f"{_TRAIN} --data objects.npy", "objects.npy cannot be read"),
    (f"{_TRAIN} --data text.npy", "real numbers"),
    (f"{_TRAIN} --data complex.npy", "real numbers"),
    (f"{_TRAIN} --data nan.npy", "2 of 3 samples"),
    (f"{_TRAIN} --data infinite.npy", "1 of 2 samples (first: [1])"),
    (f"{_TRAIN} --data one.npy", "at least 2 samples"),
    (f"{_TRAIN} --data empty.npy", "at least 2 samples"),
    (f"{_TRAIN} --data scalar.npy", "(N, *event)"),
    (f"{_TRAIN} --data good.npy --labels long.npy", "(31,)"),
    (f"{_TRAIN} --data good.npy --labels negative.npy", "class numbers"),
    (f"{_TRAIN} --data good.npy --labels fraction.npy", "class numbers"),
    (f"{_TRAIN} --data good.npy --labels sparse.npy", "numpy.unique(labels, return_inverse=True)"),
    (f"{_TRAIN} --data good.npy --prediction Noise", "NoisePrediction"),
    (f"{_TRAIN} --data good.npy --prediction Preconditioned(sigma_data=-1)", "sigma_data"),
    (f"{_TRAIN} --data good.npy --prediction NoisePrediction(net=3)", "NoisePrediction"),
    (f"{_TRAIN} --data good.npy --weighting Heavy", "no weighting"),
    (f"{_TRAIN} --data good.npy --lr 0", "lr"),
    (f"{_TRAIN} --data good.npy --ema 1.5", "1.5"),
    (f"{_TRAIN} --data good.npy --batch-size 0", "--batch-size"),
    (f"{_TRAIN} --data good.npy --device tpu9", "tpu9"),
    (f"{_TRAIN} --data good.npy --device meta", "meta"),
    ("train --data good.npy --out wall/x", "wall/x"),
    ("sample", "--checkpoint"),
    ("sample -c missing", "missing"),
    ("sample -c hollow", "hollow"),
    ("sample -c cut.safetensors", "cut.safetensors"),
    ("sample -c good.npy", "good.npy"),
    ("sample -c RUN --n 0", "--n"),
    ("sample -c RUN --out samples.csv", ".npy"),
    ("sample -c RUN --out folder.npy", "folder"),
    ("sample -c RUN --out wall/x.npy", "wall"),
    ("sample -c RUN --solver Nothing", "no solver"),
    ("sample -c RUN --solver Scipy --steps 5", "leave out --steps"),
    ("sample -c RUN --label 2", "classes 0 to 1"),
    ("sample -c RUN --guidance 2", "--label"),
    ("demo --seed x", "--seed"),
    ("demo --out wall", "wall"),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_input_gives_one_clear_line(
    line: str, said: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _bad_files()
    capsys.readouterr()
    assert main([word.replace("RUN", str(trained / "run")) for word in line.split()]) == 2
    seen = capsys.readouterr()
    assert seen.err.startswith("sdediff: ")
    assert seen.err.count("\n") == 1, seen.err
    assert said in seen.err
    assert "Traceback" not in seen.err + seen.out
    assert not Path("run/model.safetensors").exists()


def _raising(error: BaseException):  # type: ignore[no-untyped-def]
    def instead(*_: object, **__: object) -> None:
        raise error

    return instead


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyError("lost"), 70, "--debug"),
        (ZeroDivisionError("two\nlines"), 70, "ZeroDivisionError: two lines"),
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), 2, "out of memory"),
        (sd.SolveError("it gave\n up"), 2, "it gave up"),
        (OSError(28, "No space left on device", "run/loss.csv"), 2, "run/loss.csv: No space left on device."),
    ],
)
def test_what_nobody_foresaw_is_one_line_too(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _bad_files()
    monkeypatch.setattr(train_command, "Trainer", _raising(error))
    assert main(f"{_TRAIN} --data good.npy".split()) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err and "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    _bad_files()
    monkeypatch.setattr(train_command, "Trainer", _raising(KeyError("lost")))
    with pytest.raises(KeyError, match="lost"):
        main(f"{_TRAIN} --data good.npy --debug".split())


# ---- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["demo", "verify", "compare", "train", "sample"])
def test_help_is_worth_reading(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    examples = [line for line in text.splitlines() if line.startswith(f"    sdediff {command}")]
    assert len(examples) >= 2
    assert all(option in text for option in ("--seed", "--out"))
    first = {"verify": "Blurring, CLD, ", "compare": "", "train": ""}.get(command)
    if first is not None:
        assert f"processes: {first}CosineVP, EDM, OU, RectifiedFlow, SubVP, VE, VP." in text


def test_the_examples_of_the_help_are_understood(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option and name in an example is accepted: what follows is cut off where the work would begin."""
    import shlex

    class Begun(Exception):
        pass

    for place in (
        "compare.compare",
        "verify.verify.langevin_identity",
        "verify.verify.check_sde",
        "train.Trainer",
        "sample.sample",
        "demo.run",
    ):
        monkeypatch.setattr(f"sdediff.cli.{place}", _raising(Begun()))
    for name in ("data", "images", "labels", "mine"):
        Path(f"{name}.npy").write_bytes((trained / f"{'labels' if name == 'labels' else 'data'}.npy").read_bytes())
    Path("run").symlink_to(trained / "run")
    Path("my_sde.py").write_text("import sdediff as sd\nclass MySDE(sd.VP):\n    pass\n")
    seen = 0
    for command in ("demo", "verify", "compare", "train", "sample"):
        main([command, "--help"])
        lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    sdediff ")]
        for line in lines:
            with pytest.raises(Begun):
                main([*shlex.split(line)[1:], "--debug"])
            seen += 1
    assert seen >= 12


def test_as_a_command_in_a_shell() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(sd.__file__).parents[1])}
    run = partial(subprocess.run, capture_output=True, text=True, env=environment, timeout=120)
    shown = run([sys.executable, "-m", "sdediff", "--version"])
    assert (shown.returncode, shown.stdout.strip(), shown.stderr) == (0, f"sdediff {sd.__version__}", "")
    unread = subprocess.Popen([sys.executable, "-m", "sdediff", "--help"], stdout=-1, stderr=-1, env=environment)
    assert unread.stdout and unread.stderr
    unread.stdout.close()  # as `| head` does
    assert (unread.stderr.read(), unread.wait(120)) == (b"", 141)
    wrong = run([sys.executable, "-m", "sdediff", "compare", "-s", "Nothing"])
    assert wrong.returncode == 2 and wrong.stdout == "" and wrong.stderr.count("\n") == 1
