"""``stvl train CONFIG [name=value ...]``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from stvl.cli.distributed import ProcessArgs
from stvl.cli.main import parse_args
from stvl.train.signals import Exit, StopFlag, stop_on_sigterm


@dataclasses.dataclass(kw_only=True)
class Args(ProcessArgs):
    """Train an experiment. A run folder that holds a checkpoint is gone on with.

    The same command starts each process of a program of several; options stand before the name=value pairs.
    """

    config: Annotated[str, tyro.conf.Positional]
    """Config module, e.g. configs/quickstart.py; a bare name is looked up in configs/."""
    overrides: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """name=value pairs: parameters of the config's experiment function, or dotted paths (model.video.depth=4)."""
    dry_run: bool = False
    """Print the experiment as JSON and the parameter counts, and stop."""
    profile: str = ""
    """Trace the steps FIRST:LAST, both included, into RUN/profile/, and print what they spent their time on. Steps are
    numbered as in the log: a run that goes on from step 100 begins with step 101. The first step of a process compiles."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "train")
    from stvl.dist.peers import CALLED_OFF, end_process

    with stop_on_sigterm() as stop:
        # Before anything that takes long: nothing is lost yet, so a stop need not wait for imports or other hosts.
        stop.at_once(lambda: end_process(CALLED_OFF, Exit.PREEMPTED))
        return _run(args, stop)


def _run(args: Args, stop: StopFlag) -> int:
    from stvl.train.experiment import load_experiment
    from stvl.train.profile.profiler import parse_steps

    steps = parse_steps(args.profile)
    experiment = load_experiment(args.config, args.overrides)
    if args.dry_run:
        return _describe(experiment)
    from stvl.dist.start import digest, start
    from stvl.plan.oom import Memories
    from stvl.train.loop import train

    # Inside of `start`, so that the others hear the report as the reason of this process's end.
    with (
        start(args.options(), digest(args.config, args.overrides)) as started,
        Memories(experiment) as memories,
    ):
        if started.describe():
            print(started.describe(), flush=True)
        train(experiment, started.peers, stop, steps, memories.watch)
    return 0


def _describe(experiment: object) -> int:
    import json

    import jax

    from stvl.core.config import to_dict
    from stvl.dist.mesh import make_mesh
    from stvl.train.experiment import Experiment
    from stvl.train.state import Starter

    assert isinstance(experiment, Experiment)
    print(json.dumps(to_dict(experiment), indent=2))
    params = Starter(experiment, make_mesh(experiment.mesh)).abstract.params
    for tower in ("video", "text"):
        print(f"{tower}: {sum(leaf.size for leaf in jax.tree.leaves(params[tower])) / 1e6:.2f} M parameters")
    return 0
