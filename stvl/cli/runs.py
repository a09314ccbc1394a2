"""Options that commands on a trained model share: a run folder, or a folder of converted weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stvl.core.errors import ConfigError
from stvl.core.paths import AnyPath, to_path

if TYPE_CHECKING:
    from stvl.pretrained.encoders import DualEncoders


def newest_run(asked: str | None) -> AnyPath:
    """The run folder `asked`, or the one under ``runs/`` whose checkpoints changed last.

    Raises:
        ConfigError: nothing was asked for and ``runs/`` holds no trained run.
    """
    if asked is not None:
        return to_path(asked)
    found = sorted(Path("runs").glob("**/checkpoints"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(
            "no --run DIR and no --weights DIR was given and ./runs holds no trained run: train one with "
            "`stvl train CONFIG`, or convert public weights with `stvl convert SRC --out DIR`"
        )
    print(f"model: {found[-1].parent}")
    return found[-1].parent


def load_model(
    run: str | None, weights: str | None, *, step: int | None = None, frames: int | None = None
) -> tuple[DualEncoders, AnyPath]:
    """The encoders that ``--run`` or ``--weights`` names, by default those of the newest run, and their folder.

    Raises:
        ConfigError: both are named, one is a folder of the other kind, or a step of weights, which have none.
        WeightsError, TrainingError: a folder without a usable model.
    """
    if weights is None:
        from stvl.pretrained.folder import is_weights_folder
        from stvl.train.encoders import load_run

        folder = newest_run(run)
        if is_weights_folder(folder):
            raise ConfigError(f"{folder} is a weights folder and no run: name it with --weights {folder}")
        return load_run(folder, step=step, frames=frames), folder
    if run is not None or step is not None:
        raise ConfigError("give a run (--run, --step) or --weights, not both")
    if (to_path(weights) / "checkpoints").is_dir():
        raise ConfigError(
            f"{weights} is a run folder and holds no converted weights: name it with --run {weights}"
        )
    from stvl.pretrained.encoders import load_weights

    return load_weights(weights, frames=frames), to_path(weights)


def load_any(folder: str, *, step: int | None = None, frames: int | None = None) -> DualEncoders:
    """The encoders of a folder of either kind, told apart by what is in it.

    Raises:
        WeightsError, TrainingError: a folder without a usable model.
    """
    if (to_path(folder) / "checkpoints").is_dir():
        return load_model(folder, None, step=step, frames=frames)[0]
    return load_model(None, folder, frames=frames)[0]
