"""Tables and plots of the results, and docs/benchmarks.md around them. No number is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "benchmarks"


def render() -> Path:
    """Write the page from the JSON files in docs/benchmarks/."""
    held = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in OUT.glob("*.json")}
    parts = [_HEAD, _machine(held["machine"])]
    for name, part in (
        ("precision", _precision),
        ("flows", _flows),
        ("overhead", _overhead),
        ("scaling", _scaling),
        ("orders", _orders),
        ("choices", _choices),
    ):
        if name in held:
            parts.append(part(held[name]))
    page = ROOT / "docs" / "benchmarks.md"
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


_HEAD = """# Benchmarks

Rendered by `make bench` from the JSON files beside the pictures. Machines are shared and noisy: errors and evaluations are
exact, times are lower quartiles over interleaved rounds and mean something as ratios within one run.
"""


def _machine(m: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in m["versions"].items())
    where = f"{m['processor']}, {m['cores']} cores, {m['torch threads']} torch threads, Python {m['python']}"
    return f"Run on {where}; {versions}.\n"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(_cell(v) for v in row) + " |" for row in rows)]) + "\n"


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _precision(data: dict[str, Any]) -> str:
    rows = data["rows"]
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    axes.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    names = list(dict.fromkeys((r["library"], r["solver"]) for r in rows))
    for library, solver in names:
        best: dict[int, float] = {}
        for r in rows:
            if (r["library"], r["solver"]) == (library, solver) and r["median"] == r["median"]:
                best[r["nfe"]] = min(r["median"], best.get(r["nfe"], float("inf")))
        points = sorted(best.items())
        ours = library == "sdediff"
        axes.loglog(
            *zip(*points, strict=True),
            "o-" if ours else "s--",
            lw=1.6 if ours else 1,
            ms=4,
            label=f"{solver} ({library})",
        )
    axes.set(xlabel="evaluations of the score", ylabel="median error against the exact flow")
    axes.set_title("Flow of an uneven ring, noise level 157 to 0.01; best grid of each solver")
    axes.set_ylim(top=2.0)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.grid(alpha=0.3, which="both")
    figure.savefig(OUT / "precision.png", dpi=90)
    plt.close(figure)
    tables = []
    for budget in sorted({r["nfe"] for r in rows if r["solver"].startswith("ExponentialAdams (")}):
        near = sorted(
            (r for r in rows if abs(r["nfe"] - budget) <= 0.2 * budget and r["median"] == r["median"]),
            key=lambda r: r["median"],
        )
        shown = [r for r in near if r["library"] == "sdediff"][:6] + [r for r in near if r["library"] != "sdediff"][:4]
        head = ["library", "solver", "grid", "evaluations", "median", "90th percentile", "rms"]
        body = [[r["library"], r["solver"], r["grid"], r["nfe"], r["median"], r["p90"], r["rms"]] for r in shown]
        tables.append(f"### About {budget} evaluations\n\n" + _table(head, body))
    adapted = [r for r in rows if "pilot evaluations" in r]
    pilot = _table(
        ["solver", "evaluations", "pilot evaluations in all", "pilot seconds"],
        [[r["solver"], r["nfe"], r["pilot evaluations"], r["pilot seconds"]] for r in adapted],
    )
    others = _table(
        ["seed of the starts", "evaluations", "ExponentialAdams", "diffusers' best"],
        [[r["seed"], r["nfe"], r["sdediff"], r["diffusers"]] for r in data["other starts"]],
    )
    noisy = _table(
        ["library", "solver", "grid", "evaluations", "relative error of the standard deviation"],
        [[r["library"], r["solver"], r["grid"], r["nfe"], r["std error"]] for r in data["stochastic"]],
    )
    return (
        f"## Work and precision\n\nError of {data['starts']} samples against the exact flow.\n\n"
        + "![precision](benchmarks/precision.png)\n\n"
        + "\n".join(tables)
        + "\nWhat it took to adapt the grids, on starts that are not among those compared:\n\n"
        + pilot
        + "\n### From other starts\n\nMedians on log-SNR nodes, and of the best scheduler of each budget.\n\n"
        + others
        + "\n### Stochastic solvers\n\nη = 1, data N(1, ¼), between the same noise levels; exact, by linearity.\n\n"
        + noisy
    )


def _flows(data: dict[str, Any]) -> str:
    rows = data["rows"]
    densities, processes = (list(dict.fromkeys(r[key] for r in rows)) for key in ("density", "process"))
    for key, label, name in (("nfe", "evaluations", "flows"), ("seconds", "seconds", "flows-time")):
        figure, axes = plt.subplots(
            len(densities), len(processes), figsize=(12, 9), layout="constrained", squeeze=False, sharey="row"
        )
        handles: dict[str, Any] = {}
        for i, density in enumerate(densities):
            for j, process in enumerate(processes):
                part = [r for r in rows if (r["density"], r["process"]) == (density, process)]
                handles |= _curves(axes[i][j], part, key)
                axes[i][j].set_title(f"{density}, {process}", fontsize=9)
                axes[i][j].grid(alpha=0.3)
        figure.supxlabel(label)
        figure.supylabel("median error against the exact flow")
        figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=8)
        figure.savefig(OUT / f"{name}.png", dpi=90)
        plt.close(figure)
    head = ["density", "process", "library", "solver", "evaluations", "median", "milliseconds"]
    body = []
    for density in densities:
        for process in processes:
            near = [r for r in rows if (r["density"], r["process"]) == (density, process) and r["nfe"] <= 26]
            best = {lib: min((r for r in near if r["library"] == lib), key=lambda r: r["median"], default=None)
                    for lib in dict.fromkeys(r["library"] for r in rows)}  # fmt: skip
            for r in filter(None, best.values()):
                body.append([density, process, r["library"], r["solver"], r["nfe"], r["median"], 1000 * r["seconds"]])
    return (
        f"## Densities and processes\n\nFlows of {data['starts']} samples; fixed steps uniform in log SNR, the others by "
        "tolerance (their evaluations are means over the samples).\n\n![flows](benchmarks/flows.png)\n\n"
        "The same against time:\n\n![flows against time](benchmarks/flows-time.png)\n\n"
        "The best of each library with at most 26 evaluations:\n\n" + _table(head, body)
    )


def _curves(axes: Any, rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """One line for each solver; ours solid, each solver of its own colour."""
    names = list(dict.fromkeys((r["library"], r["solver"]) for r in rows))
    handles = {}
    for k, (library, solver) in enumerate(names):
        points = sorted((r[key], r["median"]) for r in rows if (r["library"], r["solver"]) == (library, solver))
        style = "o-" if library == "sdediff" else "s--"
        colour = plt.get_cmap("tab20").colors[k]
        (handles[f"{solver} ({library})"],) = axes.loglog(*zip(*points, strict=True), style, color=colour, ms=3, lw=1.2)
    return handles


def _overhead(data: dict[str, Any]) -> str:
    names = list(data["rows"][0]["us per step"])
    each = _table(["batch", *names], [[r["batch"], *(r["us per step"][n] for n in names)] for r in data["rows"]])
    ratio = _table(["batch", *names], [[r["batch"], *(r["ratio to floor"][n] for n in names)] for r in data["rows"]])
    net = data["network"]
    shares = _table(["solver", "time outside / inside"], [[r["solver"], r["outside / inside"]] for r in net["rows"]])
    return (
        "## Overhead of a step\n\nEuler–Maruyama on the reversed VP ring with the exact score. The floor is the same score as "
        "a bare closure plus `randn`, on the states visited.\n\nMicroseconds a step:\n\n"
        + each + "\nAs ratios to the floor:\n\n" + ratio
        + f"\nWith a U-Net of {net['parameters']:,} parameters at 3 × 32 × 32, batch 16, ten steps:\n\n" + shares
    )  # fmt: skip


def _scaling(data: dict[str, Any]) -> str:
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for ax, key in zip(axes, ("batch", "steps", "dimension"), strict=True):
        ax.loglog([r[key] for r in data[key]], [r["us per step"] for r in data[key]], "o-")
        ax.set(xlabel=key, ylabel="µs a step")
        ax.grid(alpha=0.3, which="both")
    figure.savefig(OUT / "scaling.png", dpi=90)
    plt.close(figure)
    rows = [r for key in ("batch", "steps", "dimension") for r in data[key]]
    head = ["batch", "steps", "dimension", "us per step", "ns per number"]
    table = _table(head, [[r[h] for h in head] for r in rows])
    memory = ["samples", "steps", "seconds", "peak MiB", "grown MiB"]
    return (
        "## Growth\n\n![scaling](benchmarks/scaling.png)\n\n" + table
        + "\nMany samples, in batches of 2¹⁸, each in a process of its own:\n\n"
        + _table(memory, [[r[h] for h in memory] for r in data["memory"]])
    )  # fmt: skip


def _orders(data: dict[str, Any]) -> str:
    kinds = ("ODE", "strong", "weak")
    figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
    for ax, kind in zip(axes, kinds, strict=True):
        for r in (r for r in data["rows"] if r["kind"] == kind):
            ax.loglog(r["steps"], r["errors"], "o-", ms=3, label=r["solver"])
        ax.set(xlabel="steps", ylabel="error", title=kind)
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize=6)
    figure.savefig(OUT / "orders.png", dpi=90)
    plt.close(figure)
    head = ["solver", "kind", "order claimed", "slope of the last doubling"]
    body = [[r["solver"], r["kind"], r["claimed"], f"{r['slope']:.2f}"] for r in data["rows"]]
    return "## Orders of convergence\n\n![orders](benchmarks/orders.png)\n\n" + _table(head, body)


def _choices(data: dict[str, Any]) -> str:
    body = [[r["of"], r["way"], r["us"]] for r in data["rows"]]
    where = f"{data['batch']:,} points, {data['modes']} modes"
    return f"\n## Choices\n\nMicroseconds a call, {where}.\n\n" + _table(["of", "way", "µs"], body)
