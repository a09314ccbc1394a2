"""Annotation files: what is read, and errors that name file, row and column."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from stvl.core.config import from_dict, to_dict
from stvl.core.errors import DataError
from stvl.data.records import Clip
from stvl.data.sets.egomcq import read_questions
from stvl.data.sets.epic import read_epic, read_sentences
from stvl.data.sets.manifest import read_manifest
from stvl.data.sources import EpicSource, ManifestSource, find_videos

EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
    "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)
EPIC_ROWS = (
    "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,take plate,take,0,plate,2,['plate'],[2]",
    "P01_11_1,P01,P01_11,00:00:01.700,00:10:01.56,01:00:02.45,93,147,put plate,put,1,plate,2,"
    "\"['plate', 'cup']\",\"[2, 13, 2]\"",
)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def manifest(folder: Path, *rows: str, header: str = "path,start,end,text") -> Path:
    path = folder / "m.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_manifest(tmp_path):
    touch(tmp_path, "a.mp4", "sub/b.mkv")
    path = manifest(tmp_path, "a.mp4,0,1.5,a dog runs", 'sub/b.mkv,0:01,1:02:03.5,"a cat, asleep"')
    table = read_manifest(path)
    assert table.clips == (
        Clip(
            id="row 1", path=str(tmp_path / "a.mp4"), start=0.0, end=1.5, text="a dog runs", row=1, video="a"
        ),
        Clip(
            id="row 2",
            path=str(tmp_path / "sub/b.mkv"),
            start=1.0,
            end=3723.5,
            text="a cat, asleep",
            row=2,
            video="sub/b",
        ),
    )
    assert table.source == str(path)
    assert ManifestSource(csv=str(path)).load() == table


def test_manifest_with_another_root_order_of_columns_and_byte_order_mark(tmp_path):
    touch(tmp_path, "videos/a.mp4")
    path = manifest(tmp_path, "x,swims,2,1,a.mp4", header="\ufeffnote, text,end,start,path")
    (clip,) = ManifestSource(csv=str(path), root=str(tmp_path / "videos")).load().clips
    assert (clip.path, clip.start, clip.end, clip.text) == (str(tmp_path / "videos/a.mp4"), 1, 2, "swims")


def test_exclude_leaves_out_by_file_name(tmp_path):
    touch(tmp_path, "a.mp4")
    path = manifest(tmp_path, "gone.mp4,0,1,x", "a.mp4,0,1,y", "d/gone.mp4,0,1,z")
    table = ManifestSource(csv=str(path), exclude=("gone.mp4",)).load()
    assert [(clip.text, clip.row) for clip in table.clips] == [("y", 2)]
    with pytest.raises(DataError, match=r"no clip is left after leaving out a\.mp4, gone\.mp4"):
        read_manifest(path, exclude=("a.mp4", "gone.mp4"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.mp4,2,2,x", r"m\.csv, row 2: start 2 s is not before end 2 s"),
        ("a.mp4,3,2,x", r"m\.csv, row 2: start 3 s is not before end 2 s"),
        ("a.mp4,soon,2,x", r"m\.csv, row 2: start is a time .* found 'soon'"),
        ("a.mp4,0,nan,x", r"row 2: end is a time .* found 'nan'"),
        ("a.mp4,-1,2,x", r"row 2: start is a time .* >= 0, found '-1'"),
        ("a.mp4,0,1:2:3:4,x", r"row 2: end is a time"),
        ("a.mp4,0,1, ", r"row 2: text is empty"),
        (",0,1,x", r"row 2: path is empty"),
        ("gone.mp4,0,1,x", r"m\.csv, row 2: no video file .*gone\.mp4"),
        ("a.mp4,0,1", r"row 2: expected 4 fields, found 3"),
        ("a.mp4,0,1,cut, then eat", r"row 2: expected 4 fields, found more; put a text .* in double quotes"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, words):
    touch(tmp_path, "a.mp4")
    with pytest.raises(DataError, match=words):
        read_manifest(manifest(tmp_path, "a.mp4,0,1,fine", row))


def test_files_need_not_be_there_when_told_so(tmp_path):
    assert len(read_manifest(manifest(tmp_path, "gone.mp4,0,1,x"), check_files=False)) == 1


def test_a_missing_column_is_named_with_what_was_found(tmp_path):
    path = manifest(tmp_path, "a.mp4,0,1,x", header="path,start,stop,text")
    with pytest.raises(DataError, match=r"m\.csv: no column 'end'.*found: path, start, stop, text"):
        read_manifest(path)
    path = manifest(tmp_path, "a.mp4,0,1,x", header="path,start,ends,text")
    with pytest.raises(DataError, match=r"no column 'end' \(did you mean 'ends'\?\)"):
        read_manifest(path)


def test_files_that_are_no_table(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        read_manifest(tmp_path / "gone.csv")
    with pytest.raises(DataError, match="has a header and no row"):
        read_manifest(manifest(tmp_path))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match="found: nothing"):
        read_manifest(tmp_path / "empty.csv")
    (tmp_path / "latin.csv").write_bytes("path,start,end,text\na.mp4,0,1,caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        read_manifest(tmp_path / "latin.csv")


def epic(folder: Path, *rows: str, header: str = EPIC_HEADER) -> Path:
    path = folder / "epic.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_epic(tmp_path):
    touch(tmp_path, "videos/P01/P01_11.mp4")
    source = EpicSource(csv=str(epic(tmp_path, *EPIC_ROWS)), videos=str(tmp_path / "videos"))
    first, second = source.load().clips
    assert first == Clip(
        id="P01_11_0",
        path=str(tmp_path / "videos/P01/P01_11.mp4"),
        start=0.0,
        end=1.89,
        text="take plate",
        row=1,
        verb=0,
        nouns=(2,),
        video="P01_11",
    )
    assert (second.start, second.end, second.nouns, second.verb) == (601.56, 3602.45, (2, 13), 1)
    assert from_dict(to_dict(source)) == source


def test_epic_file_pattern(tmp_path):
    path = epic(tmp_path, *EPIC_ROWS)
    table = read_epic(path, "v", "{video_id}/rgb.{verb}.MP4", check_files=False)
    assert [clip.path for clip in table.clips] == ["v/P01_11/rgb.take.MP4", "v/P01_11/rgb.put.MP4"]
    with pytest.raises(
        DataError, match=r"row 1: the file pattern .* asks for 'video_uid' \(did you mean 'video_id'\?\)"
    ):
        read_epic(path, "v", "{video_uid}.mp4", check_files=False)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[2]", "__import__('os')", r"row 1: all_noun_classes is a list such as \[2, 5\], found"),
        ("[2]", "[two]", r"row 1: all_noun_classes is a list"),
        ("take,0,", "take,zero,", r"row 1: verb_class is a whole number, found 'zero'"),
        ("00:00:01.89", "00:00:00.00", r"row 1: start 0 s is not before end 0 s"),
        ("P01_11_0", "P01_11_1", r"row 2: the id 'P01_11_1' is taken by row 1"),
        ("take plate", " ", r"row 1: narration is empty"),
    ],
)
def test_epic_bad_rows(tmp_path, old, new, words):
    path = epic(tmp_path, EPIC_ROWS[0].replace(old, new), EPIC_ROWS[1])
    with pytest.raises(DataError, match=words):
        read_epic(path, "v", check_files=False)


def test_epic_missing_column_and_missing_video(tmp_path):
    with pytest.raises(DataError, match=r"no column 'all_noun_classes'.*did you mean 'noun_class'"):
        read_epic(epic(tmp_path, header=EPIC_HEADER.removesuffix(",all_noun_classes")), "v")
    with pytest.raises(DataError, match=r"epic\.csv, row 1: no video file .*P01_11\.mp4"):
        read_epic(epic(tmp_path, *EPIC_ROWS), tmp_path)


def test_sentences(tmp_path):
    path = epic(tmp_path, "P01_11_0,take plate", "P01_11_1,put down plate", header="narration_id,narration")
    assert read_sentences(path) == (("P01_11_0", "take plate"), ("P01_11_1", "put down plate"))
    with pytest.raises(DataError, match="row 2: the narration_id 'a' is there twice"):
        read_sentences(epic(tmp_path, "a,x", "a,y", header="narration_id,narration"))


def clip(uid: str, start: float, text: str) -> dict:
    return {
        "video_uid": uid,
        "clip_start": start,
        "clip_end": start + 1.5,
        "clip_text": text,
        "narration_ind": 4,
    }


INTER = {
    "answer": 3,
    "query": clip("d", 3, "#C C cuts the onion"),
    "choices": {str(index): clip(uid, index, f"text {uid}") for index, uid in enumerate("abcde")},
    "types": 1,
}
INTRA = {**INTER, "choices": {str(index): clip("a", 5 * index - 0.5, "t") for index in range(5)}, "types": 2}


def questions(folder: Path, *items: object) -> Path:
    path = folder / "egomcq.json"
    path.write_text(json.dumps({str(index): item for index, item in enumerate(items)}))
    return path


def test_questions(tmp_path):
    touch(tmp_path, *(f"{uid}.mp4" for uid in "abcde"))
    inter, intra = read_questions(questions(tmp_path, INTER, INTRA), tmp_path)
    assert (inter.id, inter.query, inter.answer, inter.kind, inter.stated_type) == (
        "0",
        "#C C cuts the onion",
        3,
        "inter",
        1,
    )
    assert inter.choices[3] == Clip(
        id="0/3", path=str(tmp_path / "d.mp4"), start=3.0, end=4.5, text="text d", row=1, video="d"
    )
    assert (intra.kind, intra.stated_type, intra.choices[0].start, intra.choices[0].end) == (
        "intra",
        2,
        0.0,
        1.0,
    )


def test_kind_is_decided_by_the_data_and_not_by_what_the_file_says(tmp_path):
    swapped = {**INTER, "types": 2}, {key: value for key, value in INTRA.items() if key != "types"}
    first, second = read_questions(questions(tmp_path, *swapped), "v", check_files=False)
    assert (first.kind, first.stated_type, second.kind, second.stated_type) == ("inter", 2, "intra", -1)


def without(item: dict, *path: str) -> dict:
    item = copy.deepcopy(item)
    inner = item
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return item


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (without(INTER, "answer"), r"question 0: 'answer' is missing"),
        (without(INTER, "query", "clip_text"), r"question 0, query: 'clip_text' is missing"),
        (without(INTER, "choices", "2"), r'question 0: choices are an object with the keys "0", "1"'),
        (without(INTER, "choices", "2", "video_uid"), r"question 0, choice 2: 'video_uid' is missing"),
        ({**INTER, "answer": 5}, r"question 0: answer 5 is not one of 5 choices"),
        ({**INTER, "answer": "x"}, r"question 0: answer is a number, found 'x'"),
        (
            {**INTER, "choices": {**INTER["choices"], "1": {**clip("b", 0, "t"), "clip_end": 0}}},
            r"choice 1: clip_start 0 s",
        ),
        ({**INTER, "query": clip("d", 3, " ")}, r"question 0: the query's clip_text is empty"),
        ([1], r"question 0: expected an object, found \[1\]"),
    ],
)
def test_bad_questions(tmp_path, item, words):
    with pytest.raises(DataError, match=words):
        read_questions(questions(tmp_path, item), "v", check_files=False)


def test_files_that_hold_no_questions(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json: no such file"):
        read_questions(tmp_path / "gone.json", "v")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x\.json: is not a JSON file"):
        read_questions(tmp_path / "x.json", "v")
    with pytest.raises(DataError, match="expected an object of questions"):
        read_questions(questions(tmp_path), "v")
    with pytest.raises(DataError, match=r"question 0, choice 0: no video file .*a\.mp4"):
        read_questions(questions(tmp_path, INTER), tmp_path)


def test_find_videos(tmp_path):
    touch(tmp_path, "b.MP4", "a.avi", "sub/c.mkv", "note.txt", ".hidden/d.mp4", "sub/.e.mp4")
    (tmp_path / "folder.mp4").mkdir()
    assert find_videos(tmp_path) == [tmp_path / "a.avi", tmp_path / "b.MP4", tmp_path / "sub/c.mkv"]
    with pytest.raises(DataError, match="gone: no such folder"):
        find_videos(tmp_path / "gone")
