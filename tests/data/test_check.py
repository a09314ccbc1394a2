"""Every bad file is named with its reason, every good one is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stvl.core.errors import DataError
from stvl.data.check import check_folder, check_table
from stvl.data.decode import PyAVDecoder
from stvl.data.records import Clip, ClipTable


def clip(path: str, start: float, end: float, row: int) -> Clip:
    return Clip(id=f"row {row}", path=path, start=start, end=end, text="x", row=row)


def test_a_sound_table(video, long_video):
    table = ClipTable(
        (clip(video, 0.0, 2.0, 1), clip(long_video, 9.0, 10.03, 2), clip(video, 1.0, 1.5, 3)), "x.csv"
    )
    seen: list[tuple[int, int]] = []
    report = check_table(table, progress=lambda done, total: seen.append((done, total)))
    assert report.ok and report.good == tuple(sorted((video, long_video))) and report.bad == ()
    assert seen == [(1, 2), (2, 2)]


def test_each_problem_is_named_with_its_row(video, damaged_video, tmp_path):
    gone = str(tmp_path / "gone.mp4")
    table = ClipTable(
        (
            clip(video, 0.0, 1.0, 1),
            clip(video, 1.0, 2.5, 2),
            clip(video, 0.5, 0.51, 3),
            clip(gone, 0.0, 1.0, 4),
            clip(damaged_video, 0.0, 1.0, 5),
            clip(damaged_video, 1.0, 2.0, 6),
        ),
        "x.csv",
    )
    report = check_table(table)
    assert not report.ok and report.good == ()
    found = {(Path(problem.path).name, problem.row): problem.reason for problem in report.bad}
    assert set(found) == {("numbered.mp4", 2), ("numbered.mp4", 3), ("gone.mp4", 4), ("damaged.mp4", 5)}
    assert found["numbered.mp4", 2] == "the clip ends at 2.50 s, the video at 2.00 s"
    assert "shorter than one frame" in found["numbered.mp4", 3]
    assert found["gone.mp4", 4] == "no such file"
    assert found["damaged.mp4", 5].endswith("(and 1 more clips of this file)")
    assert str(report.bad[0]).startswith(f"{report.bad[0].path} (row {report.bad[0].row}): ")


def test_folder_checks_files_that_no_row_names_and_rows_without_a_file(
    video, long_video, damaged_video, tmp_path
):
    for source, name in [(video, "a.mp4"), (long_video, "sub/b.mp4"), (damaged_video, "c.mp4")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / name)
    report = check_folder(tmp_path)
    assert [Path(path).name for path in report.good] == ["a.mp4", "b.mp4"]
    assert [(Path(problem.path).name, problem.row) for problem in report.bad] == [("c.mp4", 0)]
    assert "(row" not in str(report.bad[0])
    (tmp_path / "captions.csv").write_text("path,start,end,text\na.mp4,0,3,x\nd.mp4,0,1,y\n")
    report = check_folder(tmp_path)
    assert [Path(path).name for path in report.good] == ["b.mp4"]
    assert [(Path(problem.path).name, problem.row) for problem in report.bad] == [
        ("a.mp4", 1),
        ("c.mp4", 0),
        ("d.mp4", 2),
    ]


@pytest.mark.parametrize("wrap", [False, True])
def test_deep_finds_damage_between_the_pictures_looked_at(tmp_path, write_video, wrap):
    import av

    path = write_video(tmp_path / "hurt.mp4", 240, 24, size=64)
    with av.open(str(path)) as container:
        packets = [(p.pts, p.pos, p.size) for p in container.demux(video=0) if p.size]
    _, at, length = sorted(packets, key=lambda packet: packet[0] or 0)[60]
    data = bytearray(path.read_bytes())
    data[at + length // 2 : at + length] = bytes(length - length // 2)
    path.write_bytes(bytes(data))
    decoder = Wrapped() if wrap else PyAVDecoder()
    assert check_folder(tmp_path, decoder).ok
    report = check_folder(tmp_path, decoder, deep=True)
    assert [Path(problem.path).name for problem in report.bad] == ["hurt.mp4"]


class Wrapped:
    """A decoder of another kind, which has no scan of its own."""

    def probe(self, path):
        return PyAVDecoder().probe(path)

    def frames(self, path, times):
        return PyAVDecoder().frames(path, times)


def test_nothing_to_check(tmp_path):
    with pytest.raises(DataError, match="no video file"):
        check_folder(tmp_path)
    with pytest.raises(DataError, match="gone: no such folder"):
        check_folder(tmp_path / "gone")
    (tmp_path / "manifest.csv").write_text("path,begin,end,text\na.mp4,0,1,x\n")
    with pytest.raises(DataError, match=r"manifest\.csv: no column 'start'"):
        check_folder(tmp_path)
