"""Videos decoded once and held in memory, for many short runs over the same small files."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from stvl.data.decode import DecodeError, Decoder, PyAVDecoder, VideoInfo

#: Seconds of slack for a time that was computed as n / fps; far below any picture's length.
_SLACK = 1e-4


class HeldVideos:
    """A `Decoder` that reads each file whole at its first use and then answers from memory, as uint8 pictures.

    It is for files of a constant frame rate, as the toy world's are: picture i is shown from ``i / fps`` on, and the
    answer is that of `PyAVDecoder`. Sampling, crops and their random numbers stay with the loader.

    Args:
        decoder: what reads the files.
        tolerance: seconds that a time may lie beyond the last picture and still be given that picture.

    Raises:
        DecodeError: from `decoder`; a time further than `tolerance` beyond the last picture, or that is not a number.
    """

    def __init__(self, decoder: Decoder | None = None, tolerance: float = 0.5) -> None:
        self._decoder = PyAVDecoder() if decoder is None else decoder
        self._tolerance = tolerance
        self._held: dict[str, tuple[VideoInfo, UInt8[np.ndarray, "t y x c"]]] = {}

    @property
    def count(self) -> int:
        """Files held so far."""
        return len(self._held)

    def probe(self, path: str) -> VideoInfo:
        """What the container says."""
        return self._video(path)[0]

    def frames(self, path: str, times: Float[np.ndarray, "t"]) -> UInt8[np.ndarray, "t y x c"]:
        """For each time the last picture that begins at or before it; the first picture for times before that."""
        info, pictures = self._video(path)
        times = np.asarray(times, np.float64)
        if times.ndim != 1 or not times.size or not np.isfinite(times).all():
            raise DecodeError(str(path), f"expected a list of finite times in seconds, found {times!r}")
        end = len(pictures) / info.fps
        if times.max() > end + self._tolerance:
            raise DecodeError(
                str(path), f"asked for {times.max():.2f} s of a video whose pictures end at {end:.2f} s"
            )
        index = np.floor((times + _SLACK) * info.fps).astype(int)
        return pictures[np.clip(index, 0, len(pictures) - 1)]

    def _video(self, path: str) -> tuple[VideoInfo, UInt8[np.ndarray, "t y x c"]]:
        path = str(path)
        if path not in self._held:
            info = self._decoder.probe(path)
            # The middle of each picture's time: no rounding of time stamps can name its neighbour.
            middles = (np.arange(info.frames) + 0.5) / info.fps
            self._held[path] = (info, self._decoder.frames(path, middles))
        return self._held[path]
