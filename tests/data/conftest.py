"""Videos that say which frame they show: two grey halves spell the frame's number in base 16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

_STEP, _BASE = 13, 24


def picture(number: int, size: int) -> np.ndarray:
    """A `size` x `size` grey frame whose left half is `number` // 16 and right half `number` % 16."""
    grey = np.empty((size, size), np.uint8)
    grey[:, : size // 2] = _BASE + _STEP * (number // 16 % 16)
    grey[:, size // 2 :] = _BASE + _STEP * (number % 16)
    return np.repeat(grey[:, :, None], 3, axis=2)


def write(
    path: Path,
    frames: int = 48,
    fps: int = 24,
    *,
    codec: str = "libx264",
    size: int = 32,
    ticks: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    turn: int = 0,
) -> Path:
    """Write a numbered video; `ticks` are times in units of 1 / `fps` for a variable frame rate.

    `options` go to the encoder and to the container, each of which takes those that it knows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    base = {"g": "12", "bf": "2", "crf": "10"} if codec == "libx264" else {"g": "12"}
    with av.open(str(path), "w", options=options or {}) as output:
        stream = output.add_stream(codec, rate=fps, options={**base, **(options or {})})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        if turn:
            stream.set_display_rotation(turn)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            frame.pts, frame.time_base = (number if ticks is None else ticks[number]), Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def read(frames: np.ndarray) -> list[int]:
    """The number that each frame spells."""
    size = frames.shape[2]
    left = frames[:, 4:-4, 4 : size // 2 - 4].mean((1, 2, 3))
    right = frames[:, 4:-4, size // 2 + 4 : -4].mean((1, 2, 3))
    digits = [np.rint((side - _BASE) / _STEP).astype(int) for side in (left, right)]
    return [int(high * 16 + low) for high, low in zip(*digits, strict=True)]


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    return write


@pytest.fixture(scope="session")
def read_numbers() -> Callable[[np.ndarray], list[int]]:
    return read


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two seconds at 24 frames a second: 48 numbered frames, H.264 with B pictures, a keyframe every 12."""
    return str(write(tmp_path_factory.mktemp("video") / "numbered.mp4"))


@pytest.fixture(scope="session")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten seconds at 24 frames a second: 240 numbered frames."""
    return str(write(tmp_path_factory.mktemp("video") / "long.mp4", 240))


@pytest.fixture(scope="session")
def damaged_video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file whose header is whole and whose pictures are noise."""
    path = write(tmp_path_factory.mktemp("video") / "damaged.mp4")
    return str(spoil(path))


def spoil(path: Path) -> Path:
    """Overwrite the pictures of a video with noise and leave the header, in place."""
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 4
    boxes_after = data.find(b"moov", at)
    end = len(data) if boxes_after < 0 else boxes_after - 4
    data[at:end] = np.random.default_rng(0).bytes(end - at)
    path.write_bytes(bytes(data))
    return path


@pytest.fixture(scope="session")
def spoil_video() -> Callable[[Path], Path]:
    return spoil


@pytest.fixture(scope="session", params=["libx264", "mpeg4"])
def concealed_video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """36 textured frames, 30 a second, a keyframe every 12; frame 15 is damaged in a way that FFmpeg conceals."""
    path = tmp_path_factory.mktemp("video") / "concealed.mp4"
    texture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(
            request.param, rate=30, options={"g": "12", "bf": "0", "sc_threshold": "0"}
        )
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 96, 96, "yuv420p", 2_000_000
        for number in range(36):
            view = np.ascontiguousarray(texture[2 * number : 2 * number + 96, number : number + 96])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        output.mux(stream.encode(None))
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][15]
        at, length = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[at + length // 2 : at + length] = bytes(length - length // 2)
    path.write_bytes(bytes(data))
    return str(path)
