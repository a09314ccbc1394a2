"""The TPU attention kernels, in interpret mode: the contract, several tiles, and sizes that no tile divides."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.errors import NotSupported
from stvl.ops.attention import AttentionOptions, Causal, Full, Lengths, Mask, Segments, Window, attention, tpu
from stvl.ops.attention.core import visible
from stvl.ops.attention.tpu_calls import bounds_of
from stvl.ops.attention.tpu_layout import layout_of
from tests.contracts.attention import AttentionContract, Shape, close, draw, draw_rotary, plain, run

TILES = AttentionOptions(block_q=128, block_kv=128)


class TestTpu(AttentionContract):
    backend = "tpu"
    options = TILES
    declines: ClassVar = {"custom": "neither a band nor a mask by segment ids"}


CASES: dict[str, tuple[Shape, Mask, bool]] = {
    "several tiles": (Shape(1, 300, 300, 2, 2, 64), Full(), True),
    "whole tiles": (Shape(1, 256, 256, 2, 2, 64), Full(), True),
    "queries and sources differ": (Shape(1, 130, 400, 2, 2, 64), Full(), False),
    "causal over tiles": (Shape(1, 400, 400, 2, 2, 64), Causal(), True),
    "window over tiles": (Shape(1, 520, 520, 1, 1, 128), Window(100, 30), True),
    "lengths over tiles": (Shape(2, 200, 400, 2, 2, 32), Lengths(np.array([333, 0])), False),
    "grouped heads on shared lanes": (Shape(1, 200, 200, 4, 2, 32), Causal(), True),
    "grouped wide heads": (Shape(1, 200, 200, 4, 2, 128), Causal(), True),
    "two lane tiles a head": (Shape(1, 140, 140, 2, 1, 256), Full(), True),
    "padded heads": (Shape(1, 140, 140, 3, 3, 20), Full(), True),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_over_several_tiles_agree_with_numpy(name):
    shape, mask, turned = CASES[name]
    arrays, rotary = draw(shape, seed=8), draw_rotary(shape) if turned else None
    out, gradients = run("tpu", arrays, mask, rotary, TILES)
    expected, slopes = plain(*arrays, mask, rotary)
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other, 2e-5)


@pytest.mark.parametrize("mask", [Full(), Causal(), Segments(np.array([[0] * 150 + [1] * 180 + [-1] * 20]))])
def test_sources_that_do_not_fit_vmem_are_taken_in_pieces(monkeypatch, mask):
    monkeypatch.setattr(tpu, "FORWARD_SOURCES", 256)
    monkeypatch.setattr(tpu, "BACKWARD_SOURCES", 128)
    shape = Shape(1, 350, 350, 2, 2, 64)
    arrays, rotary = draw(shape, seed=9), draw_rotary(shape)
    out, gradients = run("tpu", arrays, mask, rotary, TILES)
    expected, slopes = plain(*arrays, mask, rotary)
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other, 2e-5)


def test_rows_whose_scores_are_all_very_low_keep_their_weights():
    """Padding must not count as a score of zero: it would be the largest."""
    q = jnp.full((1, 130, 1, 64), 5.0)
    k = -q.at[:, 60:].add(0.5)
    v = jnp.asarray(np.random.default_rng(0).standard_normal((1, 130, 1, 64)), jnp.float32)
    expected, slopes = plain(q, k, v, jnp.ones_like(q), Full())
    out, gradients = run("tpu", (q, k, v, jnp.ones_like(q)), Full(), None, TILES)
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other, 1e-4)


def test_bf16_stays_near_the_reference_over_several_tiles():
    shape = Shape(1, 300, 300, 2, 2, 64)
    arrays, rotary = draw(shape, "bfloat16", seed=10), draw_rotary(shape)
    out, gradients = run("tpu", arrays, Full(), rotary, TILES)
    expected, slopes = plain(*arrays, Full(), rotary)
    for found, other in zip((out, *gradients), (expected, *slopes), strict=True):
        close(found, other, 3e-2)


def test_a_causal_mask_visits_half_of_the_sources():
    x = jnp.zeros((1, 2048, 2, 64))
    layout = layout_of(x, x, None, True, TILES, backward=False)
    bounds = np.asarray(bounds_of(visible((Causal(),), 2048, None), layout))
    visited = (bounds[:, 1] - bounds[:, 0]).sum() * layout.run
    assert layout.run == 512 and layout.tiles == 16
    assert bounds[:, 0].tolist() == [0] * 16
    assert bounds[:, 1].tolist() == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert visited / (2048 * 16) == 0.625


WRONG = [
    (
        {"options": AttentionOptions(interpret=False)},
        "float32",
        64,
        "the program is for cpu, and interpret mode is",
    ),
    ({}, "float16", 64, "the dtype is float16, the kernel takes float32 and bfloat16"),
    ({}, "float32", 264, "heads are 264 wide, the kernel takes up to 256"),
]


@pytest.mark.parametrize(("ask", "dtype", "width", "message"), WRONG)
def test_what_it_cannot_serve_is_declined_with_the_reason(ask, dtype, width, message):
    x = jnp.zeros((1, 4, 1, width), dtype)
    with pytest.raises(NotSupported, match=f"attention backend 'tpu': {message}"):
        attention(x, x, x, impl="tpu", **ask)
