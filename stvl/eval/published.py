"""Published results as data, with their source, to be set beside one's own.

Every number is copied from a table of a paper, in percent, as printed. `note` says what the row leaves open.
"""

from __future__ import annotations

import dataclasses

from stvl.core.errors import ConfigError, nearest

#: Names of protocols as cards have them.
MIR, MCQ = "EPIC-KITCHENS-100 MIR", "EgoMCQ"
CHARADES_ZERO, CHARADES_TUNED = "Charades-Ego (zero-shot)", "Charades-Ego (fine-tuned)"


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """One row of a table for one protocol.

    Attributes:
        method: as the paper calls it, with the size of the model.
        protocol: as protocol cards call it.
        setting: ``zero-shot``, ``fine-tuned`` or empty.
        trained_on: the paper's word for the data of pre-training.
        percent: metric -> percent; a metric that the row leaves out is not here.
        source: paper and table.
        note: what a reader must know.
    """

    method: str
    protocol: str
    setting: str
    trained_on: str
    percent: dict[str, float]
    source: str
    note: str = ""


_MIR_KEYS: tuple[str, ...] = ("map.v2t", "map.t2v", "map.avg", "ndcg.v2t", "ndcg.t2v", "ndcg.avg")
_PAPER = "arXiv 2506.14356"
_ORDER = "the table does not print the size; it follows from the order of its rows"
_REPEATED = "reproduced by the authors of the source"


def _mir(method: str, setting: str, trained_on: str, numbers: tuple[float, ...], note: str = "") -> Published:
    keys: tuple[str, ...] = _MIR_KEYS if len(numbers) == 6 else ("map.avg", "ndcg.avg")
    table = "Table I" if setting == "fine-tuned" else "Table III"
    percent = dict(zip(keys, numbers, strict=True))
    return Published(method, MIR, setting, trained_on, percent, f"{_PAPER}, {table}", note)


def _table_2(
    method: str,
    trained_on: str,
    charades: tuple[float | None, float | None],
    mcq: tuple[float, float] | None,
    note: str = "",
) -> tuple[Published, ...]:
    source = f"{_PAPER}, Table II"
    rows = []
    settings = ((CHARADES_ZERO, "zero-shot"), (CHARADES_TUNED, "fine-tuned"))
    for (protocol, setting), value in zip(settings, charades, strict=True):
        if value is not None:
            rows.append(Published(method, protocol, setting, trained_on, {"map": value}, source, note))
    if mcq is not None:
        percent = {"mcq.inter": mcq[0], "mcq.intra": mcq[1]}
        rows.append(Published(method, MCQ, "zero-shot", trained_on, percent, source, note))
    return tuple(rows)


_EVA02AT = (
    _mir("random", "zero-shot", "", (5.7, 5.6, 5.7, 10.8, 10.9, 10.9)),
    _mir("EgoVLP", "zero-shot", "EgoClip", (19.4, 13.9, 16.6, 24.1, 22.0, 23.1)),
    _mir("HierVL-SA", "zero-shot", "EgoClip", (18.9, 24.7)),
    _mir("EgoVLPv2", "zero-shot", "EgoClip", (26.7, 29.1)),
    _mir("AVION ViT-B", "zero-shot", "EgoClip", (31.7, 25.1, 28.4, 31.0, 28.1, 29.5)),
    _mir("EVA02-AT-B", "zero-shot", "EgoClip", (33.5, 26.8, 30.2, 32.8, 29.4, 31.1)),
    _mir("AVION ViT-L", "zero-shot", "EgoClip", (33.6, 27.1, 30.4, 31.8, 29.0, 30.4), _REPEATED),
    _mir("EVA02-AT-L", "zero-shot", "EgoClip", (42.1, 35.0, 38.5, 37.2, 33.9, 35.5)),
    _mir("EgoVLP", "zero-shot", "EgoClip+", (26.0, 20.6, 23.3, 28.8, 27.0, 27.9)),
    _mir("LaViLa TSF-B", "zero-shot", "EgoClip+", (35.1, 26.6, 30.9, 33.7, 30.4, 32.0)),
    _mir("AVION ViT-B", "zero-shot", "EgoClip+", (37.1, 28.7, 32.9, 34.4, 31.0, 32.7)),
    _mir("EVA02-AT-B", "zero-shot", "EgoClip+", (38.3, 30.3, 34.3, 36.0, 32.2, 34.1)),
    _mir("LaViLa TSF-L", "zero-shot", "EgoClip+", (40.0, 32.2, 36.1, 36.1, 33.2, 34.6)),
    _mir("AVION ViT-L", "zero-shot", "EgoClip+", (41.7, 33.5, 37.6, 36.8, 33.9, 35.3)),
    _mir("EVA02-AT-L", "zero-shot", "EgoClip+", (43.2, 34.5, 38.9, 38.4, 33.9, 36.2)),
    _mir("EVA02-AT-B + SMS", "fine-tuned", "Merged2B", (57.6, 45.0, 51.3, 67.1, 63.0, 65.0)),
    _mir("EVA02-AT-L + SMS", "fine-tuned", "Merged2B", (63.8, 52.4, 58.1, 71.9, 67.9, 69.9)),
    _mir("EgoVLP", "fine-tuned", "EgoClip", (49.9, 40.1, 45.0, 60.9, 57.9, 59.4)),
    _mir("HierVL-SA", "fine-tuned", "EgoClip", (46.7, 61.1)),
    _mir("EgoVLPv2", "fine-tuned", "EgoClip", (47.3, 61.9)),
    _mir("AVION ViT-B", "fine-tuned", "EgoClip", (53.3, 46.6, 50.0, 66.3, 64.0, 65.1), _REPEATED),
    _mir("AVION ViT-B + SMS", "fine-tuned", "EgoClip", (60.9, 48.8, 54.9, 69.2, 65.5, 67.3)),
    _mir(
        "EVA02-AT + SMS",
        "fine-tuned",
        "EgoClip",
        (63.2, 51.3, 57.3, 71.0, 67.0, 69.0),
        "the table prints ViT-B as its encoder",
    ),
    _mir("LaViLa TSF-B", "fine-tuned", "EgoClip+", (55.2, 45.7, 50.5, 66.5, 63.4, 65.0)),
    _mir("AVION ViT-B", "fine-tuned", "EgoClip+", (55.9, 47.8, 51.8, 68.2, 65.4, 66.8)),
    _mir("AVION ViT-B + SMS", "fine-tuned", "EgoClip+", (62.9, 51.1, 57.0, 71.2, 67.3, 69.2)),
    _mir("EVA02-AT-B + SMS", "fine-tuned", "EgoClip+", (64.6, 53.4, 59.0, 72.6, 69.0, 70.8)),
    _mir("LaViLa TSF-L", "fine-tuned", "EgoClip+", (54.7, 47.1, 50.9, 68.1, 64.9, 66.5)),
    _mir("AVION ViT-L", "fine-tuned", "EgoClip+", (57.9, 51.1, 54.5, 70.4, 67.6, 69.0)),
    _mir("AVION ViT-L + SMS", "fine-tuned", "EgoClip+", (67.3, 56.9, 62.1, 74.7, 71.2, 73.0)),
    _mir("EVA02-AT-L + SMS", "fine-tuned", "EgoClip+", (68.7, 58.3, 63.5, 76.1, 72.3, 74.2)),
    *_table_2("EgoVLP", "EgoClip", (25.0, 32.1), (90.6, 57.2)),
    *_table_2("HierVL-SA", "EgoClip", (26.0, 33.8), (90.5, 52.4)),
    *_table_2("EgoVLPv2", "EgoClip", (26.2, 34.1), (91.0, 60.9)),
    *_table_2("SViTT-Ego", "EgoClip", (None, None), (92.9, 65.9)),
    *_table_2("EVA02-AT-B", "EgoClip", (None, None), (94.8, 62.0), _ORDER),
    *_table_2("EVA02-AT-L", "EgoClip", (None, None), (96.2, 66.0), _ORDER),
    *_table_2("LaViLa-B", "EgoClip+", (26.8, 33.7), (93.8, 59.9), _ORDER),
    *_table_2("AVION-B", "EgoClip+", (27.4, 34.8), (94.5, 61.4), f"{_REPEATED}; {_ORDER}"),
    *_table_2("EVA02-AT-B", "EgoClip+", (27.8, 36.1), (95.0, 63.2)),
    *_table_2("EVA02-AT-B + SMS", "EgoClip+", (None, 38.0), None, _ORDER),
    *_table_2("LaViLa-L", "EgoClip+", (28.9, 36.1), (94.5, 63.1), _ORDER),
    *_table_2("AVION-L", "EgoClip+", (29.9, 39.7), (95.4, 64.5), f"{_REPEATED}; {_ORDER}"),
    *_table_2("EVA02-AT-L", "EgoClip+", (30.9, 42.2), (95.9, 66.5)),
    *_table_2("EVA02-AT-L + SMS", "EgoClip+", (None, 42.5), None, _ORDER),
)

#: Name -> rows.
TABLES: dict[str, tuple[Published, ...]] = {"eva02at": _EVA02AT}


def published(name: str, protocol: str | None = None) -> tuple[Published, ...]:
    """The rows of a source, for one protocol or all.

    Raises:
        ConfigError: an unknown source.
    """
    if name not in TABLES:
        raise ConfigError(f"there are no published rows called {name!r}{nearest(name, TABLES)}")
    return tuple(row for row in TABLES[name] if protocol in (None, row.protocol))
