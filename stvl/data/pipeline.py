"""Tables of clips to batches: training in a keyed random order that can be resumed anywhere, evaluation in table order."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from stvl.core.config import config
from stvl.core.errors import ConfigError, DataError, TrainingError
from stvl.data import order
from stvl.data.decode import DecodeError, Decoder, PyAVDecoder, VideoInfo
from stvl.data.mining import HardMining, TextPool
from stvl.data.records import Clip, ClipTable
from stvl.data.sampling import segment_times
from stvl.data.text import Tokenizer

Batch = dict[str, np.ndarray]
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

#: Damaged clips in a row before a sample is given up.
_ATTEMPTS = 16
#: Samples drawn before the share of damaged ones is judged (or one epoch, if that is less).
_JUDGE_AFTER = 20
_REASON_BYTES = 240
#: Stream of random numbers that texts are drawn with; those of frames are the numbers of attempts.
_TEXT_STREAM = 1 << 16


@config
class LoaderOptions:
    """How training data are drawn and by how many hands. Only the first five fields change what is drawn.

    Attributes:
        batch: clips in a global batch, over all hosts.
        frames: frames of a clip.
        seed: key of order, times and crops.
        shuffle: draw a new order each epoch; False keeps the table's order.
        mining: draw each clip's text from all that are relevant to it; None takes its own.
        workers: processes that decode; 0 decodes in threads of this process.
        threads: decoding threads in each process.
        prefetch: batches that are kept ready; with workers Grain's queues hold about six more for each of them.
        max_bad_share: share of damaged samples above which training stops.
    """

    batch: int = 64
    frames: int = 4
    seed: int = 0
    shuffle: bool = True
    mining: HardMining | None = None
    workers: int = 0
    threads: int = 2
    prefetch: int = 2
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("frames", 1), ("workers", 0), ("threads", 1), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is at least {least}, found {getattr(self, name)}")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(f"max_bad_share is a share from 0 to 1, found {self.max_bad_share}")


@dataclasses.dataclass(slots=True)
class BadVideo:
    """A damaged file that training drew: the reason given last, the row of the clip, and how often it was drawn."""

    reason: str
    row: int
    count: int = 0


@dataclasses.dataclass(frozen=True)
class _Loader:
    """Everything that a process needs to make a batch; sent to worker processes as it is."""

    table: ClipTable
    transform: Transform
    tokenizer: Tokenizer
    decoder: Decoder
    frames: int
    nouns: int
    pool: TextPool | None = None

    def video(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        """Frames of clip `index`, transformed. Raises: DecodeError."""
        clip = self.table[index]
        refuse_short(clip, _probed(self.decoder, clip.path))
        pictures = self.decoder.frames(clip.path, segment_times(clip.start, clip.end, self.frames, rng))
        return self.transform(pictures, rng)  # type: ignore[arg-type]

    def mined(self, clips: Sequence[Clip], rngs: Sequence[np.random.Generator]) -> Batch:
        """Texts drawn for the clips, and their codes: what replaces and extends a batch."""
        if self.pool is None:
            return {}
        drawn = [self.pool.draw(clip, rng) for clip, rng in zip(clips, rngs, strict=True)]
        text = self.tokenizer([self.pool.texts[number] for number in drawn])
        return {"text": text, "text_verb": self.pool.verbs[drawn], "text_nouns": self.pool.nouns[drawn]}

    def batch(
        self, videos: Sequence[np.ndarray], indices: Sequence[int], asked: Sequence[int], size: int
    ) -> Batch:
        """Join `videos` of the clips at `indices` into a batch of `size`, padded with the first clip."""
        real, fill = len(indices), size - len(indices)
        indices = [*indices, *[indices[0]] * fill]
        clips = [self.table[index] for index in indices]
        nouns = np.full((size, self.nouns), -1, np.int32)
        for row, clip in zip(nouns, clips, strict=True):
            row[: len(clip.nouns)] = clip.nouns
        return {
            "video": np.stack([*videos, *[videos[0]] * fill]),
            "text": self.tokenizer([clip.text for clip in clips]),
            "verb": np.array([clip.verb for clip in clips], np.int32),
            "nouns": nouns,
            "index": np.array(indices, np.int32),
            "valid": np.arange(size) < real,
            "substituted": np.array([*asked, *[-1] * fill], np.int32),
        }


def refuse_short(clip: Clip, info: VideoInfo) -> None:
    """Raise DecodeError where a clip is shorter than one frame of its video."""
    if (clip.end - clip.start) * info.fps < 0.999:
        length, frame = clip.end - clip.start, 1 / info.fps
        raise DecodeError(clip.path, f"the clip of {length:.4f} s is shorter than one frame ({frame:.4f} s)")


@functools.lru_cache(maxsize=65536)
def _probed(decoder: Decoder, path: str) -> VideoInfo:
    return decoder.probe(path)


@functools.lru_cache(maxsize=8)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="stvl-decode")


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Number of a global batch -> this host's rows of it."""

    loader: _Loader
    options: LoaderOptions
    rows: range

    def __call__(self, number: int) -> Batch:
        positions = [int(number) * self.options.batch + row for row in self.rows]
        samples = list(_pool(self.options.threads).map(self.sample, positions))
        videos, indices, asked, reasons = zip(*samples, strict=True)
        batch = self.loader.batch(videos, indices, asked, len(positions))
        clips = [self.loader.table[index] for index in indices]
        batch |= self.loader.mined(
            clips, [self.text_rng(*item) for item in zip(positions, indices, strict=True)]
        )
        # Text has no place in a batch of numbers, so reasons travel as bytes until the loader takes them out.
        packed = np.zeros((len(positions), _REASON_BYTES), np.uint8)
        for row, reason in zip(packed, reasons, strict=True):
            data = reason.encode()[:_REASON_BYTES]
            row[: len(data)] = np.frombuffer(data, np.uint8)
        return {**batch, "reason": packed}

    def text_rng(self, position: int, index: int) -> np.random.Generator:
        """Random numbers of the text of a clip, apart from those of its frames."""
        epoch = position // len(self.loader.table)
        return order.sample_rng(self.options.seed, epoch, index, _TEXT_STREAM)

    def sample(self, position: int) -> tuple[np.ndarray, int, int, str]:
        """(frames, index, index asked for or -1, reason) of one global position."""
        size, seed = len(self.loader.table), self.options.seed
        asked = index = order.sample_index(position, size, seed, self.options.shuffle)
        first = ""
        for attempt in range(_ATTEMPTS):
            rng = order.sample_rng(seed, position // size, index, attempt)
            try:
                video = self.loader.video(index, rng)
                return video, index, -1 if attempt == 0 else asked, first
            except DecodeError as problem:
                first = first or problem.reason
                index = order.substitute_index(position, size, seed, attempt)
        clip = self.loader.table[asked]
        raise DataError(
            f"{clip.path}, row {clip.row} of {self.loader.table.source}: {first}; the {_ATTEMPTS - 1} clips drawn in"
            " its place are damaged too. Run `stvl data check` on the data."
        )


class TrainLoader:
    """Endless training batches of this host, and one integer to resume them.

    Global position ``p = batch * number + row`` gives the clip by `order.sample_index` and its times and crop by
    `order.sample_rng`; host ``h`` of ``n`` takes rows ``h * batch / n ... (h + 1) * batch / n`` of each global batch.
    So neither hosts nor workers change what is drawn. A damaged clip is replaced by another one, noted in
    ``batch["substituted"]`` and listed in `bad`.

    Args:
        table: the clips.
        transform: frames and random numbers to frames of the model's size.
        tokenizer: text to ids.
        options: see LoaderOptions.
        shard: (index, count) of this host.
        decoder: how video files are read.

    Raises:
        DataError: an empty table, a batch that does not divide among the hosts; while iterating: too many damaged
            clips in a row.
        TrainingError: while iterating, more damaged samples than ``options.max_bad_share``.
    """

    def __init__(
        self,
        table: ClipTable,
        transform: Transform,
        tokenizer: Tokenizer,
        options: LoaderOptions,
        shard: tuple[int, int] = (0, 1),
        decoder: Decoder | None = None,
    ) -> None:
        if not len(table):
            raise DataError(f"{table.source}: no clip to train on")
        pool = None if options.mining is None else TextPool.of(table, options.mining)
        loader = _Loader(
            table,
            transform,
            tokenizer,
            PyAVDecoder() if decoder is None else decoder,
            options.frames,
            _nouns(table),
            pool,
        )
        self.table, self.options = table, options
        self.bad: dict[str, BadVideo] = {}
        self.drawn = 0
        self._maker = _Maker(loader, options, order.host_rows(options.batch, *shard))
        self._position = 0
        self._stream: Any = None

    def __iter__(self) -> TrainLoader:
        return self

    def __next__(self) -> Batch:
        if self._stream is None:
            self._stream = self._open(self._position)
        # Workers hand over shared memory that vanishes with its array, views of it or not: copy it out.
        batch = {key: np.array(value) for key, value in next(self._stream).items()}
        self._position += 1
        self._note(batch, batch.pop("reason"))
        return batch

    def get_state(self) -> dict[str, int]:
        """The number of the next global batch, and what it is a number in."""
        state = {"position": self._position, "seed": self.options.seed}
        return {**state, "size": len(self.table), "batch": self.options.batch}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on at ``state["position"]``.

        Raises:
            DataError: the state is of another table size, seed or batch, in whose order the position means other clips.
        """
        for key, mine in self.get_state().items():
            if key not in state and key != "batch":
                raise DataError(
                    f"a data state holds position, seed and size; {key!r} is missing from {state}"
                )
            if key != "position" and state.get(key, mine) != mine:
                raise DataError(
                    f"the saved data order has {key} {state[key]}, this run has {mine}; they must be equal"
                )
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Stop workers and forget what they made ready; the next batch starts them again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _open(self, first: int) -> Any:
        # Grain imports jax (without a backend); importing it here keeps `import stvl.data` quick.
        import grain

        read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self.options.prefetch)
        batches = grain.MapDataset.source(_Numbers(first)).map(self._maker).to_iter_dataset(read)
        if self.options.workers:
            from absl import flags

            # Grain's worker processes read absl flags, which only absl's own main function would have parsed.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            hands = grain.MultiprocessingOptions(
                num_workers=self.options.workers, per_worker_buffer_size=self.options.prefetch
            )
            batches = batches.mp_prefetch(hands)
        return iter(batches)

    def _note(self, batch: Batch, reasons: np.ndarray) -> None:
        self.drawn += len(reasons)
        for asked, reason in zip(batch["substituted"], reasons, strict=True):
            if asked >= 0:
                clip = self.table[int(asked)]
                text = bytes(reason).rstrip(b"\0").decode(errors="ignore")
                entry = self.bad.setdefault(clip.path, BadVideo(text, clip.row))
                entry.reason, entry.row, entry.count = text, clip.row, entry.count + 1
        self._judge()

    def _judge(self) -> None:
        limit, count = self.options.max_bad_share, sum(entry.count for entry in self.bad.values())
        if self.drawn < min(_JUDGE_AFTER, len(self.table)):
            return
        # Two standard deviations of the count: one damaged clip in the first batch must not stop a long run.
        if count <= limit * self.drawn + 2 * math.sqrt(limit * self.drawn):
            return
        listed = [f"  {path} (row {entry.row}): {entry.reason}" for path, entry in sorted(self.bad.items())]
        more = [f"  ... and {len(listed) - 20} more"] if len(listed) > 20 else []
        raise TrainingError(
            f"{count} of {self.drawn} samples ({count / self.drawn:.1%}) were damaged, the limit (max_bad_share) is"
            f" {limit:.1%}. Damaged files drawn:\n" + "\n".join(listed[:20] + more)
        )


class _Numbers:
    """The endless source of batch numbers from `first` on."""

    def __init__(self, first: int) -> None:
        self._first = first

    def __len__(self) -> int:
        return 1 << 62

    def __getitem__(self, index: int) -> int:
        return self._first + int(index)


def eval_batches(
    table: ClipTable,
    transform: Transform,
    tokenizer: Tokenizer,
    *,
    frames: int,
    batch: int,
    threads: int = 2,
    decoder: Decoder | None = None,
) -> Iterator[Batch]:
    """Every clip once, in table order, centre of each segment; the last batch is padded and says so in ``valid``.

    Raises:
        DataError: a clip that cannot be decoded, with file and row; evaluation never substitutes.
    """
    if frames < 1 or batch < 1 or threads < 1:
        raise ConfigError(f"frames, batch and threads are at least 1, found {frames}, {batch} and {threads}")
    loader = _Loader(
        table, transform, tokenizer, PyAVDecoder() if decoder is None else decoder, frames, _nouns(table)
    )
    groups = [range(first, min(first + batch, len(table))) for first in range(0, len(table), batch)]
    with ThreadPoolExecutor(threads, thread_name_prefix="stvl-decode") as pool:
        waiting: list[tuple[range, list[Future[np.ndarray]]]] = []
        try:
            for group in itertools.chain(groups, [None]):
                if group is not None:
                    waiting.append((group, [pool.submit(_eval_video, loader, index) for index in group]))
                # Two batches are in the making while the caller works on a third.
                while waiting and (len(waiting) > 2 or group is None):
                    rows, jobs = waiting.pop(0)
                    videos = [job.result() for job in jobs]
                    yield loader.batch(videos, list(rows), [-1] * len(rows), batch)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _eval_video(loader: _Loader, index: int) -> np.ndarray:
    clip = loader.table[index]
    try:
        return loader.video(index, None)
    except DataError as problem:
        raise DataError(f"row {clip.row} of {loader.table.source}: {problem}") from problem


def _nouns(table: ClipTable) -> int:
    return max((len(clip.nouns) for clip in table.clips), default=0) or 1
