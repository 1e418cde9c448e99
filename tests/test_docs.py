"""The documentation runs: every Python block, every output it shows, every link and name in it.

Blocks of one file share a namespace and run in order. A ``text`` block directly below a Python block is what that block
prints. A comment ``<!-- recipe: name, at most N lines -->`` above a block bounds the length of the code in it.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer

import sdediff as sd
from sdediff.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
RECIPE = re.compile(r"<!-- recipe: (.+), at most (\d+) lines -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it starts on, and what stands just above and below."""

    language: str
    text: str
    line: int
    above: str
    below: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for m in FENCE.finditer(text):
        found.append(Block(m[1], m[2], text.count("\n", 0, m.start(2)), text[: m.start()], text[m.end() :]))
    return found


def shown_output(block: Block) -> str | None:
    """What the page says that this block prints."""
    m = re.match(r"\s*^```text\n(.*?)^```$", block.below, re.M | re.S)
    return None if m is None else m[1]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_python_block_runs_and_prints_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    torch.manual_seed(0)
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language != "python":
            continue
        printed = io.StringIO()
        code = compile("\n" * block.line + block.text, name(page), "exec")  # tracebacks point into the page
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        expected = shown_output(block)
        if expected is not None:
            assert printed.getvalue() == expected, f"{name(page)}, line {block.line}"


def command_lines() -> list[str]:
    """The calls of sdediff on all pages."""
    shell = [block.text for page in PAGES for block in blocks(page) if block.language == "sh"]
    return [line for text in shell for line in text.splitlines() if line.startswith("sdediff ")]


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_are_understood(line):
    _, command, *arguments = shlex.split(line, comments=True)
    known = typer.main.get_command(app).commands
    known[command].make_context(command, arguments)  # parses, and raises on what it does not know


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_targets_of_make_exist(page):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    shell = "\n".join(block.text for block in blocks(page) if block.language == "sh")
    assert set(re.findall(r"^make ([a-z]+)|`make ([a-z]+)`", shell + prose(page), re.M)) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        destination = (page.parent / path).resolve() if path else page
        assert destination.exists(), f"{name(page)} links to {target}"
        if anchor:
            assert anchor in headings(destination), f"{name(page)}: no heading #{anchor} in {name(destination)}"


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_in_the_prose_exist(page):
    for dotted in sorted(set(re.findall(r"`sd\.([A-Za-z_][\w.]*)", prose(page)))):
        value = sd
        for part in dotted.rstrip(".").split("."):
            assert hasattr(value, part), f"{name(page)} speaks of sd.{dotted}"
            value = getattr(value, part)


def test_every_public_name_is_documented():
    spoken_of = " ".join(page.read_text() for page in PAGES)
    missing = [public for public in sd.__all__ if not re.search(rf"\b{public}\b", spoken_of)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tables_and_formulas_render(page):
    rows: list[int] = []
    for line in [*prose(page).splitlines(), ""]:
        if line.startswith("|"):
            rows.append(len(re.findall(r"(?<!\\)\|", line)))
        elif rows:
            assert len(rows) > 2 and len(set(rows)) == 1, f"{name(page)}: a table has rows of unequal length, {rows}"
            rows = []
    for line in prose(page).splitlines():
        plain = re.sub(r"`[^`]*`", "", line)
        assert plain.count("$") % 2 == 0, f"{name(page)}: unbalanced $ in {line!r}"
        for formula in re.findall(r"\$([^$]+)\$", plain):  # Markdown eats a backslash before punctuation
            assert not re.search(r"\\[^A-Za-z]", formula), f"{name(page)}: write {formula!r} in a math block"
            assert not re.search(r"[^\w\\]_", formula), f"{name(page)}: {formula!r} has the _ of an emphasis"


def recipes() -> dict[str, tuple[int, Block]]:
    found = {}
    for block in blocks(ROOT / "docs" / "extending.md"):
        m = RECIPE.search(block.above)
        if m:
            found[m[1]] = int(m[2]), block
    return found


def test_recipes_are_as_short_as_promised():
    promised = {what: limit for what, (limit, _) in recipes().items()}
    assert promised["a process"] == 5 and promised["a solver"] == 10
    for what, (limit, block) in recipes().items():
        definitions = [node for node in ast.parse(block.text).body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
        assert definitions, f"the recipe for {what} defines nothing"
        lines = block.text.splitlines()
        code = [line for node in definitions for line in lines[node.lineno - 1 : node.end_lineno] if line.strip()]
        assert len(code) <= limit, f"the recipe for {what} takes {len(code)} lines"
        assert "regist" not in block.text
