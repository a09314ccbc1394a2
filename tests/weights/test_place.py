"""Parameters onto devices: each with its dtype and sharding, read one at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stvl.core.errors import WeightsError
from stvl.weights.load import LoadPlan, Target, load_params, plan_load
from stvl.weights.rules import Layout, Linear, New, Rule

from .tools import Memory

F4 = np.dtype("f4")
LAYOUT = Layout(
    "toy",
    (Rule("blocks.{i}.w", ("stack/kernel",), (Linear(),)), Rule("b", ("head/bias",))),
    new=(New("head/scale", "starts at 1"),),
)
TARGETS = {
    "stack/kernel": Target((2, 8, 4), F4),
    "head/bias": Target((4,), F4),
    "head/scale": Target((4,), F4),
}


def made() -> tuple[dict[str, np.ndarray], LoadPlan]:
    rng = np.random.default_rng(0)
    arrays = {f"blocks.{i}.w": rng.normal(size=(4, 8)).astype(F4) for i in range(2)}
    arrays["b"] = rng.normal(size=4).astype(F4)
    return arrays, plan_load(LAYOUT, Memory(arrays), TARGETS)


def tree(dtype: type = jnp.float32) -> dict:
    return {
        "stack": {"kernel": jax.ShapeDtypeStruct((2, 8, 4), dtype)},
        "head": {"bias": jax.ShapeDtypeStruct((4,), dtype), "scale": jnp.ones(4)},
    }


def test_values_dtypes_and_new_parameters():
    arrays, plan = made()
    params = load_params(plan, tree(jnp.bfloat16))
    assert params["stack"]["kernel"].dtype == jnp.bfloat16
    assert params["head"]["scale"].dtype == jnp.float32
    want = np.stack([arrays["blocks.0.w"].T, arrays["blocks.1.w"].T]).astype(jnp.bfloat16)
    assert np.array_equal(np.asarray(params["stack"]["kernel"]), want)
    assert np.asarray(params["head"]["scale"]).tolist() == [1, 1, 1, 1]
    again = load_params(plan, tree(jnp.bfloat16), dtype=jnp.float32)
    assert np.array_equal(np.asarray(again["head"]["bias"]), arrays["b"])
    assert again["head"]["bias"].devices() == {jax.devices()[0]}


def test_shardings_over_four_devices():
    arrays, plan = made()
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))
    split, whole = NamedSharding(mesh, P(None, "fsdp", "tensor")), NamedSharding(mesh, P())
    shardings = {"stack": {"kernel": split}, "head": {"bias": whole, "scale": whole}}
    params = load_params(plan, tree(), shardings)
    kernel = params["stack"]["kernel"]
    assert kernel.sharding == split
    want = np.stack([arrays["blocks.0.w"].T, arrays["blocks.1.w"].T])
    assert np.array_equal(np.asarray(kernel), want)
    assert len(kernel.addressable_shards) == 4
    for shard in kernel.addressable_shards:
        assert shard.data.shape == (2, 4, 2)
        assert np.array_equal(np.asarray(shard.data), want[shard.index])
    assert params["head"]["bias"].sharding == whole
    leaves = tree() | {"stack": {"kernel": jax.ShapeDtypeStruct((2, 8, 4), jnp.float32, sharding=split)}}
    assert load_params(plan, leaves)["stack"]["kernel"].sharding == split
    assert load_params(plan, tree(), whole)["stack"]["kernel"].sharding == whole


def test_what_does_not_fit():
    _, plan = made()
    with pytest.raises(WeightsError, match=r"without \['head/scale'\]"):
        load_params(plan, tree() | {"head": {"bias": tree()["head"]["bias"]}})
    with pytest.raises(WeightsError, match="no sharding for head/bias, head/scale"):
        load_params(plan, tree(), {"stack": {"kernel": None}})
    abstract = tree()
    abstract["head"]["scale"] = jax.ShapeDtypeStruct((4,), jnp.float32)
    with pytest.raises(
        WeightsError, match=r"head/scale does not come from the file \(starts at 1\): give it as an array"
    ):
        load_params(plan, abstract)
    wrong = tree()
    wrong["head"]["bias"] = jax.ShapeDtypeStruct((5,), jnp.float32)
    with pytest.raises(WeightsError, match=r"head/bias is \(5,\) in the tree, the plan has \(4,\)"):
        load_params(plan, wrong)
