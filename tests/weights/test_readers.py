"""Readers of npz, shards and Orbax: names, dtypes, values, and which reader a path gets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from stvl.core.errors import WeightsError
from stvl.weights import source as source_module
from stvl.weights.readers import torch_file
from stvl.weights.readers.npz import NpzSource
from stvl.weights.readers.orbax import OrbaxSource
from stvl.weights.readers.safetensors_file import SafetensorsSource
from stvl.weights.readers.shards import ShardedSource
from stvl.weights.source import Entry, Source, open_source

from .tools import raw, same_bits, save

F4 = np.dtype("f4")
ARRAYS = npst.arrays(
    st.sampled_from(["<f8", ">f8", "<f4", "<f2", ">i4", "<i8", "u1", "?"]),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0),
)


@given(arrays=st.lists(ARRAYS, max_size=3), fortran=st.booleans(), small=st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_npz_agrees_with_numpy(tmp_path: Path, arrays: list[np.ndarray], fortran: bool, small: bool):
    path = tmp_path / "x.npz"
    named = {f"a/{i}": np.asfortranarray(array) if fortran else array for i, array in enumerate(arrays)}
    (np.savez_compressed if small else np.savez)(path, **{"keep": np.zeros(2), **named})
    source = NpzSource(path)
    assert set(source.entries) == {"keep", *named}
    for name, array in named.items():
        want = np.ascontiguousarray(array).reshape(array.shape).astype(array.dtype.newbyteorder("="))
        assert source.entries[name] == Entry(want.shape, want.dtype)
        assert same_bits(source.read(name), want)
    source.close()
    with pytest.raises(WeightsError, match="is closed"):
        source.read("keep")


def test_bfloat16_in_npz(tmp_path: Path):
    """numpy writes bfloat16 as raw pairs of bytes."""
    array = np.array([1.0, -2.5], ml_dtypes.bfloat16)
    np.savez(tmp_path / "x.npz", a=array)
    source = open_source(tmp_path / "x.npz")
    assert isinstance(source, NpzSource)
    assert same_bits(source.read("a"), array)


def test_shards(tmp_path: Path):
    parts = {
        "m-1.safetensors": {"a": np.ones((2, 3), F4), "b": np.zeros(1, ml_dtypes.bfloat16)},
        "m-2.safetensors": {"c": np.arange(4)},
    }
    for file, arrays in parts.items():
        save(tmp_path / file, arrays, {"format": "pt"})
    where = {name: file for file, arrays in parts.items() for name in arrays}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 58}, "weight_map": where}))
    for path in (tmp_path, index):
        source = open_source(path)
        assert isinstance(source, ShardedSource)
        assert isinstance(source, Source)
        assert source.metadata == {"format": "pt"}
        assert list(source.entries) == ["a", "b", "c"]
        assert all(same_bits(source.read(name), parts[where[name]][name]) for name in where)
        files = sorted([index, *(tmp_path / file for file in parts)])
        lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
        assert source.sha256() == hashlib.sha256("".join(lines).encode()).hexdigest()
        source.close()
        with pytest.raises(WeightsError, match="is closed"):
            source.read("a")


def test_one_file_of_a_folder_and_files_by_their_content(tmp_path: Path):
    save(tmp_path / "model.safetensors", {"a": np.ones(1)})
    assert isinstance(open_source(tmp_path), SafetensorsSource)
    other = tmp_path / "other"
    other.mkdir()
    (other / "weights.dat").write_bytes(raw({}))
    assert open_source(other / "weights.dat").entries == {}
    np.savez(other / "a.npz", a=np.ones(1))
    (other / "a.npz").rename(other / "a.bin")
    assert isinstance(open_source(other / "a.bin"), NpzSource)


def tree() -> dict:
    return {
        "video": {
            "stem": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.arange(3, dtype=jnp.bfloat16)}
        },
        "log_scale": jnp.float32(2.5),
    }


def test_any_tree_of_orbax(tmp_path: Path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", tree())
    source = open_source(tmp_path / "tree")
    assert isinstance(source, OrbaxSource)
    assert source.entries == {
        "log_scale": Entry((), F4),
        "video/stem/bias": Entry((3,), np.dtype(ml_dtypes.bfloat16)),
        "video/stem/kernel": Entry((3, 4), F4),
    }
    assert source.read("video/stem/kernel").tolist() == np.arange(12.0).reshape(3, 4).tolist()
    assert source.read("video/stem/bias").tolist() == [0, 1, 2]
    assert source.read("log_scale") == 2.5
    before = source.sha256()
    assert before == open_source(tmp_path / "tree").sha256()
    some = next(path for path in (tmp_path / "tree" / "d").iterdir())
    some.write_bytes(some.read_bytes() + b"x")
    assert source.sha256() != before
    source.close()


def save_run(folder: Path, steps: tuple[int, ...]) -> None:
    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        for step in steps:
            params = jax.tree.map(lambda x, step=step: x + step, tree())
            state = {"step": jnp.int32(step), "params": params, "opt_state": optax.adam(1e-3).init(params)}
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state), data=ocp.args.JsonSave({"epoch": 0})
            )
            manager.save(step, args=items)


def test_a_run_folder_gives_its_newest_whole_checkpoint(tmp_path: Path):
    save_run(tmp_path / "run", (9, 10))
    (tmp_path / "run" / "checkpoints" / "11").mkdir()  # torn
    root = tmp_path / "run" / "checkpoints"
    for path, step in ((tmp_path / "run", 10), (root, 10), (root / "9", 9), (root / "9" / "state", 9)):
        source = open_source(path)
        assert source.path == root / str(step) / "state"
        assert source.read("step") == step
        assert source.read("params/video/stem/kernel")[0, 0] == step
        assert "opt_state/0/mu/video/stem/bias" in source.entries
        assert source.read("opt_state/0/mu/video/stem/bias").tolist() == [0, 0, 0]
        source.close()


def test_a_damaged_array_of_orbax_is_named(tmp_path: Path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", tree())
    source = open_source(tmp_path / "tree")
    for file in (tmp_path / "tree").rglob("d/*"):
        file.write_bytes(b"")
    with pytest.raises(WeightsError, match="'video/stem/kernel' cannot be read by Orbax"):
        source.read("video/stem/kernel")
    source.close()


def test_torch_files_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x.pt").write_bytes(b"\x80\x02}q\x00.")
    monkeypatch.setattr(torch_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        WeightsError, match=r"x\.pt is a torch file, which needs torch: pip install 'stvl\[torch\]'"
    ):
        open_source(tmp_path / "x.pt")


def test_errors_of_the_system_are_errors_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save(tmp_path / "x.safetensors", {"a": np.ones(1)})

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(source_module, "_form", refuse)
    with pytest.raises(WeightsError, match=r"x\.safetensors cannot be read: .*Permission denied"):
        open_source(path)
