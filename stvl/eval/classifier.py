"""A model that scores classes: with heads of its own, or with the texts of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from stvl.core.errors import ConfigError, StvlError, nearest
from stvl.data.augment import EvalTransform
from stvl.eval.card import hash_texts
from stvl.eval.embed import embed_texts
from stvl.eval.encoders import Encoders, embed_batch


@runtime_checkable
class Classifier(Protocol):
    """A video model with one head or more, weights included.

    Attributes:
        frames: frames that it takes.
        size: rows and columns of a frame.
        transform: frames as decoded to frames as it takes them.
    """

    frames: int
    size: int

    @property
    def transform(self) -> EvalTransform: ...

    def describe(self) -> dict[str, Any]:
        """The facts for a protocol card, as `stvl.eval.encoders.Encoders.describe`."""
        ...

    def logits(self, frames: UInt8[np.ndarray, "b t y x c"]) -> Mapping[str, Float32[np.ndarray, "b k"]]:
        """Unnormalised log-probabilities of the classes of each head, by name (``label``, or ``verb`` and ``noun``)."""
        ...


class TextClassifier:
    """Encoders as a `Classifier`: the logit of a class is ``scale * <video, class>``, both of length 1.

    The vector of a class is the mean of the embeddings of its name in every template, made length 1 again.

    Args:
        encoders: the model.
        heads: for each head the names of its classes.
        templates: texts with ``{}`` where the name goes.
        scale: inverse temperature; it matters for the mean of softmaxes and not for the order of classes in one view.

    Raises:
        ConfigError: no classes, or a template without ``{}`` once.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section 3.1.4.
    """

    def __init__(
        self,
        encoders: Encoders,
        heads: Mapping[str, Sequence[str]],
        templates: Sequence[str] = ("{}",),
        scale: float = 100.0,
    ) -> None:
        self.encoders, self.scale, self.templates = encoders, scale, tuple(templates)
        self.frames, self.size, self.transform = encoders.frames, encoders.size, encoders.transform
        if not scale > 0:
            raise ConfigError(f"scale is above 0, found {scale}")
        self.vectors = {head: class_vectors(encoders, names, self.templates) for head, names in heads.items()}

    def describe(self) -> dict[str, Any]:
        """The encoders' facts and those of the templates."""
        return {
            **self.encoders.describe(),
            "classifier": "texts",
            "templates": len(self.templates),
            "templates_sha256": hash_texts(self.templates),
            "scale": self.scale,
        }

    def logits(self, frames: UInt8[np.ndarray, "b t y x c"]) -> dict[str, Float32[np.ndarray, "b k"]]:
        """``scale`` times the cosine similarities."""
        names = [f"view {number}" for number in range(len(frames))]
        found = embed_batch(self.encoders, frames, names, kind="video", batch=len(frames))
        return {head: np.float32(self.scale) * (found @ vectors.T) for head, vectors in self.vectors.items()}


def class_vectors(
    encoders: Encoders, names: Sequence[str], templates: Sequence[str]
) -> Float32[np.ndarray, "classes o"]:
    """One unit vector a class: the mean over templates of the embeddings of its name, made length 1.

    Raises:
        ConfigError: no names, no templates, or a template that does not hold ``{}`` once.
    """
    if not names or not templates:
        raise ConfigError(f"classes and templates are one or more each, found {len(names)}, {len(templates)}")
    for template in templates:
        if template.count("{}") != 1:
            raise ConfigError(f"a template holds {{}} once, where the class goes, found {template!r}")
    texts = [template.replace("{}", name) for name in names for template in templates]
    vectors = embed_texts(encoders, texts).reshape(len(names), len(templates), -1).mean(1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def as_classifier(
    model: Classifier | Encoders,
    heads: Mapping[str, Sequence[str]],
    templates: Sequence[str],
    scale: float = 100.0,
) -> Classifier:
    """A model with heads as it is; encoders through the texts of the classes."""
    return model if isinstance(model, Classifier) else TextClassifier(model, heads, templates, scale)


def batch_logits(
    model: Classifier, pictures: UInt8[np.ndarray, "b t y x c"], name: str, batch: int
) -> dict[str, Float32[np.ndarray, "b k"]]:
    """Logits of some views, `batch` at a time, padded so that one shape compiles.

    Raises:
        ConfigError: no head, or logits of another shape than (batch, classes).
        StvlError: non-finite logits, with the name of the clip.
    """
    batch = min(batch, len(pictures))
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(pictures), batch):
        some = pictures[start : start + batch]
        real = len(some)
        some = np.concatenate([some, np.repeat(some[-1:], batch - real, axis=0)])
        for head, found in model.logits(some).items():
            found = np.asarray(found, np.float32)
            if found.ndim != 2 or len(found) != batch:
                raise ConfigError(f"logits of {head!r} are {found.shape}, expected ({batch}, classes)")
            if not np.isfinite(found).all():
                raise StvlError(f"logits of {head!r} are not finite for {name!r}: damaged weights")
            parts.setdefault(head, []).append(found[:real])
    if not parts:
        raise ConfigError("the model has no head")
    return {head: np.concatenate(found) for head, found in parts.items()}


def head_of(
    scores: Mapping[str, np.ndarray], head: str, classes: int
) -> Float32[np.ndarray, "clips classes"] | np.ndarray:
    """The scores of a head of so many classes.

    Raises:
        ConfigError: there is no such head, or it has another number of classes.
    """
    if head not in scores:
        raise ConfigError(f"the model has no head {head!r}{nearest(head, scores)}")
    if scores[head].shape[1] != classes:
        raise ConfigError(f"the head {head!r} has {scores[head].shape[1]} classes, the annotations {classes}")
    return scores[head]
