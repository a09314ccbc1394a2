"""Schedules, the decay mask, and the bound on the gradient, against numbers worked by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.errors import ConfigError
from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.train.optimizers import LAMB, AdamW, Schedule, decay_mask
from stvl.train.state import Starter
from tests.fixtures import shrunk_model, tiny_experiment


def rates(schedule: Schedule, steps: int, at: list[int]) -> list[float]:
    made = schedule.make(steps)
    return [float(made(step)) for step in at]


def test_cosine_after_a_warm_up_by_hand():
    schedule = Schedule(peak=1.0, start=0.2, end=0.1, warmup=4)
    # Half of the way up, the peak, half of the cosine, its end.
    assert rates(schedule, 24, [0, 2, 4, 14, 24, 99]) == pytest.approx(
        [0.2, 0.6, 1.0, 0.55, 0.1, 0.1], rel=1e-6
    )
    quarter = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    assert rates(schedule, 24, [9]) == pytest.approx([quarter], rel=1e-6)


def test_without_a_warm_up_the_first_step_has_the_peak():
    assert rates(Schedule(peak=2.0), 10, [0, 5, 10]) == pytest.approx([2, 1, 0], abs=1e-6)


def test_constant_stays():
    schedule = Schedule(peak=3e-5, warmup=2, shape="constant")
    assert rates(schedule, 10, [0, 1, 2, 9, 1000]) == pytest.approx([0, 1.5e-5, 3e-5, 3e-5, 3e-5])


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match="a warm-up of 10 steps does not fit a run of 10 steps"):
        Schedule(warmup=10).make(10)


def all_parameters() -> dict[str, bool]:
    """Path of every parameter of a model that has them all -> whether it decays."""
    experiment = tiny_experiment("no", model=shrunk_model(temporal_positions="both"))
    params = Starter(experiment, make_mesh(MeshConfig())).abstract.params
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
    return {"/".join(key.key for key in path): decays for path, decays in mask}


def test_decay_acts_on_kernels_and_the_token_table_and_on_nothing_else():
    layer = ["attention/query", "attention/key", "attention/value", "attention/out", "mlp/up", "mlp/out"]
    video = [f"video/stack/layers/{name}" for name in [*layer, "mlp/gate"]] + [
        "video/stem",
        "video/projection",
    ]
    text = [f"text/stack/layers/{name}" for name in layer] + ["text/projection"]
    norms = ["attention_norm", "mlp_norm"]
    inner = ["attention/norm", "mlp/norm"]
    scaled = [f"video/stack/layers/{name}" for name in norms + inner] + ["video/norm", "text/norm"]
    scaled += [f"text/stack/layers/{name}" for name in norms]
    biased = {
        name
        for name in video + text
        if "projection" not in name and name != "video/stack/layers/attention/key"
    }
    free = {f"{name}/bias" for name in biased} | {
        f"{name}/{leaf}" for name in scaled for leaf in ("scale", "bias")
    }
    free |= {"video/class_token", "video/class_position", "video/positions/space", "video/positions/time"}
    free |= {"text/positions"}
    decayed = {f"{name}/kernel" for name in video + text} | {"text/tokens"}
    found = all_parameters()
    assert {name for name, decays in found.items() if decays} == decayed
    assert {name for name, decays in found.items() if not decays} == free


PARAMS = {"kernel": jnp.asarray([3.0, -4.0]), "bias": jnp.asarray([5.0])}


def test_weight_decay_by_hand():
    made = AdamW(schedule=Schedule(peak=0.1, shape="constant"), weight_decay=0.5).make(10)
    updates, _ = made.update(jax.tree.map(jnp.zeros_like, PARAMS), made.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["kernel"], [-0.15, 0.2], rtol=1e-6)
    assert updates["bias"] == 0


@pytest.mark.parametrize(("clip", "scale"), [(None, 1.0), (20.0, 1.0), (1.0, 0.1)])
def test_gradient_is_scaled_to_the_bound(clip, scale):
    # The global norm of (6, 0, 8) is 10.
    gradient = {"kernel": jnp.asarray([6.0, 0.0]), "bias": jnp.asarray([8.0])}
    made = AdamW(b1=0.9, clip=clip).make(10)
    _, state = made.update(gradient, made.init(PARAMS), PARAMS)
    adam = state[0] if clip is None else state[1][0]
    np.testing.assert_allclose(adam.mu["kernel"], np.array([0.6, 0]) * scale, rtol=1e-6)
    np.testing.assert_allclose(adam.mu["bias"], np.array([0.8]) * scale, rtol=1e-6)


def test_first_step_of_adam_is_the_learning_rate():
    made = AdamW(schedule=Schedule(peak=0.1, shape="constant"), weight_decay=0.0, clip=None).make(10)
    gradient = {"kernel": jnp.asarray([7.0, -0.01]), "bias": jnp.asarray([1e-3])}
    updates, _ = made.update(gradient, made.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["kernel"], [-0.1, 0.1], rtol=1e-4)
    np.testing.assert_allclose(updates["bias"], [-0.1], rtol=1e-4)


def test_first_step_of_lamb_by_hand():
    # Adam's first direction is the gradient's sign (-1, 1); with decay 0.5 of (3, -4) u = (0.5, -1), |u| = sqrt(1.25),
    # and |w| = 5. The bias takes Adam's own step.
    gradient = {"kernel": jnp.asarray([-7.0, 0.01]), "bias": jnp.asarray([2.0])}
    made = LAMB(schedule=Schedule(peak=0.1, shape="constant"), weight_decay=0.5, clip=None, eps=1e-12).make(
        10
    )
    updates, _ = made.update(gradient, made.init(PARAMS), PARAMS)
    ratio = 5 / math.sqrt(1.25)
    np.testing.assert_allclose(updates["kernel"], [-0.05 * ratio, 0.1 * ratio], rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], [-0.1], rtol=1e-5)


def test_lamb_takes_each_layer_of_a_stack_for_itself():
    made = LAMB(schedule=Schedule(peak=0.1, shape="constant"), weight_decay=0.01, clip=None)
    rng = np.random.default_rng(0)
    layers = [jnp.asarray(scale * rng.standard_normal((4, 3)), jnp.float32) for scale in (1, 10, 0)]
    slopes = [jnp.asarray(rng.standard_normal((4, 3)), jnp.float32) for _ in layers]

    def steps(weights, gradients):
        run = made.make(10)
        state, out = run.init(weights), []
        for _ in range(2):
            updates, state = run.update(gradients, state, weights)
            weights = jax.tree.map(jnp.add, weights, updates)
            out.append(updates)
        return out

    stacked = steps({"layers": {"kernel": jnp.stack(layers)}}, {"layers": {"kernel": jnp.stack(slopes)}})
    for i, (layer, slope) in enumerate(zip(layers, slopes, strict=True)):
        alone = steps({"kernel": layer}, {"kernel": slope})
        for joint, single in zip(stacked, alone, strict=True):
            np.testing.assert_allclose(joint["layers"]["kernel"][i], single["kernel"], rtol=1e-5)
    # A step is lr times the weights' norm, or lr times Adam's where there are no weights yet.
    sizes = [float(jnp.linalg.norm(stacked[0]["layers"]["kernel"][i])) for i in range(3)]
    expected = [0.1 * float(jnp.linalg.norm(layer)) for layer in layers[:2]] + [0.1 * math.sqrt(12)]
    assert sizes == pytest.approx(expected, rel=1e-4)


def test_lamb_bounds_the_gradient_and_follows_the_schedule():
    gradient = {"kernel": jnp.asarray([6.0, 0.0]), "bias": jnp.asarray([8.0])}
    schedule = Schedule(peak=1.0, start=0.5, warmup=1, shape="constant")
    made = LAMB(b1=0.9, schedule=schedule, weight_decay=0.0).make(10)
    first, state = made.update(gradient, made.init(PARAMS), PARAMS)
    np.testing.assert_allclose(state[1][0].mu["bias"], [0.08], rtol=1e-6)
    second, _ = made.update(gradient, state, PARAMS)
    np.testing.assert_allclose(second["kernel"], 2 * first["kernel"], rtol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(second["kernel"]), 5.0, rtol=1e-4)
