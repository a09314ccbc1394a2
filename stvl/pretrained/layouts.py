"""All layouts, how to know each of them, and which model it stands for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from stvl.data.augment import Kernel
from stvl.models.dual import VideoConfig
from stvl.models.eva02_at import weights as eva02_at
from stvl.models.eva02_at.module import EVA02ATConfig
from stvl.models.timesformer import weights as timesformer
from stvl.models.timesformer.module import TimeSformerConfig
from stvl.models.vit import weights as vit
from stvl.models.vit.module import ViTConfig
from stvl.nn.mlp import Activation
from stvl.nn.pixels import AVION_MEAN
from stvl.weights.rules import Layout


@runtime_checkable
class HasShape(Protocol):
    """A tensor of a file, or an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def source_of(layout: Layout, target: str) -> str:
    """The name that holds a parameter, of layer 0 where there are layers; empty where the layout has none."""
    names = (rule.source for rule in layout.rules if target in rule.targets)
    return next(names, "").replace("{i}", "0")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes of a file say.

    Attributes:
        width, depth, heads, patch, image_size: of the video tower.
        frames: rows of P_t; 0 where there is none.
        embedding: width of the shared space.
        activation: of both towers' MLPs, where the family has a choice.
    """

    width: int
    depth: int
    heads: int
    patch: int
    image_size: int
    frames: int
    embedding: int
    activation: Activation


@dataclasses.dataclass(frozen=True)
class FamilyLayout:
    """A layout, how to know it, and what it means for the model.

    Attributes:
        layout: rules.
        family: family of presets, as in `stvl.models.presets.FAMILIES`.
        kind: what sizes are called after, ``EVA02`` in ``EVA02-L-14``.
        anchors: names that together no other layout has, with ``{i}`` for any layer.
        video: sizes to the video tower's config.
        source: public code that the names were read from.
        activation: what the weights were trained with; None where names cannot tell and the caller has to say it.
        stem_axes: axes of the patch kernel.
        optional: names that a file may lack.
        kernel: filter of the source's own resizing.
    """

    layout: Layout
    family: str
    kind: str
    anchors: tuple[str, ...]
    video: Callable[[Sizes], VideoConfig]
    source: str
    activation: Activation | None = "gelu"
    stem_axes: int = 4
    optional: tuple[str, ...] = ()
    kernel: Kernel = "bicubic"

    def missing(self, entries: Mapping[str, HasShape]) -> list[str]:
        """Anchors that the file does not have."""
        patterns = patterns_of(entries)
        return [name for name in self.anchors if name not in patterns]

    def fits(self, entries: Mapping[str, HasShape]) -> bool:
        """Whether the file has every anchor, and a patch kernel of the right number of axes."""
        stem = entries.get(source_of(self.layout, "video/stem/kernel"))
        return not self.missing(entries) and (stem is None or len(stem.shape) == self.stem_axes)


def _common(sizes: Sizes) -> dict[str, Any]:
    names = ("width", "depth", "heads", "patch", "image_size")
    return {name: getattr(sizes, name) for name in names} | {"frames": max(sizes.frames, 1)}


def _eva02(sizes: Sizes) -> EVA02ATConfig:
    mode = "both" if sizes.frames else "rope"
    return EVA02ATConfig(**_common(sizes), temporal_positions=mode, projection_bias=True)


def _vit(sizes: Sizes) -> ViTConfig:
    mode = "learned" if sizes.frames else "none"
    return ViTConfig(**_common(sizes), temporal_positions=mode, activation=sizes.activation)


def _avion(sizes: Sizes) -> ViTConfig:
    return dataclasses.replace(_vit(sizes), eps=1e-6, mean=AVION_MEAN)


def _lavila(sizes: Sizes) -> TimeSformerConfig:
    return TimeSformerConfig(**_common(sizes), activation=sizes.activation, mean=AVION_MEAN)


def patterns_of(names: Iterable[str]) -> set[str]:
    """Names with ``{i}`` for the number of a layer."""
    return {re.sub(r"(?<=\.)\d+(?=\.)", "{i}", name) for name in names}


_TEXT = "transformer.resblocks.{i}.ln_1.weight"
_OPEN_CLIP = "github.com/mlfoundations/open_clip"
_AVION = "github.com/zhaoyue-zephyrus/AVION, avion/models"


def _avion_layout(matrix: bool, flash: bool) -> FamilyLayout:
    qkv = "attn.Wqkv.weight" if flash else "attn.in_proj_weight"
    anchors = ("visual.image_projection", f"visual.transformer.resblocks.{{i}}.{qkv}", f"textual.{_TEXT}")
    return FamilyLayout(
        layout=vit.AVION[matrix, flash],
        family="avion",
        kind="AVION-ViT",
        anchors=anchors,
        video=_avion,
        source=_AVION,
        stem_axes=2 if matrix else 4,
        optional=("visual.temporal_embedding",),
        kernel="bilinear",
    )


def _all() -> Iterable[FamilyLayout]:
    eva = ("eva02-clip", "EVA02")
    trunk, block = "visual.trunk.blocks.{i}.mlp.fc1_g.weight", "visual.blocks.{i}.attn.inner_attn_ln.weight"
    rei = "github.com/baaivision/EVA, EVA-CLIP/rei/eva_clip"
    timm = "github.com/huggingface/pytorch-image-models, timm/models/eva.py"
    yield FamilyLayout(eva02_at.OPEN_CLIP, *eva, (trunk, f"text.{_TEXT}"), _eva02, f"{_OPEN_CLIP}; {timm}")
    yield FamilyLayout(
        eva02_at.TIMM, *eva, ("blocks.{i}.mlp.fc1_g.weight", "blocks.{i}.attn.q_proj.weight"), _eva02, timm
    )
    yield FamilyLayout(eva02_at.EVA_CLIP, *eva, (block, f"text.{_TEXT}"), _eva02, rei)
    release = (block, f"text.{_TEXT}", "visual.temporal_embedding")
    note = "not confirmed: EVA-CLIP's names with AVION's temporal table; github.com/xqwang14/EVA02-AT has no model code"
    yield FamilyLayout(eva02_at.RELEASE, "eva02-at", "EVA02-AT", release, _eva02, note)
    clip, conv = ("vit-clip", "ViT"), ("visual.conv1.weight", "visual.proj")
    yield FamilyLayout(vit.OPEN_CLIP, *clip, (*conv, _TEXT), _vit, f"github.com/openai/CLIP; {_OPEN_CLIP}")
    yield FamilyLayout(vit.CUSTOM_TEXT, *clip, (*conv, f"text.{_TEXT}"), _vit, _OPEN_CLIP)
    hf = (
        "vision_model.embeddings.class_embedding",
        "vision_model.pre_layrnorm.weight",
        "visual_projection.weight",
    )
    where = "github.com/huggingface/transformers, models/clip/modeling_clip.py"
    yield FamilyLayout(vit.HF, *clip, hf, _vit, where, activation=None)
    for matrix, flash in vit.AVION:
        yield _avion_layout(matrix, flash)
    yield FamilyLayout(
        layout=timesformer.LAVILA,
        family="timesformer",
        kind="TimeSformer",
        anchors=("visual.blocks.{i}.timeattn.qkv.weight", "visual.ln_pre.weight", "image_projection", _TEXT),
        video=_lavila,
        source="github.com/facebookresearch/LaViLa, lavila/models",
        activation="quick_gelu",
        kernel="bilinear",
    )


#: All layouts by name.
LAYOUTS: Mapping[str, FamilyLayout] = MappingProxyType({item.layout.name: item for item in _all()})
