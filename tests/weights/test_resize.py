"""Resize rules: against jax.image, worked by hand, and by the properties that define them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.core.errors import WeightsError
from stvl.weights.resize import (
    chain,
    cut_context,
    inflate,
    inflate_patch,
    resample_patch,
    resample_places,
    resample_times,
    resize_matrix,
    resize_patch,
    resize_places,
    resize_times,
)

RNG = np.random.default_rng(0)
GRIDS = [
    ((16, 16), (24, 24)),
    ((16, 16), (14, 14)),
    ((24, 24), (16, 16)),
    ((7, 7), (3, 5)),
    ((4, 6), (9, 2)),
    ((1, 1), (3, 3)),
]


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_places_agree_with_jax_image(old: tuple[int, int], new: tuple[int, int]):
    table = RNG.normal(size=(old[0] * old[1], 5))
    with jax.enable_x64(True):
        want = jax.image.resize(jnp.asarray(table).reshape(*old, 5), (*new, 5), "bicubic", antialias=True)
    found = resample_places(table, *new, source=old)
    np.testing.assert_allclose(found, np.asarray(want).reshape(-1, 5), atol=1e-6)


@given(
    old=st.integers(1, 9),
    new=st.integers(1, 9),
    antialias=st.booleans(),
    method=st.sampled_from(["bilinear", "bicubic"]),
)
def test_matrices_keep_constants_and_mirror(old: int, new: int, antialias: bool, method: str):
    matrix = resize_matrix(old, new, method, antialias)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-12)
    if old == new:
        np.testing.assert_allclose(matrix, np.eye(old), atol=1e-12)


def test_matrices_by_hand():
    # Two samples to four: centres at -1/4, 1/4, 3/4, 5/4; linear weights 3/4 and 1/4 between, held at the ends.
    want = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(resize_matrix(2, 4, "bilinear"), want)
    # Four to two with antialias: a triangle of radius 2 around 1/2: 3/4, 3/4, 1/4 of (0, 1, 2), over 7/4.
    np.testing.assert_allclose(resize_matrix(4, 2, "bilinear")[0], np.array([3, 3, 1, 0]) / 7)
    # Without it: the mean of the two samples beside 1/2.
    np.testing.assert_allclose(resize_matrix(4, 2, "bilinear", antialias=False)[0], [0.5, 0.5, 0, 0])
    # Keys at distances 1/4, 3/4 (near) and 5/4 (far) with a = -1/2: 0.8671875, 0.2265625, -0.0703125; the fourth, 7/4,
    # is -0.0234375. Row 3 of 4 -> 8 lies at 5/4 - so sample 0 at 5/4, 1 at 1/4, 2 at 3/4, 3 at 7/4.
    np.testing.assert_allclose(
        resize_matrix(4, 8, "bicubic")[3], [-0.0703125, 0.8671875, 0.2265625, -0.0234375]
    )


def test_equal_sizes_are_left_alone():
    table = RNG.normal(size=(9, 2)).astype(ml_dtypes.bfloat16)
    assert resample_places(table, 3, 3) is table
    assert resize_places(3, 3)(table, (9, 2)) is table
    assert resample_times(table, 9) is table
    kernel = RNG.normal(size=(1, 3, 3, 2, 2))
    assert resample_patch(kernel, 3) is kernel


def test_dtype_stays():
    table = RNG.normal(size=(9, 2)).astype(ml_dtypes.bfloat16)
    assert resample_places(table, 4, 4).dtype == resample_times(table, 4).dtype == table.dtype
    assert resample_patch(np.ones((1, 2, 2, 1, 1), ml_dtypes.bfloat16), 3).dtype == table.dtype


def test_times_by_hand():
    table = np.array([[0.0], [4.0]], np.float32)
    assert resample_times(table, 4)[:, 0].tolist() == [0, 1, 3, 4]
    assert resample_times(np.array([[0.0], [2.0], [4.0], [6.0]]), 2)[:, 0].tolist() == [1, 5]
    assert resample_times(table[1:], 3)[:, 0].tolist() == [4, 4, 4]


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("old", "new"), [(4, 6), (7, 8), (14, 16)])
def test_a_larger_patch_gives_the_same_token(old: int, new: int, method: str):
    """The defining property: <B x, kernel'> = <x, kernel> for every patch x that is enlarged by B."""
    kernel = RNG.normal(size=(2, old, old, 3, 5))
    made = resample_patch(kernel, new, method)
    patch = RNG.normal(size=(2, old, old, 3))
    matrix = resize_matrix(old, new, method, antialias=False)
    large = np.einsum("ay,bx,kyxc->kabc", matrix, matrix, patch)
    token, again = np.einsum("kyxc,kyxcd->d", patch, kernel), np.einsum("kyxc,kyxcd->d", large, made)
    np.testing.assert_allclose(again, token, rtol=1e-9, atol=1e-9)


def test_a_smaller_patch_gives_the_closest_token():
    """For independent pixels the error's mean square is |w - B^T w'|^2, which no other kernel makes smaller."""
    kernel = RNG.normal(size=(1, 6, 6, 1, 1))
    made = resample_patch(kernel, 4)
    one = resize_matrix(6, 4, "bilinear", antialias=False)
    matrix = np.kron(one, one)
    best, *_ = np.linalg.lstsq(matrix.T, kernel.reshape(-1), rcond=None)
    np.testing.assert_allclose(made.reshape(-1), best, atol=1e-9)


def test_tubes_keep_the_token_of_a_still_clip():
    kernel = RNG.normal(size=(1, 3, 3, 2, 4))
    for how in ("centre", "average"):
        tube = inflate(kernel, 4, how)
        assert tube.shape == (4, 3, 3, 2, 4)
        np.testing.assert_allclose(tube.sum(axis=0), kernel[0], atol=1e-12)
    assert np.array_equal(np.flatnonzero(inflate(kernel, 4, "centre").any(axis=(1, 2, 3, 4))), [2])
    assert np.array_equal(inflate(kernel, 2, "average")[0], kernel[0] / 2)


def test_rules_say_shapes_before_they_are_used():
    assert resize_places(4, 4).shape((9, 7)) == (16, 7)
    assert resize_times(4).shape((9, 7)) == (4, 7)
    assert cut_context(4).shape((9, 7)) == (4, 7)
    assert resize_patch(4).shape((2, 3, 3, 1, 7)) == (2, 4, 4, 1, 7)
    both = chain(resize_patch(4), inflate_patch(2))
    assert both.shape((1, 3, 3, 1, 7)) == (2, 4, 4, 1, 7)
    kernel = RNG.normal(size=(1, 3, 3, 1, 7))
    assert np.array_equal(both(kernel, (2, 4, 4, 1, 7)), inflate(resample_patch(kernel, 4), 2))
    assert "then patch kernel inflated to 2 frames (in the centre frame" in both.says
    assert cut_context(2)(np.arange(6).reshape(3, 2), (2, 2)).tolist() == [[0, 1], [2, 3]]


REFUSED = {
    "no square": (lambda: resize_places(4, 4).shape((10, 3)), "10 places are not of a square grid"),
    "another grid": (
        lambda: resize_places(4, 4, (2, 4)).shape((9, 3)),
        "a grid of 2 x 4 has 8 places, found 9",
    ),
    "no places": (lambda: resize_places(4, 4).shape((0, 3)), "0 places are not"),
    "places of three axes": (
        lambda: resize_places(4, 4).shape((1, 9, 3)),
        r"axes \(places, width\), found \(1, 9, 3\)",
    ),
    "no times": (lambda: resize_times(4).shape((0, 3)), r"axes \(frames, width\), found \(0, 3\)"),
    "longer context": (
        lambda: cut_context(9).shape((8, 3)),
        "a context of 9 needs 9 positions, the source has 8",
    ),
    "context of one axis": (lambda: cut_context(9).shape((8,)), r"axes \(context, width\), found \(8,\)"),
    "oblong patch": (lambda: resize_patch(4).shape((1, 2, 3, 1, 1)), r"axes \(k, p, p, c, d\), found"),
    "tube of a tube": (lambda: inflate_patch(4).shape((2, 3, 3, 1, 1)), r"axes \(1, p, p, c, d\), found \(2"),
    "other width": (
        lambda: resize_times(4)(np.ones((2, 3)), (4, 5)),
        r"makes \(4, 3\) of \(2, 3\), the model has \(4, 5\)",
    ),
    "no samples": (lambda: resize_matrix(0, 2, "bilinear"), "at least one sample, found 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str):
    action, message = REFUSED[case]
    with pytest.raises(WeightsError, match=message):
        action()
