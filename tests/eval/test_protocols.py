"""Protocols on real video files: perfect encoders reach 100 %, blind ones chance; damage always raises."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from stvl.core.config import from_dict, to_dict
from stvl.core.errors import ConfigError, DataError
from stvl.data.sets.egomcq import read_questions
from stvl.eval.card import hash_file
from stvl.eval.protocols.egomcq import EgoMCQ, unique_clips
from stvl.eval.protocols.epic_mir import EpicMIR, Opposites, _chance
from stvl.eval.result import Result


@pytest.fixture
def mir_protocol(world):
    return EpicMIR(
        csv=str(world / "test.csv"),
        sentences=str(world / "test_sentence.csv"),
        videos=str(world / "videos"),
        batch=8,
        seeds=(0, 1),
    )


@pytest.fixture
def mcq_protocol(world):
    return EgoMCQ(
        json=str(world / "egomcq.json"), videos=str(world / "videos"), pattern="P01/{video_uid}.mp4", batch=8
    )


@pytest.fixture
def opposites(world):
    return Opposites(csv=str(world / "test.csv"), videos=str(world / "videos"), pairs=((0, 1),), batch=8)


def test_perfect_encoders_reach_everything(mir_protocol, fake):
    told = []
    result = mir_protocol.run(fake(), progress=lambda done, total: told.append((done, total)))
    for name in ("map.v2t", "map.t2v", "map.avg", "ndcg.v2t", "ndcg.t2v", "ndcg.avg", "r@1.v2t", "r@1.t2v"):
        assert result.metrics[name] == pytest.approx(1), name
        assert result.baseline[name] < 0.9, name
    assert result.extra["median_rank.v2t"] == 1
    assert result.extra["exact_pairs"] == 30
    assert told == [(8, 30), (16, 30), (24, 30), (30, 30)]


def test_blind_encoders_find_the_colour_only(mir_protocol, fake):
    result = mir_protocol.run(fake(blind=True))
    assert result.metrics["r@1.v2t"] == 0  # the two verbs tie, and a tie counts against the answer
    assert result.metrics["r@5.v2t"] == 1
    assert 0.3 < result.metrics["map.avg"] < 0.95


def test_mir_card_names_what_the_score_depends_on(mir_protocol, fake, world):
    card = mir_protocol.run(fake(weights="ab" * 32)).card
    assert card["split"] == "test"
    assert (card["clips"], card["texts"], card["frames"], card["views"]) == (30, 6, 4, "1x1")
    assert card["annotations"] == [
        {"file": "test.csv", "sha256": hash_file(world / "test.csv")},
        {"file": "test_sentence.csv", "sha256": hash_file(world / "test_sentence.csv")},
    ]
    assert card["resize"].startswith("short side to 16")
    assert card["weights_sha256"] == "ab" * 32
    assert card["post_processing"] == "none"
    assert card["positions"] == "rope" and card["dtype"] == "float32" and card["mean"] == [0.0, 0.0, 0.0]
    assert set(card["versions"]) >= {"stvl", "jax", "numpy"}
    assert len(card["clips_sha256"]) == 64
    assert str(world) not in json.dumps(card)


def test_sentences_of_another_split_are_refused(mir_protocol, fake, tmp_path, csv_writer):
    csv_writer(tmp_path / "s.csv", [["narration_id", "narration"], ["P99_01_0", "red brightens"]])
    other = EpicMIR(csv=mir_protocol.csv, videos=mir_protocol.videos, sentences=str(tmp_path / "s.csv"))
    with pytest.raises(DataError, match=r"row 1: narration_id 'P99_01_0' .* is not in .*test.csv"):
        other.run(fake())


def test_a_damaged_clip_stops_every_protocol(mir_protocol, opposites, mcq_protocol, fake, world, tmp_path):
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    broken = tmp_path / "videos" / "P01" / "P01_01.mp4"
    broken.write_bytes(broken.read_bytes()[:400])
    for protocol in (mir_protocol, opposites, mcq_protocol):
        moved = {key: str(tmp_path / value.rsplit("/", 1)[1]) for key, value in _paths(protocol).items()}
        with pytest.raises(DataError, match=r"row \d.*P01_01\.mp4"):
            type(protocol)(**{**_fields(protocol), **moved}).run(fake())


def _fields(protocol):
    return {key: value for key, value in vars(protocol).items()}


def _paths(protocol):
    return {k: v for k, v in vars(protocol).items() if k in ("csv", "json", "sentences", "videos")}


def test_mcq_perfect_and_counted(mcq_protocol, fake):
    encoders = fake()
    result = mcq_protocol.run(encoders)
    assert result.metrics == {"mcq.inter": 1.0, "mcq.intra": 1.0}
    assert result.baseline == {"mcq.inter": 0.2, "mcq.intra": 0.2}
    assert result.extra["questions.inter"] == 2 and result.extra["questions.intra"] == 6
    assert result.extra["stated_types"] == {"1": {"inter": 2, "intra": 0}, "2": {"inter": 0, "intra": 6}}
    assert "warning" not in result.extra
    assert result.card["questions"] == 8
    assert result.card["clips"] < 8 * 5  # every clip once
    assert len(encoders.batches) == -(-result.card["clips"] // 8)


def test_mcq_clips_are_unique_and_picks_point_at_them(mcq_protocol):
    questions = read_questions(mcq_protocol.json, mcq_protocol.videos, pattern=mcq_protocol.pattern)
    table, picks = unique_clips(questions, "x")
    keys = [(clip.path, clip.start, clip.end) for clip in table.clips]
    assert len(set(keys)) == len(keys)
    for question, row in zip(questions, picks, strict=True):
        assert [keys[i] for i in row] == [(c.path, c.start, c.end) for c in question.choices]


def test_mcq_warns_where_inter_is_below_intra(mcq_protocol, fake, world, tmp_path):
    data = json.loads((world / "egomcq.json").read_text())
    for name in ("inter0", "inter1"):
        data[name]["answer"] = 3
    (tmp_path / "egomcq.json").write_text(json.dumps(data))
    result = EgoMCQ(**{**_fields(mcq_protocol), "json": str(tmp_path / "egomcq.json")}).run(fake())
    assert result.metrics["mcq.inter"] == 0
    assert "inter accuracy 0.0 % is below intra 100.0 %" in result.extra["warning"]


def test_mcq_refuses_uneven_questions(mcq_protocol, fake, world, tmp_path):
    data = json.loads((world / "egomcq.json").read_text())
    del data["intra5"]["choices"]["4"]
    data["intra5"]["answer"] = 0
    (tmp_path / "egomcq.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="question 'intra5' has 4 choices, others 5"):
        EgoMCQ(**{**_fields(mcq_protocol), "json": str(tmp_path / "egomcq.json")}).run(fake())


def test_opposites_tell_order_from_content(opposites, fake):
    seeing = opposites.run(fake())
    assert seeing.metrics == {"opposites.0-1": 1.0, "opposites.mean": 1.0}
    assert seeing.baseline == {"opposites.0-1": 0.5, "opposites.mean": 0.5}
    assert seeing.extra["clips_by_pair"] == {"0-1": 30}
    assert opposites.run(fake(blind=True)).metrics["opposites.mean"] == 0.5


def test_liking_one_verb_earns_nothing(opposites, fake, world, tmp_path):
    # Drop half of the clips of one verb: the two verbs must still weigh the same.
    rows = (world / "test.csv").read_text().splitlines()
    kept = [row for i, row in enumerate(rows) if ",darkens," not in row or i % 2]
    (tmp_path / "test.csv").write_text("\n".join(kept) + "\n")
    one = Opposites(**{**_fields(opposites), "csv": str(tmp_path / "test.csv")})

    class Always(fake):
        def video(self, frames):
            out = super().video(frames)
            out[:, 3] = np.abs(out[:, 3])
            return out

    assert one.run(Always()).metrics["opposites.mean"] == 0.5


def test_opposites_refuse_bad_pairs(opposites, fake):
    with pytest.raises(ConfigError, match="two different verb classes"):
        Opposites(csv="x", videos="y", pairs=((1, 1),))
    with pytest.raises(ConfigError, match="one pair or more"):
        Opposites(csv="x", videos="y", pairs=())
    with pytest.raises(DataError, match=r"no clip of verb class 1 has .* in pair \(1, 7\)"):
        Opposites(**{**_fields(opposites), "pairs": ((1, 7),)}).run(fake())


def test_opposites_weigh_synonyms_as_one(opposites, fake, world, tmp_path):
    """Two rival narrations of the same clip, one of them unknown words: the clip wins against both or half counts."""
    with open(world / "test.csv", newline="") as file:
        rows = list(csv.reader(file))
    text = rows[0].index("narration")
    for number, row in enumerate(rows[1:]):
        if number % 2:
            row[text] += " slowly"
    with open(tmp_path / "test.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    result = Opposites(**{**_fields(opposites), "csv": str(tmp_path / "test.csv")}).run(fake())
    assert result.metrics["opposites.mean"] == 1.0
    assert result.extra["clips_by_pair"] == {"0-1": 30}
    assert result.card["texts"] > 6


def test_protocols_are_configs(mir_protocol, opposites, mcq_protocol):
    for protocol in (mir_protocol, opposites, mcq_protocol):
        assert from_dict(json.loads(json.dumps(to_dict(protocol)))) == protocol


def test_results_survive_a_file(mcq_protocol, fake, tmp_path):
    result = mcq_protocol.run(fake())
    result.to_json(tmp_path / "deep" / "r.json")
    assert Result.from_json(tmp_path / "deep" / "r.json") == result
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("right", "k", "chance"), [([[1, 0, 0, 0]], 1, 0.25), ([[1, 1, 0, 0]], 2, 5 / 6), ([[1, 0]], 9, 1)]
)
def test_chance_of_recall(right, k, chance):
    assert _chance(np.array(right, bool), k) == pytest.approx(chance)
