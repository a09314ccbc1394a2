"""Rotary schemes against frozen tables of transformers and timm (tests/parity/rope_sources.py)."""

from __future__ import annotations

import numpy as np
import pytest

from stvl.rope.coords import merge_order
from stvl.rope.language import MRope
from stvl.rope.scaling import Interpolation, Scaling, YaRN
from stvl.rope.schemes import AxialRope

from . import rope_sources as sources
from .compare import Arrays, check, load
from .rope_sources import segments

SCALINGS: dict[str, Scaling] = {
    "linear": Interpolation(factor=4.0),
    "yarn": YaRN(factor=4.0, original_length=2048.0),
    "yarn_short": YaRN(factor=16.0, original_length=64.0),
}


@pytest.fixture(scope="module")
def frozen() -> Arrays:
    return load("rope")


@pytest.mark.parametrize("name", sources.SEQUENCES)
def test_mrope_indices_are_those_of_qwen2_vl(frozen, name):
    found = MRope().sequence(segments(name))
    assert np.array_equal(found.T, frozen[f"mrope/{name}/index"])
    assert MRope().next_position(segments(name)) - len(found) == frozen[f"mrope/{name}/delta"]


@pytest.mark.parametrize("name", sources.SEQUENCES)
def test_mrope_turns_as_qwen2_vl(frozen, name):
    scheme = MRope(sections=sources.SECTIONS, base=sources.BASE)
    angles = scheme.sequence(segments(name)) @ scheme.frequencies(sources.HEAD)
    check(f"M-RoPE, {name}, cos", np.cos(angles), frozen[f"mrope/{name}/cos"])
    check(f"M-RoPE, {name}, sin", np.sin(angles), frozen[f"mrope/{name}/sin"])


@pytest.mark.parametrize("number", range(len(sources.GRIDS)))
def test_vision_tower_of_qwen2_vl(frozen, number):
    grid = sources.GRIDS[number]
    scheme = AxialRope(reference_grid=None)
    angles = (scheme.coords(*grid, prefix=0) @ scheme.frequencies(24))[merge_order(*grid)]
    check(f"Qwen2-VL vision, {grid}, cos", np.cos(angles), frozen[f"vision/{number}/cos"])
    check(f"Qwen2-VL vision, {grid}, sin", np.sin(angles), frozen[f"vision/{number}/sin"])


@pytest.mark.parametrize("name", sources.STRETCHED)
def test_stretched_ladders_of_transformers(frozen, name):
    scaling = SCALINGS[name]
    check(f"{name}, ladder", scaling.ladder(32, 10000.0), frozen[f"stretched/{name}/row"])
    # Interpolation leaves scores alone, as transformers' linear scaling does.
    assert scaling.attention_factor == pytest.approx(float(frozen[f"stretched/{name}/factor"]), rel=1e-6)


@pytest.mark.parametrize(("number", "grid"), [(0, (5, 7)), (1, (24, 24))])
def test_eva_02_of_timm(frozen, number, grid):
    scheme = AxialRope()
    angles = scheme.coords(1, *grid, prefix=0) @ scheme.frequencies(32)
    check(f"EVA-02, {grid}, cos", np.cos(angles), frozen[f"eva/{number}/cos"])
    check(f"EVA-02, {grid}, sin", np.sin(angles), frozen[f"eva/{number}/sin"])
