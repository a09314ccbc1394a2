"""The frame shown at a time, in every container, and errors that name the file."""

from __future__ import annotations

import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stvl.core.config import from_dict, to_dict
from stvl.data.decode import DecodeError, PyAVDecoder

DECODER = PyAVDecoder()

#: name, frames, fps, options of `write_video`
KINDS = {
    "h264.mp4": (48, 24, {}),
    "open_gop.mp4": (48, 24, {"options": {"x264-params": "open-gop=1:keyint=12:bframes=3"}}),
    "one_keyframe.mp4": (48, 30, {"options": {"g": "1000"}}),
    "h264.mkv": (48, 25, {}),
    "transport.ts": (48, 25, {}),
    "mpeg4.avi": (48, 25, {"codec": "mpeg4"}),
    "h264.avi": (48, 25, {}),
    "mpeg4_b.avi": (48, 25, {"codec": "mpeg4", "options": {"bf": "2"}}),
    "mpeg4.mp4": (48, 30, {"codec": "mpeg4", "options": {"bf": "2"}}),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_frame_n_is_shown_from_n_over_fps(name, threads, tmp_path, write_video, read_numbers):
    frames, fps, options = KINDS[name]
    path = str(write_video(tmp_path / name, frames, fps, **options))
    asked = [0, 1, 2, 11, 12, 13, 23, 24, 30, 46, 47]
    # Matroska rounds times to milliseconds: look just after the frame appears and in its middle.
    for offset in (0.05, 0.5):
        times = (np.array(asked) + offset) / fps
        assert read_numbers(PyAVDecoder(threads=threads).frames(path, times)) == asked


@pytest.mark.parametrize("name", KINDS)
def test_every_single_frame_together_and_alone(name, tmp_path, write_video, read_numbers):
    frames, fps, options = KINDS[name]
    path = str(write_video(tmp_path / name, frames, fps, **options))
    assert read_numbers(DECODER.frames(path, (np.arange(frames) + 0.5) / fps)) == list(range(frames))
    for number in range(0, frames, 5):
        assert read_numbers(DECODER.frames(path, np.array([(number + 0.5) / fps]))) == [number]


@pytest.mark.parametrize("name", ["exact.mp4", "milliseconds.mkv"])
def test_the_very_time_of_a_frame_shows_that_frame(name, tmp_path, write_video, read_numbers):
    """Matroska rounds 2/30 s up to 67 ms, so that the frame would begin after its own time."""
    path = str(write_video(tmp_path / name, 48, 30))
    assert read_numbers(DECODER.frames(path, np.arange(48) / 30)) == list(range(48))


@given(st.lists(st.floats(-1.0, 10.2), min_size=1, max_size=8))
@settings(max_examples=40)
def test_any_times_in_any_order(long_video, read_numbers, times):
    expected = [min(max(int(np.floor(time * 24 + 1e-2)), 0), 239) for time in times]
    near = [abs(time * 24 - round(time * 24)) < 2e-2 for time in times]
    found = read_numbers(DECODER.frames(long_video, np.array(times)))
    for want, got, tie in zip(expected, found, near, strict=True):
        assert want == got or (tie and abs(want - got) == 1)


def test_before_the_first_and_just_beyond_the_last(video, read_numbers):
    assert read_numbers(DECODER.frames(video, np.array([-3.0, 2.0, 2.4]))) == [0, 47, 47]


def test_beyond_the_tolerance_is_refused(video):
    with pytest.raises(
        DecodeError, match=r"numbered\.mp4: asked for 2\.60 s of a video whose pictures end at 2\.00 s"
    ):
        DECODER.frames(video, np.array([0.1, 2.6]))
    with pytest.raises(DecodeError, match=r"asked for 2\.10 s"):
        PyAVDecoder(tolerance=0.05).frames(video, np.array([2.1]))


def test_variable_frame_rate(tmp_path, write_video, read_numbers):
    ticks = [0, 1, 2, 30, 31, 60, 61, 62, 100]
    path = str(write_video(tmp_path / "vfr.mp4", len(ticks), 24, ticks=ticks))
    times = np.array([0.5, 2.9, 29.9, 30.5, 45, 59.9, 60.5, 99, 100.5]) / 24
    assert read_numbers(DECODER.frames(path, times)) == [0, 2, 2, 3, 4, 4, 5, 7, 8]


def test_times_count_from_the_first_picture_of_a_late_stream(tmp_path, write_video, read_numbers):
    path = str(write_video(tmp_path / "late.mkv", 24, 24, ticks=[240 + number for number in range(24)]))
    assert read_numbers(DECODER.frames(path, np.array([0.02, 0.52]))) == [0, 12]


def test_far_jumps_in_matroska_do_not_need_the_index(tmp_path, write_video, read_numbers):
    path = str(write_video(tmp_path / "far.mkv", 256, 8))
    assert read_numbers(DECODER.frames(path, np.array([30.05, 0.05, 15.05]))) == [240, 0, 120]


def test_colours_survive(tmp_path):
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        red = np.full((32, 48, 3), (200, 40, 90), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        container.mux(stream.encode(None))
    out = DECODER.frames(str(path), np.array([0.0]))
    assert out.shape == (1, 32, 48, 3) and out.dtype == np.uint8
    assert np.abs(out.astype(int) - [200, 40, 90]).max() <= 4


def test_display_rotation_is_obeyed(tmp_path, write_video):
    plain = DECODER.frames(str(write_video(tmp_path / "a.mp4", 4)), np.array([0.1]))
    turned = DECODER.frames(str(write_video(tmp_path / "b.mp4", 4, turn=90)), np.array([0.1]))
    # A display rotation of 90 degrees is counter-clockwise, as np.rot90 is.
    assert np.array_equal(turned[0], np.rot90(plain[0]))


def test_short_side_shrinks_and_never_enlarges(video):
    assert PyAVDecoder(short_side=16).frames(video, np.array([0.1])).shape == (1, 16, 16, 3)
    assert PyAVDecoder(short_side=64).frames(video, np.array([0.1])).shape == (1, 32, 32, 3)


def test_probe(video, tmp_path, write_video):
    info = DECODER.probe(video)
    assert (info.fps, info.width, info.height, info.frames) == (24, 32, 32, 48)
    assert info.duration == pytest.approx(2.0, abs=1e-3)
    counted = DECODER.probe(str(write_video(tmp_path / "a.mkv", 50, 25)))
    assert counted.frames == 50 and counted.duration == pytest.approx(2.0, abs=0.01)


def test_scan_counts_every_picture(video, damaged_video):
    assert DECODER.scan(video) == 48
    with pytest.raises(DecodeError, match=r"damaged\.mp4"):
        DECODER.scan(damaged_video)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(DecodeError, match=r"gone\.mp4: no such file"):
        DECODER.probe(str(tmp_path / "gone.mp4"))
    with pytest.raises(DecodeError, match=r"is a folder"):
        DECODER.frames(str(tmp_path), np.array([0.0]))
    text = tmp_path / "text.mp4"
    text.write_text("this is no video" * 50)
    with pytest.raises(DecodeError, match=r"text\.mp4: cannot be decoded \(Invalid data"):
        DECODER.probe(str(text))
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DecodeError, match=r"empty\.mp4: cannot be decoded"):
        DECODER.probe(str(tmp_path / "empty.mp4"))


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DecodeError, match=r"sound\.mp4: has no video stream \(found: audio\)"):
        DECODER.frames(str(path), np.array([0.0]))


def test_noise_in_place_of_pictures(damaged_video):
    assert DECODER.probe(damaged_video).frames == 48
    with pytest.raises(DecodeError, match=r"damaged\.mp4: .*(Invalid data|is damaged|holds no picture)"):
        DECODER.frames(damaged_video, np.array([1.0]))


def test_concealed_damage_is_not_handed_out(concealed_video):
    """FFmpeg paints over what it cannot decode; pictures predicted from that are wrong until the next keyframe."""
    assert len(DECODER.frames(concealed_video, np.array([0.1, 14.5 / 30]))) == 2
    for number in (15, 16, 23):
        with pytest.raises(
            DecodeError, match=r"concealed\.mp4: the picture at 0\.50 s is damaged \(asked for "
        ):
            DECODER.frames(concealed_video, np.array([0.1, (number + 0.5) / 30]))
    # Frame 24 is a keyframe: reached by decoding through the damage here, and by seeking there.
    assert len(DECODER.frames(concealed_video, np.array([24.5 / 30]))) == 1
    assert len(DECODER.frames(concealed_video, np.array([0.1, 26.5 / 30]))) == 2
    with pytest.raises(DecodeError, match=r"concealed\.mp4: the picture at 0\.50 s is damaged"):
        DECODER.scan(concealed_video)


def test_damage_in_one_group_spoils_that_group_only(tmp_path, write_video, read_numbers):
    path = write_video(tmp_path / "hurt.mp4", 48, 24, size=64)
    with av.open(str(path)) as container:
        packets = [(p.pts, p.pos, p.size) for p in container.demux(video=0) if p.size]
    _, at, length = sorted(packets, key=lambda packet: packet[0] or 0)[12]
    data = bytearray(path.read_bytes())
    data[at + length // 2 : at + length] = bytes(length - length // 2)
    path.write_bytes(bytes(data))
    assert read_numbers(DECODER.frames(str(path), np.array([0.2, 1.3]))) == [4, 31]
    with pytest.raises(DecodeError, match=r"hurt\.mp4: "):
        DECODER.frames(str(path), np.array([18.5 / 24]))


def test_cut_off_file(tmp_path, write_video, read_numbers):
    path = write_video(tmp_path / "cut.mp4", 240, 24, options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - (len(data) - data.index(b"mdat")) // 2])
    assert read_numbers(DECODER.frames(str(path), np.array([1.02]))) == [24]
    with pytest.raises(DecodeError, match=r"cut\.mp4: "):
        DECODER.frames(str(path), np.array([9.5]))


def test_file_without_its_header(tmp_path, write_video):
    path = Path(write_video(tmp_path / "headless.mp4"))
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"moov") - 4])
    with pytest.raises(DecodeError, match=r"headless\.mp4: cannot be decoded"):
        DECODER.probe(str(path))


@pytest.mark.parametrize("times", [[], [float("nan")], [0.1, float("inf")]])
def test_times_must_be_numbers(video, times):
    with pytest.raises(DecodeError, match="finite times"):
        DECODER.frames(video, np.array(times, np.float64))


def test_errors_and_decoders_travel_between_processes():
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "broken")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "broken", "a.mp4: broken")
    decoder = PyAVDecoder(threads=3, short_side=64)
    assert from_dict(to_dict(decoder)) == decoder == pickle.loads(pickle.dumps(decoder))
