"""torch's ``.pt``, ``.pth`` and ``.bin``: weights only, so that no code of the file is run.

Training programs wrap the weights in other things: ``{"state_dict": ..., "epoch": 5, "args": Namespace(...)}``. The one
dict of tensors is taken; of several the first in the order of `PREFERENCE`, and ``metadata["torch_container"]`` says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from stvl.core.errors import WeightsError
from stvl.weights.readers.common import BaseSource
from stvl.weights.source import Entry

#: The first torch whose weights_only=True keeps its word: CVE-2025-32434.
OLDEST = (2, 6)
#: Which dict of tensors is the model, where a file holds several. The average (ema) comes last: it is another set of
#: weights, that a user has to ask for by saving it alone.
PREFERENCE = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
_AVERAGES = ("ema", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model")
#: Rank of a name that says nothing.
_UNKNOWN = len(PREFERENCE)
#: Dicts of tensors that are never the model's weights.
_NEVER = re.compile(
    r"(optimizer|optim|scheduler|lr_scheduler|scaler|amp|criterion|loss|rng|random)(_.*|s)?|.*_rng_state"
)
_SAVE = (
    "where you trust the file, save its weights as safetensors: "
    "safetensors.torch.save_file({k: v.contiguous() for k, v in torch.load(FILE, weights_only=False)[...].items()}, OUT)"
)


class TorchSource(BaseSource):
    """A torch file; tensors stay on disk (mapped) where the file's format allows.

    Args:
        path: the file.

    Raises:
        WeightsError: torch is not installed; the file is damaged, is a TorchScript program, or needs code to be run (the
            refused name is given); it holds no dict of tensors, or several of which none is preferred.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if importlib.util.find_spec("torch") is None:
            raise WeightsError(f"{path} is a torch file, which needs torch: pip install 'stvl[torch]'")
        found = _load(path)
        container, self._tensors, notes = _tensors(path, found)
        self.entries = {name: _entry(path, name, tensor) for name, tensor in self._tensors.items()}
        self.metadata = {"torch_container": container, **notes}

    def close(self) -> None:
        """Let go of the tensors."""
        super().close()
        self._tensors = {}

    def _read(self, name: str) -> np.ndarray:
        import torch  # type: ignore[import-not-found]

        entry, tensor = self.entries[name], self._tensors[name].detach()
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.resolve_conj().resolve_neg()
        # numpy knows neither bfloat16 nor float8: bits travel as integers of the same width.
        raw = {1: torch.uint8, 2: torch.int16}.get(entry.dtype.itemsize)
        if entry.dtype.kind not in "iub" and raw is not None:
            array = tensor.contiguous().view(raw).numpy().view(entry.dtype)
        else:
            array = tensor.numpy()
        return np.array(array, order="C").reshape(entry.shape)


def _load(path: Path) -> Any:
    import torch  # type: ignore[import-not-found]

    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        raise WeightsError(
            f"{path} is read with torch 2.6 or newer, found {torch.__version__}: "
            "before that, weights_only could still run code (CVE-2025-32434)"
        )
    # argparse.Namespace is an object with attributes and no behaviour; AVION and LaViLa keep their command line in one.
    with torch.serialization.safe_globals([argparse.Namespace]):
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        mmap = zipfile.is_zipfile(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as problem:
            raise WeightsError(f"{path} {_why(problem)}") from problem


def _why(problem: Exception) -> str:
    """What torch said, in a line, and what to do."""
    text = str(problem)
    if "TorchScript" in text:
        return (
            "is a TorchScript program, not weights (OpenAI's CLIP files are); where you trust it, save its weights as "
            "safetensors: safetensors.torch.save_file(torch.jit.load(FILE, map_location='cpu').state_dict(), OUT)"
        )
    refused = re.search(r"(?:GLOBAL|Unsupported class|class) ([\w.]+)", text)
    if refused and "unsupported" in text.lower():
        return (
            f"is a pickle that runs code when it is read, which is refused: it asks for {refused[1]}; {_SAVE}"
        )
    reason = re.search(r"WeightsUnpickler error: (.*)", text)
    first = reason[1] if reason else (text.splitlines() or [""])[0]
    return f"is damaged, or no file of weights: {type(problem).__name__}: {first[:200]}"


def _is_tensor(value: Any) -> bool:
    import torch  # type: ignore[import-not-found]

    return isinstance(value, torch.Tensor)


def _dicts(value: Any, place: str = "", depth: int = 0) -> dict[str, Mapping[str, Any]]:
    """Every dict from `value` down that holds tensors itself, by its place; `value` has the place "" itself."""
    if not isinstance(value, Mapping) or depth > 3:
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    if any(isinstance(name, str) and _is_tensor(item) for name, item in value.items()):
        found[place] = value
    for name, item in value.items():
        if isinstance(name, str) and not _NEVER.fullmatch(name):
            found.update(_dicts(item, f"{place}/{name}".lstrip("/"), depth + 1))
    return found


def _tensors(path: Path, found: Any) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Which dict of tensors is the model, its tensors, and what was left aside."""
    if not isinstance(found, Mapping):
        kind = type(found).__name__
        raise WeightsError(f"{path} holds a {kind}, expected a dict of tensors (model.state_dict()); {_SAVE}")
    candidates = _dicts(found)
    if not candidates:
        names = ", ".join(map(str, list(found)[:8])) or "nothing"
        raise WeightsError(f"{path} holds no dict of tensors (inside: {names})")
    ordered = sorted(candidates, key=_rank)
    place, others = ordered[0], ordered[1:]
    # Unknown names beside each other say nothing; beside averages they can only be the model.
    known = _rank(place) < _UNKNOWN or all(_rank(other) > _UNKNOWN for other in others)
    if others and (_rank(others[0]) == _rank(place) or not known):
        names = ", ".join(repr(item or "the file itself") for item in candidates)
        raise WeightsError(
            f"{path} holds several dicts of tensors ({names}), and it is not said which is the model; save that one alone"
        )
    notes = {}
    if others:
        left = ", ".join(repr(other or "the file itself") for other in others)
        notes["torch_note"] = f"{place or 'the file itself'!r} was taken, not {left}"
    items = {name: item for name, item in candidates[place].items() if isinstance(name, str)}
    plain = [name for name, item in items.items() if not _is_tensor(item) and not isinstance(item, Mapping)]
    if plain:
        notes["torch_ignored"] = ", ".join(plain)
    return place or "the file itself", {name: item for name, item in items.items() if _is_tensor(item)}, notes


def _rank(place: str) -> int:
    parts = place.split("/")
    if any(part in _AVERAGES for part in parts):
        return _UNKNOWN + 1
    return PREFERENCE.index(parts[0]) if parts[0] in PREFERENCE else _UNKNOWN


def _entry(path: Path, name: str, tensor: Any) -> Entry:
    import torch  # type: ignore[import-not-found]

    kinds = {
        torch.float64: np.float64,
        torch.float32: np.float32,
        torch.float16: np.float16,
        torch.bfloat16: ml_dtypes.bfloat16,
        torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
        torch.float8_e5m2: ml_dtypes.float8_e5m2,
        torch.int64: np.int64,
        torch.int32: np.int32,
        torch.int16: np.int16,
        torch.int8: np.int8,
        torch.uint8: np.uint8,
        torch.bool: np.bool_,
        torch.complex64: np.complex64,
    }
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in kinds or tensor.is_meta:
        raise WeightsError(
            f"{path}: {name!r} is a tensor of {tensor.dtype}, {tensor.layout}, which is not read"
        )
    return Entry(tuple(tensor.shape), np.dtype(kinds[tensor.dtype]))
