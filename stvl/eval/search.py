"""Search an index by text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from stvl.core.errors import ConfigError
from stvl.eval.embed import embed_texts
from stvl.eval.encoders import Encoders, described
from stvl.eval.index import Index


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """A window that was found: file relative to the index's folder, seconds, cosine similarity, the manifest's text."""

    path: str
    start: float
    end: float
    score: float
    text: str = ""


def search(
    index: Index, encoders: Encoders, query: str, top: int = 10, overlap: float | None = 0.5
) -> list[Hit]:
    """The windows most like `query`, best first, by cosine similarity; ties in the order of the index.

    A window that overlaps a better one of its file by an intersection over union above `overlap` is left out (non-maximum
    suppression); None keeps all.

    Raises:
        ConfigError: an empty query, `top` below 1, or an index made by another model.
    """
    if not query.strip():
        raise ConfigError("the query is empty; expected a text such as 'a woman flips a pancake'")
    if top < 1:
        raise ConfigError(f"top is {top}; expected 1 or more")
    facts = described(encoders) | {"frames": encoders.frames, "size": encoders.size}
    for key in ("weights_sha256", "positions", "frames", "size"):
        if index.card.get(key) != facts[key]:
            raise ConfigError(
                f"the index was made with {key} {index.card.get(key)!r}, the model has {facts[key]!r}: build the index again"
            )
    scores = index.embeddings @ embed_texts(encoders, [query])[0]
    hits: list[Hit] = []
    for row in np.argsort(-scores, kind="stable"):
        hit = Hit(
            index.path[row],
            float(index.start[row]),
            float(index.end[row]),
            float(scores[row]),
            index.text[row],
        )
        if overlap is None or all(temporal_iou(hit, other) <= overlap for other in hits):
            hits.append(hit)
        if len(hits) == top:
            break
    return hits


def temporal_iou(one: Hit, other: Hit) -> float:
    """Intersection over union of two stretches of time, 0 for two files."""
    if one.path != other.path:
        return 0.0
    shared = max(0.0, min(one.end, other.end) - max(one.start, other.start))
    union = (one.end - one.start) + (other.end - other.start) - shared
    return shared / union if union > 0 else 0.0


def hits_table(hits: Sequence[Hit], query: str) -> Table:
    """Rank, file, start, end and score, and the text where the index has texts, for a rich console."""
    table = Table(title=Text(f"“{query}”"), title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("file", overflow="fold")
    for name in ("start s", "end s", "score"):
        table.add_column(name, justify="right")
    told = any(hit.text for hit in hits)
    if told:
        table.add_column("text", overflow="fold")
    for rank, hit in enumerate(hits, 1):
        cells = [str(rank), Text(hit.path), f"{hit.start:.1f}", f"{hit.end:.1f}", f"{hit.score:.3f}"]
        table.add_row(*cells, *([Text(hit.text)] if told else []))
    return table
