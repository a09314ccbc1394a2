"""The backends of the rotary op by name, what each declines, and which one ``impl=None`` takes."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from stvl.core.axes import AXES
from stvl.core.sharding import Rules, mesh_in_force, partition_spec, target_platform
from stvl.ops.rotary.gradient import Kernel, Static, turned
from stvl.ops.rotary.options import RotaryOptions
from stvl.ops.rotary.reference import rotate_reference


class Case(NamedTuple):
    """What a backend is asked to serve.

    Attributes:
        shape: (b, n, h, e) of the heads.
        dtype: dtype of the heads.
        axes: number of coordinate axes.
        options: sizes and switches.
        platform: ``cpu``, ``gpu`` or ``tpu``: where the program will run.
        mesh: the mesh in force and its rules; None for one device, and inside a shard_map.
    """

    shape: tuple[int, int, int, int]
    dtype: Any
    axes: int
    options: RotaryOptions
    platform: str
    mesh: tuple[Mesh, Rules] | None


class Backend(NamedTuple):
    """One way to turn heads: ``run(x, coords, frequencies, case)``, and the reason to decline a case, or None."""

    run: Callable[[Array, Array, Array, Case], Array]
    declines: Callable[[Case], str | None]


class Choice(NamedTuple):
    """One line of the table of choices: where it holds, the backend, and what it rests on."""

    platform: str
    impl: str
    evidence: str


def case_of(x: Array | jax.ShapeDtypeStruct, axes: int, options: RotaryOptions) -> Case:
    """The case of heads `x` (an array or its shape) in the surrounding trace."""
    found = mesh_in_force()
    local = found is None or found[0].size == 1 or bool(jax.sharding.get_abstract_mesh().manual_axes)
    shape = (x.shape[0], x.shape[1], x.shape[2], x.shape[3])
    return Case(shape, x.dtype, axes, options, target_platform(), None if local else found)


def _reference(x: Array, coords: Array, frequencies: Array, case: Case) -> Array:
    # XLA's own derivative costs what the forward pass costs, and keeps no more than the sines and cosines.
    return rotate_reference(x, coords, frequencies)


def _tpu(x: Array, coords: Array, frequencies: Array, case: Case) -> Array:
    from stvl.ops.rotary.tpu_kernel import rotate_tpu

    return _kernel(rotate_tpu, x, coords, frequencies, case)


def _gpu(x: Array, coords: Array, frequencies: Array, case: Case) -> Array:
    # jax 0.11 deprecates the Triton lowering, so that it is imported only where it is used.
    from stvl.ops.rotary.gpu_kernel import rotate_gpu

    return _kernel(rotate_gpu, x, coords, frequencies, case)


def _kernel(kernel: Kernel, x: Array, coords: Array, frequencies: Array, case: Case) -> Array:
    interpret = case.platform == "cpu" if case.options.interpret is None else case.options.interpret
    run = functools.partial(turned, Static(kernel, case.options.block_n, interpret))
    if x.size == 0:
        return x
    if case.mesh is None:
        return run(x, coords, frequencies)
    # A rotation couples neither samples nor tokens nor heads: each device turns what it has.
    mesh, _ = case.mesh
    heads = _spec(case)
    where = PartitionSpec(*heads[:2]) if coords.ndim == 3 else PartitionSpec(heads[1])
    specs = (heads, where, PartitionSpec())
    # Pallas calls do not say over which axes their results vary, so that check is off.
    split = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)
    return split(x, coords, frequencies)


def _spec(case: Case) -> PartitionSpec:
    assert case.mesh is not None
    return partition_spec((AXES["b"], AXES["n"], AXES["h"], None), case.shape, *case.mesh)


def _declines_kernel(platform: str, dtypes: tuple[str, ...], case: Case) -> str | None:
    if case.platform not in ("cpu", platform) and not case.options.interpret:
        return f"it is a kernel for {platform}, the program runs on {case.platform}"
    if case.axes < 1:
        return "it needs at least one coordinate axis"
    if str(case.dtype) not in dtypes:
        return f"it takes {' and '.join(dtypes)}, the heads are {case.dtype}"
    if case.mesh is not None:
        mesh, rules = case.mesh
        for axis, size, entry in zip("bnh", case.shape, _spec(case), strict=False):
            wanted = [name for name in rules.get(AXES[axis], ()) if mesh.shape[name] > 1]
            if len(wanted) > len(entry or ()):
                return f"{size} {AXES[axis]} entries do not divide over the mesh axes {', '.join(wanted)}"
    return None


def _declines_tpu(case: Case) -> str | None:
    from stvl.ops.rotary.tpu_kernel import VMEM_BYTES, vmem_bytes

    reason = _declines_kernel("tpu", ("float32", "bfloat16"), case)
    needed = vmem_bytes(case.shape, case.dtype.itemsize)
    if reason is None and needed > VMEM_BYTES:
        reason = f"the heads of the fewest tokens take {needed} bytes of VMEM, {VMEM_BYTES} are planned for"
    return reason


def _declines_gpu(case: Case) -> str | None:
    if importlib.util.find_spec("jax.experimental.pallas.triton") is None:
        return f"jax {jax.__version__} has no Triton lowering of Pallas"
    return _declines_kernel("gpu", ("float32", "bfloat16", "float16"), case)


#: Backends by name.
BACKENDS: dict[str, Backend] = {
    "reference": Backend(_reference, lambda case: None),
    "tpu": Backend(_tpu, _declines_tpu),
    "gpu": Backend(_gpu, _declines_gpu),
}

#: Asked from the top; the first line of the platform that its backend does not decline wins.
CHOICES: tuple[Choice, ...] = (
    Choice("cpu", "reference", "there is no kernel for CPUs"),
    Choice("gpu", "reference", "not timed; XLA makes one pass over the heads of it, as the kernel does"),
    Choice(
        "tpu",
        "tpu",
        "compiled ahead of time, a projection to 16 heads of 64 and the rotation of 4 x 4097 tokens in bf16 access "
        "156 MB on v5e and v6e, 165 MB on v5p; 432 MB with the reference, whose product XLA writes in f32 and copies. "
        "Not timed.",
    ),
    Choice("tpu", "reference", "serves every case"),
)
