"""Ring attention: the contract, agreement with numpy on 2, 3, 4 and 8 devices, balance, traffic, memory, and errors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stvl.core.errors import NotSupported
from stvl.core.sharding import activation_sharding
from stvl.dist.mesh import RULES, MeshConfig, make_mesh
from stvl.ops.attention import (
    BACKENDS,
    AttentionOptions,
    Causal,
    Full,
    Lengths,
    Mask,
    Prefix,
    Segments,
    Window,
    attention,
    explain,
    rules,
)
from stvl.ops.attention.ring import ring_attention, zigzag_order
from stvl.ops.attention.ring_plan import busiest
from tests.contracts.attention import AttentionContract, Blind, Shape, close, draw, draw_rotary, plain, run

TILES = AttentionOptions(block_q=8, block_kv=8)


def ring_mesh(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("context",))


@contextlib.contextmanager
def ring_of(devices: int) -> Iterator[Mesh]:
    mesh = ring_mesh(devices)
    with activation_sharding(mesh, {}):
        yield mesh


@pytest.mark.slow
class TestRing(AttentionContract):
    backend = "ring"
    options = AttentionOptions(block_q=16, block_kv=8)
    declines: ClassVar = {"custom": "neither a band nor a mask by segment ids"}

    @pytest.fixture(autouse=True)
    def two_devices(self) -> Iterator[None]:
        with ring_of(2):
            yield


def ids(tokens: int) -> np.ndarray:
    """Three segments and some padding, for two samples."""
    cuts = np.array([[5, 19, 31], [8, 21, 36]])
    found = (np.arange(tokens)[:, None] >= cuts[:, None]).sum(-1)
    return np.where(np.arange(tokens) < tokens - 2, found, -1).astype(np.int32)


def masks(tokens: int) -> dict[str, Mask]:
    return {
        "full": Full(),
        "causal": Causal(),
        "window": Window(6, 3),
        "prefix": Prefix(9),
        "segments & causal": Segments(ids(tokens)) & Causal(),
        "lengths": Lengths(np.array([tokens - 9, 3])),
    }


@pytest.mark.slow
@pytest.mark.parametrize("mask", masks(1))
@pytest.mark.parametrize(("devices", "tokens"), [(2, 61), (3, 37), (4, 61), (8, 37)])
def test_ring_agrees_with_numpy(devices, tokens, mask):
    """Grouped heads, rotation of each sample, and lengths that no ring divides."""
    shape, wanted = Shape(2, tokens, tokens, 4, 2, 8), masks(tokens)[mask]
    arrays, rotary = draw(shape), draw_rotary(shape, batched=True)
    with ring_of(devices):
        out, gradients = run("ring", arrays, wanted, rotary, TILES)
    expected, slopes = plain(*arrays, wanted, rotary)
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other, 2e-5)


@pytest.mark.parametrize(("queries", "sources"), [(50, 18), (3, 41)])
def test_queries_and_sources_of_different_lengths(queries, sources):
    arrays = draw(Shape(1, queries, sources, 2, 1, 8))
    with ring_of(4):
        out, gradients = run("ring", arrays, Causal(offset=2), None, TILES)
    expected, slopes = plain(*arrays, Causal(offset=2))
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other, 2e-5)


def test_no_tokens():
    q, k, v, _ = draw(Shape(1, 8, 8, 2, 2, 8))
    assert ring_attention(q[:, :0], k, v, mesh=ring_mesh(2)).shape == (1, 0, 2, 8)
    assert (np.asarray(ring_attention(q, k[:, :0], v[:, :0], mesh=ring_mesh(2))) == np.zeros(q.shape)).all()


def test_parts_are_joined_in_f32():
    """Eight bf16 parts lose no more than one: the error stays that of rounding the inputs and the result."""
    arrays = draw(Shape(1, 64, 64, 2, 2, 16), "bfloat16")
    expected, slopes = plain(*arrays, Full())
    errors = {}
    for devices in (2, 8):
        with ring_of(devices):
            out, gradients = run("ring", arrays, Full(), None, TILES)
        assert out.dtype == gradients[0].dtype == jnp.bfloat16
        errors[devices] = np.abs(np.asarray(out, np.float64) - expected).max()
        for found, slope in zip(gradients, slopes, strict=True):
            close(found, slope, 2e-2)
    # One unit in the last place of bf16 at the largest value of the output.
    assert max(errors.values()) < 2.0**-7 * np.abs(expected).max()


# The zig-zag order.


def test_zigzag_order_by_hand():
    assert zigzag_order(16, 2).tolist() == [0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11]
    assert sorted(zigzag_order(60, 5).tolist()) == list(range(60))
    with pytest.raises(ValueError, match="over 4 devices needs a multiple of 16 tokens, found 40: pad to 48"):
        zigzag_order(40, 4)


def test_busiest_device_by_hand():
    # 8 tokens, 2 devices: rows 1 .. 8 of a causal mask; 5 + 6 + 7 + 8 in plain order, 1 + 2 + 7 + 8 in zig-zag order.
    assert busiest((Causal(),), 8, 8, 2) == (26, 18)
    assert busiest((), 8, 8, 2) == (32, 32)
    assert busiest((Window(1, 0),), 8, 8, 2) == (8, 8)


@pytest.mark.parametrize("devices", [2, 3])
def test_order_changes_nothing(devices):
    tokens = 24 * devices
    shape = Shape(2, tokens, tokens, 2, 2, 8)
    arrays, mask = draw(shape), Segments(ids(tokens)) & Causal()
    expected, slopes = plain(*arrays, mask)
    with ring_of(devices):
        for zigzag in (True, False):
            options = AttentionOptions(block_q=8, block_kv=8, ring_zigzag=zigzag)
            out, gradients = run("ring", arrays, mask, None, options)
            for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
                close(found, other, 2e-5)


def test_tokens_that_the_caller_has_laid_out():
    tokens, order = 48, zigzag_order(48, 3)
    shape = Shape(2, tokens, tokens, 2, 1, 8)
    arrays, rotary = draw(shape), draw_rotary(shape)
    expected, slopes = plain(*arrays, Segments(ids(tokens)) & Causal(), rotary)
    laid = tuple(x[:, order] for x in arrays)
    turned = rotary._replace(coords=rotary.coords[order])
    options = AttentionOptions(block_q=8, block_kv=8, ring_ordered=True)
    with ring_of(3):
        out, gradients = run("ring", laid, Segments(ids(tokens)[:, order]) & Causal(), turned, options)
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other[:, order], 2e-5)


# On a mesh with other axes.


def mesh_of(**sizes: int) -> Mesh:
    return make_mesh(MeshConfig(data=1, **sizes)) if "data" not in sizes else make_mesh(MeshConfig(**sizes))


@pytest.mark.parametrize("heads", [(4, 2), (4, 1), (3, 3)])
def test_samples_and_heads_stay_split(heads):
    """Heads that the tensor axis does not divide are whole on it; a single key head is repeated."""
    mesh = mesh_of(data=2, context=2, tensor=2)
    shape = Shape(2, 37, 37, *heads, 8)
    arrays, mask = draw(shape), Segments(ids(37)) & Causal()
    rotary = draw_rotary(shape, batched=True)
    with activation_sharding(mesh, RULES):
        out, gradients = run("ring", arrays, mask, rotary, TILES)
    expected, slopes = plain(*arrays, mask, rotary)
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other, 2e-5)


def compiled(mesh: Mesh, shape: Shape, mask: Mask, dtype: str = "float32", backward: bool = True) -> Any:
    """Forward and backward over the ring, for inputs that lie as the rules say."""
    spec = PartitionSpec(*(axis if axis in mesh.shape else None for axis in ("data", "context", "tensor")))
    place = NamedSharding(mesh, spec)
    b, n, _, h, g, e = shape
    q = jax.ShapeDtypeStruct((b, n, h, e), dtype, sharding=place)
    k = jax.ShapeDtypeStruct((b, n, g, e), dtype, sharding=place)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q, k, v, mask=mask, impl="ring").astype(jnp.float32).sum()

    known = {axis: axes for axis, axes in RULES.items() if set(axes) <= set(mesh.shape)}
    with activation_sharding(mesh, known):
        made = jax.jit(jax.grad(total, argnums=(0, 1, 2)) if backward else total)
        return made.lower(q, k, k).compile()


def test_only_neighbours_exchange_and_both_ways():
    text = compiled(mesh_of(data=2, context=4), Shape(2, 64, 64, 2, 2, 8), Full()).as_text()
    assert not re.search(r"all-gather|all-to-all", text)
    hops = set(re.findall(r"collective-permute\(.*source_target_pairs=\{(\{.*?\})\}", text))
    ahead = "{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}"
    back = "{0,3},{1,0},{2,1},{3,2},{4,7},{5,4},{6,5},{7,6}"
    assert hops == {ahead, back}


@pytest.mark.parametrize("local", [name for name, backend in BACKENDS.items() if backend.core is not None])
def test_any_core_works_on_the_devices(local):
    arrays, mask = draw(Shape(1, 21, 21, 2, 1, 16)), Causal()
    with ring_of(2):
        out, gradients = run("ring", arrays, mask, None, AttentionOptions(ring_local=local))
    expected, slopes = plain(*arrays, mask)
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other, 2e-5)


def test_ring_inside_scan_and_remat():
    """As a stack of layers uses it; the gradient of three layers with shared keys against the chunked backend."""
    q, k, v, ct = draw(Shape(2, 24, 24, 2, 2, 8))

    def total(q: jax.Array, k: jax.Array, impl: str) -> jax.Array:
        @jax.checkpoint
        def layer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return x + attention(x, k, v, mask=Causal(), impl=impl, options=TILES), None

        return (jax.lax.scan(layer, q, length=3)[0] * ct).sum()

    expected = jax.jit(jax.grad(total, argnums=(0, 1)), static_argnums=2)(q, k, "chunked")
    with activation_sharding(mesh_of(data=2, context=4), RULES):
        found = jax.jit(jax.grad(total, argnums=(0, 1)), static_argnums=2)(q, k, "ring")
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, 2e-5)


# Choice and errors.


def test_ring_is_chosen_where_split_tokens_make_too_many_scores(monkeypatch):
    q, k, v, ct = draw(Shape(2, 16, 16, 2, 2, 8))
    with activation_sharding(mesh_of(data=2, context=2, tensor=2), RULES):
        assert explain(q, k, v) == ("xla", {})
        # A device has one sample, one head and half of the queries.
        monkeypatch.setattr(rules, "SCORES_LIMIT", 100)
        impl, reasons = explain(q, k, v)
        assert impl == "ring"
        assert reasons == {"xla": "the scores take 512 bytes, the limit is 100"}
        close(attention(q, k, v, mask=Causal()), plain(q, k, v, ct, Causal())[0], 2e-5)
    with activation_sharding(mesh_of(data=8), RULES):
        impl, reasons = explain(q, k, v)
        assert (impl, reasons["ring"]) == ("chunked", "no mesh axis 'context' splits the tokens")


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        (
            None,
            {},
            r"backend 'ring': no mesh is in force: trace inside stvl.core.sharding.activation_sharding",
        ),
        ({"data": 8}, {}, "mesh axis 'context' has one device: give it more"),
        (
            {"context": 8},
            {"ring_axis": "contest"},
            r"the mesh has no axis 'contest' \(did you mean 'context'\?\)",
        ),
        (
            {"context": 8},
            {"ring_local": "xla"},
            r"'xla' cannot work on a part of the sources \(there are: chunked",
        ),
    ],
)
def test_no_ring_says_why(sizes, options, message):
    q, k, v, _ = draw(Shape(1, 8, 8, 2, 2, 4))
    force = contextlib.nullcontext() if sizes is None else activation_sharding(mesh_of(**sizes), RULES)
    with force, pytest.raises(NotSupported, match=message):
        attention(q, k, v, impl="ring", options=AttentionOptions(**options))


def test_what_the_caller_did_wrong():
    q, k, v, _ = draw(Shape(1, 12, 12, 2, 2, 4))
    with ring_of(2) as mesh:
        with pytest.raises(
            ValueError, match=r"unknown local backend 'chunky' of the ring \(did you mean 'chunked'"
        ):
            attention(q, k, v, impl="ring", options=AttentionOptions(ring_local="chunky"))
        with pytest.raises(ValueError, match="needs a multiple of 8 tokens, found 12: pad to 16"):
            attention(q, k, v, impl="ring", options=AttentionOptions(ring_ordered=True))
        with pytest.raises(ValueError, match="ring_zigzag must be True or None, found False"):
            attention(q, k, v, impl="ring", options=AttentionOptions(ring_ordered=True, ring_zigzag=False))
        with pytest.raises(NotSupported, match="Blind is neither a band"):
            ring_attention(q, k, v, mesh=mesh, mask=Blind())
        spec = PartitionSpec(None, "context")
        inner = jax.shard_map(
            lambda q, k, v: attention(q, k, v, impl="ring"), mesh=mesh, in_specs=(spec,) * 3, out_specs=spec
        )
        with pytest.raises(NotSupported, match=r"inside a shard_map over \('context',\) already"):
            inner(q, k, v)
    with pytest.raises(NotSupported, match="the mesh has no axis 'context'"):
        ring_attention(q, k, v, mesh=Mesh(np.array(jax.devices()), ("data",)))
