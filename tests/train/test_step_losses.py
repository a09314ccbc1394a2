"""The step with losses that read the batch's codes, learn a bias, or see the encoders a part at a time."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.config import from_dict, override, to_dict
from stvl.core.errors import ConfigError
from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.losses.infonce import InfoNCE
from stvl.losses.siglip import SigLIP
from stvl.losses.sms import SMS, AdaptiveTau, SMSRelease
from stvl.train.state import Starter, abstract_batch
from stvl.train.step import ARRAYS, make_step, put_batch
from tests.fixtures import BATCH, leaves, random_batch, shrunk_model, tiny_experiment


def codes(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    verb = rng.integers(0, 3, BATCH).astype(np.int32)
    return {
        "verb": verb,
        "nouns": rng.permuted(np.tile(np.arange(5), (BATCH, 1)), axis=1)[:, :2].astype(np.int32),
    }


def step(experiment: Any, batch: dict[str, np.ndarray], devices: int = 1) -> tuple[Any, dict[str, float]]:
    """One step from the start; the state and the metrics."""
    starter = Starter(experiment, make_mesh(MeshConfig(), jax.devices()[:devices]))
    state, metrics = make_step(starter)(starter.start(), put_batch(batch, starter.mesh))
    return jax.device_get(state), {name: float(value) for name, value in metrics.items()}


@pytest.mark.slow
def test_graded_loss_reads_the_codes_of_the_batch():
    batch = random_batch(0) | codes() | {f"text_{name}": value[::-1] for name, value in codes().items()}
    made = tiny_experiment("no", loss=SMS())
    _, metrics = step(made, batch, 2)
    starter = Starter(made, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    video, text = arrays.pop("video"), arrays.pop("text")
    found: Any = jax.jit(starter.model.apply)({"params": starter.start().params}, video, text)
    loss, said = SMS()(found.video, found.text, labels=arrays)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-4)
    for name, value in said.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-4, abs=1e-5), name
    assert 0 < metrics["equal"] < 1


def test_a_graded_loss_without_codes_is_refused():
    starter = Starter(tiny_experiment("no", loss=SMS()), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    shapes = abstract_batch(starter.experiment, BATCH)
    jax.eval_shape(make_step(starter), starter.target(), shapes)
    del shapes["nouns"]
    with pytest.raises(ConfigError, match="'nouns' is missing"):
        jax.eval_shape(make_step(starter), starter.target(), shapes)


@pytest.mark.slow
def test_siglip_learns_its_scale_and_bias():
    model = dataclasses.replace(shrunk_model(), temperature=0.1, bias=-10.0)
    state, metrics = step(tiny_experiment("no", model=model, loss=SigLIP()), random_batch(0))
    params = leaves(state.params)
    assert params["['log_scale']"] == pytest.approx(np.log(10), abs=0.01)
    assert params["['logit_bias']"] == pytest.approx(-10, abs=0.01)
    moments = leaves(state.opt_state)
    for name in ("log_scale", "logit_bias"):
        assert [m for path, m in moments.items() if name in path and np.abs(m).max() > 0], name
    assert set(metrics) >= {"loss", "matched", "positive_similarity"}


@pytest.mark.slow
def test_grad_cache_takes_the_step_of_the_whole_batch():
    model = dataclasses.replace(shrunk_model(), temperature=0.1)
    made = tiny_experiment("no", model=model, loss=InfoNCE())
    batch = random_batch(1)
    whole, metrics = step(made, batch)
    parts, again = step(dataclasses.replace(made, grad_cache=4), batch, 2)
    assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert again["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-4)
    # Adam's first moment is a tenth of the gradient, whatever the learning rate does to it.
    for (name, mine), meant in zip(
        leaves(parts.opt_state).items(), leaves(whole.opt_state).values(), strict=True
    ):
        assert np.abs(mine - meant).max() <= 1e-5 * max(1.0, np.abs(meant).max()), name


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"loader.batch = 8 is no multiple of grad_cache = 3"):
        tiny_experiment("no", grad_cache=3)
    with pytest.raises(ConfigError, match=r"grad_cache = 4 leaves 2 clips a part, .* 8 slices"):
        Starter(tiny_experiment("no", grad_cache=4), make_mesh(MeshConfig()))


def test_the_loss_of_an_experiment_comes_back_from_json_and_takes_overrides():
    made = tiny_experiment("no", loss=SMS(variant=SMSRelease(), adaptive_tau=AdaptiveTau(share=0.5)))
    assert from_dict(json.loads(json.dumps(to_dict(made)))) == made
    changed: Any = override(
        made, {"loss.margin": "0.4", "loss.adaptive_tau.share": "0.25", "grad_cache": "2"}
    )
    assert changed.loss == SMS(margin=0.4, variant=SMSRelease(), adaptive_tau=AdaptiveTau(share=0.25))
    assert changed.grad_cache == 2


def test_only_what_losses_read_is_sent():
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    sent = put_batch(random_batch(0) | codes() | {"index": np.arange(BATCH)}, mesh)
    assert set(sent) == {"video", "text", "verb", "nouns"}
    assert set(sent) <= set(ARRAYS)
