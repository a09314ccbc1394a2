"""What a claim is: arms that differ in one thing, what each is measured by, and the seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from stvl.core.errors import ConfigError, nearest
from stvl.data.toy import ToyOptions
from stvl.models.dual import DualEncoderConfig
from stvl.train.experiment import Experiment, Protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One protocol on the trained model.

    Attributes:
        name: prefix of the metrics in a record.
        protocol: what is run.
        frames: frames of a clip.
        model: stands in for the trained model's config, where positions are read in another way; parameters must fit.
    """

    name: str
    protocol: Protocol
    frames: int
    model: DualEncoderConfig | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One thing to train and measure.

    Attributes:
        name: of its files and on the command line.
        title: in tables.
        experiment: the run; its seeds are set by the claim's, its protocols are `evaluations`.
        evaluations: what is measured at the end.
        start: the arm whose parameters it starts from; empty for random ones.
        compared: whether it stands in the table of differences.
    """

    name: str
    title: str
    experiment: Experiment
    evaluations: tuple[Evaluation, ...]
    start: str = ""
    compared: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is spent.

    Attributes:
        steps: of each run; None for those that the claim names.
        videos: training videos of the world; None for those that the claim names.
    """

    steps: int | None = None
    videos: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "videos"):
            found = getattr(self, name)
            if found is not None and found < 1:
                raise ConfigError(f"{name} is at least 1, found {found}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A question to several seeds.

    Attributes:
        name: on the command line.
        question: one line.
        world: of a budget, the toy world.
        arms: of a budget and the world's folder, all arms; an arm follows the one that it starts from.
        metrics: metric of a record -> heading of its column.
        details: metrics of a second table of scores.
        diagnostics: number of the training log -> heading of its column.
        baseline: the arm that the others are compared with.
        seeds: of initial parameters and of the order of the data; one run of each arm for each of them.
    """

    name: str
    question: str
    world: Callable[[Budget], ToyOptions]
    arms: Callable[[Budget, str], tuple[Arm, ...]]
    metrics: dict[str, str]
    diagnostics: dict[str, str]
    baseline: str
    seeds: tuple[int, ...]
    details: dict[str, str] = dataclasses.field(default_factory=dict)

    def chosen(self, names: tuple[str, ...], budget: Budget, world: str) -> tuple[Arm, ...]:
        """The arms called `names` and those that they start from, in order; all where there are no names.

        Raises:
            ConfigError: an unknown name, with the nearest.
        """
        arms = {arm.name: arm for arm in self.arms(budget, world)}
        for name in names:
            if name not in arms:
                raise ConfigError(f"the claim {self.name!r} has no arm {name!r}{nearest(name, arms)}")
        wanted = set(names or arms)
        for name in list(wanted):
            while arms[name].start:
                name = arms[name].start
                wanted.add(name)
        return tuple(arm for name, arm in arms.items() if name in wanted)
