"""The bench: what is checked before it is timed, what a row holds, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.errors import ConfigError, DataError, NotSupported
from stvl.ops.attention import BACKENDS, Causal, Window
from stvl.ops.attention.backends import Backend
from stvl.ops.attention.shapes import SHAPES, AttentionShape
from stvl.ops.attention.xla import attention_xla
from stvl.ops.bench import of_attention, of_pairwise
from stvl.ops.bench import run as running
from stvl.ops.bench.adapter import Adapter, Blocks, Work, adapter, interpreted, read_blocks
from stvl.ops.bench.check import Subject
from stvl.ops.bench.machine import environment
from stvl.ops.bench.run import Plan, Report, bench, read_report
from stvl.ops.bench.timing import copy_ceiling, input_sets, matmul_ceiling, measure, peak_bytes
from stvl.ops.pairwise.shapes import SHAPES as PAIRS
from stvl.ops.pairwise.shapes import PairwiseShape

TINY = AttentionShape(2, 12, 12, 4, 2, 8, axes=3, mask=Causal(), source="a test")


@functools.cache
def shared_subject(op: Adapter, shape: Any, dtype: jnp.dtype, backward: bool, held: int) -> Subject:
    """Inputs and reference are compiled once for all tests; `held` is what the reference may hold."""
    return Subject(op, shape, dtype, backward)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A tiny shape of each op, and ceilings that cost nothing."""
    monkeypatch.setattr(
        running, "Subject", lambda *given: shared_subject(*given, held=of_attention.REFERENCE_BYTES)
    )
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setitem(PAIRS, "tiny", PairwiseShape(6, 6, 4))
    monkeypatch.setattr(running, "matmul_ceiling", lambda dtype: 1e9)
    monkeypatch.setattr(running, "copy_ceiling", lambda: 1e6)


def measured(op: str, impls: str, direction: Any = "both", **changes: Any) -> Report:
    plan = Plan(("tiny",), tuple(impls.split(",")), direction=direction, budget=0.0)
    return bench(adapter(op), dataclasses.replace(plan, **changes))


def fake(monkeypatch: Any, run: Callable[..., Any], **fields: Any) -> None:
    monkeypatch.setitem(BACKENDS, "fake", Backend(run, **fields))


@pytest.mark.parametrize(
    ("op", "impls", "dtype"),
    [
        ("attention", "xla,chunked", "f32"),
        ("attention", "chunked", "bf16"),
        ("rotary", "reference", "bf16"),
        ("pairwise", "dense,chunked", "f32"),
    ],
)
def test_right_backends_are_timed(op, impls, dtype):
    report = measured(op, impls, dtype=dtype)
    assert [(row.impl, row.direction) for row in report.rows] == [
        (impl, direction) for impl in impls.split(",") for direction in ("forward", "both")
    ]
    for row in report.rows:
        assert row.reason == ""
        assert row.error is not None and 0 <= row.error < (1e-5 if dtype == "f32" else 1e-2)
        assert row.seconds is not None and 1e-7 < row.seconds < 10
        assert row.measurements is not None and row.measurements >= 3
        assert row.in_flight == 1
        assert row.share is not None and row.share > 0
    first = {row.direction: row.seconds for row in reversed(report.rows)}
    assert [row.ratio for row in report.rows] == [row.seconds / first[row.direction] for row in report.rows]


def test_share_is_work_over_time_over_the_ceiling():
    row = measured("attention", "xla", "forward").rows[0]
    # 12 queries that see 1 .. 12 sources, 2 samples, 4 heads of 8, two products of a multiplication and an addition.
    flops = 78 * 2 * 4 * 8 * 2 * 2
    assert row.share == pytest.approx(flops / 1e9 / row.seconds)
    turned = measured("rotary", "reference", "forward").rows[0]
    assert turned.share == pytest.approx(2 * 2 * 12 * 4 * 8 * 4 / 1e6 / turned.seconds)


@pytest.mark.parametrize(
    ("run", "wrong"),
    [
        (lambda q, *rest: 1.02 * attention_xla(q, *rest), ["forward", "both"]),
        (lambda q, k, v, rotary, *rest: attention_xla(q, k, v, None, *rest), ["forward", "both"]),
        (lambda q, *rest: attention_xla(q, *rest) * jnp.nan, ["forward", "both"]),
        (lambda q, k, *rest: attention_xla(q, jax.lax.stop_gradient(k), *rest), ["both"]),
    ],
)
def test_a_wrong_backend_is_not_timed(monkeypatch, run, wrong):
    fake(monkeypatch, run)
    report = measured("attention", "fake,xla")
    refused = [row for row in report.rows if row.impl == "fake" and row.reason]
    assert [row.direction for row in refused] == wrong
    for row in refused:
        assert row.reason.startswith("wrong: error ") and row.seconds is None and row.ratio is None
        assert row.error is not None and not row.error <= running.TOLERANCE["float32"]
    # The ratio is to the first backend that was timed.
    assert [row.ratio for row in report.rows if row.impl == "xla" and row.direction in wrong] == [1.0] * len(
        wrong
    )


def test_a_wrong_row_is_found_among_those_that_are_compared(monkeypatch):
    monkeypatch.setattr(of_attention, "REFERENCE_BYTES", 4 * 2 * 4 * 12 * 5)
    assert of_attention.AttentionAdapter().rows(TINY).tolist() == [0, 3, 6, 8, 11]
    fake(monkeypatch, lambda q, *rest: attention_xla(q, *rest).at[1, 11, 3, 7].add(0.5))
    report = measured("attention", "fake,chunked")
    assert [bool(row.reason) for row in report.rows] == [True, True, False, False]
    assert {row.rows for row in report.rows} == {5}
    # Gradients of the compared rows alone are exact for every input, so nothing but rounding is left.
    assert report.rows[-1].error < 1e-5


def test_a_backend_that_declines_gets_a_row_with_its_reason(monkeypatch):
    fake(monkeypatch, attention_xla, declines=lambda case: f"too narrow: {case.q.shape[3]}")
    rows = measured("attention", "fake,xla").rows
    assert (rows[0].reason, rows[0].direction, rows[0].error) == ("declines: too narrow: 8", "", None)
    assert [row.impl for row in rows] == ["fake", "xla", "xla"]


def test_a_backend_that_declines_while_it_is_traced(monkeypatch):
    def run(*arguments: Any) -> Any:
        raise NotSupported("not this one")

    fake(monkeypatch, run)
    assert [row.reason for row in measured("attention", "fake").rows] == ["declines: not this one"] * 2


def test_a_backend_that_fails_on_the_device_does_not_stop_the_others(monkeypatch):
    def run(*arguments: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")

    fake(monkeypatch, run)
    rows = measured("attention", "fake,xla", "forward").rows
    assert rows[0].reason == "fails: RESOURCE_EXHAUSTED: out of memory"
    assert rows[1].seconds is not None


def test_kernels_of_another_platform_are_not_timed():
    assert interpreted("xla", "cpu", []) is None
    assert interpreted("gpu", "gpu", []) is None
    assert "a kernel for tpu; on cpu it would be interpreted" in (interpreted("tpu", "cpu", []) or "")
    assert "it would be interpreted" in measured("attention", "tpu").rows[0].reason


def test_peak_memory_holds_at_least_inputs_and_output():
    row = measured("attention", "xla", "forward").rows[0]
    inputs = 4 * (2 * 12 * 4 * 8 + 2 * 2 * 12 * 2 * 8 + 12 * 3 + 3 * 4)
    assert row.bytes is not None and row.bytes >= inputs + 4 * 2 * 12 * 4 * 8
    compiled = jax.jit(lambda x: x + 1).lower(jnp.zeros((8, 128))).compile()
    assert peak_bytes(compiled) == 2 * 4 * 8 * 128


def test_report_round_trip(tmp_path):
    report = measured("attention", "xla", "forward", batch=1, blocks=(Blocks((4, 8), (4, 8)),))
    assert (report.rows[0].batch, report.rows[0].blocks) == (1, "4x8")
    path = tmp_path / "report.json"
    report.to_json(path)
    assert read_report(path) == report
    facts = json.loads(path.read_text())["environment"]
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["device"] == jax.devices()[0].device_kind
    assert facts["command"].startswith("stvl")


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [{"speed": 1}]}', '{"rows": []}'])
def test_what_is_no_report(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError, match=r"report\.json is no report of a bench"):
        read_report(tmp_path / "report.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": ("tiny", "b16-4")}, r"unknown attention shape 'b16-4' \(did you mean 'b16-4f'\?\)"),
        ({"impls": ("chunkt",)}, r"unknown attention backend 'chunkt' \(did you mean 'chunked'\?\)"),
        ({"dtype": "bf61"}, r"unknown dtype 'bf61' \(did you mean 'bf16'\?\)"),
        ({"batch": 0}, "at least one sample, found batch = 0"),
    ],
)
def test_unknown_names_stop_before_anything_is_measured(changes, message):
    with pytest.raises(ConfigError, match=message):
        bench(adapter("attention"), dataclasses.replace(Plan(("tiny",), ("xla",)), **changes))


def test_unknown_op():
    with pytest.raises(ConfigError, match=r"no bench for 'atention' \(did you mean 'attention'\?\)"):
        adapter("atention")


def test_blocks():
    assert read_blocks("512x1024") == Blocks((512, 1024), (512, 1024))
    assert read_blocks("512x1024:256x128") == Blocks((512, 1024), (256, 128))
    for text in ("512x1024", "512x1024:256x128"):
        assert str(read_blocks(text)) == text
    assert str(Blocks()) == ""
    for text in ("512", "0x8", "8x", "8x8:8"):
        with pytest.raises(ConfigError, match=f"found '{text}'"):
            read_blocks(text)


@pytest.mark.parametrize(
    ("mask", "pairs"), [(Causal(), 10), (Window(1, 0), 7), (Causal(offset=-2), 3), (Window(9, 9), 16)]
)
def test_work_counts_the_pairs_that_a_mask_lets_meet(mask, pairs):
    shape = AttentionShape(2, 4, 4, 3, 3, 8, mask=mask)
    op = of_attention.AttentionAdapter()
    assert op.work(shape, jnp.dtype("bfloat16"), False) == Work(4 * 2 * 3 * 8 * pairs, 2 * 2 * 3 * 8 * 16)
    assert op.work(shape, jnp.dtype("bfloat16"), True).flops == 14 * 2 * 3 * 8 * pairs


def test_pairwise_reference_is_the_formula_in_blocks(monkeypatch):
    monkeypatch.setattr(of_pairwise, "BLOCK", 4)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 6, 4))
    logits = 3 * x @ y.T
    ways = [np.log(np.exp(logits).sum(axis)).mean() for axis in (0, 1)]
    want = sum(ways) - 2 * np.diagonal(logits).mean()
    run = of_pairwise.PairwiseAdapter().reference(PAIRS["tiny"], None)
    assert float(run(jnp.asarray(x), jnp.asarray(y), jnp.float32(3))) == pytest.approx(want, rel=1e-5)


def test_every_adapter_offers_names_that_it_knows():
    for name in ("attention", "rotary", "pairwise"):
        op = adapter(name)
        assert isinstance(op, Adapter) and op.name == name
        for platform in ("cpu", "gpu", "tpu"):
            assert set(op.default_shapes(platform)) <= set(op.shapes())
            assert set(op.default_impls(platform)) <= set(op.impls())
            assert op.default_shapes(platform) and op.default_impls(platform)


def test_calls_get_inputs_that_differ_from_those_before():
    made = input_sets(lambda seed: (jax.random.normal(jax.random.key(seed), (4,)),))
    values = [np.asarray(inputs[0]).tolist() for inputs in made]
    assert len(values) == 4 and len({tuple(value) for value in values}) == 4
    seen: list[int] = []

    def program(number: int) -> int:
        seen.append(number)
        return number

    timing = measure(program, [(0,), (1,), (2,)], budget=0.0)
    # After the warm-up no call gets the inputs of the one before.
    assert all(one != two for one, two in itertools.pairwise(seen[2:]))
    assert timing.measurements == 3 and len(seen) == 2 + 3


def test_time_is_that_of_the_slow_part():
    timing = measure(lambda: time.sleep(0.02), [(), ()], budget=0.1)
    assert 0.02 <= timing.fastest <= timing.seconds < 0.05
    assert 5 <= timing.measurements <= 6


def test_ceilings_are_measured():
    # Between a very slow and a very fast machine: the point is the unit.
    assert 1e6 < matmul_ceiling(jnp.dtype("float32"), size=64) < 1e13
    assert 1e5 < copy_ceiling(size=1024) < 1e13


def test_environment_names_the_machine():
    facts = environment()
    assert facts["platform"] == "cpu" and facts["devices"] == len(jax.devices())
    assert facts["processor"].endswith("cores")
    assert facts["variables"]["JAX_PLATFORMS"] == "cpu"
