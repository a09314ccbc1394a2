"""What recognition sets have in common: clips, the classes that each shows, and whole files as clips."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stvl.core.errors import DataError, nearest
from stvl.data.decode import PyAVDecoder
from stvl.data.records import Clip, ClipTable
from stvl.data.sets.rows import check_clips

#: A video file to its length in seconds.
Duration = Callable[[str], float]


@dataclasses.dataclass(frozen=True, slots=True)
class Labelled:
    """Clips and their classes.

    Attributes:
        table: the clips.
        labels: for each clip the classes that it shows, as places in `names`; none, one or more.
        names: the classes, in the order of the published file.
        missing: names of listed files that are not there and were left out on demand.
    """

    table: ClipTable
    labels: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.table):
            raise DataError(
                f"{self.table.source}: {len(self.table)} clips with {len(self.labels)} sets of labels"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list of files: row (1-based), id, path, class, and a text where the list has one."""

    row: int
    id: str
    path: str
    label: int
    text: str = ""


def probed(path: str) -> float:
    """Seconds of a video file by its header. Raises: DecodeError."""
    return PyAVDecoder().probe(path).duration


def whole_files(
    entries: Sequence[Entry],
    names: tuple[str, ...],
    source: str,
    *,
    leave_out_missing: bool = False,
    duration: Duration | None = None,
) -> Labelled:
    """Each file as one clip from its first second to its last.

    Args:
        entries: what the list says.
        names: the classes.
        source: the list's file, for messages.
        leave_out_missing: leave out the files that are not there and name them in `missing`, instead of refusing. A
            score on fewer videos than the published split has is another score; protocols write the number down.
        duration: file to seconds; its header by default.

    Raises:
        DataError: a file that is not there or cannot be read, an id that is there twice, a class that does not exist.
    """
    missing = tuple(entry.path for entry in entries if leave_out_missing and not Path(entry.path).is_file())
    gone = set(missing)
    kept = [entry for entry in entries if entry.path not in gone]
    for entry in kept:
        if not 0 <= entry.label < len(names):
            raise DataError(
                f"{source}, row {entry.row}: class {entry.label} is not one of {len(names)} classes"
            )
        if duration is None and not Path(entry.path).is_file():
            raise DataError(f"{source}, row {entry.row}: no video file {entry.path}")
    if not kept:
        raise DataError(
            f"{source}: none of its {len(entries)} files is there, the first is {entries[0].path}"
        )
    length = duration or probed
    clips = [
        Clip(
            id=entry.id,
            path=entry.path,
            start=0.0,
            end=length(entry.path),
            text=entry.text or names[entry.label],
            row=entry.row,
            video=Path(entry.path).stem,
        )
        for entry in kept
    ]
    table = ClipTable(check_clips(clips, source, check_files=False), source)
    return Labelled(
        table, tuple((entry.label,) for entry in kept), names, tuple(Path(path).name for path in missing)
    )


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Class names, one a line, in order; a leading code such as ``c000`` or ``0`` and a space are left out if all lines
    are numbered in order.

    Raises:
        DataError: no such file, an empty line, a name that is there twice.
    """
    lines = read_lines(path)
    codes = [line.split(maxsplit=1) for line in lines]
    if all(len(code) == 2 and code[0].lstrip("c").isdigit() for code in codes) and [
        int(code[0].lstrip("c")) for code in codes
    ] == list(range(len(codes))):
        lines = [code[1] for code in codes]
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if line in seen:
            raise DataError(
                f"{path}, line {number}: the class {line!r} is there twice, first in {seen[line]}"
            )
        seen[line] = number
    return tuple(lines)


def read_lines(path: str | Path) -> list[str]:
    """The stripped lines of a text file without empty lines at its end.

    Raises:
        DataError: no such file, not UTF-8, no line, an empty line before the last.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path}: is not a text file in UTF-8 ({problem})") from problem
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{path}: holds no line")
    if "" in lines:
        raise DataError(f"{path}, line {lines.index('') + 1}: is empty")
    return lines


def read_json(path: str | Path, kind: type[list] | type[dict]) -> Any:
    """A JSON file whose outermost value is a non-empty `kind`.

    Raises:
        DataError: no such file, no JSON, another kind.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, OSError) as problem:
        raise DataError(f"{path}: is not a JSON file ({problem})") from problem
    if not isinstance(data, kind) or not data:
        raise DataError(f"{path}: expected a {kind.__name__} with entries, found {type(data).__name__}")
    return data


def field(item: Any, key: str, where: str) -> str:
    """The text of `key` of a JSON object. Raises: DataError where it is missing or empty."""
    if not isinstance(item, dict) or key not in item:
        known = map(str, item) if isinstance(item, dict) else ()
        raise DataError(f"{where}: {key!r} is missing{nearest(key, known)}")
    value = str(item[key]).strip()
    if not value:
        raise DataError(f"{where}: {key} is empty")
    return value


def place_of(name: str, names: dict[str, int], where: str) -> int:
    """The place of a class name. Raises: DataError, with the nearest name."""
    if name not in names:
        raise DataError(f"{where}: there is no class {name!r}{nearest(name, names)}")
    return names[name]
