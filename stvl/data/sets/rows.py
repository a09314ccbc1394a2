"""What the CSV readers share: rows with numbers, and fields read strictly, so that an error names file, row and column."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from stvl.core.errors import DataError, nearest
from stvl.data.records import Clip


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One row of a CSV file: its fields, its 1-based number without the header, and the file."""

    file: str
    number: int
    fields: Mapping[str, str]

    @property
    def where(self) -> str:
        return f"{self.file}, row {self.number}"

    def text(self, column: str) -> str:
        """The stripped text of `column`. Raises: DataError where it is empty."""
        value = self.fields[column].strip()
        if not value:
            raise DataError(f"{self.where}: {column} is empty")
        return value

    def whole(self, column: str) -> int:
        """A whole number. Raises: DataError."""
        try:
            return int(self.fields[column].strip())
        except ValueError:
            raise DataError(
                f"{self.where}: {column} is a whole number, found {self.fields[column]!r}"
            ) from None

    def seconds(self, column: str) -> float:
        """Seconds, or ``[hours:]minutes:seconds``, >= 0. Raises: DataError."""
        text = self.fields[column].strip()
        try:
            total = 0.0
            for part in text.split(":"):
                total = total * 60 + float(part)
        except ValueError:
            total = math.nan
        if not math.isfinite(total) or "-" in text or text.count(":") > 2:
            raise DataError(
                f"{self.where}: {column} is a time in seconds or hh:mm:ss, >= 0, found {self.fields[column]!r}"
            )
        return total

    def numbers(self, column: str) -> tuple[int, ...]:
        """A list such as ``[2, 5]``, each number once, in order. Raises: DataError."""
        text = self.fields[column].strip()
        if not re.fullmatch(r"\[\s*(\d+\s*(,\s*\d+\s*)*)?\]", text):
            raise DataError(f"{self.where}: {column} is a list such as [2, 5], found {self.fields[column]!r}")
        return tuple(dict.fromkeys(int(number) for number in re.findall(r"\d+", text)))


def read_rows(csv_path: str | Path, needed: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a CSV file with a header that has the columns `needed`.

    Raises:
        DataError: no such file, not UTF-8, a column that is missing (which, and what was found), a row with another
            number of fields than the header, no row at all.
    """
    path, number = Path(csv_path), 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            found = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = found
            missing = [name for name in needed if name not in found]
            if missing:
                hint = nearest(missing[0], found) if found else ""
                raise DataError(
                    f"{path}: no column {', '.join(map(repr, missing))}{hint}; needed: {', '.join(needed)};"
                    f" found: {', '.join(found) or 'nothing'}"
                )
            for number, fields in enumerate(reader, start=1):
                if None in fields or None in fields.values():
                    count = sum(value is not None for value in fields.values()) + (None in fields) * 1
                    raise DataError(
                        f"{path}, row {number}: expected {len(found)} fields, found {'more' if None in fields else count}"
                        "; put a text that holds a comma in double quotes"
                    )
                yield Row(str(path), number, fields)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (IsADirectoryError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path}: is not a CSV file in UTF-8 ({problem})") from problem
    if not number:
        raise DataError(f"{path}: has a header and no row")


def fill(pattern: str, fields: Mapping[str, object], where: str) -> str:
    """Put `fields` into a file pattern such as ``{participant_id}/{video_id}.mp4``; names only, no format language.

    Raises:
        DataError: a name that the annotation does not have, with the nearest one.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in fields:
            raise DataError(
                f"{where}: the file pattern {pattern!r} asks for {name!r}{nearest(name, map(str, fields))}"
            )
        return str(fields[name])

    return re.sub(r"\{(\w+)\}", value, pattern)


def check_clips(
    clips: Sequence[Clip], source: str, check_files: bool, exclude: Collection[str] = ()
) -> tuple[Clip, ...]:
    """Leave out the clips of the files named in `exclude`, and refuse what cannot be a table.

    Raises:
        DataError: ``start >= end``, an id that is there twice, a video file that is not there (unless not asked to
            look), with the row; no clip left.
    """
    seen: dict[str, int] = {}
    there: dict[str, bool] = {}
    kept = tuple(clip for clip in clips if Path(clip.path).name not in exclude)
    for clip in kept:
        where = f"{source}, row {clip.row}"
        if not clip.start < clip.end:
            raise DataError(f"{where}: start {clip.start:g} s is not before end {clip.end:g} s")
        if clip.id in seen:
            raise DataError(
                f"{where}: the id {clip.id!r} is taken by row {seen[clip.id]}; ids must be unique"
            )
        seen[clip.id] = clip.row
        if check_files and clip.path not in there:
            there[clip.path] = Path(clip.path).is_file()
            if not there[clip.path]:
                raise DataError(f"{where}: no video file {clip.path}")
    if not kept:
        raise DataError(f"{source}: no clip is left after leaving out {', '.join(sorted(exclude))}")
    return kept
