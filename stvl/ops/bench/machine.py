"""Facts about the machine and its software that a measurement needs beside it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

#: Environment variables that change what is measured or where.
VARIABLES = (
    "JAX_PLATFORMS",
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "CUDA_VISIBLE_DEVICES",
    "TPU_VISIBLE_CHIPS",
    "OMP_NUM_THREADS",
)


def versions() -> dict[str, str | None]:
    """Version of Python and of each package that matters; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def devices() -> list[dict[str, Any]]:
    """Kind, platform and memory in bytes (None where the backend does not say) of every local device."""
    found = []
    for device in jax.local_devices():
        memory = device.memory_stats() or {}
        found.append(
            {
                "id": device.id,
                "platform": device.platform,
                "kind": device.device_kind,
                "bytes_limit": memory.get("bytes_limit"),
                "bytes_in_use": memory.get("bytes_in_use"),
            }
        )
    return found


def processor() -> str:
    """Name of the host's processor and the number of cores that this process may use."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {cores()} cores"


def cores() -> int:
    """Cores that this process may use."""
    # os.process_cpu_count came with Python 3.13.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def host_memory() -> int | None:
    """Bytes of the host's memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def variables() -> dict[str, str]:
    """The environment variables of `VARIABLES` that are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def environment() -> dict[str, Any]:
    """What a result of record needs: command, versions, device, processor, load and variables."""
    local = jax.local_devices()
    return {
        "command": " ".join(["stvl", *sys.argv[1:]]),
        "versions": versions(),
        "platform": local[0].platform,
        "device": local[0].device_kind,
        "devices": len(local),
        "processor": processor(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "variables": variables(),
    }
