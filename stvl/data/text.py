"""Text to token ids: the tokenizer contract and CLIP's byte-pair encoding."""

from __future__ import annotations

import functools
import html
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from stvl.core.config import config
from stvl.core.errors import ConfigError

_START, _END, _VOCABULARY = 49406, 49407, 49408


@runtime_checkable
class Tokenizer(Protocol):
    """Turns texts into rows of ids of one length; small enough to be sent to worker processes."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int: ...

    @property
    def end_id(self) -> int: ...

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "b l"]: ...


@config
class ClipTokenizer:
    """CLIP's lower-cased byte-pair encoding: ``49406, ids ..., 49407, 0, 0 ...`` in `context_length` places.

    HTML entities are resolved and white space is joined first, as CLIP does. A longer text is cut and still ends
    with 49407. The vocabulary comes with the ``instant-clip-tokenizer`` package and is loaded on first use, once a process.

    Source: Radford et al., Learning Transferable Visual Models (2021), section 2.4.
    """

    context_length: int = 77

    def __post_init__(self) -> None:
        if self.context_length < 2:
            raise ConfigError(
                f"context_length must hold the start and end ids (>= 2), found {self.context_length}"
            )

    @property
    def vocab_size(self) -> int:
        return _VOCABULARY

    @property
    def end_id(self) -> int:
        return _END

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "b l"]:
        """Encode a list of texts; a single string is refused, for it would be read as a list of letters.

        Raises:
            ConfigError: `texts` is one string.
        """
        if isinstance(texts, str):
            raise ConfigError(f"expected a list of texts, found one string; write [{texts!r}]")
        out = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(out, texts, strict=True):
            ids = self.encode(text)[: self.context_length - 2]
            row[: len(ids) + 2] = [_START, *ids, _END]
        return out

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without start, end and padding."""
        plain = " ".join(html.unescape(html.unescape(text)).split())
        return _clip_bpe().encode(plain)


@functools.cache
def _clip_bpe() -> Any:
    import instant_clip_tokenizer

    return instant_clip_tokenizer.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
