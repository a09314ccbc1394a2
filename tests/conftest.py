"""What every test stands on: the CPU seen as eight devices, shapes and types checked at run time, repeatable examples."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py could choose the CPU and eight devices")

# Tests marked gpu or tpu need their device: STVL_TEST_PLATFORM=cuda (or tpu) pytest -m gpu tests/ops
os.environ["JAX_PLATFORMS"] = os.environ.get("STVL_TEST_PLATFORM", "cpu")
FLAGS = ["--xla_force_host_platform_device_count=8"]
# Test programs are tiny and run a few times: nearly all of their time is compile time, which this halves.
FLAGS.append("--xla_backend_optimization_level=0")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers fill the cores already
    FLAGS.append("--xla_cpu_multi_thread_eigen=false")
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()

import hypothesis  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

if any(name == "stvl" or name.startswith("stvl.") for name in sys.modules):
    raise RuntimeError("stvl was imported before tests/conftest.py could install the run-time type checker")

install_import_hook("stvl", "beartype.beartype")

# `pytest` alone, unlike `python -m pytest`, does not put the repository on the path; tests.contracts needs it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
pytest_plugins = ["tests.fixtures", "tests.fake_gcs"]

hypothesis.settings.register_profile("stvl", deadline=None, max_examples=50, derandomize=True, database=None)
hypothesis.settings.load_profile("stvl")
