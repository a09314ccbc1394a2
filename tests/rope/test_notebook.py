"""The notebook of the schemes runs from the first cell to the last and shows its pictures."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_notebook_runs(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks/rope.ipynb", as_version=4)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment)
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    # Two of angles, three of scores.
    assert sum("image/png" in output.get("data", {}) for output in shown) == 5
    printed = "".join(output.get("text", "") for output in shown)
    assert len(re.findall(r"text goes on at \d+\n", printed)) == 5
    # 32 = 4 ** (63 / 64) of base scaling at the last pair.
    assert re.search(r"BaseScaling +slower by \[1\. .* 3\.91\]", printed)
