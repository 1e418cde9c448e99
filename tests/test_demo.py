"""The demo, at a size that takes seconds: its files, its numbers, and that it can fail."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sdediff as sd
from sdediff import demo, verify
from sdediff.cli import main
from sdediff.demo import QUICK, digits, ring
from sdediff.demo.digits import Digits
from sdediff.demo.page import table

PICTURES = {
    "ring_there_and_back.png", "ring_fields.png", "paths.png", "langevin_identity.png", "langevin_identity_report.png",
    "digits_samples.png", "digits_paths.png", "digits_nearest.png", "digits_solvers.png", "digits_loss.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that ``sdediff demo --quick`` fills by default, and what it printed."""
    folder, out = tmp_path_factory.mktemp("anywhere"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "stdout", out)
        assert main(["demo", "--quick", "--seed", "3"]) == 0
    return folder / "results/demo", out.getvalue()


@pytest.fixture(scope="module")
def results(shown: tuple[Path, str]) -> dict:
    return json.loads((shown[0] / "results.json").read_text())


def test_it_prints_the_verdict_and_where_the_pictures_are(shown: tuple[Path, str]) -> None:
    folder, printed = shown
    assert "PASS: all" in printed and "Langevin identity of VP" in printed
    assert str(folder / "report.html") in printed


def test_all_pictures_are_there_and_show_something(shown: tuple[Path, str]) -> None:
    assert {path.name for path in shown[0].glob("*.png")} == PICTURES
    for name in PICTURES:
        pixels = np.asarray(Image.open(shown[0] / name).convert("L"))
        assert pixels.std() > 5 and min(pixels.shape) > 80, name


def test_the_animation_moves_there_and_back(shown: tuple[Path, str]) -> None:
    with Image.open(shown[0] / "forward_and_back.gif") as picture:
        assert picture.n_frames >= QUICK.frames // 2
        frames = []
        for k in range(picture.n_frames):
            picture.seek(k)
            frames.append(np.asarray(picture.convert("L"), dtype=float))

    def apart(a: int, b: int) -> float:
        return float(np.abs(frames[a] - frames[b])[40:].mean())  # below the title

    middle = len(frames) // 2
    # It ends where it began, up to fresh particles, and is elsewhere half way.
    assert apart(0, -1) < 0.5 * apart(0, middle)


def test_the_table_tells_noise_from_digits(results: dict) -> None:
    """A network that has learned nothing is far above the noise floor; the training set itself is not."""
    found = results["digits"]
    assert (found["train"], found["test"]) == (1438, 359)
    assert -0.02 < found["floor"]["mean"] < found["floor"]["upper"] < 0.03
    assert all(entry["energy"] > 20 * found["floor"]["upper"] for entry in found["solvers"])
    assert all(entry["read"] < 0.5 for entry in found["solvers"])
    assert found["read_of_test"] > 0.97
    # The ideal denoiser gives training images back, nearer to them than any new digit is.
    assert found["ideal_denoiser"]["nearest"] < 0.6 * found["nearest_of_test"]
    assert found["ideal_denoiser"]["energy"] < 0.1 * min(entry["energy"] for entry in found["solvers"])


def test_costs_are_counted(results: dict) -> None:
    entries = results["digits"]["solvers"]
    nfe = {(entry["solver"], entry["setting"]): entry["nfe"] for entry in entries}
    assert nfe["EulerMaruyama", "10 steps"] == 10 and nfe["EulerMaruyama", "100 steps"] == 100
    assert nfe["PredictorCorrector", "50 steps"] == 100
    assert nfe["DPMSolverPP2M", "2 steps"] == 2
    assert {entry["kind"] for entry in entries if entry["solver"] == "EulerMaruyama"} == {"reverse SDE"}
    assert {entry["kind"] for entry in entries if entry["solver"].startswith(("Scipy", "DPM"))} == {"flow"}
    assert results["seed"] == 3
    assert results["versions"]["torch"] == torch.__version__ and results["sdediff"] == sd.__version__
    assert results["seconds"] > results["digits"]["seconds"] + results["ring"]["seconds"] - 1


def test_the_identity_is_in_the_results(results: dict) -> None:
    identity = results["ring"]["identity"]
    assert identity["passed"]
    exact = [row["measured"] for row in identity["rows"] if row["p"] is None]
    assert len(exact) >= 3 and max(exact) < 1e-9
    assert sum(row["p"] is not None for row in identity["rows"]) >= 4


class _Page(HTMLParser):
    """What a page refers to, and its images."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.alts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.links += [found[name] for name in ("src", "href", "srcset", "poster", "data") if name in found]
        if tag == "img":
            self.alts.append(found["alt"])
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_file(shown: tuple[Path, str]) -> None:
    text = (shown[0] / "report.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []  # every element is closed
    assert len(page.links) == 10 and all(page.alts)
    files = {path.read_bytes(): path.suffix[1:] for path in shown[0].iterdir() if path.suffix in (".png", ".gif")}
    for link in page.links:
        kind, data = re.fullmatch(r"data:image/(png|gif);base64,(.*)", link).groups()  # type: ignore[union-attr]
        assert files[base64.b64decode(data)] == kind
    assert not re.search(r"https?:|@import|url\(|<script|<link", text)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_the_numbers_of_the_report_are_those_of_the_results(shown: tuple[Path, str], results: dict) -> None:
    text = html.unescape((shown[0] / "report.html").read_text(encoding="utf-8"))
    assert json.dumps(results, indent=2, ensure_ascii=False) in text
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    for entry in results["digits"]["solvers"]:
        assert f"{entry['energy']:.4f}" in cells
    found = results["digits"]
    within = [
        entry for entry in (*found["solvers"], found["ideal_denoiser"]) if entry["energy"] <= found["floor"]["upper"]
    ]
    assert sum(cell.endswith("✓") for cell in cells) == len(within)
    for row in results["ring"]["identity"]["rows"]:
        assert row["what"] in cells
    assert cells.count("PASS") == len(results["ring"]["identity"]["rows"])


def test_a_failed_identity_fails_the_demo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a score that is wrong by a hundredth the report says FAIL and the exit code is 1."""
    law = sd.ExactScore(sd.VP(), sd.densities.ring(8).to(dtype=torch.float64))
    wrong = partial(verify.langevin_identity, score=lambda x, t: 1.01 * law(x, t), particles=False)
    monkeypatch.setattr(ring.verify, "langevin_identity", wrong)
    for name in ("_snapshots", "_animation", "_fields", "_identity", "_paths"):  # pictures are not the point
        monkeypatch.setattr(ring, name, lambda *_: None)
    seen = {}

    def chapter_alone(out: Path, effort: demo.Effort, *, seed: int, say: object) -> dict:
        chapter, _ = ring.ring_chapter(out, effort, seed)
        seen["verdict"] = chapter.blocks[-1]
        return {"seconds": 0.0, "ring": chapter.numbers}

    monkeypatch.setattr("sdediff.cli.demo.run", chapter_alone)
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    assert 'class="bad">FAIL' in seen["verdict"]


def test_without_scikit_learn_it_names_the_extra_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and seen.err.count("\n") == 1
    assert "pip install 'sdediff[train]'" in seen.err


def test_train_and_test_digits_are_different_ones() -> None:
    found = Digits.load(0)
    everything = torch.cat([found.train, found.test])
    assert everything.shape == (1797, 8, 8) and everything.dtype == torch.float32
    assert (float(everything.min()), float(everything.max())) == (-1, 1)
    assert len(torch.cat([found.train_labels, found.test_labels]).bincount()) == 10
    assert not torch.equal(found.test, Digits.load(1).test)
    # No image is in both parts: the data set has no duplicates.
    assert float(torch.cdist(found.test.flatten(1), found.train.flatten(1)).min()) > 0


def test_sheets_have_one_column_per_class() -> None:
    images, labels = torch.rand(30, 8, 8), torch.arange(30) % 10
    sheet = digits._by_class(images, labels, rows=4).reshape(4, 10, 8, 8)
    assert torch.equal(sheet[2, 7], images[27]) and torch.equal(sheet[0, 3], images[3])
    assert bool((sheet[3] == -1).all())


def test_a_table_escapes_and_colours() -> None:
    text = table(("a<b",), [("PASS",), ("1.0 ✓",), ("<script>",), ("FAIL",)], title="t & u", apart=1)
    assert "a&lt;b" in text and "&lt;script&gt;" in text and "t &amp; u" in text
    assert text.count('class="good"') == 2 and text.count('class="bad"') == 1
    assert '<tr class="apart"><td class="bad">FAIL' in text
