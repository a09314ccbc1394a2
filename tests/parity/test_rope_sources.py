"""The frozen rotary tables are what transformers and timm give today; and what they give beyond them."""

from __future__ import annotations

import numpy as np
import pytest

from stvl.rope.language import MRope
from stvl.rope.schemes import AxialRope

from . import rope_sources as sources
from .compare import check, load
from .rope_sources import segments

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("torch_installed")]


@pytest.fixture(scope="module")
def release() -> tuple[int, int]:
    """Release of transformers."""
    major, minor, *_ = pytest.importorskip("transformers").__version__.split(".")
    return int(major), int(minor)


def test_golden_tables_are_what_the_sources_give(release):
    pytest.importorskip("timm")
    frozen, made = load("rope"), sources.build()
    assert sorted(frozen) == sorted(made)
    for key in set(made) - {"versions"}:
        if not (release >= (5, 3) and key.startswith("mrope/long")):
            np.testing.assert_allclose(made[key], frozen[key], rtol=1e-6, atol=1e-6, err_msg=key)


def test_only_text_behind_a_long_video_is_numbered_otherwise_by_transformers_5(release):
    """Nine frames of 2 x 3 tokens from index 4: Qwen2-VL goes on at 4 + 9, transformers 5.3 and later at 4 + 3."""
    found, _ = sources.positions("long")
    ours = MRope().sequence(segments("long")).T
    video = 4 + 9 * 2 * 3
    assert np.array_equal(found[:, :video], ours[:, :video])
    behind = {True: 4 + 3, False: 4 + 9}[release >= (5, 3)]
    assert (ours[:, video] == 4 + 9).all()
    assert (found[:, video] == behind).all()


@pytest.mark.parametrize("seconds", [0.083, 0.25, 1 / 3, 0.5, 0.7, 1.0, 1.3, 2.0])
def test_seconds_of_qwen2_5_vl(release, seconds):
    if release < (5, 0):
        seconds = float(max(int(seconds), 1))  # transformers 4 cuts off fractions of seconds
    scheme = MRope(tokens_per_second=2.0)
    video = segments("video", seconds)[:2]
    found, _ = sources.positions("video", seconds)
    ours = scheme.sequence(video).T
    assert np.array_equal(found[:, : ours.shape[1]], ours)


@pytest.mark.parametrize(("grid", "head"), [((14, 14), 64), ((3, 17), 16), ((24, 24), 88)])
def test_rotary_of_timm(grid, head):
    pytest.importorskip("timm")
    cos, sin = sources.eva_tables(*grid, head)
    scheme = AxialRope()
    angles = scheme.coords(1, *grid, prefix=0) @ scheme.frequencies(head)
    check(f"timm, {grid}, cos", np.cos(angles), cos)
    check(f"timm, {grid}, sin", np.sin(angles), sin)
