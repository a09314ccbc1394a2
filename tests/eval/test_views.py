"""Views of a clip: times and crops worked by hand, and scores over real video files."""

from __future__ import annotations

import numpy as np
import pytest

from stvl.core.errors import ConfigError, DataError, StvlError
from stvl.data.augment import EvalTransform
from stvl.data.records import Clip, ClipTable
from stvl.eval.classifier import TextClassifier, as_classifier, batch_logits, class_vectors, head_of
from stvl.eval.views import Views, crop_frames, score_views, view_times


def test_one_view_looks_at_the_centres_of_segments():
    np.testing.assert_allclose(view_times((2.0, 6.0), 4, Views()), [[2.5, 3.5, 4.5, 5.5]])


def test_two_segment_views_lie_at_a_quarter_and_three_quarters():
    found = view_times((0.0, 4.0), 2, Views(times=2))
    np.testing.assert_allclose(found, [[0.5, 2.5], [1.5, 3.5]])


def test_dense_windows_run_from_the_first_second_to_the_last():
    # 4 frames every 5 of 10 a second: windows of 2 s over 10 s begin at 0, 4 and 8.
    found = view_times((0.0, 10.0), 4, Views(times=3, sampling="dense", stride=5.0), fps=10.0)
    np.testing.assert_allclose(found[:, 0], [0.25, 4.25, 8.25])
    np.testing.assert_allclose(np.diff(found, axis=1), 0.5)
    one = view_times((0.0, 10.0), 4, Views(sampling="dense", stride=5.0), fps=10.0)
    np.testing.assert_allclose(one, [[4.25, 4.75, 5.25, 5.75]])


def test_dense_windows_longer_than_the_clip_are_all_the_clip():
    found = view_times((1.0, 2.0), 2, Views(times=3, sampling="dense", stride=99.0), fps=10.0)
    np.testing.assert_allclose(found, [[1.25, 1.75]] * 3)
    with pytest.raises(DataError, match=r"frame rate, found 0"):
        view_times((1.0, 2.0), 2, Views(sampling="dense"))
    with pytest.raises(DataError, match=r"start 2 s and end 2 s"):
        view_times((2.0, 2.0), 2, Views())


@pytest.mark.parametrize("turned", [False, True])
def test_three_crops_are_the_ends_and_the_middle_of_the_longer_side(turned):
    ramp = np.broadcast_to(np.arange(10, dtype=np.uint8)[None, None, :, None], (2, 4, 10, 3))
    pictures = np.ascontiguousarray(ramp.transpose(0, 2, 1, 3) if turned else ramp)
    found = crop_frames(pictures, EvalTransform(size=4), 3)
    values = [crop[0, :, 0, 0] if turned else crop[0, 0, :, 0] for crop in found]
    assert [value.tolist() for value in values] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert len(crop_frames(pictures, EvalTransform(size=4), 1)) == 1
    with pytest.raises(ConfigError, match=r"'squash' sees the whole frame"):
        crop_frames(pictures, EvalTransform(size=4, resize="squash"), 3)


def test_views_are_checked_and_described():
    assert Views(times=10, crops=3).name == "10x3"
    told = Views(times=10, crops=3, sampling="dense", stride=2.0).describe(16)
    assert told == {
        "views": "10x3",
        "sampling": "10 windows of 16 frames, every 2 frames of the video",
        "averaging": "mean of the softmax of 10x3 views",
    }
    assert Views().describe(8)["averaging"] == "none, one view"
    with pytest.raises(ConfigError, match=r"stride .* above 0, found 0"):
        Views(stride=0.0)
    with pytest.raises(ConfigError, match=r"at least 1x1, found 0x1"):
        Views(times=0)


class Brightness:
    """A head with two classes whose logits are the brightness of the last frame, and its negative."""

    frames, size = 4, 16

    def __init__(self) -> None:
        self.transform = EvalTransform(size=16)
        self.sizes: list[int] = []

    def describe(self) -> dict:
        return {}

    def logits(self, frames: np.ndarray) -> dict:
        self.sizes.append(len(frames))
        bright = frames[:, -1].mean((1, 2, 3)).astype(np.float32) / 255
        return {"label": np.stack([bright, -bright], 1)}


@pytest.fixture
def table(world):
    path = str(world / "videos" / "P01" / "P01_01.mp4")
    clips = tuple(
        Clip(id=f"c{i}", path=path, start=float(i), end=float(i + 1), text="x", row=i + 1) for i in range(3)
    )
    return ClipTable(clips, "test")


def test_scores_of_views_are_means_of_single_ones(table):
    model, told = Brightness(), []
    views = Views(times=2, averaging="logits")
    found = score_views(model, table, views, batch=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert set(model.sizes) == {2}  # three views a clip (two and the single one) in batches of one size
    alone = score_views(model, table, Views(averaging="logits"), batch=4)
    np.testing.assert_allclose(found.single["label"], alone.mean["label"])
    assert alone.single is alone.mean
    # The two looks lie on either side of the single one, in clips that brighten or darken evenly.
    np.testing.assert_allclose(found.mean["label"], alone.mean["label"], atol=0.03)
    assert np.abs(found.mean["label"] - alone.mean["label"]).max() > 0
    assert found.coincide == 0


def test_views_that_coincide_are_counted(table):
    views = Views(times=2, sampling="dense", stride=50.0)
    assert score_views(Brightness(), table, views).coincide == 3
    assert score_views(Brightness(), table, Views(times=2)).coincide == 0


def test_damage_and_nothing_to_do(table, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    bad = Clip(id="b", path=str(tmp_path / "broken.mp4"), start=0.0, end=1.0, text="", row=7)
    with pytest.raises(DataError, match=r"row 7 of test: .*broken.mp4"):
        score_views(Brightness(), ClipTable((*table.clips, bad), "test"), Views())
    with pytest.raises(ConfigError, match=r"no clips to score in test"):
        score_views(Brightness(), ClipTable((), "test"), Views())


def test_class_vectors_are_unit_means_over_templates(fake):
    encoders = fake()
    found = class_vectors(encoders, ("red", "blue"), ("{} brightens", "{}"))
    both = encoders.text(encoders.tokenizer(["red brightens", "red"]))
    np.testing.assert_allclose(found[0], both.mean(0) / np.linalg.norm(both.mean(0)), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    for templates in (("a video",), ("{} {}",)):
        with pytest.raises(ConfigError, match=r"a template holds \{\} once"):
            class_vectors(encoders, ("red",), templates)
    with pytest.raises(ConfigError, match=r"one or more each, found 0, 1"):
        class_vectors(encoders, (), ("{}",))


def test_text_classifier_scales_cosines(fake):
    encoders = fake()
    model = as_classifier(encoders, {"label": ("red", "blue")}, ("{}",), 50.0)
    assert isinstance(model, TextClassifier)
    frames = np.zeros((1, 4, 16, 16, 3), np.uint8)
    frames[..., 0] = 200
    cosines = encoders.video(frames) @ encoders.text(encoders.tokenizer(["red", "blue"])).T
    np.testing.assert_allclose(model.logits(frames)["label"], 50 * cosines, rtol=1e-5)
    assert model.describe()["templates"] == 1 and model.describe()["classifier"] == "texts"
    head = Brightness()
    assert as_classifier(head, {"label": ("a",)}, ("{}",), 1.0) is head
    with pytest.raises(ConfigError, match=r"scale is above 0, found 0"):
        TextClassifier(encoders, {"label": ("a",)}, scale=0.0)


def test_logits_are_checked():
    class Bad(Brightness):
        def logits(self, frames: np.ndarray) -> dict:
            return {"label": np.full((len(frames), 2), np.nan, np.float32)}

    frames = np.zeros((3, 4, 16, 16, 3), np.uint8)
    with pytest.raises(StvlError, match=r"'label' are not finite for 'clip 5'"):
        batch_logits(Bad(), frames, "clip 5", 2)
    assert batch_logits(Brightness(), frames, "x", 2)["label"].shape == (3, 2)
    with pytest.raises(ConfigError, match=r"no head 'lable' \(did you mean 'label'\?\)"):
        head_of({"label": np.zeros((1, 2))}, "lable", 2)
    with pytest.raises(ConfigError, match=r"'label' has 2 classes, the annotations 3"):
        head_of({"label": np.zeros((1, 2))}, "label", 3)
