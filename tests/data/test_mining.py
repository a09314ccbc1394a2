"""Hard mining: who may be drawn, by hand; and the loader's draws, which depend on seed, epoch and clip only."""

from __future__ import annotations

import numpy as np
import pytest

from stvl.core.errors import ConfigError, DataError
from stvl.data.augment import TrainTransform
from stvl.data.mining import HardMining, TextPool
from stvl.data.pipeline import LoaderOptions, TrainLoader
from stvl.data.records import Clip, ClipTable
from tests.data.test_pipeline import TOKENIZER, TimeDecoder


def clip(number: int, text: str, verb: int, *nouns: int) -> Clip:
    return Clip(
        id=f"c{number}", path="v.mp4", start=0.0, end=1.0, text=text, row=number, verb=verb, nouns=nouns
    )


#: Relevancies to clip 1: itself 1; verb alone .5; one noun of two .25, of three 1/6; one of five .1; nothing 0.
TABLE = ClipTable(
    (
        clip(1, "cut bread", 0, 7),
        clip(2, "cut ham", 0, 8),
        clip(3, "take bread and ham", 1, 7, 8),
        clip(4, "cut bread", 0, 7),
        clip(5, "take bread, ham, egg, pan and lid", 1, 7, 8, 9, 10, 11),
        clip(6, "wash pan", 2, 10),
    ),
    "made.csv",
)


def test_relevancy_to_the_distinct_texts():
    pool = TextPool.of(TABLE, HardMining())
    assert pool.texts == (
        "cut bread",
        "cut ham",
        "take bread and ham",
        "take bread, ham, egg, pan and lid",
        "wash pan",
    )
    np.testing.assert_allclose(pool.relevancy(TABLE[0]), [1, 0.5, 0.25, 0.1, 0])
    assert pool.nouns.tolist()[:2] == [[7, -1, -1, -1, -1], [8, -1, -1, -1, -1]]


@pytest.mark.parametrize(
    ("rule", "drawn"),
    [
        (HardMining(), {0, 1, 2}),
        (HardMining(inclusive=True), {0, 1, 2, 3}),
        (HardMining(threshold=0.5), {0}),
        (HardMining(threshold=0.0, inclusive=True), {0, 1, 2, 3}),
    ],
)
def test_texts_are_drawn_from_those_above_the_threshold(rule, drawn):
    pool, rng = TextPool.of(TABLE, rule), np.random.default_rng(0)
    counts = np.bincount([pool.draw(TABLE[0], rng) for _ in range(400)], minlength=5)
    assert set(np.flatnonzero(counts)) == drawn
    # Uniform: each within five standard deviations of its share.
    share = 400 / len(drawn)
    assert np.abs(counts[sorted(drawn)] - share).max() < 5 * np.sqrt(share) + 1


def test_tables_and_clips_without_codes_are_refused():
    with pytest.raises(DataError, match=r"made.csv: hard mining .* no row has any"):
        TextPool.of(ClipTable((clip(1, "a", -1), clip(2, "b", -1)), "made.csv"), HardMining())
    pool = TextPool.of(ClipTable((clip(1, "a", -1), clip(2, "b", 1, 2)), "x"), HardMining())
    with pytest.raises(
        DataError, match=r"clip 'c1' \(row 1\) has verb -1 and nouns \[\]: no text .* above 0.1"
    ):
        pool.draw(clip(1, "a", -1), np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"at least 0 and below 1, found 1\.0"):
        HardMining(threshold=1.0)


def loader(shard: tuple[int, int] = (0, 1), **options: object) -> TrainLoader:
    fields = {"batch": 6, "frames": 1, "threads": 1, "mining": HardMining(), **options}
    return TrainLoader(
        TABLE, TrainTransform(size=4), TOKENIZER, LoaderOptions(**fields), shard, TimeDecoder()
    )


def draws(stream: TrainLoader, count: int) -> list[dict[str, np.ndarray]]:
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def test_the_batch_carries_the_codes_of_clip_and_text():
    pool = TextPool.of(TABLE, HardMining())
    ids = TOKENIZER(pool.texts)
    seen = set()
    for batch in draws(loader(), 6):
        assert batch["text_nouns"].shape[0] == batch["text_verb"].shape[0] == 6
        for row, index in enumerate(batch["index"]):
            text = next(j for j, known in enumerate(ids) if np.array_equal(known, batch["text"][row]))
            assert pool.relevancy(TABLE[int(index)])[text] > 0.1
            assert batch["text_verb"][row] == pool.verbs[text]
            assert np.array_equal(batch["text_nouns"][row], pool.nouns[text])
            assert batch["verb"][row] == TABLE[int(index)].verb
            seen.add((int(index), text))
    assert len({text for index, text in seen if index == 0}) > 1


def test_draws_are_keyed_by_seed_epoch_and_clip():
    one = draws(loader(), 3)
    resumed = loader()
    resumed.set_state({**resumed.get_state(), "position": 2})
    assert np.array_equal(next(resumed)["text"], one[2]["text"])
    resumed.close()
    halves = [draws(loader((host, 2)), 1)[0] for host in range(2)]
    assert np.array_equal(np.concatenate([half["text"] for half in halves]), one[0]["text"])
    other = draws(loader(seed=1), 3)
    assert not all(np.array_equal(a["text"], b["text"]) for a, b in zip(one, other, strict=True))
    # Frames do not change with the texts.
    plain = draws(loader(mining=None), 3)
    assert all(np.array_equal(a["video"], b["video"]) for a, b in zip(one, plain, strict=True))
    assert "text_verb" not in plain[0]
