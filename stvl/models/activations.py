"""What every block of both towers computes, by name: for tables that compare two weights, or weights with a source."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Int, Num

from stvl.models.dual import DualEncoder

#: Children of a tower whose outputs are named after them.
_PARTS = ("stem", "norm", "projection")


def activations(
    model: DualEncoder,
    params: dict[str, Any],
    video: Num[np.ndarray | jax.Array, "b t y x c"] | None = None,
    ids: Int[np.ndarray | jax.Array, "b l"] | None = None,
) -> dict[str, np.ndarray]:
    """Outputs of the parts of both towers, in the order in which they are computed.

    Names are ``TOWER/PART`` with the towers ``video`` and ``text``; a tower without an input is left out.

    - ``video/stem`` (b t y x d): patch embeddings, without positions.
    - ``video/embed``, ``text/embed`` (b n d): what goes into the first block.
    - ``video/blocks/0`` ... (b n d): what comes out of each block.
    - ``video/norm`` (b d), ``video/projection`` (b o): the last norm of the pooled token, and the features before they are
      made unit vectors; the same for ``text``.

    The model holds no code for this: Flax keeps the outputs where it is asked to.
    """
    found: dict[str, np.ndarray] = {}
    for tower, method, inputs in (("video", "encode_video", video), ("text", "encode_text", ids)):
        if inputs is not None:
            found |= _tower(model, params, tower, method, inputs)
    return found


def _wanted(module: nn.Module, method: str) -> bool:
    path = module.path
    part = len(path) == 2 and path[1] in _PARTS
    return method == "__call__" and (part or path[1:] == ("stack", "layers"))


def _tower(
    model: DualEncoder, params: dict[str, Any], tower: str, method: str, inputs: Any
) -> dict[str, np.ndarray]:
    run = jax.jit(
        lambda params, inputs: model.apply(
            {"params": params}, inputs, method=method, capture_intermediates=_wanted, mutable="intermediates"
        )[1]["intermediates"][tower]
    )
    kept = run(params, inputs)
    blocks, _ = kept["stack"]["layers"]["__call__"][0]
    outputs = {"embed": kept["stack"]["embed"][0]}
    outputs |= {f"blocks/{index}": block for index, block in enumerate(blocks)}
    outputs |= {part: kept[part]["__call__"][0] for part in ("norm", "projection")}
    if "stem" in kept:
        outputs = {"stem": kept["stem"]["__call__"][0]} | outputs
    return {f"{tower}/{name}": np.asarray(value) for name, value in outputs.items()}
