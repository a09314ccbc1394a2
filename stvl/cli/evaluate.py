"""``stvl eval RUN [RUN ...]``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from stvl.cli.main import console, parse_args
from stvl.cli.runs import newest_run


@dataclasses.dataclass
class Args:
    """Evaluate run folders by the protocols of their experiments; several runs are printed side by side."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Run folders, as `stvl train ... run=DIR` writes them; default: the newest under runs/."""
    protocols: tuple[str, ...] = ()
    """Names of protocols (EpicMIR, EgoMCQ, Opposites); default: all of the experiment's."""
    frames: int | None = None
    """Frames a clip; default: as in training."""
    step: int | None = None
    """Checkpoint to evaluate; default: the newest."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "eval")
    results = {name: _evaluate(Path(name), args) for name in args.runs or [str(newest_run(None))]}
    if len(results) > 1:
        console().print(_side_by_side(results))
    return 0


def _evaluate(folder: Path, args: Args) -> dict[str, Any]:
    from stvl.core.errors import ConfigError, nearest
    from stvl.train.encoders import load_run

    encoders = load_run(folder, step=args.step, frames=args.frames)
    protocols = {type(protocol).__name__: protocol for protocol in encoders.experiment.evals}
    for name in args.protocols:
        if name not in protocols:
            raise ConfigError(f"{folder} was not set up with a protocol {name!r}{nearest(name, protocols)}")
    if not protocols:
        raise ConfigError(f"the experiment of {folder} names no protocol: add one to `evals` in its config")
    results = {}
    for name in args.protocols or protocols:
        result = protocols[name].run(encoders)
        suffix = f"-{encoders.frames}f" if args.frames else ""
        path = folder / "results" / f"{name}{suffix}.json"
        result.to_json(path)
        console().print(result.table())
        print(f"written: {path}")
        results[name] = result
    return results


def _side_by_side(results: dict[str, dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("metric", title="side by side, %", title_justify="left")
    for run_name in results:
        table.add_column(Path(run_name).name, justify="right")
    table.add_column("chance", justify="right")
    first = next(iter(results.values()))
    for protocol, result in first.items():
        for metric in result.metrics:
            scores = [r[protocol].metrics.get(metric) if protocol in r else None for r in results.values()]
            cells = ["" if score is None else f"{100 * score:.1f}" for score in scores]
            table.add_row(f"{protocol} {metric}", *cells, f"{100 * result.baseline[metric]:.1f}")
    return table
