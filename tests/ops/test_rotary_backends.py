"""The backends of the rotary op: the contract, the choice between them, meshes, and compilers for other devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, use_abstract_mesh

from stvl.core.errors import NotSupported
from stvl.core.sharding import activation_sharding
from stvl.ops.rotary import BACKENDS, Rotary, RotaryOptions, backends, explain, rotate
from stvl.ops.rotary.gpu_kernel import rotate_gpu
from stvl.ops.rotary.trig import sincos
from tests.contracts.rotary import CASES, RotaryContract, draw, plain, run


class TestReference(RotaryContract):
    backend = "reference"


class TestTpu(RotaryContract):
    backend = "tpu"
    options = RotaryOptions(block_n=64)


class TestGpu(RotaryContract):
    backend = "gpu"
    options = RotaryOptions(block_n=16)


def test_every_backend_joins_the_contract():
    assert {item.backend for item in RotaryContract.__subclasses__()} == set(BACKENDS)


RULES = {"batch": ("data",), "token": ("context",), "query_head": ("tensor",)}


def mesh(**sizes: int) -> Mesh:
    count = int(np.prod(list(sizes.values())))
    return Mesh(np.array(jax.devices()[:count]).reshape(*sizes.values()), tuple(sizes))


def on(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(backends, "target_platform", lambda: platform)


def test_each_platform_has_its_choice(monkeypatch):
    x, rotary, _ = draw(CASES["197 tokens, odd heads"])
    assert explain(x, rotary) == ("reference", {})
    on(monkeypatch, "gpu")
    assert explain(x, rotary) == ("reference", {})
    on(monkeypatch, "tpu")
    assert explain(x, rotary) == ("tpu", {})
    assert explain(jax.ShapeDtypeStruct(x.shape, x.dtype), rotary) == ("tpu", {})


def test_a_kernel_leaves_what_it_cannot_split_to_the_reference(monkeypatch):
    x, rotary, _ = draw(CASES["197 tokens, odd heads"])
    on(monkeypatch, "tpu")
    with activation_sharding(mesh(data=1, context=4, tensor=1), RULES):
        reason = "197 token entries do not divide over the mesh axes context"
        assert explain(x, rotary) == ("reference", {"tpu": reason})
        with pytest.raises(NotSupported, match=f"rotary backend 'tpu': {reason}"):
            rotate(x, rotary, impl="tpu")
    with activation_sharding(mesh(data=2, context=1, tensor=1), RULES):
        assert explain(x, rotary) == ("tpu", {})


WRONG = [
    ("tpu", "gpu", (1, 2, 1, 4), "float32", 1, "a kernel for tpu, the program runs on gpu"),
    ("gpu", "tpu", (1, 2, 1, 4), "float32", 1, "a kernel for gpu, the program runs on tpu"),
    ("tpu", "cpu", (1, 2, 1, 4), "float16", 1, "takes float32 and bfloat16, the heads are float16"),
    ("gpu", "cpu", (1, 2, 1, 4), "float32", 0, "at least one coordinate axis"),
    ("tpu", "cpu", (1, 2, 512, 64), "float32", 1, r"take 33554432 bytes of VMEM, 12582912 are planned for"),
]


@pytest.mark.parametrize(("impl", "platform", "shape", "dtype", "axes", "reason"), WRONG)
def test_a_named_kernel_says_why_it_declines(monkeypatch, impl, platform, shape, dtype, axes, reason):
    on(monkeypatch, platform)
    rotary = Rotary(jnp.zeros((shape[1], axes)), jnp.zeros((axes, shape[3] // 2)))
    with pytest.raises(NotSupported, match=f"rotary backend '{impl}': .*{reason}"):
        rotate(jnp.zeros(shape, dtype), rotary, impl=impl)


def test_unknown_backend_shows_the_nearest():
    x, rotary, _ = draw(CASES["7 tokens, 6 wide"])
    with pytest.raises(ValueError, match=r"unknown rotary backend 'referenc' \(did you mean 'reference'\?\)"):
        rotate(x, rotary, impl="referenc")


@pytest.mark.usefixtures("as_installed")
def test_coordinates_of_another_number_of_samples():
    with pytest.raises(ValueError, match="coords are for 3 samples, the heads have 2"):
        rotate(jnp.zeros((2, 5, 1, 4)), Rotary(jnp.zeros((3, 5, 1)), jnp.zeros((1, 2))))


@pytest.mark.parametrize("impl", ["tpu", "gpu"])
@pytest.mark.parametrize("batched", [False, True])
def test_kernels_over_a_mesh_give_what_one_device_gives(impl, batched):
    shape = CASES["197 tokens, odd heads"]._replace(n=24, h=4, batched=batched)
    x, rotary, ct = draw(shape)
    alone = run(impl, x, rotary, ct, RotaryOptions())
    with activation_sharding(mesh(data=2, context=2, tensor=2), RULES):
        split = run(impl, x, rotary, ct, RotaryOptions())
    assert len(split.y.sharding.device_set) == 8
    assert split.y.sharding.shard_shape(split.y.shape) == (1, 12, 2, 64)
    expected = plain(x, rotary, ct)
    for one, other, true in zip(split, alone, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * max(1.0, np.abs(true).max()))
        np.testing.assert_allclose(one, true, atol=2e-5 * max(1.0, np.abs(true).max()))


def test_heads_are_kept_for_the_backward_pass_only_where_angles_are_trained():
    x, rotary, _ = draw(CASES["197 tokens, odd heads"])

    def kept(*arguments: str) -> int:
        def turn(chosen: dict[str, jax.Array]) -> jax.Array:
            given = {"x": x, "coords": rotary.coords, "frequencies": rotary.frequencies, **chosen}
            return rotate(given["x"], Rotary(given["coords"], given["frequencies"]), impl="tpu")

        every = {"x": x, "coords": rotary.coords, "frequencies": rotary.frequencies}
        _, pull = jax.vjp(turn, {name: every[name] for name in arguments})
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    assert kept("x") < x.size
    assert kept("x", "coords") >= x.size
    assert kept("x", "frequencies") >= x.size


def test_a_rematerialised_scan_of_rotations_has_the_right_gradient():
    x, rotary, ct = draw(CASES["7 tokens, 6 wide"])

    def total(x: jax.Array) -> jax.Array:
        layer = jax.checkpoint(lambda x, _: (rotate(x, rotary, impl="tpu"), None))
        return (jax.lax.scan(layer, x, None, length=3)[0] * ct).sum()

    back = Rotary(-3 * rotary.coords, rotary.frequencies)
    np.testing.assert_allclose(jax.grad(total)(x), plain(ct, back, ct).y, atol=2e-5)


@pytest.mark.parametrize(
    ("reach", "tolerance"), [(1.0, 2e-7), (1e3, 2e-7), (65536.0, 2e-7), (1e5, 2e-7), (1e6, 2**-4)]
)
def test_sine_and_cosine_of_large_angles(reach, tolerance):
    angle = np.random.default_rng(0).uniform(-reach, reach, 100_000).astype(np.float32)
    angle = np.concatenate([angle, np.float32([0, np.pi / 4, -np.pi / 2, np.pi, 8192 * np.pi])])
    sine, cosine = jax.jit(sincos)(angle)
    np.testing.assert_allclose(sine, np.sin(angle.astype(np.float64)), rtol=0, atol=tolerance)
    np.testing.assert_allclose(cosine, np.cos(angle.astype(np.float64)), rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", ["785 tokens, bf16", "7 tokens, 6 wide", "72 wide"])
def test_gpu_kernel_lowers_for_cuda_on_a_machine_without_one(case):
    x, rotary, _ = draw(CASES[case])
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        text = jax.jit(rotate_gpu).trace(x, *rotary).lower(lowering_platforms=("cuda",)).as_text()
    assert "xla.gpu.triton" in text and "rotary_gpu" in text


SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from stvl.core.sharding import activation_sharding
from stvl.ops.rotary import Rotary, rotate

devices = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices
mesh = Mesh(np.array(devices[:1]), ("one",))
shaped = lambda shape, dtype="float32": jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))
found = []
for b, n, h, e, axes, batched, dtype in json.loads(sys.argv[2]):
    rotary = Rotary(shaped(((b,) if batched else ()) + (n, axes)), shaped((axes, e // 2)))
    x = shaped((b, n, h * e), dtype)
    for impl in ("reference", None):
        def turn(x, rotary):
            with activation_sharding(mesh, {}):
                return rotate(x.reshape(b, n, h, e), rotary, impl=impl).reshape(x.shape)
        both = lambda x, rotary, ct: jax.vjp(turn, x, rotary)[1](ct)
        compiled = jax.jit(both).lower(x, rotary, x).compile()
        found.append("tpu_custom_call" in compiled.as_text())
    project = lambda x, w, rotary: turn(x @ w, rotary)
    impl = "reference"
    args = (x, shaped((h * e, h * e), dtype), rotary)
    reference = jax.jit(project).lower(*args).compile().cost_analysis()["bytes accessed"]
    impl = "tpu"
    kernel = jax.jit(lambda *a: project(*a)).lower(*args).compile().cost_analysis()["bytes accessed"]
    found.append(kernel / reference)
print(json.dumps(found))
"""


@pytest.mark.libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_tpu_kernel_compiles_ahead_of_time_and_moves_fewer_bytes_than_xla(topology):
    pytest.importorskip("libtpu", reason="the libtpu wheel is an optional package")
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    }
    shapes = [(4, 4097, 16, 64, 3, False, "bfloat16"), (2, 197, 3, 72, 4, True, "float32")]
    command = [sys.executable, "-c", SCRIPT, topology, json.dumps(shapes)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    large, odd = np.array(json.loads(done.stdout.strip().splitlines()[-1]), float).reshape(2, 3)
    assert large[:2].tolist() == odd[:2].tolist() == [0, 1]
    assert large[2] < 0.6
