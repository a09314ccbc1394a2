"""The toy world on disk: H.264 files, annotation formats, and what happens to the folder."""

from __future__ import annotations

import ast
import csv
import json
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stvl.core.errors import DataError
from stvl.data.toy import (
    NOUNS,
    OPPOSITES,
    VERBS,
    ToyOptions,
    ToySummary,
    mirror,
    render_scene,
    sample_scene,
    write_world,
)
from stvl.data.toy.annotations import clip_row, frame_at, stamp, stamp_seconds
from stvl.data.toy.plan import actions, plan_videos
from stvl.data.toy.video import write_video

OPTIONS = ToyOptions(size=48, train_videos=2, test_videos=6, seconds=(1.0, 1.2), fps=(10.0, 12.5))
# The header of the public file.
EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ToySummary:
    return write_world(tmp_path_factory.mktemp("toy") / "world", OPTIONS)


def decode(path: Path) -> tuple[np.ndarray, list[bool], list[Fraction]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return pictures, [frame.key_frame for frame in frames], [frame.pts * frame.time_base for frame in frames]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def seconds(text: str) -> float:
    hours, minutes, rest = text.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def test_files_are_h264_and_show_what_the_plan_says(world: ToySummary) -> None:
    for video in plan_videos(OPTIONS, "test"):
        path = world.root / video.file
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height, stream.average_rate) == (48, 48, Fraction(video.fps))
        pictures, keys, times = decode(path)
        wanted = np.concatenate([render_scene(scene, 48) for scene in video.scenes])
        assert pictures.shape == wanted.shape
        assert times == [index / Fraction(video.fps) for index in range(len(wanted))]
        assert all(keys)
        # Colour is stored at half resolution and blurs at edges; brightness (BT.601) is whole. H.264's quantiser step at
        # QP 17 is 4.5 levels, so no coefficient is off by more than half of it.
        brightness = (pictures.astype(float) - wanted) @ (0.299, 0.587, 0.114)
        assert np.abs(brightness).mean() < 4.5 / 2


@pytest.mark.parametrize("verb", sorted(OPPOSITES)[::2])
def test_decoded_opposites_are_exact_mirror_images(tmp_path: Path, verb: int) -> None:
    specs = [sample_scene(np.random.default_rng(seed), OPTIONS, verb=verb, fps=10.0) for seed in range(2)]
    one, other = tmp_path / "one.mp4", tmp_path / "other.mp4"
    write_video(one, [render_scene(spec, 48) for spec in specs], 10.0, OPTIONS)
    count = write_video(other, [render_scene(mirror(spec), 48) for spec in reversed(specs)], 10.0, OPTIONS)
    assert count == sum(spec.frames for spec in specs)
    assert np.array_equal(decode(one)[0], decode(other)[0][::-1])


def test_long_groups_of_pictures_start_at_each_scene(tmp_path: Path) -> None:
    options = ToyOptions(size=48, keyframe_every=8)
    scenes = [np.full((11, 48, 48, 3), 90, np.uint8), np.full((5, 48, 48, 3), 91, np.uint8)]
    write_video(tmp_path / "a.mp4", scenes, 24.0, options)
    keys = decode(tmp_path / "a.mp4")[1]
    assert [index for index, key in enumerate(keys) if key] == [0, 8, 11]


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*a\.mp4: cannot write an H\.264 video of 48 x 48"):
        write_video(tmp_path / "nowhere" / "a.mp4", [np.zeros((5, 48, 48, 3), np.uint8)], 10.0, OPTIONS)


def test_stamps_and_frames_by_hand() -> None:
    # The first rows of the public test file: 1.56 s to 2.45 s at 60 fps are frames 93 to 147; 0 s is frame 1.
    assert (frame_at(156, 60.0), frame_at(245, 60.0), frame_at(0, 60.0)) == (93, 147, 1)
    assert stamp(156) == "00:00:01.56"
    assert stamp(540_728, 3) == "01:30:07.280"
    assert stamp_seconds(12_305) == "123.05"


def test_stamps_never_leave_the_scene_at_any_rate() -> None:
    options = ToyOptions(fps=(24.0, 30.0, 29.97), train_videos=20)
    for video in plan_videos(options, "train"):
        first = 0
        for clip in actions((video,)):
            last = first + clip.scene.frames
            exact = [
                Fraction(100 * edge) / Fraction(video.fps).limit_denominator(1001) for edge in (first, last)
            ]
            assert 0 <= clip.start - exact[0] < 1
            assert 0 <= exact[1] - clip.stop < 1
            first = last


@pytest.mark.parametrize("split", ["train", "test"])
def test_clip_rows_are_epic_kitchens_rows(world: ToySummary, split: str) -> None:
    text = world.paths[split].read_text(encoding="utf-8")
    assert text.splitlines()[0] == EPIC
    rows = table(world.paths[split])
    assert len(rows) == world.counts[f"{split}_clips"] == OPTIONS.actions * world.counts[f"{split}_videos"]
    clips = actions(plan_videos(OPTIONS, split))  # type: ignore[arg-type]
    assert [row["narration_id"] for row in rows] == [clip.id for clip in clips]
    for row, clip in zip(rows, clips, strict=True):
        assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d\d", row["start_timestamp"])
        assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d\d\d", row["narration_timestamp"])
        start, stop = seconds(row["start_timestamp"]), seconds(row["stop_timestamp"])
        assert start < seconds(row["narration_timestamp"]) < stop
        assert stop - start == pytest.approx(clip.scene.frames / clip.video.fps)
        assert int(row["start_frame"]) == max(1, round(start * clip.video.fps))
        assert int(row["stop_frame"]) == round(stop * clip.video.fps)
        verb, noun = VERBS[int(row["verb_class"])], NOUNS[int(row["noun_class"])]
        assert row["verb"] in verb.instances
        assert ast.literal_eval(row["all_nouns"]) == [row["noun"]]
        assert row["noun"] in noun.instances
        assert ast.literal_eval(row["all_noun_classes"]) == [int(row["noun_class"])]
        assert any(words in row["narration"] for words in noun.phrases)
        assert (world.root / "videos" / row["participant_id"] / f"{row['video_id']}.mp4").is_file()


def test_one_row_by_hand(world: ToySummary) -> None:
    clip = actions(plan_videos(OPTIONS, "test"))[0]
    row = dict(zip(EPIC.split(","), clip_row(clip), strict=True))
    spec = clip.scene
    assert row["narration_id"] == "P02_01_0"
    assert (row["participant_id"], row["video_id"], row["start_timestamp"]) == (
        "P02",
        "P02_01",
        "00:00:00.00",
    )
    assert row["start_frame"] == 1
    assert row["stop_frame"] == spec.frames
    assert row["all_nouns"] == f"['{spec.noun_text}']"
    assert row["all_noun_classes"] == f"[{spec.noun}]"


@pytest.mark.parametrize("split", ["train", "test"])
def test_sentences_are_the_first_rows_of_unique_narrations(world: ToySummary, split: str) -> None:
    rows, sentences = table(world.paths[split]), table(world.paths[f"{split}_sentence"])
    narrations = [row["narration"] for row in rows]
    assert len({item["narration"] for item in sentences}) == len(sentences) == len(set(narrations))
    for item in sentences:
        assert rows[narrations.index(item["narration"])]["narration_id"] == item["narration_id"]


def test_class_lists_and_manifest(world: ToySummary) -> None:
    for name, entries in (("verb_classes", VERBS), ("noun_classes", NOUNS)):
        rows = table(world.paths[name])
        assert [row["id"] for row in rows] == [str(index) for index in range(len(entries))]
        assert [row["key"] for row in rows] == [item.key for item in entries]
        assert [tuple(ast.literal_eval(row["instances"])) for row in rows] == [
            item.instances for item in entries
        ]
    for split in ("train", "test"):
        manifest, clips = table(world.paths[f"{split}_manifest"]), table(world.paths[split])
        assert list(manifest[0]) == ["path", "start", "end", "text"]
        assert [row["text"] for row in manifest] == [row["narration"] for row in clips]
        assert [float(row["end"]) for row in manifest] == [seconds(row["stop_timestamp"]) for row in clips]
        assert all((world.root / row["path"]).is_file() for row in manifest)


def test_questions_have_one_right_answer(world: ToySummary) -> None:
    asked = json.loads(world.paths["egomcq"].read_text(encoding="utf-8"))
    assert list(asked) == [str(index) for index in range(len(asked))]
    places = set()
    for item in asked.values():
        assert set(item) == {"answer", "query", "choices", "types"}
        choices = [item["choices"][str(place)] for place in range(5)]
        assert len(item["choices"]) == 5
        labels = [(ast.literal_eval(row["tag_verb"]), ast.literal_eval(row["tag_noun"])) for row in choices]
        assert choices[item["answer"]] == item["query"]
        assert labels.count(labels[item["answer"]]) == 1
        assert all((world.root / "videos/P02" / f"{row['video_uid']}.mp4").is_file() for row in choices)
        assert all(0 <= row["clip_start"] < row["clip_end"] <= row["video_dur"] + 1e-9 for row in choices)
        uids = {row["video_uid"] for row in choices}
        assert len(uids) == {1: 5, 2: 1}[item["types"]]
        if item["types"] == 2:
            (verb,), noun = labels[item["answer"]]
            assert ([OPPOSITES[verb]], noun) in labels
            assert len({row["narration_ind"] for row in choices}) == 5
        places.add(item["answer"])
    kinds = [item["types"] for item in asked.values()]
    assert kinds.count(1) == world.counts["inter_questions"] == OPTIONS.actions * OPTIONS.test_videos
    assert kinds.count(2) == world.counts["intra_questions"] >= 2 * OPTIONS.pairs * OPTIONS.test_videos
    assert places == {0, 1, 2, 3, 4}


def test_same_options_same_bytes_and_reuse(world: ToySummary, tmp_path: Path) -> None:
    seen = []
    again = write_world(tmp_path / "again", OPTIONS, progress=lambda done, total: seen.append((done, total)))
    assert content(again.root) == content(world.root)
    assert seen == [(done, 8) for done in range(1, 9)]
    assert not again.reused
    kept = write_world(tmp_path / "again", OPTIONS)
    assert kept.reused
    assert kept.counts == again.counts
    assert "reused (same options)" in str(kept)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_workers_do_not_change_the_world(world: ToySummary, tmp_path: Path) -> None:
    assert content(write_world(tmp_path / "w", OPTIONS, workers=2).root) == content(world.root)


def test_other_options_need_overwrite(tmp_path: Path) -> None:
    small = ToyOptions(size=32, train_videos=1, test_videos=5, seconds=(1.0, 1.0), fps=(10.0,))
    other = ToyOptions(size=32, train_videos=1, test_videos=5, seconds=(1.0, 1.0), fps=(10.0,), seed=3)
    root = write_world(tmp_path / "w", small).root
    before = content(root)
    with pytest.raises(DataError, match=r"toy world of other options \(seed = 0 there, 3 asked\)"):
        write_world(root, other)
    assert content(root) == before
    write_world(root, other, overwrite=True)
    assert content(root) != before
    (root / "videos/P02/P02_03.mp4").unlink()
    with pytest.raises(DataError, match=r"lacks 1 videos; overwrite"):
        write_world(root, other)
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folders_are_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "toy.json").write_text("[]")
    with pytest.raises(
        DataError, match=r"expected an empty folder or a toy world \(toy\.json\), found other files"
    ):
        write_world(tmp_path, OPTIONS, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt", "toy.json"]
    with pytest.raises(DataError, match=r"thesis\.txt: expected a folder for the toy world, found a file"):
        write_world(tmp_path / "thesis.txt", OPTIONS, overwrite=overwrite)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "w"
    root.mkdir()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(root, OPTIONS, progress=stop)
    assert list(tmp_path.rglob("*")) == [root]
