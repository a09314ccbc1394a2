"""The GPU attention core: the contract step by step on a CPU, the tiles it visits, and its lowering for CUDA."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from stvl.core.errors import NotSupported
from stvl.ops.attention import (
    AttentionOptions,
    Band,
    BlockCausal,
    Causal,
    Full,
    Lengths,
    Prefix,
    Window,
    attention,
)
from stvl.ops.attention.core import Visible, flash, limits
from stvl.ops.attention.gpu import GpuCore
from stvl.ops.attention.gpu_tiles import TABLE, Tiles, choose, needed, spans
from stvl.ops.attention.shapes import SHAPES as NAMED
from stvl.ops.rotary import Rotary
from tests.contracts.attention import (
    SHAPES,
    TOLERANCE,
    AttentionContract,
    Shape,
    close,
    draw,
    draw_rotary,
    plain,
    run,
)

SMALL = AttentionOptions(block_q=16, block_kv=16, block_q_backward=16, block_kv_backward=16)


class TestGpu(AttentionContract):
    backend = "gpu"
    options = SMALL
    declines: ClassVar = {"custom": "neither a band nor a mask by segment ids"}


@pytest.mark.parametrize("width", [12, 16])
@pytest.mark.parametrize("loads", [0, 99], ids=["turned ahead", "turned as they are loaded"])
def test_heads_are_turned_the_same_ahead_and_as_they_are_loaded(loads, width):
    shape = Shape(1, 40, 40, 4, 2, width)
    arrays, rotary = draw(shape), draw_rotary(shape)
    *qkv, ct = arrays

    def total(*qkv: Any) -> Any:
        out = flash(GpuCore(loads=loads), *qkv, rotary, Causal(), SMALL)
        return (out * ct).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*qkv)
    expected, slopes = plain(*arrays, Causal(), rotary)
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other, TOLERANCE["float32"])


def test_samples_have_their_own_coordinates_and_lengths():
    shape, mask = Shape(2, 40, 40, 2, 1, 16), Lengths(np.array([23, 40]), np.array([40, 9]))
    arrays, rotary = draw(shape), draw_rotary(shape, batched=True)
    assert not np.array_equal(*np.asarray(rotary.coords))
    out, gradients = run("gpu", arrays, mask, rotary, SMALL)
    expected, slopes = plain(*arrays, mask, rotary)
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other, TOLERANCE["float32"])


def test_parts_of_the_sources_add_up_as_in_a_ring():
    """Two calls, each with every other quarter of the sources at positions known at run time only, under one lse."""
    q, k, v, ct = arrays = draw(Shape(1, 48, 64, 2, 1, 16))
    first, last = np.arange(48, dtype=np.int32) - 20, np.arange(48, dtype=np.int32) + 9
    first[5], last[5] = 70, 80  # sees nobody
    core, halves = GpuCore(), [np.r_[0:16, 48:64], np.r_[16:48]]

    def seen(half: Any) -> Visible:
        return Visible(first=first, last=last, at=jnp.asarray(half, jnp.int32))

    @jax.jit
    def parts(q: Any, k: Any, v: Any, ct: Any) -> Any:
        some = [core.forward(q, k[:, half], v[:, half], None, seen(half), SMALL) for half in halves]
        outs, lses = (jnp.stack(x) for x in zip(*some, strict=True))
        lse = jax.nn.logsumexp(lses, axis=0)
        shares = jnp.where(jnp.isfinite(lse), jnp.exp(lses - jnp.where(jnp.isfinite(lse), lse, 0)), 0)
        out = jnp.einsum("pbqhe,pbhq->bqhe", outs, shares)
        changes = [
            core.backward(q, k[:, half], v[:, half], None, seen(half), SMALL, (out, lse), ct)
            for half in halves
        ]
        return out, sum(x[0] for x in changes), [x[1] for x in changes], [x[2] for x in changes]

    out, dq, dks, dvs = parts(*arrays)
    place = np.arange(64)
    allowed = (place >= first[:, None]) & (place <= last[:, None])
    scores = np.einsum("bqhe,bsge->bhqs", np.asarray(q, np.float64), np.asarray(k, np.float64)) / 4
    weights = np.where(allowed, np.exp(scores), 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    towards = np.einsum("bqhe,bsge->bhqs", np.asarray(ct), np.asarray(v))
    change = weights * (towards - (weights * towards).sum(-1, keepdims=True)) / 4
    close(out, np.einsum("bhqs,bsge->bqhe", weights, np.asarray(v)), 2e-5)
    close(dq, np.einsum("bhqs,bsge->bqhe", change, np.asarray(k)), 2e-5)
    dk, dv = (
        np.einsum("bhqs,bqhe->bse", x, np.asarray(y))[:, :, None] for x, y in ((change, q), (weights, ct))
    )
    for half, found_k, found_v in zip(halves, dks, dvs, strict=True):
        close(found_k, dk[:, half], 2e-5)
        close(found_v, dv[:, half], 2e-5)


def test_log_sums_are_natural_and_minus_infinity_for_blind_rows():
    q, k, v, _ = draw(Shape(1, 20, 20, 1, 1, 16))
    visible = Visible(first=np.zeros(20, np.int32), last=np.arange(20, dtype=np.int32) - 3)
    out, lse = GpuCore().forward(q, k, v, None, visible, SMALL)
    scores = np.asarray(q, np.float64)[0, :, 0] @ np.asarray(k, np.float64)[0, :, 0].T / 4
    expected = [np.log(np.exp(scores[i, : i - 2]).sum()) for i in range(3, 20)]
    assert np.isneginf(np.asarray(lse)[0, 0, :3]).all()
    assert not np.asarray(out)[0, :3].any()
    close(lse[0, 0, 3:], expected, 1e-5)


@pytest.mark.parametrize("shape", [Shape(2, 0, 5, 2, 1, 8), Shape(2, 5, 0, 2, 1, 8), Shape(0, 5, 5, 2, 1, 8)])
def test_nothing_to_attend_to_gives_zeros(shape):
    q, k, v, ct = draw(shape)
    out, lse = GpuCore().forward(q, k, v, None, Visible(), SMALL)
    changes = GpuCore().backward(q, k, v, None, Visible(), SMALL, (out, lse), ct)
    assert [x.shape for x in (out, *changes)] == [x.shape for x in (q, q, k, v)]
    assert not any(np.asarray(x).any() for x in (out, *changes))
    assert np.isneginf(np.asarray(lse)).all()


# Tiles.


def band_spans(mask: Band, queries: int, sources: int, tiles: Tiles, by_source: bool = False) -> Any:
    first, last = limits((mask,), np.arange(queries, dtype=np.int32))
    return spans(needed(Visible(first, last), sources), queries, sources, tiles, by_source)


def test_causal_attention_visits_about_half_of_the_tiles():
    found = band_spans(Causal(), 4096, 4096, Tiles(128, 64, 4, 3))
    start, full_start, full_stop, stop = found.bounds[0].T
    # Tile i of 128 queries sees 2 i full tiles of 64 sources, and two on the diagonal.
    assert start.tolist() == full_start.tolist() == [0] * 32
    assert full_stop.tolist() == [2 * i for i in range(32)]
    assert stop.tolist() == [2 * i + 2 for i in range(32)]
    assert (stop - start).sum() == 1056  # of 2048
    assert found.parts == (False, True, True)
    assert found.longest_last


def test_causal_gradient_of_the_sources_starts_at_the_diagonal():
    found = band_spans(Causal(), 4096, 4096, Tiles(64, 128, 8, 2), by_source=True)
    start, full_start, full_stop, stop = found.bounds[0].T
    assert start.tolist() == [2 * j for j in range(32)]
    assert full_start[:-1].tolist() == [2 * j + 2 for j in range(31)]
    assert (full_stop == 64)[:-1].all()
    assert (stop == 64).all()
    assert not found.longest_last


def test_lengths_that_divide_need_no_mask_and_others_one_masked_tile():
    tiles = Tiles(128, 64, 4, 3)
    whole, ragged = (spans(Visible(), n, n, tiles, False) for n in (4096, 4097))
    assert (whole.fixed, whole.parts) == ((0, 0, 64, 64), (False, True, False))
    assert (ragged.fixed, ragged.parts) == ((0, 0, 64, 65), (False, True, True))
    by_source = spans(Visible(), 4097, 4097, Tiles(64, 128, 8, 2), True)
    assert by_source.fixed == (0, 0, 64, 65)


def test_conditions_that_always_hold_are_dropped():
    first, last = limits((Causal(),), np.arange(9, dtype=np.int32))
    kept = needed(Visible(first, last), 9)
    assert kept.first is None
    assert kept.last is last
    first, last = limits((Full(),), np.arange(9, dtype=np.int32))
    assert needed(Visible(first, last, np.arange(9)), 9) == Visible()
    at_run_time = Visible(jnp.asarray(first), None, jnp.arange(9))
    assert needed(at_run_time, 9) is not None
    assert needed(at_run_time, 9).first is at_run_time.first


LATE = ("at", "q_ids", "s_ids")
BANDS = st.one_of(
    st.builds(Causal, st.integers(-40, 40)),
    st.builds(Window, st.integers(0, 50), st.integers(0, 50)),
    st.builds(Prefix, st.integers(0, 80)),
    st.builds(BlockCausal, st.integers(1, 40)),
)


@settings(max_examples=60)
@given(
    mask=BANDS,
    sizes=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    blocks=st.tuples(st.sampled_from([4, 16, 32]), st.sampled_from([4, 16, 32])),
    cuts=st.lists(st.integers(0, 90), max_size=3),
    by_source=st.booleans(),
    run_time=st.booleans(),
)
def test_spans_hold_all_visible_pairs_and_full_tiles_hide_none(
    mask, sizes, blocks, cuts, by_source, run_time
):
    (queries, sources), (block_q, block_kv) = sizes, blocks
    first, last = limits((mask,), np.arange(queries, dtype=np.int32))
    # Segments of a packed sequence; what lies behind the last cut is padding.
    ids = np.searchsorted(sorted(cuts), np.arange(90), side="right").astype(np.int32)
    ids = np.where(ids == len(cuts), -1 if cuts else 0, ids)[None]
    given_ids = [ids[:, :n] for n in sizes] if cuts else [None, None]
    visible = Visible(first, last, None, *given_ids)
    found = spans(visible, queries, sources, Tiles(block_q, block_kv, 4, 2), by_source)
    pairs = np.array(mask.as_array(queries, sources))
    if cuts:
        pairs &= (ids[0, :queries, None] == ids[0, None, :sources]) & (ids[0, :queries, None] >= 0)
    outer, inner = (block_kv, block_q) if by_source else (block_q, block_kv)
    pairs = pairs.T if by_source else pairs
    bounds = np.asarray(found.bounds)[0]
    assert len(bounds) == -(-len(pairs) // outer)
    for tile, (start, full_start, full_stop, stop) in enumerate(bounds):
        rows = pairs[tile * outer : (tile + 1) * outer]
        assert start <= full_start <= full_stop <= stop <= -(-pairs.shape[1] // inner)
        assert not rows[:, : start * inner].any()
        assert not rows[:, stop * inner :].any()
        assert rows[:, full_start * inner : full_stop * inner].all()
        # A full tile does not reach beyond the end either, unless it is empty.
        assert full_start == full_stop or full_stop * inner <= pairs.shape[1]


@pytest.mark.parametrize("by_source", [False, True])
@pytest.mark.parametrize("traced", ["at", "ids"])
def test_spans_found_at_run_time_are_those_found_ahead(traced, by_source):
    first, last = limits((Window(20, 9),), np.arange(50, dtype=np.int32))
    at = np.r_[0:16, 48:64].astype(np.int32)
    ids = np.repeat(np.array([[0, 1, 2, -1], [0, 0, 3, 4]], np.int32), 13, axis=1)
    ahead = (
        Visible(first, last, at) if traced == "at" else Visible(first, last, None, ids[:, :50], ids[:, 1:33])
    )
    # jnp.asarray of a field is what a traced mask is to `spans`: not numpy.
    given_late = {
        name: jnp.asarray(x) for name, x in ahead._asdict().items() if x is not None and name in LATE
    }
    tiles = Tiles(16, 8, 4, 2)
    known, late = (spans(x, 50, 32, tiles, by_source) for x in (ahead, ahead._replace(**given_late)))
    assert np.array_equal(np.asarray(late.bounds), known.bounds)
    assert (late.fixed, late.parts) == (None, (True, True, True))


def test_tiles_are_powers_of_two_and_shrink_with_the_sequence():
    for lines in TABLE.values():
        for outer, inner, warps, stages in lines.values():
            assert all(x & (x - 1) == 0 for x in (outer, inner, warps))
            assert min(outer, inner) >= 16
            assert stages >= 1
    assert choose("forward", (4097, 4097), 64, 2, AttentionOptions()) == Tiles(128, 64, 4, 3)
    assert choose("sources", (4097, 4097), 64, 2, AttentionOptions())[:2] == (64, 128)
    assert choose("forward", (16, 16), 64, 2, AttentionOptions()) == Tiles(16, 16, 1, 3)
    asked = AttentionOptions(block_q=64, block_kv_backward=32)
    assert choose("forward", (4097, 4097), 64, 2, asked)[:2] == (64, 64)
    assert choose("queries", (4097, 4097), 64, 2, asked)[:2] == (128, 32)


# Lowering for CUDA, without a CUDA device.

H200 = AbstractMesh((1,), ("x",), abstract_device=AbstractDevice("NVIDIA H200", None, "gpu"))
CALL = "__gpu$xla.gpu.triton"


def lowered(name: str, dtype: str, turned: bool) -> str:
    """Forward and backward of a named shape as StableHLO for CUDA."""
    shape = NAMED[name]
    q = jax.ShapeDtypeStruct((shape.b, shape.q, shape.h, shape.e), dtype)
    k = jax.ShapeDtypeStruct((shape.b, shape.s, shape.g, shape.e), dtype)
    parts = [(shape.q, 3), (3, shape.e // 2)]
    rotary = Rotary(*(jax.ShapeDtypeStruct(part, jnp.float32) for part in parts)) if turned else None
    options = AttentionOptions(interpret=False)

    def total(q: Any, k: Any, v: Any, rotary: Any) -> Any:
        return flash(GpuCore(), q, k, v, rotary, shape.mask, options).astype(jnp.float32).sum()

    # jax 0.11 asks which GPU it shall lower for; jax 0.10 takes compute capability 9.0 where none is at hand.
    with use_abstract_mesh(H200):
        traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k, rotary)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("turned", [True, False], ids=["turned", "plain"])
@pytest.mark.parametrize("name", ["l14-16f", "b16-4f", "text-77", "grouped-8k", "time-only"])
def test_kernels_are_lowered_for_cuda_without_a_gpu(name, turned):
    text = lowered(name, "bfloat16", turned)
    calls = [line for line in text.splitlines() if f"@{CALL}(" in line]
    assert [re.findall(r'name = "stvl_attention_(\w+)"', line) for line in calls] == [
        ["forward"],
        ["queries"],
        ["sources"],
    ]
    shape, forward = NAMED[name], calls[0]
    tiles = choose("forward", (shape.q, shape.s), shape.e, 2, AttentionOptions())
    # Triton has three axes of programs, of which the first two are taken together when there are more.
    programs = [int(re.findall(rf"grid_{axis} = (\d+)", forward)[0]) for axis in "xyz"]
    assert np.prod(programs) == -(-shape.q // tiles.block_q) * shape.h * shape.b
    assert f"num_warps = {tiles.warps} " in forward


def test_f32_is_lowered_for_cuda_too():
    assert lowered("l14-16f", "float32", True).count(f"@{CALL}(") == 3


# What it does not serve.

DECLINED: list[tuple[Shape, str, AttentionOptions, str]] = [
    (
        Shape(1, 8, 8, 1, 1, 8),
        "float8_e4m3fn",
        SMALL,
        "one of float32, bfloat16, float16 for all, found float8",
    ),
    (
        Shape(1, 8, 8, 1, 1, 320),
        "float32",
        SMALL,
        "heads 320 wide do not fit into shared memory, 256 is the widest",
    ),
    (Shape(1, 8, 8, 1, 1, 8), "float32", AttentionOptions(block_q=24), "power of two .* found block_q=24"),
    (
        Shape(1, 8, 8, 1, 1, 8),
        "float32",
        AttentionOptions(block_kv_backward=8),
        "16 or more, found block_kv_back",
    ),
    (Shape(1, 8, 8, 1, 1, 8), "float32", AttentionOptions(interpret=False), "runs on a GPU, here is a cpu"),
]


@pytest.mark.parametrize(("shape", "dtype", "options", "reason"), DECLINED)
def test_cases_that_it_cannot_serve_are_declined_with_the_reason(shape, dtype, options, reason):
    q, k, v, _ = draw(shape, dtype)
    with pytest.raises(NotSupported, match=f"attention backend 'gpu': .*{reason}"):
        attention(q, k, v, options=options, impl="gpu")


def test_a_jax_without_triton_is_declined(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    q, k, v, _ = draw(SHAPES["one token"])
    with pytest.raises(NotSupported, match=r"jax \S+ has no Triton lowering of Pallas"):
        attention(q, k, v, impl="gpu")


# On a GPU: the tiles of the table, at the sizes that they are meant for.


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["l14-16f", "b16-4f", "text-77", "time-only", "window-8x7x7", "grouped-8k"])
def test_full_size_agrees_with_xla_on_a_gpu(name, dtype):
    shape = NAMED[name]
    size = Shape(min(shape.b, 2), min(shape.q, 2049), min(shape.s, 2049), shape.h, shape.g, shape.e)
    arrays, rotary = draw(size, dtype), draw_rotary(size)
    exact = tuple(x.astype(jnp.float32) for x in arrays)
    with jax.default_matmul_precision("highest"):
        expected, slopes = run("reference", exact, shape.mask, rotary)
    out, gradients = run("gpu", arrays, shape.mask, rotary)
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other, TOLERANCE[dtype])
