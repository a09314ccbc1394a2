"""What the generator and the tests of the parity ladder share: tiny sizes, random weights by seed, the measure of a gap.

Plain numpy: the generator runs where neither jax nor stvl is installed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

GOLDEN = Path(__file__).parent / "golden"

#: EVA-CLIP normalises pixels as CLIP does (arXiv 2103.00020; `OPENAI_CLIP_MEAN` and `_STD` of the public models).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class VideoSizes:
    """A tiny EVA-02 on a 5 x 5 grid, so that rescaled coordinates are no whole numbers."""

    width: int = 32
    depth: int = 2
    heads: int = 2
    patch: int = 4
    image: int = 20
    frames: int = 4
    embedding: int = 12

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image // self.patch

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """SwiGLU width."""
        return int(self.width * 4 * 2 / 3)


@dataclasses.dataclass(frozen=True)
class TextSizes:
    """A tiny CLIP text tower; the last two ids are the start and the end of a text."""

    width: int = 24
    depth: int = 2
    heads: int = 3
    context: int = 12
    vocabulary: int = 64
    embedding: int = 12


class Draw:
    """Named random weights; rounded to half precision, so that files are small and every reader sees one value."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.weights: Arrays = {}

    def array(self, name: str, *shape: int, scale: float = 1.0, mean: float = 0.0) -> None:
        """Normal values."""
        self.weights[name] = (
            (mean + scale * self.rng.normal(size=shape)).astype(np.float16).astype(np.float32)
        )

    def norm(self, name: str, width: int) -> None:
        """Scales around 1 and biases around 0, both far enough from them to matter."""
        self.array(f"{name}.weight", width, scale=0.3, mean=1.0)
        self.array(f"{name}.bias", width, scale=0.3)

    def linear(self, name: str, out: int, width: int, bias: bool = True, gain: float = 1.0) -> None:
        """(out, in) as torch keeps it."""
        self.array(f"{name}.weight", out, width, scale=gain * width**-0.5)
        if bias:
            self.array(f"{name}.bias", out, scale=0.3)


def video_weights(sizes: VideoSizes, seed: int) -> Arrays:
    """Weights of a tiny EVA-02 under timm's names, and P_t under ``time``."""
    d, draw = sizes.width, Draw(seed)
    draw.array("cls_token", 1, 1, d)
    draw.array("pos_embed", 1, 1 + sizes.side**2, d, scale=0.5)
    draw.array("time", sizes.frames, d, scale=0.5)
    draw.array("patch_embed.proj.weight", d, 3, sizes.patch, sizes.patch, scale=(3 * sizes.patch**2) ** -0.5)
    draw.array("patch_embed.proj.bias", d, scale=0.3)
    for i in range(sizes.depth):
        draw.norm(f"blocks.{i}.norm1", d)
        # A gain of 2 makes scores of a few units, so that the softmax is neither flat nor one-hot.
        draw.linear(f"blocks.{i}.attn.q_proj", d, d, gain=2.0)
        draw.linear(f"blocks.{i}.attn.k_proj", d, d, bias=False, gain=2.0)
        draw.linear(f"blocks.{i}.attn.v_proj", d, d)
        draw.norm(f"blocks.{i}.attn.norm", d)
        draw.linear(f"blocks.{i}.attn.proj", d, d)
        draw.norm(f"blocks.{i}.norm2", d)
        draw.linear(f"blocks.{i}.mlp.fc1_g", sizes.hidden, d)
        draw.linear(f"blocks.{i}.mlp.fc1_x", sizes.hidden, d)
        draw.norm(f"blocks.{i}.mlp.norm", sizes.hidden)
        draw.linear(f"blocks.{i}.mlp.fc2", d, sizes.hidden)
    draw.norm("norm", d)
    draw.linear("head", sizes.embedding, d, bias=False)
    return draw.weights


def text_weights(sizes: TextSizes, seed: int) -> Arrays:
    """Weights of a tiny CLIP text tower under the names of transformers."""
    d, draw = sizes.width, Draw(seed)
    draw.array("text_model.embeddings.token_embedding.weight", sizes.vocabulary, d)
    draw.array("text_model.embeddings.position_embedding.weight", sizes.context, d, scale=0.5)
    for i in range(sizes.depth):
        layer = f"text_model.encoder.layers.{i}"
        draw.norm(f"{layer}.layer_norm1", d)
        for name in ("q_proj", "k_proj"):
            draw.linear(f"{layer}.self_attn.{name}", d, d, gain=2.0)
        for name in ("v_proj", "out_proj"):
            draw.linear(f"{layer}.self_attn.{name}", d, d)
        draw.norm(f"{layer}.layer_norm2", d)
        draw.linear(f"{layer}.mlp.fc1", 4 * d, d)
        draw.linear(f"{layer}.mlp.fc2", d, 4 * d)
    draw.norm("text_model.final_layer_norm", d)
    draw.linear("text_projection", sizes.embedding, d, bias=False)
    return draw.weights


def token_ids(sizes: TextSizes, rows: int, seed: int) -> Int[np.ndarray, "b l"]:
    """Texts of different lengths: start, words, end, padding 0; the last one fills the context."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((rows, sizes.context), np.int32)
    for row, length in enumerate(np.linspace(3, sizes.context, rows).astype(int)):
        ids[row, :length] = rng.integers(1, sizes.vocabulary - 2, length)
        ids[row, [0, length - 1]] = sizes.vocabulary - 2, sizes.vocabulary - 1
    return ids


def part(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """The arrays below ``prefix/``, without it."""
    return {name.removeprefix(f"{prefix}/"): a for name, a in arrays.items() if name.startswith(f"{prefix}/")}


def load(name: str) -> Arrays:
    """A golden file, weights widened to f32."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: a.astype(np.float32) if a.dtype == np.float16 else a for key, a in file.items()}


def gap(ours: Shaped[np.ndarray, "..."], theirs: Shaped[np.ndarray, "..."]) -> tuple[float, float]:
    """Largest difference over the largest magnitude, and the smallest cosine of two rows (last axis)."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    error = float(np.abs(a - b).max() / np.abs(b).max())
    rows_a, rows_b = (x.reshape(-1, x.shape[-1] if x.ndim else 1) for x in (a, b))
    norms = np.linalg.norm(rows_a, axis=1) * np.linalg.norm(rows_b, axis=1)
    # A row of zeros has no direction; `error` holds it.
    cosines = (rows_a * rows_b).sum(axis=1)[norms > 0] / norms[norms > 0]
    return error, float(cosines.min(initial=1.0))


def check(
    rung: str, ours: Float[np.ndarray, "..."], theirs: Float[np.ndarray, "..."], error: float = 5e-6
) -> tuple[float, float]:
    """Hold a rung of the ladder: same shape, ``gap`` below `error`, cosine at least ``1 - error``; prints the figures."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, f"{rung}: {ours.shape} against {theirs.shape}"
    found, cosine = gap(ours, theirs)
    print(f"{rung:<34} max relative error {found:.1e}, 1 - cosine {1 - cosine:.1e}")
    assert found < error, f"{rung}: max relative error {found:.2e}, allowed {error:.0e}"
    assert cosine >= 1 - error, f"{rung}: cosine {cosine:.8f}, at least {1 - error} expected"
    return found, cosine
