"""M-RoPE, VRoPE and VideoRoPE: tables worked by hand from the papers' formulas, and what the papers promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.core.errors import ConfigError
from stvl.rope.frequencies import ladder
from stvl.rope.language import MRope, VideoRope, VRope
from stvl.rope.schemes import Rope1D
from stvl.rope.segments import Image, Text, Video

SCHEMES = [
    MRope(sections=(4, 6, 6), base=10000.0),
    VRope(),
    VRope(corners=(0, 3, 1, 2)),
    VideoRope(sections=(4, 6, 6), base=10000.0),
    VideoRope(sections=(4, 6, 6), base=10000.0, as_printed=True),
]
sizes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))


def video(frames: int, rows: int, columns: int) -> Video:
    return Video(frames=frames, rows=rows, columns=columns)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_text_alone_is_one_axis_rope(scheme):
    line = Rope1D(base=10000.0)
    text = [Text(length=9)]
    assert scheme.sequence(text) @ scheme.frequencies(32) == pytest.approx(
        line.sequence(text) @ line.frequencies(32), rel=1e-12
    )
    assert scheme.next_position(text) == 9


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_one_pair_turns_with_one_index_of_one_ladder(scheme):
    matrix = scheme.frequencies(32)
    assert ((matrix > 0).sum(axis=0) == 1).all()
    assert matrix.sum(axis=0) == pytest.approx(ladder(16, 10000.0))


# M-RoPE


def test_mrope_by_hand():
    """Qwen2-VL, Section 2.1: two words, a video of 3 frames of 1 x 2, two words."""
    coords = MRope().sequence([Text(length=2), video(3, 1, 2), Text(length=2)])
    assert coords.tolist() == [
        [0, 0, 0],
        [1, 1, 1],
        [2, 2, 2],
        [2, 2, 3],
        [3, 2, 2],
        [3, 2, 3],
        [4, 2, 2],
        [4, 2, 3],
        [5, 5, 5],  # the largest index so far is 4, of the last frame
        [6, 6, 6],
    ]


def test_mrope_sections_are_contiguous_and_time_is_fastest():
    matrix = MRope().frequencies(128)
    assert np.argmax(matrix > 0, axis=0).tolist() == [0] * 16 + [1] * 24 + [2] * 24
    assert matrix[0, :16].min() > matrix[1:].max()


def test_mrope_counts_seconds():
    """Qwen2.5-VL: 2 tokens a second, frames 0.7 s apart: floor(0, 1.4, 2.8, 4.2); an image has no seconds."""
    scheme = MRope(tokens_per_second=2.0)
    clip = Video(frames=4, rows=1, columns=1, seconds_per_frame=0.7)
    coords = scheme.sequence([Text(length=1), clip, Image(rows=1, columns=2), Text(length=1)])
    assert coords[:, 0].tolist() == [0, 1, 2, 3, 5, 6, 6, 8]
    assert coords[:, 1].tolist() == [0, 1, 1, 1, 1, 6, 6, 8]
    # Without tokens_per_second the seconds are not looked at.
    assert MRope().sequence([clip])[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: MRope().frequencies(64),
            r"MRope: sections \(16, 24, 24\) add up to 64 rotation pairs, a head of width 64 has 32 "
            r"\(in the same proportion: \(8, 12, 12\)\)",
        ),
        (lambda: MRope(sections=(8, 12, 11)).frequencies(64), "add up to 31 rotation pairs"),
        (lambda: MRope(sections=(40, -4, -4)).frequencies(64), "cannot be below 0"),
        (lambda: MRope(sections=(0, 0, 0)).frequencies(64), "cannot be below 0"),
        (lambda: MRope().frequencies(33), r"divisible by 2, found 33 \(nearest: 32 or 34\)"),
        (lambda: MRope(tokens_per_second=0.0), "expected a number above 0"),
        (lambda: VideoRope().frequencies(64), r"VideoRope: sections \(16, 24, 24\) add up to 64"),
        (lambda: VideoRope(sections=(8, 11, 13)), r"equally many pairs, found sections \(8, 11, 13\)"),
        (lambda: VideoRope(spacing=0.0), r"VideoRope\(spacing=0.0\)"),
        (lambda: VRope(corners=(0, 1, 2, 2)), r"an order of \(0, 1, 2, 3\), found \(0, 1, 2, 2\)"),
        (lambda: VRope().frequencies(5), "divisible by 2, found 5"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# VRoPE


def test_vrope_by_hand():
    """VRoPE, Eq. 6-8, H = 2 rows, W = 3 columns, two frames, behind one word: p_start = 1, a frame takes 4 indices.

    Eq. 6: u = (w + h, w - h, -w - h, -w + h). Eq. 7: v = u + (0, H - 1, H + W - 2, W - 1) + p_start = u + (1, 2, 4, 3).
    At (h, w) = (0, 0): (1, 2, 4, 3); (0, 1): (2, 3, 3, 2); (0, 2): (3, 4, 2, 1);
    (1, 0): (2, 1, 3, 4); (1, 1): (3, 2, 2, 3); (1, 2): (4, 3, 1, 2). Eq. 8: the second frame is 4 further on.
    """
    first = [[1, 2, 4, 3], [2, 3, 3, 2], [3, 4, 2, 1], [2, 1, 3, 4], [3, 2, 2, 3], [4, 3, 1, 2]]
    second = [[index + 4 for index in row] for row in first]
    coords = VRope().sequence([Text(length=1), video(2, 2, 3), Text(length=2)])
    assert coords.tolist() == [[0] * 4, *first, *second, [9] * 4, [10] * 4]


def test_vrope_deals_pairs_out_to_the_four_indices():
    """Eq. 9: pair j = 4k reads the first index, 4k + 1 the second, and so on."""
    assert np.argmax(VRope().frequencies(20) > 0, axis=0).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    released = VRope(corners=(0, 3, 1, 2)).frequencies(20)
    assert np.argmax(released > 0, axis=0).tolist() == [0, 3, 1, 2, 0, 3, 1, 2, 0, 3]


def test_order_of_the_release_by_hand():
    """Release: pairs read h + w, h + (W-1-w), (H-1-h) + w, (H-1-h) + (W-1-w). At (0, 2) of 2 x 3: 2, 0, 3, 1."""
    scheme = VRope(corners=(0, 3, 1, 2), base=1.0)
    assert (scheme.coords(1, 2, 3, 0) @ scheme.frequencies(8))[2].tolist() == [2, 0, 3, 1]


@given(size=sizes, before=st.integers(1, 9))
def test_vrope_mean_index_is_constant_over_a_frame(size, before):
    frames, rows, columns = size
    coords = VRope().sequence([Text(length=before), video(*size)])[before:].reshape(frames, rows * columns, 4)
    step = rows + columns - 1
    for frame, mean in enumerate(coords.mean(axis=2)):
        assert mean == pytest.approx(before + frame * step + (step - 1) / 2)


@given(size=sizes, before=st.integers(1, 9))
def test_vrope_video_and_text_follow_each_other_without_gap_or_overlap(size, before):
    """Each of the four indices, on its own, runs through every whole number from the text before to the text after."""
    coords = VRope().sequence([Text(length=before), video(*size), Text(length=2)])
    for index in coords.T:
        assert sorted(set(index)) == list(range(int(index.max()) + 1))
        used = [set(frame) for frame in np.split(index[before:-2], size[0])]
        assert sum(len(frame) for frame in used) == len(set().union(*used))
    assert coords[-2, 0] == before + size[0] * (size[1] + size[2] - 1)


def test_vrope_favours_no_corner():
    """To text behind the frame the four corners are equally far in the mean; under M-RoPE the last one is nearest."""
    for scheme, equal in ((VRope(), True), (MRope(), False)):
        coords = scheme.sequence([Text(length=1), Image(rows=4, columns=4), Text(length=1)])
        far = (coords[-1] - coords[[1, 4, 13, 16]]).mean(axis=1)
        assert np.allclose(far, far[0]) == equal


# VideoRoPE


def test_videorope_by_hand():
    """Release, spacing 2, H = 3, W = 2, behind two words: t = 2 + 2f, y about t by h - 1, x about t by w - 0."""
    coords = VideoRope().sequence([Text(length=2), video(2, 3, 2), Text(length=1)])
    assert coords.tolist() == [
        [0, 0, 0],
        [1, 1, 1],
        [2, 1, 2],
        [2, 1, 3],
        [2, 2, 2],
        [2, 2, 3],
        [2, 3, 2],
        [2, 3, 3],
        [4, 3, 4],
        [4, 3, 5],
        [4, 4, 4],
        [4, 4, 5],
        [4, 5, 4],
        [4, 5, 5],
        [5, 5, 5],  # the last t plus 1
    ]


def test_videorope_as_printed_by_hand():
    """Eq. 7, spacing 2, T_s = 2, T_v = 2, H = 2, W = 4: t = 2 + 2f, x = t + w - 2, y = t + h - 1; text at 4 + 1 * 2."""
    coords = VideoRope(as_printed=True).sequence([Text(length=2), video(2, 2, 4), Text(length=2)])
    assert coords[2:10].tolist() == [[2, 2 + h - 1, 2 + w - 2] for h in range(2) for w in range(4)]
    assert coords[10:18].tolist() == [[4, 4 + h - 1, 4 + w - 2] for h in range(2) for w in range(4)]
    # The third case of Eq. 7 at tau = 4 and 5: tau + (2 - 1) * 2.
    assert coords[18:].tolist() == [[6] * 3, [7] * 3]


def test_videorope_gives_time_the_lowest_frequencies():
    """Eq. 6 at head 128: 48 pairs of space in turn, then 16 of time, all from one ladder."""
    matrix = VideoRope(base=10000.0).frequencies(128)
    axis = np.argmax(matrix > 0, axis=0).tolist()
    assert axis == [1, 2] * 24 + [0] * 16
    assert matrix[0, 48:].max() < matrix[1:, :48].max(axis=0).min()
    assert matrix.sum(axis=0) == pytest.approx(10000 ** (-np.arange(64) / 64))
    printed = VideoRope(base=10000.0, as_printed=True).frequencies(128)
    assert np.argmax(printed > 0, axis=0).tolist() == [2, 1] * 24 + [0] * 16


@given(size=sizes, before=st.integers(1, 9), spacing=st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_videorope_centres_lie_on_the_diagonal(size, before, spacing):
    frames, rows, columns = size
    coords = VideoRope(spacing=spacing).sequence([Text(length=before), video(*size)])[before:]
    coords = coords.reshape(frames, rows, columns, 3)
    centre = coords[:, (rows - 1) // 2, (columns - 1) // 2]
    assert centre.tolist() == [[before + spacing * frame] * 3 for frame in range(frames)]


@given(frames=st.integers(1, 3), half=st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_videorope_is_symmetric_on_odd_grids(frames, half):
    """Mirroring a frame in its centre mirrors the indices about t; text before and behind are equally far (Eq. 5)."""
    rows, columns = 2 * half[0] + 1, 2 * half[1] + 1
    coords = VideoRope().sequence([Text(length=3), video(frames, rows, columns), Text(length=1)])
    grid = coords[3:-1].reshape(frames, rows, columns, 3)
    offset = grid - grid[..., :1]
    assert np.array_equal(offset, -offset[:, ::-1, ::-1])
    assert coords[3, 0] - coords[2, 0] == coords[-1, 0] - coords[-2, 0] == 1


def test_videorope_time_does_not_wrap_within_a_long_video():
    """Figure 4: over 1000 frames no temporal pair of VideoRoPE turns by half a circle, and those of M-RoPE do."""
    slow, fast = (scheme.frequencies(128)[0].max() for scheme in (VideoRope(), MRope()))
    assert 1000 * 2 * slow < np.pi < 1000 * fast
