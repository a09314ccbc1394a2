"""Image files as clips of one frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from stvl.core.errors import ConfigError, DataError
from stvl.eval.card import hash_file, hash_texts, input_card, versions
from stvl.eval.embed import VideoEmbeddings
from stvl.eval.encoders import Encoders, embed_batch

#: Pillow modes with more than 8 bits a channel: what white is in them is not written down.
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: str | Path) -> UInt8[np.ndarray, "1 y x c"]:
    """An image file as a clip of one RGB frame, turned as its EXIF orientation says.

    Palettes, grey and CMYK become RGB; transparency is left out, as CLIP's preprocessing does; of an animation the first
    picture is taken.

    Raises:
        DataError: no such file, no image, a damaged one, or one with more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode in _DEEP:
                raise DataError(
                    f"{path} has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits first"
                )
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))[None]
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    # Pillow's readers raise SyntaxError and others for damaged headers.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as problem:
        if isinstance(problem, DataError):
            raise
        raise DataError(f"{path} cannot be read as an image: {problem}") from problem


def embed_images(encoders: Encoders, paths: Sequence[str | Path], batch: int = 32) -> VideoEmbeddings:
    """Embed image files, each as a clip of one frame, through the encoders' own transform.

    Raises:
        ConfigError: no files, or encoders that take more than one frame.
        DataError: a file that cannot be read.
    """
    if not paths:
        raise ConfigError("there are no images to embed")
    if encoders.frames != 1:
        raise ConfigError(f"images are clips of one frame, the encoders take {encoders.frames}")
    names, batch = [str(path) for path in paths], min(batch, len(paths))
    parts = []
    for start in range(0, len(names), batch):
        some = names[start : start + batch]
        clips = np.stack([encoders.transform(read_image(path)) for path in some])
        parts.append(embed_batch(encoders, clips, some, kind="video", batch=batch))
    card = {"kind": "video", "clips_sha256": hash_texts([hash_file(path) for path in names])}
    card |= {**input_card(encoders), "sampling": "one image", "versions": versions()}
    none = np.zeros(len(names), np.float64)
    return VideoEmbeddings(
        embeddings=np.concatenate(parts),
        ids=tuple(names),
        path=tuple(names),
        start=none,
        end=none,
        text=tuple(Path(name).stem for name in names),
        card=card,
    )
