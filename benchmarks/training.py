"""``python -m benchmarks.training``: a step of the trainer beside one of a loop written by hand around the same network.

Both loops take turns, step by step, and the lower quartiles of their times are compared. Both
do the same work: batches by permutation, stratified times, noise, the loss, clipping, AdamW with warm-up, averaged weights as
torch keeps them, and a look at the loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sdediff as sd
from sdediff import training as tr

ROWS = 1400
CASES = {
    "plane, width 32, depth 2, batch 256": ((2,), 32, 2, 256),
    "plane, width 128, depth 3, batch 256": ((2,), 128, 3, 256),
    "8 x 8 digits, width 256, depth 3, batch 128": ((8, 8), 256, 3, 128),
}


def score_of(event: tuple[int, ...], width: int, depth: int) -> sd.VelocityPrediction:
    """A fresh network as a score."""
    torch.manual_seed(0)
    return sd.VelocityPrediction(sd.CosineVP(), sd.networks.MLP(event, width=width, depth=depth))


def by_hand(event: tuple[int, ...], width: int, depth: int, batch: int) -> Iterator[None]:
    """The loop that a person would write."""
    score = score_of(event, width, depth)
    net, sde, data = score.net, score.sde, torch.randn(ROWS, *event)
    parameters = list(net.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    order, step, shape = torch.randperm(ROWS), 0, (-1, *[1] * len(event))
    while True:
        x0 = data[order[torch.arange(step * batch, (step + 1) * batch) % ROWS]]
        t = 1e-3 + (1 - 1e-3) * (torch.rand(batch) + torch.arange(batch)) / batch
        alpha, sigma = (value.float().reshape(shape) for value in (sde.alpha(t.double()), sde.sigma(t.double())))
        noise = torch.randn_like(x0)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 100)
        optimiser.zero_grad()
        loss = (net(alpha * x0 + sigma * noise, t) - (alpha * noise - sigma * x0)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update_parameters(net)
        loss.item()
        step += 1
        yield


def by_trainer(event: tuple[int, ...], width: int, depth: int, batch: int, steps: int) -> Iterator[None]:
    """The same in the trainer, stopped after each step."""
    ours = tr.Trainer(
        score_of(event, width, depth), torch.randn(ROWS, *event), tr.Plan(steps=steps, batch_size=batch, held_out=0.0)
    )
    ours.score.train()
    while True:
        ours.advance()
        yield


def timed(step: Callable[[], None]) -> float:
    """Its seconds."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def quartile(seconds: list[float]) -> float:
    """The lower one."""
    return sorted(seconds)[len(seconds) // 4]


def main(steps: int = 300) -> None:
    """Print both times and their ratio for each case."""
    for name, case in CASES.items():
        hand, ours = by_hand(*case), by_trainer(*case, steps + 1)
        next(hand), next(ours)
        pairs = [(timed(hand.__next__), timed(ours.__next__)) for _ in range(steps)]
        first, second = (quartile(list(seconds)) for seconds in zip(*pairs, strict=True))
        print(f"{name}: by hand {1e3 * first:.3f} ms, trainer {1e3 * second:.3f} ms, ratio {second / first:.3f}")


if __name__ == "__main__":
    main()
