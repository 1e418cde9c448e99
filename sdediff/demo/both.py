"""Both parts, the results and the report."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from .chapter import Effort
from .digits import Digits, digits_chapter
from .page import page
from .ring import ring_chapter

FULL = Effort(
    particles=2000,
    frames=64,
    checked=20_000,
    steps=5000,
    width=256,
    depth=3,
    samples=1438,
    budgets=(25, 50, 100, 200),
    tolerances=(1e-2, 1e-3, 1e-4),
    grid=300,
    dpi=150,
)
"""What ``make demo`` does: about two minutes on two cores."""

QUICK = Effort(
    particles=300,
    frames=8,
    checked=2_000,
    steps=60,
    width=32,
    depth=1,
    samples=100,
    budgets=(10, 100),
    tolerances=(1e-2,),
    grid=40,
    dpi=50,
)
"""For tests: the same in seconds, with a network that has learned nothing yet."""


def run(out: Path, effort: Effort = FULL, *, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the demo.

    Args:
        out: an existing folder.
        effort: how much of everything.
        seed: of all random numbers.
        say: told what is going on.

    Returns:
        What ``results.json`` holds; ``["ring"]["identity"]["passed"]`` is the verdict.

    Raises:
        ImportError: scikit-learn is not there.
    """
    started = time.perf_counter()
    images = Digits.load(seed)  # first: to fail at once where scikit-learn is missing
    say("A ring with an exact score: forward, back, and the Langevin identity")
    ring, report = ring_chapter(out, effort, seed)
    say(f"{report}\n")
    digits = digits_chapter(images, out, effort, seed, say)
    results = {
        "sdediff": __version__,
        "versions": {name: _version(name) for name in ("torch", "numpy", "scipy", "scikit-learn", "matplotlib")},
        "python": platform.python_version(),
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "ring": ring.numbers,
        "digits": digits.numbers,
    }
    (out / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    title = "From noise to data, and the proof that it is right"
    lead = (
        "A forward SDE turns data into noise; its reversal, which needs only the score ∇log p, turns noise into data. First "
        "where the score is exact, then where it is learned."
    )
    text = page(title, lead, _facts(results), (ring, digits), results, out)
    (out / "report.html").write_text(text, encoding="utf-8")
    return results


def _facts(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What to see at once."""
    ring, digits = results["ring"], results["digits"]
    passed, floor = ring["identity"]["passed"], digits["floor"]["upper"]
    worst = max(row["measured"] for row in ring["identity"]["rows"] if row["p"] is None)
    best = min(digits["solvers"], key=lambda entry: entry["energy"])
    within = [entry for entry in digits["solvers"] if entry["energy"] <= floor]
    cheapest = min(within, key=lambda entry: entry["nfe"], default=None)
    facts = [
        ("PASS" if passed else "FAIL", "the Langevin identity, exactly and by particles", "good" if passed else "bad"),
        (f"{worst:.0e}", "largest residual of the identity, relative, in float64", ""),
        (f"{digits['train_seconds']:.0f} s", f"to learn the score of {digits['train']:,} digits", ""),
        (
            f"{best['energy']:.4f}",
            f"energy distance to unseen digits, by {best['solver']}; of random splits of real ones 95 % stay below {floor:.4f}",
            "",
        ),
    ]
    if cheapest is not None:
        what = f"score evaluations, and energy distance cannot tell {cheapest['solver']} from real digits"
        facts.append((f"{cheapest['nfe']:g}", what, ""))
    return [*facts, (f"{results['seconds']:.0f} s", "for all of this page", "")]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
