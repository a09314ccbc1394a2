"""Meshes and the shardings that rules give, without running a model."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from stvl.core.errors import ConfigError
from stvl.core.sharding import activation_sharding, constrain, partition_spec
from stvl.dist.mesh import AXIS_NAMES, RULES, MeshConfig, batch_sharding, make_mesh, replicated
from stvl.dist.params import like_params, param_shardings
from stvl.dist.peak import peak_flops


def test_default_mesh_is_all_data():
    mesh = make_mesh(MeshConfig())
    assert mesh.axis_names == AXIS_NAMES
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "context": 1, "tensor": 1}


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(make_mesh(MeshConfig(fsdp=2, tensor=2)).shape)["data"] == 2
    assert dict(make_mesh(MeshConfig(data=2, fsdp=-1)).shape)["fsdp"] == 4
    assert make_mesh(MeshConfig(data=1), jax.devices()[:1]).size == 1


WRONG = [
    (
        MeshConfig(data=3),
        r"data 3 x fsdp 1 x context 1 x tensor 1 needs 3 devices, found 8: set one size to -1",
    ),
    (MeshConfig(data=8, tensor=2), "needs 16 devices, found 8"),
    (MeshConfig(fsdp=3), "does not fit 8 devices: 3 does not divide them"),
    (MeshConfig(data=-1, fsdp=-1), "one of them may be -1"),
    (MeshConfig(tensor=0), "mesh sizes are at least 1"),
    (MeshConfig(data=-2), "mesh sizes are at least 1"),
]


@pytest.mark.parametrize(("sizes", "message"), WRONG)
def test_mesh_that_does_not_fit_says_why(sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(sizes)


def spec(letters: tuple[str | None, ...], shape: tuple[int, ...], **sizes: int) -> PartitionSpec:
    return partition_spec(letters, shape, make_mesh(MeshConfig(**sizes)), RULES)


def test_rules_by_hand():
    assert spec(("width", "query_head", "head_width"), (8, 4, 16), data=2, fsdp=2, tensor=2) == PartitionSpec(
        ("fsdp",), ("tensor",), None
    )
    assert spec(("batch", None), (16, 3), data=4, fsdp=2) == PartitionSpec(("data", "fsdp"), None)


def test_an_axis_that_does_not_divide_stays_whole():
    assert spec(("mlp_width",), (85,), data=4, tensor=2) == PartitionSpec(None)
    # 12 rows go over data 4, but not over data 4 x fsdp 2.
    assert spec(("batch",), (12,), data=4, fsdp=2) == PartitionSpec(("data",))


def test_a_mesh_axis_is_used_once_in_an_array():
    assert spec(("width", "width"), (8, 8), data=4, fsdp=2) == PartitionSpec(("fsdp",), None)


def test_an_axis_of_one_device_is_not_named():
    assert spec(("width", "mlp_width"), (8, 8), data=8) == PartitionSpec(None, None)


def test_parameters_and_their_copies_are_laid_out_alike():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    boxed = {"kernel": nn.LogicallyPartitioned(jnp.zeros((4, 6)), ("width", None)), "free": jnp.zeros(3)}
    params = nn.unbox(boxed)
    shardings = param_shardings(boxed, mesh)
    assert shardings["kernel"].spec == PartitionSpec(("fsdp",), None)
    assert shardings["free"] == replicated(mesh)
    state = optax.adam(1e-3).init(params)
    found = like_params(state, params, shardings, mesh)
    assert found[0].mu == found[0].nu == shardings
    assert found[0].count == replicated(mesh)


def test_constrain_is_nothing_without_a_mesh_and_a_layout_with_one():
    x = jnp.arange(32.0).reshape(8, 4)
    assert constrain(x, "b n") is x
    mesh = make_mesh(MeshConfig(data=4, context=2))

    def double(y: jax.Array) -> jax.Array:
        with activation_sharding(mesh, RULES):
            return constrain(2 * y, "b n")

    out = jax.jit(double)(x)
    assert np.array_equal(out, 2 * x)
    assert {shard.data.shape for shard in out.addressable_shards} == {(2, 2)}
    assert constrain(x, "b n") is x


def test_batches_go_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(np.arange(8), batch_sharding(mesh))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2,)}


class Named:
    """A device of a kind that this machine does not have."""

    platform = "tpu"

    def __init__(self, kind: str) -> None:
        self.device_kind = kind


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("NVIDIA H100 80GB HBM3", 989e12), ("TPU v5p", 459e12)],
)
def test_peak_is_the_data_sheets_by_the_longest_name(kind, peak):
    rate, source = peak_flops(Named(kind))
    assert rate == peak
    assert source.startswith("data sheet")
