"""Peak arithmetic rates of devices: the denominator of MFU."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

#: Peak dense bf16 rate of one device, FLOP/s, by `device_kind` (vendors' data sheets).
BF16_PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "Tesla T4": 65e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: Any) -> tuple[float, str]:
    """FLOP/s that one jax device can reach at most, and where the number comes from.

    A device outside the table is measured: the best of five 1024-cubed f32 products.
    """
    for kind in sorted(BF16_PEAK, key=len, reverse=True):
        if device.device_kind.startswith(kind):
            return BF16_PEAK[kind], f"data sheet, {kind}, bf16"
    size = 1024
    a = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    # All fake devices of a CPU share its cores.
    share = len(jax.local_devices()) if device.platform == "cpu" else 1
    return 2 * size**3 / min(seconds) / share, "measured, f32 product of 1024 x 1024 matrices"
