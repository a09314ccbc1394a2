"""``stvl eval RUN [RUN ...]`` by the protocols of the runs, and ``stvl eval WORD ...`` for one protocol by name."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from stvl.cli.main import console, parse_args
from stvl.cli.runs import newest_run
from stvl.core.errors import nearest
from stvl.core.paths import AnyPath, to_path

#: First word -> what it does; any other word is a run folder.
WORDS: dict[str, str] = {
    "mir": "EPIC-KITCHENS-100 retrieval, of a model or of saved similarities",
    "egomcq": "EgoMCQ",
    "charades-ego": "Charades-Ego, zero-shot or fine-tuned",
    "epic-recognition": "EPIC-KITCHENS-100 verbs, nouns and actions",
    "recognition": "Kinetics, Something-Something and the like, in several views",
    "zero-shot": "classification by prompt templates",
    "retrieval": "text-video retrieval on caption lists (MSR-VTT)",
    "relevancy": "write or compare the relevancy matrix of EPIC-KITCHENS-100",
    "report": "results side by side and beside published rows",
}


@dataclasses.dataclass
class Args:
    """Evaluate run folders by the protocols of their experiments; several runs are printed side by side."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Run folders, as `stvl train ... run=DIR` writes them; default: the newest under runs/."""
    protocols: tuple[str, ...] = ()
    """Names of protocols (EpicMIR, EgoMCQ ...); default: all of the experiment's."""
    frames: int | None = None
    """Frames a clip; default: as in training."""
    step: int | None = None
    """Checkpoint to evaluate; default: the newest."""


def run(argv: list[str]) -> int:
    """Run the command."""
    if argv and argv[0] in WORDS:
        return command(argv[0])(argv[1:])
    if argv[:1] in (["-h"], ["--help"]):
        width = max(map(len, WORDS))
        print("stvl eval WORD --help tells of one protocol:")
        print("\n".join(f"  {word:<{width}}  {text}" for word, text in WORDS.items()) + "\n")
    args = parse_args(Args, argv, "eval")
    for name in args.runs:
        if not Path(name).exists() and not Path(name).parent.name:
            close = nearest(name, WORDS)
            if "did you mean" in close:
                from stvl.core.errors import ConfigError

                raise ConfigError(f"there is no run folder and no protocol {name!r}{close}")
    results = {name: _evaluate(to_path(name), args) for name in args.runs or [str(newest_run(None))]}
    if len(results) > 1:
        console().print(_side_by_side(results))
    return 0


def command(word: str) -> Callable[[list[str]], int]:
    """What runs ``stvl eval WORD``."""
    from stvl.cli import eval_mir, eval_protocol, eval_report

    if word == "report":
        return eval_report.run
    if word in ("mir", "relevancy"):
        return eval_mir.run_mir if word == "mir" else eval_mir.run_relevancy
    return eval_protocol.runner(word)


def arguments(word: str) -> tuple[str, ...]:
    """The names of the options of ``stvl eval WORD``, with underscores."""
    from stvl.cli import eval_mir, eval_protocol, eval_report

    plain = {"mir": eval_mir.MirArgs, "relevancy": eval_mir.RelevancyArgs, "report": eval_report.ReportArgs}
    if word in plain:
        names = [field.name for field in dataclasses.fields(plain[word])]
        return tuple("with" if name == "beside" else name for name in names)
    return tuple(_leaves(eval_protocol.arguments(word)))


def _leaves(cls: Any) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _leaves(hints[field.name])
        else:
            yield field.name


def _evaluate(folder: AnyPath, args: Args) -> dict[str, Any]:
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
