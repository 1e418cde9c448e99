"""Pictures: that they show the numbers they were given, where they should be."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from PIL import Image

import sdediff as sd
from sdediff import plot
from sdediff.plot.images import tiled
from sdediff.plot.plane import around, mass_levels, mesh

F64 = torch.float64
RING = sd.densities.ring(4)
SCORE = sd.ExactScore(sd.VP(), RING)


def only(figure: Figure, kind: type) -> object:
    """The one artist of this kind in the figure's one panel."""
    (ax,) = figure.axes
    found = [artist for artist in ax.get_children() if isinstance(artist, kind)]
    assert len(found) == 1, found
    return found[0]


def offsets(ax, index: int = 0) -> np.ndarray:
    return [c for c in ax.collections if type(c) is PathCollection][index].get_offsets()


def run(steps: int = 5, n: int = 50, event: tuple[int, ...] = (2,)) -> SimpleNamespace:
    """Saved states of a made-up solve: particles that drift to the right."""
    x = torch.randn(n, *event, generator=torch.Generator().manual_seed(0))
    ts = torch.linspace(1.0, 0.001, steps, dtype=F64)
    return SimpleNamespace(ts=ts, xs=torch.stack([x + 4 * (1 - t) for t in ts.tolist()]))


# ---- densities --------------------------------------------------------------------------------------------------


def test_contours_hold_the_mass_that_they_claim():
    """For a Gaussian on the plane, the share q of the mass lies where p > (1 - q) p_max, within a radius √(-2 log(1 - q))."""
    at = mesh((-6.0, 6.0, -6.0, 6.0), 400)[2]
    levels = mass_levels((-0.5 * at.square().sum(1)).exp().reshape(400, 400), (0.9, 0.5))
    assert levels[:2] == pytest.approx([0.1, 0.5], abs=2e-3) and levels[2] == pytest.approx(1, abs=2e-3)

    figure = plot.density(sd.densities.gaussian((1.0, 2.0), 0.5))
    contours = only(figure, QuadContourSet)
    assert len(contours.get_paths()) == 6  # one band per share of the mass
    outermost = contours.get_paths()[0].vertices
    radius = np.hypot(outermost[:, 0] - 1, outermost[:, 1] - 2).max()
    assert radius == pytest.approx(0.5 * math.sqrt(-2 * math.log(0.01)), rel=0.01)
    (ax,) = figure.axes
    assert ax.get_aspect() == 1.0
    darkness = contours.get_facecolors()[:, :3].sum(1)
    assert (np.diff(darkness) < 0).all()  # the densest is the darkest


def test_density_at_a_time_is_that_of_p_t():
    ends = [only(plot.density(SCORE, t=t, extent=(-4, 4, -4, 4)), QuadContourSet) for t in (0.01, 1.0)]
    reach = [np.abs(c.get_paths()[0].vertices).max() for c in ends]
    assert reach[0] < 2.5 < 2.8 < reach[1] < 3.3  # modes at radius 2 with std 0.1, then N(0, I)
    assert plot.density(SCORE, t=0.5).axes[0].get_title(loc="left") == "t = 0.5"
    assert plot.density(SCORE, t=0.5, title="mine").axes[0].get_title(loc="left") == "mine"


def test_a_flat_density_is_one_full_band():
    contours = only(plot.density(sd.densities.Checkerboard(), extent=(-2.5, 2.5, -2.5, 2.5)), QuadContourSet)
    assert len(contours.get_paths()) == 1
    inside = contours.get_paths()[0]
    assert inside.contains_point((-1.5, -1.5)) and not inside.contains_point((-0.5, -1.5))


def test_density_on_the_line_is_its_graph():
    law = sd.densities.bimodal()
    figure = plot.density(law)
    (ax,) = figure.axes
    x, p = ax.lines[0].get_data()
    assert p == pytest.approx(law.log_prob(torch.tensor(x)).exp().numpy())
    assert np.sum(p) * (x[1] - x[0]) == pytest.approx(1, abs=1e-3)
    figure = plot.samples(law.sample(5000, seed=0), law)
    bars = figure.axes[0].patches
    assert sum(b.get_width() * b.get_height() for b in bars) == pytest.approx(1)
    assert len(figure.axes[0].lines) == 1


def test_the_frame_holds_the_samples():
    x = RING.sample(5000, seed=0).double()
    left, right, bottom, top = around(x)
    assert right - left == pytest.approx(top - bottom)
    shown = ((x > torch.tensor([left, bottom])) & (x < torch.tensor([right, top]))).all(1)
    assert shown.all()
    far = torch.cat([x, torch.tensor([[1e6, 0.0]]), torch.tensor([[math.nan, 0.0]])])
    assert around(far)[1] < 4  # one that ran away does not blow up the picture


# ---- fields, samples --------------------------------------------------------------------------------------------


def test_arrows_point_where_the_field_does():
    def field(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([-x[:, 1], 4 * x[:, 0]], 1)

    figure = plot.vector_field(field, extent=(-2, 2, -1, 3), arrows=10)
    quiver = only(figure, Quiver)
    at = torch.tensor(quiver.get_offsets())
    assert len(at) == 100 and at[:, 0].min() == pytest.approx(-1.8) and at[:, 1].max() == pytest.approx(2.8)
    arrows, exact = torch.tensor(np.stack([quiver.U, quiver.V], 1)), field(at)
    cosine = torch.nn.functional.cosine_similarity(arrows, exact)
    assert cosine.min() > 1 - 1e-9
    assert arrows.norm(dim=1).max() == pytest.approx(1.4 * 0.4)  # 1.4 gaps
    ratio = arrows.norm(dim=1).square() / exact.norm(dim=1)
    assert ratio.max() / ratio.min() == pytest.approx(1)  # lengths go with the square root
    behind = plot.vector_field(lambda x: SCORE(x, 0.2), SCORE, t=0.2)
    only(behind, QuadContourSet)
    assert len(only(behind, Quiver).U) == 22**2


def test_samples_are_where_they_are():
    x = RING.sample(300, seed=0)
    figure = plot.samples(x, RING, colour=x[:, 0])
    only(figure, QuadContourSet)
    dots = only(figure, PathCollection)
    assert np.asarray(dots.get_offsets()) == pytest.approx(x.numpy())
    assert np.asarray(dots.get_array()) == pytest.approx(x[:, 0].numpy())


def test_every_panel_function_draws_where_it_is_told():
    figure, axes = plot.canvas(10, 5, 2, 3)
    sol = run()
    drawn = [
        plot.density(RING, ax=axes[0]),
        plot.vector_field(RING.score, RING, ax=axes[1]),
        plot.samples(RING.sample(10, seed=0), ax=axes[2]),
        plot.trajectories(sol, ax=axes[3]),
        plot.image_sheet(torch.rand(4, 5, 5), ax=axes[4]),
        plot.solver_table([("a", 1, 1.0)], ax=axes[5]),
    ]
    assert all(result is figure for result in drawn) and len(figure.axes) == 6
    assert all(ax.has_data() for ax in axes)


# ---- through time -----------------------------------------------------------------------------------------------


def test_snapshots_of_particles():
    sol = run(steps=9)
    figure = plot.particles(sol, SCORE, panels=5, title="drifting")
    assert [ax.get_title(loc="left") for ax in figure.axes] == [f"t = {float(sol.ts[k]):.3g}" for k in (0, 2, 4, 6, 8)]
    for ax, k in zip(figure.axes, (0, 2, 4, 6, 8), strict=True):
        assert np.asarray(offsets(ax)) == pytest.approx(sol.xs[k].numpy(), rel=1e-6)
        assert any(isinstance(c, QuadContourSet) for c in ax.get_children())
        assert ax.get_xlim() == figure.axes[0].get_xlim()  # one frame for all
    assert figure.get_suptitle() == "drifting"
    bare = plot.particles(sol)
    assert len(bare.axes) == 6 and not any(isinstance(c, QuadContourSet) for c in bare.axes[0].get_children())


def test_particles_of_an_exploding_process_are_framed_one_by_one():
    xs = torch.stack([s * torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) for s in (0.5, 5.0, 50.0)])
    figure = plot.particles(SimpleNamespace(ts=torch.tensor([0.0, 0.5, 1.0]), xs=xs))
    widths = [ax.get_xlim()[1] - ax.get_xlim()[0] for ax in figure.axes]
    assert widths[2] == pytest.approx(100 * widths[0], rel=1e-3)


def test_a_real_solution_can_be_drawn():
    x = SCORE.sample(64, 1.0, seed=0)
    flow = sd.VP().probability_flow(SCORE)
    sol = sd.solve(flow, x, solver=sd.Heun(), steps=20, t0=1.0, t1=0.01, save_at=[1.0, 0.5, 0.01])
    figure = plot.particles(sol, SCORE)
    assert np.asarray(offsets(figure.axes[-1])) == pytest.approx(sol.x.numpy())


def test_paths_in_the_plane():
    sol = run(steps=7)
    figure = plot.trajectories(sol, SCORE, count=12)
    lines = only(figure, LineCollection).get_segments()
    assert len(lines) == 12 and np.asarray(lines) == pytest.approx(sol.xs[:, :12].transpose(0, 1).numpy(), rel=1e-6)
    (ax,) = figure.axes
    assert np.asarray(offsets(ax, 0)) == pytest.approx(sol.xs[0, :12].numpy(), rel=1e-6)
    assert np.asarray(offsets(ax, 1)) == pytest.approx(sol.xs[-1, :12].numpy(), rel=1e-6)


@pytest.mark.parametrize("event", [(), (1,)])
def test_paths_on_the_line_over_the_law(event):
    law = sd.densities.Mixture(torch.full((1, *event), 3.0), std=0.05)
    score = sd.ExactScore(sd.VP(), law)
    sol = run(steps=30, event=event)
    figure = plot.trajectories(sol, score, count=5)
    lines = np.asarray(only(figure, LineCollection).get_segments())
    assert lines[:, :, 0] == pytest.approx(np.tile(sol.ts.numpy(), (5, 1)))
    assert lines[:, :, 1] == pytest.approx(sol.xs.reshape(30, -1)[:, :5].T.numpy(), rel=1e-6)
    (ax,) = figure.axes
    assert ax.get_xlim() == (1.0, 0.001)  # time runs the way of the solve
    image = ax.images[0]
    assert image.origin == "lower"
    left, right, bottom, top = image.get_extent()
    assert (left, right) == (1.0, 0.001)
    heights = np.linspace(bottom, top, image.get_array().shape[0])
    ridge = heights[image.get_array().argmax(0)]  # the top of p_t at each time: alpha(t) 3
    times = np.linspace(left, right, len(ridge))
    assert ridge == pytest.approx([3 * float(sd.VP().alpha(t)) for t in times], abs=0.05)


# ---- images, tables ---------------------------------------------------------------------------------------------


def test_a_sheet_shows_each_image_in_its_place():
    images = torch.arange(5, dtype=F64).reshape(5, 1, 1, 1).expand(5, 1, 32, 16)
    sheet = tiled(images, 3)
    assert sheet.shape == (2 * 32 + 2, 3 * 16 + 2 * 2)
    for k in range(5):
        i, j = (k // 3) * 34, (k % 3) * 18
        assert (sheet[i : i + 32, j : j + 16] == k / 4).all()
    assert (sheet[32:34] == 1).all() and (sheet[34:, 36:] == 1).all()  # gaps and the empty place are white
    figure = plot.image_sheet(images, columns=3, low=0, high=8)
    shown = figure.axes[0].images[0]
    assert shown.get_array()[0, 18] == pytest.approx(1 / 8) and shown.get_interpolation() == "nearest"
    colour = torch.zeros(2, 3, 4, 4)
    colour[1, 2] = 1.0
    sheet = tiled(colour, 2)
    assert sheet.shape == (4, 9, 3) and sheet[0, 5].tolist() == [0, 0, 1] and sheet[0, 4].tolist() == [1, 1, 1]
    assert len(plot.image_sheet(torch.rand(7, 8, 8)).axes[0].images[0].get_array()) == 3 * 9 - 1  # 3 by 3
    broken = torch.tensor([[[0.0, math.nan], [1.0, 0.5]]])
    assert tiled(broken, 1).isfinite().all()


def test_the_table_of_solvers():
    rows = [("Euler", 10, 0.5), ("Heun", 10, 0.7), ("Heun", 50, 0.02), ("Euler", 50, 0.1), ("fast", 10, 0.01)]
    figure = plot.solver_table(rows, floor=0.003, quantity="error in W2")
    (ax,) = figure.axes
    # best at its largest budget first; those with a smaller budget last
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Heun", "Euler", "fast"]
    assert np.asarray(offsets(ax, 0)).tolist() == [[0.5, 1], [0.7, 0], [0.01, 2]]
    assert np.asarray(offsets(ax, 1)).tolist() == [[0.02, 0], [0.1, 1]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["10", "50"]
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "error in W2" and ax.yaxis_inverted()
    assert any(line.get_xdata()[0] == 0.003 for line in ax.lines)
    figure.canvas.draw()
    labels = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert not any(a.overlaps(b) for i, a in enumerate(labels) for b in labels[:i])
    assert all(label.x1 < ax.get_window_extent().x0 for label in labels)
    assert ax.get_legend().get_window_extent().x0 > ax.get_window_extent().x1


# ---- the animation ----------------------------------------------------------------------------------------------


def test_gif_runs_there_and_back(tmp_path):
    away, back = run(steps=12, n=200), run(steps=30, n=200)
    away = SimpleNamespace(ts=away.ts.flip(0), xs=away.xs.flip(0))
    hue = [away.xs[0, :, 0], back.xs[0, :, 0]]
    path = plot.gif(
        [away, back], tmp_path / "new" / "a.gif", titles=["away", "back"], colours=hue, frames=20, pixels=160
    )
    with Image.open(path) as picture:
        assert picture.n_frames == 5 + 14 and picture.size == (160, 170)
        assert picture.info["loop"] == 0  # for ever
        durations, centres = [], []
        for k in range(picture.n_frames):
            picture.seek(k)
            durations.append(picture.info["duration"])
            pixels = np.asarray(picture.convert("RGB"))[20:165, 5:155].min(2)
            assert pixels.max() == 255  # paper is white
            centres.append(np.nonzero(pixels < 200)[1].mean())
    assert durations[4] == durations[18] > 7 * durations[0]  # each end is held
    assert path.stat().st_size < 100_000
    # the particles stand right at t = 0.001 and left at t = 1: away goes left, back goes right
    assert centres[0] - centres[4] > 30 and centres[18] - centres[5] > 30
    assert np.all(np.diff(centres[5:]) > 0)


def test_gif_with_the_law_behind_stays_small(tmp_path):
    x = SCORE.sample(2000, 1.0, seed=0)
    times = torch.linspace(1, 0.001, 60).tolist()
    sol = sd.solve(
        sd.VP().reverse(SCORE), x, solver=sd.EulerMaruyama(), steps=200, t0=1.0, t1=0.001, save_at=times, seed=0
    )
    path = plot.gif(sol, tmp_path / "b.gif", SCORE, frames=24)
    assert 50_000 < path.stat().st_size < 24 / 60 * 2_000_000
    with Image.open(path) as picture:
        assert picture.n_frames == 24
        first = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(first, axis=0)) > 8  # bands of p_t, not just dots


# ---- behaviour --------------------------------------------------------------------------------------------------


def test_matplotlib_waits_until_it_is_needed_and_no_window_is_opened():
    code = (
        "import sys, sdediff as sd; assert 'matplotlib' not in sys.modules;"
        "sd.plot.density(sd.densities.ring(3)).savefig('/dev/null', format='png');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wrong_arguments_are_named():
    sol = run()
    for wrong, message in [
        (lambda: plot.density(SCORE), "say at which"),
        (lambda: plot.density(RING, t=0.3), "ExactScore"),
        (lambda: plot.density(sd.densities.Funnel(3)), r"\(2,\)"),
        (lambda: plot.vector_field(RING.score), "extent"),
        (lambda: plot.vector_field(lambda x: x[:, 0], RING), "must be equal"),
        (lambda: plot.samples(torch.zeros(4, 3)), r"\(2,\)"),
        (lambda: plot.samples(torch.full((4, 2), math.nan)), "finite"),
        (lambda: plot.trajectories(run(steps=1)), "two saved times"),
        (lambda: plot.particles(SimpleNamespace(ts=sol.ts[:2], xs=sol.xs)), r"\(S, B, 2\)"),
        (lambda: plot.image_sheet(torch.rand(4, 2, 5, 5)), "must be"),
        (lambda: plot.solver_table([("a", 1, -1.0)]), "positive"),
        (lambda: plot.solver_table([]), "positive"),
        (lambda: plot.gif(run(steps=1), "x.gif"), "save_at"),
        (lambda: plot.gif([sol, sol], "x.gif", titles=["one"]), "one per run"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
