"""Segments and the sequence rule that schemes share."""

from __future__ import annotations

import numpy as np
import pytest

from stvl.core.config import from_dict, to_dict
from stvl.core.errors import ConfigError
from stvl.rope.base import RopeScheme, SequenceScheme
from stvl.rope.catalogue import SCHEMES, scheme, sections
from stvl.rope.coords import merge_order, with_prefix
from stvl.rope.schemes import Rope1D, Split3DRope, TADRope
from stvl.rope.segments import Image, Prefix, Text, Video

ALL = list(SCHEMES)
WIDTH = {"split-even": 48}
MIXED = (
    Prefix(length=2),
    Text(length=3),
    Image(rows=2, columns=3),
    Text(length=1),
    Video(frames=4, rows=3, columns=2),
    Text(length=2),
)


def made(name: str) -> tuple[SequenceScheme, int]:
    width = WIDTH.get(name, 64)
    return scheme(name, width), width


@pytest.mark.parametrize("segment", MIXED, ids=repr)
def test_segment_counts_its_tokens_and_survives_json(segment):
    assert from_dict(to_dict(segment)) == segment
    expected = {Prefix: 2, Text: segment.tokens, Image: 6, Video: 24}[type(segment)]
    assert segment.tokens == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Text(length=0), r"Text\(length=0\): a segment has at least one token"),
        (lambda: Prefix(length=-1), r"Prefix\(length=-1\)"),
        (lambda: Image(rows=0, columns=3), r"Image\(rows=0\)"),
        (lambda: Image(rows=3, columns=-2), r"Image\(columns=-2\)"),
        (lambda: Video(frames=0, rows=1, columns=1), r"Video\(frames=0\)"),
        (lambda: Video(frames=1, rows=1, columns=1, seconds_per_frame=0.0), "more than 0 seconds"),
        (lambda: Video(frames=1, rows=1, columns=1, seconds_per_frame=float("nan")), "more than 0 seconds"),
    ],
)
def test_empty_and_negative_segments_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("name", ALL)
def test_every_scheme_answers_the_protocols_and_survives_json(name):
    found, width = made(name)
    assert isinstance(found, RopeScheme) and isinstance(found, SequenceScheme)
    assert from_dict(to_dict(found)) == found
    frequencies = found.frequencies(width)
    assert frequencies.shape == (len(found.axes), width // 2)
    assert (np.abs(frequencies).sum(axis=0) > 0).all(), "a pair that nothing turns"
    assert found.coords(3, 4, 5, 2).shape == (2 + 60, len(found.axes))
    assert found.sequence(MIXED).shape == (38, len(found.axes))


@pytest.mark.parametrize("name", ALL)
def test_prefix_tokens_are_not_rotated_and_take_no_position(name):
    found, width = made(name)
    assert (found.coords(2, 3, 4, 3)[:3] == 0).all()
    assert (found.sequence(MIXED)[:2] @ found.frequencies(width) == 0).all()
    assert np.array_equal(found.sequence(MIXED)[2:], found.sequence(MIXED[1:]))
    assert found.next_position((*MIXED, Prefix(length=4))) == found.next_position(MIXED)


@pytest.mark.parametrize("name", ALL)
def test_a_video_alone_is_the_pure_grid(name):
    found, _ = made(name)
    assert np.array_equal(
        found.sequence([Video(frames=3, rows=4, columns=2)]), found.coords(3, 4, 2, prefix=0)
    )
    image = found.sequence([Image(rows=4, columns=2)])
    assert np.array_equal(image, found.sequence([Video(frames=1, rows=4, columns=2)]))


@pytest.mark.parametrize("name", ALL)
def test_text_goes_on_at_the_next_position(name):
    found, _ = made(name)
    after = found.sequence((*MIXED, Text(length=1)))[-1]
    assert (after == found.next_position(MIXED)).all()


@pytest.mark.parametrize("name", sorted(set(ALL) - {"tad", "videorope"}))
def test_rule_of_schemes_without_one_of_their_own(name):
    """Grids start at the next index on all axes; what follows starts at their largest coordinate plus 1."""
    found, _ = made(name)
    coords = found.sequence([Text(length=3), Video(frames=2, rows=3, columns=4), Text(length=2)])
    assert (coords[:3] == np.arange(3)[:, None]).all()
    grid = found.coords(2, 3, 4, prefix=0)
    assert np.array_equal(coords[3:27], 3 + grid)
    assert (coords[27] == 3 + grid.max() + 1).all() and (coords[28] == 3 + grid.max() + 2).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shift", [1, 17])
def test_more_text_in_front_moves_everything_alike(name, shift):
    """Scores depend on differences only, and differences between later tokens do not see the text in front."""
    found, _ = made(name)
    near = found.sequence([Text(length=2), *MIXED[2:]])
    far = found.sequence([Text(length=2 + shift), *MIXED[2:]])
    step = far[2 + shift :] - near[2:]
    assert np.allclose(step, step[0, 0], atol=1e-9) and step[0, 0] > 0


def test_empty_sequences_are_refused():
    with pytest.raises(ConfigError, match="a sequence has at least one segment, found none"):
        Rope1D().sequence([])
    with pytest.raises(ConfigError, match="at least one segment"):
        Split3DRope().next_position(())


@pytest.mark.parametrize("name", ALL)
def test_empty_grids_are_refused(name):
    found, _ = made(name)
    with pytest.raises(ConfigError, match=r"at least (1|one)"):
        found.coords(2, 0, 3)
    with pytest.raises(ConfigError, match="prefix = -1"):
        found.coords(1, 1, 1, -1)


def test_one_axis_reads_a_grid_as_a_line():
    coords = Rope1D().sequence([Text(length=2), Video(frames=2, rows=2, columns=1), Text(length=1)])
    assert coords[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_tad_rope_by_hand():
    # gamma = 1: text steps by 2; in a frame tokens step by 1; a new frame adds 1 more.
    segments = [Text(length=2), Video(frames=2, rows=1, columns=3), Text(length=2)]
    assert TADRope().sequence(segments)[:, 0].tolist() == [0, 2, 4, 5, 6, 8, 9, 10, 12, 14]
    # gamma = 0: text and frames count alike, the tokens of a frame share an index.
    assert TADRope(gamma=0.0).sequence(segments)[:, 0].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 4, 5]
    assert TADRope().next_position(segments) == 16


def test_unknown_scheme_shows_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown rotary scheme 'vidorope' \(did you mean 'videorope'\?\)"):
        scheme("vidorope", 64)


def test_sections_keep_the_published_proportion():
    assert sections(128) == (16, 24, 24)
    assert sections(64) == (8, 12, 12)
    with pytest.raises(ConfigError, match=r"divisible by 16, found 24 \(nearest: 16 or 32\)"):
        sections(24)


def test_merge_order_by_hand():
    # Two rows of four: the left 2 x 2 block, then the right one.
    assert merge_order(1, 2, 4).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert merge_order(2, 2, 2, merge=1).tolist() == list(range(8))
    with pytest.raises(ConfigError, match="3 x 4 tokens does not divide into blocks of 2 x 2"):
        merge_order(1, 3, 4)


def test_prefix_cannot_be_negative():
    with pytest.raises(ConfigError, match="0 or more tokens in front of it, found prefix = -2"):
        with_prefix(np.zeros((1, 2)), -2)
