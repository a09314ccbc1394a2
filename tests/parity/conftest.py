"""Golden arrays, and the tiny stvl models that they are held against."""

from __future__ import annotations

import jax
import pytest

from .compare import Arrays, load


@pytest.fixture(autouse=True)
def highest_precision():
    """Products in full f32 wherever the tests run."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def video() -> Arrays:
    """timm's EVA-02 as an image model and, driven by the paper's angles, as a video model."""
    return load("video")


@pytest.fixture(scope="session")
def text() -> Arrays:
    """transformers' CLIP text tower."""
    return load("text")


@pytest.fixture(scope="session")
def dual() -> Arrays:
    """open_clip's loss over both towers, with gradients."""
    return load("dual")


@pytest.fixture(scope="session")
def torch_installed():
    """The live twin needs the torch extra; without it the golden arrays hold the ladder."""
    pytest.importorskip("torch")
