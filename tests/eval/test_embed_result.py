"""Embeddings and their files, the encoder contract, results and atomic writes."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from stvl.core.errors import ConfigError, DataError, StvlError
from stvl.data.sets.epic import read_epic
from stvl.eval.card import hash_texts, protocol_card, versions
from stvl.eval.embed import embed_table, embed_texts, load_npz, save_npz, text_embeddings
from stvl.eval.encoders import Encoders
from stvl.eval.result import Result, atomic_write


@pytest.fixture(scope="module")
def table(world):
    return read_epic(str(world / "test.csv"), str(world / "videos"))


def test_embeddings_come_in_table_order_whatever_the_batch(table, fake):
    one = embed_table(fake(), table, batch=30)
    other = embed_table(fake(), table, batch=7, threads=1)
    np.testing.assert_array_equal(one.embeddings, other.embeddings)
    assert one.ids == tuple(clip.id for clip in table.clips)
    assert one.path == tuple(clip.path for clip in table.clips)
    assert one.text == table.texts
    for row, clip in enumerate(table.clips):
        assert one.embeddings[row].argmax() in (clip.nouns[0], 3)
        assert (one.embeddings[row, 3] > 0) == (clip.verb == 0)


def test_batches_keep_one_shape(table, fake):
    encoders = fake()
    embed_table(encoders, table, batch=8)
    assert encoders.batches == [8, 8, 8, 8]


def test_texts_in_any_batch(fake):
    texts = ["red brightens", "blue darkens", "green", "red"]
    np.testing.assert_array_equal(embed_texts(fake(), texts, batch=3), embed_texts(fake(), texts))
    assert embed_texts(fake(), texts).shape == (4, 5)
    with pytest.raises(ConfigError, match="a list of one or more"):
        embed_texts(fake(), [])


def test_npz_round_trip(table, fake, tmp_path):
    for made in (embed_table(fake(), table), text_embeddings(fake(), ["red", "blue – größer"])):
        save_npz(tmp_path / "e.npz", made)
        back = load_npz(tmp_path / "e.npz")
        assert type(back) is type(made)
        for field in dataclasses.fields(made):
            np.testing.assert_array_equal(getattr(back, field.name), getattr(made, field.name))
        assert len(back) == len(made)
        with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
            assert "weights_sha256" in json.loads(str(arrays["card"]))


def test_files_with_pickles_or_missing_arrays_are_refused(tmp_path):
    path = tmp_path / "e.npz"
    np.savez(
        path, embeddings=np.array([{"a": 1}], object), card=np.array('{"kind": "text"}'), text=np.array(["a"])
    )
    with pytest.raises(DataError, match=r"does not hold embeddings of stvl embed: .*allow_pickle"):
        load_npz(path)
    np.savez(path, embeddings=np.zeros((1, 2), np.float32), card=np.array('{"kind": "image"}'))
    with pytest.raises(DataError, match="does not hold embeddings of stvl embed: 'image'"):
        load_npz(path)
    np.savez(
        path, embeddings=np.zeros((2, 2), np.float32), card=np.array('{"kind": "text"}'), text=np.array(["a"])
    )
    with pytest.raises(DataError, match="its columns have different lengths"):
        load_npz(path)
    np.save(tmp_path / "bare.npy", np.zeros(3))
    with pytest.raises(DataError, match="one bare array"):
        load_npz(tmp_path / "bare.npy")


def test_nan_or_unnormalised_embeddings_are_refused(table, fake):
    class Broken(fake):
        factor = np.nan

        def video(self, frames):
            out = super().video(frames)
            out[-1] *= self.factor
            return out

    with pytest.raises(StvlError, match=rf"1 video embeddings .* first '{table[3].id}': nan"):
        embed_table(Broken(), table.subset([0, 1, 2, 3]), batch=4)
    Broken.factor = 2.0
    with pytest.raises(StvlError, match="not of length 1"):
        embed_table(Broken(), table.subset([0, 1, 2, 3]), batch=4)


def test_encoders_that_contradict_themselves_are_refused(table, fake):
    encoders = fake()
    encoders.width = 6
    with pytest.raises(ConfigError, match=r"video embeddings are \(4, 5\), expected \(4, 6\)"):
        embed_table(encoders, table.subset([0]), batch=4)
    encoders = fake()
    encoders.size = 20
    with pytest.raises(ConfigError, match="the transform makes frames of 16, the encoder takes 20"):
        embed_table(encoders, table, batch=4)

    class Silent(fake):
        def describe(self):
            return {key: value for key, value in super().describe().items() if key != "weights_sha256"}

    with pytest.raises(ConfigError, match="do not describe 'weights_sha256'"):
        embed_table(Silent(), table)
    assert isinstance(fake(), Encoders)


def test_hash_of_texts_sees_order_and_borders():
    assert len({hash_texts(texts) for texts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", "c", ""])}) == 4


def test_versions_name_the_installed():
    assert versions()["numpy"] == np.__version__
    assert set(versions()) == {"stvl", "jax", "jaxlib", "flax", "numpy", "av"}


GOOD = {"metrics": {"m": 0.5}, "baseline": {"m": 0.1}, "card": {"protocol": "p", "split": "s", "clips": 3}}


def test_results_refuse_bare_scores():
    with pytest.raises(ConfigError, match="metric m has no random baseline"):
        Result(**{**GOOD, "baseline": {}})
    with pytest.raises(ConfigError, match="without a protocol card"):
        Result(**{**GOOD, "card": {}})
    with pytest.raises(ConfigError, match="metric m is nan"):
        Result(**{**GOOD, "metrics": {"m": float("nan")}})
    with pytest.raises(ConfigError, match="one metric or more"):
        Result(**{**GOOD, "metrics": {}})


def test_result_table_shows_chance_card_and_warning():
    out = Console(file=io.StringIO(), width=100)
    out.print(Result(**GOOD, extra={"warning": "look here"}).table())
    text = out.file.getvalue()
    assert "p: s" in text and "50.0" in text and "10.0" in text and "3 clips" in text
    assert "warning: look here" in text


def test_reading_what_is_no_result(tmp_path):
    (tmp_path / "r.json").write_text('{"metrics": {}}')
    with pytest.raises(DataError, match=r"r.json is not a result of stvl eval: KeyError\('baseline'\)"):
        Result.from_json(tmp_path / "r.json")
    (tmp_path / "r.json").write_text("nothing")
    with pytest.raises(DataError, match="is not a result"):
        Result.from_json(tmp_path / "r.json")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "file"
    atomic_write(target, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(target, fail)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_card_overrides_are_named(table, fake, world):
    from stvl.eval.card import Split

    split = Split(name="s", table=table, annotations=(str(world / "test.csv"),))
    card = protocol_card(fake(), "p", split, post_processing="dual softmax")
    assert card["post_processing"] == "dual softmax"
    assert card["clips_sha256"] == table.sha256 and card["texts"] == 0
