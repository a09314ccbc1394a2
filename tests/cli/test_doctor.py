"""``stvl doctor``: facts, and the backend that each attention of a config gets."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from stvl.cli import doctor
from stvl.cli.main import main
from stvl.ops.attention import attention, explain, rules
from stvl.ops.attention.record import recorded

ROOT = Path(__file__).resolve().parents[2]
CONFIG = '''
"""The tiny run."""

from tests.fixtures import tiny_experiment


def experiment(world: str = "nowhere"):
    return tiny_experiment(world)
'''


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "tiny.py").write_text(CONFIG)
    return str(tmp_path / "tiny.py")


def told(words: list[str], path: Path) -> dict:
    """What the command writes as JSON."""
    assert main(["doctor", *words, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_facts(tmp_path, capsys):
    found = told([], tmp_path / "facts.json")
    assert found["versions"]["jax"] == jax.__version__
    assert found["platform"] == "cpu" and len(found["devices"]) == len(jax.devices())
    assert found["attention"] == []
    out = capsys.readouterr().out
    assert f"jax {jax.__version__}" in out and "JAX_PLATFORMS=cpu" in out
    assert f"{len(jax.devices())} x cpu" in out


def test_attentions_of_a_config(config, tmp_path, capsys):
    found = told([config], tmp_path / "out.json")["attention"]
    from tests.fixtures import BATCH, CONTEXT, FRAMES, tiny_experiment

    model = tiny_experiment("w").model
    tokens = FRAMES * (model.video.image_size // model.video.patch) ** 2 + 1
    video, text = (
        [BATCH, n, tower.heads, tower.width // tower.heads]
        for n, tower in ((tokens, model.video), (CONTEXT, model.text))
    )
    assert [(row["q"], row["mask"], row["rotary"]) for row in found] == [
        (video, "Full", True),
        (text, "Causal", False),
    ]
    assert [(row["k"], row["dtype"], row["impl"]) for row in found] == [
        (video, "float32", "xla"),
        (text, "float32", "xla"),
    ]
    assert "comes after xla in the rules" in found[0]["reasons"]["chunked"]
    assert found[0]["reasons"]["tpu"] == "a kernel for tpu"
    out = capsys.readouterr().out
    assert "attention on cpu" in out and f"q={tokens}" in out


def test_another_platform(config, tmp_path):
    rows = told([config, "--platform", "tpu"], tmp_path / "out.json")["attention"]
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert all(row["reasons"]["gpu"] == "a kernel for gpu" for row in rows)
    assert {row["impl"] for row in rows} <= {line.impl for line in rules.CHOICES if line.platform == "tpu"}


def test_overrides_change_the_shapes(config, tmp_path):
    rows = told([config, "loader.frames=1", "dtype=bfloat16"], tmp_path / "out.json")["attention"]
    assert rows[0]["q"][1] == (told([config], tmp_path / "b.json")["attention"][0]["q"][1] - 1) // 2 + 1
    assert rows[0]["dtype"] == "bfloat16"


def test_a_mesh_that_is_not_here(config, tmp_path, capsys):
    rows = told([config, "mesh.data=64"], tmp_path / "out.json")["attention"]
    assert len(rows) == 2
    assert "asked as if on one device: a mesh of data 64" in capsys.readouterr().out


def test_named_shapes(tmp_path):
    rows = told(["--shapes", "text-77,l14-16f"], tmp_path / "out.json")["attention"]
    assert [(row["name"], row["impl"]) for row in rows] == [("text-77", "chunked"), ("l14-16f", "chunked")]
    needed = 4 * 4 * 16 * 4097 * 4097
    assert rows[1]["reasons"]["xla"] == f"the scores take {needed} bytes, the limit is {rules.SCORES_LIMIT}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shapes", "text-7"], "unknown attention shape 'text-7' (did you mean 'text-77'?)"),
        (["configs/quickstar.py"], "no config 'configs/quickstar.py' (did you mean 'quickstart'?)"),
        (["configs/quickstart.py", "loader.batsh=3"], "has no field 'batsh' (did you mean 'batch'?)"),
    ],
)
def test_unknown_names(words, message, capsys):
    assert main(["doctor", *words]) == 1
    assert message in capsys.readouterr().err


def test_no_device(monkeypatch, capsys):
    def fail() -> None:
        raise RuntimeError("Unable to initialize backend 'tpu'\nand more")

    monkeypatch.setattr("stvl.ops.bench.machine.devices", fail)
    assert main(["doctor"]) == 1
    assert "jax starts no device: Unable to initialize backend 'tpu' (JAX" in capsys.readouterr().err


def test_extras_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - {"dev"}
    assert doctor.missing(["jax", "no-such-package-of-anyone"]) == ["no-such-package-of-anyone"]


def facts(platform: str = "cpu", **changes: object) -> dict:
    settings = {"compilation cache": None, "64 bit": False}
    start = {"platform": platform, "variables": {}, "extras": {"tpu": False}, "settings": settings}
    return start | changes


@pytest.mark.parametrize(
    ("found", "has_gpu", "hint"),
    [
        (facts(), True, r"pip install 'stvl\[cuda\]'"),
        (facts(extras={"tpu": True}), False, "JAX_PLATFORMS=cpu keeps jax"),
        (facts("gpu"), True, "set JAX_COMPILATION_CACHE_DIR"),
        (facts(settings={"compilation cache": None, "64 bit": True}), False, "unset JAX_ENABLE_X64"),
    ],
)
def test_hints(found, has_gpu, hint):
    import re

    (only,) = doctor.hints(found, has_gpu)
    assert re.search(hint, only)


def test_no_hint_where_all_is_meant():
    cached = {"compilation cache": "somewhere", "64 bit": False}
    assert doctor.hints(facts("gpu", settings=cached), True) == []
    chosen = facts(variables={"JAX_PLATFORMS": "cpu"}, extras={"tpu": True})
    assert doctor.hints(chosen, True) == []


def test_attentions_are_recorded_inside_only():
    q = jnp.zeros((1, 4, 2, 8))
    with recorded() as outer:
        attention(q, q, q)
        with recorded() as inner:
            jax.eval_shape(attention, q[:, :3], q, q)
    attention(q, q, q)
    assert [case.q.shape for case in outer] == [(1, 4, 2, 8)]
    assert [case.q.shape for case in inner] == [(1, 3, 2, 8)]
    assert explain(q, q, q) == ("xla", {})
