"""``stvl diff A B``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from stvl.cli.main import console, parse_args
from stvl.cli.runs import load_any

if TYPE_CHECKING:
    from stvl.pretrained.compare import Comparison, ParamRow, Row


@dataclasses.dataclass
class Args:
    """Compare two weights block by block on the same inputs, or weights with stored activations; 1 where they differ.

    A side is a weights folder, a run folder, or an .npz file of activations by name (docs/weights.md). B is the
    reference.
    """

    left: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """Folder or .npz file."""
    right: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """Folder or .npz file to compare with."""
    inputs: str | None = None
    """.npz with input/video (b t y x 3; uint8, or floats that are normalised already) and input/text (b l); default: those
    of an .npz side, else random ones."""
    frames: int | None = None
    """Frames of random inputs; default: A's."""
    batch: int = 2
    """Rows of random inputs."""
    seed: int = 0
    """Of random inputs."""
    threshold: float = 1e-4
    """Largest difference, relative to the largest value of B, that counts as equal."""
    params: bool = False
    """Compare parameters alone, bit by bit, and compute nothing."""
    json: str | None = None
    """File for all rows."""


def run(argv: list[str]) -> int:
    """Run the command; 1 where an activation is off by more than the threshold (with --params: a parameter differs)."""
    args = parse_args(Args, argv, "diff")
    from stvl.core.errors import ConfigError

    files = [side for side in (args.left, args.right) if side.endswith(".npz")]
    if files and args.params:
        raise ConfigError(f"{files[0]} holds activations and no parameters: leave --params out")
    if len(files) == 2 and args.inputs:
        raise ConfigError("two files of activations need no --inputs: nothing is computed")
    models = {side: load_any(side) for side in dict.fromkeys((args.left, args.right)) if side not in files}
    out: dict[str, Any] = {"a": args.left, "b": args.right}
    same = True
    if not args.params:
        comparison = _activations(args, models, files)
        console().print(_table(args, comparison))
        _tell(comparison)
        same = comparison.first_bad is None
        out |= _plain(comparison)
    if not files:
        from stvl.pretrained.compare import compare_params

        rows, equal = compare_params(models[args.left].params, models[args.right].params)
        _print_params(rows, equal)
        out |= {"parameters": [dataclasses.asdict(row) for row in rows], "parameters_equal": equal}
        same = same and not (args.params and rows)
    if args.json:
        _write(args.json, out)
    return 0 if same else 1


def _activations(args: Args, models: Mapping[str, Any], files: Sequence[str]) -> Comparison:
    """Activations of both sides on the same inputs."""
    from stvl.core.errors import ConfigError
    from stvl.pretrained.compare import (
        compare,
        random_inputs,
        read_activations,
        run_activations,
        split_inputs,
    )

    stored = {path: split_inputs(read_activations(path)) for path in files}
    inputs = next((found for found, _ in stored.values() if found), {})
    if args.inputs:
        inputs, _ = split_inputs(read_activations(args.inputs))
    if not inputs and stored and models:
        raise ConfigError(
            f"{files[0]} holds no input/video and no input/text: name the inputs that it was made from with --inputs"
        )
    if not inputs and models:
        first = next(iter(models.values()))
        inputs = random_inputs(first.contents.model, args.frames or first.frames, args.batch, args.seed)
    found = {path: arrays for path, (_, arrays) in stored.items()}
    for side, model in models.items():
        found[side] = run_activations(model.contents.model, model.params, inputs)
    return compare(found[args.left], found[args.right], args.threshold)


def _table(args: Args, comparison: Comparison) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"A = {args.left}, B = {args.right}"), title_justify="left")
    for name in ("activation", "shape", "max abs", "relative", "cosine", ""):
        table.add_column(name, justify="left" if name in ("activation", "") else "right", overflow="fold")
    for row in comparison.rows:
        table.add_row(*_cells(row, comparison.threshold))
    return table


def _cells(row: Row, threshold: float) -> list[str]:
    shape = " x ".join(map(str, row.shape))
    if row.problem:
        return [row.name, shape, "", "", "", row.problem]
    mark = "differs" if row.bad(threshold) else ""
    return [row.name, shape, f"{row.max_abs:.3g}", f"{row.relative:.3g}", f"{row.cosine:.8f}", mark]


def _tell(comparison: Comparison) -> None:
    for side, names in (("A", comparison.only_left), ("B", comparison.only_right)):
        if names:
            print(f"only in {side}: {', '.join(names)}")
    first = comparison.first_bad
    if first is None:
        print(f"all {len(comparison.rows)} activations agree within {comparison.threshold:g}")
    else:
        count = sum(row.bad(comparison.threshold) for row in comparison.rows)
        why = first.problem or f"relative difference {first.relative:.3g} > {comparison.threshold:g}"
        print(f"first bad: {first.name} ({why}); {count} of {len(comparison.rows)} differ")


def _print_params(rows: Sequence[ParamRow], equal: int) -> None:
    from rich.table import Table

    print(f"parameters: {equal} equal bit by bit, {len(rows)} differ")
    if not rows:
        return
    table = Table("parameter", "max abs", "what differs")
    for row in rows:
        where = f"; layers {', '.join(map(str, row.layers))}" if row.layers else ""
        number = "" if math.isnan(row.max_abs) else f"{row.max_abs:.3g}"
        table.add_row(row.path, number, row.problem + where)
    console().print(table)


def _plain(comparison: Comparison) -> dict[str, Any]:
    first = comparison.first_bad
    return {
        "threshold": comparison.threshold,
        "first_bad": None if first is None else first.name,
        "rows": [dataclasses.asdict(row) for row in comparison.rows],
        "only_a": list(comparison.only_left),
        "only_b": list(comparison.only_right),
    }


def _write(path: str, out: Mapping[str, Any]) -> None:
    from stvl.eval.result import atomic_write

    def finite(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {name: finite(item) for name, item in value.items()}
        return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value

    text = json.dumps(finite(dict(out)), indent=2, allow_nan=False) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))
    print(f"written: {path}")
