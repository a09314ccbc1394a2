"""Readers of recognition and caption lists, on files of the published formats that the tests write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stvl.core.errors import DataError
from stvl.data.sets.actions import read_kinetics, read_label_list, read_something
from stvl.data.sets.charades import read_charades, read_charades_actions, read_charades_classes
from stvl.data.sets.epic_recognition import read_epic_actions, read_epic_classes, read_epic_column
from stvl.data.sets.labelled import Entry, Labelled, read_class_names, whole_files
from stvl.data.sets.msrvtt import read_caption_list, read_msrvtt

CHARADES = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length,egocentric,charades_video"
CHARADES_ROWS = (
    'AB12CEGO,HJ,Kitchen,6,7,Yes,"A person, at a table.",food,eats,c092 11.90 21.20;c147 0.00 12.60;c092 1.0 2.0,'
    "30.00,Yes,AB12C",
    "XY34ZEGO,HJ,Hall,6,7,Yes,Nothing.,,stands,,12.50,Yes,XY34Z",
    "AB12C,HJ,Kitchen,6,7,Yes,The same.,food,eats,c000 3.00 3.00;c156 5.00 9.00,29.00,No,",
)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def ten(path: str) -> float:
    return 10.0


@pytest.fixture
def charades(tmp_path):
    classes = [f"c{i:03d} Doing thing number {i}" for i in range(157)]
    return (
        write(tmp_path / "CharadesEgo_v1_test.csv", CHARADES, *CHARADES_ROWS),
        write(tmp_path / "Charades_v1_classes.txt", *classes),
    )


def test_charades_reads_a_set_of_classes_a_video(charades):
    found = read_charades(charades[0], "videos", charades[1], check_files=False)
    assert [clip.id for clip in found.table.clips] == ["AB12CEGO", "XY34ZEGO"]
    assert found.labels == ((92, 147), ())
    assert (found.table[0].path, found.table[0].start, found.table[0].end) == (
        "videos/AB12CEGO.mp4",
        0.0,
        30.0,
    )
    assert len(found.names) == 157 and found.names[92] == "Doing thing number 92"
    third = read_charades(charades[0], "videos", charades[1], view="third", check_files=False)
    assert third.labels == ((0, 156),)
    both = read_charades(charades[0], "videos", charades[1], view="both", check_files=False)
    assert len(both.table) == 3


def test_charades_without_the_column_goes_by_the_ids(charades, tmp_path):
    short = [",".join([CHARADES.rsplit(",", 2)[0]])] + [row.rsplit(",", 2)[0] for row in CHARADES_ROWS]
    found = read_charades(write(tmp_path / "x.csv", *short), "v", charades[1], check_files=False)
    assert [clip.id for clip in found.table.clips] == ["AB12CEGO", "XY34ZEGO"]


def test_charades_actions_are_clips_with_hard_labels(charades):
    table = read_charades_actions(charades[0], "v", charades[1], view="both", check_files=False)
    # The action of no length is left out.
    assert [(c.id, c.start, c.end, c.verb, c.nouns) for c in table.clips] == [
        ("AB12CEGO/0", 11.9, 21.2, 92, (92,)),
        ("AB12CEGO/1", 0.0, 12.6, 147, (147,)),
        ("AB12CEGO/2", 1.0, 2.0, 92, (92,)),
        ("AB12C/1", 5.0, 9.0, 156, (156,)),
    ]
    assert table[1].text == "Doing thing number 147"


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ("c092 11.90", "an action reads like 'c092 11.90 21.20', found 'c092 11.90'"),
        ("c157 1.0 2.0", "class c157 is not one of 157 classes"),
        ("c001 1.2.3 2.0", "an action's times are seconds"),
    ],
)
def test_charades_refuses_actions(charades, tmp_path, actions, message):
    file = write(tmp_path / "x.csv", "id,actions,length,egocentric", f"A,{actions},10,Yes")
    with pytest.raises(DataError, match=rf"x.csv, row 1: {message}"):
        read_charades(file, "v", charades[1], check_files=False)


def test_charades_refuses_files(charades, tmp_path):
    with pytest.raises(DataError, match=r"row 1: no video file v/AB12CEGO.mp4"):
        read_charades(charades[0], "v", charades[1])
    few = write(tmp_path / "few.txt", "c000 Holding", "c001 Putting")
    with pytest.raises(DataError, match=r"Charades has 157 classes, found 2"):
        read_charades_classes(few)
    with pytest.raises(DataError, match=r"no row is of the view 'third'"):
        read_charades(
            write(tmp_path / "x.csv", "id,actions,length", "AEGO,,3"), "v", charades[1], view="third"
        )
    with pytest.raises(DataError, match=r"egocentric is Yes or No, found 'maybe'"):
        read_charades(
            write(tmp_path / "y.csv", "id,actions,length,egocentric", "A,,3,maybe"), "v", charades[1]
        )


def test_epic_actions(tmp_path):
    from tests.data.test_sets import EPIC_HEADER, EPIC_ROWS

    file = write(tmp_path / "EPIC_100_validation.csv", EPIC_HEADER, *EPIC_ROWS)
    found = read_epic_actions(file, "v", check_files=False)
    assert found.verbs.tolist() == [0, 1] and found.nouns.tolist() == [2, 2]
    assert found.participants == ("P01", "P01")
    assert found.table[1].path == "v/P01/P01_11.mp4"


def test_epic_classes_are_read_as_people_say_them(tmp_path):
    rows = ("id,key,instances,category", "0,put-down,\"['put']\",leave", "1,maker:coffee,[],x", "2,lid,[],x")
    assert read_epic_classes(write(tmp_path / "v.csv", *rows)) == ("put down", "coffee maker", "lid")
    with pytest.raises(DataError, match=r"row 2: ids run 0, 1, 2, ...; expected 1, found 5"):
        read_epic_classes(write(tmp_path / "w.csv", rows[0], rows[1], "5,x,[],y"))
    assert read_epic_column(write(tmp_path / "u.csv", "participant_id", "P18", "P32"), "participant_id") == (
        "P18",
        "P32",
    )


KINETICS = (
    "label,youtube_id,time_start,time_end,split,is_cc",
    "abseiling,-3B32lodo2M,59,69,val,0",
    '"air drumming",_dbcJuKJQNs,40,50,val,0',
    "abseiling,0wR5jVB-WPk,417,427,val,0",
)


def test_kinetics_names_padded_files_and_sorts_labels(tmp_path):
    found = read_kinetics(write(tmp_path / "val.csv", *KINETICS), "v", duration=ten)
    assert found.names == ("abseiling", "air drumming")
    assert found.labels == ((0,), (1,), (0,))
    assert found.table[1].path == "v/air drumming/_dbcJuKJQNs_000040_000050.mp4"
    assert (found.table[0].id, found.table[0].end) == ("-3B32lodo2M_59", 10.0)
    classes = write(tmp_path / "classes.txt", "air drumming", "zumba", "abseiling")
    other = read_kinetics(tmp_path / "val.csv", "v", classes, "{split}/{youtube_id}.mp4", duration=ten)
    assert other.labels == ((2,), (0,), (2,)) and other.table[0].path == "v/val/-3B32lodo2M.mp4"
    with pytest.raises(DataError, match=r"row 2: there is no class 'air drumming' \(did you mean 'air drum'"):
        read_kinetics(
            tmp_path / "val.csv", "v", write(tmp_path / "c.txt", "air drum", "abseiling"), duration=ten
        )


def test_missing_files_are_refused_or_named(tmp_path):
    file = write(tmp_path / "val.csv", *KINETICS)
    there = tmp_path / "abseiling" / "-3B32lodo2M_000059_000069.mp4"
    there.parent.mkdir()
    there.touch()
    with pytest.raises(DataError, match=r"row 2: no video file .*_dbcJuKJQNs_000040_000050.mp4"):
        read_kinetics(file, tmp_path)
    found = read_kinetics(file, tmp_path, leave_out_missing=True, duration=ten)
    assert len(found.table) == 1 and found.names == ("abseiling", "air drumming")
    assert found.missing == ("_dbcJuKJQNs_000040_000050.mp4", "0wR5jVB-WPk_000417_000427.mp4")
    with pytest.raises(DataError, match=r"none of its 3 files is there"):
        read_kinetics(file, tmp_path / "no", leave_out_missing=True)
    with pytest.raises(DataError, match=r"000069.mp4"):  # an empty file is no video
        read_kinetics(file, tmp_path, leave_out_missing=True)


def something(folder: Path) -> tuple[Path, Path]:
    labels = {"Holding something next to something": "1", "Closing something": "0"}
    entries = [
        {
            "id": "78687",
            "label": "holding potato next to a bottle",
            "template": "Holding [something] next to [something]",
            "placeholders": ["potato", "a bottle"],
        },
        {
            "id": "42326",
            "label": "closing a door",
            "template": "Closing [something]",
            "placeholders": ["a door"],
        },
    ]
    (folder / "v2-labels.json").write_text(json.dumps(labels))
    (folder / "v2-validation.json").write_text(json.dumps(entries))
    return folder / "v2-validation.json", folder / "v2-labels.json"


def test_something_takes_the_class_from_the_template(tmp_path):
    entries, labels = something(tmp_path)
    found = read_something(entries, labels, "v", duration=ten)
    assert found.labels == ((1,), (0,))
    assert found.names == ("Closing something", "Holding something next to something")
    assert (found.table[0].path, found.table[0].text) == ("v/78687.webm", "holding potato next to a bottle")
    bad = json.loads(entries.read_text())
    bad[1]["template"] = "Closin [something]"
    entries.write_text(json.dumps(bad))
    with pytest.raises(
        DataError, match=r"entry 2: there is no class 'Closin something' .*mean 'Closing something'"
    ):
        read_something(entries, labels, "v", duration=ten)
    del bad[0]["template"]
    entries.write_text(json.dumps(bad))
    with pytest.raises(DataError, match=r"entry 1: 'template' is missing"):
        read_something(entries, labels, "v", duration=ten)
    labels.write_text('{"a": "0", "b": "2"}')
    with pytest.raises(DataError, match=r"the classes are numbered 0 to 1, each number once"):
        read_something(entries, labels, "v", duration=ten)
    labels.write_text('{"Closing something": "0"}')
    with pytest.raises(DataError, match=r"expected a list with entries, found dict"):
        read_something(labels, labels, "v", duration=ten)


def test_label_lists_with_spaces_or_commas(tmp_path):
    classes = write(tmp_path / "c.txt", "a", "b", "c")
    spaces = write(tmp_path / "s.txt", "dir/one video.mp4 2", "two.mp4 0")
    found = read_label_list(spaces, "v", classes, duration=ten)
    assert found.labels == ((2,), (0,)) and found.table[0].path == "v/dir/one video.mp4"
    commas = write(tmp_path / "k.csv", "one.mp4,1", "two.mp4, 1")
    assert read_label_list(commas, "v", classes, duration=ten).labels == ((1,), (1,))
    with pytest.raises(DataError, match=r"line 1: expected 'path label' with a number, found 'one.mp4'"):
        read_label_list(write(tmp_path / "x", "one.mp4"), "v", classes, duration=ten)
    with pytest.raises(DataError, match=r"row 1: class 3 is not one of 3 classes"):
        read_label_list(write(tmp_path / "y", "one.mp4 3"), "v", classes, duration=ten)
    with pytest.raises(DataError, match=r"the id 'one.mp4' is taken by row 1"):
        read_label_list(write(tmp_path / "z", "one.mp4 0", "one.mp4 1"), "v", classes, duration=ten)


def test_class_names(tmp_path):
    assert read_class_names(write(tmp_path / "a", "0 run", "1 jump up")) == ("run", "jump up")
    assert read_class_names(write(tmp_path / "b", "3 balls", "7 wonders")) == ("3 balls", "7 wonders")
    with pytest.raises(DataError, match=r"line 2: the class 'run' is there twice, first in 1"):
        read_class_names(write(tmp_path / "c", "run", "run"))
    with pytest.raises(DataError, match=r"line 2: is empty"):
        read_class_names(write(tmp_path / "d", "run", "", "jump"))
    with pytest.raises(DataError, match=r"no such file"):
        read_class_names(tmp_path / "none")


def test_labels_and_clips_go_together():
    entries = [Entry(1, "a", "a.mp4", 0)]
    table = whole_files(entries, ("x",), "s", duration=ten).table
    with pytest.raises(DataError, match=r"s: 1 clips with 2 sets of labels"):
        Labelled(table, ((0,), (0,)), ("x",))


def test_caption_list_of_1k_a(tmp_path):
    rows = ("key,vid_key,video_id,sentence", "ret0,msr9770,video9770,a person is connecting something")
    file = write(
        tmp_path / "t.csv", *rows, 'ret1,msr9771,video9771,"a man, talking"', "ret2,msr9770,video9770,again"
    )
    found = read_caption_list(file, "v", duration=ten)
    assert [clip.path for clip in found.table.clips] == ["v/video9770.mp4", "v/video9771.mp4"]
    assert found.texts == ("a person is connecting something", "a man, talking", "again")
    assert found.video == (0, 1, 0)
    with pytest.raises(DataError, match=r"row 1: no video file v/video9770.mp4"):
        read_caption_list(file, "v")


def test_msrvtt_takes_all_captions_of_a_split(tmp_path):
    data = {
        "videos": [
            {
                "video_id": "video0",
                "split": "train",
                "category": 9,
                "start time": 1.0,
                "end time": 2.0,
                "id": 0,
            },
            {"video_id": "video2", "split": "test", "category": 1, "id": 2},
            {"video_id": "video1", "split": "test", "category": 1, "id": 1},
        ],
        "sentences": [
            {"caption": "one", "video_id": "video1", "sen_id": 0},
            {"caption": "no", "video_id": "video0", "sen_id": 1},
            {"caption": "two", "video_id": "video2", "sen_id": 2},
            {"caption": "three", "video_id": "video1", "sen_id": 3},
        ],
    }
    file = tmp_path / "MSRVTT_data.json"
    file.write_text(json.dumps(data))
    found = read_msrvtt(file, "v", duration=ten)
    assert [clip.id for clip in found.table.clips] == ["video1", "video2"]
    assert found.texts == ("one", "two", "three") and found.video == (0, 1, 0)
    with pytest.raises(DataError, match=r"no video is of the split 'val'; there are: test, train"):
        read_msrvtt(file, "v", "val", duration=ten)
    data["sentences"].pop(2)
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"1 videos of 'test' have no sentence, first video2"):
        read_msrvtt(file, "v", duration=ten)
    data["sentences"].append({"caption": "x", "video_id": "video9"})
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"sentence 4: the video 'video9' is not listed"):
        read_msrvtt(file, "v", duration=ten)


def test_epic_labels_are_whole_numbers(tmp_path):
    from tests.data.test_sets import EPIC_HEADER, EPIC_ROWS

    file = write(tmp_path / "v.csv", EPIC_HEADER, EPIC_ROWS[0].replace("plate,2,", "plate,two,"))
    with pytest.raises(DataError, match=r"row 1: noun_class is a whole number, found 'two'"):
        read_epic_actions(file, "v", check_files=False)
