"""``python -m benchmarks.results``: what comes out on real data, written to docs/results.md with no number typed by hand.

Two data sets that ship inside scikit-learn. Handwritten digits are trained on with their labels, as counts lifted by uniform
noise, so that one model gives samples, classes and the probability of images. A table of measurements is the second.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdediff as sd
from sdediff import training as tr
from sdediff.likelihood import Hutchinson, UniformDequantisation, bits_per_dim
from sdediff.metrics import energy_distance
from sdediff.suited import start, start_time

DOCS = Path(__file__).parents[1] / "docs"
LEVELS = 17  # grey values of the digits


@dataclass(frozen=True)
class Split:
    """Data and labels, four fifths to train on and one fifth to test with."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @staticmethod
    def of(x: Any, y: Any, seed: int) -> Split:
        """A random split."""
        x, y = torch.tensor(x), torch.tensor(y)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        test, train = order[: len(x) // 5], order[len(x) // 5 :]
        return Split(x[train], y[train], x[test], y[test])

    @property
    def all(self) -> Tensor:
        """Both parts."""
        return torch.cat([self.train, self.test])


# ---- digits ---------------------------------------------------------------------------------------------------------------


def digits(steps: int, seed: int) -> dict[str, Any]:
    """Train, sample, classify, and give test images their probability."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = Split.of(bunch.images.astype("int64"), bunch.target, seed)
    began, worked = time.perf_counter(), time.process_time()
    lattice = UniformDequantisation(LEVELS)
    lifted, _ = lattice.lift(data.train.repeat(20, 1, 1).float(), torch.Generator().manual_seed(seed))
    unit = sd.Standardisation.fit(lifted, shared=True)
    score = _digits_score(unit.apply(lifted), data.train_labels.repeat(20), steps, seed)
    trained = time.perf_counter()
    samples = _images(score, unit, data.train_labels, seed)
    likelihood = _digits_likelihood(score, unit, lattice, data, seed)
    finished = time.perf_counter()
    numbers = {
        "train": len(data.train), "test": len(data.test), "steps": steps,
        "parameters": sum(p.numel() for p in score.parameters()),
        "train_seconds": trained - began, "seconds": finished - began,
        "cpu_seconds": time.process_time() - worked,
    }  # fmt: skip
    _sheet(data, _rounded(samples), DOCS / "images" / "results_digits.png")
    return numbers | _sample_quality(data, samples) | likelihood


def _digits_score(x: Tensor, labels: Tensor, steps: int, seed: int) -> Any:
    torch.manual_seed(seed)
    score = sd.VelocityPrediction(sd.VP(), sd.networks.MLP((8, 8), width=256, depth=3, classes=10))
    loss = tr.DenoisingLoss(score, drop_cond=0.1)
    plan = tr.Plan(steps=steps, batch_size=128, lr=2e-3, ema=0.999, held_out=0, seed=seed)
    fit = tr.Trainer(score, x, plan, cond=labels, loss=loss).run()
    return fit.score


def _images(score: Any, unit: sd.Standardisation, labels: Tensor, seed: int) -> Tensor:
    """Samples of lifted images, one for each label, by 40 steps of the flow."""
    sde = score.sde
    sol = sd.sample(
        sde.probability_flow(score), len(labels), solver=sd.DPMSolverPP2M(), grid=sd.grids.LogSNR(40), cond=labels,
        x=start(sde, len(labels), (8, 8), std=1.0, seed=seed), t0=start_time(sde),
    )  # fmt: skip
    return unit.undo(sol.x)


def _rounded(lifted: Tensor) -> Tensor:
    """The counts in whose cells these lifted images lie."""
    return ((lifted + 1) * LEVELS / 2).floor().clamp(0, LEVELS - 1).long()


def _sample_quality(data: Split, samples: Tensor) -> dict[str, Any]:
    from sklearn.svm import SVC

    def flat(counts: Tensor) -> Tensor:
        return counts.flatten(1).double() / 8 - 1

    # A lifted image is the centre of a cell plus noise of mean 0; this brings the centres to the images themselves.
    unrounded = samples.flatten(1).double() * LEVELS / (LEVELS - 1)
    counts = _rounded(samples)

    def nearest(counts: Tensor) -> float:
        return float(torch.cdist(flat(counts), flat(data.train)).min(1).values.mean())

    reader = SVC(gamma=0.064).fit(flat(data.train).numpy(), data.train_labels.numpy())

    def read(counts: Tensor, labels: Tensor) -> float:
        return float((torch.as_tensor(reader.predict(flat(counts).numpy())) == labels).double().mean())

    return {
        "energy": energy_distance(unrounded, flat(data.test)),
        "energy_rounded": energy_distance(flat(counts), flat(data.test)),
        "resplits_std": _resplit_std(flat(data.all), len(data.test)),
        "nearest": nearest(counts), "nearest_of_test": nearest(data.test),
        "read": read(counts, data.train_labels), "read_of_test": read(data.test, data.test_labels),
    }  # fmt: skip


def _resplit_std(x: Tensor, test: int, repeats: int = 200) -> float:
    """The standard deviation of the energy distance between the two parts of random splits of real data."""
    generator, seen = torch.Generator().manual_seed(0), []
    for _ in range(repeats):
        order = torch.randperm(len(x), generator=generator)
        seen.append(energy_distance(x[order[test:]], x[order[:test]]))
    return float(torch.tensor(seen, dtype=torch.float64).std())


def _digits_likelihood(
    score: Any, unit: sd.Standardisation, lattice: UniformDequantisation, data: Split, seed: int
) -> dict[str, Any]:
    """Bits per dimension of the test images under the flow, without a label, and under two classical densities."""
    sde, d = score.sde, 64
    inside = -d * math.log(float(unit.std))  # log-density of images from that of standardised ones

    def flow(y: Tensor) -> Tensor:
        z = unit.apply(y.float())
        return (
            sd.log_prob(
                sde, score, z, divergence=Hutchinson(8), seed=seed, solver=sd.Tsitouras(rtol=1e-3, atol=1e-3)
            ).value
            + inside
        )

    generator = torch.Generator().manual_seed(seed + 3)
    fit_to = lattice.lift(data.train.repeat(20, 1, 1).double(), generator)[0].flatten(1)
    tune_on = torch.arange(len(fit_to)) % len(data.train) < len(data.train) // 5  # all copies of a fifth of the images
    classical = {
        "gaussian": _gaussian(fit_to),
        "mixture": _mixture(fit_to, tune_on, seed),
    }
    found = {}
    for name, density in ({"flow": flow} | classical).items():
        at = density if name == "flow" else lambda y, p=density: torch.as_tensor(p(y.flatten(1)))
        k = data.test.float() if name == "flow" else data.test.double()
        bound = lattice.bound(at, k, draws=1, seed=seed + 4).value.double()
        bits = bits_per_dim(bound, d)
        found[name] = {"bits": float(bits.mean()), "error": float(bits.std()) / math.sqrt(len(bits))}
    return {"likelihood": found}


# ---- a table ----------------------------------------------------------------------------------------------------------------


def table(steps: int, seed: int) -> dict[str, Any]:
    """Breast-cancer measurements: 30 columns, two classes."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    raw = Split.of(bunch.data, bunch.target, seed)
    began = time.perf_counter()
    unit = sd.Standardisation.fit(raw.train)
    x, test = unit.apply(raw.train), unit.apply(raw.test)
    torch.manual_seed(seed)
    score = sd.VelocityPrediction(sd.VP(), sd.networks.MLP(30, width=128, depth=3, classes=2))
    plan = tr.Plan(steps=steps, batch_size=128, lr=1e-3, ema=0.999, weight_decay=1e-2, held_out=0.1, seed=seed)
    fit = tr.Trainer(
        score,
        x.float(),
        plan,
        cond=raw.train_labels,
        loss=tr.DenoisingLoss(score, drop_cond=0.1),
        scales=sd.Scales.of(x),
    ).run()
    trained = time.perf_counter()
    sde, n = score.sde, len(x)
    sol = sd.sample(
        sde.reverse(fit.score), n, solver=sd.EulerMaruyama(), steps=200, cond=raw.train_labels, seed=seed + 1,
        x=start(sde, n, (30,), std=1.0, seed=seed),
    )  # fmt: skip
    value = sd.log_prob(sde, fit.score, test.float(), solver=sd.Tsitouras(rtol=1e-4, atol=1e-4)).value.double()
    gaussian = torch.as_tensor(_gaussian(x)(test))
    return {
        "train": n, "test": len(test), "columns": 30, "steps": steps, "train_seconds": trained - began,
        "energy": energy_distance(sol.x, test), "resplits_std": _resplit_std(torch.cat([x, test]), len(test)),
        "flow": {"nats": float(value.mean()), "error": float(value.std()) / math.sqrt(len(value))},
        "gaussian": {"nats": float(gaussian.mean()), "error": float(gaussian.std()) / math.sqrt(len(gaussian))},
    }  # fmt: skip


# ---- classical densities --------------------------------------------------------------------------------------------------


def _gaussian(x: Tensor) -> Any:
    law = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T))
    return law.log_prob


def _mixture(x: Tensor, tune_on: Tensor, seed: int) -> Any:
    """Ten Gaussians, the floor of their covariances chosen on a part of the training data, then fitted to all of it."""
    from sklearn.mixture import GaussianMixture

    def fitted(rows: Tensor, floor: float) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # EM stopped before its tolerance
            model = GaussianMixture(10, reg_covar=floor, random_state=seed, max_iter=60)
            return model.fit(rows[: len(rows) // 4].numpy())  # five of the twenty copies

    floors = [10**k for k in (-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0)]
    best = max(floors, key=lambda floor: fitted(x[~tune_on], floor).score(x[tune_on].numpy()))
    model = fitted(x, best)
    return lambda y: torch.as_tensor(model.score_samples(y.numpy()))


# ---- the page ----------------------------------------------------------------------------------------------------


def _sheet(data: Split, samples: Tensor, path: Path) -> None:
    from sdediff import plot

    def by_class(images: Tensor, labels: Tensor) -> Tensor:
        rows = [images[labels == c][:6] for c in range(10)]
        return torch.stack(rows, 1).flatten(0, 1).float()

    sheets = {"test images": (data.test, data.test_labels), "samples": (samples, data.train_labels)}
    figure, axes = plot.canvas(9.0, 3.4, 1, 2)
    for ax, (title, sheet) in zip(axes, sheets.items(), strict=True):
        plot.image_sheet(by_class(*sheet), columns=10, low=0, high=16, title=title, ax=ax)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def page(found: dict[str, Any]) -> str:
    """The page, every number from ``found``."""
    d, t, bits = found["digits"], found["table"], found["digits"]["likelihood"]
    most, least = 3 * d["resplits_std"], 0.9 * d["nearest_of_test"]
    flow, gaussian, mixture = (bits[name] for name in ("flow", "gaussian", "mixture"))
    rows = [
        _row("energy distance of samples to test images", f"{d['energy']:.4f}", d["energy"] <= most,
             f"at most {most:.4f}, 3 standard deviations of 200 resplits"),
        _row("mean distance to the nearest training image", f"{d['nearest']:.3f}", d["nearest"] >= least,
             f"at least {least:.3f}, 0.9 of that of test images"),
        _row("samples read as the class asked for", f"{d['read']:.1%}", d["read"] >= 0.96,
             "at least 96 %, by a fixed classifier"),
        _row("test images read by that classifier", f"{d['read_of_test']:.1%}", d["read_of_test"] >= 0.98, "at least 98 %"),
        _row("bits/dim of test images", f"{flow['bits']:.3f} ± {flow['error']:.3f}",
             flow["bits"] < min(gaussian["bits"], mixture["bits"]),
             f"below {gaussian['bits']:.3f} (full Gaussian) and {mixture['bits']:.3f} (mixture of ten)"),
        _row("processor seconds for all of it", f"{d['cpu_seconds']:.0f}", d["cpu_seconds"] <= 300,
             f"at most 300; {d['seconds']:.0f} s passed, on a machine that may have been shared"),
    ]  # fmt: skip
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    return f"""# Results on real data

Written by `python -m benchmarks.results`; every number and picture on this page comes from that run
({found["machine"]}, torch {found["torch"]}, {threads}, seed {found["seed"]}).

## Digits

{d["train"]:,} images of 8 × 8 pixels and 17 grey values train a residual MLP of {d["parameters"]:,} weights for
{d["steps"]:,} steps ({d["train_seconds"]:.0f} s), with labels, as counts lifted by uniform noise; {d["test"]} images are kept
to test with. One sample is drawn for each training label, by 40 steps of DPM-Solver++ 2M on the flow and without guidance.

| what | value | wanted | holds |
| --- | --- | --- | --- |
{"".join(rows)}
The energy distance is that of the samples as they come. Rounded to grey values it is {d["energy_rounded"]:.4f}: a smooth
density leaks from black, half of all pixels, into the next grey. All else is measured on rounded samples.

Bits are a bound on the code length of the counts (uniform dequantisation, one draw) with the flow's log-density without a
label; ± is the standard error over test images. The Gaussian has its full covariance; the mixture's covariance floor was
tuned on a fifth of the training images. The classifier is a support vector machine fitted to the training images.

![test images and samples](images/results_digits.png)

## A table

Breast-cancer measurements: {t["columns"]} columns, two classes, {t["train"]} rows to train on and {t["test"]} to test with,
standardised.

| what | diffusion model | for comparison |
| --- | --- | --- |
| mean log-density of test rows, nats | {_pm(t["flow"])} | {_pm(t["gaussian"])}, full Gaussian |
| energy distance of samples to test rows | {t["energy"]:.4f} | {t["resplits_std"]:.4f}, standard deviation of 200 resplits |
"""


def _row(what: str, value: str, holds: bool, wanted: str) -> str:
    return f"| {what} | {value} | {wanted} | {'yes' if holds else '**no**'} |\n"


def _pm(found: dict[str, float]) -> str:
    return f"{found['nats']:.2f} ± {found['error']:.2f}"


def main() -> None:
    """Run both and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=5_000, help="training steps on the digits")
    parser.add_argument("--table-steps", type=int, default=2_000, help="training steps on the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--render", action="store_true", help="only write the page anew, from the numbers of the last run"
    )
    options = parser.parse_args()
    kept = DOCS / "benchmarks" / "results.json"
    if not options.render:
        kept.write_text(json.dumps(_measured(options), indent=2) + "\n")
    (DOCS / "results.md").write_text(page(json.loads(kept.read_text())))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "digits": digits(options.steps, options.seed), "table": table(options.table_steps, options.seed),
        "seed": options.seed, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
