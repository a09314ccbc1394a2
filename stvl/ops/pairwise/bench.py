"""Time, memory and correctness of the pairwise backends on named shapes: ``stvl bench pairwise``.

A case runs forward and gradients of a loss. Its gradients are compared with the dense form's first, then it is timed
on inputs that it has not seen. Memory is what the compiler says that the program needs besides its arguments
(`temp_size_in_bytes`), and the peak resident size of a process that does nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from stvl.core.errors import NotSupported, nearest
from stvl.core.sharding import activation_sharding
from stvl.ops.pairwise.api import BACKENDS, pairwise
from stvl.ops.pairwise.options import PairwiseOptions
from stvl.ops.pairwise.reductions import LOGSUMEXP, SUM
from stvl.ops.pairwise.shapes import SHAPES, PairwiseShape, shape
from stvl.ops.pairwise.tile import PerColumn, PerRow, Tile, pair_similarity

#: Pairs up to which the dense form is computed to compare with; it needs about 16 bytes a pair.
CHECKED_PAIRS = 2**28
VERBS, NOUNS = 97, 300
Arguments = tuple[Array, Array, Array, dict[str, Array], dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        shape: name of a shape.
        impl: name of a backend.
        loss: name of a loss of `LOSSES`.
        chunk: rows of a tile, or None for the backend's choice.
    """

    shape: str
    impl: str
    loss: str = "infonce"
    chunk: int | None = None


def _contrast(tile: Tile) -> dict[str, PerRow | PerColumn]:
    logits = tile.params["scale"] * tile.similarity
    return {"rows": PerRow(logits, LOGSUMEXP), "columns": PerColumn(logits, LOGSUMEXP)}


def _margins(tile: Tile) -> dict[str, PerRow | PerColumn]:
    share = [tile.rows[name][:, None] == tile.columns[name][None, :] for name in ("verb", "noun")]
    gap = 1.0 - 0.5 * share[0] - 0.5 * share[1]
    far = tile.params["scale"] * gap + tile.similarity
    return {
        "rows": PerRow(jax.nn.relu(far - tile.rows["own"][:, None]), SUM),
        "columns": PerColumn(jax.nn.relu(far - tile.columns["own"][None, :]), SUM),
    }


def infonce(x: Array, y: Array, scale: Array, rows: dict, columns: dict, **how: Any) -> Float[Array, ""]:
    """Both directions of InfoNCE; rows and columns are pairs as far as there are as many."""
    out, size = pairwise(_contrast, x, y, params={"scale": scale}, **how), min(x.shape[0], y.shape[0])
    own = scale * pair_similarity(x[:size], y[:size])
    return out["rows"].mean() + out["columns"].mean() - 2 * own.mean()


def margin(x: Array, y: Array, scale: Array, rows: dict, columns: dict, **how: Any) -> Float[Array, ""]:
    """Both directions of ``mean [g (1 - c_ij) + s_ij - s_ii]+``, with c from verb and noun codes."""
    size = min(x.shape[0], y.shape[0])
    own = pair_similarity(x[:size], y[:size])
    one, two = (jnp.pad(own, (0, side.shape[0] - size)) for side in (x, y))
    rows, columns = {**rows, "own": one}, {**columns, "own": two}
    out = pairwise(_margins, x, y, rows=rows, columns=columns, params={"scale": scale}, **how)
    return (out["rows"].sum() + out["columns"].sum()) / (x.shape[0] * y.shape[0])


#: Loss -> the function, and the value of its parameter.
LOSSES: dict[str, tuple[Callable[..., Float[Array, ""]], float]] = {
    "infonce": (infonce, 20.0),
    "margin": (margin, 0.6),
}


def cases(
    shapes: Iterable[str] = ("pretrain-b", "pod-4k", "pod-16k"),
    impls: Iterable[str] = tuple(BACKENDS),
    losses: Iterable[str] = ("infonce", "margin"),
) -> list[Case]:
    """Every combination.

    Raises:
        ValueError: an unknown name, with the nearest one.
    """
    shapes, impls, losses = list(shapes), list(impls), list(losses)
    for what, names, known in (
        ("pairwise shape", shapes, SHAPES),
        ("pairwise backend", impls, BACKENDS),
        ("benchmark loss", losses, LOSSES),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}{nearest(name, known)}")
    return [Case(*names) for names in itertools.product(shapes, impls, losses)]


def run(case: Case, repeats: int = 3, check: bool = True) -> dict[str, Any]:
    """Measure one case.

    Returns:
        The case; ``seconds`` (median of forward and gradients), ``gflops_per_second`` (useful operations),
        ``temp_bytes``, ``argument_bytes``, and ``error``: the largest difference of loss and gradients from the dense
        form, each relative to its largest value, or None where the matrix is too large to compare. A backend that
        cannot serve gives ``declined`` with its reason instead.
    """
    size = shape(case.shape)
    row: dict[str, Any] = {**dataclasses.asdict(case), "devices": jax.device_count()}
    try:
        step = _compiled(case)
    except NotSupported as reason:
        return {**row, "declined": str(reason)}
    memory, first = step.memory_analysis(), _inputs(size, case.loss, 0)
    found = jax.block_until_ready(step(*_placed(case, first)))
    error = None
    if check and size.pairs <= CHECKED_PAIRS:
        error = _difference(found, _dense(case.shape, case.loss))
    seconds = []
    for seed in range(1, repeats + 1):
        arguments = jax.block_until_ready(_placed(case, _inputs(size, case.loss, seed)))
        start = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return {
        **row,
        "seconds": median,
        "gflops_per_second": size.flops() / median / 1e9,
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "error": error,
    }


def resident(case: Case) -> int:
    """Peak resident bytes of a fresh process that runs the case once, the interpreter and jax included.

    Raises:
        RuntimeError: the process failed; the message has the end of what it wrote.
    """
    command = [sys.executable, "-m", "stvl.ops.pairwise.bench", json.dumps(dataclasses.asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])["peak_resident_bytes"]


def _loss(case: Case, *arguments: Any) -> Float[Array, ""]:
    options = PairwiseOptions(chunk=case.chunk)
    return LOSSES[case.loss][0](*arguments, options=options, impl=case.impl)


def _mesh() -> Mesh:
    return Mesh(np.asarray(jax.devices()), ("data",))


def _compiled(case: Case) -> Any:
    """Forward and gradients by features and parameter; the ring over all devices."""
    step = jax.jit(jax.value_and_grad(functools.partial(_loss, case), argnums=(0, 1, 2)))
    arguments = _placed(case, _inputs(shape(case.shape), case.loss, 0))
    if case.impl != "ring":
        return step.lower(*arguments).compile()
    with activation_sharding(_mesh(), {"batch": ("data",)}):
        return step.lower(*arguments).compile()


def _placed(case: Case, arguments: Arguments) -> Arguments:
    """The ring's arguments over all devices where they divide; the others' on the first."""
    if case.impl != "ring" or jax.device_count() == 1:
        return arguments
    mesh = _mesh()

    def place(a: Array) -> Array:
        split = a.ndim and a.shape[0] % jax.device_count() == 0
        return jax.device_put(a, NamedSharding(mesh, PartitionSpec("data") if split else PartitionSpec()))

    return jax.tree.map(place, arguments)


def _inputs(size: PairwiseShape, loss: str, seed: int) -> Arguments:
    """Unit features whose pairs have a similarity of about 0.45, and codes."""
    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal((n, size.width), np.float32) for n in (size.rows, size.columns))
    y[: size.rows] += 0.5 * x[: size.columns]
    x, y = (jnp.asarray(a / np.linalg.norm(a, axis=1, keepdims=True), size.dtype) for a in (x, y))
    codes = [
        {"verb": jnp.asarray(rng.integers(0, VERBS, n)), "noun": jnp.asarray(rng.integers(0, NOUNS, n))}
        for n in (size.rows, size.columns)
    ]
    return x, y, jnp.float32(LOSSES[loss][1]), codes[0], codes[1]


@functools.lru_cache(maxsize=1)
def _dense(name: str, loss: str) -> Any:
    """Loss and gradients of the dense form, on the host."""
    case = Case(name, "dense", loss)
    return jax.device_get(_compiled(case)(*_inputs(shape(name), loss, 0)))


def _difference(found: Any, meant: Any) -> float:
    errors = []
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(meant), strict=True):
        one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
        errors.append(np.abs(one - two).max() / np.abs(two).max())
    return float(np.max(errors))  # NaN where one of them is


def main() -> None:
    """Run the case given as JSON once and print the peak resident size of this process."""
    case = Case(**json.loads(sys.argv[1]))
    arguments = _inputs(shape(case.shape), case.loss, 0)
    jax.block_until_ready(_compiled(case)(*_placed(case, arguments)))
    print(json.dumps({"peak_resident_bytes": _peak_resident()}))


def _peak_resident() -> int:
    # Linux starts a child's ru_maxrss at the parent's size; the high-water mark of its own memory is in /proc.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(
            line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")
        )
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
