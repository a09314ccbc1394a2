"""Lists of trimmed action videos: Kinetics, Something-Something, and the plain lists that training code passes around.

Sources: Kay et al., "The Kinetics Human Action Video Dataset", 2017 (CSV files ``label,youtube_id,time_start,time_end,
split[,is_cc]``); Goyal et al., "The 'something something' video database", 2017 (JSON lists and a JSON map of labels).
"""

from __future__ import annotations

from pathlib import Path

from stvl.core.errors import DataError
from stvl.data.sets.labelled import (
    Duration,
    Entry,
    Labelled,
    field,
    place_of,
    read_class_names,
    read_json,
    read_lines,
    whole_files,
)
from stvl.data.sets.rows import fill, read_rows


def read_kinetics(
    csv_path: str | Path,
    videos: str | Path,
    classes: str | Path | None = None,
    pattern: str = "{label}/{youtube_id}_{time_start:06}_{time_end:06}.mp4",
    *,
    leave_out_missing: bool = False,
    duration: Duration | None = None,
) -> Labelled:
    """Read an official Kinetics CSV; each file is one clip.

    Args:
        csv_path: the file.
        videos: folder of the trimmed videos.
        classes: names, one a line, in the model's order; the alphabetical order of the labels by default (that of the
            published models), which needs every class to occur in the file.
        pattern: file of a row below `videos`; names in braces are columns, ``:06`` pads with zeros to six digits.
        leave_out_missing: see `whole_files`.
        duration: see `whole_files`.

    Raises:
        DataError: see `read_rows`, `whole_files`; a label that is no class.
    """
    rows = list(read_rows(csv_path, ("label", "youtube_id", "time_start", "time_end")))
    labels = [row.text("label").strip('"') for row in rows]
    names = tuple(sorted(set(labels))) if classes is None else read_class_names(classes)
    known = {name: place for place, name in enumerate(names)}
    entries = []
    for row, label in zip(rows, labels, strict=True):
        padded = {f"{key}:06": str(row.whole(key)).zfill(6) for key in ("time_start", "time_end")}
        plain, fields = pattern, {**row.fields, "label": label}
        for key, value in padded.items():
            plain = plain.replace("{" + key + "}", value)
        path = str(Path(videos) / fill(plain, fields, row.where))
        name = f"{row.text('youtube_id')}_{row.whole('time_start')}"
        entries.append(Entry(row.number, name, path, place_of(label, known, row.where)))
    return whole_files(entries, names, str(csv_path), leave_out_missing=leave_out_missing, duration=duration)


def read_something(
    json_path: str | Path,
    labels_path: str | Path,
    videos: str | Path,
    pattern: str = "{id}.webm",
    *,
    leave_out_missing: bool = False,
    duration: Duration | None = None,
) -> Labelled:
    """Read ``something-something-v2-validation.json`` with ``something-something-v2-labels.json``.

    The class of a video is its ``template`` without square brackets; the labels file maps it to a number (a text).

    Args:
        json_path: a list of ``{"id", "label", "template", "placeholders"}``.
        labels_path: an object ``{"Approaching something with your camera": "0", ...}``.
        videos: folder of the video files.
        pattern: file of a video below `videos`; names in braces are keys of its object.
        leave_out_missing: see `whole_files`.
        duration: see `whole_files`.

    Raises:
        DataError: no such file, no JSON, a missing key, a template that is no class, numbers that are not 0, 1, 2, ...
    """
    numbered = read_json(labels_path, dict)
    if sorted(str(value) for value in numbered.values()) != sorted(str(i) for i in range(len(numbered))):
        raise DataError(f"{labels_path}: the classes are numbered 0 to {len(numbered) - 1}, each number once")
    known = {str(name): int(value) for name, value in numbered.items()}
    entries = []
    for number, item in enumerate(read_json(json_path, list), 1):
        where = f"{json_path}, entry {number}"
        template = field(item, "template", where).replace("[", "").replace("]", "")
        path = str(Path(videos) / fill(pattern, item, where))
        label = place_of(template, known, where)
        entries.append(Entry(number, field(item, "id", where), path, label, str(item.get("label", ""))))
    names = tuple(sorted(known, key=lambda name: known[name]))
    return whole_files(entries, names, str(json_path), leave_out_missing=leave_out_missing, duration=duration)


def read_label_list(
    list_path: str | Path,
    videos: str | Path,
    classes: str | Path,
    *,
    leave_out_missing: bool = False,
    duration: Duration | None = None,
) -> Labelled:
    """Read lines ``path label`` or ``path,label`` (label: a number), the list that most training code uses.

    The label is what follows the last comma, or the last space where there is no comma, so paths may hold spaces.

    Args:
        list_path: the file.
        videos: folder that paths are relative to.
        classes: names, one a line.
        leave_out_missing: see `whole_files`.
        duration: see `whole_files`.

    Raises:
        DataError: a line without a number at its end; see `read_class_names` and `whole_files`.
    """
    names = read_class_names(classes)
    entries = []
    for number, line in enumerate(read_lines(list_path), 1):
        path, _, label = line.rpartition("," if "," in line else " ")
        if not path.strip() or not label.strip().isdigit():
            raise DataError(
                f"{list_path}, line {number}: expected 'path label' with a number, found {line!r}"
            )
        entries.append(Entry(number, path.strip(), str(Path(videos) / path.strip()), int(label)))
    return whole_files(entries, names, str(list_path), leave_out_missing=leave_out_missing, duration=duration)
