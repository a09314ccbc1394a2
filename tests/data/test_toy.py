"""The toy world's scenes: opposites are exact mirror images in time, and nothing else tells them apart."""

from __future__ import annotations

import collections
import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stvl.core.config import from_dict, to_dict
from stvl.core.errors import ConfigError
from stvl.data.toy import NOUNS, OPPOSITES, VERBS, SceneSpec, ToyOptions, mirror, render_scene, sample_scene
from stvl.data.toy.plan import actions, plan_videos, schedule
from stvl.data.toy.render import SHAPES, clock, pose, progress

SMALL = ToyOptions(size=48, train_videos=3, test_videos=5, seconds=(1.0, 1.3), fps=(10.0, 12.5))
KEYS = {verb.key: index for index, verb in enumerate(VERBS)}


def scene(verb: str, noun: int = 0, seed: int = 0, **changes: object) -> SceneSpec:
    spec = sample_scene(np.random.default_rng(seed), SMALL, noun=noun, verb=KEYS[verb], fps=10.0)
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def test_tables_are_rich_enough_and_opposites_pair_up() -> None:
    assert len(NOUNS) >= 12
    assert len(VERBS) >= 10
    assert len({noun.colour for noun in NOUNS}) == len({noun.shape for noun in NOUNS}) == len(NOUNS)
    assert {noun.shape for noun in NOUNS} == set(SHAPES)
    assert len(OPPOSITES) == 10
    assert all(OPPOSITES[OPPOSITES[verb]] == verb != OPPOSITES[verb] for verb in OPPOSITES)
    pairs = {frozenset((VERBS[one].key, VERBS[other].key)) for one, other in OPPOSITES.items()}
    assert pairs == {
        frozenset(("move-left", "move-right")),
        frozenset(("move-up", "move-down")),
        frozenset(("grow", "shrink")),
        frozenset(("turn-clockwise", "turn-counterclockwise")),
        frozenset(("appear", "disappear")),
    }


def test_a_narration_names_one_verb_and_one_noun_class() -> None:
    seen = {}
    for verb, noun in np.ndindex(len(VERBS), len(NOUNS)):
        assert len(VERBS[verb].phrases) >= 2
        assert len(NOUNS[noun].phrases) >= 2
        for _, template in VERBS[verb].phrases:
            for words in NOUNS[noun].phrases:
                assert seen.setdefault(template.format(n=words), (verb, noun)) == (verb, noun)
    assert len(seen) == len(VERBS) * len(NOUNS) * 9
    instances = [name for verb in VERBS for name in verb.instances]
    assert len(set(instances)) == len(instances)
    instances = [name for noun in NOUNS for name in noun.instances]
    assert len(set(instances)) == len(instances)


@pytest.mark.parametrize("verb", sorted(OPPOSITES))
def test_reversed_frames_are_the_frames_of_the_opposite_verb(verb: int) -> None:
    for noun in range(len(NOUNS)):
        spec = sample_scene(np.random.default_rng((verb, noun)), SMALL, noun=noun, verb=verb)
        other = mirror(spec)
        frames = render_scene(spec, 48)
        assert other.verb == OPPOSITES[verb]
        assert mirror(other) == spec
        assert np.array_equal(render_scene(other, 48), frames[::-1])
        assert not np.array_equal(frames, frames[::-1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32), verb=st.sampled_from(sorted(OPPOSITES)), noun=st.integers(0, len(NOUNS) - 1)
)
def test_opposites_are_drawn_from_one_distribution(seed: int, verb: int, noun: int) -> None:
    one = sample_scene(np.random.default_rng(seed), ToyOptions(), noun=noun, verb=verb)
    other = sample_scene(np.random.default_rng(seed), ToyOptions(), noun=noun, verb=OPPOSITES[verb])
    assert mirror(one) == other
    assert one.frames % 2 == 1


@pytest.mark.parametrize("count", [2, 4, 6, 8, 16])
def test_middle_of_segment_sampling_sees_mirror_images(count: int) -> None:
    videos = plan_videos(ToyOptions(train_videos=12), "train")
    for clip in actions(videos):
        rate, frames = clip.video.fps, clip.scene.frames
        assert (clip.stop - clip.start) * rate == pytest.approx(100 * frames, abs=1e-9)
        times = (np.arange(count) + 0.5) / count * (clip.stop - clip.start) / 100
        shown = np.floor(times * rate).astype(int)
        assert np.array_equal(frames - 1 - shown, shown[::-1])


def test_mirror_refuses_a_verb_without_opposite() -> None:
    with pytest.raises(ConfigError, match=r"'shake' has no opposite; expected one of: move-left"):
        mirror(scene("shake"))


def test_clock_and_progress_by_hand() -> None:
    assert [clock(index, 5) for index in range(5)] == [-0.8, -0.4, 0.0, 0.4, 0.8]
    assert progress(0.5, ease=0.0, hold=0.0) == 0.5
    assert progress(0.5, ease=1.0, hold=0.0) == 1.5 * 0.5 - 0.5 * 0.125
    assert progress(0.5, ease=0.0, hold=0.5) == progress(0.9, ease=0.7, hold=0.5) == 1.0
    assert all(progress(-u, 0.3, 0.1) == -progress(u, 0.3, 0.1) for u in np.linspace(0, 1, 37))


def test_poses_by_hand() -> None:
    plain = {"frames": 5, "x": 0.5, "y": 0.4, "tilt": 0.0, "travel": 0.5, "ease": 0.0, "hold": 0.0}
    xs = [pose(scene("move-right", **plain), index).x for index in range(5)]
    assert xs == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])
    assert [pose(scene("move-left", **plain), index).x for index in range(5)] == xs[::-1]
    ys = [pose(scene("move-up", **plain), index).y for index in range(5)]
    assert ys == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2])
    alphas = [pose(scene("appear", **plain), index).alpha for index in range(5)]
    assert alphas == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    radii = [pose(scene("grow", growth=4.0, radius=0.2, **plain), index).radius for index in range(5)]
    assert radii == pytest.approx([0.2 * 4.0 ** (u / 2) for u in (-0.8, -0.4, 0.0, 0.4, 0.8)])
    turn = [
        pose(scene("turn-clockwise", sweep=math.pi, angle=0.0, **plain), index).angle for index in range(5)
    ]
    assert turn == pytest.approx([math.pi / 2 * u for u in (-0.8, -0.4, 0.0, 0.4, 0.8)])


@pytest.mark.parametrize(("angle", "row", "column"), [(0.0, -1, 0), (math.pi / 2, 0, 1), (math.pi, 1, 0)])
def test_a_growing_angle_turns_the_hand_clockwise_on_the_screen(angle: float, row: int, column: int) -> None:
    spec = scene("blink", angle=angle, x=0.5, y=0.5, props=(), cycles=0.0, phase=0.0, radius=0.2)
    frame = render_scene(spec, 96)[0].astype(int)
    inside = frame[28:68, 28:68]
    white = np.argwhere((inside > 235).all(-1)).mean(0) + 28.5 - 48
    assert white[0] * row + white[1] * column > 5
    assert abs(white[0] * column) + abs(white[1] * row) < 2


@pytest.mark.parametrize("noun", range(len(NOUNS)))
def test_each_noun_shows_its_own_colour(noun: int) -> None:
    spec = scene("move-left", noun=noun, props=())
    frames = render_scene(spec, 96).astype(int)
    middle = frames[len(frames) // 2]
    shares = [(np.abs(middle - other.colour).max(-1) < 12).mean() for other in NOUNS]
    assert int(np.argmax(shares)) == noun
    assert shares[noun] > 0.02


def test_only_the_object_moves_and_props_are_other_nouns() -> None:
    rng = np.random.default_rng(5)
    options = ToyOptions(distractors=3)
    counts = collections.Counter()
    for _ in range(40):
        spec = sample_scene(rng, options)
        counts[len(spec.props)] += 1
        assert all(prop.noun != spec.noun for prop in spec.props)
    assert set(counts) == {0, 1, 2, 3}
    frames = render_scene(scene("turn-clockwise", x=0.35, y=0.35, radius=0.18), 48)
    assert (frames[:, 34:] == frames[:1, 34:]).all()
    assert (frames[:, :, 34:] == frames[:1, :, 34:]).all()
    assert frames.dtype == np.uint8
    assert frames.shape == (len(frames), 48, 48, 3)


def test_clutter_raises_the_contrast_of_the_background() -> None:
    quiet, loud = (
        np.mean(
            [
                render_scene(scene("appear", seed=seed, clutter=clutter, props=()), 48)[0].std()
                for seed in range(8)
            ]
        )
        for clutter in (0.0, 1.0)
    )
    assert loud > 1.5 * quiet


@pytest.mark.parametrize("split", ["train", "test"])
def test_schedule_is_level_and_pairs_opposites(split: str) -> None:
    options = ToyOptions()
    videos = schedule(options, split)  # type: ignore[arg-type]
    counts = collections.Counter(label for video in videos for label in video)
    wanted = sum(map(len, videos)) / (len(VERBS) * len(NOUNS))
    assert len(counts) == len(VERBS) * len(NOUNS)
    assert wanted - 1 <= min(counts.values()) <= max(counts.values()) <= wanted + 1
    for video in videos:
        assert len(set(video)) == len(video) == options.actions
        twins = [label for label in video if (OPPOSITES.get(label[0]), label[1]) in video]
        assert len(twins) >= 2 * options.pairs


def test_a_video_depends_on_its_seed_split_and_index_only() -> None:
    few, many = ToyOptions(train_videos=4), ToyOptions(train_videos=9)
    assert plan_videos(few, "train") == plan_videos(many, "train")[:4]
    assert plan_videos(few, "train") != plan_videos(ToyOptions(train_videos=4, seed=1), "train")
    names = {video.file for split in ("train", "test") for video in plan_videos(SMALL, split)}  # type: ignore[arg-type]
    assert len(names) == 8
    backgrounds = [
        spec.background
        for split in ("train", "test")
        for video in plan_videos(ToyOptions(), split)  # type: ignore[arg-type]
        for spec in video.scenes
    ]
    assert len(set(backgrounds)) == len(backgrounds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 97}, r"size: expected even and at least 32, found 97"),
        ({"actions": 4}, r"actions: expected 5 to 24 .*found 4"),
        ({"pairs": 4}, r"pairs: expected 1 to actions / 2, found 4"),
        ({"test_videos": 4}, r"test_videos: expected at least 5 .*found 4"),
        ({"seconds": (2.0, 1.0)}, r"seconds: expected 0 < shortest <= longest"),
        ({"fps": ()}, r"fps: expected rates of 1 to 120, found \(\)"),
        ({"fps": (3.0,)}, r"at least 5 frames a scene"),
        ({"clutter": 1.5}, r"clutter: expected 0 to 1, found 1.5"),
        ({"qp": 0}, r"qp: expected 1 to 51, found 0"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ToyOptions(**changes)  # type: ignore[arg-type]


def test_options_survive_json() -> None:
    options = ToyOptions(fps=(24.0,), seed=7)
    assert from_dict(to_dict(options)) == options
