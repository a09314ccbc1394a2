"""Where CLIP's plain ViT and AVION's video tower lie in public checkpoints.

- ``vit-clip/open_clip``: both towers at the top level, as OpenAI's CLIP and open_clip's ``CLIP`` have them.
- ``vit-clip/custom-text``: open_clip's ``CustomTextCLIP``, the text tower below ``text.``.
- ``vit-clip/hf``: transformers' ``CLIPModel``.
- ``avion/...``: AVION (github.com/zhaoyue-zephyrus/AVION, `avion/models`), the text tower below ``textual.``. Two switches
  of its scripts change the image tower: ``--use-fast-conv1`` stores the patch kernel as a matrix (d, 3 p p), and
  ``--use-flash-attn`` takes the names of flash_attn's modules. The commands of its model zoo set both.

No file tells which GELU it was trained with, but for OpenAI's, which have three more numbers.
"""

from __future__ import annotations

import dataclasses
import math

from stvl.models.text_weights import (
    CAUSAL_MASK,
    NEW_TIME,
    TEMPERATURE,
    clip_block,
    clip_text,
    dense,
    hf_block,
    hf_text,
    norm,
    positions,
)
from stvl.weights.rules import Ignored, Kernel, Layout, Parts, Patches, Rule, Shape

_LAYERS = "video/stack/layers"


@dataclasses.dataclass(frozen=True)
class PatchMatrix:
    """A patch kernel stored as a matrix (d, c p p), channels slowest, to (d, c, p, p), and back.

    Attributes:
        channels: c.
    """

    channels: int = 3

    def forward(self, parts: Parts, targets: tuple[Shape, ...]) -> Parts:
        """Unfold channels and pixels."""
        (matrix,) = parts
        side = math.isqrt(matrix.shape[1] // self.channels)
        return (matrix.reshape(-1, self.channels, side, side),)

    def backward(self, parts: Parts) -> Parts:
        """Fold them."""
        (kernel,) = parts
        return (kernel.reshape(kernel.shape[0], -1),)


def clip_image(
    projection: str = "visual.proj", matrix: bool = False, flash: bool = False
) -> tuple[Rule, ...]:
    """CLIP's image tower below ``visual.``; `matrix` and `flash` are AVION's switches."""
    return (
        Rule("visual.class_embedding", ("video/class_token",)),
        positions("visual.positional_embedding", "video"),
        Rule(
            "visual.conv1.weight",
            ("video/stem/kernel",),
            (PatchMatrix(), Patches()) if matrix else (Patches(),),
        ),
        *norm("visual.ln_pre", "video/input_norm"),
        *clip_block("visual.transformer.resblocks.{i}", _LAYERS, flash),
        *norm("visual.ln_post", "video/norm"),
        Rule(projection, ("video/projection/kernel",), (Kernel(),)),
    )


def hf_image() -> tuple[Rule, ...]:
    """The image tower of transformers' ``CLIPModel``; `pre_layrnorm` is spelled as there."""
    return (
        Rule("vision_model.embeddings.class_embedding", ("video/class_token",)),
        positions("vision_model.embeddings.position_embedding.weight", "video"),
        Rule("vision_model.embeddings.patch_embedding.weight", ("video/stem/kernel",), (Patches(),)),
        *norm("vision_model.pre_layrnorm", "video/input_norm"),
        *hf_block("vision_model.encoder.layers.{i}", _LAYERS),
        *norm("vision_model.post_layernorm", "video/norm"),
        *dense("visual_projection", "video/projection", bias=False),
    )


#: Numbers that OpenAI's files keep beside the weights; they mark weights that were trained with quick_gelu.
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")

OPEN_CLIP = Layout(
    name="vit-clip/open_clip",
    rules=(*clip_image(), *clip_text(""), TEMPERATURE),
    ignored=(Ignored("|".join(OPENAI_NUMBERS), "a number that the shapes say too"), CAUSAL_MASK),
    new=(NEW_TIME,),
)

CUSTOM_TEXT = Layout(
    name="vit-clip/custom-text",
    rules=(*clip_image(), *clip_text("text."), TEMPERATURE),
    ignored=(CAUSAL_MASK,),
    new=(NEW_TIME,),
)

HF = Layout(
    name="vit-clip/hf",
    rules=(*hf_image(), *hf_text(), TEMPERATURE),
    ignored=(Ignored(r"(vision|text)_model\.embeddings\.position_ids", "the numbers 0, 1, 2 ..."),),
    new=(NEW_TIME,),
)


def _avion(name: str, matrix: bool, flash: bool) -> Layout:
    image = clip_image("visual.image_projection", matrix, flash)
    time = Rule("visual.temporal_embedding", ("video/positions/time",))
    return Layout(
        name=f"avion/{name}",
        rules=(*image, time, *clip_text("textual."), TEMPERATURE),
        ignored=(CAUSAL_MASK,),
    )


#: By (patch kernel is a matrix, names of flash_attn).
AVION = {
    (False, False): _avion("plain", False, False),
    (True, False): _avion("fast-conv1", True, False),
    (False, True): _avion("flash-attn", False, True),
    (True, True): _avion("fast-conv1-flash-attn", True, True),
}
