"""Rules move numbers and never change one: the way back gives every bit again."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.weights.matching import hollow, part_shapes, source_shape
from stvl.weights.rules import First, Flat, Kernel, Leading, Linear, Patches, Rule, Split

from .tools import same_bits

SIDE = st.integers(1, 5)
DTYPES = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float64])


def case(
    kind: str, sides: tuple[int, int, int, int]
) -> tuple[Rule, tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """A rule, a source shape, and the shapes that it has to make of it, worked out by hand."""
    d, h, e, p = sides
    cases: dict[str, tuple[tuple, tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
        "none": ((), (d, e), ((d, e),)),
        "kernel": ((Kernel(),), (d, e), ((d, e),)),
        "dense": ((Linear(),), (e, d), ((d, e),)),
        "to heads": ((Linear(),), (h * e, d), ((d, h, e),)),
        "from heads": ((Linear(inputs=2),), (d, h * e), ((h, e, d),)),
        "bias": ((Flat(),), (h * e,), ((h, e),)),
        "fused": ((Split(), Linear()), (3 * h * e, d), 3 * ((d, h, e),)),
        "fused bias": ((Split(), Flat()), (3 * h * e,), 3 * ((h, e),)),
        "two in one": ((Split(2), Linear()), (2 * e, d), 2 * ((d, e),)),
        "table": ((First(),), (h * h + 1, d), ((d,), (h * h, d))),
        "table of one": ((Leading(), First()), (1, h * h + 1, d), ((d,), (h * h, d))),
        "token": ((Leading(2),), (1, 1, d), ((d,),)),
        "patches": ((Patches(),), (d, e, p, p), ((1, p, p, e, d),)),
    }
    steps, shape, targets = cases[kind]
    return Rule("x", tuple(f"t{i}" for i in range(len(targets))), steps), shape, targets


KINDS = (
    "none", "kernel", "dense", "to heads", "from heads", "bias", "fused", "fused bias", "two in one", "table",
    "table of one", "token", "patches",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(sides=st.tuples(SIDE, SIDE, SIDE, SIDE), dtype=DTYPES, seed=st.integers(0, 99))
def test_back_and_forth(kind: str, sides: tuple[int, int, int, int], dtype: Any, seed: int):
    rule, shape, targets = case(kind, sides)
    width = np.dtype(dtype).itemsize
    bits = np.random.default_rng(seed).integers(0, 256, math.prod(shape) * width, np.uint8)
    array = bits.view(dtype).reshape(shape)
    parts = rule.forward(array, targets)
    assert tuple(part.shape for part in parts) == targets
    assert same_bits(rule.backward(parts), array)
    assert part_shapes(rule, shape, targets) == targets
    assert source_shape(rule, targets) == shape


def test_values_by_hand():
    array = np.arange(12).reshape(6, 2)  # (3 * h * e, d) with h = 1, e = 2, d = 2
    q, k, v = Rule("x", ("q", "k", "v"), (Split(), Linear())).forward(array, 3 * ((2, 1, 2),))
    assert q.tolist() == [[[0, 2]], [[1, 3]]]
    assert k.tolist() == [[[4, 6]], [[5, 7]]]
    assert v.tolist() == [[[8, 10]], [[9, 11]]]
    conv = np.arange(8).reshape(1, 2, 2, 2)  # d, c, y, x
    (tube,) = Rule("x", ("k",), (Patches(),)).forward(conv, ((1, 2, 2, 2, 1),))
    assert tube[0, 1, 0, :, 0].tolist() == [2, 6]  # y = 1, x = 0: channel 0, then 1
    first, rest = Rule("x", ("c", "p"), (First(),)).forward(array, ((2,), (5, 2)))
    assert first.tolist() == [0, 1]
    assert rest[0].tolist() == [2, 3]


def test_a_reshape_that_only_fits_by_count_is_refused():
    """(4, 6) transposed is (6, 4); folding it to (4, 6) would mix rows and columns."""
    dense, heads = Rule("x", ("t",), (Linear(),)), Rule("x", ("t",), (Linear(),))
    assert part_shapes(dense, (4, 6), ((4, 6),)) is None
    assert part_shapes(dense, (4, 6), ((6, 4),)) == ((6, 4),)
    assert part_shapes(heads, (6, 4), ((2, 3, 4),)) is None
    assert part_shapes(heads, (5, 4), ((2, 3, 4),)) is None


def test_shapes_need_no_memory():
    big = hollow((1 << 20, 1 << 20))
    assert big.strides == (0, 0)
    assert (
        part_shapes(Rule("x", ("t",), (Linear(),)), (1 << 20, 1 << 20), ((1 << 20, 64, 1 << 14),)) is not None
    )
