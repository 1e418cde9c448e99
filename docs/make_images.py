"""The pictures of README and docs: ``python docs/make_images.py`` writes them to docs/images, each below 150 KB."""

import runpy
from pathlib import Path

import matplotlib
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

import sdediff as sd

FOLDER = Path(__file__).parent / "images"
EXAMPLES = Path(__file__).parents[1] / "examples"
LIMIT = 150_000  # bytes
INK, WARM = "#1b2a41", "#c8452f"
WHEEL = LinearSegmentedColormap.from_list("wheel", [INK, "#2a7f9e", "#5fb49c", "#e0a030", WARM, "#7b2d56", INK])


def there_and_back(n: int = 2000) -> Figure:
    """Particles of a spiral on their way to noise, and back by the reverse SDE and by the flow."""
    sde, data = sd.VP(), sd.densities.spirals()
    score, times = sd.ExactScore(sde, data), [0.0, 0.08, 0.2, 0.4, 1.0]
    start = data.sample(n, seed=0)
    noise = score.sample(n, t=1.0, seed=1)
    down = [*times[::-1][:-1], sde.t_min]
    rows = {
        "forward": sd.solve(sde, start, solver=sd.ExactTransition(), grid=times, save_at=times, seed=2).xs,
        "reverse SDE": _down(sde.reverse(score), noise, sd.EulerMaruyama(), down),
        "probability flow": _down(sde.probability_flow(score), noise, sd.Heun(), down),
    }
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    colour = torch.atan2(start[:, 1], start[:, 0])
    for axes_row, (title, states) in zip(figure.subplots(3, len(times)), rows.items(), strict=True):
        for axes, t, x in zip(axes_row, times, states, strict=True):
            # Forward, each particle keeps the colour of where it came from; backward, of where it will arrive.
            hue = colour if title == "forward" else torch.atan2(states[0][:, 1], states[0][:, 0])
            axes.scatter(*x.T, c=hue, cmap=WHEEL, s=1.5, linewidths=0)
            axes.set(xlim=(-3.4, 3.4), ylim=(-3.4, 3.4), xticks=[], yticks=[], aspect="equal")
            axes.spines[:].set_visible(False)
            if title == "forward":
                axes.set_title(f"t = {t:g}", fontsize=10, color=INK)
        axes_row[0].set_ylabel(title, fontsize=10, color=INK)
    return figure


def _down(process: sd.SDE, noise: torch.Tensor, solver: sd.Solver, times: list[float]) -> torch.Tensor:
    """The states at falling times, in rising order."""
    return sd.solve(process, noise, solver=solver, grid=sd.grids.LogSNR(400), save_at=times, seed=3).xs.flip(0)


def identity() -> Figure:
    """Forward drift, backward drift and their sum, the Langevin drift, over the density at one time."""
    sde, data, t = sd.VP(), sd.densities.ring(5, radius=1.8, std=0.2), 0.12
    score = sd.ExactScore(sde, data)
    back = sde.reverse(score)
    fine, coarse = (_square(k, 2.6) for k in (220, 17))
    forward = sde.drift(coarse, t)
    backward = -back.drift(coarse, t)  # in its own, rising time
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    panels = {"forward: f": forward, "backward: −f + g²s": backward, "sum: g²s, Langevin dynamics": forward + backward}
    density = score.log_prob(fine, t).exp().reshape(220, 220)
    for axes, (title, field) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.contourf(density, levels=9, extent=(-2.6, 2.6, -2.6, 2.6), cmap="Blues", alpha=0.8)
        length = field.norm(dim=1, keepdim=True)
        arrows = field / length.clamp_min(1e-9) * length.clamp_max(4.0)  # where there is no density, far longer ones
        colour = WARM if title.startswith("sum") else INK
        axes.quiver(*coarse.T, *arrows.T, color=colour, width=0.005, scale=14, scale_units="xy", angles="xy")
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.set_title(title, fontsize=10, color=INK)
    return figure


def learned_ring(steps: int = 2000) -> tuple[sd.SDE, sd.densities.Density, sd.Score]:
    """A ring, and a score that has not learned it for long."""
    sde, data = sd.VP(), sd.densities.ring(8)
    torch.manual_seed(0)
    net = sd.NoisePrediction(sde, sd.networks.MLP(2, width=48, depth=2))
    return sde, data, sd.training.fit(net, data.sample(8000, seed=0), steps=steps, seed=0, progress=False).score


def score_error() -> Figure:
    """How far the learned score is from the truth by t, enclosed by held-out data alone."""
    sde, data, score = learned_ring()
    return sd.verify.check_score(score, sde, data=data.sample(6000, seed=1), n=4000).plot_errors()


def error_parts() -> Figure:
    """What a sampler's error is made of."""
    sde, data, score = learned_ring()
    return sd.verify.error_budget(score, sde, data, sd.EulerMaruyama(), steps=60, n=2000).plot()


def chain_to_sde() -> None:
    """The picture of examples/ddpm_chain.py: chains against the number of their steps."""
    runpy.run_path(str(EXAMPLES / "ddpm_chain.py"))["main"](out=str(FOLDER / "chain_to_sde.png"))
    _shrink(FOLDER / "chain_to_sde.png")


def _square(k: int, half: float) -> torch.Tensor:
    ticks = torch.linspace(-half, half, k, dtype=torch.float64)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x.reshape(-1), y.reshape(-1)], 1)


def save(figure: Figure, path: Path) -> None:
    """As PNG with a palette of 128 colours, below the limit."""
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100, facecolor="white")
    _shrink(path)


def _shrink(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB").quantize(128).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.name:24} {size / 1000:.0f} KB")
    assert size < LIMIT, f"{path} has {size} bytes"


if __name__ == "__main__":
    matplotlib.use("Agg")
    save(there_and_back(), FOLDER / "there_and_back.png")
    save(identity(), FOLDER / "identity.png")
    save(score_error(), FOLDER / "score_error.png")
    save(error_parts(), FOLDER / "error_parts.png")
    chain_to_sde()
