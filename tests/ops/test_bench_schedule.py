"""Executed bundles of hand-written schedules in the compiler's own format, counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stvl.core.errors import DataError
from stvl.ops.bench import walk as walking
from stvl.ops.bench.bundles import DELAY, parse
from stvl.ops.bench.schedule import schedule, utilization
from stvl.ops.bench.walk import walk

EMPTY = ("", "")


def text(*bundles: tuple[str, str]) -> str:
    """Number (label, instructions) pairs as the compiler does."""
    head = "= control target key start\nLB: loop body\n= control target key end\n\n"
    lines = [
        f"{hex(at) if at else '0':>6} {label:>2}: > {{ {body.partition(' ###')[0]} }}{body.partition(' ###')[2]}"
        for at, (label, body) in enumerate(bundles)
    ]
    return head + "\n".join(lines)


def region(number: int, body: str = "") -> str:
    return f"{body} ### /* Start region {number} */"


def branch(guard: str, target: int) -> str:
    return f"%9 = sbr.rel {guard} target = $region{target}"


DELAYS = (EMPTY,) * DELAY

#: A grid of 3 steps; a prologue of 2 bundles in the first step only; an inner loop of 4 trips in each step.
NESTED = (
    ("", "%s1_s0 = smov.u32 0 /* copy for cssa */"),
    ("LB", region(5, "%s3_s2 = sadd.s32 1, %s2_s0  ;;  %s2_s0 = sphi %s1_s0, %s3_s2 /* phi copy */")),
    ("", "%p4_p0 = scmp.ne.s32.totalorder %s2_s0, 0"),
    ("", branch("(%p4_p0)", 7)),
    *DELAYS,
    ("", "%v1_v0 = vld [vmem:[#allocation1] sm:$0xff]"),
    ("", "%v2_v0 = vld [vmem:[#allocation1] sm:$0xff]"),
    ("PF", "%s5_s3 = smov.u32 0 ### /* Start/End empty region 7 :: Start region 8 */"),
    ("LB", region(9, "%s6_s3 = sphi %s5_s3, %s7_s4  ;;  %s7_s4 = sadd.s32 1, %s6_s3")),
    ("", "%p8_p1 = scmp.ge.s32.totalorder %s7_s4, 4 /* loop exit test */"),
    ("", branch("(!%p8_p1)", 9)),
    *DELAYS,
    ("", "%p10_p2 = scmp.ge.s32.totalorder %s3_s2, 3 /* loop exit test */"),
    ("", branch("(!%p10_p2)", 5)),
    *DELAYS,
    ("", "%12 = vsyncpa [#allocation2], 1"),
)
#: Executions of each bundle of NESTED, by hand.
NESTED_COUNTS = [1] + [3] * 7 + [1] * 2 + [3] + [12] * 7 + [3] * 6 + [1]


def test_nested_loops_and_a_prologue():
    done = walk(parse(text(*NESTED)))
    np.testing.assert_array_equal(done.counts, NESTED_COUNTS)
    assert [(loop.entries, loop.trips) for loop in done.loops] == [(1, 3), (3, 12)]
    assert done.loops[1].first == 11
    assert done.assumed == done.unknown == ()


def test_numbered_targets_read_like_regions():
    numbered = text(*NESTED).replace("= $region7", "bundleno = 10 (0xa), region = 7")
    assert "$region7" not in numbered
    np.testing.assert_array_equal(walk(parse(numbered)).counts, NESTED_COUNTS)


def loop_until(*body: str) -> str:
    """A loop whose exit predicate %p9 the body makes from the trip count %s2, which goes 1, 2, 3 ..."""
    return text(
        ("", "%s0_s0 = smov.u32 0"),
        ("LB", region(1, "%s1_s1 = sphi %s0_s0, %s2_s1  ;;  %s2_s1 = sadd.s32 1, %s1_s1")),
        *(("", line) for line in body),
        ("", branch("(!%p9_p1)", 1)),
        *DELAYS,
    )


@pytest.mark.parametrize(
    ("body", "trips"),
    [
        (["%p9_p1 = scmp.ge.s32.totalorder %s2_s1, 6"], 6),
        (["%s3_s2 = sshll.u32 %s2_s1, 2", "%p9_p1 = scmp.gt.s32.totalorder %s3_s2, 11"], 3),
        # -1 is printed as 4294967295
        (
            ["%s3_s2 = sadd.s32 4294967295, %s2_s1", "%p9_p1 = scmp.eq.s32.totalorder %s3_s2, 4"],
            5,
        ),
        (["%s3_s2 = ssub.s32 2, %s2_s1", "%p9_p1 = scmp.lt.s32.totalorder %s3_s2, 0"], 3),
        (["%s3_s2 = ssub.s32 2, %s2_s1", "%p9_p1 = scmp.lt.u32.totalorder %s3_s2, 1"], 2),
        # a guarded move: 7 where the guard holds, the trip count where it does not
        (
            [
                "%p3_p2 = scmp.eq.s32.totalorder %s2_s1, 2",
                "%s4_s3 = smov.u32 (%p3_p2, %s2_s1), 7",
                "%p9_p1 = scmp.eq.s32.totalorder %s4_s3, 7",
            ],
            2,
        ),
        # spilt and filled; the fill stands before the store in a bundle and reads what was there
        (
            [
                "%5 = sst [smem:[#allocation3_spill]] %s2_s1",
                "%s4_s3 = sld [smem:[#allocation3_spill]]",
                "%p9_p1 = scmp.ge.s32.totalorder %s4_s3, 4",
            ],
            4,
        ),
        # 20 // 6 = 3: the quotient comes first, then the remainder 2
        (
            [
                "%5 = sdivrem.u32 20, 6 /* kDivAndRem */",
                "%s4_s3 = spop.drf %5",
                "%s6_s3 = spop.drf %5",
                "%p9_p1 = scmp.ge.s32.totalorder %s2_s1, %s4_s3",
            ],
            3,
        ),
        (
            [
                "%5 = sdivrem.u32 20, 6 /* kDivAndRem */",
                "%s4_s3 = spop.drf %5",
                "%s6_s3 = spop.drf %5",
                "%p9_p1 = scmp.ge.s32.totalorder %s2_s1, %s6_s3",
            ],
            2,
        ),
        (
            [
                "%5 = sdivrem.u32 20, 6 /* kRem */",
                "%s4_s3 = spop.drf %5",
                "%p9_p1 = scmp.ge.s32.totalorder %s2_s1, %s4_s3",
            ],
            2,
        ),
        # one predicate unknown: or holds with the other, and is unknown without
        (
            [
                "%p3_p2 = scmp.ge.s32.totalorder %s2_s1, 5",
                "%p4_p3 = scmp.ge.s32.totalorder %s2_s1, 3",
                "%p9_p1 = por %p3_p2, %p4_p3",
            ],
            3,
        ),
        (
            [
                "%p3_p2 = scmp.lt.s32.totalorder %s2_s1, 5",
                "%p4_p3 = scmp.lt.s32.totalorder %s2_s1, 3",
                "%p9_p1 = pnand %p3_p2, %p4_p3",
            ],
            3,
        ),
        (
            [
                "%p3_p2 = scmp.lt.s32.totalorder %s2_s1, 3",
                "%s4_s3 = scalar_select /*predicate=*/%p3_p2, /*on_true=*/1, /*on_false=*/0",
                "%p9_p1 = scmp.eq.s32.totalorder %s4_s3, 0",
            ],
            3,
        ),
    ],
)
def test_trips_follow_from_the_scalar_program(body: list[str], trips: int):
    done = walk(parse(loop_until(*body)))
    assert done.loops[0].trips == trips
    assert done.counts[1] == trips and done.counts[0] == 1
    assert done.unknown == ()


def test_the_core_number_is_zero():
    line = "%s3_s2 = sld [smem:[#allocation0]] /* megacore core id :: core id */"
    done = walk(parse(loop_until(line, "%p9_p1 = scmp.eq.s32.totalorder %s3_s2, 0")))
    assert done.loops[0].trips == 1
    assert done.unknown == ()


FROM_MEMORY = (
    "%s3_s2 = sld [smem:[#allocation7 + %s2_s1]]",
    "%p9_p1 = scmp.ge.s32.totalorder %s2_s1, %s3_s2",
)


def test_trips_that_depend_on_memory_are_asked_for():
    program = parse(loop_until(*FROM_MEMORY))
    once, given = walk(program), walk(program, trips=[7])
    assert (once.loops[0].trips, len(once.unknown)) == (1, 1)
    assert (given.loops[0].trips, given.unknown) == (7, ())


def test_a_region_that_depends_on_memory_is_taken_to_run():
    program = text(
        ("", "%s3_s2 = sld [smem:[#allocation7]]"),
        ("", "%p9_p1 = scmp.eq.s32.totalorder %s3_s2, 0"),
        ("", branch("(%p9_p1)", 1)),
        *DELAYS,
        EMPTY,
        ("PF", "%s4_s2 = smov.u32 0 ### /* Start/End empty region 1 */"),
    )
    done = walk(parse(program))
    assert done.counts.tolist() == [1] * 9
    assert done.assumed == (2,)


def test_a_program_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(walking, "LIMIT", 50)
    with pytest.raises(DataError, match="does not end within 50 branches"):
        walk(parse(loop_until("%p9_p1 = scmp.lt.s32.totalorder %s2_s1, 0")))


@pytest.mark.parametrize(
    ("dump", "message"),
    [
        ("nothing", "no bundle in the text"),
        ("   0   :  { }\n  0x2   :  { }", "bundle 0x2 follows bundle 0x0"),
        (f"   0   :  {{ {branch('', 4)} }}", "region 4, which starts nowhere"),
        ("   0   :  { %9 = sbr.rel (%p1_p1) }", "a branch without a target"),
        ("   0   :  { %9 = sbr.rel target bundleno = 8 (0x8), region = 1 }", "a branch to bundle 8 of 1"),
    ],
)
def test_what_is_no_dump_is_refused(dump: str, message: str):
    with pytest.raises(DataError, match=message):
        parse(dump)


SLOTS = "== CAPACTIY:\nMATMUL, VLOAD:FILL, VSTORE:SPILL, SALU\n4 3 1 2\n== UTILIZATION:\n"


def dump(folder: Path, name: str, bundles: str, rows: list[str], op: str = "custom-call") -> None:
    """The files of one kernel that are read."""
    stem = f"1700000000000000000-{name}"
    (folder / f"{stem}-64-final_hlo-static-per-bundle-utilization.txt").write_text(
        SLOTS + "\n".join(rows) + "\n"
    )
    (folder / f"{stem}-65-schedule-analysis_final_bundles.txt").write_text("Schedule analysis:\n")
    (folder / f"{stem}-66-final_bundles.txt").write_text(f"{bundles} /* exit bundle: %{name} = {op}(%x) */\n")


def test_schedule_of_a_dump(tmp_path):
    rows = ["2 0 0 1" if count == 12 else "0 1 1 0" for count in NESTED_COUNTS]
    dump(tmp_path, "kernel.1", text(*NESTED), rows)
    stem = "1700000000000000000-kernel.1"
    waiting = text(NESTED[0], *NESTED[1:-1], EMPTY, NESTED[-1])
    (tmp_path / f"{stem}-60-packed-bundles-post-ra.txt").write_text(waiting)
    allocations = [
        "#allocation1 [shape = 'u8[4096]{0}', space=vmem, size = 0x1000, offset = 0, scoped, tag = 'x']",
        "#allocation2 [shape = 's32[1]{0}', space=sflag, size = 0x4, scoped, tag = 'y']",
        "#allocation3_spill [shape = 'u32[8,128]{1,0}', space=vmem, size = 0x200, scoped, tag = 'z']",
    ]
    (tmp_path / f"{stem}-61-post-delay-converter.txt").write_text("\n".join(allocations))
    dump(tmp_path, "copy.3", text(EMPTY, EMPTY), ["0 0 0 0"] * 2, op="copy")
    dump(tmp_path, "<late-initialization>", text(EMPTY), ["0 0 0 0"])
    found = {one.name: one for one in schedule(tmp_path)}
    assert set(found) == {"kernel.1", "copy.3"}
    one, total = found["kernel.1"], sum(NESTED_COUNTS)
    assert (one.static, one.bundles, one.waits) == (len(NESTED), total, total + 1)
    assert one.matmul == pytest.approx(2 * 7 * 12 / (4 * total))
    assert one.slots["SALU"] == pytest.approx(7 * 12 / (2 * total))
    assert one.spills == one.fills == total - 7 * 12
    assert one.vmem == 0x1200
    assert (one.main.first, one.main.bundles, one.main.runs, one.main.matmul) == (11, 7, 12, 0.5)
    assert [(block.bundles, block.runs) for block in one.blocks] == [
        (1, 1), (7, 3), (2, 1), (1, 3), (7, 12), (6, 3), (1, 1)
    ]  # fmt: skip
    assert (one.pallas, found["copy.3"].pallas) == (True, False)
    assert (one.assumed, one.unknown) == (0, 0)
    assert [item.name for item in schedule(tmp_path, "copy")] == ["copy.3"]


def test_schedule_takes_the_trips_of_a_kernel_by_its_name(tmp_path):
    bundles = loop_until(*FROM_MEMORY)
    dump(tmp_path, "kernel.1", bundles, ["1 0 0 0"] * 9)
    counts = {name: schedule(tmp_path, trips={name: [5]})[0] for name in ("kernel", "other")}
    assert (counts["kernel"].bundles, counts["kernel"].unknown) == (1 + 5 * 8, 0)
    assert (counts["other"].bundles, counts["other"].unknown) == (9, 1)


def test_bundles_of_a_region_that_was_taken_to_run_are_told(tmp_path):
    program = text(
        ("", "%p9_p1 = scmp.eq.s32.totalorder %s3_s2, 0"),
        ("", branch("(%p9_p1)", 1)),
        *DELAYS,
        EMPTY,
        EMPTY,
        ("PF", "%s4_s2 = smov.u32 0 ### /* Start/End empty region 1 */"),
    )
    dump(tmp_path, "kernel.1", program, ["0 0 0 0"] * 9)
    assert schedule(tmp_path)[0].assumed == 2


def test_a_folder_without_a_schedule(tmp_path):
    with pytest.raises(DataError, match="the compiler wrote no schedule"):
        schedule(tmp_path / "none")
    with pytest.raises(DataError, match="holds no final bundles of a kernel named 'splash'"):
        schedule(tmp_path, "splash")


def test_a_torn_dump(tmp_path):
    dump(tmp_path, "kernel.1", text(EMPTY, EMPTY), ["0 0 0 0"])
    with pytest.raises(DataError, match=r"has 1 bundles, .* has 2"):
        schedule(tmp_path)
    with pytest.raises(DataError, match="no table of slots"):
        utilization("nothing")
