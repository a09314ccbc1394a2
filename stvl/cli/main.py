"""``stvl COMMAND ...``: finds the command, and turns errors into one clear message and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from stvl import __version__
from stvl.core.errors import StvlError, nearest
from stvl.train.signals import Exit

Args = TypeVar("Args")

#: Command -> (module, what it does). The module's ``run(argv) -> int`` is called.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("stvl.cli.train", "train an experiment, or go on with it"),
    "eval": ("stvl.cli.evaluate", "evaluate run folders by their protocols and print them side by side"),
    "embed": ("stvl.cli.embed", "embed videos, images or texts into an .npz file"),
    "search": ("stvl.cli.search", "search a folder of videos by a sentence"),
    "convert": ("stvl.cli.convert", "turn a checkpoint into a weights folder, or export one"),
    "inspect": ("stvl.cli.inspect", "show the tensors of a checkpoint and the model that they make"),
    "diff": ("stvl.cli.diff", "compare two weights block by block, or with stored activations"),
    "plan": ("stvl.cli.plan", "plan a run for devices that are not here: memory, time, traffic, cost"),
    "bench": (
        "stvl.cli.bench",
        "check and time the ops and the train step, or read the TPU compiler's schedule",
    ),
    "doctor": ("stvl.cli.doctor", "versions, devices, and the backends that the shapes of a config get"),
    "rope": ("stvl.cli.rope", "draw a rotary scheme: angle curves and a score map"),
    "claims": (
        "stvl.cli.claims",
        "train and compare what papers claim, on the toy world, over several seeds",
    ),
    "data toy": ("stvl.cli.data_toy", "render a procedural video world with annotations"),
    "data check": ("stvl.cli.data_check", "decode videos and name the damaged ones"),
}

_HELP = ("-h", "--help", "help")

_EXITS = """exit codes:
  0   done
  1   an error, explained on stderr
  2   the command line could not be understood
  3   `stvl data check` found damaged files
  4   training stopped at a non-finite loss
  75  training was preempted (SIGTERM) and saved: start the same command again
  76  another process of the run is gone or never came: start the same command again
  77  no step for too long (watchdog.exit_after): start the same command again"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except StvlError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return int(getattr(problem, "exit_code", Exit.ERROR))
    except BrokenPipeError:
        # `stvl ... | head`: the reader left; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in _HELP or (argv[0] == "data" and argv[1:2] and argv[1] in _HELP):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"stvl {__version__}")
        return 0
    name, rest = _split(argv)
    if name not in COMMANDS:
        heads = {command for command in COMMANDS if command.startswith("data ") or argv[0] != "data"}
        print(f"error: stvl has no command {name!r}{nearest(name, heads)}", file=sys.stderr)
        return int(Exit.USAGE)
    return importlib.import_module(COMMANDS[name][0]).run(rest)


def usage() -> str:
    """The text of ``stvl --help``."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    head = "usage: stvl COMMAND [options]\n\nSpatio-temporal video-language encoders in JAX."
    return "\n".join([head, "", "commands:", *lines, "", "stvl COMMAND --help tells more.", "", _EXITS])


def parse_args(kind: type[Args], argv: Sequence[str], command: str) -> Args:
    """Read a command's options into its dataclass with tyro; a mistake prints usage and exits with 2."""
    import tyro

    return tyro.cli(kind, args=list(argv), prog=f"stvl {command}", description=kind.__doc__)


def _split(argv: list[str]) -> tuple[str, list[str]]:
    if argv[0] == "data" and len(argv) > 1 and not argv[1].startswith("-"):
        return f"data {argv[1]}", argv[2:]
    return argv[0], argv[1:]


def console() -> Any:
    """A rich console that does not wrap tables when the output goes to a file."""
    from rich.console import Console

    return Console(soft_wrap=False, width=None if sys.stdout.isatty() else 120)
