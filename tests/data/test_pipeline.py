"""Batches: the same whoever makes them, resumable anywhere, honest about damaged files."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stvl.core.config import from_dict, to_dict
from stvl.core.errors import ConfigError, DataError, TrainingError
from stvl.data.augment import EvalTransform, TrainTransform
from stvl.data.decode import DecodeError, PyAVDecoder, VideoInfo
from stvl.data.pipeline import LoaderOptions, TrainLoader, eval_batches
from stvl.data.records import Clip, ClipTable
from stvl.data.text import ClipTokenizer

TOKENIZER = ClipTokenizer(context_length=8)
KEYS = {"video", "text", "verb", "nouns", "index", "valid", "substituted"}


@dataclasses.dataclass(frozen=True)
class TimeDecoder:
    """Frames whose red is the time asked for, in tenths of a second, without any file; some paths are damaged."""

    damaged: tuple[str, ...] = ()

    def probe(self, path: str) -> VideoInfo:
        return VideoInfo(25.0, 24.0, 8, 8, 600)

    def frames(self, path: str, times: np.ndarray) -> np.ndarray:
        if path in self.damaged:
            raise DecodeError(path, "broken on purpose")
        red = np.rint(times * 10).astype(np.uint8)
        return np.broadcast_to(red[:, None, None, None], (len(times), 8, 8, 3)).copy()


def table(size: int = 10, **changes) -> ClipTable:
    clips = [
        Clip(
            id=f"c{index}",
            path=f"v{index}.mp4",
            start=float(index),
            end=index + 1.0,
            text=f"clip number {index}",
            row=index + 1,
            verb=index % 3,
            nouns=tuple(range(index % 4)),
            **changes,
        )
        for index in range(size)
    ]
    return ClipTable(tuple(clips), "made.csv")


def loader(clips: ClipTable | None = None, shard=(0, 1), decoder=None, **options) -> TrainLoader:
    options = {"batch": 4, "frames": 2, "threads": 1, **options}
    transform = TrainTransform(size=4)
    clips = table() if clips is None else clips
    return TrainLoader(clips, transform, TOKENIZER, LoaderOptions(**options), shard, decoder or TimeDecoder())


def take(stream: TrainLoader, count: int) -> list[dict[str, np.ndarray]]:
    batches = [next(stream) for _ in range(count)]
    stream.close()
    return batches


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


def test_a_batch_keeps_the_contract():
    batch = take(loader(shuffle=False), 2)[1]
    assert set(batch) == KEYS
    assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
        "video": ("uint8", (4, 2, 4, 4, 3)),
        "text": ("int32", (4, 8)),
        "verb": ("int32", (4,)),
        "nouns": ("int32", (4, 3)),
        "index": ("int32", (4,)),
        "valid": ("bool", (4,)),
        "substituted": ("int32", (4,)),
    }
    assert batch["index"].tolist() == [4, 5, 6, 7]
    assert batch["verb"].tolist() == [1, 2, 0, 1]
    assert batch["nouns"].tolist() == [[-1, -1, -1], [0, -1, -1], [0, 1, -1], [0, 1, 2]]
    assert batch["valid"].all() and (batch["substituted"] == -1).all()
    assert np.array_equal(batch["text"], TOKENIZER([f"clip number {index}" for index in range(4, 8)]))
    seconds = batch["video"][:, :, 0, 0, 0] / 10
    assert (np.abs(seconds - batch["index"][:, None] - [0.25, 0.75]) <= 0.3).all()


def test_each_epoch_holds_each_clip_once_in_another_order_with_other_times():
    batches = take(loader(batch=5), 4)
    first, second = (
        np.concatenate([batch["index"] for batch in pair]) for pair in (batches[:2], batches[2:])
    )
    assert sorted(first) == sorted(second) == list(range(10)) and first.tolist() != second.tolist()
    videos = [np.concatenate([batch["video"] for batch in pair]) for pair in (batches[:2], batches[2:])]
    assert not np.array_equal(videos[0][np.argsort(first)], videos[1][np.argsort(second)])


def test_restored_at_every_state_the_tail_is_the_same():
    stream = loader()
    states, batches = [], []
    for _ in range(7):
        states.append(stream.get_state())
        batches.append(next(stream))
    assert states[3] == {"position": 3, "seed": 0, "size": 10, "batch": 4}
    for at, state in enumerate(states):
        other = loader(workers=0, threads=2)
        other.set_state(state)
        assert all(same(mine, next(other)) for mine in batches[at:]), f"restored at {at}"
        other.close()
    stream.set_state(states[2])
    assert same(next(stream), batches[2])
    stream.close()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_join_to_the_global_batch(hosts):
    whole = take(loader(batch=8, seed=3), 5)
    parts = [take(loader(batch=8, seed=3, shard=(host, hosts)), 5) for host in range(hosts)]
    for number, batch in enumerate(whole):
        joined = {key: np.concatenate([part[number][key] for part in parts]) for key in batch}
        assert same(joined, batch)


def test_a_host_resumes_where_another_number_of_hosts_stopped():
    state = loader(batch=8, shard=(1, 2)).get_state() | {"position": 2}
    stream = loader(batch=8)
    stream.set_state(state)
    assert same(next(stream), take(loader(batch=8), 3)[2])
    stream.close()


def test_seeds_differ():
    assert not same(take(loader(seed=0), 1)[0], take(loader(seed=1), 1)[0])


@pytest.mark.slow
def test_worker_processes_change_nothing(video, damaged_video):
    """Real files, decoded in two processes and in this one, one file damaged: bit for bit the same, and so is the report."""
    clips = tuple(
        Clip(id=f"c{row}", path=path, start=row / 8, end=row / 8 + 0.5, text=f"number {row}", row=row + 1)
        for row, path in enumerate([video] * 11 + [damaged_video])
    )
    results = []
    for workers in (0, 2):
        stream = loader(ClipTable(clips, "x.csv"), decoder=PyAVDecoder(), workers=workers, max_bad_share=0.5)
        batches = take(stream, 6)
        results.append((batches, {path: dataclasses.astuple(entry) for path, entry in stream.bad.items()}))
        stream.set_state({"position": 4, "seed": 0, "size": 12})
        assert same(next(stream), batches[4])
        stream.close()
    assert all(same(left, right) for left, right in zip(results[0][0], results[1][0], strict=True))
    assert results[0][1] == results[1][1]
    reason, row, count = results[0][1][damaged_video]
    assert "cannot be decoded" in reason or "damaged" in reason or "no picture" in reason
    assert (row, count) == (12, 2)


SCRIPT = """
import sys

import numpy as np

from stvl.data.augment import EvalTransform
from stvl.data.decode import VideoInfo
from stvl.data.pipeline import LoaderOptions, TrainLoader
from stvl.data.records import Clip, ClipTable
from stvl.data.text import ClipTokenizer


def started():
    bridge = sys.modules.get("jax._src.xla_bridge")
    return int(bridge is not None and bridge.backends_are_initialized())


class Spy:
    def probe(self, path):
        return VideoInfo(10.0, 24.0, 4, 4, 240)

    def frames(self, path, times):
        return np.full((len(times), 4, 4, 3), 100 + started(), np.uint8)


if __name__ == "__main__":
    clips = tuple(Clip(id=str(row), path="v", start=0.0, end=1.0, text="x") for row in range(4))
    for workers in (0, 1):
        options = LoaderOptions(batch=2, frames=1, workers=workers)
        stream = TrainLoader(ClipTable(clips, "x"), EvalTransform(size=4), ClipTokenizer(), options, decoder=Spy())
        print(np.unique(next(stream)["video"]), started())
        stream.close()
"""


@pytest.mark.slow
def test_neither_loader_nor_worker_starts_a_backend(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split("\n") == ["[100] 0", "[100] 0", ""], done.stderr


def test_a_damaged_clip_is_replaced_counted_and_listed():
    broken = TimeDecoder(damaged=("v3.mp4",))
    stream = loader(decoder=broken, max_bad_share=0.5)
    batches, clean = take(stream, 10), take(loader(), 10)
    asked = np.concatenate([batch["substituted"] for batch in batches])
    drawn, meant = (np.concatenate([batch["index"] for batch in some]) for some in (batches, clean))
    assert (asked == 3).sum() == 4 and set(asked) == {-1, 3}
    assert 3 not in drawn and (meant[asked == 3] == 3).all()
    assert (drawn[asked == -1] == meant[asked == -1]).all()
    assert list(stream.bad) == ["v3.mp4"] and stream.drawn == 40
    assert (stream.bad["v3.mp4"].reason, stream.bad["v3.mp4"].row, stream.bad["v3.mp4"].count) == (
        "broken on purpose",
        4,
        4,
    )
    for batch, other in zip(batches, clean, strict=True):
        whole = batch["substituted"] == -1
        assert np.array_equal(batch["video"][whole], other["video"][whole])
    again = take(loader(decoder=broken, max_bad_share=0.5, threads=2), 10)
    assert all(same(left, right) for left, right in zip(batches, again, strict=True))


def test_text_and_classes_are_those_of_the_clip_that_is_shown():
    batch = take(loader(decoder=TimeDecoder(damaged=("v3.mp4",)), shuffle=False, max_bad_share=0.5), 1)[0]
    index = batch["index"].tolist()
    assert batch["substituted"].tolist() == [-1, -1, -1, 3] and index[:3] == [0, 1, 2]
    assert np.array_equal(batch["text"][3], TOKENIZER([f"clip number {index[3]}"])[0])
    assert batch["verb"][3] == index[3] % 3


def test_too_many_damaged_clips_stop_the_run():
    stream = loader(decoder=TimeDecoder(damaged=("v3.mp4", "v5.mp4")), max_bad_share=0.01)
    with pytest.raises(
        TrainingError, match=r"max_bad_share\) is 1\.0%[\s\S]*v3\.mp4 \(row 4\): broken on purpose"
    ) as caught:
        for _ in range(10):
            next(stream)
    assert "v5.mp4 (row 6)" in str(caught.value)
    assert stream.drawn >= 10
    stream.close()


def test_no_share_allows_none_and_a_full_share_allows_all():
    decoder = TimeDecoder(damaged=("v3.mp4",))
    with pytest.raises(TrainingError, match="the limit"):
        take(loader(decoder=decoder, max_bad_share=0.0), 5)
    assert len(take(loader(decoder=decoder, max_bad_share=1.0), 5)) == 5


def test_one_damaged_clip_in_the_first_batches_of_a_large_table_does_not_stop_it():
    clips = table(25)
    first = dataclasses.replace(clips.clips[0], path="once.mp4")
    stream = loader(
        ClipTable((first, *clips.clips[1:24] * 20), "x.csv"),
        decoder=TimeDecoder(damaged=("once.mp4",)),
        shuffle=False,
        batch=20,
    )
    assert [batch["substituted"].max() for batch in take(stream, 3)] == [0, -1, -1]


def test_nothing_but_damage_says_so():
    decoder = TimeDecoder(damaged=tuple(f"v{index}.mp4" for index in range(10)))
    with pytest.raises(DataError, match=r"v0\.mp4, row 1 of made\.csv: broken on purpose; the 15 clips"):
        take(loader(decoder=decoder, shuffle=False, max_bad_share=1.0), 1)


def test_a_clip_shorter_than_a_frame_is_damaged():
    short = dataclasses.replace(table().clips[0], end=0.04)
    with pytest.raises(
        DataError,
        match=r"row 1 of x\.csv: v0\.mp4: the clip of 0\.0400 s is shorter than one frame \(0\.0417 s\)",
    ):
        evaluate(ClipTable((short,), "x.csv"))
    just = dataclasses.replace(short, end=1 / 24)
    assert len(evaluate(ClipTable((just,), "x.csv"))) == 1


def test_state_of_another_order_is_refused():
    stream = loader()
    with pytest.raises(DataError, match="size 11, this run has 10"):
        stream.set_state({"position": 1, "seed": 0, "size": 11})
    with pytest.raises(DataError, match="seed 5, this run has 0"):
        stream.set_state({"position": 1, "seed": 5, "size": 10})
    with pytest.raises(DataError, match="batch 8, this run has 4"):
        stream.set_state({"position": 1, "seed": 0, "size": 10, "batch": 8})
    with pytest.raises(DataError, match="'position' is missing"):
        stream.set_state({"seed": 0, "size": 10})


def test_impossible_loaders():
    with pytest.raises(DataError, match=r"x\.csv: no clip to train on"):
        loader(ClipTable((), "x.csv"))
    with pytest.raises(DataError, match="batch of 4 does not divide among 3 hosts"):
        loader(shard=(0, 3))
    with pytest.raises(ConfigError, match="batch is at least 1, found 0"):
        LoaderOptions(batch=0)
    with pytest.raises(ConfigError, match="max_bad_share is a share"):
        LoaderOptions(max_bad_share=2.0)
    assert from_dict(to_dict(LoaderOptions(workers=2))) == LoaderOptions(workers=2)


def evaluate(clips: ClipTable, batch: int = 4, decoder=None, threads: int = 2) -> list[dict[str, np.ndarray]]:
    stream = eval_batches(
        clips,
        EvalTransform(size=4),
        TOKENIZER,
        frames=2,
        batch=batch,
        threads=threads,
        decoder=decoder or TimeDecoder(),
    )
    return list(stream)


def test_evaluation_sees_every_clip_once_in_order_at_segment_centres():
    batches = evaluate(table())
    assert [batch["valid"].tolist() for batch in batches] == [
        [True] * 4,
        [True] * 4,
        [True, True, False, False],
    ]
    assert all(set(batch) == KEYS and len(batch["video"]) == 4 for batch in batches)
    index = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
    assert index.tolist() == list(range(10))
    tenths = np.concatenate([batch["video"][batch["valid"]] for batch in batches])[:, :, 0, 0, 0]
    assert np.array_equal(tenths, np.rint((index[:, None] + [0.25, 0.75]) * 10))


@pytest.mark.parametrize(("batch", "count"), [(1, 10), (10, 1), (16, 1)])
def test_evaluation_in_batches_of_any_size(batch, count):
    batches = evaluate(table(), batch, threads=1)
    assert len(batches) == count and sum(part["valid"].sum() for part in batches) == 10


def test_evaluation_never_substitutes():
    with pytest.raises(DataError, match=r"row 7 of made\.csv: v6\.mp4: broken on purpose"):
        evaluate(table(), decoder=TimeDecoder(damaged=("v6.mp4",)))


def test_evaluation_of_nothing_is_nothing():
    assert evaluate(ClipTable((), "x.csv")) == []


def test_evaluation_can_be_left_early():
    stream = eval_batches(table(), EvalTransform(size=4), TOKENIZER, frames=2, batch=2, decoder=TimeDecoder())
    assert next(stream)["index"].tolist() == [0, 1]
    stream.close()


def test_real_frames_reach_the_batch(long_video, read_numbers):
    clips = tuple(
        Clip(id=str(row), path=long_video, start=float(row), end=row + 1.0, text="x", row=row + 1)
        for row in range(6)
    )
    (batch,) = eval_batches(ClipTable(clips, "x.csv"), EvalTransform(size=32), TOKENIZER, frames=2, batch=6)
    # A quarter and three quarters of second n: frames 24 n + 6 and 24 n + 18.
    assert [read_numbers(video) for video in batch["video"]] == [
        [24 * row + 6, 24 * row + 18] for row in range(6)
    ]
