"""Measures what docs/weights.md prints of an image model used as a video model, with random weights:

python -m tests.pretrained.static_clip eva02-clip/b16            # a static clip beside its image, 4 and 16 frames
python -m tests.pretrained.static_clip eva02-clip/b16 --step     # the first training step in bfloat16
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from stvl.data.augment import EvalTransform, TrainTransform
from stvl.data.text import ClipTokenizer
from stvl.dist.mesh import MeshConfig, make_mesh
from stvl.models.dual import DualEncoder, DualEncoderConfig
from stvl.models.presets import preset
from stvl.pretrained.convert import ConvertOptions, convert
from stvl.pretrained.folder import Contents, items_of, write_folder
from stvl.train.init import Pretrained
from stvl.train.state import Starter
from stvl.train.step import make_step, put_batch
from tests.fixtures import tiny_experiment

FRAMES = (4, 16)


def with_time(model: DualEncoderConfig, frames: int, positions: str) -> DualEncoderConfig:
    """The model with a number of frames and temporal positions."""
    video: Any = dataclasses.replace(model.video, frames=frames, temporal_positions=positions)  # type: ignore[call-arg]
    return dataclasses.replace(model, video=video)


def random_image_model(model: DualEncoderConfig) -> tuple[DualEncoderConfig, dict[str, Any]]:
    """The image model of a preset (one frame, no P_t) and random parameters."""
    image = with_time(model, 1, "none")
    size = model.video.image_size
    start = jax.jit(DualEncoder(image).init)
    ids = jnp.zeros((1, model.text.context), jnp.int32)
    return image, nn.unbox(
        start(jax.random.key(0), jnp.zeros((1, 1, size, size, 3), jnp.uint8), ids)["params"]
    )


def feature(model: DualEncoderConfig, params: dict[str, Any], video: np.ndarray) -> np.ndarray:
    """Unit features of clips."""
    run = jax.jit(lambda p, v: DualEncoder(model).apply({"params": p}, v, method="encode_video"))
    return np.asarray(run(params, video))


def static(name: str) -> None:
    """Print the cosine of a static clip's feature with its image's, for flat and for sharper attention."""
    image, params = random_image_model(preset(name))
    patch, side = image.video.patch, image.video.side
    # Coarse noise: one value a patch.
    coarse = np.random.default_rng(0).integers(0, 256, (2, 1, side, side, 3))
    pixels = np.kron(coarse, np.ones((1, 1, patch, patch, 1))).astype(np.uint8)
    for sharpen in (1.0, 3.0):
        attention = params["video"]["stack"]["layers"]["attention"]
        sharp = {
            part: {**attention[part], "kernel": attention[part]["kernel"] * sharpen}
            for part in ("query", "key")
        }
        layers = {**params["video"]["stack"]["layers"], "attention": {**attention, **sharp}}
        tree = {**params, "video": {**params["video"], "stack": {"layers": layers}}}
        one = feature(image, tree, pixels)
        for frames in FRAMES:
            for positions in (
                "none",
                "rope",
            ):  # P_t = 0 adds nothing, so these are `learned` and `both` at their start
                model = with_time(image, frames, positions)
                found = feature(model, tree, np.repeat(pixels, frames, axis=1))
                print(
                    f"q, k x {sharpen:g}, {frames} frames, {positions}: cosine {(found * one).sum(-1).min():.4f}"
                )


def first_step(name: str) -> None:
    """Write the image model as a weights folder, convert it to each number of frames, and take one step from it."""
    image, params = random_image_model(preset(name))
    tokens = ClipTokenizer(context_length=image.text.context)
    transform = EvalTransform(size=image.video.image_size)
    with tempfile.TemporaryDirectory() as folder:
        contents = Contents(model=image, tokenizer=tokens, transform=transform, frames=1)
        write_folder(Path(folder) / "image", contents, items_of(params))
        del params
        for frames in FRAMES:
            out = Path(folder) / f"video-{frames}"
            convert(Path(folder) / "image", out, ConvertOptions(frames=frames, positions="both"))
            _one_step(with_time(image, frames, "both"), out, frames, tokens)


def _one_step(model: DualEncoderConfig, folder: Path, frames: int, tokens: ClipTokenizer) -> None:
    model = dataclasses.replace(model, video=dataclasses.replace(model.video, remat="full"))
    size = model.video.image_size
    made = tiny_experiment(
        "no",
        "no",
        model=model,
        tokenizer=tokens,
        train_transform=TrainTransform(size=size),
        eval_transform=EvalTransform(size=size),
        init=Pretrained(folder=str(folder)),
        mesh=MeshConfig(data=1),
        dtype="bfloat16",
    )
    made = dataclasses.replace(made, loader=dataclasses.replace(made.loader, frames=frames, batch=2))
    starter = Starter(made, make_mesh(made.mesh, jax.devices()[:1]))
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (2, frames, size, size, 3), np.uint8),
        "text": tokens(["a red ball", "a cat"]),
    }
    _, metrics = make_step(starter)(starter.start(), put_batch(batch, starter.mesh))
    print(
        f"{frames} frames: loss {float(metrics['loss']):.3f}, gradient norm {float(metrics['grad_norm']):.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("--step", action="store_true")
    found = parser.parse_args()
    (first_step if found.step else static)(found.preset)
