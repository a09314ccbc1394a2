"""Sharding presets, and parameters that are put together once a step."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from stvl.core.errors import ConfigError
from stvl.dist.mesh import LAYOUTS, MeshConfig, layout, make_mesh
from stvl.train.state import Starter
from stvl.train.step import make_step, put_batch
from tests.fixtures import random_batch, shrunk_model, tiny_experiment

STEPS = 4


@pytest.mark.parametrize(
    ("name", "devices", "slices", "sizes"),
    [
        ("dp", 256, 1, (256, 1, 1, 1)),
        ("fsdp", 256, 1, (16, 16, 1, 1)),
        ("fsdp", 4096, 1, (256, 16, 1, 1)),
        ("fsdp", 24, 3, (3, 8, 1, 1)),
        ("zero2", 8, 1, (1, 8, 1, 1)),
        ("fsdp+tp", 256, 1, (4, 16, 4, 1)),
        ("fsdp+context", 32, 2, (2, 4, 1, 4)),
        ("fsdp", 1, 1, (1, 1, 1, 1)),
    ],
)
def test_presets_by_hand(name, devices, slices, sizes):
    found = layout(name, devices, slices)
    assert (found.data, found.fsdp, found.tensor, found.context) == sizes
    assert found.gather == ("step" if name == "zero2" else "layer")


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("devices", "slices"), [(8, 1), (8, 2), (6, 1), (48, 3), (4096, 4)])
def test_presets_use_every_device_and_keep_the_model_within_a_slice(name, devices, slices):
    found = layout(name, devices, slices)
    assert found.data * found.fsdp * found.tensor * found.context == devices
    assert devices // slices % (found.fsdp * found.tensor * found.context) == 0


@pytest.mark.parametrize(
    ("name", "devices", "slices", "message"),
    [
        ("fdsp", 8, 1, r"unknown sharding preset 'fdsp' \(did you mean 'fsdp'\?\)"),
        ("dp", 8, 3, "8 devices cannot be divided into 3 slices"),
    ],
)
def test_presets_refuse(name, devices, slices, message):
    with pytest.raises(ConfigError, match=message):
        layout(name, devices, slices)


class OnSlice:
    """A described device: only what laying out a mesh asks of it."""

    platform, device_kind, process_index = "cpu", "fake", 0

    def __init__(self, number: int, slice_index: int) -> None:
        self.id, self.slice_index = number, slice_index


def test_only_data_crosses_slices():
    devices = [OnSlice(number, number // 4) for number in range(8)]
    mesh = make_mesh(MeshConfig(data=4, fsdp=2), devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)[:, :, 0, 0]
    assert (slices == np.array([[0, 0], [0, 0], [1, 1], [1, 1]])).all()
    with pytest.raises(ConfigError, match=r"mesh.data = 1 is no multiple of the 2 slices"):
        make_mesh(MeshConfig(data=1, fsdp=8), devices)


def losses(sizes: MeshConfig, **changes: object) -> list[tuple[float, float]]:
    model = shrunk_model(width=48, temporal_positions="both")
    experiment = tiny_experiment("no", model=model, steps=STEPS, mesh=sizes, **changes)
    made = Starter(experiment, make_mesh(sizes, jax.devices()[: sizes.data * sizes.fsdp]))
    state, step, found = made.start(), make_step(made), []
    for number in range(STEPS):
        state, metrics = step(state, put_batch(random_batch(number), made.mesh))
        found.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp", "parts"), [(2, 4, 1), (2, 2, 2)])
def test_gathering_once_a_step_trains_alike(data, fsdp, parts):
    expected = losses(MeshConfig(data=1), grad_cache=parts)
    found = losses(MeshConfig(data=data, fsdp=fsdp, gather="step"), grad_cache=parts)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_gathering_once_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="takes no tensor or context slices, found tensor 2, context 1"):
        MeshConfig(tensor=2, gather="step")
    experiment = tiny_experiment(
        "no", model=shrunk_model(drop_path=0.1), mesh=MeshConfig(fsdp=8, data=1, gather="step")
    )
    made = Starter(experiment, make_mesh(experiment.mesh))
    with pytest.raises(ConfigError, match=r"no drop path, found model.video.drop_path = 0.1"):
        jax.eval_shape(make_step(made), made.abstract, random_batch(0))
