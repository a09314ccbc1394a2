"""``stvl doctor [CONFIG]`` and ``stvl doctor --distributed``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from stvl.cli.distributed import ProcessArgs
from stvl.cli.distributed import doctor as doctor_of_all
from stvl.cli.main import console, parse_args
from stvl.core.errors import ConfigError

if TYPE_CHECKING:
    from stvl.ops.attention.backends import Case

#: Extra of pyproject.toml -> the packages that show that it is installed.
EXTRAS: dict[str, tuple[str, ...]] = {
    "tpu": ("libtpu",),
    "cuda": ("jax-cuda12-plugin",),
    "torch": ("torch", "safetensors"),
    "hub": ("huggingface_hub",),
    "gcs": ("gcsfs",),
    "notebooks": ("matplotlib", "nbclient"),
}


@dataclasses.dataclass(kw_only=True)
class Args(ProcessArgs):
    """Print versions, devices and settings, and which attention backend the shapes of a config get and why.

    With --distributed, started on every machine like `stvl train`: who arrives, versions, devices, a sum over all
    devices, and whether every process can write to the folder of checkpoints.
    """

    config: Positional[str | None] = None
    """Config module, e.g. configs/quickstart.py; a bare name is looked up in configs/."""
    overrides: Positional[tuple[str, ...]] = ()
    """name=value pairs, as in `stvl train`."""
    shapes: str = ""
    """Names of attention shapes, apart by commas (`stvl bench attention --list`), beside or instead of a config."""
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Ask for this platform instead of the one at hand."""
    json: Path | None = None
    """File for the same as JSON."""
    distributed: bool = False
    """Examine all processes of a program instead."""
    checkpoint: str = ""
    """With --distributed: a folder that every process writes a small file to: a path, or gs://BUCKET/..."""
    timeout: float = 120.0
    """With --distributed: seconds for the checks after the start."""


def run(argv: list[str]) -> int:
    """Run the command."""
    args = parse_args(Args, argv, "doctor")
    if args.distributed:
        if args.config is not None or args.shapes:
            raise ConfigError("--distributed looks at machines: it takes no config and no shapes")
        if args.timeout <= 0:
            raise ConfigError(f"--timeout is above 0 seconds, found {args.timeout:g}")
        return doctor_of_all(args.options(), args.checkpoint, args.timeout, args.json)
    if args.checkpoint:
        raise ConfigError("--checkpoint belongs to --distributed")
    found = facts()
    out = console()
    _print_facts(found)
    platform = args.platform or found["platform"]
    cases: list[tuple[str, Case]] = []
    if args.config is not None:
        cases += config_cases(args.config, args.overrides, platform)
    names = [name.strip() for name in args.shapes.split(",") if name.strip()]
    cases += shape_cases(names, platform)
    rows = [choice_of(name, case) for name, case in cases]
    if rows:
        print()
        out.print(_table(rows, platform))
    if args.json is not None:
        import json

        text = json.dumps({**found, "asked": platform, "attention": rows}, indent=1) + "\n"
        args.json.write_text(text, encoding="utf-8")
        print(f"written: {args.json}")
    return 0


def facts() -> dict[str, Any]:
    """Versions, devices, extras, settings, and hints on what to change.

    Raises:
        ConfigError: jax finds no device that it can start.
    """
    import jax

    from stvl.core.errors import ConfigError
    from stvl.ops.bench import machine

    try:
        devices, platform = machine.devices(), jax.default_backend()
    except RuntimeError as problem:
        first = str(problem).strip().splitlines()[0]
        raise ConfigError(f"jax starts no device: {first} (JAX_PLATFORMS=cpu uses the CPU)") from problem
    values = jax.config.values
    settings = {
        "compilation cache": values["jax_compilation_cache_dir"],
        "64 bit": bool(values["jax_enable_x64"]),
        "matmul precision": values["jax_default_matmul_precision"],
    }
    found = {
        "versions": machine.versions(),
        "platform": platform,
        "devices": devices,
        "processes": jax.process_count(),
        "processor": machine.processor(),
        "host_memory": machine.host_memory(),
        "extras": {name: not missing(packages) for name, packages in EXTRAS.items()},
        "settings": settings,
        "variables": machine.variables(),
    }
    return {**found, "hints": hints(found, Path("/proc/driver/nvidia").exists())}


def missing(packages: Iterable[str]) -> list[str]:
    """Those of the packages that are not installed."""
    import importlib.metadata

    absent = []
    for name in packages:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    return absent


def hints(found: dict[str, Any], has_gpu: bool) -> list[str]:
    """What in the facts is likely not meant, and what to do about it."""
    told, platform, settings = [], found["platform"], found["settings"]
    if has_gpu and platform == "cpu" and "JAX_PLATFORMS" not in found["variables"]:
        told.append("the machine has an NVIDIA driver, but jax runs on the CPU: pip install 'stvl[cuda]'")
    if found["extras"]["tpu"] and platform != "tpu" and "JAX_PLATFORMS" not in found["variables"]:
        told.append(
            "libtpu is installed and no TPU is here: JAX_PLATFORMS=cpu keeps jax from looking for one"
        )
    if platform != "cpu" and not settings["compilation cache"]:
        told.append("compiled programs are not kept: set JAX_COMPILATION_CACHE_DIR to a folder")
    if settings["64 bit"]:
        told.append("64-bit mode is on; stvl is tested with 32 bit: unset JAX_ENABLE_X64")
    return told


def config_cases(path: str, overrides: Sequence[str], platform: str) -> list[tuple[str, Case]]:
    """The attentions that a training step of a config traces, each once, as `platform` would be asked for them.

    The mesh is the config's where the devices at hand make it up, and one device where they do not.

    Raises:
        ConfigError: a config or an override that cannot be used.
    """
    import jax

    from stvl.core.sharding import activation_sharding
    from stvl.dist.mesh import RULES
    from stvl.ops.attention.record import recorded
    from stvl.train.experiment import load_experiment
    from stvl.train.state import abstract_inputs, build

    experiment = load_experiment(path, overrides)
    if experiment.dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
        experiment = dataclasses.replace(experiment, dtype=dtype)
    model, _ = build(experiment)
    inputs = abstract_inputs(experiment, experiment.loader.batch)
    with activation_sharding(_mesh(experiment.mesh), RULES), recorded() as cases:
        jax.eval_shape(model.init, jax.random.key(0), *inputs)
    unique: dict[str, Case] = {}
    for case in cases:
        asked = case._replace(platform=platform)
        unique.setdefault(str((asked.q, asked.k, asked.rotary, asked.mask)), asked)
    return [(experiment.name, case) for case in unique.values()]


def _mesh(sizes: Any) -> Any:
    import jax

    from stvl.core.errors import ConfigError
    from stvl.dist.mesh import MeshConfig, make_mesh

    try:
        return make_mesh(sizes)
    except ConfigError as problem:
        print(f"asked as if on one device: {problem}")
        return make_mesh(MeshConfig(data=1), jax.local_devices()[:1])


def shape_cases(names: Sequence[str], platform: str) -> list[tuple[str, Case]]:
    """Named attention shapes, in the compute dtype of the platform.

    Raises:
        ConfigError: an unknown name, with the nearest one.
    """
    import jax
    import jax.numpy as jnp

    from stvl.ops.attention.backends import Case
    from stvl.ops.attention.options import AttentionOptions
    from stvl.ops.attention.shapes import SHAPES
    from stvl.ops.bench.adapter import chosen

    dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16
    cases = []
    for name in chosen("attention shape", tuple(names), SHAPES):
        one = SHAPES[name]
        q = jax.ShapeDtypeStruct((one.b, one.q, one.h, one.e), dtype)
        k = jax.ShapeDtypeStruct((one.b, one.s, one.g, one.e), dtype)
        cases.append((name, Case(q, k, bool(one.axes), one.mask, AttentionOptions(), platform)))
    return cases


def choice_of(name: str, case: Case) -> dict[str, Any]:
    """The backend that the rules choose for a case, their evidence, and why each other one is not taken."""
    from stvl.ops.attention.api import BACKENDS, choose
    from stvl.ops.attention.rules import CHOICES

    impl, reasons = choose(case)
    lines = [choice for choice in CHOICES if choice.platform == case.platform]
    evidence = next((line.evidence for line in lines if line.impl == impl), "")
    for other, backend in BACKENDS.items():
        if other != impl and other not in reasons:
            listed = any(line.impl == other for line in lines)
            later = f"comes after {impl} in the rules" if listed else f"no rule for {case.platform} names it"
            away = other in ("gpu", "tpu") and other != case.platform
            reasons[other] = f"a kernel for {other}" if away else backend.declines(case) or later
    return {
        "name": name,
        "q": list(case.q.shape),
        "k": list(case.k.shape),
        "dtype": str(case.q.dtype),
        "rotary": case.rotary,
        "mask": type(case.mask).__name__,
        "impl": impl,
        "evidence": evidence,
        "reasons": reasons,
    }


def _print_facts(found: dict[str, Any]) -> None:
    def size(count: int | None) -> str:
        return "memory not told" if count is None else f"{count / 2**30:.1f} GiB"

    print("versions:  " + ", ".join(f"{name} {number or '-'}" for name, number in found["versions"].items()))
    kinds: dict[tuple[str, str], int] = {}
    for device in found["devices"]:
        key = (device["kind"], size(device["bytes_limit"]) if device["platform"] != "cpu" else "host memory")
        kinds[key] = kinds.get(key, 0) + 1
    told = ", ".join(f"{count} x {kind} ({memory})" for (kind, memory), count in kinds.items())
    print(f"devices:   {found['platform']}: {told}, {found['processes']} process(es)")
    print(f"host:      {found['processor']}, {size(found['host_memory'])}")
    print(f"extras:    {', '.join(f'{name} {_yes(there)}' for name, there in found['extras'].items())}")
    print("settings:  " + ", ".join(f"{name}: {value}" for name, value in found["settings"].items()))
    for name, value in found["variables"].items():
        print(f"           {name}={value}")
    for hint in found["hints"]:
        print(f"hint:      {hint}")


def _yes(there: bool) -> str:
    return "yes" if there else "no"


def _table(rows: list[dict[str, Any]], platform: str) -> Any:
    from rich.table import Table

    table = Table(title=f"attention on {platform}", title_justify="left", show_lines=True)
    for column in ("where", "queries / sources", "backend", "why not the others"):
        table.add_column(column)
    for row in rows:
        letters = " ".join(f"{letter}={size}" for letter, size in zip("bqhe", row["q"], strict=True))
        sources = " ".join(f"{letter}={row['k'][place]}" for letter, place in (("s", 1), ("g", 2)))
        turned = ", rotary" if row["rotary"] else ""
        shape = f"{letters}\n{sources}\n{row['dtype']}, {row['mask']}{turned}"
        others = "\n".join(f"{name}: {reason}" for name, reason in row["reasons"].items())
        table.add_row(row["name"], shape, str(row["impl"]), others)
    return table
