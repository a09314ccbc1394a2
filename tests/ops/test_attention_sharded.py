"""Kernels over a mesh: which axes split what, agreement with numpy, and programs without transfers of q, k and v."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stvl.core.sharding import activation_sharding
from stvl.dist.mesh import RULES, MeshConfig, make_mesh
from stvl.ops.attention import (
    BACKENDS,
    AttentionOptions,
    Causal,
    Full,
    Lengths,
    Mask,
    Segments,
    attention,
    rules,
)
from stvl.ops.attention.backends import Backend, Case
from stvl.ops.attention.chunked import ChunkedCore
from stvl.ops.attention.core import declines_mask, flash
from stvl.ops.attention.sharded import Split, local_case, over_mesh, split
from stvl.ops.rotary import Rotary
from tests.contracts.attention import Shape, close, draw, draw_rotary, plain, run

MESH = {"data": 2, "tensor": 4}
SEEN: list[tuple[int, ...]] = []


def kernel(q: Any, k: Any, v: Any, rotary: Any, mask: Any, options: Any) -> jax.Array:
    """Stands for a Pallas call: it notes the shape of q, k, coords and ids that it is given."""
    ids = [x.shape for x in jax.tree.leaves(mask)]
    SEEN.append((q.shape, k.shape, None if rotary is None else rotary.coords.shape, *ids))
    return flash(ChunkedCore(), q, k, v, rotary, mask, options)


@pytest.fixture(autouse=True)
def fake_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(BACKENDS, "fake", Backend(kernel, declines_mask, kernel=True))
    SEEN.clear()
    yield


def mesh_of(**sizes: int) -> Mesh:
    return make_mesh(MeshConfig(**sizes))


def ids(tokens: int) -> np.ndarray:
    return (np.arange(tokens) >= np.array([[3], [tokens // 2]])).astype(np.int32)


CASES: dict[str, tuple[Shape, Mask, bool | None, tuple[Any, ...]]] = {
    # shape, mask, coords of each sample (None: no rotation), what one of 2 x 4 devices sees
    "all split": (Shape(2, 9, 9, 8, 4, 8), Full(), None, ((1, 9, 2, 8), (1, 9, 1, 8), None)),
    "one coords": (Shape(2, 9, 9, 4, 4, 8), Causal(), False, ((1, 9, 1, 8), (1, 9, 1, 8), (9, 3))),
    "coords of each": (Shape(2, 9, 9, 4, 4, 8), Full(), True, ((1, 9, 1, 8), (1, 9, 1, 8), (1, 9, 3))),
    "segments": (Shape(2, 9, 9, 4, 4, 8), Segments(ids(9)), None, ((1, 9, 1, 8), (1, 9, 1, 8), None, (1, 9))),
    "segments of all": (
        Shape(2, 9, 9, 4, 4, 8),
        Segments(ids(9)[1:]) & Causal(),
        True,
        ((1, 9, 1, 8), (1, 9, 1, 8), (1, 9, 3), (1, 9)),
    ),
    "lengths": (
        Shape(2, 9, 9, 4, 4, 8),
        Lengths(np.array([4, 7])),
        None,
        ((1, 9, 1, 8), (1, 9, 1, 8), None, (1,)),
    ),
    "few key heads": (Shape(2, 9, 9, 8, 2, 8), Full(), None, ((1, 9, 2, 8), (1, 9, 1, 8), None)),
    "odd samples": (Shape(3, 9, 9, 4, 4, 8), Full(), True, ((3, 9, 1, 8), (3, 9, 1, 8), (3, 9, 3))),
    "odd heads": (Shape(2, 9, 9, 6, 3, 8), Full(), None, ((1, 9, 6, 8), (1, 9, 3, 8), None)),
}


@pytest.mark.parametrize("case", CASES)
def test_kernel_over_a_mesh_agrees_with_numpy(case):
    shape, mask, batched, local = CASES[case]
    arrays = draw(shape)
    rotary = None if batched is None else draw_rotary(shape, batched=batched)
    with activation_sharding(mesh_of(**MESH), RULES):
        out, gradients = run("fake", arrays, mask, rotary)
    expected, slopes = plain(*arrays, mask, rotary)
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other, 2e-5)
    assert set(SEEN) == {local}


def test_coordinates_and_frequencies_get_the_gradients_of_all_devices():
    shape = Shape(2, 9, 9, 4, 4, 8)
    q, k, v, ct = draw(shape)

    def total(rotary: Rotary, impl: str) -> jax.Array:
        return (attention(q, k, v, rotary=rotary, impl=impl) * ct).sum()

    for batched in (False, True):
        rotary = draw_rotary(shape, batched=batched)
        expected = jax.grad(total)(rotary, "reference")
        with activation_sharding(mesh_of(**MESH), RULES):
            found = jax.jit(jax.grad(total), static_argnums=1)(rotary, "fake")
        for ours, theirs in zip(found, expected, strict=True):
            close(ours, theirs, 1e-4)


def program(impl: str, mesh: Mesh, shape: Shape) -> str:
    """HLO of forward and backward, for inputs that lie as the rules say."""
    b, n, _, h, g, e = shape
    place = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    q, k = (jax.ShapeDtypeStruct((b, n, heads, e), jnp.float32, sharding=place) for heads in (h, g))

    def total(*qkv: jax.Array) -> jax.Array:
        out = attention(*qkv, mask=Causal(), impl=impl)
        return (jax.lax.with_sharding_constraint(out, place) ** 2).sum()

    with activation_sharding(mesh, RULES):
        made = jax.jit(jax.grad(total, argnums=(0, 1, 2)), out_shardings=(place,) * 3)
        return made.lower(q, k, k).compile().as_text()


def test_no_transfer_of_queries_keys_and_values():
    text = program("fake", mesh_of(**MESH), Shape(4, 16, 16, 8, 4, 8))
    assert set(SEEN) == {((2, 16, 2, 8), (2, 16, 1, 8), None)}
    assert not re.search(r"all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter", text)


def test_without_a_mesh_the_kernel_runs_as_it_is():
    arrays = draw(Shape(2, 9, 9, 4, 4, 8))
    run("fake", arrays, Full())
    with activation_sharding(make_mesh(MeshConfig(data=1), jax.devices()[:1]), RULES):
        run("fake", arrays, Full())
    assert set(SEEN) == {((2, 9, 4, 8), (2, 9, 4, 8), None)}


def test_inside_a_shard_map_the_kernel_is_not_wrapped_again():
    q, k, v, ct = draw(Shape(8, 9, 9, 4, 4, 8))
    mesh, spec = mesh_of(data=8), PartitionSpec("data")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q, k, v, mask=Causal(), impl="fake")

    with activation_sharding(mesh, RULES):
        out = jax.jit(local)(q, k, v)
    assert SEEN == [((1, 9, 4, 8), (1, 9, 4, 8), None)]
    close(out, plain(q, k, v, ct, Causal())[0], 2e-5)


def test_masks_that_are_no_pytrees_reach_the_kernel():
    class Odd(Mask):
        """Registered nowhere."""

    def run_it(q: Any, k: Any, v: Any, rotary: Any, mask: Any, options: Any) -> jax.Array:
        assert isinstance(mask, Odd)
        return q

    q, k, v, _ = draw(Shape(2, 3, 3, 4, 4, 4))
    with activation_sharding(mesh_of(**MESH), RULES):
        assert np.array_equal(over_mesh(run_it)(q, k, v, None, Odd(), AttentionOptions()), q)


def test_splits_by_hand():
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    assert split((4, 9, 8, 8), (4, 9, 8, 8), mesh, RULES) == Split(("data", "fsdp"), ("tensor",), 1)
    assert split((2, 9, 8, 8), (2, 9, 8, 8), mesh, RULES) == Split(("data",), ("tensor",), 1)
    assert split((4, 9, 8, 8), (4, 9, 1, 8), mesh, RULES) == Split(("data", "fsdp"), ("tensor",), 2)
    assert split((4, 9, 6, 8), (4, 9, 3, 8), mesh, RULES) == Split(("data", "fsdp"), ("tensor",), 2)
    assert split((4, 9, 3, 8), (4, 9, 3, 8), mesh, RULES) == Split(("data", "fsdp"), (), 1)
    assert split((4, 9, 8, 8), (4, 9, 8, 8), mesh, RULES, without=("fsdp",)) == Split(
        ("data",), ("tensor",), 1
    )
    assert split((4, 9, 8, 8), (4, 9, 8, 8), mesh, {}) == Split((), (), 1)


def test_scores_are_counted_on_one_device():
    q, k = (jax.ShapeDtypeStruct((8, 100, heads, 16), jnp.float32) for heads in (4, 2))
    case = Case(q, k, False, Full(), AttentionOptions(), "cpu")
    assert rules.score_bytes(case) == 4 * 8 * 4 * 100 * 100
    split_case = case._replace(mesh=(mesh_of(data=2, tensor=2, context=2), RULES))
    # Four samples, two heads and half of the queries.
    assert rules.score_bytes(split_case) == 4 * 4 * 2 * 50 * 100
    local = local_case(split_case, "context")
    assert (local.q.shape, local.k.shape, local.mesh) == ((4, 50, 2, 16), (4, 50, 1, 16), None)
