"""Compilations for TPUs that are not there: with a pretended compiler, and with the real one where libtpu is installed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stvl.core.errors import ConfigError
from stvl.ops.bench import ahead
from stvl.ops.bench.adapter import Blocks, adapter
from stvl.ops.bench.ahead import DECLINED, Compiled, bench_ahead, best, environment, report
from stvl.ops.bench.run import Plan
from stvl.ops.bench.schedule import schedule

SLOTS = "== CAPACTIY:\nMATMUL, VSTORE:SPILL\n4 1\n== UTILIZATION:\n"


def written(folder: str, name: str, bundles: int, op: str) -> None:
    """A dump of straight bundles, each with two MATMUL slots filled."""
    stem = Path(folder) / f"17000-{name}"
    lines = "\n".join(f"{hex(at) if at else '0':>6}   :  {{}}" for at in range(bundles))
    Path(f"{stem}-1-final_bundles.txt").write_text(f"{lines} /* exit bundle: %{name} = {op}(%x) */\n")
    path = Path(f"{stem}-2-final_hlo-static-per-bundle-utilization.txt")
    path.write_text(SLOTS + "2 0\n" * bundles)


@pytest.fixture
def compiler(monkeypatch):
    """Stands in for the child process: kernels of as many bundles as the first block size says."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    tasks: list[dict[str, Any]] = []

    def run(command: list[str], env: dict[str, str], **how: Any) -> Any:
        task = json.loads(command[-1])
        tasks.append(task)
        if task["impl"] == "xla":
            return subprocess.CompletedProcess(command, DECLINED, "some note\nno such mask\n", "")
        if task["impl"] == "chunked":
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nVMEM is full\n")
        match = re.search(r"--xla_jf_dump_to=(\S+) --xla_jf_dump_llo_text=true", env["LIBTPU_INIT_ARGS"])
        assert match is not None
        forward, backward = task["blocks"][0] or (10, 0), task["blocks"][1] or (10, 0)
        written(match.group(1), "forward.1", forward[0], "custom-call")
        written(match.group(1), "backward.1", backward[0], "custom-call")
        written(match.group(1), "copy.1", 3, "copy")
        return subprocess.CompletedProcess(command, 0, 'noise\n{"temp": 64, "trips": {}}\n', "")

    monkeypatch.setattr(subprocess, "run", run)
    return tasks


def test_kernels_and_what_lies_around_them(compiler):
    plan = Plan(("b16-4f", "text-77"), ("tpu",), dtype="bf16", direction="both", batch=1)
    done = bench_ahead(adapter("attention"), plan, "v5e")
    assert [(one.shape, one.impl, one.batch, one.chip) for one in done] == [
        ("b16-4f", "tpu", 1, "v5e"),
        ("text-77", "tpu", 1, "v5e"),
    ]
    assert [kernel.name for kernel in done[0].kernels] == ["forward.1", "backward.1"]
    assert (done[0].bundles, done[0].others, done[0].temp) == (20, 3, 64)
    assert done[0].kernels[0].matmul == 0.5
    expected = {"op": "attention", "shape": "b16-4f", "impl": "tpu", "blocks": [None, None], "batch": 1}
    assert compiler[0] == expected | {"dtype": "bf16", "direction": "both", "chip": "v5e"}


def test_what_declines_or_fails_is_a_row(compiler):
    plan = Plan(("text-77",), ("xla", "chunked", "tpu"), dtype="bf16")
    done = bench_ahead(adapter("attention"), plan, "v6e")
    assert [one.reason for one in done] == ["declines: no such mask", "does not compile: VMEM is full", ""]
    assert [one.impl for one in best(done)] == ["xla", "chunked", "tpu"]


def test_the_best_blocks_are_taken_for_each_kernel(compiler):
    blocks = (Blocks((8, 1), (6, 1)), Blocks((4, 1), (9, 1)), Blocks((7, 1), (7, 1)))
    plan = Plan(("text-77",), ("tpu",), dtype="bf16", blocks=blocks)
    done = bench_ahead(adapter("attention"), plan, "v5e")
    assert [one.bundles for one in done] == [14, 13, 14]
    (kept,) = best(done)
    assert [(kernel.name, kernel.bundles) for kernel in kept.kernels] == [
        ("forward.1 4x1:9x1", 4),
        ("backward.1 8x1:6x1", 6),
    ]
    assert kept.bundles == 10 and kept.blocks == "(best of 3)"


def test_splash_is_tried_with_several_blocks(compiler):
    if "splash" not in adapter("attention").impls():
        pytest.fail("the vendor backend is gone: compare with something else")
    done = bench_ahead(adapter("attention"), Plan(("text-77",), ("splash", "tpu"), dtype="bf16"), "v5e")
    assert [one.impl for one in done].count("splash") >= 4
    assert [one.impl for one in done].count("tpu") == 1


def test_report_is_plain_json(compiler):
    done = bench_ahead(adapter("attention"), Plan(("text-77",), ("tpu",), dtype="bf16"), "v5e")
    found = json.loads(json.dumps(report(done, "attention", "bf16")))
    assert found["compiled"][0]["kernels"][0]["bundles"] == 10
    assert found["versions"]["jax"]


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--aot needs the TPU compiler: pip install 'stvl\[tpu\]'"):
        bench_ahead(adapter("attention"), Plan(), "v5e")
    with pytest.raises(ConfigError, match=r"unknown chip 'v5' \(did you mean 'v5[ep]'\?\)"):
        bench_ahead(adapter("attention"), Plan(), "v5")


def test_nothing_to_choose_from():
    failed = Compiled("a", "b", "", "forward", "v5e", reason="declines: no")
    assert best([failed]) == [failed]
    assert best([]) == []


KERNEL = """
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import pallas as pl, topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec

def kernel(x, y, o, scratch):
    @pl.when(pl.program_id(1) == 0)
    def _():
        scratch[...] = jnp.exp(x[...].astype(jnp.float32)).astype(jnp.bfloat16)
    def outer(i, sums):
        def inner(j, sums):
            part = y[pl.ds((i * 4 + j) * 256, 256), :]
            return sums + jnp.dot(scratch[...], part, preferred_element_type=jnp.float32)
        return jax.lax.fori_loop(0, 4, inner, sums)
    o[...] = jax.lax.fori_loop(0, 2, outer, jnp.zeros((256, 256)))

devices = topologies.get_topology_desc(platform="tpu", topology_name="TOPOLOGY").devices
one = NamedSharding(Mesh(np.array(devices[:1]), ("d",)), PartitionSpec())
call = pl.pallas_call(
    kernel, grid=(8, 4), out_shape=jax.ShapeDtypeStruct((2048, 1024), jnp.float32), name="counted",
    in_specs=[pl.BlockSpec((256, 256), lambda i, j: (i, 0)), pl.BlockSpec((2048, 256), lambda i, j: (0, j))],
    out_specs=pl.BlockSpec((256, 256), lambda i, j: (i, j)), scratch_shapes=[pltpu.VMEM((256, 256), jnp.bfloat16)],
)
arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=one) for shape in ((2048, 256), (2048, 1024))]
jax.jit(call).lower(*arrays).compile()
"""


@pytest.mark.libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_real_compiler_s_loops_are_counted(topology, tmp_path):
    pytest.importorskip("libtpu", reason="the libtpu wheel is an optional package")
    command = [sys.executable, "-c", KERNEL.replace("TOPOLOGY", topology)]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = schedule(tmp_path, "^counted")
    assert found.pallas and found.assumed == found.unknown == 0
    # 32 steps of the grid; the pipeline that fetches and writes blocks takes two more. Inside 2 x 4 trips a step.
    assert (found.loops[0].entries, found.loops[0].trips) == (1, 34)
    assert found.loops[-1].trips == 32 * 2 * 4
    # Once for each of the 8 rows of the grid: e ** x of 256 x 256 numbers.
    assert any(block.runs == 8 and block.bundles > 20 for block in found.blocks)
    # Each trip multiplies 256 x 256 x 256.
    assert 0.1 < found.main.matmul <= 1 and found.main.runs == 256
    assert found.waits is not None and found.waits >= found.bundles > found.static
    # Both inputs and the output twice, and the scratch.
    windows = 2 * (2 * 256 * 256 + 2 * 2048 * 256 + 4 * 256 * 256) + 2 * 256 * 256
    assert windows <= found.vmem < windows + 2**20


@pytest.mark.libtpu
@pytest.mark.slow
def test_our_kernel_is_compiled_and_read(tmp_path):
    pytest.importorskip("libtpu", reason="the libtpu wheel is an optional package")
    assert ahead.TOPOLOGIES.keys() == {"v5e", "v5p", "v6e"}
    plan = Plan(("text-77",), ("tpu", "gpu"), dtype="bf16", direction="both", batch=1)
    ours, other = bench_ahead(adapter("attention"), plan, "v5e")
    assert ours.reason == "" and len(ours.kernels) >= 2
    assert all(kernel.unknown == 0 and kernel.matmul > 0 for kernel in ours.kernels)
    assert other.reason.startswith("declines: a kernel for gpu")
