"""Every loss against numpy in f64: values, gradients against finite differences, and what a batch may look like."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.config import from_dict, override, to_dict
from stvl.core.errors import ConfigError
from stvl.losses.catalogue import AnyLoss
from stvl.losses.egonce import EgoNCE
from stvl.losses.sms import SMS, AdaptiveTau
from tests.losses.worked import CASES, batch, features, labels, on_device

each = pytest.mark.parametrize("name", CASES)
SIZE = 7


def test_every_loss_is_here():
    assert {type(case.loss) for case in CASES.values()} == set(typing.get_args(AnyLoss))


@functools.cache
def scored(name: str) -> Any:
    """Compile: ((loss, metrics), gradients by clips and by texts)."""

    def both(video: Any, text: Any, codes: Any) -> Any:
        return jax.value_and_grad(
            lambda v, t: CASES[name].loss(v, t, labels=codes), argnums=(0, 1), has_aux=True
        )(video, text)

    return jax.jit(both)


def score(name: str, video: np.ndarray, text: np.ndarray, codes: dict[str, np.ndarray]) -> Any:
    arrays = (jnp.asarray(x, jnp.float32) for x in (video, text))
    return jax.device_get(scored(name)(*arrays, on_device(codes)))


@each
def test_loss_and_gradient_agree_with_f64(name):
    case, (video, text, codes) = CASES[name], batch(SIZE)
    (found, _), slopes = score(name, video, text, codes)
    assert float(found) == pytest.approx(case.plain(video @ text.T, codes, case.loss), rel=3e-6, abs=1e-7)
    for side, slope in enumerate(slopes):
        for place in np.ndindex(SIZE, 2):
            moved = np.zeros((2, *video.shape))
            moved[(side, *place)] = 1e-6
            up, down = (
                case.plain((video + sign * moved[0]) @ (text + sign * moved[1]).T, codes, case.loss)
                for sign in (1, -1)
            )
            assert float(slope[place]) == pytest.approx((up - down) / 2e-6, abs=3e-5)


@each
def test_the_order_of_the_batch_does_not_matter(name):
    video, text, codes = batch(SIZE, seed=1)
    turn = np.random.default_rng(0).permutation(SIZE)
    (one, _), _ = score(name, video, text, codes)
    (two, _), _ = score(name, video[turn], text[turn], {key: x[turn] for key, x in codes.items()})
    assert float(one) == pytest.approx(float(two), rel=2e-6)


@each
@pytest.mark.parametrize("kind", ["one pair", "one label", "nothing relevant", "equal features"])
def test_degenerate_batches_stay_finite(name, kind):
    video, text, codes = batch(1 if kind == "one pair" else SIZE, seed=2)
    if kind == "one label":
        codes = {key: np.ones_like(value) for key, value in codes.items()}
    if kind == "nothing relevant":
        codes = {key: np.full_like(value, -1) for key, value in codes.items()}
    if kind == "equal features":
        video = text = np.ones_like(video) / np.sqrt(video.shape[1])
    (found, metrics), slopes = score(name, video, text, codes)
    assert float(found) >= -1e-6
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((found, metrics, slopes)))
    if kind == "one pair" and name not in ("SigLIP", "MultiSimilarity"):
        # These compare a pair with others only.
        assert float(found) == pytest.approx(0, abs=1e-6)
    if name in ("SMS", "SMS adaptive tau", "SMS release"):
        assert (metrics["equal"] == 1) == (kind != "equal features")


@each
def test_metrics_have_no_gradient(name):
    loss, (video, text, codes) = CASES[name].loss, batch(SIZE, seed=3)
    arrays = [jnp.asarray(x, jnp.float32) for x in (video, text)]

    def total(v: jax.Array, t: jax.Array) -> jax.Array:
        return sum(loss(v, t, labels=on_device(codes))[1].values(), jnp.float32(0))

    for slope in jax.grad(total, argnums=(0, 1))(*arrays):
        assert np.array_equal(np.asarray(slope), np.zeros_like(slope))


@each
def test_bf16_features_give_an_f32_loss(name):
    video, text, codes = batch(SIZE, seed=4)
    loss, metrics = CASES[name].loss(
        *(jnp.asarray(x, jnp.bfloat16) for x in (video, text)), labels=on_device(codes)
    )
    assert {x.dtype for x in (loss, *metrics.values())} == {jnp.dtype("float32")}
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (video, text)]
    assert float(loss) == pytest.approx(
        CASES[name].plain(rounded[0] @ rounded[1].T, codes, CASES[name].loss), rel=1e-4, abs=1e-6
    )


@each
def test_config_comes_back_from_json(name):
    loss = CASES[name].loss
    assert from_dict(to_dict(loss)) == loss
    assert override(loss, {"impl": "chunked", "chunk": "3"}) == dataclasses.replace(
        loss, impl="chunked", chunk=3
    )


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("InfoNCE", "temperature", 0.0, r"InfoNCE.temperature is a finite number above 0, found 0.0"),
        ("EgoNCE", "temperature", -1.0, "above 0, found -1.0"),
        ("MIMM", "margin", -0.1, r"MIMM.margin is a finite number at least 0, found -0.1"),
        ("SMS", "tau", float("nan"), r"SMS.tau is a finite number at least 0, found nan"),
        ("SMSHard", "margin", float("inf"), "found inf"),
        ("MultiSimilarity", "positive", 0.0, "a relevancy above 0 and at most 1"),
        ("SMS", "chunk", 0, "a tile has at least one row, found chunk = 0"),
    ],
)
def test_fields_out_of_range_are_refused(name, field, value, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CASES[name].loss, **{field: value})


def test_codes_that_are_missing_or_no_codes_are_refused(as_installed):
    video, text = features([[1.0, 0.0], [0.0, 1.0]])
    good = labels([0, 1], [[0], [1]])
    with pytest.raises(ConfigError, match=r"'verb' is missing.*a loss without relevancy"):
        SMS()(video, text)
    with pytest.raises(ConfigError, match=r"'nouns' is missing \(did you mean 'noun'\?\)"):
        EgoNCE()(video, text, labels={"verb": good["verb"], "noun": good["nouns"]})
    with pytest.raises(ConfigError, match=r"verb holds whole numbers .* found float32 \(2,\)"):
        SMS()(video, text, labels=good | {"verb": jnp.zeros(2)})
    with pytest.raises(ConfigError, match=r"text_nouns holds .* found int32 \(2, 1, 1\)"):
        SMS()(video, text, labels=good | {"text_nouns": jnp.zeros((2, 1, 1), jnp.int32)})
    with pytest.raises(
        ConfigError, match=r"one entry a row, found \{'verb': 2, 'nouns': 2, 'text_verb': 3\}"
    ):
        SMS()(video, text, labels=good | labels([0, 1], [[0], [1]], text_verb=[0, 1, 1]))
    with pytest.raises(ValueError, match="needs one entry for each of the 2 rows, found shape"):
        SMS()(video, text, labels=labels([0, 1, 1], [[0], [1], [1]]))


def test_unequal_sides_are_refused(as_installed):
    video, text = features([[1.0, 0.0], [0.0, 1.0]])
    for case in CASES.values():
        with pytest.raises(ValueError, match=r"as many clips as texts .* found \(2, 2\) and \(1, 2\)"):
            case.loss(video, text[:1], labels=labels([0, 1], [[0], [1]]))


@pytest.mark.parametrize("name", ["SMS", "SMS adaptive tau"])
def test_a_tau_above_all_gaps_leaves_the_graded_terms(name):
    video, text, codes = batch(SIZE, seed=5)
    arrays = [jnp.asarray(x, jnp.float32) for x in (video, text)]
    changes = {"tau": 9.0, "adaptive_tau": None if name == "SMS" else AdaptiveTau(share=99.0)}
    loss = dataclasses.replace(CASES[name].loss, **changes)
    found, metrics = loss(*arrays, labels=on_device(codes))
    assert float(metrics["equal_violation"]) == 0
    graded = float(metrics["higher"] + metrics["lower"])
    assert float(found) == pytest.approx(float(metrics["violation"]) * graded, rel=1e-5)
