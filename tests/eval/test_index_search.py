"""Indexes of folders, search, suppression of overlaps and contact sheets, on real video files."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from stvl.core.errors import ConfigError, DataError
from stvl.eval.index import Index, build_index
from stvl.eval.search import Hit, hits_table, search, temporal_iou
from stvl.eval.sheet import contact_sheet
from stvl.eval.windows import sliding_windows


@pytest.fixture(scope="module")
def clips(tmp_path_factory, video_writer):
    """Two videos of three seconds in folders, a third that is cut off, and a text file."""
    root = tmp_path_factory.mktemp("clips")
    video_writer(root / "a" / "one.mp4", [(0, 0), (1, 1), (2, 0)])
    video_writer(root / "two.mkv", [(2, 1), (0, 1), (1, 0)])
    video_writer(root / "cut.mp4", [(0, 0)])
    (root / "cut.mp4").write_bytes((root / "cut.mp4").read_bytes()[:300])
    (root / "notes.txt").write_text("no video")
    return root


@pytest.fixture(scope="module")
def index(clips, fake):
    return build_index(fake(), clips, window=1.0, stride=0.5, batch=4)


@pytest.mark.parametrize(
    ("duration", "window", "stride", "expected"),
    [
        (10.3, 4.0, 2.0, [(0, 4), (2, 6), (4, 8), (6, 10), (8, 10.3)]),
        (10.0, 4.0, 2.0, [(0, 4), (2, 6), (4, 8), (6, 10)]),
        (3.0, 4.0, 2.0, [(0, 3)]),
        (5.0, 1.0, 2.0, [(0, 1), (2, 3), (4, 5)]),
        (4.0, 1.0, 2.0, [(0, 1), (2, 3)]),
        (7.0, None, 2.0, [(0, 7)]),
    ],
)
def test_sliding_windows(duration, window, stride, expected):
    assert sliding_windows(duration, window, stride) == expected


def test_windows_cover_every_video_and_damage_is_listed(index, clips, fake):
    assert set(index.path) == {"a/one.mp4", "two.mkv"}
    starts = [float(s) for s, p in zip(index.start, index.path, strict=True) if p == "a/one.mp4"]
    assert starts == [0, 0.5, 1, 1.5, 2]
    assert [name for name, _ in index.skipped] == ["cut.mp4"]
    assert str(clips) not in index.skipped[0][1]
    assert index.card["window"] == 1.0 and index.card["stride"] == 0.5 and index.card["windows"] == "sliding"
    assert index.text == ("",) * len(index)


def test_every_batch_has_one_shape_and_progress_ends_at_the_total(clips, fake):
    encoders, told = fake(), []
    build_index(encoders, clips, 1.0, 0.5, lambda done, total: told.append((done, total)), batch=4)
    assert encoders.batches == [4, 4, 4]
    assert told == [(i, 10) for i in range(1, 11)]


def test_damage_in_the_middle_leaves_the_rest(clips, fake, tmp_path):
    class Failing:
        def probe(self, path):
            from stvl.data.decode import PyAVDecoder

            return PyAVDecoder().probe(path)

        def frames(self, path, times):
            from stvl.data.decode import DecodeError

            if path.endswith("two.mkv") and times[0] > 1:
                raise DecodeError(path, f"damaged at {times[0]:.2f}")
            return np.zeros((len(times), 20, 20, 3), np.uint8) + np.uint8(100)

    shutil.copy(clips / "two.mkv", tmp_path / "two.mkv")
    shutil.copy(clips / "a" / "one.mp4", tmp_path / "one.mp4")
    found = build_index(fake(), tmp_path, 1.0, 1.0, decoder=Failing(), batch=2)
    assert list(zip(found.path, found.start.tolist(), strict=True)) == [
        ("one.mp4", 0),
        ("one.mp4", 1),
        ("one.mp4", 2),
        ("two.mkv", 0),
    ]
    assert found.skipped == (("two.mkv", "2 of 3 windows: damaged at 1.12"),)


def test_search_finds_the_motion(index, fake):
    hits = search(index, fake(), "green darkens", top=3)
    assert (hits[0].path, hits[0].start, hits[0].end) == ("a/one.mp4", 1.0, 2.0)
    assert hits[0].score == pytest.approx(1, abs=0.01)
    other = search(index, fake(), "green brightens", top=1)[0]
    assert (other.path, other.start, other.end) == ("two.mkv", 2.0, 3.0)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def _index(windows, scores):
    """An index in which window i scores scores[i] for the query 'red'."""
    embeddings = np.zeros((len(scores), 5), np.float32)
    embeddings[:, 0] = np.array(scores) / (1 / np.sqrt(1.01))
    path, start, end = zip(*windows, strict=True)
    card = {"weights_sha256": "0" * 64, "positions": "rope", "frames": 4, "size": 16}
    times = np.array(start, np.float64), np.array(end, np.float64)
    return Index(
        embeddings=embeddings,
        path=path,
        start=times[0],
        end=times[1],
        text=("",) * len(path),
        skipped=(),
        folder="f",
        card=card,
    )


def test_suppression_drops_what_overlaps_a_better_window(fake):
    made = _index(
        [("a", 0, 4), ("a", 1, 5), ("a", 2, 6), ("b", 0, 4), ("a", 0, 4)], [0.9, 0.95, 0.8, 0.1, 0.2]
    )
    kept = [(hit.path, hit.start) for hit in search(made, fake(), "red")]
    # a 0-4 overlaps a 1-5 by 3/5 and goes, a 2-6 too by 3/5; b is another file.
    assert kept == [("a", 1.0), ("b", 0.0)]
    kept = [(hit.path, hit.start) for hit in search(made, fake(), "red", overlap=None)]
    assert kept == [("a", 1.0), ("a", 0.0), ("a", 2.0), ("a", 0.0), ("b", 0.0)]
    assert [hit.start for hit in search(made, fake(), "red", overlap=0.6)] == [1.0, 0.0, 2.0, 0.0]
    assert len(search(made, fake(), "red", top=1)) == 1


def test_temporal_iou():
    hit = Hit("a", 0.0, 4.0, 0.0)
    assert temporal_iou(hit, Hit("a", 2.0, 6.0, 0.0)) == pytest.approx(1 / 3)
    assert temporal_iou(hit, Hit("a", 4.0, 6.0, 0.0)) == 0
    assert temporal_iou(hit, Hit("b", 0.0, 4.0, 0.0)) == 0


def test_search_refuses(index, fake):
    with pytest.raises(ConfigError, match="the query is empty"):
        search(index, fake(), "  ")
    with pytest.raises(ConfigError, match="top is 0"):
        search(index, fake(), "red", top=0)
    with pytest.raises(
        ConfigError, match=r"weights_sha256 '0000.*, the model has 'ffff.*build the index again"
    ):
        search(index, fake(weights="f" * 64), "red")
    with pytest.raises(ConfigError, match="made with positions 'rope', the model has 'none'"):
        search(index, fake(blind=True), "red")


def test_an_index_survives_a_file(index, fake, tmp_path):
    index.save(tmp_path / "deep" / "index.npz")
    back = Index.load(tmp_path / "deep" / "index.npz")
    np.testing.assert_array_equal(back.embeddings, index.embeddings)
    np.testing.assert_array_equal(back.start, index.start)
    assert (back.path, back.text, back.skipped, back.folder) == (
        index.path,
        index.text,
        index.skipped,
        index.folder,
    )
    assert back.card == index.card
    assert search(back, fake(), "red brightens") == search(index, fake(), "red brightens")


def test_damaged_index_files_are_refused(index, tmp_path):
    path = tmp_path / "index.npz"
    with pytest.raises(DataError, match="there is no such file"):
        Index.load(path)
    path.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match="does not hold an index of stvl search"):
        Index.load(path)
    np.savez(path, embeddings=np.zeros((2, 5), np.float32))
    with pytest.raises(DataError, match=r"does not hold an index of stvl search: .*about"):
        Index.load(path)
    index.save(path)
    with np.load(path) as arrays:
        short = {name: arrays[name] for name in arrays.files} | {"start": np.zeros(3)}
    np.savez(path, **short)
    with pytest.raises(DataError, match="its columns have different lengths"):
        Index.load(path)


def test_manifest_windows(clips, fake, tmp_path, csv_writer):
    shutil.copytree(clips, tmp_path, dirs_exist_ok=True)
    rows = [["path", "start", "end", "text"], ["two.mkv", 0.5, 2, "first"], ["a/one.mp4", 2, 3, "second"]]
    csv_writer(tmp_path / "captions.csv", rows)
    csv_writer(tmp_path / "other.csv", [["name"], ["x"]])
    made = build_index(fake(), tmp_path, windows="manifest")
    assert made.path == ("two.mkv", "a/one.mp4") and made.text == ("first", "second")
    assert made.start.tolist() == [0.5, 2] and made.end.tolist() == [2, 3]
    assert made.card["windows"] == "manifest"
    assert build_index(fake(), tmp_path, windows=str(tmp_path / "captions.csv")).path == made.path
    assert search(made, fake(), "blue brightens")[0].text == "second"
    csv_writer(tmp_path / "again.csv", rows)
    with pytest.raises(DataError, match=r"needs one CSV .* found again.csv, captions.csv"):
        build_index(fake(), tmp_path, windows="manifest")
    with pytest.raises(
        ConfigError, match="windows are 'sliding', 'manifest' or the path of a CSV, found 'slide'"
    ):
        build_index(fake(), tmp_path, windows="slide")


def test_folders_without_anything_to_index_are_refused(fake, tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        build_index(fake(), tmp_path / "none")
    with pytest.raises(DataError, match="there are no videos under"):
        build_index(fake(), tmp_path)
    (tmp_path / "x.mp4").write_bytes(b"no video at all")
    with pytest.raises(DataError, match=r"not one window .* could be decoded \(1 files\): x.mp4: cannot"):
        build_index(fake(), tmp_path)
    for wrong in ({"window": 0.0}, {"stride": -1.0}):
        with pytest.raises(ConfigError, match="seconds above 0"):
            build_index(fake(), tmp_path, **wrong)
    with pytest.raises(ConfigError, match="batch is at least 1"):
        build_index(fake(), tmp_path, batch=0)


def test_table_shows_rank_file_times_and_score():
    out = Console(file=io.StringIO(), width=100)
    out.print(
        hits_table(
            [
                Hit("a/one.mp4", 1.0, 2.25, 0.987),
                Hit("two.mkv", 0.0, 1.0, -0.1, "a text"),
                Hit("x [1].mp4", 0.0, 1.0, 0.0),
            ],
            "green darkens",
        )
    )
    lines = out.file.getvalue().splitlines()
    assert "green darkens" in lines[0]
    assert any("1" in line and "a/one.mp4" in line and "2.2" in line and "0.987" in line for line in lines)
    assert any("x [1].mp4" in line for line in lines)
    assert any("two.mkv" in line and "-0.100" in line and "a text" in line for line in lines)


def test_contact_sheet_shows_the_frames(index, fake, tmp_path):
    hits = search(index, fake(), "green darkens", top=2)
    contact_sheet(tmp_path / "sheet.png", hits, index.folder, "green darkens", columns=3, height=40)
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # Rows of 28 for the query, 20 for a caption: the first strip starts at y = 36 + 20, x = 8, 42 apart.
    strip = [pixels[56 + 20, 8 + 42 * column + 20] for column in range(3)]
    assert all(green > red + 50 and green > blue + 50 for red, green, blue in strip)
    assert strip[0][1] > strip[1][1] > strip[2][1]
    assert (pixels[36:56, 8:200] < 100).any(), "no caption"


def test_contact_sheet_cuts_long_captions_and_refuses(index, tmp_path):
    hit = Hit("two.mkv", 0.0, 1.0, 0.5, "a very long text " * 40)
    contact_sheet(tmp_path / "sheet.png", [hit], index.folder, columns=1, height=30)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (360 + 16, 8 + 30 + 20 + 8)
    with pytest.raises(ConfigError, match="a sheet needs hits"):
        contact_sheet(tmp_path / "no.png", [], index.folder)
    with pytest.raises(DataError, match=r"contact sheet: gone.mp4 at 0.0 s: .*no such file"):
        contact_sheet(tmp_path / "no.png", [Hit("gone.mp4", 0.0, 1.0, 0.5)], index.folder)
    assert not (tmp_path / "no.png").exists()
