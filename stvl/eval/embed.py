"""Embeddings of a table of clips or a list of texts, and their .npz files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from stvl.core.errors import ConfigError, DataError
from stvl.data.pipeline import eval_batches
from stvl.data.records import ClipTable
from stvl.eval.card import hash_texts, input_card, versions
from stvl.eval.encoders import Encoders, embed_batch
from stvl.eval.result import atomic_write
from stvl.eval.share import joined

#: Told of (done, total) after every batch.
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoEmbeddings:
    """One embedding a clip, in the order of the table.

    Attributes:
        embeddings: of length 1.
        ids: clip ids.
        path: video files.
        start: first second.
        end: last second.
        text: narrations.
        card: how they were made.
    """

    embeddings: Float32[np.ndarray, "b o"]
    ids: tuple[str, ...]
    path: tuple[str, ...]
    start: Float64[np.ndarray, " b"]
    end: Float64[np.ndarray, " b"]
    text: tuple[str, ...]
    card: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEmbeddings:
    """One embedding a text, in the order given; attributes as in `VideoEmbeddings`."""

    embeddings: Float32[np.ndarray, "b o"]
    text: tuple[str, ...]
    card: dict[str, Any]

    def __len__(self) -> int:
        return len(self.text)


def embed_table(
    encoders: Encoders,
    table: ClipTable,
    batch: int = 32,
    threads: int = 2,
    progress: Progress | None = None,
) -> VideoEmbeddings:
    """Embed every clip of `table`, one view each, frames at the centres of equal segments.

    Inside `stvl.eval.share.shared` each process embeds its part of the clips, and all get all embeddings.

    Raises:
        ConfigError: an empty table, or encoders that contradict themselves.
        DataError: any damaged clip: an evaluation substitutes nothing.
    """
    if not len(table):
        raise ConfigError(f"there are no clips to embed in {table.source}")
    card = {"kind": "video", "clips_sha256": table.sha256, **input_card(encoders), "versions": versions()}
    work = functools.partial(_embed_rows, encoders, table, batch=batch, threads=threads, progress=progress)
    out = joined(len(table), work)["embeddings"]
    clips = table.clips
    return VideoEmbeddings(
        embeddings=out,
        ids=tuple(clip.id for clip in clips),
        path=tuple(clip.path for clip in clips),
        start=np.array([clip.start for clip in clips], np.float64),
        end=np.array([clip.end for clip in clips], np.float64),
        text=table.texts,
        card=card,
    )


def _embed_rows(
    encoders: Encoders,
    table: ClipTable,
    rows: range,
    *,
    batch: int,
    threads: int,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """The embeddings of some rows of a table."""
    part = table if len(rows) == len(table) else table.subset(list(rows))
    out = np.full((len(part), encoders.width), np.nan, np.float32)
    done = 0
    batches = eval_batches(
        part, encoders.transform, encoders.tokenizer, frames=encoders.frames, batch=batch, threads=threads
    )
    for item in batches:
        valid = item["valid"]
        index = item["index"][valid]
        names = [part[int(i)].id for i in index]
        out[index] = embed_batch(encoders, item["video"][valid], names, kind="video", batch=batch)
        done += len(index)
        if progress:
            progress(done, len(part))
    if done != len(part) or np.isnan(out).any():
        raise DataError(f"{len(part)} clips were asked for and {done} came: {table.source}")
    return {"embeddings": out}


def embed_texts(encoders: Encoders, texts: Sequence[str], batch: int = 256) -> Float32[np.ndarray, "b o"]:
    """Embed texts in order.

    Raises:
        ConfigError: no texts, or embeddings of another shape than announced.
    """
    if isinstance(texts, str) or not len(texts):
        raise ConfigError(f"texts to embed are a list of one or more, found {texts!r}")
    batch = min(batch, len(texts))
    parts = []
    for start in range(0, len(texts), batch):
        some = list(texts[start : start + batch])
        parts.append(embed_batch(encoders, encoders.tokenizer(some), some, kind="text", batch=batch))
    return np.concatenate(parts)


def text_embeddings(encoders: Encoders, texts: Sequence[str], batch: int = 256) -> TextEmbeddings:
    """`embed_texts` with its texts and card, to be saved.

    Raises:
        ConfigError: as `embed_texts`.
    """
    made = embed_texts(encoders, texts, batch)
    card = {"kind": "text", "texts_sha256": hash_texts(texts), **input_card(encoders), "versions": versions()}
    return TextEmbeddings(embeddings=made, text=tuple(texts), card=card)


def save_npz(path: str | Path, embeddings: VideoEmbeddings | TextEmbeddings) -> None:
    """Write embeddings to `path`, all or nothing: plain arrays by field name, and ``card`` as JSON text.

    Raises:
        OSError: the folder cannot be written to.
    """
    arrays: dict[str, np.ndarray] = {}
    for field in dataclasses.fields(embeddings):
        value = getattr(embeddings, field.name)
        if field.name == "card":
            value = np.array(json.dumps(value, ensure_ascii=False))
        arrays[field.name] = np.array(value, dtype=np.str_) if isinstance(value, tuple) else value
    atomic_write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def load_npz(path: str | Path) -> VideoEmbeddings | TextEmbeddings:
    """Read what `save_npz` wrote; nothing in the file is executed.

    Raises:
        DataError: a file of another kind or a damaged one.
    """
    with open_npz(path, "embeddings of stvl embed") as arrays:
        card = json.loads(str(arrays["card"]))
        cls = {"video": VideoEmbeddings, "text": TextEmbeddings}[card["kind"]]
        values = {field.name: arrays[field.name] for field in dataclasses.fields(cls) if field.name != "card"}
        lengths = {name: len(array) for name, array in values.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"{path}: its columns have different lengths, {lengths}")
    return cls(
        card=card, **{name: tuple(a.tolist()) if a.dtype.kind == "U" else a for name, a in values.items()}
    )


@contextlib.contextmanager
def open_npz(path: str | Path, what: str) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an .npz without pickles; whatever goes wrong inside reads as "`path` does not hold `what`".

    Raises:
        DataError: no such file, another kind of file, a missing array.
    """
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError(f"{path} does not hold {what}: it is one bare array")
        with arrays:
            yield arrays
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file ({what} expected)") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as problem:
        if isinstance(problem, DataError):
            raise
        raise DataError(f"{path} does not hold {what}: {problem}") from problem
