"""stvl: spatio-temporal video-language encoders in JAX.

Importing this package touches no device and imports neither jax nor a decoder: every public name is loaded when it is
first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: Public name -> module that holds it.
_PUBLIC = {
    "Experiment": "stvl.train.experiment",
    "load_experiment": "stvl.train.experiment",
    "DualEncoder": "stvl.models.dual",
    "STRope": "stvl.rope.schemes",
    "ClipTokenizer": "stvl.data.text",
    "Clip": "stvl.data.records",
    "ClipTable": "stvl.data.records",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        from stvl.core.errors import nearest

        raise AttributeError(f"stvl has no {name!r}{nearest(name, _PUBLIC)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
