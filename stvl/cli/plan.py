"""``stvl plan CONFIG --topology NAME [name=value ...]``."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from stvl.cli.main import parse_args

if TYPE_CHECKING:
    from stvl.plan.planner import Plan


@dataclasses.dataclass
class Args:
    """Plan a run for devices that are not here: what fits, what a step costs, what travels, and what would mend it."""

    config: Annotated[str, tyro.conf.Positional]
    """Config module, e.g. configs/ego4d_pretrain.py; a bare name is looked up in configs/."""
    overrides: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """name=value pairs, as in `stvl train`."""
    topology: str = "cpu"
    """v5e:16x16, v5p:8x8x8, v6e:16x16, v4:4x4x4, tpu7x:4x4x4 (need libtpu), h200x8, h100x16, a100x8, cpu, cpu:8."""
    slices: int = 1
    """How many of them, joined by the slower network."""
    sharding: str = ""
    """Preset that lays the mesh out: dp, fsdp, zero2, fsdp+tp, fsdp+context; empty takes the config's mesh."""
    json: Path | None = None
    """File for the plan as JSON."""
    quick: bool = False
    """Compile once only: no largest batch, for which half the batch is compiled as well."""
    what_if: bool = False
    """Also compile up to seven neighbours: other shardings, remat policies, twice the batch."""
    shardings: bool = False
    """Print the sharding of every parameter."""
    xla: tuple[str, ...] = ()
    """Flags for the compiler, name=value without dashes."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "plan")
    from stvl.plan.topology import parse

    topology = parse(args.topology, args.slices)
    _choose_platform(topology)
    from stvl.plan.planner import largest_batch, plan
    from stvl.plan.report import as_json, as_text, shardings_text
    from stvl.plan.whatif import Row, what_if, with_sharding
    from stvl.train.experiment import load_experiment

    experiment = load_experiment(args.config, args.overrides)
    if args.sharding:
        experiment = with_sharding(experiment, args.sharding, topology)
    flags = _flags(args.xla)

    def again(other: Any) -> Plan:
        return plan(other, topology, flags)

    first = again(experiment)
    largest = None if args.quick else largest_batch(first, again)
    rows: list[Row] = []
    if args.what_if:
        rows = what_if(first, again, lambda row: print("planned:", " ".join(row.changes), flush=True))
    print(as_text(first, largest, rows))
    if args.shardings:
        print()
        print(shardings_text(first))
    if args.json is not None:
        import json

        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(as_json(first, largest, rows), indent=1) + "\n", encoding="utf-8")
        print(f"written: {args.json}")
    return 0


def _choose_platform(topology: Any) -> None:
    """Keep jax from starting a device: a plan needs none, and with libtpu installed jax would look for a TPU."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    if (
        topology.platform == "cpu"
        and topology.devices > 1
        and "device_count" not in os.environ.get("XLA_FLAGS", "")
    ):
        # jax refuses once its devices are made; then those that there are must do, or the planner says what is missing.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", topology.devices)


def _flags(words: tuple[str, ...]) -> dict[str, str | bool]:
    from stvl.core.errors import ConfigError

    found: dict[str, str | bool] = {}
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if not equals:
            raise ConfigError(f"compiler flags read name=value, found {word!r}")
        found[name] = value == "true" if value in ("true", "false") else value
    return found
