"""Everything that is wrong between a checkpoint and a model, in one error with both sides' lists."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from stvl.core.errors import WeightsError
from stvl.core.paths import AnyPath
from stvl.weights.rules import Shape

SHOWN = 12


class Complaints:
    """Collects what does not fit, then raises once.

    Args:
        path: the checkpoint.
        layout: the layout's name.
    """

    def __init__(self, path: AnyPath, layout: str) -> None:
        self.path, self.layout = path, layout
        self.left: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.shapes: list[str] = []
        self.dtypes: list[str] = []
        self.layers: dict[str, None] = {}
        #: Parameters that are part of a complaint already.
        self.mentioned: set[str] = set()

    def left_over(self, name: str, shape: Shape, why: str = "") -> None:
        """A tensor that goes nowhere."""
        self.left[name] = f"{_shape(shape)}{why and f', {why}'}"

    def lacks(self, name: str, targets: Iterable[str]) -> None:
        """A tensor that is not in the file, and the parameters it would fill."""
        targets = tuple(targets)
        self.missing[name] = f"for {', '.join(targets)}"
        self.mentioned.update(targets)

    def unfilled(self, path: str, shape: Shape) -> None:
        """A parameter that the layout does not know."""
        self.missing[path] = f"{_shape(shape)}, a parameter that the layout does not fill"

    def differs(self, path: str, name: str, found: Shape, model: Shape | str) -> None:
        """A tensor of another shape than the parameter."""
        want = model if isinstance(model, str) else f"the model has {_shape(model)}"
        self.shapes.append(f"{name} {_shape(found)} for {path}: {want}")
        self.mentioned.add(path)

    def wrong_dtype(self, path: str, name: str, found: str, model: str) -> None:
        """A tensor that does not hold numbers of the parameter's kind."""
        self.dtypes.append(f"{name} is {found}, {path} is {model}")
        self.mentioned.add(path)

    def layer_count(self, source: str, found: Iterable[int], depth: int) -> None:
        """Layers of the file that are not those of the model."""
        numbers = sorted(found)
        lost = sorted(set(range(depth)) - set(numbers))
        extra = [number for number in numbers if number >= depth]
        said = f"the file has {len(numbers)} layers ({ranges(numbers)}), the model {depth} (0-{depth - 1})"
        said += f"; missing: {ranges(lost)}" if lost else ""
        said += f"; too many: {ranges(extra)}" if extra else ""
        self.layers[f"{source.partition('{i}')[0]}{{i}}: {said}"] = None

    def throw(self) -> None:
        """Raise if there was anything.

        Raises:
            WeightsError: with all lists, at most twelve lines each.
        """
        sections = [
            ("layers", list(self.layers)),
            ("left over in the file", self._with_hints(self.left, self.missing, "missing")),
            ("missing in the file", self._with_hints(self.missing, self.left, "left over")),
            ("of another shape", self.shapes),
            ("of another kind", self.dtypes),
        ]
        lines = []
        for title, rows in sections:
            if rows:
                more = [f"... and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
                lines += [f"  {title} ({len(rows)}):", *(f"    {row}" for row in [*rows[:SHOWN], *more])]
        if lines:
            head = f"{self.path} does not fit the model in the layout {self.layout}:"
            raise WeightsError("\n".join([head, *lines]))

    def _with_hints(self, rows: dict[str, str], others: dict[str, str], what: str) -> list[str]:
        """A renamed tensor is left over on one side and missing on the other."""
        said = []
        for number, (name, text) in enumerate(rows.items()):
            close = difflib.get_close_matches(name, others, n=1, cutoff=0.8) if number < SHOWN else []
            said.append(f"{name} {text}" + (f" (near {close[0]!r}, which is {what})" if close else ""))
        return said


def _shape(shape: Shape) -> str:
    return "(" + ", ".join(str(side) for side in shape) + ("," if len(shape) == 1 else "") + ")"


def ranges(numbers: list[int]) -> str:
    """``[0, 1, 2, 5]`` as ``0-2, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) or "none"
