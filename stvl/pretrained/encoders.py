"""A dual encoder's parameters as an evaluation sees them: from arrays to unit vectors, with a description for cards.

One class serves a weights folder (`load_weights`) and a training run (`stvl.train.encoders.load_run`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from stvl.core.config import to_dict
from stvl.core.errors import ConfigError
from stvl.models.dual import DualEncoder
from stvl.pretrained.folder import Contents, Params, flat, open_folder


class DualEncoders:
    """Implements `stvl.eval.encoders.Encoders` with the parameters of a `DualEncoder`.

    Args:
        contents: sizes, tokenizer, transform, number of frames, and what the card is told besides.
        params: parameters of the dual encoder.
        frames: frames of a clip, where another number is asked for; learned temporal positions P_t are then resampled
            linearly, rotary ones need nothing.
        dtype: compute dtype.

    Raises:
        ConfigError: fewer than one frame.
    """

    def __init__(
        self, contents: Contents, params: Params, *, frames: int | None = None, dtype: Any = jnp.float32
    ) -> None:
        self.contents, self.params = contents, params
        self.frames = contents.frames if frames is None else frames
        self.size = contents.model.video.image_size
        self.width = contents.model.embedding
        self.tokenizer, self.transform = contents.tokenizer, contents.transform
        self.dtype = jnp.dtype(dtype)
        if self.frames < 1:
            raise ConfigError(f"frames is at least 1, found {self.frames}")
        self.module = model = DualEncoder(contents.model, self.dtype)
        self._video = jax.jit(
            lambda params, video: model.apply({"params": params}, video, method="encode_video")
        )
        self._text = jax.jit(lambda params, ids: model.apply({"params": params}, ids, method="encode_text"))
        self._hashed: tuple[Params, str] | None = None

    def describe(self) -> dict[str, Any]:
        """The facts for a protocol card: what scores depend on, all fields of the video tower, where weights come from."""
        video = self.contents.model.video
        facts = {
            "model": video.title,
            "positions": video.temporal_positions,
            "dtype": str(self.dtype),
            "weights_sha256": self.weights_sha256,
            "mean": list(video.mean),
            "std": list(video.std),
            "video": to_dict(video),
            **self.contents.facts,
        }
        rows = self._time_rows()
        if rows is not None and rows != self.frames:
            facts["P_t"] = f"table of {rows} rows, resampled linearly to {self.frames} frames"
        return facts

    @property
    def weights_sha256(self) -> str:
        """`weights_sha256` of the parameters, computed once for each."""
        if self._hashed is None or self._hashed[0] is not self.params:
            self._hashed = (self.params, weights_sha256(self.params))
        return self._hashed[1]

    def video(self, frames: UInt8[np.ndarray, "b t y x c"]) -> Float32[np.ndarray, "b o"]:
        """L2-normalised embeddings of clips."""
        return np.asarray(self._video(self.params, frames), np.float32)

    def text(self, ids: Int32[np.ndarray, "b l"]) -> Float32[np.ndarray, "b o"]:
        """L2-normalised embeddings of texts."""
        return np.asarray(self._text(self.params, ids), np.float32)

    def _time_rows(self) -> int | None:
        table = self.params["video"].get("positions", {}).get("time")
        return None if table is None else int(table.shape[0])


def load_weights(folder: str | Path, *, frames: int | None = None, dtype: Any = None) -> DualEncoders:
    """The encoders of a weights folder, with the preprocessing of its source.

    Args:
        folder: what ``stvl convert`` wrote.
        frames: frames of a clip; default: the folder's.
        dtype: compute dtype; default: bfloat16 on accelerators and float32 on CPUs.

    Raises:
        WeightsError: no weights folder, or a damaged one.
        ConfigError: fewer than one frame.
    """
    opened = open_folder(folder)
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    told = ("family", "size", "source", "notes")
    facts = {name: opened.facts[name] for name in told if name in opened.facts}
    facts["weights_file_sha256"] = opened.sha256
    contents = Contents(opened.model, opened.tokenizer, opened.transform, opened.frames, facts)
    return DualEncoders(contents, opened.load(), frames=frames, dtype=dtype)


def weights_sha256(params: Params) -> str:
    """Hash over names, dtypes, shapes and values of all parameters, independent of the order of the tree."""
    leaves, digest = flat(params), hashlib.sha256()
    for key, path in key_order(leaves):
        hash_leaf(digest, key, np.asarray(leaves[path]))
    return digest.hexdigest()


def key_order(paths: Iterable[str]) -> list[tuple[str, str]]:
    """``("['video']['stem']['kernel']", "video/stem/kernel")`` for every path, in the order of `weights_sha256`."""
    return sorted(("".join(f"[{part!r}]" for part in path.split("/")), path) for path in paths)


def hash_leaf(digest: Any, key: str, array: np.ndarray) -> None:
    """Add one parameter to the hash of `weights_sha256`."""
    digest.update(f"{key} {array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
