"""Several workers do what one does: training up to the rounding of sums, sampling with the same numbers for each sample."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import sdediff as sd
from sdediff import training as tr
from sdediff.cli.main import main
from sdediff.workers import Workers

pytestmark = pytest.mark.skipif(not (hasattr(os, "fork") and dist.is_available()), reason="needs fork and gloo")

DATA = sd.densities.ring(6, 1.3, 0.25).sample(200, seed=0)
LABELS = torch.arange(200) % 3


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def together(work, count, folder):
    """``work(folder)`` in so many processes that share a gloo group."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": str(count)}
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_begin, args=(work, folder, address, rank)) for rank in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def _begin(work, folder, address, rank):
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    work(folder)
    if dist.is_initialized():
        dist.destroy_process_group()
    os._exit(0)  # without the exit handlers of pytest


# ---- training ------------------------------------------------------------------------------------------------------------


def begin(folder, steps=30, **kwargs):
    torch.manual_seed(0)
    score = sd.NoisePrediction(sd.VP(), sd.networks.MLP(2, width=16, depth=2, classes=3)).double()
    plan = tr.Plan(steps=steps, batch_size=25, lr=3e-3, warmup=3, seed=1, save_every=10, ema=0.9)
    loss = tr.DenoisingLoss(score, drop_cond=0.2)
    return tr.Trainer(score, DATA.double(), plan, cond=LABELS, loss=loss, folder=folder, progress=False, **kwargs)


def train(folder):
    run = begin(folder)
    fit = run.run()
    last = {name: value.detach().clone() for name, value in run.score.state_dict().items()}
    torch.save({"losses": run.losses, "weights": last, "examined": fit.held_out}, folder / f"{run.workers.rank}.pt")


def interrupted(folder):
    def stop(step, loss):
        if step == 16:
            raise KeyboardInterrupt

    begin(folder, callback=stop).run()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train(folder)
    return torch.load(folder / "0.pt", weights_only=True)


@pytest.mark.parametrize("count", [2, 3])
def test_workers_take_the_steps_of_one(count, alone, tmp_path):
    """The same global batch of 25, which 2 and 3 do not divide, in float64: to 1e-10, and all workers have the same weights."""
    together(train, count, tmp_path)
    kept = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(count)]
    for rank, got in enumerate(kept):
        assert got["losses"] == pytest.approx(alone["losses"], rel=1e-10)
        for name, value in alone["weights"].items():
            torch.testing.assert_close(got["weights"][name], value, rtol=1e-7, atol=1e-9)
            assert torch.equal(got["weights"][name], kept[0]["weights"][name])
        assert [step for step, _ in got["examined"]] == ([step for step, _ in alone["examined"]] if rank == 0 else [])
    assert [loss for _, loss in kept[0]["examined"]] == pytest.approx([loss for _, loss in alone["examined"]], rel=1e-8)


def paired(folder):
    torch.manual_seed(0)
    score = sd.FlowPrediction(sd.RectifiedFlow(), sd.networks.MLP(2, width=16, depth=2, classes=3)).double()
    loss = tr.DenoisingLoss(score, drop_cond=0.2, pairing=tr.OptimalTransport())
    plan = tr.Plan(steps=8, batch_size=25, lr=3e-3, warmup=3, seed=1)
    run = tr.Trainer(score, DATA.double(), plan, cond=LABELS, loss=loss, progress=False)
    fit = run.run()
    torch.save({"losses": run.losses, "examined": fit.held_out}, folder / f"{run.workers.rank}.pt")


def test_noise_is_paired_with_data_over_the_whole_batch(tmp_path):
    """Of 25 samples in all; within shares of 12 and 13 the best pairs are others."""
    paired(tmp_path)
    alone = torch.load(tmp_path / "0.pt", weights_only=True)
    together(paired, 2, tmp_path)
    for rank in (0, 1):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert got["losses"] == pytest.approx(alone["losses"], rel=1e-10)
        if rank == 0:
            assert [loss for _, loss in got["examined"]] == pytest.approx(
                [loss for _, loss in alone["examined"]], rel=1e-8
            )


def test_workers_resume_together_and_write_once(alone, tmp_path):
    together(interrupted, 2, tmp_path)
    assert [place.name for place in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000010", "step-00000017"]
    together(train, 2, tmp_path)
    got = torch.load(tmp_path / "1.pt", weights_only=True)
    assert got["losses"] == pytest.approx(alone["losses"], rel=1e-10)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 31))


def test_a_batch_must_have_a_sample_for_each(monkeypatch):
    monkeypatch.setattr(Workers, "found", classmethod(lambda cls: cls(0, 40)))
    with pytest.raises(ValueError, match="batch_size = 25 cannot be shared by 40 workers"):
        begin(None)


# ---- sampling --------------------------------------------------------------------------------------------------------------


def draw(folder):
    workers, n = Workers.found(), 41
    first, last = workers.share(n)
    score = sd.ExactScore(sd.VP(), sd.densities.ring(6, 1.3, 0.25))
    part = sd.sample(
        sd.VP().reverse(score), last - first, solver=sd.EulerMaruyama(), steps=20, noise=sd.Keyed(7).rows(first, last)
    )
    x = workers.gathered(part.x)
    assert (x is None) == (workers.rank > 0)
    if x is not None:
        np.save(folder / "x.npy", x.numpy())
    assert float(workers.sum(torch.tensor(workers.rank + 1.0))) == workers.count * (workers.count + 1) / 2
    workers.wait()


def test_the_set_does_not_depend_on_the_number_of_workers(tmp_path):
    draw(tmp_path)
    want = np.load(tmp_path / "x.npy")
    for count in (2, 3):
        together(draw, count, tmp_path)
        np.testing.assert_allclose(np.load(tmp_path / "x.npy"), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n", "count"), [(41, 3), (5, 8), (12, 4)])
def test_shares_cover_everything_once(n, count):
    shares = [Workers(rank, count).share(n) for rank in range(count)]
    assert [i for first, last in shares for i in range(first, last)] == list(range(n))
    sizes = [last - first for first, last in shares]
    assert max(sizes) - min(sizes) <= 1


def test_half_a_launcher_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match="MASTER_ADDR, MASTER_PORT not set: start with torchrun"):
        Workers.found()
    assert Workers(2, 4, local=1).device("cuda") == "cuda:1" and Workers().device("cuda") == "cuda"


# ---- the command line ----------------------------------------------------------------------------------------------------


_ACCELERATE = (
    "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
)
LAUNCHERS = {
    "torchrun": "torch.distributed.run --nproc-per-node 2 --master-port PORT -m",
    "accelerate": f"{_ACCELERATE} --main_process_port PORT --module",
}


def command(launcher, words, folder):
    launch = LAUNCHERS[launcher].replace("PORT", str(port())).split() if launcher else []
    whole = [sys.executable, "-m", *launch, "sdediff", *words.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(whole, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


TRAIN = "train --data data.npy --steps 20 --batch-size 32 --width 8 --depth 1 --out"
SAMPLE = "sample -n 33 --steps 5 --checkpoint"


def by_command(folder):
    os.chdir(folder)
    assert main(f"{TRAIN} two".split()) == 0
    Workers.found().wait()
    assert main(f"{SAMPLE} two --out two.npy".split()) == 0


def test_the_commands_share_their_work(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    np.save("data.npy", DATA.numpy())
    together(by_command, 2, tmp_path)
    assert capfd.readouterr().out.count("33 samples") == 1  # the first worker speaks for all
    assert main(f"{TRAIN} one".split()) == 0 and main(f"{SAMPLE} two --out one.npy".split()) == 0
    np.testing.assert_allclose(np.load("two.npy"), np.load("one.npy"), rtol=0, atol=1e-4)
    one, two = (np.loadtxt(Path(run) / "loss.csv", delimiter=",", skiprows=1) for run in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_solvers_that_couple_samples_are_refused_to_several(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("data.npy", DATA.numpy())
    assert main(f"{TRAIN} one".split()) == 0
    monkeypatch.setattr(Workers, "found", classmethod(lambda cls: cls(0, 2)))
    assert main(["sample", "-c", "one", "--solver", "Scipy"]) == 2
    assert "Scipy couples the samples of a batch, so 2 workers" in capsys.readouterr().err
    assert main(["sample", "-c", "one", "--n", "1"]) == 2


@pytest.mark.soak
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_launchers_train_and_sample(launcher, tmp_path):
    np.save(tmp_path / "data.npy", DATA.numpy())
    command(launcher, f"{TRAIN} two", tmp_path)
    assert json.loads((tmp_path / "two" / "train.json").read_text())["workers"] == 2
    said = command(launcher, f"{SAMPLE} two --out two.npy", tmp_path)
    assert said.count("33 samples") == 1
    command(None, f"{SAMPLE} two --out one.npy", tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), np.load(tmp_path / "one.npy"), rtol=0, atol=1e-4)
    assert np.loadtxt(tmp_path / "two" / "loss.csv", delimiter=",", skiprows=1).shape == (20, 2)
