"""``stvl eval WORD``: saved scores, relevancy, reports, and protocols on a trained run."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stvl.cli.evaluate import WORDS, arguments
from stvl.cli.main import main
from tests.fixtures import TrainedRun

HEADER = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,verb_class,all_noun_classes"
KEYS = ["map.v2t", "map.t2v", "map.avg", "ndcg.v2t", "ndcg.t2v", "ndcg.avg"]

# Relevancy: clips take cup, take plate, wash cup; sentences take cup, wash cup.
C = np.array([[1, 0.5], [0.5, 0], [0.5, 1]])


@pytest.fixture
def epic(tmp_path, monkeypatch) -> list[str]:
    """Two annotation files in a folder of their own, as options."""
    monkeypatch.chdir(tmp_path)
    rows = [
        f"c{i},P01,P01_01,0{i}:00:00,0{i}:00:01,{text},{verb},[{noun}]"
        for i, (text, verb, noun) in enumerate((("take cup", 0, 0), ("take plate", 0, 1), ("wash cup", 1, 0)))
    ]
    Path("test.csv").write_text("\n".join([HEADER, *rows]))
    Path("sentence.csv").write_text("narration_id,narration\nc0,take cup\nc2,wash cup\n")
    return ["--annotations", "test.csv", "--sentences", "sentence.csv"]


def scores(epic: list[str], similarity: np.ndarray) -> dict[str, float]:
    np.save("sim.npy", similarity)
    assert main(["eval", "mir", "--similarity", "sim.npy", *epic, "--json", "out.json"]) == 0
    return json.loads(Path("out.json").read_text())


def test_mir_of_perfect_and_reversed_similarities(epic, capsys):
    perfect = scores(epic, C.astype(np.float32))
    assert list(perfect) == KEYS
    # Clip 1 has no exact sentence, so only nDCG counts it.
    assert perfect == pytest.approx(dict.fromkeys(KEYS, 1.0))
    assert "3 clips x 2 sentences" in capsys.readouterr().out
    found = scores(epic, -C)
    gain = 1 / np.log2(3)
    # Clips 0 and 2: hit at rank 2 after 0.5, precision 1.5 / 2; clip 1 puts its 0 first, K = 1.
    assert found["map.v2t"] == pytest.approx(0.75)
    assert found["ndcg.v2t"] == pytest.approx((2 * (0.5 + gain) / (1 + 0.5 * gain) + 0) / 3)
    # Sentence 0: c = 1, 1/2, 1/2 with the 1 last: 2 / 3. Sentence 1: 0, 1/2, 1: 1.5 / 3.
    assert found["map.t2v"] == pytest.approx((2 / 3 + 0.5) / 2)
    # Its two halves stand in reverse order of their rows, which is no matter; sentence 1 (K = 2): 0, 1/2.
    first = (0.5 + 0.5 * gain + 1 / 2) / (1 + 0.5 * gain + 0.5 / 2)
    assert found["ndcg.t2v"] == pytest.approx((first + 0.5 * gain / (1 + 0.5 * gain)) / 2)


def test_mir_ties_as_the_script(epic):
    found = scores(epic, np.zeros((3, 2)))
    # mAP in column order: clip 0 finds 1 first, clip 2 at rank 2 after 0.5.
    assert found["map.v2t"] == pytest.approx((1 + 0.75) / 2)
    # nDCG in reverse order: clip 0 sees 0.5, 1; clip 1 (K = 1) sees 0; clip 2 sees 1, 0.5.
    gain = 1 / np.log2(3)
    best = 1 + 0.5 * gain
    assert found["ndcg.v2t"] == pytest.approx(((0.5 + gain) / best + 0 + 1) / 3)


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        (np.where(C == 0, np.nan, C), "similarity holds NaN, first in row 1, column 1"),
        (C.T, "similarity is (2, 3) and relevancy (3, 2)"),
        (C[:2], "similarity is (2, 2) and relevancy (3, 2)"),
        (C[0], "similarity is (2,) and relevancy (3, 2)"),
        (C.astype(int), "expected floating numbers, found int64"),
        (np.array([[None]]), "does not hold similarities as an .npy file"),
    ],
)
def test_mir_refuses_similarities(epic, similarity, message, capsys):
    np.save("sim.npy", similarity, allow_pickle=True)
    assert main(["eval", "mir", "--similarity", "sim.npy", *epic, "--json", "out.json"]) == 1
    assert message in capsys.readouterr().err
    assert not Path("out.json").exists()


def test_mir_writes_a_card_on_demand(epic):
    np.save("sim.npy", C)
    assert main(["eval", "mir", "--similarity", "sim.npy", *epic, "--out", "full.json"]) == 0
    full = json.loads(Path("full.json").read_text())
    assert list(full["metrics"]) == KEYS and 0 < full["baseline"]["map.avg"] < 1
    assert full["card"]["scores"][0]["file"] == "sim.npy" and len(full["card"]["annotations"]) == 2


def test_mir_wants_scores_or_videos(epic, capsys):
    assert main(["eval", "mir", *epic]) == 1
    assert "give --similarity FILE.npy for saved scores, or --videos FOLDER" in capsys.readouterr().err


def test_mir_does_not_load_jax(epic):
    np.save("sim.npy", C)
    words = ["eval", "mir", "--similarity", "sim.npy", *epic]
    code = f"import sys; from stvl.cli.main import main; main({words!r}); print('jax' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    made = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(root)},
    )
    assert made.stdout.splitlines()[-1] == "False"


def test_relevancy_is_written_and_compared(epic, capsys):
    assert main(["eval", "relevancy", *epic, "--out", "rel.npy"]) == 0
    assert "3 clips x 2 sentences: 2 of relevancy 1, 83.333% above 0" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load("rel.npy"), C.astype(np.float32))
    Path("rel.pkl").write_bytes(pickle.dumps(C))
    assert main(["eval", "relevancy", *epic, "--compare", "rel.pkl"]) == 0
    assert "0 of 6 cells differ, by 0 at most" in capsys.readouterr().out
    Path("rel.pkl").write_bytes(pickle.dumps(C + [[0, 0], [0, 0.25], [0, 0]]))
    assert main(["eval", "relevancy", *epic, "--compare", "rel.pkl"]) == 1
    assert "1 of 6 cells differ, by 0.25 at most (row 1, column 1)" in capsys.readouterr().out


def test_report_beside_published_rows(epic, capsys):
    scores(epic, C)
    capsys.readouterr()
    assert main(["eval", "report", "out.json", "--with", "eva02at", "--markdown", "r.md"]) == 0
    out = capsys.readouterr().out
    assert "EPIC-KITCHENS-100 MIR" in out and "source: arXiv 2506.14356, Table I" in out
    assert "| EVA02-AT-L + SMS, fine-tuned | EgoClip+ | 68.7 | 58.3 | 63.5 |" in Path("r.md").read_text()
    assert main(["eval", "report", "out.json", "--with", "eva02"]) == 1
    assert "(did you mean 'eva02at'?)" in capsys.readouterr().err


def test_saved_scores_of_a_protocol_need_no_videos(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("list.csv").write_text("video_id,sentence\na,one\nb,two\n")
    np.save("s.npy", np.eye(2))
    words = ["eval", "retrieval", "--annotations", "list.csv", "--scores", "s.npy"]
    assert main([*words, "--out", "r.json"]) == 0
    assert json.loads(Path("r.json").read_text())["metrics"]["r@1.t2v"] == 1
    assert main([*words, "--run", "x"]) == 1
    assert (
        "give saved --scores or a model (--run, --weights, --frames, --step), not both"
        in capsys.readouterr().err
    )


def test_a_protocol_on_a_run(tiny_run: TrainedRun, tiny_world, tmp_path, capsys):
    run = shutil.copytree(tiny_run.folder, tmp_path / "copy")
    protocol = next(item for item in tiny_run.experiment.evals if type(item).__name__ == "EgoMCQ")
    words = [
        "eval",
        "egomcq",
        "--json",
        protocol.json,
        "--videos",
        protocol.videos,
        "--pattern",
        protocol.pattern,
    ]
    assert main([*words, "--run", str(run)]) == 0
    found = json.loads((run / "results" / "EgoMCQ.json").read_text())
    assert found["metrics"]["mcq.intra"] == pytest.approx(tiny_run.scores["EgoMCQ/mcq.intra"])
    assert "EgoMCQ" in capsys.readouterr().out


def test_words_have_help_and_options(capsys):
    for word in WORDS:
        with pytest.raises(SystemExit) as caught:
            main(["eval", word, "--help"])
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        for option in arguments(word):
            if option != "results":  # positional
                assert f"--{option.replace('_', '-')}" in shown, (word, option)
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    shown = capsys.readouterr().out
    assert all(f"  {word} " in shown for word in WORDS)
    assert main(["eval", "mirr"]) == 1
    assert "no run folder and no protocol 'mirr' (did you mean 'mir'?)" in capsys.readouterr().err
