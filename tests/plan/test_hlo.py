"""The HLO reader and what is counted with it, on programs written by hand and on compiled ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stvl.core.errors import ConfigError
from stvl.plan.collectives import all_of, blocking, in_layers, short
from stvl.plan.count import Cost, cost
from stvl.plan.groups import first_group
from stvl.plan.hlo import Piece, Program, parse, pieces, walk

LOOP = """HloModule by_hand, is_scheduled=true

%sum (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[] parameter(0)
  %b.1 = f32[] parameter(1)
  ROOT %add.9 = f32[] add(%a.1, %b.1)
}

%fused (p0: f32[6,4,8], p1: s32[]) -> f32[4,8] {
  %p0 = f32[6,4,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero.2 = s32[] constant(0)
  %slice.1 = f32[1,4,8]{2,1,0} dynamic-slice(%p0, %p1, %zero.2, %zero.2), dynamic_slice_sizes={1,4,8}
  %flat = f32[4,8]{1,0} bitcast(%slice.1)
  ROOT %twice = f32[4,8]{1,0} add(%flat, %flat)
}

%cond (t.1: (s32[], f32[4,4], f32[6,4,8], s32[])) -> pred[] {
  %t.1 = (s32[], f32[4,4]{1,0}, f32[6,4,8]{2,1,0}, /*index=3*/s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %end = s32[] get-tuple-element(%t.1), index=3
  ROOT %lt = pred[] compare(%i.1, %end), direction=LT
}

%body (t: (s32[], f32[4,4], f32[6,4,8], s32[])) -> (s32[], f32[4,4], f32[6,4,8], s32[]) {
  %t = (s32[], f32[4,4]{1,0}, f32[6,4,8]{2,1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%t), index=1
  %w = f32[6,4,8]{2,1,0} get-tuple-element(%t), index=2
  %last = s32[] get-tuple-element(%t), index=3
  %two = s32[] constant(2)
  %wide = f32[4,8]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused
  %ar-start = f32[4,8]{1,0} all-reduce-start(%wide), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%sum, \
metadata={op_name="jit(step)/transpose(jvp(DualEncoder))/DualEncoder.encode_video/video/stack/while/body/mlp/out/dot"}
  %product = f32[4,8]{1,0} dot(%x, %wide), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %ar-done = f32[4,8]{1,0} all-reduce-done(%ar-start)
  %gather = f32[8,8]{1,0} all-gather(%product), channel_id=4, replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}
  %next = s32[] add(%i, %two)
  ROOT %out = (s32[], f32[4,4]{1,0}, f32[6,4,8]{2,1,0}, s32[]) tuple(%next, %x, %w, %last)
}

ENTRY %main (x.1: f32[4,4], w.1: f32[6,4,8]) -> f32[4,4] {
  %x.1 = f32[4,4]{1,0} parameter(0)
  %w.1 = f32[6,4,8]{2,1,0} parameter(1)
  %one = s32[] constant(1)
  %six = s32[] constant(6)
  %start = (s32[], f32[4,4]{1,0}, f32[6,4,8]{2,1,0}, s32[]) tuple(%one, %x.1, %w.1, %six)
  %loop = (s32[], f32[4,4]{1,0}, f32[6,4,8]{2,1,0}, s32[]) while(%start), condition=%cond, body=%body, \
metadata={op_name="jit(step)/transpose(jvp(DualEncoder))/DualEncoder.encode_video/video/stack/while"}
  %kernel = f32[4,4]{1,0:T(8,128)S(1)} custom-call(%x.1), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"(){","cost_estimate":{"flops":"700","transcendentals":"1","bytes_accessed":"90"}}}
  ROOT %r = f32[4,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def total(program: Program) -> Cost:
    found = Cost()
    for home, times in walk(program):
        for one in home.instructions:
            found += cost(program, home, one) * times
    return found


def test_types_by_hand():
    assert pieces("(f32[2,3]{1,0:T(8,128)}, bf16[]{:T(256)S(1)}, pred[7])") == (
        Piece("f32", (2, 3)),
        Piece("bf16", (), True),
        Piece("pred", (7,)),
    )
    assert [piece.bytes for piece in pieces("(f32[2,3], bf16[5], s4[3], f8e4m3fn[4], token[])")] == [
        24,
        10,
        2,
        4,
        0,
    ]


def test_loop_by_hand():
    program = parse(LOOP)
    home = program.entry
    # i = 1, 3, 5: the counter starts at one and steps by two, the end lies in the loop's tuple.
    assert program.trips(home, home.by_name["loop"]) == 3
    assert [(found.name, times) for found, times in walk(program)] == [("main", 1), ("body", 3)]


def test_work_by_hand():
    program = parse(LOOP)
    body = program.computations["body"]
    product = cost(program, body, body.by_name["product"])
    # 2 x 4 x 8 x 4; reads 4 x 4 and 4 x 8, writes 4 x 8 floats.
    assert product == Cost(matrix=256, bytes=4 * (16 + 32 + 32))
    fusion = cost(program, body, body.by_name["wide"])
    # One of six slices is read, the counter, and the result is written.
    assert fusion == Cost(vector=32, bytes=4 * 32 + 4 + 4 * 32)
    assert cost(program, program.entry, program.entry.by_name["kernel"]) == Cost(kernel=700, bytes=90)
    found = total(program)
    assert (found.matrix, found.kernel) == (3 * 256, 700)


def test_collectives_by_hand():
    reduce, gather = all_of(parse(LOOP), 8)
    assert (reduce.kind, reduce.bytes, reduce.group, reduce.times) == ("all-reduce", 128, (0, 1, 2, 3), 3)
    assert reduce.asynchronous and reduce.loop == "backward video/stack" and in_layers(reduce.loop)
    assert reduce.where == "backward video/stack/mlp/out/dot"
    assert (gather.kind, gather.bytes, gather.group) == ("all-gather", 256, (0, 2, 4, 6))
    assert not gather.asynchronous
    assert blocking([reduce, gather], limit=100) == [gather]
    assert blocking([reduce, gather]) == []


def test_a_start_without_work_before_its_end_is_synchronous():
    moved = LOOP.replace("  %ar-done", "  %ar-late").splitlines()
    lines = [line for line in moved if "ar-late" not in line]
    at = next(number for number, line in enumerate(lines) if "%product =" in line)
    lines.insert(at, "  %ar-done = f32[4,8]{1,0} all-reduce-done(%ar-start)")
    found = all_of(parse("\n".join(lines)), 8)
    assert [one.asynchronous for one in found] == [False, False]


SLICES = """ENTRY %main (x: f32[8,64]) -> f32[16,64] {
  %x = f32[8,64]{1,0} parameter(0)
  %after-all = token[] after-all()
  %send = (f32[8,64]{1,0}, u32[]{:S(2)}, token[]) send(%x, %after-all), channel_id=4, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_rendezvous="all-gather.1_0",_xla_megascale_transfer_type="ALL_GATHER"}
  %recv = (f32[16,64]{1,0}, u32[]{:S(2)}, token[]) recv(%after-all), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_rendezvous="all-gather.1_0",_xla_megascale_transfer_type="ALL_GATHER"}
  %work = f32[8,64]{1,0} add(%x, %x)
  %send-done = token[] send-done(%send)
  %recv-done = (f32[16,64]{1,0}, token[]) recv-done(%recv)
  ROOT %r = f32[16,64]{1,0} get-tuple-element(%recv-done), index=0
}
"""


def test_exchanges_between_slices_are_sends_to_the_host():
    (found,) = all_of(parse(SLICES), 8)
    assert (found.kind, found.bytes, found.far, found.asynchronous) == ("all-gather", 8 * 64 * 4, True, True)


def test_a_loop_without_a_path_takes_that_of_its_work():
    lines = [line.split(", metadata=")[0] if "while(" in line else line for line in LOOP.splitlines()]
    assert {one.loop for one in all_of(parse("\n".join(lines)), 8)} == {"backward video/stack"}


GROUPS = {
    "replica_groups={{0,1},{2,3}}": (0, 1),
    "replica_groups={}": (0, 1, 2, 3),
    "replica_groups=[2,2]<=[4]": (0, 1),
    "replica_groups=[2,2]<=[2,2]T(1,0)": (0, 2),
    "replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}": (0, 1),
    "replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}": (0, 2),
    "replica_groups=mesh['a'=2,'b'=2] {'a','b'}": (0, 1, 2, 3),
    "replica_groups=mesh['a'=8] {'a':(2)2}": (0, 2),
}


@pytest.mark.parametrize("text", GROUPS)
def test_groups_by_hand(text):
    line = f"  %g = f32[4] all-reduce(%p), {text}, to_apply=%sum"
    program = parse("ENTRY %main (p: f32[4]) -> f32[4] {\n  %p = f32[4] parameter(0)\n" + line + "\n}\n")
    assert first_group(program.entry.by_name["g"], 4) == GROUPS[text]


def test_paths_are_short():
    path = "jit(step)/transpose(jvp(DualEncoder))/DualEncoder.encode_video/video/stack/while/body/closed_call/checkpoint/"
    assert (
        short(path + "rematted_computation/layers/mlp/gate/dot_general")
        == "again video/stack/mlp/gate/dot_general"
    )


def test_not_a_program():
    with pytest.raises(ConfigError, match="no computation marked ENTRY"):
        parse("HloModule empty")


def compiled(function, *shapes, **how) -> str:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, **how) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_compiled_loop_is_counted_by_its_trips():
    def scanned(x, w):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, w)[0].sum()

    found = total(parse(compiled(scanned, (32, 48), (7, 48, 48))))
    assert found.matrix == 7 * 2 * 32 * 48 * 48
    # Forward, and two products for the gradients.
    both = total(parse(compiled(jax.grad(scanned, argnums=1), (32, 48), (7, 48, 48))))
    assert both.matrix in (20 * 2 * 32 * 48 * 48, 21 * 2 * 32 * 48 * 48)


def test_a_compiled_convolution_by_hand():
    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    found = total(parse(compiled(convolve, (2, 9, 9, 3), (3, 3, 3, 5))))
    # 5 x 5 places; at the two edges of each axis one of three kernel places meets padding: 13 of 15 meet the input.
    assert found.matrix == 2 * 2 * 3 * 5 * 13 * 13


def test_compiled_collectives_and_their_bytes():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    rows = NamedSharding(mesh, PartitionSpec("a"))
    whole = NamedSharding(mesh, PartitionSpec())

    def mean(x):
        return jax.lax.with_sharding_constraint(x.sum(axis=0), whole)

    text = (
        jax.jit(mean).lower(jax.ShapeDtypeStruct((16, 1024), jnp.float32, sharding=rows)).compile().as_text()
    )
    (found,) = all_of(parse(text), 8)
    assert (found.kind, found.bytes, found.group, found.times) == ("all-reduce", 4096, (0, 4), 1)
