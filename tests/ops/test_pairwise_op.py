"""The pairwise op beside its contract: reductions by hand, sizes at random, the choice of a backend, errors."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stvl.core.errors import ConfigError, NotSupported
from stvl.losses.infonce import infonce
from stvl.ops.pairwise import (
    ARGMAX,
    LOGSUMEXP,
    MAX,
    SUM,
    PairwiseOptions,
    PerColumn,
    PerRow,
    Tile,
    explain,
    pairwise,
)
from stvl.ops.pairwise.api import DENSE_PAIRS
from stvl.ops.pairwise.bench import cases
from stvl.ops.pairwise.shapes import shape
from tests.contracts.pairwise import batch, close, contrast, mesh_of, plain_relevancy

#: Backend -> options and devices that cut small matrices into several tiles.
WAYS: dict[str, tuple[PairwiseOptions, int | None]] = {
    "dense": (PairwiseOptions(), None),
    "chunked": (PairwiseOptions(chunk=1), None),
    "ring": (PairwiseOptions(), 2),
}

EYE = np.eye(2, dtype=np.float32)
#: Similarities [[1, 3], [3, 2], [0, -1]].
X, Y = np.asarray([[1, 3], [3, 2], [0, -1]], np.float32), EYE


def everything(tile: Tile) -> dict[str, Any]:
    kinds = {"sum": SUM, "lse": LOGSUMEXP, "max": MAX, "argmax": ARGMAX}
    s = tile.similarity
    rows = {f"row {name}": PerRow(s, kind) for name, kind in kinds.items()}
    return {**rows, **{f"column {name}": PerColumn(s, kind) for name, kind in kinds.items()}}


def call(impl: str, term: Any, x: Any, y: Any, **arrays: Any) -> dict[str, jax.Array]:
    options, devices = WAYS[impl]
    with mesh_of(devices):
        return pairwise(term, jnp.asarray(x), jnp.asarray(y), options=options, impl=impl, **arrays)


@pytest.mark.parametrize("impl", WAYS)
def test_reductions_by_hand(impl):
    out = call(impl, everything, X, Y)
    assert {name: a.dtype for name, a in out.items() if a.dtype != jnp.float32} == {
        "row argmax": jnp.int32,
        "column argmax": jnp.int32,
    }
    assert np.asarray(out["row sum"]).tolist() == [4, 5, -1]
    assert np.asarray(out["column sum"]).tolist() == [4, 4]
    assert np.asarray(out["row max"]).tolist() == [3, 3, 0]
    assert np.asarray(out["column max"]).tolist() == [3, 3]
    assert np.asarray(out["row argmax"]).tolist() == [1, 0, 0]
    assert np.asarray(out["column argmax"]).tolist() == [1, 0]
    close(
        out["row lse"],
        [3 + math.log1p(math.exp(-2)), 3 + math.log1p(math.exp(-1)), math.log1p(math.exp(-1))],
        1e-6,
    )
    close(out["column lse"], np.log(np.exp(X).sum(0)), 1e-6)


@pytest.mark.parametrize("impl", WAYS)
def test_the_first_of_equal_values_wins(impl):
    out = call(impl, everything, np.ones((5, 2)), np.ones((4, 2)))
    assert np.asarray(out["row argmax"]).tolist() == [0] * 5
    assert np.asarray(out["column argmax"]).tolist() == [0] * 4


def chosen_only(tile: Tile) -> dict[str, Any]:
    allowed = tile.rows["group"][:, None] == tile.columns["group"][None, :]
    # Added, not chosen by where, which would hide a NaN in the gradient.
    values = tile.similarity + jnp.log(allowed.astype(jnp.float32))
    return {
        "rows": PerRow(values, LOGSUMEXP),
        "columns": PerColumn(values, LOGSUMEXP),
        "top": PerRow(values, MAX),
    }


@pytest.mark.parametrize("impl", WAYS)
def test_empty_sets_are_minus_infinity_and_have_no_gradient(impl):
    groups = {"rows": {"group": jnp.asarray([0, 7, 1])}, "columns": {"group": jnp.asarray([0, 1])}}
    out = call(impl, chosen_only, X, Y, **groups)
    assert np.asarray(out["rows"]).tolist() == [1, -math.inf, -1]
    assert np.asarray(out["columns"]).tolist() == [1, -1]
    assert np.asarray(out["top"]).tolist() == [1, -math.inf, -1]

    def total(x: jax.Array) -> jax.Array:
        rows = call(impl, chosen_only, x, Y, **groups)["rows"]
        return jnp.logaddexp(0.0, rows).sum()

    slope = np.asarray(jax.grad(total)(jnp.asarray(X)))
    close(slope, [[1 / (1 + math.exp(-1)), 0], [0, 0], [0, 1 / (1 + math.e)]], 1e-6)


def queue(tile: Tile) -> dict[str, Any]:
    logits = tile.similarity * tile.params["scale"] + tile.columns["weight"][None, :]
    return {"rows": PerRow(logits, LOGSUMEXP), "columns": PerColumn(jnp.tanh(logits), SUM)}


def queue_loss(x: Any, y: Any, weight: Any, scale: Any, how: Any) -> jax.Array:
    impl, chunk = how
    data, options = {"weight": weight}, PairwiseOptions(chunk=chunk)
    out = pairwise(queue, x, y, columns=data, params={"scale": scale}, impl=impl, options=options)
    return (out["rows"] ** 2).sum() + (out["columns"] ** 3).sum()


QUEUE_STEP = jax.jit(jax.value_and_grad(queue_loss, argnums=(0, 1, 2, 3)), static_argnums=4)


@settings(max_examples=8)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    chunk=st.integers(1, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_chunks_of_any_size_agree_with_dense(rows, columns, chunk, seed):
    """Also where rows and columns differ in number, and with gradients of arrays of one side."""
    rng = np.random.default_rng(seed)
    sizes = ((rows, 3), (columns, 3), columns, ())
    inputs = [jnp.asarray(rng.standard_normal(size), jnp.float32) for size in sizes]
    found, meant = (QUEUE_STEP(*inputs, how) for how in (("chunked", chunk), ("dense", None)))
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(meant), strict=True):
        close(one, two, 1e-5)


def test_a_ring_with_more_columns_than_rows():
    rng = np.random.default_rng(0)
    x, y, weight = (jnp.asarray(rng.standard_normal(size), jnp.float32) for size in ((5, 3), (11, 3), 11))
    with mesh_of(4):
        found = QUEUE_STEP(x, y, weight, jnp.float32(2), ("ring", None))
    meant = QUEUE_STEP(x, y, weight, jnp.float32(2), ("dense", None))
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(meant), strict=True):
        close(one, two, 1e-5)


def test_the_batch_of_the_contract_meets_every_case_of_the_margin_loss():
    c = plain_relevancy(batch(23))
    gap = np.diagonal(c)[:, None] - c
    shares = [(gap >= 0.1).mean(), (gap <= -0.1).mean(), (np.abs(gap) < 0.1).mean()]
    assert min(shares) > 0.08
    assert len(np.unique(c)) > 5


def test_infonce_does_not_depend_on_backend_or_shards():
    rng = np.random.default_rng(1)
    video, text = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in rng.standard_normal((2, 24, 8)))
    inputs = jnp.asarray(video, jnp.float32), jnp.asarray(text, jnp.float32), jnp.float32(20)

    def value(devices: int | None, impl: str | None, chunk: int | None = None) -> Any:
        def loss(*inputs: Any) -> Any:
            return infonce(*inputs, impl=impl, options=PairwiseOptions(chunk=chunk))

        with mesh_of(devices):
            return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)

    meant = value(None, "dense")
    for how in ((1, "chunked", 7), (2, "ring"), (4, "ring"), (8, "ring"), (8, None), (8, None, 3)):
        for one, two in zip(jax.tree.leaves(value(*how)), jax.tree.leaves(meant), strict=True):
            close(one, two, 1e-6)


# The choice of a backend.


def features(rows: int, columns: int | None = None, width: int = 4) -> tuple[Any, Any]:
    return tuple(
        jax.ShapeDtypeStruct((n, width), jnp.float32) for n in (rows, rows if columns is None else columns)
    )


def test_rules():
    large = math.isqrt(DENSE_PAIRS) + 1
    assert explain(*features(large - 1)) == ("dense", {})
    name, reasons = explain(*features(large))
    assert name == "chunked"
    assert reasons["dense"] == f"{large**2} pairs, the dense form is taken up to {DENSE_PAIRS}"
    assert "no mesh is in force" in reasons["ring"]
    assert explain(*features(8), options=PairwiseOptions(chunk=4))[0] == "chunked"
    with mesh_of(8):
        assert explain(*features(large))[0] == "ring"
        assert explain(*features(large - 1)) == ("dense", {})
        assert explain(*features(8), options=PairwiseOptions(chunk=4))[0] == "ring"
        assert explain(*features(large), options=PairwiseOptions(ring_axes=("tensor",)))[0] == "chunked"
    with mesh_of(1):
        assert "have one device each" in explain(*features(large))[1]["ring"]


# Bad input.


def ints(tile: Tile) -> dict[str, Any]:
    return {"rows": PerRow(tile.diagonal, SUM)}


def reduced(tile: Tile) -> dict[str, Any]:
    return {"rows": PerRow(tile.similarity.sum(1), SUM)}


def bare(tile: Tile) -> dict[str, Any]:
    return {"rows": tile.similarity}


def nothing(tile: Tile) -> dict[str, Any]:
    return {}


F = jnp.zeros
WRONG: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
    (contrast, (F((3, 4)), F((3, 5))), {}, r"rows \(3, 4\) and columns \(3, 5\) must share the width"),
    (
        contrast,
        (F((0, 4)), F((3, 4))),
        {},
        r"row features have shape \(at least one, width\), found \(0, 4\)",
    ),
    (contrast, (F((3, 4)), F((0, 4))), {}, r"column features have shape \(at least one"),
    (contrast, (F((3, 4)), F((3, 4), jnp.int32)), {}, "column features must be floats, found int32"),
    (
        contrast,
        (F((3, 4)), F((3, 4))),
        {"rows": {"verb": F(2)}},
        "'verb' needs one entry for each of the 3 rows",
    ),
    (contrast, (F((3, 4)), F((3, 4))), {"columns": {"n": F(())}}, r"of the 3 columns, found shape \(\)"),
    (contrast, (F((3, 4)), F((3, 4))), {"params": {"scale": 2}}, "parameters must be floats, found int32"),
    (
        ints,
        (F((3, 4)), F((3, 4))),
        {},
        r"'rows' must be floats of the tile's shape \(3, 3\), found bool \(3, 3\)",
    ),
    (reduced, (F((3, 4)), F((3, 4))), {}, r"of the tile's shape \(3, 3\), found float32 \(3,\)"),
    (bare, (F((3, 4)), F((3, 4))), {}, r"PerRow or PerColumn, found \w+ under 'rows': wrap the values"),
    (nothing, (F((3, 4)), F((3, 4))), {}, "a term returns a dictionary of PerRow and PerColumn, found dict"),
]


@pytest.mark.parametrize(("term", "sides", "given_", "message"), WRONG)
@pytest.mark.usefixtures("as_installed")
def test_what_does_not_fit_is_the_callers_fault(term, sides, given_, message):
    with pytest.raises(ValueError, match=message):
        pairwise(term, *sides, **given_)


def test_unknown_names_show_the_nearest():
    sides = F((3, 4)), F((3, 4))
    with pytest.raises(ValueError, match=r"unknown pairwise backend 'chunk' \(did you mean 'chunked'\?\)"):
        pairwise(contrast, *sides, params={"scale": 1.0}, impl="chunk")
    with (
        mesh_of(2),
        pytest.raises(ValueError, match=r"the mesh has no axis 'dat' \(did you mean 'data'\?\)"),
    ):
        pairwise(
            contrast, *sides, params={"scale": 1.0}, options=PairwiseOptions(chunk=1, ring_axes=("dat",))
        )
    with pytest.raises(ValueError, match=r"unknown pairwise shape 'pod-16' \(did you mean 'pod-16k'\?\)"):
        shape("pod-16")
    with pytest.raises(ValueError, match=r"unknown benchmark loss 'margins' \(did you mean 'margin'\?\)"):
        cases(losses=["margins"])


def test_a_named_ring_without_a_mesh_is_refused_with_the_reason():
    sides = F((3, 4)), F((3, 4))
    with pytest.raises(NotSupported, match="pairwise backend 'ring': no mesh is in force: trace inside"):
        pairwise(contrast, *sides, params={"scale": 1.0}, impl="ring")
    with (
        mesh_of(1),
        pytest.raises(NotSupported, match=r"the mesh axes \('data', 'fsdp'\) have one device each"),
    ):
        pairwise(contrast, *sides, params={"scale": 1.0}, impl="ring")


def test_options_are_checked():
    with pytest.raises(ConfigError, match="a tile has at least one row, found chunk = 0"):
        PairwiseOptions(chunk=0)
    with pytest.raises(ConfigError, match="over each mesh axis once"):
        PairwiseOptions(ring_axes=("data", "data"))


def test_a_parameter_that_bypasses_the_tile_is_refused():
    def loss(scale: jax.Array) -> jax.Array:
        def term(tile: Tile) -> dict[str, Any]:
            return {"rows": PerRow(scale * tile.similarity, SUM)}

        return pairwise(term, F((3, 4)), F((3, 4)), impl="chunked")["rows"].sum()

    with pytest.raises(Exception, match=r"closed-over|leaked|UnexpectedTracer"):
        jax.grad(loss)(jnp.float32(1))
