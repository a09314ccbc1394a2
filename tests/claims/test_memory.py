"""Videos held in memory give the pictures that the decoder gives, and training batches do not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stvl.claims.memory import HeldVideos
from stvl.data.augment import TrainTransform
from stvl.data.decode import DecodeError, Decoder, PyAVDecoder
from stvl.data.mining import HardMining
from stvl.data.pipeline import LoaderOptions, TrainLoader
from stvl.data.sampling import segment_times
from stvl.data.sources import EpicSource
from stvl.data.text import ClipTokenizer


@pytest.fixture
def table(tiny_world: Path):
    return EpicSource(csv=f"{tiny_world}/EPIC_100_retrieval_train.csv", videos=f"{tiny_world}/videos").load()


class Counting(PyAVDecoder):
    """Counts how often a file is read."""

    reads: list[str] = []  # noqa: RUF012 - one list for the test that makes it

    def frames(self, path, times):
        self.reads.append(path)
        return super().frames(path, times)


def test_pictures_are_those_of_the_decoder(table):
    held, plain = HeldVideos(), PyAVDecoder()
    assert isinstance(held, Decoder)
    rng = np.random.default_rng(0)
    for clip in table.clips:
        assert held.probe(clip.path) == plain.probe(clip.path)
        for times in (
            segment_times(clip.start, clip.end, 4),
            segment_times(clip.start, clip.end, 7, rng),
            np.array([clip.end, clip.start, 0.0, -1.0]),
        ):
            assert np.array_equal(held.frames(clip.path, times), plain.frames(clip.path, times))


def test_every_boundary_between_pictures_is_the_decoders(table):
    path = table[0].path
    info = PyAVDecoder().probe(path)
    times = np.arange(info.frames) / info.fps
    assert np.array_equal(HeldVideos().frames(path, times), PyAVDecoder().frames(path, times))


def test_a_file_is_read_once(table):
    Counting.reads = []
    held = HeldVideos(Counting())
    assert held.count == 0
    for clip in (table[0], table[1], table[0]):
        held.frames(clip.path, np.array([clip.start]))
    assert Counting.reads == list(dict.fromkeys([table[0].path, table[1].path]))
    assert held.count == len(Counting.reads)


@pytest.mark.parametrize("mining", [None, HardMining()])
def test_training_batches_are_the_same(table, mining):
    options = LoaderOptions(batch=8, frames=3, seed=5, threads=1, mining=mining)
    rows = []
    for decoder in (PyAVDecoder(), HeldVideos()):
        loader = TrainLoader(
            table, TrainTransform(size=16), ClipTokenizer(context_length=8), options, decoder=decoder
        )
        rows.append([next(loader) for _ in range(4)])
        loader.close()
    for one, other in zip(*rows, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_times_that_no_picture_has_are_refused(table):
    held, path = HeldVideos(), table[0].path
    end = held.probe(path).duration
    assert held.frames(path, np.array([end + 0.4])).shape[0] == 1
    with pytest.raises(DecodeError, match=r"of a video whose pictures end at"):
        held.frames(path, np.array([end + 0.6]))
    with pytest.raises(DecodeError, match="finite times"):
        held.frames(path, np.array([np.nan]))
    with pytest.raises(DecodeError, match="no such file"):
        held.probe("nowhere.mp4")
