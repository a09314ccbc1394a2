"""``stvl plan`` on a tiny step."""

from __future__ import annotations

import json

import pytest

from stvl.cli.main import main

TINY = ["model.video.depth=1", "model.text.depth=1", "loader.batch=16"]


@pytest.mark.slow
def test_cpu_plan_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "plans" / "tiny.json"
    words = ["plan", "configs/quickstart.py", "--topology", "cpu:8", "--sharding", "fsdp", "--shardings"]
    assert main([*words, "--json", str(out), *TINY]) == 0
    text = capsys.readouterr().out
    assert "8 chips, mesh fsdp 8, float32" in text and "largest batch that fits" in text
    assert "text/tokens: [vocabulary 49408, width 64/fsdp]" in text
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["experiment"]["batch"] == 16 and len(found["largest_batch"]["points"]) == 2


def test_gpu_plan_needs_no_compiler(capsys):
    words = ["plan", "configs/quickstart.py", "--topology", "h100x8", "--slices", "2", "--sharding", "dp"]
    assert main([*words, "loader.batch=64", "--what-if"]) == 0
    text = capsys.readouterr().out
    assert "by analysis only" in text and "16 chips, mesh data 16, bfloat16" in text
    assert "recommended: " in text and "planned: fsdp: mesh.data=1 mesh.fsdp=8" not in text


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology", "v5x:4x4"], "unknown topology 'v5x:4x4' (did you mean"),
        (
            ["--topology", "h200x8", "--sharding", "fdsp"],
            "unknown sharding preset 'fdsp' (did you mean 'fsdp'?)",
        ),
        (["--topology", "h200x8", "loader.batch=12"], "the mesh (data x fsdp) cuts a batch into 8 slices"),
        (["--topology", "cpu", "--xla", "xla_flag"], "compiler flags read name=value, found 'xla_flag'"),
    ],
)
def test_refusals(words, message, capsys):
    assert main(["plan", "configs/quickstart.py", *words]) == 1
    assert message in capsys.readouterr().err
