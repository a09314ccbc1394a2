"""Options that commands on a trained model share."""

from __future__ import annotations

from pathlib import Path

from stvl.core.errors import ConfigError


def newest_run(asked: str | None) -> Path:
    """The run folder `asked`, or the one under ``runs/`` whose checkpoints changed last.

    Raises:
        ConfigError: nothing was asked for and ``runs/`` holds no trained run.
    """
    if asked is not None:
        return Path(asked)
    found = sorted(Path("runs").glob("**/checkpoints"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(
            "no --run DIR was given and ./runs holds no trained run: train one with `stvl train CONFIG`"
        )
    print(f"model: {found[-1].parent}")
    return found[-1].parent
