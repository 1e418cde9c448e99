"""The trainer: each step against a loop by hand, resuming after SIGKILL bit for bit, damage told, numbers recorded.

Everything compared bit for bit is on the CPU. The statistical tests state their level: 1e-7 each.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file
from scipy import stats
from torch import nn

import sdediff as sd
from sdediff import training as tr
from sdediff.cli.main import app, main
from sdediff.training import state as state_module
from sdediff.training.order import Order, split
from sdediff.training.tensors import read_tensors, write_tensors

F64 = torch.float64
DATA = sd.densities.ring(6, 1.3, 0.25).sample(90, seed=0)
LABELS = torch.arange(90) % 3


class Dropping(sd.networks.MLP):
    """A network with dropout, which draws numbers of its own, and with a buffer that changes."""

    def __init__(self, event_shape, *, width=16, depth=1, embedding=None, classes=None):
        super().__init__(event_shape, width=width, depth=depth, embedding=embedding, classes=classes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, t, cond=None):
        if self.training:
            self.calls += 1
        return super().forward(nn.functional.dropout(x, 0.1, self.training), t, cond)


def score_of(net=Dropping, seed=0, **kwargs):
    torch.manual_seed(seed)
    return sd.VelocityPrediction(sd.VP(), net(2, classes=3, **{"width": 16, "depth": 1, **kwargs}))


PLAN = tr.Plan(
    steps=60, batch_size=24, lr=3e-3, warmup=5, ema=0.9, held_out=0.2, seed=3, save_every=2, evaluate_every=7
)


def trainer(folder=None, plan=PLAN, score=None, **kwargs):
    score = score_of() if score is None else score
    loss = kwargs.pop("loss", None) or tr.DenoisingLoss(score, tr.MinSNR(), drop_cond=0.2)
    data, cond = kwargs.pop("data", DATA), kwargs.pop("cond", LABELS)
    return tr.Trainer(score, data, plan, cond=cond, loss=loss, folder=folder, progress=False, **kwargs)


def contents(run):
    """All that a training is: weights, averages, optimiser, losses."""
    tensors = {f"weights.{k}": v.clone() for k, v in run.score.state_dict().items()}
    tensors |= {f"average.{k}": v.clone() for k, v in run.average.module.state_dict().items()}
    tensors |= {k: v.clone() for k, v in state_module.optimiser_tensors(run.optimiser).items()}
    return tensors | {"losses": torch.tensor(run.losses, dtype=F64)}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A training that nothing happened to: its folder, its result, its end, and its state after each step."""
    torch.set_num_threads(1)
    folder, states = tmp_path_factory.mktemp("unbroken"), {}
    run = trainer(folder)
    run.callback = lambda step, loss: states.__setitem__(step + 1, contents(run))
    fit = run.run()
    return types.SimpleNamespace(folder=folder, fit=fit, end=contents(run), states=states)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# ---- one step ----------------------------------------------------------------------------------------------------------


def test_the_trainer_takes_the_steps_of_a_loop_written_by_hand():
    plan = dataclasses.replace(PLAN, steps=12, weight_decay=0.1, schedule=tr.Linear(0.1), clip=0.05)
    run = trainer(plan=plan, score=(score := score_of(sd.networks.MLP).double()), data=DATA.double())
    hand = score_of(sd.networks.MLP).double()
    optimiser = torch.optim.AdamW(hand.parameters(), lr=1.0, weight_decay=0.1)
    mean = [p.detach().clone() for p in hand.parameters()]
    draws, rows = tr.KeyedDraws(3, 24), split(90, 0.2, 3)[0]
    losses = []
    for k in range(12):
        i = Order(rows, 24, 3).at(k)
        d = draws.at(k, DATA[i].double())
        t = 1e-3 + (1 - 1e-3) * d.quantile
        labels = torch.where(d.drop < 0.2, 3, LABELS[i])
        alpha, sigma = hand.sde.alpha(t)[:, None], hand.sde.sigma(t)[:, None]
        x0 = DATA[i].double()
        error = hand.net(alpha * x0 + sigma * d.noise, t, labels) - (alpha * d.noise - sigma * x0)
        snr = (alpha / sigma) ** 2
        weight = (
            torch.minimum(snr, torch.tensor(5.0)) * sigma**2
        )  # the error of v is that of x0 over sigma, as a² + s² = 1
        loss = (weight * error**2).mean()
        optimiser.param_groups[0]["lr"] = 3e-3 * min(1, (k + 1) / 5) * (1 - 0.9 * k / 12)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(hand.parameters(), 0.05)
        optimiser.step()
        rate = 1.0 if k == 0 else 1 - min(0.9, (1 + k) / (10 + k))
        mean = [m + rate * (p.detach() - m) for m, p in zip(mean, hand.parameters(), strict=True)]
        losses.append(loss.item())
    got = run.run()
    assert run.losses == pytest.approx(losses, rel=1e-9)
    for a, b in zip(score.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
    for a, b in zip(got.score.parameters(), mean, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_draws_are_those_of_their_place_whatever_the_share():
    x0 = torch.zeros(30, 5)
    whole = tr.KeyedDraws(7, 30)
    parts = [tr.KeyedDraws(7, 30, first, last) for first, last in ((0, 11), (11, 30))]
    for step in (0, 1, 500, 12, 3):
        want = whole.at(step, x0)
        got = [part.at(step, x0[part.first : part.last]) for part in parts]
        for name in ("quantile", "noise", "drop"):
            assert torch.equal(torch.cat([getattr(d, name) for d in got]), getattr(want, name))
        fresh = tr.KeyedDraws(7, 30).at(step, x0)
        assert torch.equal(fresh.noise, want.noise) and torch.equal(fresh.drop, want.drop)
    assert not torch.equal(whole.at(0, x0).noise, whole.at(1, x0).noise)
    assert not torch.equal(tr.KeyedDraws(8, 30).at(0, x0).noise, whole.at(0, x0).noise)


def test_draws_have_their_laws():
    """Kolmogorov-Smirnov at level 1e-7: at n = 40,000 it sees distribution functions that differ by 0.02."""
    x0, draws, loose = torch.zeros(200, 3), tr.KeyedDraws(1, 200), tr.KeyedDraws(1, 200, stratified=False)
    seen = [draws.at(k, x0) for k in range(200)]
    noise = torch.stack([d.noise for d in seen]).double()
    assert stats.kstest(noise.flatten()[:40_000].numpy(), "norm").pvalue > 1e-7
    # The three coordinates come from two of each pair: correlations within 5.3 standard errors of 0.
    assert float((noise.reshape(-1, 3).T.corrcoef() - torch.eye(3)).abs().max()) < 5.3 / math.sqrt(40_000)
    place = torch.stack([d.quantile for d in seen]) * 200
    assert torch.equal(place.floor(), torch.arange(200.0).double().expand(200, 200))
    drop = torch.stack([d.drop for d in seen])
    for u in (place % 1, drop, torch.stack([loose.at(k, x0).quantile for k in range(200)])):
        assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-7
    assert float(torch.stack([(place % 1).flatten(), drop.flatten()]).corrcoef()[0, 1].abs()) < 5.3 / 200


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        (tr.Constant(), [1, 1, 1]),
        (tr.Cosine(0.2), [1, 0.6, 0.2]),
        (tr.Linear(0.5), [1, 0.75, 0.5]),
        (tr.InverseSquareRoot(25), [1, 1 / math.sqrt(2), 0.5]),
    ],
)
def test_schedules(schedule, want):
    assert [schedule(step, 100) for step in (0, 50, 100)] == pytest.approx(want)
    assert tr.Plan(steps=100, lr=2.0, warmup=10, schedule=schedule).rate(4) == pytest.approx(schedule(4, 100))


def test_numbers_out_of_range_are_named():
    for wrong, message in (
        ({"steps": 0}, "steps = 0"),
        ({"lr": math.inf}, "lr = inf"),
        ({"save_every": -2}, "save_every = -2"),
        ({"held_out": 1.0}, "held_out = 1.0"),
        ({"ema": 1.0}, "ema = 1.0"),
        ({"seed": -1}, "seed = -1"),
        ({"warmup": -1}, "warmup = -1"),
        ({"precision": torch.float64}, "precision = torch.float64"),
    ):
        with pytest.raises(ValueError, match=message):
            tr.Plan(**wrong)
    for wrong, message in (
        ({"steps": 10.0}, "steps = 10.0 must be a whole number"),
        ({"seed": None}, "seed = None must be a whole number"),
        ({"warmup": "5"}, "warmup = '5' must be a whole number"),
        ({"lr": None}, "lr must be a number, got None"),
        ({"ema": "much"}, "ema must be a number, got 'much'"),
        ({"schedule": 3}, r"schedule = 3 must be a function of \(step, steps\)"),
    ):
        with pytest.raises(TypeError, match=message):
            tr.Plan(**wrong)


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_file_in_the_place_of_the_folder_is_told(place, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"file is a file, so that .* cannot be a folder: name another"):
        trainer(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


# ---- killed and resumed ----------------------------------------------------------------------------------------------


def _train_in(folder):
    trainer(folder).run()
    os._exit(0)


def _killed(folder, seconds):
    """A child that trains in the folder and is killed after so many seconds; True if it had not finished."""
    child = multiprocessing.get_context("fork").Process(target=_train_in, args=(folder,))
    child.start()
    child.join(seconds)
    unfinished = child.is_alive()
    if unfinished:
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    return unfinished


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_twenty_times_a_training_is_the_one_that_was_not(unbroken, tmp_path):
    """At random moments, most of them within a save, as every second step saves. After each kill the newest checkpoint is
    compared with what the unbroken training was at that step; at the end all of it."""
    random.seed(0)
    killed, folder, reached = 0, tmp_path / "broken", []
    while killed < 20:
        if _killed(folder, random.uniform(0.02, 0.25 * unbroken.fit.seconds)):
            killed += 1
        else:  # it came to its end: from the start again
            shutil.rmtree(folder)
            continue
        newest = state_module.newest_checkpoint(folder) if folder.exists() else None
        if newest is None:
            continue
        numbers, tensors = read_tensors(newest / "training.safetensors", "training")
        reached.append(numbers["step"])
        tensors.pop("since")
        same(tensors, unbroken.states[numbers["step"]])
        assert tr.from_pretrained(newest, net=score_of().net).scales is None  # the averaged score is whole too
    assert len(set(reached)) > 3
    run = trainer(folder)
    got = run.run()
    same(contents(run), unbroken.end)
    assert torch.equal(got.losses, unbroken.fit.losses) and got.examined == unbroken.fit.examined
    assert _metrics(folder) == _metrics(unbroken.folder)
    assert not list((folder / "checkpoints").glob("*.part"))


def _metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def stopped(folder, at=31, **kwargs):
    """A training stopped by Ctrl-C after so many steps."""

    def stop(step, loss):
        if step + 1 == at:
            raise KeyboardInterrupt

    return trainer(folder, callback=stop, **kwargs).run()


def test_ctrl_c_keeps_the_very_step_and_the_start_of_the_network_does_not_matter(unbroken, tmp_path):
    assert len(stopped(tmp_path).losses) == 31
    run = trainer(tmp_path, score=score_of(seed=99))
    assert run.step == 31
    run.run()
    same(contents(run), unbroken.end)
    again = trainer(tmp_path)  # finished: nothing is left to do
    assert again.step == 60 and torch.equal(again.run().losses, unbroken.fit.losses)


def test_float16_keeps_its_scaler(tmp_path):
    plan = dataclasses.replace(PLAN, precision=torch.float16)
    whole = trainer(plan=plan, score=score_of(sd.networks.MLP))
    whole.scaler._growth_interval = 10  # so that it changes within the test
    whole.run()
    scale = whole.scaler.get_scale()
    first = trainer(tmp_path, plan=plan, score=score_of(sd.networks.MLP))
    first.scaler._growth_interval = 10
    first.callback = lambda step, loss: (_ for _ in ()).throw(KeyboardInterrupt) if step == 30 else None
    first.run()
    run = trainer(tmp_path, plan=plan, score=score_of(sd.networks.MLP))
    assert run.scaler.get_scale() > 65536.0 * 2
    run.run()
    assert run.scaler.get_scale() == scale
    same(contents(run), contents(whole))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": dataclasses.replace(PLAN, lr=1e-4)}, r"plan.lr was 0.003 and is now 0.0001"),
        ({"plan": dataclasses.replace(PLAN, schedule=tr.Constant())}, r"plan.schedule"),
        ({"data": DATA + 1e-6}, r"data was .*float32 \(90, 2\)"),
        ({"cond": (LABELS + 1) % 3}, r"cond was"),
        ({"score": score_of(sd.networks.MLP, width=8)}, r"width was 16 and is now 8"),
    ],
)
def test_another_training_in_the_same_folder_is_refused(change, message, tmp_path):
    stopped(tmp_path, at=4, score=score_of(sd.networks.MLP))
    with pytest.raises(ValueError, match=rf"Another training was begun in .*{message}.*another folder"):
        trainer(tmp_path, **({"score": score_of(sd.networks.MLP)} | change))


def test_another_loss_is_refused(tmp_path):
    stopped(tmp_path, at=4)
    score = score_of()
    with pytest.raises(ValueError, match=r"loss.weighting"):
        trainer(tmp_path, score=score, loss=tr.DenoisingLoss(score, tr.MinSNR(3.0), drop_cond=0.2))


class Mine(sd.LinearSDE):
    """A process of one's own, whose number is no argument that a file could hold."""

    t_min = 0.01

    def __init__(self, b):
        self.rate = lambda t: b + t

    def drift_coefficient(self, t):
        return -0.5 * self.rate(t)

    def diffusion_coefficient(self, t):
        return torch.sqrt(self.rate(t))


class Plain(sd.SDE):
    """An SDE of three lines, found to be linear."""

    t_min, b = 0.01, 1.0

    def f(self, x, t):
        return -0.5 * x

    def g(self, x, t):
        return self.b


class Other(Plain):
    b = 9.0


Other.__qualname__ = "Plain"  # as after an edit of the file


class Turning(sd.AffineSDE):
    """Its state turns one way or the other: alike in every norm."""

    t_min = 0.01

    def __init__(self, way):
        self.matrix = torch.tensor([[-1.0, way], [-way, -1.0]], dtype=F64)

    def drift_matrix(self, t):
        return self.matrix

    def diffusion_matrix(self, t):
        return torch.eye(2, dtype=F64)


def blurred(width):
    return sd.coupled.Blurring((2,), base=sd.CustomVP(lambda t: width * (1 + t)))


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            sd.ddpm.Chain(sd.ddpm.linear(1000)).process,
            sd.ddpm.Chain(sd.ddpm.cosine(200)).process,
            r"process.alpha.t=0.03125 was",
        ),
        (sd.CustomVP(lambda t: 1 + t), sd.CustomVP(lambda t: 20 + t), r"process.alpha.t=0.03125 was \S+ and is now"),
        (Mine(1.0), Mine(9.0), r"process.alpha.t="),
        (Plain(), Other(), r"process.g².t=0.03125 was \"1\" and is now \"81\""),
        (Turning(2.0), Turning(-2.0), r"process.alpha.t="),
        (blurred(1.0), blurred(3.0), r"process.alpha.t="),
    ],
)
def test_another_process_is_refused_whatever_it_is_made_of(one, other, message, tmp_path):
    """Where its arguments say nothing, by what it computes; the same one is taken up."""

    def begin(sde):
        score = sd.NoisePrediction(sde, sd.networks.MLP(2, width=8, depth=1))
        plan = tr.Plan(steps=2, batch_size=8)
        return tr.Trainer(score, DATA, plan, folder=tmp_path, progress=False)

    begin(one).run()
    assert begin(one).step == 2
    with pytest.raises(ValueError, match=f"Another training was begun in .*{message}"):
        begin(other)


def test_another_function_is_refused_and_so_are_other_units(tmp_path):
    """Each of them differs in nothing that has a name."""
    score = score_of()
    unit, scales = sd.Standardisation.fit(DATA), sd.Scales.of(DATA)

    def begin(weight=1.0, rate=0.5, end=0.9, std=1.0, sigma=1.0):
        class Late(tr.Times):
            def __call__(self, sde, u):
                return end * u

        loss = tr.DenoisingLoss(score, lambda score, t: weight * torch.ones_like(t), Late())
        plan = dataclasses.replace(PLAN, steps=2, schedule=lambda step, steps: rate)
        return trainer(
            tmp_path, plan, score, loss=loss, standardisation=dataclasses.replace(unit, std=std * unit.std),
            scales=dataclasses.replace(scales, sigma_data=sigma * scales.sigma_data),
        )  # fmt: skip

    begin().run()
    assert begin().step == 2
    for change, message in (
        ({"weight": 2.0}, r"weight.u=0.03125 was \"1\" and is now \"2\""),
        ({"rate": 0.25}, r"rate.step=0 was"),
        ({"end": 0.8}, r"times.u=0.03125 was"),
        ({"std": 2.0}, r"standardisation.std was"),
        ({"sigma": 2.0}, r"scales.sigma_data was"),
    ):
        with pytest.raises(ValueError, match=f"Another training was begun in .*{message}"):
            begin(**change)


# ---- damage ---------------------------------------------------------------------------------------------------------------


SPRUNG = []


class Trap:
    """What a malicious pickle would do: run code when it is loaded."""

    def __reduce__(self):
        return _spring, ()


def _spring():
    SPRUNG.append(1)


def _truncated(content):
    return content[: len(content) * 2 // 3]


def _flipped(content):
    return content[:-100] + bytes([content[-100] ^ 4]) + content[-99:]


DAMAGE = {
    "truncated": _truncated,
    "flipped": _flipped,
    "pickle": lambda _: pickle.dumps(Trap()),
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_told_and_the_one_before_it_is_there(damage, unbroken, tmp_path):
    pickle.loads(pickle.dumps(Trap()))
    assert SPRUNG.pop() == 1  # the trap is one
    stopped(tmp_path)
    newest = state_module.newest_checkpoint(tmp_path)
    path = newest / "training.safetensors"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=rf"(?s)truncated|damaged.*Remove the folder .*{newest.name}"):
        trainer(tmp_path)
    assert not SPRUNG
    shutil.rmtree(newest)  # the cure
    run = trainer(tmp_path)
    assert run.step == 30
    if damage == "flipped":  # once is enough
        run.run()
        same(contents(run), unbroken.end)


def test_a_state_of_another_version_or_kind_is_told(tmp_path):
    stopped(tmp_path, at=6)
    newest = state_module.newest_checkpoint(tmp_path)
    path = newest / "training.safetensors"
    numbers, tensors = read_tensors(path, "training")
    about = {"format": 99, "training": numbers, "digest": "0"}
    save_file(tensors, path, metadata={"sdediff": json.dumps(about)})
    with pytest.raises(ValueError, match="has format 99; this version of sdediff reads 1"):
        trainer(tmp_path)
    write_tensors(path, "score", numbers, tensors)
    with pytest.raises(ValueError, match="lacks its training"):
        trainer(tmp_path)
    write_tensors(path, "training", numbers, {k: v for k, v in tensors.items() if "time.0.weight" not in k})
    with pytest.raises(ValueError, match="do not belong to this network"):
        trainer(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="There is no checkpoint file"):
        trainer(tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan.json is damaged"):
        trainer(tmp_path)


def test_what_a_kill_left_half_written_is_never_read(unbroken, tmp_path):
    stopped(tmp_path, at=10)
    home = tmp_path / "checkpoints"
    half = home / "step-00000099.part"
    half.mkdir()
    (half / "training.safetensors").write_bytes(b"half")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "loss": 1.0}\n{"step": 12, "lo')
    run = trainer(tmp_path)
    assert run.step == 10
    run.run()
    same(contents(run), unbroken.end)
    assert _metrics(tmp_path) == _metrics(unbroken.folder)
    assert [place.name for place in sorted(home.iterdir())] == ["step-00000058", "step-00000060"]


def test_a_training_that_diverges_keeps_its_last_good_state_on_the_disk(unbroken, tmp_path):
    class Mine(Dropping):
        def forward(self, x, t, cond=None):
            out = super().forward(x, t, cond)
            return out / 0.0 if self.training and int(self.calls) == 15 else out

    with pytest.raises(tr.TrainingError, match="stopped at step 14"):
        trainer(tmp_path, score=score_of(Mine)).run()
    numbers, tensors = read_tensors(state_module.newest_checkpoint(tmp_path) / "training.safetensors", "training")
    assert numbers["step"] == 14
    want = {k: v for k, v in unbroken.states[14].items() if k.startswith("weights.") and "calls" not in k}
    same({k: v for k, v in tensors.items() if k.startswith("weights.") and "calls" not in k}, want)


def test_weights_that_are_ruined_are_not_saved(tmp_path):
    """A rate that blows them up within a step or two: the loss is not finite because they are what they are."""
    plan = dataclasses.replace(PLAN, lr=1e10, warmup=60, save_every=60, evaluate_every=60)
    with pytest.raises(
        tr.TrainingError, match=r"as they give no finite loss again, they are not kept\. Look at"
    ) as error:
        trainer(tmp_path / "late", plan, score_of(sd.networks.MLP)).run()
    reached = len(error.value.fit.losses)
    assert 0 < reached < 10 and not bool(error.value.fit.score(DATA, 0.5, LABELS).isfinite().all())
    assert state_module.newest_checkpoint(tmp_path / "late") is None

    plan = dataclasses.replace(plan, save_every=1)  # what is saved by the clock may be ruined: the message says so
    with pytest.raises(tr.TrainingError):
        trainer(tmp_path / "often", plan, score_of(sd.networks.MLP)).run()
    with pytest.raises(tr.TrainingError) as again:
        trainer(tmp_path / "often", plan, score_of(sd.networks.MLP)).run()
    newest = state_module.newest_checkpoint(tmp_path / "often")
    assert newest.name == f"step-{reached:08d}" and f"once more, remove {newest} to" in str(again.value)
    shutil.rmtree(newest)
    assert trainer(tmp_path / "often", plan, score_of(sd.networks.MLP)).step == reached - 1


# ---- precision, examination, records -------------------------------------------------------------------------------------


def test_bf16_is_for_the_network_alone():
    seen = {}

    class Watched(sd.networks.MLP):
        def forward(self, x, t, cond=None):
            seen.update(x=x.dtype, t=t.dtype, hidden=self.inward(x).dtype)
            return super().forward(x, t, cond)

    plain, half = (
        trainer(plan=dataclasses.replace(PLAN, precision=precision), score=score_of(Watched))
        for precision in (None, torch.bfloat16)
    )
    kept = []
    half.objective.register_forward_hook(lambda module, args, out: kept.append(out.dtype))
    want, got = plain.run(), half.run()
    assert seen == {"x": torch.float32, "t": torch.float32, "hidden": torch.bfloat16}
    assert set(kept) == {torch.float32}
    assert {p.dtype for p in half.score.parameters()} == {torch.float32}
    assert {s.dtype for s in state_module.optimiser_tensors(half.optimiser).values()} == {torch.float32}
    # bfloat16 has 8 bits: losses agree to a percent or two, but are not the same numbers.
    torch.testing.assert_close(got.losses, want.losses, rtol=0.05, atol=0.0)
    assert not torch.equal(got.losses[1:], want.losses[1:])


def test_the_loss_by_time_is_that_at_each_time():
    """A data prediction that is off by t, on data ±1 under hardly any noise: the loss at t is t²."""

    class Off(nn.Module):
        def __init__(self):
            super().__init__()
            self.zero = nn.Parameter(torch.zeros(1))

        def forward(self, x, t):
            return x.sign() + t[:, None] + self.zero

    data = torch.where(torch.arange(300) % 2 == 0, 1.0, -1.0)[:, None]
    score = sd.DataPrediction(sd.EDM(), Off())
    loss = tr.DenoisingLoss(score, times=tr.Uniform(0.0, 0.05))
    plan = tr.Plan(steps=4, lr=1e-12, held_out=0.3, evaluate_every=2)
    got = tr.Trainer(score, data, plan, loss=loss, progress=False).run()
    assert [seen.step for seen in got.examined] == [2, 4]
    for seen in got.examined:
        t, value = torch.tensor(seen.by_time).T.double()
        torch.testing.assert_close(t, (torch.arange(8) + 0.5).double() / 160, rtol=1e-5, atol=0)
        torch.testing.assert_close(value, t**2 + (0.05 / 8) ** 2 / 12, rtol=2e-2, atol=0)  # E t² over each part
        assert seen.loss == pytest.approx(float(value.mean()), rel=1e-3)


def test_records_say_what_happened(tmp_path):
    mine = []
    run = trainer(tmp_path, recorders=[lambda step, numbers: mine.append((step, dict(numbers)))])
    got = run.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line.pop("step"), line) for line in lines] == mine
    assert [step for step, _ in mine] == list(range(1, 61))  # at most 200 lines and those of the examinations
    for step, numbers in mine:
        assert numbers["loss"] == pytest.approx(float(got.losses[step - 1]), rel=1e-6)
        assert numbers["rate"] == PLAN.rate(step - 1) and numbers["norm"] > 0
    examined = [(step, numbers["held_out"]) for step, numbers in mine if "held_out" in numbers]
    assert examined == list(got.held_out) and [step for step, _ in examined] == [*range(7, 60, 7), 60]
    assert sum(name.startswith("held_out/t=") for name in mine[6][1]) == 8
    plan = dataclasses.replace(PLAN, steps=400, batch_size=4, held_out=0.0, save_every=None, evaluate_every=None)
    mine.clear()
    got = trainer(plan=plan, recorders=[lambda step, numbers: mine.append((step, dict(numbers)))]).run()
    assert len(mine) == 200
    for (before, _), (step, numbers) in zip([(0, None), *mine], mine, strict=False):
        assert numbers["loss"] == pytest.approx(float(got.losses[before:step].mean()), rel=1e-5)


def test_other_recorders(monkeypatch, tmp_path):
    calls = []
    fake = types.SimpleNamespace(
        init=lambda **kwargs: calls.append(kwargs), log=lambda numbers, step: calls.append((step, numbers))
    )
    tr.Trackio("mine", module=fake)(3, {"loss": 0.5})
    assert calls == [{"project": "mine"}, (3, {"loss": 0.5})]
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ImportError, match="pip install trackio"):
        tr.Trackio("mine")

    class Writer:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def flush(self):
            calls.append("flush")

    calls.clear()
    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    tr.TensorBoard(tmp_path)(7, {"loss": 0.5, "norm": 2.0})
    assert calls == [str(tmp_path), ("loss", 0.5, 7), ("norm", 2.0, 7), "flush"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        tr.TensorBoard(Path("x"))
    with pytest.raises(FileNotFoundError):
        tr.JSONLines(tmp_path / "none" / "x")(1, {})


def test_a_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    run = trainer()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run.run()
    assert torch.equal(torch.get_rng_state(), before)


# ---- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("data.npy", (5 + 2 * DATA).numpy())
    np.save("labels.npy", LABELS.numpy())
    np.save("images.npy", torch.randn(40, 4, 4, generator=torch.Generator().manual_seed(0)).numpy())
    Path("small.toml").write_text(
        'steps = 30\nbatch-size = 16\nwidth = 8\ndepth = 1\nlr = 5e-3\nprocess = "EDM"\nout = "a"\n'
    )
    return tmp_path


def about(folder):
    return json.loads((Path(folder) / "train.json").read_text())


def test_options_come_from_a_file_and_what_is_typed_comes_first(here, capsys):
    assert main(["train", "--data", "data.npy", "--config", "small.toml", "--steps", "3", "--out", "b"]) == 0
    got = about("b")
    assert (got["steps"], got["batch_size"], got["width"], got["lr"], got["process"]) == (3, 16, 8, 5e-3, "EDM")
    assert isinstance(tr.from_pretrained("b").score.sde, sd.EDM)
    Path("small.json").write_text('{"data": "data.npy", "steps": 2, "width": 4, "depth": 1, "step": 3}')
    assert main(["train", "--config", "small.json"]) == 2
    assert "names 'step', which is no option. Did you mean steps?" in capsys.readouterr().err
    Path("small.json").write_text('{"data": "data.npy", "steps": 2, "width": 4, "depth": 1, "shared_scale": true}')
    assert main(["train", "--config", "small.json"]) == 0
    assert about("run")["shared_scale"] is True and about("run")["steps"] == 2
    capsys.readouterr()
    for content, name, said in (
        ("steps = [", "x.toml", "cannot be read"),
        ("[1]", "x.json", "table of options"),
        ("steps: 3", "x.yaml", "must be a .toml or .json file"),
        ('steps = "many"', "y.toml", "--steps"),
        ("steps = 0", "z.toml", "--steps"),
    ):
        Path(name).write_text(content)
        assert main(["train", "--data", "data.npy", "--config", name]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, err
    assert main(["train", "--config", "none.toml"]) == 2
    assert "There is no file none.toml" in capsys.readouterr().err


def test_every_option_can_stand_in_a_file_under_its_long_name(here, capsys, monkeypatch):
    command = typer.main.get_command(app).commands["train"]
    names = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    names -= {"--config", "--help"}
    assert {"--device", "--shared-scale", "--data", "--out"} <= names
    Path("all.json").write_text(json.dumps({"none": 0}))
    assert main(["train", "--data", "data.npy", "--config", "all.json"]) == 2
    listed = capsys.readouterr().err.split("Options: ")[1].rstrip(".\n").split(", ")
    assert {f"--{name.replace('_', '-')}" for name in listed} == names
    Path("all.toml").write_text('device = "nowhere"\nsteps = 2\n')
    assert main(["train", "--data", "data.npy", "--config", "all.toml"]) == 2
    assert "--device nowhere cannot be used here" in capsys.readouterr().err


def _command(words):
    os._exit(main(words.split()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_same_command_goes_on_after_a_kill(here):
    words = "train --data data.npy --labels labels.npy --config small.toml --steps 60 --save-every 1 --out"
    assert main(f"{words} whole".split()) == 0
    child = multiprocessing.get_context("fork").Process(target=_command, args=(f"{words} broken",))
    child.start()
    while len(list(Path("broken/checkpoints").glob("step-*"))) < 2:
        time.sleep(0.005)
        assert child.is_alive()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert not Path("broken/model.safetensors").exists()
    assert (
        main(["sample", "-c", "broken", "-n", "5", "--steps", "3", "--out", "part.npy"]) == 0
    )  # from the newest checkpoint
    assert main(f"{words} broken".split()) == 0
    one, two = (tr.from_pretrained(name).score.state_dict() for name in ("whole", "broken"))
    same(one, two)
    assert _metrics(here / "whole") == _metrics(here / "broken")
    assert Path("whole/loss.csv").read_text() == Path("broken/loss.csv").read_text()


def test_the_command_makes_networks_and_fills_in_the_scale(here, capsys):
    words = "train --data images.npy --steps 2 --batch-size 8 --prediction Preconditioned --weighting Karras --times LogNormal"
    assert main([*words.split(), "--network", "UNet(channels=(8, 8), blocks=1, attention=True)"]) == 0
    kept = tr.from_pretrained("run")
    assert isinstance(kept.score.net, sd.networks.UNet) and kept.score.net.channels == (8, 8)
    assert kept.score.sigma_data == pytest.approx(kept.scales.sigma_data, rel=1e-5)
    assert kept.scales.sigma_data == pytest.approx(1.0, rel=1e-3)  # standardised
    assert main(["sample", "-c", "run", "-n", "3", "--steps", "2"]) == 0
    assert np.load("samples.npy").shape == (3, 4, 4)
    for more, said in (
        (["--network", "UNet", "--width", "8"], "--width and --depth are those of --network MLP"),
        (["--network", "DiffusersUNet"], "no network"),
        (["--times", "Sometimes"], "Known: Importance, LogNormal, Uniform."),
        (["--precision", "int8"], "must be float32, bfloat16, float16"),
        (["--held-out", "1"], "held_out = 1.0"),
    ):
        assert main(["train", "--data", "images.npy", "--steps", "2", "--out", "other", *more]) == 2
        assert said in capsys.readouterr().err


def test_the_example_of_a_configuration_is_understood(here):
    example = Path(__file__).parents[1] / "examples" / "train.toml"
    assert main(["train", "--data", "data.npy", "--config", str(example), "--steps", "2"]) == 0
    got = about("run")
    assert (got["process"], got["weighting"], got["network"]) == (
        "CosineVP",
        "MinSNR(gamma=5)",
        "MLP(width=256, depth=3)",
    )
