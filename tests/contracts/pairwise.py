"""What every backend of the pairwise op promises. A backend joins with three lines::

class TestMine(PairwiseContract):
    backend = "mine"
    devices = 4  # a mesh of that many, or None for no mesh
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.sharding import activation_sharding
from stvl.dist.mesh import RULES, MeshConfig, make_mesh
from stvl.ops.pairwise import (
    LOGSUMEXP,
    SUM,
    PairwiseOptions,
    PerColumn,
    PerRow,
    Tile,
    pair_similarity,
    pairwise,
)

MARGIN, TAU, LAMBDA = 0.6, 0.1, 0.1
NOUN_WORDS = 2

#: Largest error of the loss and of its gradients against f64, relative to the largest value.
TOLERANCE = {"float32": 3e-6, "bfloat16": 1e-2}


@dataclasses.dataclass(frozen=True)
class Batch:
    """Features and codes of clips (rows) and texts (columns), parameters, and nouns as bit masks."""

    x: np.ndarray
    y: np.ndarray
    rows: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    scale: float
    bias: float

    def rounded(self, dtype: str) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(self.x, dtype), jnp.asarray(self.y, dtype)


def batch(size: int, width: int = 8, seed: int = 0, scale: float = 5.0) -> Batch:
    """Unit features; few verbs and nouns, so that many pairs share some, and c_ii differs from 1."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, size, width))
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    codes = []
    for _ in range(2):
        nouns = rng.integers(0, 2, (size, NOUN_WORDS * 3))
        nouns[:, 0] = 1
        masks = (nouns.reshape(size, NOUN_WORDS, 3) << np.arange(3)).sum(-1).astype(np.uint32)
        codes.append({"verb": rng.integers(0, 3, size).astype(np.int32), "nouns": masks})
    rows, columns = codes
    columns["verb"] = np.where(rng.random(size) < 0.7, rows["verb"], columns["verb"]).astype(np.int32)
    return Batch(x, y, rows, columns, scale, -1.5)


# The four losses, written with tiles.


def relevancy(one: dict[str, jax.Array], two: dict[str, jax.Array]) -> jax.Array:
    """Half the IoU of the verb and half that of the nouns, broadcast over leading axes."""
    shared = jax.lax.population_count(one["nouns"] & two["nouns"]).sum(-1)
    either = jax.lax.population_count(one["nouns"] | two["nouns"]).sum(-1)
    return 0.5 * (one["verb"] == two["verb"]) + 0.5 * shared / either


def over_tile(tile: Tile) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Codes of the rows and columns of a tile, ready to be broadcast against each other."""
    return (
        {name: tile.rows[name][:, None] for name in ("verb", "nouns")},
        {name: tile.columns[name][None, :] for name in ("verb", "nouns")},
    )


def contrast(tile: Tile) -> dict[str, Any]:
    logits = tile.params["scale"] * tile.similarity
    return {"rows": PerRow(logits, LOGSUMEXP), "columns": PerColumn(logits, LOGSUMEXP)}


def positives(tile: Tile) -> dict[str, Any]:
    logits = tile.params["scale"] * tile.similarity
    shared = (tile.rows["verb"][:, None] == tile.columns["verb"][None, :]) & (
        (tile.rows["nouns"][:, None] & tile.columns["nouns"][None, :]) != 0
    ).any(-1)
    chosen = jnp.where(shared | tile.diagonal, logits, -jnp.inf)
    return {
        **contrast(tile),
        "good_rows": PerRow(chosen, LOGSUMEXP),
        "good_columns": PerColumn(chosen, LOGSUMEXP),
    }


def sigmoid(tile: Tile) -> dict[str, Any]:
    logits = tile.params["scale"] * tile.similarity + tile.params["bias"]
    return {"all": PerRow(jax.nn.softplus(jnp.where(tile.diagonal, -logits, logits)), SUM)}


def margins(tile: Tile) -> dict[str, Any]:
    c, off = relevancy(*over_tile(tile)), ~tile.diagonal

    def side(gap: jax.Array, own: jax.Array) -> jax.Array:
        near = jnp.abs(own - tile.similarity) - TAU
        far = gap * MARGIN - own + tile.similarity
        chosen = jnp.where(jnp.abs(gap) < LAMBDA, near, jnp.where(gap > 0, far, -far))
        return jnp.where(off, jax.nn.relu(chosen), 0.0)

    rows = side(tile.rows["own_c"][:, None] - c, tile.rows["own"][:, None])
    columns = side(tile.columns["own_c"][None, :] - c, tile.columns["own"][None, :])
    return {"rows": PerRow(rows, SUM), "columns": PerColumn(columns, SUM)}


def infonce_loss(x: Any, y: Any, params: Any, data: Batch, **how: Any) -> jax.Array:
    out = pairwise(contrast, x, y, params=params, **how)
    return (out["rows"] + out["columns"] - 2 * params["scale"] * pair_similarity(x, y)).mean()


def egonce_loss(x: Any, y: Any, params: Any, data: Batch, **how: Any) -> jax.Array:
    out = pairwise(positives, x, y, rows=data.rows, columns=data.columns, params=params, **how)
    return (out["rows"] - out["good_rows"] + out["columns"] - out["good_columns"]).mean()


def siglip_loss(x: Any, y: Any, params: Any, data: Batch, **how: Any) -> jax.Array:
    return pairwise(sigmoid, x, y, params=params, **how)["all"].mean()


def sms_loss(x: Any, y: Any, params: Any, data: Batch, **how: Any) -> jax.Array:
    own = {"own": params["scale"] * pair_similarity(x, y), "own_c": relevancy(data.rows, data.columns)}
    # The scale goes into one side, so that it has a gradient here too.
    x = (params["scale"] * x.astype(jnp.float32)).astype(x.dtype)
    out = pairwise(margins, x, y, rows={**data.rows, **own}, columns={**data.columns, **own}, **how)
    return (out["rows"] + out["columns"]).mean()


# The same in numpy, f64, whole matrix; each gives the loss and its gradient by S, scale and bias.

Plain = tuple[float, np.ndarray, float, float]


def plain_relevancy(data: Batch) -> np.ndarray:
    def bits(masks: np.ndarray) -> np.ndarray:
        return ((masks[:, :, None] >> np.arange(3)) & 1).reshape(len(masks), -1)

    one, two = bits(data.rows["nouns"]), bits(data.columns["nouns"])
    shared = one @ two.T
    either = one.sum(1)[:, None] + two.sum(1)[None, :] - shared
    return 0.5 * (data.rows["verb"][:, None] == data.columns["verb"][None, :]) + 0.5 * shared / either


def plain_softmax(logits: np.ndarray, allowed: np.ndarray, axis: int) -> tuple[float, np.ndarray]:
    """Sum of -log(share of the allowed), and its gradient."""
    e = np.exp(logits - logits.max(axis, keepdims=True))
    p, good = (part / part.sum(axis, keepdims=True) for part in (e, e * allowed))
    share = (e * allowed).sum(axis) / e.sum(axis)
    return float(-np.log(share).sum()), p - good


def plain_contrast(s: np.ndarray, data: Batch, allowed: np.ndarray) -> Plain:
    parts = [plain_softmax(data.scale * s, allowed, axis) for axis in (0, 1)]
    loss, slope = (sum(part) / len(s) for part in zip(*parts, strict=True))
    return float(loss), data.scale * slope, float((slope * s).sum()), 0.0


def plain_infonce(s: np.ndarray, data: Batch) -> Plain:
    return plain_contrast(s, data, np.eye(len(s)))


def plain_egonce(s: np.ndarray, data: Batch) -> Plain:
    verb = data.rows["verb"][:, None] == data.columns["verb"][None, :]
    noun = (data.rows["nouns"][:, None] & data.columns["nouns"][None, :]).any(-1)
    return plain_contrast(s, data, np.maximum(verb & noun, np.eye(len(s))))


def plain_siglip(s: np.ndarray, data: Batch) -> Plain:
    sign = 1 - 2 * np.eye(len(s))
    z = sign * (data.scale * s + data.bias)
    slope = sign / (1 + np.exp(-z)) / len(s)
    return float(np.log1p(np.exp(z)).sum() / len(s)), data.scale * slope, (slope * s).sum(), slope.sum()


def plain_sms(s: np.ndarray, data: Batch) -> Plain:
    s, size = data.scale * s, len(s)
    c, loss, slope = plain_relevancy(data), 0.0, np.zeros_like(s)
    for i in range(size):
        for j in range(size):
            if i == j:
                continue
            # Clip i among all texts, then text j among all clips.
            for own in (i, j):
                gap, difference = c[own, own] - c[i, j], s[own, own] - s[i, j]
                if abs(gap) < LAMBDA:
                    term, sign = abs(difference) - TAU, np.sign(difference)
                elif gap > 0:
                    term, sign = gap * MARGIN - difference, -1.0
                else:
                    term, sign = -gap * MARGIN + difference, 1.0
                if term > 0:
                    loss += term / size
                    slope[own, own] += sign / size
                    slope[i, j] -= sign / size
    return loss, data.scale * slope, float((slope * s).sum() / data.scale), 0.0


LOSSES: dict[str, tuple[Callable[..., jax.Array], Callable[[np.ndarray, Batch], Plain]]] = {
    "infonce": (infonce_loss, plain_infonce),
    "egonce": (egonce_loss, plain_egonce),
    "siglip": (siglip_loss, plain_siglip),
    "sms": (sms_loss, plain_sms),
}


def expected(loss: str, data: Batch, x: Any, y: Any) -> tuple[float, list[np.ndarray]]:
    """Loss and gradients by x, y, scale and bias in f64, from features as rounded."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    value, slope, scale, bias = LOSSES[loss][1](x @ y.T, data)
    return value, [slope @ y, slope.T @ x, np.asarray(scale), np.asarray(bias)]


def close(found: Any, meant: Any, tolerance: float) -> None:
    """Assert that two arrays agree, relative to the largest value."""
    found, meant = np.asarray(found, np.float64), np.asarray(meant, np.float64)
    assert found.shape == meant.shape
    assert np.isfinite(found).all()
    assert np.abs(found - meant).max() <= tolerance * max(1.0, np.abs(meant).max())


@contextlib.contextmanager
def mesh_of(devices: int | None) -> Iterator[None]:
    """A mesh of so many devices in force; eight are 4 x 2 over both axes of the batch, with nothing on the others."""
    if devices is None:
        yield
        return
    sizes = MeshConfig(data=devices // 2, fsdp=2) if devices % 4 == 0 else MeshConfig(data=devices)
    with activation_sharding(make_mesh(sizes, jax.devices()[:devices]), RULES):
        yield


class PairwiseContract:
    """The tests; a subclass names its backend, its mesh and its options."""

    backend: ClassVar[str]
    devices: ClassVar[int | None] = None
    options: ClassVar[PairwiseOptions] = PairwiseOptions()

    def step(self, loss: str, data: Batch, dtype: str = "float32") -> Callable[[], Any]:
        """Compile: loss, and its gradients by x, y, scale and bias."""
        arrays = dataclasses.replace(
            data, **{name: jax.tree.map(jnp.asarray, getattr(data, name)) for name in ("rows", "columns")}
        )

        def total(x: jax.Array, y: jax.Array, scale: Any, bias: Any) -> jax.Array:
            params = {"scale": scale, "bias": bias}
            return LOSSES[loss][0](x, y, params, arrays, impl=self.backend, options=self.options)

        inputs = (*data.rounded(dtype), jnp.float32(data.scale), jnp.float32(data.bias))
        with mesh_of(self.devices):
            compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3))).lower(*inputs).compile()
        return lambda: compiled(*inputs)

    def agrees(self, loss: str, data: Batch, dtype: str = "float32") -> None:
        """Assert that loss and gradients are those of f64."""
        value, gradients = self.step(loss, data, dtype)()
        meant, slopes = expected(loss, data, *data.rounded(dtype))
        assert value.dtype == jnp.float32
        close(value, meant, TOLERANCE["float32"])
        for found, slope, wanted in zip(gradients, slopes, (dtype, dtype, "float32", "float32"), strict=True):
            assert found.dtype == jnp.dtype(wanted)
            close(found, slope, TOLERANCE[found.dtype.name])

    @pytest.mark.parametrize("loss", LOSSES)
    def test_agrees_with_numpy(self, loss: str) -> None:
        """23 rows: no chunk and no ring divides them."""
        self.agrees(loss, batch(23))

    def test_sizes_that_divide(self) -> None:
        self.agrees("egonce", batch(24, seed=1))

    def test_one_pair(self) -> None:
        self.agrees("infonce", batch(1, seed=2))

    def test_bf16_features_are_summed_in_f32(self) -> None:
        self.agrees("siglip", batch(23, width=32, seed=3), "bfloat16")

    def test_temperature_of_a_hundredth_stays_finite(self) -> None:
        data = batch(23, seed=4, scale=100.0)
        value, gradients = self.step("infonce", data)()
        meant, slopes = expected("infonce", data, *data.rounded("float32"))
        close(value, meant, 1e-5)
        for found, slope in zip(gradients, slopes, strict=True):
            close(found, slope, 1e-4)

    def test_two_runs_agree_bit_for_bit(self) -> None:
        step = self.step("egonce", batch(23, seed=5))
        one, two = step(), step()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))
