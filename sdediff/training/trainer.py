r"""Training a score: Adam with warm-up and a falling rate, clipped gradients, averaged weights, checkpoints, workers.

.. math:: \theta_{n+1} = \mathrm{Adam}\bigl(\theta_n, \mathrm{clip}\,\nabla_\theta\,\tfrac1B\textstyle\sum_i L_i\bigr),
          \qquad L_i \text{ a function of } (\theta_n, x_{r(n, i)}, \text{seed}, n, i) .

Everything random in step n is a function of the seed, of n and of the place i in the batch: the row :math:`r(n, i)`, time,
noise, dropout. So a training that is killed and started again from its folder is the training that was not killed, bit for
bit on the CPU; and workers that share a batch take the steps that one worker takes, up to the rounding of sums.
"""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data import Scales, Standardisation, check_data
from ..keyed import label
from ..networks.base import Network
from ..predictions import NetworkScore
from ..workers import Workers
from .checkpoint import fill, save_pretrained
from .draws import Draws, KeyedDraws
from .ema import averaged
from .examine import Examined, Examiner, batch
from .losses import DenoisingLoss, Loss
from .order import Order, split
from .plan import Plan
from .probe import probed
from .recorders import JSONLines, Recorder
from .state import RunFolder, State, fill_optimiser, fingerprint, optimiser_tensors
from .tensors import under

_DROPOUT = 31  # what a label begins with


@dataclass(frozen=True)
class Fit:
    """What training gave.

    Attributes:
        score: the score with averaged weights, in evaluation mode. The score that was passed in holds the last ones.
        losses: the loss of each step, (steps done,), on the host.
        examined: the loss of the averaged score on data kept from the training, with the same times and noise each time.
        seconds: wall time, that of resumed sessions added up.
    """

    score: Any
    losses: Tensor
    examined: tuple[Examined, ...]
    seconds: float

    @property
    def held_out(self) -> tuple[tuple[int, float], ...]:
        """(step, loss) of ``examined``."""
        return tuple((seen.step, seen.loss) for seen in self.examined)


class TrainingError(RuntimeError):
    """Training met a loss or gradient that is not finite.

    Attributes:
        fit: what was reached before that step. Where a single step went wrong it is of use; where the weights had gone
            wrong before, which the message says, it is not.
    """

    def __init__(self, message: str, fit: Fit):
        super().__init__(message)
        self.fit = fit


class Trainer:
    """Trains a score in place.

    Args:
        score: a network in one of :mod:`~sdediff.predictions`, or any score that is an ``nn.Module`` where ``loss`` is given.
        data: (N, *event), of about unit size (:class:`~sdediff.Standardisation`); converted to the score's dtype.
        plan: the numbers: steps, batch size, learning rate and so on.
        cond: conditions, (N, ...).
        loss: a :class:`DenoisingLoss` of this score, or another :class:`~sdediff.training.Loss`; by default the plain one.
        folder: where to keep checkpoints. If a training was begun there it goes on, and :meth:`run` gives what it would have
            given without the break. It must be the same training: plan, loss, process, data, standardisation and scales are
            compared, and what is made of functions by the numbers that they give at a few times. What the network starts
            from and the code of a network of your own are not.
        standardisation, scales: of the data, to be kept with the score.
        recorders: called with the numbers of the training; see :mod:`~sdediff.training.recorders`.
        progress: show a progress bar, on a terminal.
        callback: called as ``callback(step, loss)`` after each step.

    Raises:
        TypeError, ValueError: the data or an argument cannot be right, or the folder holds another training or a damaged
            checkpoint; said before the first step.
    """

    def __init__(
        self,
        score: Any,
        data: Tensor,
        plan: Plan | None = None,
        *,
        cond: Tensor | None = None,
        loss: Loss | None = None,
        folder: str | os.PathLike[str] | None = None,
        standardisation: Standardisation | None = None,
        scales: Scales | None = None,
        recorders: Iterable[Recorder] = (),
        progress: bool = True,
        callback: Callable[[int, float], None] | None = None,
    ):
        self.plan = plan = Plan() if plan is None else plan
        self.loss, self.score = _checked_loss(score, loss), score
        self.data, self.cond = check_data(data, cond).detach(), cond
        _check_fits(self.loss, self.data, cond)
        self.workers = Workers.found()
        if plan.batch_size < self.workers.count:
            raise ValueError(f"batch_size = {plan.batch_size} cannot be shared by {self.workers.count} workers.")
        self.standardisation, self.scales = standardisation, scales
        self.recorders, self.progress, self.callback = list(recorders), progress, callback
        train, kept = split(len(data), plan.held_out, plan.seed)
        self.part = self.workers.share(plan.batch_size)
        self.order = Order(train, plan.batch_size, plan.seed)
        # Noise is paired with data over the whole batch, so that each worker has to know all of it.
        self.pairing = self.loss.pairing if isinstance(self.loss, DenoisingLoss) and self.workers.count > 1 else None
        self._share: Any = self.loss if self.pairing is None else replace(self.loss, pairing=None)  # type: ignore[type-var]
        drawn = self.part if self.pairing is None else (0, plan.batch_size)
        self.draws = KeyedDraws(plan.seed, plan.batch_size, *drawn, stratified=self.loss.stratified)
        self.parameters = [p for p in score.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=plan.lr, weight_decay=plan.weight_decay, fused=True)
        kind = self.parameters[0].device.type
        self.scaler = torch.amp.GradScaler(kind, enabled=plan.precision == torch.float16)
        self.autocast = torch.autocast(kind, dtype=plan.precision, enabled=plan.precision is not None)
        self.folder = None if folder is None else RunFolder(folder)
        if self.folder is not None:
            self._agree(self.folder)
        self.average = averaged(score, plan.ema)
        mean: Any = self.average.module  # typed as a bare Module
        with_mean: Any = replace(self.loss, score=mean)  # type: ignore[type-var]
        self.examine = Examiner(with_mean, self.data[kept], None if cond is None else cond[kept], self.autocast)
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.examined: list[Examined] = []
        self._since: list[float] = []  # the losses since numbers were last recorded
        self._whole = False  # weights, averages and optimiser are those of the same step
        if self.folder is not None:
            self._resume(self.folder)
        self.objective = self._shared()

    # ---- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> Fit:
        """Train to the end of the plan.

        Returns:
            What was reached; after Ctrl-C, what was reached until then.

        Raises:
            TrainingError: a loss or gradient became NaN or infinite; weights are those before that step, and are saved if
                they still give a finite loss.
        """
        devices = [self.parameters[0].device] if self.parameters[0].device.type == "cuda" else []
        self.started = time.perf_counter() - self.seconds
        quiet = None if self.progress and self.workers.rank == 0 else True
        self.score.train()
        try:
            with (
                tqdm(total=self.plan.steps, initial=self.step, disable=quiet, desc="training") as bar,
                torch.enable_grad(),
                torch.random.fork_rng(devices),
            ):
                while self.step < self.plan.steps:
                    value, norm = self.advance()
                    self._report(norm, bar)
                    if self.callback is not None:
                        self.callback(self.step - 1, value)
        except KeyboardInterrupt:
            self._save()  # what is reached is worth keeping
        finally:
            self.score.eval()
        return self.reached()

    def advance(self) -> tuple[float, float]:
        """Take one step: the loss, and the norm of its gradient before it was clipped."""
        plan = self.plan
        for group in self.optimiser.param_groups:
            group["lr"] = plan.rate(self.step)
        self.optimiser.zero_grad()
        self._seed_dropout()
        x0, cond, draws = self._batch()
        with self.autocast:
            value = self.objective(x0, cond, draws)
        self.scaler.scale(value).backward()
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.parameters, plan.clip)
        mean = self.workers.sum(value.detach() / self.workers.count)
        loss, size = torch.stack([mean.double(), norm.double()]).tolist()  # one look at the device
        if not (math.isfinite(loss) and (math.isfinite(size) or self._rescales())):
            sound = self._sound()
            if sound:
                self._save()
            newest = None if self.folder is None else self.folder.newest()
            raise TrainingError(_diverged(self.step, loss, size, self.losses, sound, newest), self.reached())
        self._whole = False
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.average.update_parameters(self.score)
        self.step += 1
        self.losses.append(loss)
        self._since.append(loss)
        self._whole = True
        return loss, size

    def _batch(self) -> tuple[Tensor, Tensor | None, Draws]:
        """What this worker sees in this step."""
        rows, own = self.order.at(self.step), slice(*self.part)
        if self.pairing is None:
            x0, cond = batch(self.score, self.data, self.cond, rows[own])
            return x0, cond, self.draws.at(self.step, x0)
        x0, cond = batch(self.score, self.data, self.cond, rows)
        draws = self.draws.at(self.step, x0)
        paired = Draws(draws.quantile[own], self.pairing(x0, draws.noise)[own], draws.drop[own])
        return x0[own], None if cond is None else cond[own], paired

    @torch.no_grad()
    def _sound(self) -> bool:
        """Whether the weights and their averages give a finite loss in evaluation mode: whether they are worth keeping."""
        x0, cond, draws = self._batch()
        bad = torch.zeros((), device=x0.device)
        for loss in (self._share, replace(self._share, score=self.average.module)):
            loss.score.eval()
            with self.autocast:
                bad += (~torch.isfinite(loss.per_sample(x0, cond, draws=draws))).sum()
        self.score.train()
        return float(self.workers.sum(bad)) == 0

    def _rescales(self) -> bool:
        """Whether an infinite gradient is one of half precision, which the scaler answers by leaving out the step."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1e-3

    def _seed_dropout(self) -> None:
        """What the network itself draws is a function of seed, step and worker too."""
        seed = label(_DROPOUT, self.plan.seed, self.step, self.workers.rank) % 2**63
        torch.default_generator.manual_seed(seed)
        device = self.parameters[0].device
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)

    def _report(self, norm: float, bar: Any) -> None:
        """Record, examine and save what is due after a step."""
        plan, numbers = self.plan, dict[str, float]()
        examines = plan.due(plan.evaluate_every, self.step)
        if examines or plan.due(max(1, plan.steps // 200), self.step):
            numbers = {
                "loss": sum(self._since) / len(self._since),
                "norm": norm,
                "rate": plan.rate(self.step - 1),
                "seconds": time.perf_counter() - self.started,
            }
            self._since = []
        if examines and self.workers.rank == 0 and (seen := self.examine(self.step)) is not None:
            self.examined.append(seen)
            numbers["held_out"] = seen.loss
            numbers |= {f"held_out/t={t:.4g}": value for t, value in seen.by_time}
        if numbers and self.workers.rank == 0:
            bar.set_postfix_str(f"loss {numbers['loss']:.4f}", refresh=False)
            for recorder in self.recorders:
                recorder(self.step, numbers)
        if plan.due(plan.save_every, self.step):
            self._save()
        bar.update()

    def reached(self) -> Fit:
        """What there is by now."""
        seconds = time.perf_counter() - self.started
        mean: Any = self.average.module
        return Fit(mean.eval(), torch.tensor(self.losses), tuple(self.examined), seconds)

    def _shared(self) -> nn.Module:
        """The objective; with several workers, one whose gradients are averaged over them."""
        objective = Objective(self._share, self.plan.batch_size / self.workers.count)
        if self.workers.count == 1:
            return objective
        device = self.parameters[0].device
        ids = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            objective, device_ids=ids
        )  # it also sends out the first one's weights

    # ---- the folder -----------------------------------------------------------------------------------------------

    def _agree(self, folder: RunFolder) -> None:
        """Find that the folder is for this training. What a network starts from is not compared: resuming replaces it."""
        if self.workers.rank == 0:
            about = {
                "plan": self.plan, "loss": self.loss, "data": self.data, "cond": self.cond,
                "standardisation": self.standardisation, "scales": self.scales,
            }  # fmt: skip
            seen = probed(self.plan, self.loss, self.data.shape[1:])
            folder.agree({name: fingerprint(value) for name, value in about.items()} | seen)
        self.workers.wait()

    def _resume(self, folder: RunFolder) -> None:
        """Go on from the newest checkpoint, if there is one."""
        state = folder.read()
        lines = JSONLines(folder.metrics)
        if self.workers.rank == 0:
            lines.rewind(0 if state is None else state.step)
            self.recorders.insert(0, lines)
        if state is None:
            return
        mean: Any = self.average.module
        fill(self.score, under("weights.", state.tensors), folder.newest())
        fill(mean, under("average.", state.tensors), folder.newest())
        self.average.n_averaged.fill_(state.step)
        fill_optimiser(self.optimiser, state.tensors)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state.numbers["scaler"])
        self.step, self.seconds = state.step, state.numbers["seconds"]
        self.losses = state.tensors["losses"].tolist()
        self._since = state.tensors["since"].tolist()
        self.examined = [
            Examined(step, loss, tuple((t, value) for t, value in by_time))
            for step, loss, by_time in state.numbers["examined"]
        ]

    def _save(self) -> None:
        """Keep this state, if there is where."""
        if self.folder is None or self.workers.rank != 0 or not self._whole:
            return
        mean: Any = self.average.module
        tensors = {f"weights.{name}": value for name, value in self.score.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in mean.state_dict().items()}
        tensors |= optimiser_tensors(self.optimiser)
        tensors |= {"losses": _exact(self.losses), "since": _exact(self._since)}
        numbers = {
            "seconds": time.perf_counter() - self.started,
            "scaler": self.scaler.state_dict(),
            "examined": [(seen.step, seen.loss, seen.by_time) for seen in self.examined],
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        self.folder.write(State(self.step, numbers, tensors), self._save_score)

    def _save_score(self, folder: Path) -> None:
        mean: Any = self.average.module
        if isinstance(mean, NetworkScore):
            save_pretrained(folder, mean, self.standardisation, self.scales)


class Objective(nn.Module):
    """The summed loss of a part of a batch over ``size``, as a module, which is what workers share."""

    def __init__(self, loss: Loss, size: float):
        super().__init__()
        self.loss, self.score, self.size = loss, loss.score, size

    def forward(self, x0: Tensor, cond: Tensor | None, draws: Draws) -> Tensor:
        """The sum over this part, a 0-d tensor."""
        return self.loss.per_sample(x0, cond, draws=draws).sum() / self.size


def fit(
    score: Any,
    data: Tensor,
    *,
    cond: Tensor | None = None,
    loss: Loss | None = None,
    steps: int = 2000,
    batch_size: int = 256,
    lr: float = 1e-3,
    warmup: int = 100,
    clip: float = 1.0,
    ema: float = 0.999,
    held_out: float = 0.05,
    seed: int | None = None,
    progress: bool = True,
    callback: Callable[[int, float], None] | None = None,
) -> Fit:
    """Train ``score`` in place on ``data`` and return it with averaged weights: :class:`Trainer` in one call.

    Arguments, result and errors are those of :class:`Plan` and :class:`Trainer`. Without a seed, one is drawn from torch's
    global generator, so ``torch.manual_seed`` still governs.
    """
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    plan = Plan(steps, batch_size, lr, warmup, clip=clip, ema=ema, held_out=held_out, seed=seed)
    return Trainer(score, data, plan, cond=cond, loss=loss, progress=progress, callback=callback).run()


def _checked_loss(score: Any, loss: Loss | None) -> Loss:
    if not isinstance(score, nn.Module if loss is not None else NetworkScore):
        raise TypeError(f"fit trains a network score such as NoisePrediction(sde, net), got {type(score).__name__}.")
    if not any(p.requires_grad for p in score.parameters()):
        raise ValueError("No parameter of this score requires a gradient: there is nothing to train.")
    if loss is None:
        return DenoisingLoss(score)  # type: ignore[arg-type]
    if not (is_dataclass(loss) and hasattr(loss, "stratified") and hasattr(loss, "score")):
        raise TypeError(
            f"A trainer draws times and noise by their step, and {type(loss).__name__} does not take them: it needs a "
            "DenoisingLoss, or a dataclass like training.Loss with score, stratified and per_sample(x0, cond, draws=...). "
            "ImplicitLoss and SlicedLoss learn from samples of x_t: train by the short loop of docs/nonlinear.md."
        )
    if loss.score is not score:
        raise ValueError("loss is that of another score: build it as DenoisingLoss(score, ...) with the score given.")
    return loss


def _check_fits(loss: Loss, data: Tensor, cond: Tensor | None) -> None:
    """Let the network look at all shapes and labels: a wrong label would come up in the middle of the training."""
    if not isinstance(loss, DenoisingLoss):  # which may make of the data what it likes
        return
    net, shape = getattr(loss.score, "net", None), loss.score.event_shape
    if isinstance(net, Network):
        labels = net.check(data, None if cond is None else cond.cpu())
        if cond is not None and labels is not None:
            _warn_of_absent(labels, int(net.null))  # type: ignore[arg-type]
    if shape is not None and tuple(data.shape[1:]) != tuple(shape):
        raise ValueError(f"data have shape {tuple(data.shape)}; this score was made for (N, *{tuple(shape)}).")


def _warn_of_absent(labels: Tensor, classes: int) -> None:
    """Warn of classes that no sample has: labels 5, 15 and 25 were meant as three classes, and make a network of 26."""
    absent = torch.nonzero(torch.bincount(labels, minlength=classes)[:classes] == 0).flatten().tolist()
    if absent:
        shown = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
        warnings.warn(
            f"{len(absent)} of the network's {classes} classes never occur in cond ({shown}): nothing is learned for them. "
            "labels.unique(return_inverse=True)[1] numbers those that do 0, 1, 2, ...",
            stacklevel=4,
        )


def _exact(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _diverged(step: int, value: float, norm: float, losses: list[float], sound: bool, newest: Path | None) -> str:
    before = f"the step before had loss {losses[-1]:.4g}" if losses else "it is the first step"
    kept = "error.fit holds what was reached" if sound else "as they give no finite loss again, they are not kept"
    cure = (
        ""
        if newest is None
        else f"If it stops here once more, remove {newest} to go on from the checkpoint before it. "
    )
    return (
        f"Training stopped at step {step}: loss {value:.4g}, gradient norm {norm:.4g}; {before}. The weights are those "
        f"before this step, and {kept}. {cure}Look at the size of the data (standardise them), lower lr, or choose a "
        "weighting that is finite at the smallest time."
    )
