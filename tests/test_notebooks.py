"""The notebooks are clean, never touch the runtime's jax, and run from the first cell to the last."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path`."""
    return nbformat.read(path, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[str]:
    """Sources of its code cells."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def first_cell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jax: str | None) -> str:
    """What the quickstart's first cell prints where jax is of version `jax`."""

    def version(name: str) -> str:
        assert name == "jax"
        if jax is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return jax

    monkeypatch.setattr(importlib.metadata, "version", version)
    exec(compile(code(read(ROOT / "notebooks/quickstart.ipynb"))[0], "first cell", "exec"), {})
    return capsys.readouterr().out


def test_there_is_a_quickstart():
    assert "quickstart.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path: Path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.source.strip(), "an empty cell"
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.source
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_upgrades_nothing(path: Path):
    text = "\n".join(code(read(path)))
    assert not re.search(r"--upgrade|--force-reinstall|['\"\s]-U\b", text)
    assert not re.search(r"""pip\(["']jax""", text)


def test_first_cell_knows_the_range_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (need,) = [line for line in project["dependencies"] if re.match(r"jax[^a-z]", line)]
    low, below = re.fullmatch(r"jax>=([\d.]+),<([\d.]+)", need).groups()
    assert f'LOWEST, BELOW = "{low}", "{below}"' in code(read(ROOT / "notebooks/quickstart.ipynb"))[0]


@pytest.mark.parametrize(
    ("jax", "said"),
    [
        (None, "jax not installed: jax is missing"),
        ("0.4.35", "stvl needs jax 0.7.2 or newer"),
        ("0.7.2", "jax 0.7.2: good."),
        ("0.11.0.dev20261101", "good."),
        ("0.12.0", "choose an older runtime version if a cell fails"),
    ],
)
def test_first_cell_says_what_to_do(monkeypatch, capsys, jax, said):
    assert said in first_cell(monkeypatch, capsys, jax)


def test_packages_that_lack_are_found():
    source = code(read(ROOT / "notebooks/quickstart.ipynb"))[1]
    names: dict = {}
    exec(compile(source.split("if checkout() is None")[0], "second cell", "exec"), names)
    lacking = names["lacking"](["numpy>=2", "PyTest_XDist>=1", "no-such-package>=1,<2", "jax"])
    assert lacking == ["no-such-package>=1,<2"]


@pytest.mark.slow
def test_quickstart_runs(tmp_path):
    notebook = read(ROOT / "notebooks/quickstart.ipynb")
    environment = {
        **os.environ,
        "STVL_NOTEBOOK_SCALE": "ci",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",  # one device: a notebook has no eight of them
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment)

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [output for cell in cells for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    # A clip, the losses, the hits, the score maps.
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4

    rows = [json.loads(line) for line in (tmp_path / "stvl-notebook/run/log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 6
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    printed = "".join(output.get("text", "") for output in shown)
    assert "stvl is ready\n" in printed
    assert len(re.findall(r"^-?0\.\d{3}  videos/P01/P01_0\d\.mp4  ", printed, re.MULTILINE)) >= 1
