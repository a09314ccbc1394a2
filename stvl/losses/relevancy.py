"""How relevant a text is to a clip, from the class codes that the batch carries: no stored matrix of all pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from stvl.core.config import config
from stvl.core.errors import ConfigError, nearest
from stvl.ops.pairwise import Tile

#: Batch arrays that losses may read besides the features. Those of the texts stand for themselves where they are
#: missing: a text then has the codes of its clip.
LABELS = ("verb", "nouns", "text_verb", "text_nouns")

Labels = Mapping[str, Shaped[Array, "b ..."]]


class Codes(NamedTuple):
    """Sets of classes of clips or texts: whole numbers, filled up with -1 (an unknown class is not in the set)."""

    verbs: Int[Array, "*any v"]
    nouns: Int[Array, "*any n"]


def codes_of(labels: Labels | None) -> tuple[Codes, Codes]:
    """Codes of the clips and of the texts of a batch.

    ``verb`` is (b,) or, for several verbs, (b, v) filled up with -1; ``nouns`` is (b, n) filled up with -1; the same for
    ``text_verb`` and ``text_nouns``, which hard mining brings because the text that it draws has codes of its own.

    Raises:
        ConfigError: an array is missing, or holds no whole numbers of that shape, or not one entry a row.
    """
    labels = {} if labels is None else labels
    for name in ("verb", "nouns"):
        if name not in labels:
            raise ConfigError(
                f"this loss reads the class codes 'verb' (b,) and 'nouns' (b, n) of the batch, and {name!r} is missing"
                f"{nearest(name, labels)}: take a source that has them, or a loss without relevancy (InfoNCE, MIMM)"
            )
    clip = Codes(_sets("verb", labels["verb"]), _sets("nouns", labels["nouns"]))
    text = Codes(
        _sets("text_verb", labels["text_verb"]) if "text_verb" in labels else clip.verbs,
        _sets("text_nouns", labels["text_nouns"]) if "text_nouns" in labels else clip.nouns,
    )
    counts = {name: labels[name].shape[0] for name in LABELS if name in labels}
    if len(set(counts.values())) > 1:
        raise ConfigError(f"the codes of a batch have one entry a row, found {counts}")
    return clip, text


def shared(one: Int[Array, "*any1 n1"], two: Int[Array, "*any2 n2"]) -> Float[Array, "..."]:
    """``|A and B|`` of sets filled up with -1, broadcast over leading axes; no class may stand twice in a set."""
    if one.shape[-1] > two.shape[-1]:
        one, two = two, one
    total = jnp.zeros(jnp.broadcast_shapes(one.shape[:-1], two.shape[:-1]), jnp.float32)
    for place in range(one.shape[-1]):
        member = one[..., place : place + 1]
        total = total + ((member == two) & (member >= 0)).any(-1)
    return total


def iou(one: Int[Array, "*any1 n1"], two: Int[Array, "*any2 n2"]) -> Float[Array, "..."]:
    """``|A and B| / |A or B|`` of sets filled up with -1, broadcast over leading axes; 0 for two empty sets."""
    common = shared(one, two)
    either = (one >= 0).sum(-1) + (two >= 0).sum(-1) - common
    return common / jnp.maximum(either, 1)


@config
class VerbNoun:
    """``c = w IoU(verb classes) + (1 - w) IoU(noun classes)`` in [0, 1].

    EK-100 has one verb a narration, so the first IoU is 1 or 0 there. Two unknown (-1) verbs are not the same verb.

    Attributes:
        verb: weight w of the verbs.

    Source: arXiv 2506.14356, Eq. 5; the official matrix of EK-100 multi-instance retrieval.
    """

    verb: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.verb <= 1:
            raise ConfigError(f"the weight of the verbs is a share from 0 to 1, found verb = {self.verb}")

    def __call__(self, one: Codes, two: Codes) -> Float[Array, "..."]:
        """Relevancy, broadcast over the leading axes of the codes."""
        return self.verb * iou(one.verbs, two.verbs) + (1 - self.verb) * iou(one.nouns, two.nouns)


@config
class SharedLabel:
    """``c = 1`` where clip and text share a label, else 0: hard multi-labels, such as the 157 actions of Charades-Ego.

    Attributes:
        of: the codes that hold the labels: ``nouns`` (a set a clip) or ``verbs``.
    """

    of: Literal["nouns", "verbs"] = "nouns"

    def __call__(self, one: Codes, two: Codes) -> Float[Array, "..."]:
        """Relevancy, broadcast over the leading axes of the codes."""
        pair = (one.nouns, two.nouns) if self.of == "nouns" else (one.verbs, two.verbs)
        return (shared(*pair) > 0).astype(jnp.float32)


Relevancy = VerbNoun | SharedLabel


def relevancy_matrix(clips: Codes, texts: Codes, rule: Relevancy | None = None) -> Float[Array, "q s"]:
    """``c_ij`` of all clips i and texts j, for a block that fits in memory; losses use `tile_relevancy`."""
    one, two = Codes(*(x[:, None] for x in clips)), Codes(*(x[None, :] for x in texts))
    return (rule or VerbNoun())(one, two)


def pair_relevancy(clips: Codes, texts: Codes, rule: Relevancy) -> Float[Array, " b"]:
    """``c_ii``: 1 where a clip comes with its own narration, less where hard mining drew a partial match."""
    return rule(clips, texts)


def tile_relevancy(tile: Tile, rule: Relevancy) -> Float[Array, "q s"]:
    """``c_ij`` of a tile whose rows and columns carry `code_arrays`."""
    rows, columns = (Codes(side["verbs"], side["nouns"]) for side in (tile.rows, tile.columns))
    return relevancy_matrix(rows, columns, rule)


def code_arrays(codes: Codes) -> dict[str, Int[Array, "b _"]]:
    """The arrays of one side of `pairwise`, as `tile_relevancy` reads them."""
    return {"verbs": codes.verbs, "nouns": codes.nouns}


def verb_and_noun(tile: Tile) -> Bool[Array, "q s"]:
    """Whether clip and text share a verb and a noun."""
    rows, columns = tile.rows, tile.columns
    found = [shared(rows[name][:, None], columns[name][None, :]) > 0 for name in ("verbs", "nouns")]
    return found[0] & found[1]


def _sets(name: str, array: Shaped[Array, "b ..."]) -> Int[Array, "b _"]:
    """Codes as sets: (b, n), every class once."""
    if array.ndim not in (1, 2) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ConfigError(
            f"{name} holds whole numbers of shape (batch,) or (batch, classes), found {array.dtype} {array.shape}"
        )
    array = array[:, None] if array.ndim == 1 else array
    same = array[:, :, None] == array[:, None, :]
    again = jnp.tril(same, -1).any(-1)
    return jnp.where(again, -1, array)
