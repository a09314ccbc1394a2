"""InfoNCE against numbers worked by hand, numpy in f64, and finite differences."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.core.config import from_dict, override, to_dict
from stvl.core.errors import ConfigError
from stvl.losses.infonce import InfoNCE, infonce

EYE = jnp.eye(2)


def test_two_orthogonal_pairs_by_hand():
    # Logits [[1, 0], [0, 1]] at temperature 1: each row costs log(e + 1) - 1.
    loss, metrics = InfoNCE(temperature=1.0)(EYE, EYE)
    assert float(loss) == pytest.approx(math.log(math.e + 1) - 1, rel=1e-6)
    assert float(metrics["accuracy"]) == 1


def test_exchanged_pairs_by_hand():
    loss, metrics = InfoNCE(temperature=1.0)(EYE, EYE[::-1])
    assert float(loss) == pytest.approx(math.log(math.e + 1), rel=1e-6)
    assert float(metrics["accuracy"]) == 0


def test_sum_is_twice_the_mean():
    mean, _ = InfoNCE(temperature=0.5)(EYE, EYE)
    total, _ = InfoNCE(temperature=0.5, directions="sum")(EYE, EYE)
    assert float(total) == pytest.approx(2 * float(mean), rel=1e-6)


def test_the_two_directions_differ_and_accuracy_counts_both():
    # Similarities [[1, 0.5], [1, 0.5]]: clip 0 is right, clip 1 is wrong; text 0 ties (first wins), text 1 ties.
    video, text = jnp.asarray([[1.0, 0.0], [1.0, 0.0]]), jnp.asarray([[1.0, 0.0], [0.5, 0.0]])
    loss, metrics = infonce(video, text, 1.0)
    rows = np.mean([math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(0.5))])
    assert float(loss) == pytest.approx((rows + math.log(2)) / 2, rel=1e-6)
    assert float(metrics["accuracy"]) == 0.5


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_equal_features_cost_log_batch(batch):
    same = jnp.ones((batch, 3)) / math.sqrt(3)
    assert float(InfoNCE()(same, same)[0]) == pytest.approx(math.log(batch), abs=1e-5)


def test_temperature_of_the_model_replaces_the_losss():
    given_, _ = InfoNCE(temperature=9.0)(EYE, EYE, jnp.asarray(0.5))
    assert float(given_) == pytest.approx(float(InfoNCE(temperature=0.5)(EYE, EYE)[0]), rel=1e-6)


def test_the_default_is_the_papers_temperature():
    # Similarities [[1, 0.9], [0.9, 1]]: a difference of 0.1 is 2 at temperature 0.05.
    video = jnp.asarray([[1.0, 0.0], [0.9, math.sqrt(0.19)]])
    assert float(InfoNCE()(video, video)[0]) == pytest.approx(math.log1p(math.exp(-2)), rel=1e-5)


def in_f64(video: np.ndarray, text: np.ndarray, scale: float) -> float:
    logits = scale * video @ text.T
    rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    return float((rows.mean() + columns.mean()) / 2)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 20.0]))
def test_loss_agrees_with_numpy(seed, scale):
    video, text = np.random.default_rng(seed).standard_normal((2, 5, 4))
    video, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (video, text))
    found, _ = infonce(jnp.asarray(video, jnp.float32), jnp.asarray(text, jnp.float32), scale)
    assert float(found) == pytest.approx(in_f64(video, text, scale), rel=1e-4, abs=1e-5)


def test_gradient_agrees_with_finite_differences():
    video, text = np.random.default_rng(0).standard_normal((2, 4, 3)) * 0.5
    arrays = [jnp.asarray(x, jnp.float32) for x in (video, text)]
    slopes = jax.grad(lambda v, t: infonce(v, t, 3.0)[0], argnums=(0, 1))(*arrays)
    for side, slope in enumerate(slopes):
        for place in np.ndindex(4, 3):
            moved = np.zeros((2, 4, 3))
            moved[(side, *place)] = 1e-5
            up, down = (in_f64(video + s * moved[0], text + s * moved[1], 3.0) for s in (1, -1))
            assert float(slope[place]) == pytest.approx((up - down) / 2e-5, abs=2e-5)


def test_bf16_features_are_summed_in_f32():
    video = jnp.asarray(np.random.default_rng(0).standard_normal((64, 32)), jnp.bfloat16)
    loss, metrics = infonce(video, video, 0.1)
    assert loss.dtype == metrics["accuracy"].dtype == jnp.float32
    exact = in_f64(*(np.asarray(video, np.float64),) * 2, 0.1)
    assert float(loss) == pytest.approx(exact, rel=1e-4)


def test_large_logits_stay_finite():
    loss, slope = jax.value_and_grad(lambda v: infonce(v, EYE[::-1] * 1e3, 100.0)[0])(EYE)
    assert np.isfinite(float(loss))
    assert np.isfinite(np.asarray(slope)).all()


def test_config_round_trip_and_overrides():
    loss = override(InfoNCE(), {"directions": "sum"})
    assert from_dict(to_dict(loss)) == loss == InfoNCE(directions="sum")
    with pytest.raises(ConfigError, match=r"directions = 'summ' \(did you mean 'sum'\?\)"):
        override(InfoNCE(), {"directions": "summ"})
