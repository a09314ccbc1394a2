"""A contact sheet: one PNG that shows what a search found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stvl.core.errors import ConfigError, DataError
from stvl.data.decode import Decoder, PyAVDecoder
from stvl.data.sampling import segment_times
from stvl.eval.result import atomic_write
from stvl.eval.search import Hit

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_MARGIN, _LINE = 8, 20
_PAPER, _INK, _FAINT = (250, 250, 248), (30, 30, 30), (120, 120, 120)


def contact_sheet(
    out: str | Path,
    hits: Sequence[Hit],
    folder: str | Path,
    query: str = "",
    *,
    columns: int = 6,
    height: int = 120,
    decoder: Decoder | None = None,
) -> None:
    """Write a PNG with one row a hit: a caption (rank, file, seconds, score, text) over frames at the centres of segments.

    Args:
        hits: paths relative to `folder`.
        columns: frames a row.
        height: of a frame in pixels; its width keeps the video's shape.

    Raises:
        ConfigError: no hits, or columns or height below 1.
        DataError: a file that cannot be decoded any more.
        OSError: `out` cannot be written.
    """
    if not hits or columns < 1 or height < 1:
        raise ConfigError(
            f"a sheet needs hits, columns and height, found {len(hits)}, {columns} and {height}"
        )
    decoder = PyAVDecoder() if decoder is None else decoder
    strips = [_strip(decoder, Path(folder) / hit.path, hit, columns, height) for hit in hits]
    width = max(360, *(strip.width for strip in strips)) + 2 * _MARGIN
    head = _LINE + _MARGIN if query else 0
    sheet = Image.new("RGB", (width, head + _MARGIN + len(hits) * (height + _LINE + _MARGIN)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    if query:
        _write(draw, (_MARGIN, _MARGIN), f"“{query}”", ImageFont.load_default(15), _INK, width)
    top = head + _MARGIN
    for rank, (hit, strip) in enumerate(zip(hits, strips, strict=True), 1):
        caption = f"{rank}.  {hit.path}   {hit.start:.1f} to {hit.end:.1f} s   score {hit.score:.3f}"
        end = _write(draw, (_MARGIN, top), caption, font, _INK, width)
        if hit.text:
            _write(draw, (end + 2 * _MARGIN, top), hit.text, font, _FAINT, width)
        sheet.paste(strip, (_MARGIN, top + _LINE))
        top += height + _LINE + _MARGIN
    atomic_write(out, lambda file: sheet.save(file, format="PNG"))


def _strip(decoder: Decoder, path: Path, hit: Hit, columns: int, height: int) -> Image.Image:
    try:
        frames = decoder.frames(str(path), segment_times(hit.start, hit.end, columns, None))
    except DataError as problem:
        raise DataError(f"contact sheet: {hit.path} at {hit.start:.1f} s: {problem}") from problem
    width = max(1, round(height * frames.shape[2] / frames.shape[1]))
    strip = Image.new("RGB", (columns * (width + 2) - 2, height), _PAPER)
    for column, frame in enumerate(np.asarray(frames)):
        strip.paste(Image.fromarray(frame).resize((width, height)), (column * (width + 2), 0))
    return strip


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    font: Font,
    ink: tuple,
    width: int,
) -> int:
    """Write one line, cut with dots at the right edge; returns the x after it."""
    room = width - _MARGIN - at[0]
    if draw.textlength(text, font=font) > room:
        while text and draw.textlength(text + "…", font=font) > room:
            text = text[:-1]
        text = text + "…" if text else ""
    draw.text(at, text, font=font, fill=ink)
    return at[0] + round(draw.textlength(text, font=font))
