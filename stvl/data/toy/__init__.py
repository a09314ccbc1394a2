"""A procedural video world with real files: coloured shapes that move, and the opposite of every move."""

from __future__ import annotations

from stvl.data.toy.render import render_scene
from stvl.data.toy.words import NOUNS, OPPOSITES, VERBS
from stvl.data.toy.world import SceneSpec, ToyOptions, mirror, sample_scene
from stvl.data.toy.write import ToySummary, world_paths, write_world

__all__ = [
    "NOUNS",
    "OPPOSITES",
    "VERBS",
    "SceneSpec",
    "ToyOptions",
    "ToySummary",
    "mirror",
    "render_scene",
    "sample_scene",
    "world_paths",
    "write_world",
]
