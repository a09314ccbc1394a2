"""Writes frames to H.264 mp4 files with PyAV (libx264), one key frame at each scene cut."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.frame import PictureType
from jaxtyping import UInt8

from stvl.core.errors import DataError
from stvl.data.toy.world import ToyOptions, rate


def write_video(
    path: str | Path, scenes: Iterable[UInt8[np.ndarray, "_ y x c"]], fps: float, options: ToyOptions
) -> int:
    """Encode `scenes` one after the other into `path` (mp4, H.264, yuv420p) and return the number of frames.

    The quantiser is constant (a rate control that looks at earlier frames would tell a frame's place in the scene) and
    B frames are off. With ``options.keyframe_every == 1`` each frame is coded by itself, and the decoded frames keep
    the exact mirror symmetry of the rendered ones.

    Raises:
        DataError: the encoder refused, or libx264 is missing from PyAV's FFmpeg.
    """
    step = {
        "preset": "veryfast",
        "qp": str(options.qp),
        "x264-params": f"scenecut=0:bframes=0:ipratio=1.0:threads=1:keyint={options.keyframe_every}:min-keyint=1",
    }
    count = 0
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=rate(fps), options=step)
            stream.width = stream.height = options.size
            stream.pix_fmt = "yuv420p"
            for scene in scenes:
                for index, picture in enumerate(scene):
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts = count
                    if index == 0:
                        frame.pict_type = PictureType.I
                    container.mux(stream.encode(frame))
                    count += 1
            container.mux(stream.encode(None))
    except (av.error.FFmpegError, ValueError) as problem:
        raise DataError(
            f"{path}: cannot write an H.264 video of {options.size} x {options.size}: {problem}"
        ) from problem
    return count
