"""Image files as clips of one frame: orientation, modes, and what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stvl.core.errors import ConfigError, DataError
from stvl.data.augment import EvalTransform
from stvl.data.text import ClipTokenizer
from stvl.eval.embed import VideoEmbeddings, load_npz, save_npz
from stvl.eval.images import embed_images, read_image

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


class Mean:
    """Encoders whose feature is the mean colour."""

    frames, size, width = 1, 4, 3
    tokenizer, transform = ClipTokenizer(), EvalTransform(size=4)

    def describe(self) -> dict[str, Any]:
        return {"positions": "none", "dtype": "float32", "weights_sha256": "0", "mean": [0], "std": [1]}

    def video(self, frames: np.ndarray) -> np.ndarray:
        assert frames.shape[1:] == (1, 4, 4, 3)
        colour = frames.astype(np.float32).mean((1, 2, 3))
        return colour / np.linalg.norm(colour, axis=1, keepdims=True)

    def text(self, ids: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def test_pixels_come_as_they_are(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, PIXELS[None])


@pytest.mark.parametrize(
    ("orientation", "turned"), [(1, PIXELS), (3, PIXELS[::-1, ::-1]), (6, np.rot90(PIXELS, -1))]
)
def test_exif_orientation_is_obeyed(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0], turned)


def test_other_modes_become_rgb(tmp_path):
    grey = PIXELS[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png")[0], np.repeat(grey[..., None], 3, -1))
    clear = np.concatenate([PIXELS, np.zeros((4, 6, 1), np.uint8)], axis=-1)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(read_image(tmp_path / "clear.png")[0], PIXELS)
    red = Image.new("P", (6, 4))
    red.putpalette([200, 10, 20] * 256)
    red.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png")[0, 0, 0].tolist() == [200, 10, 20]


def test_what_is_no_image(tmp_path, monkeypatch):
    Image.fromarray(PIXELS.astype(np.uint16)[..., 0] * 256).save(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("hello")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
    for name, message in (
        ("none.png", "there is no such file"),
        ("text.png", "cannot be read as an image: cannot identify"),
        ("torn.png", "cannot be read as an image: .*truncated"),
        ("deep.png", "more than 8 bits a channel"),
    ):
        with pytest.raises(DataError, match=f"{name}.*{message}|{name}: {message}"):
            read_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"whole\.png cannot be read as an image: .*exceeds limit"):
        read_image(tmp_path / "whole.png")


def test_embeddings_in_order_and_saved(tmp_path):
    paths = []
    for number, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (8, 6), colour).save(paths[-1])
    made = embed_images(Mean(), paths, batch=2)
    np.testing.assert_allclose(made.embeddings, np.eye(3), atol=1e-6)
    assert (made.path, made.text) == (tuple(paths), ("0", "1", "2"))
    assert (made.card["frames"], made.card["sampling"]) == (1, "one image")
    save_npz(tmp_path / "out.npz", made)
    back = load_npz(tmp_path / "out.npz")
    assert isinstance(back, VideoEmbeddings)
    np.testing.assert_array_equal(back.embeddings, made.embeddings)
    assert Path(back.path[0]).name == "0.png"


def test_a_video_model_is_refused():
    two = Mean()
    two.frames = 2
    with pytest.raises(ConfigError, match="images are clips of one frame, the encoders take 2"):
        embed_images(two, ["a.png"])
    with pytest.raises(ConfigError, match="no images to embed"):
        embed_images(Mean(), [])
