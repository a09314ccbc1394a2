"""The axis alphabet: one letter, one meaning, in annotations, einsum strings and sharding names alike."""

from __future__ import annotations

from types import MappingProxyType

#: Letter -> logical axis name (the name that sharding rules speak of).
AXES = MappingProxyType(
    {
        "b": "batch",
        "t": "frame",
        "y": "row",
        "x": "column",
        "c": "channel",
        "n": "token",
        "d": "width",
        "q": "query_token",
        "s": "source_token",
        "h": "query_head",
        "g": "kv_head",
        "e": "head_width",
        "f": "mlp_width",
        "l": "text_token",
        "v": "vocabulary",
        "a": "rope_axis",
        "p": "rope_pair",
        "o": "embedding",
        "i": "layer",
    }
)


def logical(letters: str) -> tuple[str, ...]:
    """Spell out a string of axis letters: ``logical("d h e") == ("width", "query_head", "head_width")``.

    Raises:
        KeyError: a letter that is not in the alphabet.
    """
    return tuple(AXES[letter] for letter in letters.split())
