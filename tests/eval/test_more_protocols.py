"""Recognition, zero-shot, Charades-Ego, EPIC recognition and retrieval on real video files and on saved scores."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from stvl.core.config import from_dict, to_dict
from stvl.core.errors import ConfigError, DataError
from stvl.data.augment import EvalTransform
from stvl.data.sets.charades import read_charades
from stvl.eval.protocols.charades_ego import CharadesEgo, label_matrix
from stvl.eval.protocols.egomcq import EgoMCQ
from stvl.eval.protocols.epic_recognition import EpicRecognition
from stvl.eval.protocols.recognition import ActionList, Recognition
from stvl.eval.protocols.retrieval import TextVideoRetrieval, dual_softmax_scores
from stvl.eval.protocols.zero_shot import ZeroShot
from stvl.eval.score_files import score_files
from stvl.eval.views import Views

COLOURS, VERBS = ("red", "green", "blue"), ("brightens", "darkens")
PAIRS = tuple(itertools.product(range(3), range(2)))
NAMES = tuple(f"{COLOURS[colour]} {VERBS[verb]}" for colour, verb in PAIRS)


@pytest.fixture(scope="module")
def actions(tmp_path_factory, video_writer):
    """Six videos of one action each, with a Kinetics list, class names, a plain list and a caption list."""
    root = tmp_path_factory.mktemp("actions")
    for number, (pair, name) in enumerate(zip(PAIRS, NAMES, strict=True)):
        video_writer(root / "videos" / name / f"id{number}_000000_000010.mp4", [pair])
    lines = [f"{name},id{number},0,10,val,0" for number, name in enumerate(NAMES)]
    (root / "val.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split,is_cc", *lines]))
    (root / "classes.txt").write_text("\n".join(NAMES))
    captions = [f"{name}/id{number}_000000_000010,{name}" for number, name in enumerate(NAMES)]
    (root / "captions.csv").write_text("\n".join(["video_id,sentence", *captions]))
    return root


@pytest.fixture
def kinetics(actions):
    return ActionList(
        annotations=str(actions / "val.csv"),
        videos=str(actions / "videos"),
        classes=str(actions / "classes.txt"),
    )


class Heads:
    """Heads over what the fake encoders see: `label`, or `verb` and `noun`."""

    frames, size = 4, 16

    def __init__(self, fake: type, heads: tuple[str, ...]) -> None:
        self.encoders, self.heads, self.transform = fake(), heads, EvalTransform(size=16)

    def describe(self) -> dict:
        return self.encoders.describe()

    def logits(self, frames: np.ndarray) -> dict:
        seen = self.encoders.video(frames)
        colours, verbs = 20 * seen[:, :3], 20 * np.stack([seen[:, 3], -seen[:, 3]], 1)
        joint = (colours[:, :, None] + verbs[:, None, :]).reshape(len(seen), 6)
        made = {"label": joint, "verb": verbs, "noun": colours}
        return {head: made[head].astype(np.float32) for head in self.heads}


def test_recognition_names_its_views(kinetics, fake):
    protocol = Recognition(data=kinetics, views=Views(times=2, crops=3), batch=8)
    result = protocol.run(Heads(fake, ("label",)))
    names = [f"{metric}@{views}" for views in ("2x3", "1x1") for metric in ("top1", "top5", "mean_class")]
    assert list(result.metrics) == names and set(result.metrics.values()) == {1.0}
    assert result.baseline["top1@2x3"] == pytest.approx(1 / 6)
    assert result.baseline["top5@1x1"] == pytest.approx(5 / 6)
    card = result.card
    assert (card["views"], card["averaging"]) == ("2x3", "mean of the softmax of 2x3 views")
    assert card["sampling"] == "2 offsets in each of 4 equal segments of the clip"
    assert (card["classes"], card["missing_videos"], card["clips"]) == (6, 0, 6)
    assert [entry["file"] for entry in card["annotations"]] == ["val.csv", "classes.txt"]
    assert "warning" not in result.extra


def test_recognition_by_texts_and_blind(kinetics, fake):
    protocol = Recognition(data=kinetics, batch=8)
    seeing = protocol.run(fake())
    assert seeing.metrics == {"top1@1x1": 1.0, "top5@1x1": 1.0, "mean_class@1x1": 1.0}
    assert seeing.card["model"]["classifier"] == "texts"
    blind = protocol.run(fake(blind=True))
    assert blind.metrics["top1@1x1"] == 0  # the two verbs tie, and ties count against the model
    assert blind.metrics["top5@1x1"] == 1


def test_recognition_says_what_is_missing_and_what_coincides(kinetics, fake, actions, tmp_path):
    rows = (actions / "val.csv").read_text() + "\nred darkens,gone,0,10,val,0\n"
    (tmp_path / "val.csv").write_text(rows)
    fields = {**vars(kinetics), "annotations": str(tmp_path / "val.csv")}
    with pytest.raises(DataError, match=r"row 7: no video file .*gone_000000_000010.mp4"):
        Recognition(data=ActionList(**fields)).run(fake())
    views = Views(times=3, sampling="dense", stride=100.0)
    data = ActionList(**{**fields, "leave_out_missing": True})
    result = Recognition(data=data, views=views).run(fake())
    assert result.card["missing_videos"] == 1 and result.extra["missing"] == ["gone_000000_000010.mp4"]
    assert "1 listed videos (14.3%) are missing" in result.extra["warning"]
    assert "6 of 6 clips are no longer than a window" in result.extra["warning"]
    with pytest.raises(ConfigError, match=r"'label' has 6 classes, the annotations 5"):
        (tmp_path / "five.txt").write_text("\n".join(NAMES[:5]))
        (tmp_path / "four.csv").write_text("\n".join(rows.splitlines()[:5]))
        short = {**fields, "classes": str(tmp_path / "five.txt"), "annotations": str(tmp_path / "four.csv")}
        Recognition(data=ActionList(**short)).run(Heads(fake, ("label",)))


def test_zero_shot_uses_its_templates(kinetics, fake, tmp_path):
    result = ZeroShot(data=kinetics).run(fake())
    assert result.metrics["top1@1x1"] == 1
    assert result.card["model"]["templates"] == len(result.extra["templates"]) == 4
    (tmp_path / "t.txt").write_text("{} brightens\n{}\n")
    told = ZeroShot(data=kinetics, templates_file=str(tmp_path / "t.txt")).run(fake())
    assert told.extra["templates"] == ["{} brightens", "{}"]
    assert told.card["model"]["templates_sha256"] != result.card["model"]["templates_sha256"]
    with pytest.raises(ConfigError, match=r"needs a text encoder; use Recognition"):
        ZeroShot(data=kinetics).run(Heads(fake, ("label",)))


@pytest.fixture(scope="module")
def charades(tmp_path_factory, video_writer):
    """Four first-person videos of two seconds: two of both verbs of red, one of green, one without a label."""
    root = tmp_path_factory.mktemp("charades")
    names = [f"action {i}" for i in range(157)]
    names[5], names[9] = "red", "green"
    (root / "classes.txt").write_text("\n".join(f"c{i:03d} {name}" for i, name in enumerate(names)))
    rows = ["id,script,actions,length,egocentric"]
    for name, colour, told in (
        ("AEGO", 0, "c005 0.0 1.0;c005 1.0 2.0"),
        ("BEGO", 1, "c009 0.0 2.0"),
        ("CEGO", 0, "c005 0.5 1.5"),
        ("DEGO", 2, ""),
    ):
        video_writer(root / "videos" / f"{name}.mp4", [(colour, 0), (colour, 1)])
        rows.append(f"{name},x,{told},2.0,Yes")
    (root / "test.csv").write_text("\n".join(rows))
    return CharadesEgo(
        csv=str(root / "test.csv"), classes=str(root / "classes.txt"), videos=str(root / "videos"), batch=4
    )


def test_charades_ego(charades, fake):
    result = charades.run(fake())
    assert result.metrics == {"map": 1.0, "weighted_map": 1.0}
    assert result.card["protocol"] == "Charades-Ego (zero-shot)"
    assert (result.card["classes"], result.card["view"], result.card["clips"]) == (157, "first", 4)
    assert result.extra["videos_without_label"] == 1 and result.extra["classes_without_video"] == 155
    assert result.extra["ap"][5] == 1.0 and result.extra["ap"][0] is None
    assert 0.3 < result.baseline["map"] < 1
    tuned = CharadesEgo(**{**vars(charades), "setting": "fine-tuned"}).run(fake())
    assert tuned.card["protocol"] == "Charades-Ego (fine-tuned)"


def test_charades_ego_of_saved_scores(charades, tmp_path):
    data = read_charades(charades.csv, charades.videos, charades.classes)
    labels = label_matrix(data)
    np.save(tmp_path / "s.npy", labels.astype(np.float32))
    assert score_files(charades, [str(tmp_path / "s.npy")]).metrics["map"] == 1
    np.save(tmp_path / "s.npy", -labels.astype(np.float32))
    # Reversed among three: red at ranks 2 and 3, green at 3.
    found = score_files(charades, [str(tmp_path / "s.npy")])
    assert found.metrics["map"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 3) / 2)
    assert found.card["model"].startswith("unknown") and found.card["scores"][0]["file"] == "s.npy"
    np.save(tmp_path / "s.npy", labels[:3].astype(np.float32))
    with pytest.raises(ConfigError, match=r"s.npy is \(3, 157\): CharadesEgo expects 2 axes and 4 rows"):
        score_files(charades, [str(tmp_path / "s.npy")])


@pytest.fixture
def epic(world, tmp_path):
    (tmp_path / "verbs.csv").write_text("id,key\n0,brightens\n1,darkens\n")
    (tmp_path / "nouns.csv").write_text("id,key\n0,red\n1,green\n2,blue\n")
    (tmp_path / "unseen.csv").write_text("participant_id\nP01\n")
    (tmp_path / "tail_verbs.csv").write_text("verb\n1\n")
    (tmp_path / "tail_nouns.csv").write_text("noun\n2\n")
    files: dict[str, Any] = {
        name: str(tmp_path / f"{name}.csv")
        for name in ("verbs", "nouns", "unseen", "tail_verbs", "tail_nouns")
    }
    return EpicRecognition(csv=str(world / "test.csv"), videos=str(world / "videos"), batch=8, **files)


def test_epic_recognition(epic, fake):
    result = epic.run(Heads(fake, ("verb", "noun")))
    assert set(result.metrics.values()) == {1.0}
    assert {"verb.top1@1x1", "noun.top5@1x1", "action.mean_class@1x1", "unseen.action.top1@1x1"} <= set(
        result.metrics
    )
    assert result.baseline["action.top1@1x1"] == pytest.approx(1 / 6)
    assert result.baseline["verb.top5@1x1"] == 1
    assert result.extra["unique_actions"] == 6
    assert len(result.card["annotations"]) == 6
    texts = epic.run(fake())
    assert texts.metrics["action.top1@1x1"] == 1
    blind = epic.run(fake(blind=True))
    assert blind.metrics["noun.top1@1x1"] == 1
    assert blind.metrics["verb.top1@1x1"] == blind.metrics["action.top1@1x1"] == 0


def test_epic_recognition_of_saved_logits(epic, world, tmp_path):
    rows = (world / "test.csv").read_text().splitlines()[1:]
    verbs, nouns = (np.array([int(row.split(",")[i]) for row in rows]) for i in (7, 9))
    # The verb is always right; of the nouns only red: 10 of 30 clips.
    np.save(tmp_path / "v.npy", 9.0 * np.eye(2)[verbs])
    np.save(tmp_path / "n.npy", np.tile([2.0, 1.0, 0.0], (30, 1)))
    found = score_files(epic, [str(tmp_path / "v.npy"), str(tmp_path / "n.npy")]).metrics
    assert found["verb.top1@1x1"] == 1
    assert found["noun.top1@1x1"] == found["action.top1@1x1"] == pytest.approx(1 / 3)
    assert found["noun.mean_class@1x1"] == found["action.mean_class@1x1"] == pytest.approx(1 / 3)
    # Tail: verb darkens or noun blue: 20 clips, of which the 5 red ones are right.
    tail = (verbs == 1) | (nouns == 2)
    assert found["tail.action.top1@1x1"] == pytest.approx((tail & (nouns == 0)).sum() / tail.sum())
    assert found["tail.noun.top1@1x1"] == 0
    with pytest.raises(ConfigError, match=r"n.npy is \(30, 3\), there are 2 verb classes"):
        score_files(epic, [str(tmp_path / "n.npy"), str(tmp_path / "v.npy")])
    with pytest.raises(ConfigError, match=r"EpicRecognition takes 2 files of scores, found 1"):
        score_files(epic, [str(tmp_path / "v.npy")])
    (tmp_path / "unseen.csv").write_text("participant_id\nP77\n")
    with pytest.raises(DataError, match=r"no clip is of the subset 'unseen'"):
        score_files(epic, [str(tmp_path / "v.npy"), str(tmp_path / "n.npy")])


@pytest.fixture
def retrieval(actions):
    return TextVideoRetrieval(
        annotations=str(actions / "captions.csv"), videos=str(actions / "videos"), batch=4
    )


def test_retrieval(retrieval, fake):
    result = retrieval.run(fake())
    assert {name: result.metrics[name] for name in ("r@1.t2v", "r@1.v2t")} == {"r@1.t2v": 1, "r@1.v2t": 1}
    assert result.extra["median_rank.t2v"] == 1 and result.extra["mean_rank.v2t"] == 1
    assert result.baseline["r@1.t2v"] == pytest.approx(1 / 6)
    assert result.card["post_processing"] == "none" and result.card["texts"] == 6
    blind = retrieval.run(fake(blind=True))
    assert blind.extra["mean_rank.t2v"] == pytest.approx(1.5)  # ties count half by default
    assert blind.metrics["r@1.t2v"] == 0
    dual = TextVideoRetrieval(**{**vars(retrieval), "dual_softmax": 20.0}).run(fake())
    assert dual.card["post_processing"] == "dual softmax, inverse temperature 20"


def test_retrieval_of_saved_similarities(retrieval, tmp_path):
    file = str(tmp_path / "s.npy")
    for matrix, ranks in ((np.eye(6), 1.0), (-np.eye(6), 6.0), (np.zeros((6, 6)), 3.5)):
        np.save(file, matrix)
        assert score_files(retrieval, [file]).extra["mean_rank.t2v"] == ranks
    bad = np.eye(6)
    bad[4, 2] = np.nan
    np.save(file, bad)
    with pytest.raises(DataError, match=r"NaN, first in row 4, column 2"):
        score_files(retrieval, [file])
    np.save(file, np.zeros((6, 5)))
    with pytest.raises(ConfigError, match=r"similarity is \(6, 5\), expected \(texts, videos\) \(6, 6\)"):
        score_files(retrieval, [file])


def test_dual_softmax_by_hand():
    # Column 0 fits both queries alike and counts half for each; column 1 fits the second only.
    found = dual_softmax_scores(np.array([[1.0, 0.0], [1.0, 1.0]]), 1.0)
    share = np.e / (1 + np.e)
    np.testing.assert_allclose(found, [[0.5, 0.0], [0.5, share]])


def test_recognition_of_saved_scores(kinetics, tmp_path):
    protocol = Recognition(data=kinetics, views=Views(times=2, crops=1))
    file = str(tmp_path / "s.npy")
    np.save(file, np.stack([np.eye(6), np.zeros((6, 6))], 1))
    found = score_files(protocol, [file])
    assert (
        list(found.metrics) == ["top1@2x1", "top5@2x1", "mean_class@2x1"] and found.metrics["top1@2x1"] == 1
    )
    np.save(file, np.zeros((6, 3, 6)))
    with pytest.raises(ConfigError, match=r"second axis is not the 2x1 views"):
        score_files(protocol, [file])
    np.save(file, np.zeros(6))
    with pytest.raises(ConfigError, match=r"expects 2 or 3 axes and 6 rows"):
        score_files(protocol, [file])
    np.save(file, np.zeros((6, 6), int))
    with pytest.raises(DataError, match=r"expected floating numbers, found int64"):
        score_files(protocol, [file])
    np.save(file, np.array([None]), allow_pickle=True)
    with pytest.raises(DataError, match=r"does not hold scores as an .npy file"):
        score_files(protocol, [file])


def test_egomcq_of_saved_scores(world, tmp_path):
    protocol = EgoMCQ(json=str(world / "egomcq.json"), videos="")
    questions = json.loads((world / "egomcq.json").read_text()).values()
    np.save(tmp_path / "s.npy", np.eye(5)[[question["answer"] for question in questions]])
    found = score_files(protocol, [str(tmp_path / "s.npy")])
    assert found.metrics == {"mcq.inter": 1.0, "mcq.intra": 1.0}
    assert found.extra == {"questions.inter": 2, "questions.intra": 6}
    np.save(tmp_path / "s.npy", np.zeros((8, 4)))
    with pytest.raises(ConfigError, match=r"is \(8, 4\), the questions have 5 choices"):
        score_files(protocol, [str(tmp_path / "s.npy")])
    with pytest.raises(ConfigError, match=r"int does not take saved scores"):
        score_files(3, [])


def test_protocols_are_configs_and_refuse_what_does_not_fit(kinetics, charades, epic, retrieval):
    protocols = (
        Recognition(data=kinetics, views=Views(times=3)),
        ZeroShot(data=kinetics),
        charades,
        epic,
        retrieval,
    )
    for protocol in protocols:
        assert from_dict(json.loads(json.dumps(to_dict(protocol)))) == protocol
    with pytest.raises(ConfigError, match=r"'something' needs `classes`"):
        ActionList(annotations="a", videos="v", dialect="something")
    with pytest.raises(ConfigError, match=r"names its files itself"):
        ActionList(annotations="a", videos="v", dialect="list", classes="c", pattern="{id}")
