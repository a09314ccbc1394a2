"""Traces made by hand: nested and simultaneous events, and the layouts of CPUs, GPUs and TPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import pytest

from stvl.train.profile.programs import Operation, programs
from stvl.train.profile.summary import Facts, as_text, kind, part, summarise
from stvl.train.profile.times import Span, busy, pieces, shares
from stvl.train.profile.trace import Op, UnknownTrace, of_data

#: (name, start, length, statistics) in nanoseconds.
Event = tuple[str, int, int, Mapping[str, Any]]


def span(key: str, start: int, end: int, line: str = "", done: int = 0) -> Span:
    """An event in nanoseconds."""
    return Span(key, float(start), float(end), line, float(done))


def test_nested_events_count_once():
    # a holds b, and b holds c; d follows b in a.
    line = [span("a", 0, 100), span("b", 10, 60), span("c", 20, 50), span("d", 60, 90)]
    assert shares(pieces(line)) == {"a": 20, "b": 20, "c": 30, "d": 30}
    # The order in which they are written does not matter, nor does another nested event of the same name.
    assert shares(pieces(line[::-1])) == shares(pieces(line))
    assert shares(pieces([*line, span("a", 25, 30)])) == {"a": 25, "b": 20, "c": 25, "d": 30}


def test_an_event_that_begins_or_ends_with_its_parent_takes_its_time():
    assert shares(pieces([span("a", 0, 10), span("b", 0, 10)])) in ({"b": 10}, {"a": 0, "b": 10})
    assert shares(pieces([span("a", 0, 10), span("b", 4, 10), span("c", 4, 4)])) == {"a": 4, "b": 6}


def test_events_at_once_share_the_time():
    lines = [span("a", 0, 30, "1"), span("b", 10, 40, "2"), span("c", 90, 100, "1")]
    found = pieces(lines)
    assert shares(found) == {"a": 20, "b": 20, "c": 10}
    assert busy(found) == 50 == sum(shares(found).values())


def test_work_that_others_finish_lasts_until_its_end():
    # a is sent within 10 and finished at 50; b runs beside it, c is in the same line after it.
    found = pieces([span("a", 0, 10, "1", done=50), span("b", 20, 30, "2"), span("c", 10, 20, "1")])
    assert shares(found) == {"a": 10 + 5 + 5 + 20, "b": 5, "c": 5}
    assert busy(found) == 50


def space(planes: Mapping[str, Mapping[str, Sequence[Event]]]) -> Any:
    """A trace with these events by plane and line."""
    text = []
    for plane, lines in planes.items():
        names = {name for events in lines.values() for name, *_ in events}
        stats = {key for events in lines.values() for *_, held in events for key in held}
        ids = {name: number for number, name in enumerate(sorted(names), 1)}
        keys = {name: number for number, name in enumerate(sorted(stats), 1)}
        text.append(f'planes {{ name: "{plane}"')
        for line, events in lines.items():
            text.append(f'lines {{ name: "{line}"')
            for name, start, length, held in events:
                told = " ".join(_stat(keys[key], value) for key, value in held.items())
                text.append(
                    f"events {{ metadata_id: {ids[name]} offset_ps: {1000 * start} duration_ps: {1000 * length} {told} }}"
                )
            text.append("}")
        for kind_, table in (("event_metadata", ids), ("stat_metadata", keys)):
            for name, number in table.items():
                text.append(
                    f'{kind_} {{ key: {number} value {{ id: {number} name: "{name}" }} }}'.replace(
                        "%", "\\045"
                    )
                )
        text.append("}")
    return jax.profiler.ProfileData.from_text_proto("\n".join(text))


def _stat(key: int, value: Any) -> str:
    shown = f'str_value: "{value}"' if isinstance(value, str) else f"int64_value: {value}"
    return f"stats {{ metadata_id: {key} {shown} }}"


PROGRAM = {
    "step(1)": {
        "dot.1": Operation("dot", "jit(step)/transpose(jvp(M))/video/stack/layers/mlp/dot_general", "", True),
        "while.1": Operation("while"),
        "fusion.2": Operation("fusion", "jit(step)/jvp(M)/video/stem/add"),
    }
}


def test_a_cpu_trace():
    """A loop of 100 whose body runs on two threads, a product that is sent and finished elsewhere, and marks."""
    step = {"hlo_module": "step", "program_id": 1, "device_ordinal": 0}
    planes = {
        "/host:CPU": {
            "python": [("train", 0, 300, {"step_num": 3}), ("PjitFunction(step)", 5, 20, {})],
            "worker 1": [
                ("ThunkExecutor::Execute", 10, 110, {}),
                ("while.1", 10, 100, {"hlo_op": "while.1", "_p": 1, **step}),
                ("fusion.2", 20, 30, {"hlo_op": "fusion.2", "_p": 2, **step}),
                ("end: fusion.2", 49, 0, {"_c": 2}),
                ("dot.1", 60, 10, {"hlo_op": "dot.1", "_p": 3, **step}),
            ],
            "worker 2": [("end: dot.1", 150, 1, {"_c": 3}), ("end: while.1", 200, 1, {"_c": 1})],
        }
    }
    trace = of_data(space(planes), PROGRAM)
    assert trace.platform == "cpu" and list(trace.lanes) == ["CPU 0"]
    found = summarise(trace, Facts(3, 3, seconds=300e-9))
    rows = {row.name: row for row in found.rows}
    # The dot lasts until its end mark at 150; while its tail runs beside the loop, each has half of 70 to 110.
    assert rows["dot.1"].ms == pytest.approx((10 + 20 + 40) * 1e-6)
    assert rows["fusion.2"].ms == pytest.approx(30e-6)
    assert rows["while.1"].ms == pytest.approx((10 + 10 + 20) * 1e-6)
    assert sum(row.ms for row in found.rows) == pytest.approx(140e-6)
    assert found.busy == pytest.approx(140 / 300)
    assert (rows["dot.1"].kind, rows["dot.1"].part) == ("matmul", "video/stack/layers/mlp, backward")
    assert rows["fusion.2"].part == "video/stem, forward" and rows["while.1"].kind == "loop"
    assert found.host == pytest.approx({"PjitFunction(step)": 20e-6})


def test_a_gpu_trace():
    op = {"hlo_module": "step"}
    planes = {
        "/device:GPU:0": {
            "Stream #13(Compute)": [
                ("nvjet_tst_128x256", 0, 40, {"hlo_op": "dot.1", **op}),
                ("loop_add_fusion", 40, 10, {"hlo_op": "fusion.2", **op}),
                ("stvl_attention_forward_triton", 50, 20, {}),
            ],
            "Stream #14(MemcpyD2H)": [("MemcpyD2H", 45, 15, {})],
            "Stream #15": [("ncclDevKernel_AllReduce_Sum_f32", 30, 30, {})],
            "Steps": [("3", 0, 100, {})],
        },
        "/host:CPU": {"python": [("train", 0, 5, {"step_num": 3})]},
    }
    found = summarise(of_data(space(planes), PROGRAM), Facts(3, 4, seconds=100e-9))
    rows = {row.name: row for row in found.rows}
    assert {name: (row.kind, round(row.ms * 1e6)) for name, row in rows.items()} == {
        "dot.1: nvjet_tst_128x256": ("matmul", 40),
        "fusion.2: loop_add_fusion": ("fusion", 10),
        "stvl_attention_forward_triton": ("kernel", 20),
        "MemcpyD2H": ("copy", 15),
        "ncclDevKernel_AllReduce_Sum_f32": ("collective", 30),
    }
    # Streams run at once: each counts in full, the device is busy once.
    assert found.busy == pytest.approx(0.7)
    text = as_text(found)
    assert "steps 3 to 4" in text and "idle: 30.0%" in text and "A GPU trace holds the kernels" in text


def test_a_tpu_trace():
    text = "%fusion.2 = bf16[8,128] fusion(%p)"
    planes = {
        "/device:TPU:0": {
            "XLA Modules": [("step(1)", 0, 100, {})],
            "XLA Ops": [
                ("%while.1 = (s32[]) while(%t)", 0, 80, {}),
                (text, 10, 30, {}),
                ("dot.1", 40, 20, {}),
            ],
            "Async XLA Ops": [("%all-gather-start.3 = (f32[8]) all-gather-start(%p)", 10, 60, {})],
        },
        "/device:TPU:1": {"XLA Ops": [("all-reduce.7", 0, 50, {})]},
        "/device:TPU:0 SparseCore 0": {"XLA Ops": [("other", 0, 50, {})]},
    }
    found = summarise(of_data(space(planes), PROGRAM), Facts(3, 3, seconds=100e-9))
    rows = {row.name: (row.kind, round(row.ms * 2e6)) for row in found.rows}
    assert rows == {
        "while.1": ("loop", 30),
        "fusion.2": ("fusion", 30),
        "dot.1": ("matmul", 20),
        "all-reduce.7": ("collective", 50),
    }
    assert found.devices == 2 and found.busy == pytest.approx(0.65)
    assert "in flight beside the operations: all-gather-start.3 0.00 ms" in as_text(found)


@pytest.mark.parametrize(
    ("planes", "told"),
    [
        ({"/host:CPU": {"python": [("train", 0, 5, {})]}}, r"there are: /host:CPU \(python\)"),
        ({"/device:TPU:0": {"Steps": [("1", 0, 5, {})]}}, r"/device:TPU:0 \(Steps\)"),
        ({"/host:metadata": {}}, "there are: no planes"),
    ],
)
def test_a_trace_without_operations_is_refused_with_what_there_is(planes, told):
    with pytest.raises(UnknownTrace, match=told):
        of_data(space(planes), {})


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (Op("all-reduce.1", info=Operation("all-reduce")), "collective"),
        (Op("fusion.1", info=Operation("fusion", product=True)), "matmul"),
        (Op("custom-call.1", info=Operation("custom-call", "a/pallas_call", "tpu_custom_call")), "kernel"),
        (Op("custom-call.2", info=Operation("custom-call", "", "__cublas$gemm")), "matmul"),
        (Op("custom-call.3", info=Operation("custom-call", "", "__cudnn$fmhaSoftmax")), "kernel"),
        (Op("gemm_fusion_dot_3"), "matmul"),
        (Op("wrapped_transpose.1", info=Operation("fusion")), "copy"),
        (Op("bitcast_add_fusion", info=Operation("fusion")), "fusion"),
        (Op("dynamic-update-slice.4", info=Operation("dynamic-update-slice")), "copy"),
        (Op("while.3"), "loop"),
        (Op("reduce.3", info=Operation("reduce")), "fusion"),
    ],
)
def test_kinds(op, expected):
    assert kind(op) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", ""),
        (
            "jit(step)/jvp(D)/D.encode/video/stack/closed_call/layers/mlp/up/dot",
            "video/stack/layers/mlp, forward",
        ),
        ("jit(step)/transpose(jvp(D))/checkpoint/rematted_computation/video/stack/dot", "video/stack, again"),
        ("jit(step)/jvp(jit(pairwise))/mul", "loss, forward"),
        ("jit(step)/div", "outside of the towers"),
    ],
)
def test_parts(source, expected):
    assert part(Op("x", info=Operation("fusion", source))) == expected


def test_a_file_that_is_no_trace(tmp_path):
    file = tmp_path / "a.xplane.pb"
    file.write_bytes(b"\x0a\xff\x01")
    with pytest.raises(ValueError, match="ends within a field: byte 258 of 3"):
        programs(file)
    file.write_bytes(b"\x0b")
    with pytest.raises(ValueError, match="has no wire type 3"):
        programs(file)
    file.write_bytes(b"\x80")
    with pytest.raises(ValueError, match="ends within a number"):
        programs(file)
