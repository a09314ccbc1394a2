"""Two weights side by side: hand-worked rows, planted faults found at their block, and files of activations."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest

from stvl.core.errors import ConfigError, WeightsError
from stvl.pretrained.compare import (
    compare,
    compare_params,
    random_inputs,
    read_activations,
    run_activations,
    split_inputs,
)
from tests.pretrained.small import TOWERS, model_of, random_tree

MODEL = model_of(TOWERS["EVA02-AT"])
Named = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def reference() -> tuple[Named, dict[str, Any], Named]:
    """Inputs, parameters, and the activations of both."""
    inputs, params = random_inputs(MODEL, 1), random_tree(MODEL)
    return inputs, params, run_activations(MODEL, params, inputs)


def test_a_row_by_hand():
    left = {"x": np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)}
    right = {"x": np.array([[4.0, 3.0], [1.0, 0.0]], np.float32)}
    (row,) = compare(left, right).rows
    assert (row.max_abs, row.relative) == (1.0, 0.25)
    # The first vectors meet at 24 / 25, the second are equal.
    assert row.cosine == pytest.approx(0.96)
    assert row.bad(0.2) and not row.bad(0.25)


def test_zeros_nan_and_shapes():
    zero, one = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    assert compare({"x": zero}, {"x": zero}).first_bad is None
    found = compare({"x": one}, {"x": zero}).rows[0]
    assert found.relative == math.inf and found.bad(1e9)
    for side in ("A", "B"):
        arrays = {"A": {"x": one}, "B": {"x": one}}
        arrays[side] = {"x": np.array([[1, np.nan, 1], [1, 1, 1]], np.float32)}
        row = compare(arrays["A"], arrays["B"]).rows[0]
        assert row.problem == f"NaN or infinities in {side}" and row.bad(1e9)
    row = compare({"x": one}, {"x": np.ones((3, 2), np.float32)}).rows[0]
    assert row.problem == "shape (2, 3), B has (3, 2)"


def test_places_in_one_axis_are_the_same_places():
    grid = np.arange(2 * 1 * 2 * 2 * 3, dtype=np.float32).reshape(2, 1, 2, 2, 3)
    assert compare({"stem": grid}, {"stem": grid.reshape(2, 4, 3)}).first_bad is None
    assert compare({"stem": grid}, {"stem": grid.reshape(4, 2, 3)}).first_bad is not None


def test_names_of_one_side_only():
    x = np.ones(2, np.float32)
    found = compare({"a": x, "b": x}, {"b": x, "c": x})
    assert (found.only_left, found.only_right, [row.name for row in found.rows]) == (("a",), ("c",), ["b"])
    with pytest.raises(WeightsError, match="no activation in common: a and c"):
        compare({"a": x}, {"c": x})
    with pytest.raises(ConfigError, match="the threshold is a number above 0, found 0"):
        compare({"a": x}, {"a": x}, 0.0)


def test_random_inputs_are_clips_and_texts():
    inputs = random_inputs(MODEL, 3, batch=4)
    assert inputs["video"].shape == (4, 3, 16, 16, 3) and inputs["video"].dtype == np.uint8
    assert inputs["text"].shape == (4, 12)
    assert (inputs["text"].max(axis=1) == 49407).all() and (inputs["text"][:, 0] == 49406).all()
    assert (random_inputs(MODEL, 3)["video"] != random_inputs(MODEL, 3, seed=1)["video"]).any()


@pytest.mark.parametrize(
    ("path", "layer", "first"),
    [
        (("video", "stack", "layers", "mlp", "out", "kernel"), 1, "video/blocks/1"),
        (("video", "stem", "bias"), None, "video/stem"),
        (("video", "class_position"), None, "video/embed"),
        (("text", "norm", "scale"), None, "text/norm"),
        (("text", "projection", "kernel"), None, "text/projection"),
    ],
)
def test_the_first_bad_part_is_the_one_that_was_changed(reference, path, layer, first):
    inputs, good, wanted = reference
    bad = jax.tree.map(lambda leaf: leaf, good)
    part = bad
    for name in path[:-1]:
        part = part[name]
    place = (0,) if layer is None else (layer, 0)
    part[path[-1]] = part[path[-1]].at[place].add(1.0)
    found = compare(run_activations(MODEL, bad, inputs), wanted)
    assert found.first_bad is not None and found.first_bad.name == first
    names = [row.name for row in found.rows]
    tower = first.split("/")[0]
    # Parts before it are equal, and so is the other tower.
    before = names[: names.index(first)] + [name for name in names if not name.startswith(tower)]
    assert all(row.max_abs == 0 and row.cosine == 1 for row in found.rows if row.name in before)
    rows, _ = compare_params(bad, good)
    assert [(row.path, row.layers) for row in rows] == [("/".join(path), () if layer is None else (layer,))]
    assert rows[0].max_abs == pytest.approx(1, abs=1e-5)


def test_frames_of_another_size_are_refused():
    inputs = {"video": np.zeros((1, 1, 8, 8, 3), np.uint8)}
    with pytest.raises(ConfigError, match=r"takes \(b, t, 16, 16, 3\): weights of different sizes"):
        run_activations(MODEL, {}, inputs)


def test_parameters_of_two_models():
    one, two = random_tree(MODEL), random_tree(model_of(TOWERS["CLIP ViT"]))
    rows, equal = compare_params(one, two)
    found = {row.path: row.problem for row in rows}
    assert found["video/input_norm/scale"] == "only in B"
    assert found["video/projection/kernel"].endswith("of 512 values")
    assert found["video/stack/layers/mlp/out/kernel"] == "(2, 85, 32), B has (2, 128, 32)"
    assert compare_params(one, one) == ([], len(jax.tree.leaves(one)))
    halves = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), one)
    rows, equal = compare_params(one, halves)
    assert equal == 0 and {row.problem for row in rows} == {"the same values in another dtype"}


def test_files_of_activations(reference, tmp_path):
    inputs, _, made = reference
    np.savez(tmp_path / "a.npz", **made, **{"input/video": inputs["video"], "input/text": inputs["text"]})
    found, arrays = split_inputs(read_activations(tmp_path / "a.npz"))
    assert list(arrays) == list(made) and (found["video"] == inputs["video"]).all()
    with pytest.raises(WeightsError, match=r"'input/vidio' is no input \(did you mean 'input/video'\?\)"):
        split_inputs({"input/vidio": made["video/stem"]})
    np.savez(tmp_path / "words.npz", a=np.array(["x"]))
    with pytest.raises(WeightsError, match="a holds no numbers but <U1"):
        read_activations(tmp_path / "words.npz")
    (tmp_path / "b.npz").write_text("no archive")
    for name in ("b.npz", "none.npz"):
        with pytest.raises(WeightsError, match=r"holds no activations as numpy\.savez writes them"):
            read_activations(tmp_path / name)
