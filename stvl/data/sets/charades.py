"""Charades and Charades-Ego: videos with several actions each, out of 157 classes.

Source: Sigurdsson et al., "Actor and Observer: Joint Modeling of First and Third-Person Videos", 2018; the files
CharadesEgo_v1_{train,test}[_only1st,_only3rd].csv and Charades_v1_classes.txt of its release. A row of the CSV is a
video; its ``actions`` read ``c092 11.90 21.20;c147 0.00 12.60`` (class, first and last second), or nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

from stvl.core.errors import DataError
from stvl.data.records import Clip, ClipTable
from stvl.data.sets.labelled import Labelled, read_class_names
from stvl.data.sets.rows import Row, check_clips, fill, read_rows

#: Classes of Charades.
CLASSES = 157

#: Whose eyes: the wearer's (Charades-Ego's first-person half), an onlooker's, or both.
View = Literal["first", "third", "both"]


class Action(NamedTuple):
    """A class, and the seconds between which it is seen."""

    label: int
    start: float
    end: float


def read_charades_classes(path: str | Path) -> tuple[str, ...]:
    """The 157 names of ``Charades_v1_classes.txt`` (``c000 Holding some clothes``), without their codes.

    Raises:
        DataError: see `read_class_names`; another number of classes.
    """
    names = read_class_names(path)
    if len(names) != CLASSES:
        raise DataError(f"{path}: Charades has {CLASSES} classes, found {len(names)}")
    return names


def read_charades(
    csv_path: str | Path,
    videos: str | Path,
    classes: str | Path,
    pattern: str = "{id}.mp4",
    *,
    view: View = "first",
    check_files: bool = True,
) -> Labelled:
    """Each video as one clip from 0 to its ``length``, with the set of its classes.

    Args:
        csv_path: the file.
        videos: folder of the video files.
        classes: ``Charades_v1_classes.txt``.
        pattern: file of a row below `videos`; names in braces are columns.
        view: which rows are kept: by the column ``egocentric``, or where it is missing by ids that end in ``EGO``.
        check_files: look that every video file is there.

    Raises:
        DataError: see `read_rows` and `check_clips`; an action that cannot be read, a class that does not exist, no row
            of that view.
    """
    names = read_charades_classes(classes)
    clips, labels = [], []
    for row in _rows(csv_path, view):
        found = _actions(row, len(names))
        name = row.text("id")
        clips.append(
            Clip(
                id=name,
                path=str(Path(videos) / fill(pattern, row.fields, row.where)),
                start=0.0,
                end=row.seconds("length"),
                text=row.fields.get("script", "").strip(),
                row=row.number,
                video=name,
            )
        )
        labels.append(tuple(dict.fromkeys(action.label for action in found)))
    table = ClipTable(check_clips(clips, str(csv_path), check_files), str(csv_path))
    return Labelled(table, tuple(labels), names)


def read_charades_actions(
    csv_path: str | Path,
    videos: str | Path,
    classes: str | Path,
    pattern: str = "{id}.mp4",
    *,
    view: View = "first",
    check_files: bool = True,
) -> ClipTable:
    """Each action as one clip with the name of its class as text, for fine-tuning.

    The class stands both as verb and as only noun, so that the relevancy of two clips is 1 for the same class and 0
    otherwise: the hard labels of EVA02-AT, Eq. 17. Actions that end before they begin are left out, as are those of no
    length: both occur in the published files.

    Raises:
        DataError: as `read_charades`.
    """
    names = read_charades_classes(classes)
    clips = []
    for row in _rows(csv_path, view):
        name, path = row.text("id"), str(Path(videos) / fill(pattern, row.fields, row.where))
        for number, action in enumerate(_actions(row, len(names))):
            if action.start < action.end:
                clips.append(
                    Clip(
                        id=f"{name}/{number}",
                        path=path,
                        start=action.start,
                        end=action.end,
                        text=names[action.label],
                        row=row.number,
                        verb=action.label,
                        nouns=(action.label,),
                        video=name,
                    )
                )
    if not clips:
        raise DataError(f"{csv_path}: no row of view {view!r} has an action")
    return ClipTable(check_clips(clips, str(csv_path), check_files), str(csv_path))


def _rows(csv_path: str | Path, view: View) -> list[Row]:
    if view not in ("first", "third", "both"):
        raise DataError(f"view is 'first', 'third' or 'both', found {view!r}")
    rows = [
        row for row in read_rows(csv_path, ("id", "actions", "length")) if view in ("both", _seen_by(row))
    ]
    if not rows:
        raise DataError(f"{csv_path}: no row is of the view {view!r}")
    return rows


def _seen_by(row: Row) -> str:
    told = row.fields.get("egocentric", "").strip().lower()
    if told not in ("", "yes", "no"):
        raise DataError(f"{row.where}: egocentric is Yes or No, found {row.fields['egocentric']!r}")
    first = told == "yes" if told else row.text("id").endswith("EGO")
    return "first" if first else "third"


def _actions(row: Row, classes: int) -> list[Action]:
    found = []
    for part in row.fields["actions"].split(";"):
        if not part.strip():
            continue
        match = re.fullmatch(r"\s*c(\d{3})\s+([\d.]+)\s+([\d.]+)\s*", part)
        if not match:
            raise DataError(f"{row.where}: an action reads like 'c092 11.90 21.20', found {part!r}")
        label = int(match.group(1))
        if label >= classes:
            raise DataError(f"{row.where}: class c{label:03d} is not one of {classes} classes")
        try:
            found.append(Action(label, float(match.group(2)), float(match.group(3))))
        except ValueError:
            raise DataError(f"{row.where}: an action's times are seconds, found {part!r}") from None
    return found
