"""Inputs that tests of several losses share, and every loss in plain numpy, f64: loops over the definition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from stvl.losses.catalogue import AnyLoss
from stvl.losses.egonce import EgoNCE
from stvl.losses.infonce import InfoNCE
from stvl.losses.margin import MIMM, AdaptiveMIMM, RelevanceMargin
from stvl.losses.multi_similarity import MultiSimilarity
from stvl.losses.siglip import SigLIP
from stvl.losses.sms import SMS, AdaptiveTau, SMSHard, SMSRelease


def features(similarities: list[list[float]]) -> tuple[Any, Any]:
    """Clips and texts whose products are exactly these numbers: the texts are the unit vectors."""
    video = jnp.asarray(similarities, jnp.float32)
    return video, jnp.eye(video.shape[1], dtype=jnp.float32)


def labels(verb: list[int], nouns: list[list[int]], **text: Any) -> dict[str, Any]:
    """Codes as the loader brings them."""
    found = {"verb": verb, "nouns": nouns, **text}
    return {name: jnp.asarray(value, jnp.int32) for name, value in found.items()}


def batch(size: int, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Unit features and codes of clips and of drawn texts: some shared, some not, some sets shorter than others."""
    rng = np.random.default_rng(seed)
    video, text = rng.standard_normal((2, size, width))
    text = text + video
    video, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (video, text))
    codes: dict[str, np.ndarray] = {}
    for side in ("", "text_"):
        nouns = np.stack([rng.permutation(6)[:3] for _ in range(size)])
        nouns[np.arange(3) >= rng.integers(1, 4, size)[:, None]] = -1
        codes[f"{side}verb"], codes[f"{side}nouns"] = rng.integers(0, 3, size), nouns
    keep = rng.random(size) < 0.6
    codes["text_verb"] = np.where(keep, codes["verb"], codes["text_verb"])
    codes["text_nouns"] = np.where(keep[:, None], codes["nouns"], codes["text_nouns"])
    return video, text, {name: value.astype(np.int32) for name, value in codes.items()}


def on_device(codes: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same as jax arrays."""
    return {name: jnp.asarray(value) for name, value in codes.items()}


def sets(codes: dict[str, np.ndarray]) -> tuple[list[Any], list[Any]]:
    """(verb, set of nouns) of every clip and of every text."""
    sides = []
    for side in ("", "text_"):
        nouns = [set(row[row >= 0].tolist()) for row in codes[f"{side}nouns"]]
        sides.append(list(zip(codes[f"{side}verb"].tolist(), nouns, strict=True)))
    return sides[0], sides[1]


def relevancy(codes: dict[str, np.ndarray]) -> np.ndarray:
    clips, texts = sets(codes)
    return np.array([[0.5 * (v == w) + 0.5 * len(a & b) / len(a | b) for w, b in texts] for v, a in clips])


def shares_label(codes: dict[str, np.ndarray]) -> np.ndarray:
    clips, texts = sets(codes)
    return np.array([[float(bool(a & b)) for _, b in texts] for _, a in clips])


def softmax_loss(logits: np.ndarray, allowed: np.ndarray) -> float:
    e = np.exp(logits - logits.max())
    return sum(float(np.mean(-np.log((e * allowed).sum(axis) / e.sum(axis)))) for axis in (0, 1))


def infonce(s: np.ndarray, codes: Any, loss: Any) -> float:
    return softmax_loss(s / loss.temperature, np.eye(len(s))) / 2


def egonce(s: np.ndarray, codes: Any, loss: Any) -> float:
    clips, texts = sets(codes)
    same = np.array([[v == w and bool(a & b) for w, b in texts] for v, a in clips])
    return softmax_loss(s / loss.temperature, np.maximum(same, np.eye(len(s))))


def siglip(s: np.ndarray, codes: Any, loss: Any) -> float:
    z = (2 * np.eye(len(s)) - 1) * (s / loss.temperature + loss.bias)
    return float(np.log1p(np.exp(-z)).sum() / len(s))


def over_terms(s: np.ndarray, term: Callable[[int, int, int], float]) -> float:
    """Mean of term(i, j, own) over i != j and both queries: `own` is the clip's i, then the text's j."""
    pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if i != j]
    return float(np.mean([term(i, j, own) for i, j in pairs for own in (i, j)]))


def mimm(s: np.ndarray, codes: Any, loss: Any) -> float:
    return over_terms(s, lambda i, j, own: max(0.0, loss.margin - s[own, own] + s[i, j]))


def adaptive_mimm(s: np.ndarray, codes: Any, loss: Any) -> float:
    c = relevancy(codes)
    return over_terms(s, lambda i, j, own: max(0.0, loss.margin * c[own, own] - s[own, own] + s[i, j]))


def relevance_margin(s: np.ndarray, codes: Any, loss: Any) -> float:
    c = relevancy(codes)
    return over_terms(s, lambda i, j, own: max(0.0, loss.margin * (1 - c[i, j]) - s[own, own] + s[i, j]))


def sms(s: np.ndarray, codes: Any, loss: Any) -> float:
    c = relevancy(codes)

    def term(i: int, j: int, own: int) -> float:
        gap, ahead = c[own, own] - c[i, j], s[own, own] - s[i, j]
        if gap >= 0.1 - 1e-9:
            return max(0.0, gap * loss.margin - ahead)
        if gap <= -0.1 + 1e-9:
            return max(0.0, -gap * loss.margin + ahead)
        return max(0.0, abs(ahead) - tau)

    gaps = [c[own, own] - c[i, j] for i in range(len(s)) for j in range(len(s)) if i != j for own in (i, j)]
    far = [abs(gap) for gap in gaps if abs(gap) > 0.1 - 1e-9]
    tau = loss.tau if loss.adaptive_tau is None else loss.adaptive_tau.share * loss.margin * np.mean(far)
    return over_terms(s, term)


def sms_release(s: np.ndarray, codes: Any, loss: Any) -> float:
    c = relevancy(codes)
    cut = np.floor(c * 240 + 1e-6) / 240

    def term(i: int, j: int, own: int) -> float:
        gap = c[own, own] - cut[i, j]
        short = gap * loss.margin - (s[own, own] - s[i, j])
        if abs(gap) < 1.1 / 240:
            return max(0.0, abs(short) - loss.tau)
        return max(0.0, short if gap > 0 else -short)

    return over_terms(s, term)


def sms_hard(s: np.ndarray, codes: Any, loss: Any) -> float:
    c = shares_label(codes)

    def term(i: int, j: int, own: int) -> float:
        ahead = s[own, own] - s[i, j]
        return max(0.0, abs(ahead) - loss.tau if c[i, j] else loss.margin - ahead)

    return over_terms(s, term)


def multi_similarity(s: np.ndarray, codes: Any, loss: Any) -> float:
    near = (relevancy(codes) >= 1 - 1e-9) | np.eye(len(s), dtype=bool)
    total = 0.0
    for matrix, chosen in ((s, near), (s.T, near.T)):
        a, b, g = loss.alpha, loss.beta, loss.threshold
        good = np.log1p((np.exp(-a * (matrix - g)) * chosen).sum(1)) / a
        bad = np.log1p((np.exp(b * (matrix - g)) * ~chosen).sum(1)) / b
        total += float((good + bad).mean())
    return total / 2


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss as configured and the same in numpy: ``plain(similarities, codes, loss)``."""

    loss: AnyLoss
    plain: Callable[[np.ndarray, Any, Any], float]


#: Every loss; some values differ from the defaults so that all cases have terms on random features.
CASES: dict[str, Case] = {
    "InfoNCE": Case(InfoNCE(temperature=0.2), infonce),
    "EgoNCE": Case(EgoNCE(temperature=0.2), egonce),
    "SigLIP": Case(SigLIP(temperature=0.2, bias=-1.5), siglip),
    "MIMM": Case(MIMM(), mimm),
    "AdaptiveMIMM": Case(AdaptiveMIMM(), adaptive_mimm),
    "RelevanceMargin": Case(RelevanceMargin(), relevance_margin),
    "SMS": Case(SMS(), sms),
    "SMS adaptive tau": Case(SMS(adaptive_tau=AdaptiveTau()), sms),
    "SMS release": Case(SMS(variant=SMSRelease()), sms_release),
    "SMSHard": Case(SMSHard(), sms_hard),
    "MultiSimilarity": Case(MultiSimilarity(beta=5.0), multi_similarity),
}
