"""Pictures out of video files: open, seek to the keyframe before, decode forward, convert only what was asked for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from stvl.core.config import config
from stvl.core.errors import DataError

#: Seconds between the picture in hand and a keyframe ahead from which on a seek is cheaper than decoding forward.
_WORTH_SEEKING = 0.2
#: Seconds from which on a seek is always tried: Matroska knows its keyframes only after the first seek.
_FAR = 10.0
#: Containers that store no presentation times; FFmpeg guesses them, wrongly with B pictures, so decoding times are used.
_TIMELESS = ("avi",)


class DecodeError(DataError):
    """A video file cannot be read; ``path`` and ``reason`` are kept apart for reports."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclasses.dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a container says of its first video stream.

    Attributes:
        duration: seconds.
        fps: mean pictures a second.
        width: pixels, as stored (before a rotation mark is obeyed).
        height: pixels, as stored.
        frames: number of pictures as stored, or ``duration * fps`` where the container does not count them.
    """

    duration: float
    fps: float
    width: int
    height: int
    frames: int


@runtime_checkable
class Decoder(Protocol):
    """Anything that can say how long a video is and which picture it shows at a time."""

    def probe(self, path: str) -> VideoInfo:
        """Read the header. Raises: DecodeError."""
        ...

    def frames(self, path: str, times: Float[np.ndarray, "t"]) -> UInt8[np.ndarray, "t y x c"]:
        """The pictures shown at `times` (seconds from the first picture, any order). Raises: DecodeError."""
        ...


@config
class PyAVDecoder:
    """FFmpeg through PyAV, on the CPU; a file is open only during a call and is never read as a whole.

    Attributes:
        threads: FFmpeg's threads in one file. One is best where several clips are decoded at a time.
        tolerance: seconds that a time may lie beyond the last picture and still be given that picture.
        short_side: shrink pictures whose short side is longer than this while they are converted to RGB (area
            mean); None hands out every pixel. It changes the pixels that a transform sees: one value per run.
    """

    threads: int = 1
    tolerance: float = 0.5
    short_side: int | None = None

    def probe(self, path: str) -> VideoInfo:
        """Read the header of `path`.

        Raises:
            DecodeError: no file, no video container, no video stream, no picture.
        """
        with _opened(path, self.threads) as (container, stream):
            return _info(container, stream)

    def frames(self, path: str, times: Float[np.ndarray, "t"]) -> UInt8[np.ndarray, "t y x c"]:
        """For each time the last picture that begins at or before it; the first picture for times before that.

        Times are seconds from the stream's start. Pictures are RGB, turned upright where the file says so.

        Raises:
            DecodeError: a file that cannot be opened, a picture on the way that FFmpeg reports as damaged, a time
                further than `tolerance` beyond the last picture, or a time that is not a number.
        """
        times = np.asarray(times, np.float64)
        if times.ndim != 1 or not times.size or not np.isfinite(times).all():
            raise DecodeError(str(path), f"expected a list of finite times in seconds, found {times!r}")
        with _opened(path, self.threads) as (container, stream):
            reader, convert = _Reader(path, container, stream, self.tolerance), _Convert(self.short_side)
            out: np.ndarray | None = None
            last: tuple[Any, np.ndarray] | None = None
            for row in np.argsort(times, kind="stable"):
                picture = reader.at(float(times[row]))
                if last is None or last[0] is not picture:
                    last = (picture, convert(picture))
                if out is None:
                    out = np.empty((len(times), *last[1].shape), np.uint8)
                out[row] = last[1]
        assert out is not None
        return out

    def scan(self, path: str) -> int:
        """Decode the whole file and return its number of pictures.

        Raises:
            DecodeError: the first damage found, with its time.
        """
        count = 0
        with _opened(path, self.threads) as (container, stream):
            clock = _Clock(container, stream)
            for picture in container.decode(stream):
                now = clock(picture)
                if picture.is_corrupt:
                    raise DecodeError(str(path), f"the picture at {now:.2f} s is damaged")
                count += 1
        if not count:
            raise DecodeError(str(path), "holds no picture")
        return count


@contextlib.contextmanager
def _opened(path: str, threads: int) -> Iterator[tuple[Any, Any]]:
    """Open `path` for its first video stream and turn every FFmpeg error inside the block into a DecodeError."""
    path = str(path)
    if not Path(path).is_file():
        raise DecodeError(path, "is a folder, not a video file" if Path(path).is_dir() else "no such file")
    # Here and not above: whoever trains on frames that come from elsewhere needs no FFmpeg.
    import av
    import av.error
    import av.logging

    # FFmpeg prints every damaged macroblock to stderr; what matters is raised as DecodeError with the file's name.
    av.logging.set_level(None)
    try:
        with av.open(path) as container:
            if not container.streams.video:
                kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
                raise DecodeError(path, f"has no video stream (found: {', '.join(kinds)})")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = threads
            if threads != 1:
                stream.codec_context.thread_type = "AUTO"
            yield container, stream
    except (av.error.FFmpegError, OSError, EOFError) as problem:
        raise DecodeError(path, f"cannot be decoded ({_words(problem)})") from problem


def _words(problem: BaseException) -> str:
    text = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
    return str(text).strip().rstrip(".")


def _info(container: Any, stream: Any) -> VideoInfo:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    fps = float(rate) if rate else 0.0
    if stream.duration:
        duration = float(stream.duration * stream.time_base)
    elif container.duration:
        import av

        duration = container.duration / av.time_base
    else:
        duration = _last_time(container, stream)
    frames = stream.frames or round(duration * fps)
    if frames < 1 or fps <= 0 or duration <= 0:
        raise DecodeError(container.name, f"holds no picture ({frames} frames, {fps:g} fps, {duration:g} s)")
    return VideoInfo(duration, fps, stream.codec_context.width, stream.codec_context.height, int(frames))


def _last_time(container: Any, stream: Any) -> float:
    """Duration by walking the packets, for streams whose header does not know it."""
    start, end = stream.start_time or 0, 0
    for packet in container.demux(stream):
        if packet.pts is not None:
            end = max(end, packet.pts - start + (packet.duration or 0))
    return float(end * stream.time_base)


def _start(container: Any, stream: Any) -> int:
    """Tick of the first picture; where only decoding times are known, pictures come out late by the reordering."""
    late = stream.codec_context.reorder_depth if container.format.name in _TIMELESS else 0
    return (stream.start_time or 0) + late


class _Clock:
    """Seconds from the stream's start for pictures in the order in which the decoder hands them out, never falling."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._unit = float(stream.time_base)
        self._start = _start(container, stream)
        self._timeless = container.format.name in _TIMELESS
        self._last: int | None = None

    def __call__(self, picture: Any) -> float:
        ticks = picture.dts if self._timeless or picture.pts is None else picture.pts
        step = picture.duration or 1
        if ticks is None:
            # A picture that comes out when the file ends: the next one, or all that is known of it after a seek.
            guess = self._start if picture.pts is None else picture.pts
            ticks = guess if self._last is None else self._last + step
        if self._last is not None and ticks <= self._last:
            ticks = self._last + 1
        self._last = ticks
        return (ticks - self._start) * self._unit

    def restart(self) -> None:
        self._last = None


class _Shown(NamedTuple):
    """A decoded picture, the second from which it is shown, and the second of the damage that spoils it, if any."""

    time: float
    picture: Any
    damage: float | None


class _Reader:
    """Walks forward through one open stream; `at` must be called with rising times."""

    def __init__(self, path: str, container: Any, stream: Any, tolerance: float) -> None:
        self._path, self._container, self._stream, self._tolerance = str(path), container, stream, tolerance
        self._start = _start(container, stream)
        self._clock = _Clock(container, stream)
        self._pictures: Iterator[Any] = container.decode(stream)
        self._now: _Shown | None = None
        self._ahead: _Shown | None = None
        self._damage: float | None = None
        self._at_start = True

    def at(self, time: float) -> Any:
        # Half a tick of slack, for a time computed as n / fps may fall just below the picture that it names; but no
        # more than a millisecond, for a tick of AVI is a whole picture.
        aim = time + min(0.5 * float(self._stream.time_base), 1e-3)
        if self._should_seek(aim):
            self._seek(aim)
        if self._now is None and self._ahead is None:
            self._ahead = self._next()
        back = 1.0
        while not self._at_start and (self._ahead is None or self._ahead.time > aim) and self._now is None:
            # The keyframe found lies behind the time (its decoding time did not), or the index is wrong.
            self._seek(aim - back)
            self._ahead, back = self._next(), back * 4
        while self._ahead is not None and self._ahead.time <= aim:
            self._now, self._ahead = self._ahead, self._next()
        shown = self._now or self._ahead
        if shown is None:
            raise DecodeError(self._path, "holds no picture that can be decoded")
        self._refuse(time, shown)
        return shown.picture

    def _refuse(self, time: float, shown: _Shown) -> None:
        if shown.damage is not None:
            raise DecodeError(
                self._path, f"the picture at {shown.damage:.2f} s is damaged (asked for {time:.2f} s)"
            )
        length = (shown.picture.duration or 0) * float(self._stream.time_base)
        if self._ahead is None and time > shown.time + length + self._tolerance:
            end = shown.time + length
            raise DecodeError(
                self._path, f"asked for {time:.2f} s of a video whose pictures end at {end:.2f} s"
            )

    def _should_seek(self, aim: float) -> bool:
        if self._now is None:
            return aim > 1.0
        if aim - self._now.time > _FAR:
            return True
        if aim - self._now.time <= _WORTH_SEEKING:
            return False
        unit, start = float(self._stream.time_base), self._start
        entries = self._stream.index_entries
        found = entries.search_timestamp(round(aim / unit) + start, backward=True)
        if found < 0:
            return False
        return (entries[found].timestamp - start) * unit - self._now.time > _WORTH_SEEKING

    def _seek(self, aim: float) -> None:
        unit, start = float(self._stream.time_base), self._start
        self._at_start = aim <= 0.0
        target = start if self._at_start else start + int(aim / unit)
        self._container.seek(target, stream=self._stream, backward=True)
        self._clock.restart()
        self._pictures = self._container.decode(self._stream)
        self._now = self._ahead = self._damage = None

    def _next(self) -> _Shown | None:
        picture = next(self._pictures, None)
        if picture is None:
            return None
        now = self._clock(picture)
        # A damaged picture spoils every picture that is predicted from it, until the next keyframe.
        if picture.is_corrupt:
            self._damage = now if self._damage is None else self._damage
        elif picture.key_frame:
            self._damage = None
        return _Shown(now, picture, self._damage)


class _Convert:
    """Pictures to RGB arrays of one size, with one swscale context for the whole call (making one costs 0.3 ms)."""

    def __init__(self, short_side: int | None) -> None:
        from av.video.reformatter import VideoReformatter

        self._short_side = short_side
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None

    def __call__(self, picture: Any) -> UInt8[np.ndarray, "y x c"]:
        if self._size is None:
            short = min(picture.width, picture.height)
            keep = self._short_side is None or short <= self._short_side
            scale = 1.0 if keep else self._short_side / short  # type: ignore[operator]
            self._size = (round(picture.width * scale), round(picture.height * scale))
        width, height = self._size
        kind = "BILINEAR" if (width, height) == (picture.width, picture.height) else "AREA"
        rgb = self._reformatter.reformat(
            picture, width, height, "rgb24", interpolation=kind, threads=1
        ).to_ndarray()
        turns = round(picture.rotation / 90) % 4
        return np.rot90(rgb, turns) if turns else rgb
