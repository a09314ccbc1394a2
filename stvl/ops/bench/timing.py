"""Time and memory of one compiled program on the device at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

#: Bytes of inputs that may lie ready at the same time.
INPUT_BYTES = 2 * 2**30


class Timing(NamedTuple):
    """Time of one call.

    Attributes:
        seconds: median over the measurements.
        fastest: the shortest of them.
        spread: (third quartile - first) / median.
        measurements: how many.
        in_flight: calls that were sent before the device was waited for, in each measurement.
    """

    seconds: float
    fastest: float
    spread: float
    measurements: int
    in_flight: int


def input_sets(make: Callable[[jax.Array], Any], first: int = 1) -> list[Any]:
    """Two to four sets of inputs, each from a seed of its own, on the device."""
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(make, jnp.uint32(0))))
    count = max(2, min(4, INPUT_BYTES // max(size, 1)))
    made = jax.jit(make)
    return [jax.block_until_ready(made(jnp.uint32(first + number))) for number in range(count)]


def measure(program: Callable[..., Any], sets: Sequence[Any], budget: float = 2.0) -> Timing:
    """Median time of ``program(*inputs)``, each call with the next of the input sets.

    Two calls warm up. On a CPU each call is waited for. On an accelerator a measurement sends as many calls as take
    about 20 ms and waits for the last, so that the host's share is hidden, as it is in training.

    Args:
        program: compiled.
        sets: arguments; no call gets those of the call before.
        budget: seconds to spend; at least five measurements (three where one call takes longer) and at most thirty.
    """
    for number in range(2):
        start = time.perf_counter()
        jax.block_until_ready(program(*sets[number % len(sets)]))
        once = time.perf_counter() - start
    on_cpu = jax.default_backend() == "cpu"
    in_flight = 1 if on_cpu else max(1, min(50, round(0.02 / max(once, 1e-6))))
    seconds: list[float] = []
    begin, sent = time.perf_counter(), 0
    fewest = 5 if once < budget else 3
    while len(seconds) < fewest or (len(seconds) < 30 and time.perf_counter() - begin < budget):
        start = time.perf_counter()
        for _ in range(in_flight):
            sent += 1
            out = program(*sets[sent % len(sets)])
        jax.block_until_ready(out)
        seconds.append((time.perf_counter() - start) / in_flight)
    low, middle, high = statistics.quantiles(seconds, n=4)
    spread = (high - low) / middle
    return Timing(statistics.median(seconds), min(seconds), spread, len(seconds), in_flight)


def peak_bytes(compiled: Any) -> int | None:
    """Arguments, outputs and temporaries of a program as the compiler laid them out; None where it does not say."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    parts = (stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.temp_size_in_bytes)
    return sum(parts) - stats.alias_size_in_bytes


def matmul_ceiling(dtype: jnp.dtype, size: int | None = None) -> float:
    """Operations a second of a square matrix product in `dtype`, at the default precision, in its fastest run."""
    size = size or (1536 if jax.default_backend() == "cpu" else 8192)

    def make(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        one, two = jax.random.split(jax.random.key(seed))
        return jax.random.normal(one, (size, size), dtype), jax.random.normal(two, (size, size), dtype)

    sets = input_sets(make)
    program = jax.jit(lambda x, y: x @ y).lower(*sets[0]).compile()
    return 2 * size**3 / measure(program, sets, budget=1.0).fastest


def copy_ceiling(size: int | None = None) -> float:
    """Bytes a second that are read and written when an array is changed elementwise, in its fastest run."""
    size = size or (2**24 if jax.default_backend() == "cpu" else 2**28)
    sets = input_sets(lambda seed: (jnp.full(size, seed.astype(jnp.float32)),))
    program = jax.jit(lambda x: x + 1).lower(*sets[0]).compile()
    return 8 * size / measure(program, sets, budget=1.0).fastest
