"""The pages are true: every Python block runs, every command parses, links lead somewhere, tables match the code."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stvl.cli.evaluate import WORDS
from stvl.cli.evaluate import arguments as word_arguments
from stvl.cli.main import COMMANDS
from stvl.core.axes import AXES
from stvl.data.toy import NOUNS, OPPOSITES, VERBS
from stvl.dist.mesh import RULES
from stvl.train.signals import Exit

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")])


def named(path: Path) -> str:
    """The page's name in test ids."""
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """(line, content) of the fenced blocks of a language."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n") + 1, match.group(1)) for match in found]


def run_blocks(page: Path) -> None:
    """Run the Python blocks of a page in order, in one namespace; tracebacks show the page's own lines."""
    # A module of its own: dataclasses look up the module in which they are defined.
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module
    for line, content in blocks(page.read_text(encoding="utf-8"), "python"):
        exec(compile("\n" * (line - 1) + content, str(page), "exec"), module.__dict__)


def commands(text: str) -> list[list[str]]:
    """The ``stvl ...`` lines of a page's shell blocks as words, comments left out."""
    lines = [line for _, block in blocks(text, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("stvl ")]


def table(page: str, first: str) -> list[list[str]]:
    """Rows of the Markdown table whose header starts with the column `first`, without backticks."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |")) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows


def layering() -> dict[str, frozenset[str]]:
    """The arrows of tests/test_layering.py."""
    spec = importlib.util.spec_from_file_location("stvl_arrows", ROOT / "tests/test_layering.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules["stvl_arrows"] = module
    spec.loader.exec_module(module)
    return module.ALLOWED


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_pages_hold_python():
    counts = {named(page): len(blocks(page.read_text(encoding="utf-8"), "python")) for page in PAGES}
    assert counts["README.md"] >= 2
    assert counts["docs/flax-nnx.md"] >= 3


@pytest.mark.parametrize(
    "name",
    [
        "docs/data.md",
        "docs/evaluation.md",
        "docs/architecture.md",
        "docs/rope.md",
        "docs/losses.md",
        "docs/weights.md",
    ],
)
def test_python_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(ROOT / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/flax-nnx.md", "docs/models.md"])
def test_python_blocks_with_a_model_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(ROOT / name)


def test_the_picture_is_what_its_page_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(ROOT / "docs/toy-world.md")
    kept = ROOT / "docs/images/toy-world.png"
    assert kept.stat().st_size < 150_000
    old, new = (
        np.asarray(Image.open(path), np.float32) for path in (kept, tmp_path / "docs/images/toy-world.png")
    )
    assert old.shape == new.shape
    # The font belongs to Pillow and may change with it; the scenes may not.
    changed = (np.abs(old - new).max(axis=-1) > 8).mean()
    assert changed < 0.02, (
        "the toy world has changed: run the last block of docs/toy-world.md from the top of the checkout"
    )


def test_the_toy_world_speaks_as_its_page_says():
    text = (ROOT / "docs/toy-world.md").read_text(encoding="utf-8")
    text = " ".join(text.split("## What is in it")[1].split("## ")[0].split())
    quoted = set(re.findall(r'"([^"]+)"', text))
    nouns = {phrase for noun in NOUNS for phrase in noun.phrases}
    told = {template.format(n="red ball") for verb in VERBS for _, template in verb.phrases}
    assert quoted <= nouns | told
    assert {noun.phrases[0] for noun in NOUNS} <= quoted
    assert f"**{len(NOUNS)} nouns**" in text and f"**{len(VERBS)} verbs**" in text
    assert len(OPPOSITES) == 10


def test_every_page_with_python_is_run():
    run = {
        "README.md",
        *(
            f"docs/{name}.md"
            for name in [
                "data",
                "evaluation",
                "architecture",
                "rope",
                "losses",
                "weights",
                "models",
                "flax-nnx",
                "toy-world",
            ]
        ),
    }
    assert {named(page) for page in PAGES if blocks(page.read_text(encoding="utf-8"), "python")} == run


def test_a_block_that_fails_names_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        run_blocks(page)
    assert caught.traceback[-1].lineno + 1 == 10


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_exist(page):
    for words in commands(page.read_text(encoding="utf-8")):
        name = " ".join(words[1:3]) if words[1] == "data" else words[1]
        assert name in COMMANDS, words
        if name == "eval" and words[2] in WORDS:
            fields = {option.replace("_", "-") for option in word_arguments(words[2])}
        else:
            fields = {field.name.replace("_", "-") for field in dataclasses.fields(arguments(name))}
        for word in words:
            if word.startswith("--"):
                assert word[2:].split(".")[0] in fields, f"{name} has no option {word}"


def arguments(name: str) -> type:
    """The dataclass of a command's options."""
    return importlib.import_module(COMMANDS[name][0]).Args


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target
    for path in re.findall(r"\b(?:bash|train) ((?:launch|configs)/[\w./]+)", text):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"`((?:stvl|tests|configs|launch|notebooks)/[\w./-]*\w)`", text):
        assert "<" in path or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_path_of_a_machine(page):
    assert not re.search(r"(?<![\w.])/(work|root|home|Users)/", page.read_text(encoding="utf-8"))


def test_readme_names_every_pair_of_opposites_in_its_results():
    rows = {row[0]: row[1:] for row in table("README.md", "test score, %")}
    pairs = [row for name, row in rows.items() if " or " in name and "its opposite" not in name]
    assert len(pairs) == len(OPPOSITES) / 2
    # The mean that is printed is the mean of the pairs that are printed.
    for column in (0, 1):
        mean = sum(float(row[column]) for row in pairs) / len(pairs)
        assert abs(mean - float(rows["a motion or its opposite, mean of five pairs"][column])) < 0.06


def test_exit_codes():
    assert {int(row[0]) for row in table("README.md", "code")} == {int(code) for code in Exit}


def test_rooms():
    allowed, known = layering(), set()
    for room, _, words in table("docs/architecture.md", "room"):
        rooms = set()
        for word in words.split():
            if word == "above":  # "the above and X": all that the row before may import, and X
                rooms |= known
            elif word not in ("the", "and"):
                rooms.add(word)
        known = rooms
        assert rooms == allowed[room], room
    listed = {row[0] for row in table("docs/architecture.md", "room")}
    assert listed == {room for room in allowed if not room.startswith("__")}


def test_axis_alphabet():
    cells = [cell for row in table("docs/architecture.md", "letter") for cell in row]
    pairs = {letter: name for letter, name in zip(cells[::2], cells[1::2], strict=True) if letter}
    assert pairs == dict(AXES)


def test_sharding_rules():
    rows = table("docs/architecture.md", "logical axis")
    assert {name: tuple(axes.split(", ")) for name, axes in rows} == dict(RULES)
