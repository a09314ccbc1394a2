"""Relevancy matrices, saved similarities, published rows and reports."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from stvl.core.errors import ConfigError, DataError
from stvl.eval.published import CHARADES_TUNED, MCQ, MIR, published
from stvl.eval.report import markdown, read_result, report
from stvl.eval.result import Result
from stvl.eval.saved import (
    compare_matrices,
    epic_relevancy,
    load_matrix,
    load_scores,
    save_matrix,
)

KEYS = ("map.v2t", "map.t2v", "map.avg", "ndcg.v2t", "ndcg.t2v", "ndcg.avg")


@pytest.fixture
def truth(world):
    return epic_relevancy(world / "test.csv", world / "test_sentence.csv")


def test_relevancy_of_the_world_by_hand(truth):
    # A clip and a sentence: same verb 1/2, same colour 1/2.
    assert truth.matrix.shape == (30, 6) and truth.matrix.dtype == np.float32
    for clip, row in zip(truth.table.clips, truth.matrix, strict=True):
        for text, found in zip(truth.texts, row, strict=True):
            mine, other = clip.text.split(), text.split()
            assert found == 0.5 * (mine[0] == other[0]) + 0.5 * (mine[1] == other[1])


def test_relevancy_is_written_the_same_every_time(truth, world, tmp_path):
    save_matrix(tmp_path / "a.npy", truth.matrix)
    save_matrix(tmp_path / "b.npy", epic_relevancy(world / "test.csv", world / "test_sentence.csv").matrix)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    with pytest.raises(ConfigError, match=r"written as .npy, found the name"):
        save_matrix(tmp_path / "a.pkl", truth.matrix)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_pickled_matrix_is_compared(truth, tmp_path, dtype):
    other = truth.matrix.astype(dtype)
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(other, protocol=4))
    same = compare_matrices(truth.matrix, load_matrix(tmp_path / "r.pkl"))
    assert (same["max_difference"], same["different"], same["ones"], same["ones_other"]) == (0, 0, 30, 30)
    assert same["above_0"] == same["above_0_other"] == (truth.matrix > 0).mean()
    other[7, 3] += 0.25
    other[9, 1] = 1 - other[9, 1]
    np.save(tmp_path / "r.npy", other)
    found = compare_matrices(truth.matrix, load_matrix(tmp_path / "r.npy"))
    gaps = np.abs(other.astype(float) - truth.matrix)
    assert found["max_difference"] == gaps.max() and gaps[found["at"]] == gaps.max()
    assert found["different"] == (gaps > 1e-6).sum() and found["cells"] == 180


def test_other_matrices_are_refused(truth, tmp_path):
    with pytest.raises(
        ConfigError, match=r"relevancies \(30, 6\), the other matrix is \(6, 30\) .*transposed"
    ):
        compare_matrices(truth.matrix, truth.matrix.T)
    bad = truth.matrix.copy()
    bad[29, 5] = np.nan
    with pytest.raises(DataError, match=r"the other matrix holds NaN, first in row 29, column 5"):
        compare_matrices(truth.matrix, bad)
    np.save(tmp_path / "flat.npy", truth.matrix[0])
    with pytest.raises(DataError, match=r"two axes, found shape \(6,\)"):
        load_matrix(tmp_path / "flat.npy")
    np.savez(tmp_path / "z.npz", truth.matrix)
    with pytest.raises(DataError, match=r"it is an .npz archive"):
        load_scores(tmp_path / "z.npz")
    with pytest.raises(DataError, match=r"there is no such file \(similarities expected\)"):
        load_scores(tmp_path / "none.npy")


def test_published_rows_agree_with_themselves():
    rows = published("eva02at")
    assert len(rows) > 50
    for row in rows:
        assert row.source.startswith("arXiv 2506.14356, Table ")
        assert all(0 < value < 100 for value in row.percent.values())
        for name in ("map", "ndcg"):
            if f"{name}.v2t" in row.percent:
                v2t, t2v, mean = (row.percent[f"{name}.{way}"] for way in ("v2t", "t2v", "avg"))
                # Three numbers with one decimal each.
                assert abs((v2t + t2v) / 2 - mean) < 0.101, row
    assert len({(row.method, row.protocol, row.setting, row.trained_on) for row in rows}) == len(rows)


def test_published_rows_are_the_ones_the_paper_reports():
    found = {
        (row.method, row.protocol, row.setting): row.percent
        for row in published("eva02at")
        if row.trained_on == "EgoClip+"
    }
    assert found["EVA02-AT-B", MCQ, "zero-shot"] == {"mcq.inter": 95.0, "mcq.intra": 63.2}
    assert found["EVA02-AT-L", MCQ, "zero-shot"] == {"mcq.inter": 95.9, "mcq.intra": 66.5}
    assert found["EVA02-AT-L", MIR, "zero-shot"]["map.avg"] == 38.9
    assert found["EVA02-AT-B + SMS", MIR, "fine-tuned"]["ndcg.avg"] == 70.8
    assert found["EVA02-AT-L + SMS", CHARADES_TUNED, "fine-tuned"] == {"map": 42.5}
    assert {row.protocol for row in published("eva02at", MCQ)} == {MCQ}
    with pytest.raises(ConfigError, match=r"called 'eva02' \(did you mean 'eva02at'\?\)"):
        published("eva02")


def result(protocol: str, scores: dict[str, float], **card) -> Result:
    return Result(
        metrics=scores, baseline=dict.fromkeys(scores, 0.2), card={"protocol": protocol, "frames": 4, **card}
    )


def test_report_puts_published_rows_first():
    own = {"a": result(MCQ, {"mcq.inter": 0.5, "mcq.intra": 0.25}), "b": result("other", {"x": 0.125})}
    tables = report(own, published("eva02at"))
    assert [table.protocol for table in tables] == [MCQ, "other"]
    assert tables[0].metrics == ("mcq.inter", "mcq.intra")
    assert [line.name for line in tables[0].lines][-2:] == ["EVA02-AT-L, zero-shot", "a"]
    assert [line.name for line in tables[1].lines] == ["b"]
    text = markdown(tables)
    assert "| EVA02-AT-B, zero-shot | EgoClip+ | 95.0 | 63.2 | arXiv 2506.14356, Table II |" in text
    assert "| a | frames 4 | 50.0 | 25.0 | here |" in text and "| b | frames 4 | 12.5 | here |" in text
    with pytest.raises(ConfigError, match=r"one result or more"):
        report({})


def test_report_says_what_cannot_be_compared():
    scores = {"r@1.t2v": 0.5}
    own = {
        "plain": result("retrieval", scores, post_processing="none", views="1x1", clips_sha256="ab"),
        "dual": result("retrieval", scores, post_processing="dual softmax", views="1x1", clips_sha256="ab"),
    }
    (table,) = report(own)
    assert table.warnings == ("post_processing differs (plain: none; dual: dual softmax)",)
    assert "Not comparable: post_processing differs" in markdown([table])


def test_results_are_read_flat_or_whole(tmp_path):
    (tmp_path / "flat.json").write_text(json.dumps(dict.fromkeys(KEYS, 0.5)))
    flat = read_result(tmp_path / "flat.json")
    assert flat.metrics["map.v2t"] == 0.5 and flat.card == {"protocol": MIR}
    whole = result(MCQ, {"mcq.inter": 0.5})
    whole.to_json(tmp_path / "whole.json")
    assert read_result(tmp_path / "whole.json") == whole
    assert "| flat |" in markdown(report({"flat": flat})) and "here, no card" in markdown(
        report({"flat": flat})
    )
    for text in ("[1]", "{}", "no json", json.dumps(dict.fromkeys(KEYS, "x"))):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=r"bad\.json is not a result of stvl eval"):
            read_result(tmp_path / "bad.json")
    with pytest.raises(DataError, match=r"there is no such file"):
        read_result(tmp_path / "none.json")
