"""Which actions go into which video: every (verb, noun) equally often, opposites of one object side by side."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Literal

import numpy as np

from stvl.data.toy.words import NOUNS, OPPOSITES, VERBS
from stvl.data.toy.world import SceneSpec, ToyOptions, rate, sample_scene

Split = Literal["train", "test"]
PARTICIPANTS: dict[Split, str] = {"train": "P01", "test": "P02"}
_SPLIT_SEED: dict[Split, int] = {"train": 0, "test": 1}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VideoSpec:
    """One file: its EK-100 style id, its folder (participant), its frame rate, and its scenes in order."""

    id: str
    participant: str
    fps: float
    scenes: tuple[SceneSpec, ...]

    @property
    def file(self) -> str:
        """Path of the file inside the world's folder."""
        return f"videos/{self.participant}/{self.id}.mp4"

    @property
    def seconds(self) -> float:
        """Length of the whole file."""
        return sum(scene.frames for scene in self.scenes) / float(rate(self.fps))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One clip: a scene and where it lies in its video, in hundredths of a second from the first frame.

    The stretch never leaves its scene: where a frame boundary is no whole hundredth, start is rounded up and stop down.
    """

    video: VideoSpec
    index: int
    start: int
    stop: int

    @property
    def id(self) -> str:
        """EK-100 ``narration_id``."""
        return f"{self.video.id}_{self.index}"

    @property
    def scene(self) -> SceneSpec:
        """What happens."""
        return self.video.scenes[self.index]

    @property
    def label(self) -> tuple[int, int]:
        """(verb class, noun class): two clips are relevant to each other when these agree."""
        return self.scene.verb, self.scene.noun


def _count(options: ToyOptions, split: Split) -> int:
    return options.train_videos if split == "train" else options.test_videos


def schedule(options: ToyOptions, split: Split) -> list[list[tuple[int, int]]]:
    """The (verb, noun) of each scene of each video of a split: no two alike in one video, all about equally often.

    Each video holds ``options.pairs`` couples (verb, noun), (opposite verb, same noun); the rest are single actions
    that level the counts. Draws are greedy: the rarest so far comes first, ties fall at random.
    """
    rng = np.random.default_rng((options.seed, _SPLIT_SEED[split], 0))
    couples = [
        (verb, other, noun) for verb, other in OPPOSITES.items() if verb < other for noun in range(len(NOUNS))
    ]
    used = np.zeros(len(couples))
    seen = np.zeros((len(VERBS), len(NOUNS)))
    videos = []
    for _ in range(_count(options, split)):
        picks: list[tuple[int, int]] = []
        for best in np.argsort(used + rng.random(len(couples)) * 0.5, kind="stable")[: options.pairs]:
            one, other, noun = couples[best]
            used[best] += 1
            picks += [(one, noun), (other, noun)]
        for label in picks:
            seen[label] += 1
        while len(picks) < options.actions:
            cost = seen + rng.random(seen.shape) * 0.5
            for label in picks:
                cost[label] = np.inf
            verb, noun = (int(axis) for axis in np.unravel_index(int(np.argmin(cost)), cost.shape))
            picks.append((verb, noun))
            seen[verb, noun] += 1
        videos.append([picks[index] for index in rng.permutation(len(picks))])
    return videos


def plan_videos(options: ToyOptions, split: Split) -> tuple[VideoSpec, ...]:
    """Describe every video of a split; video i depends on (seed, split, i) and its row of `schedule` only."""
    videos = []
    for index, labels in enumerate(schedule(options, split)):
        rng = np.random.default_rng((options.seed, _SPLIT_SEED[split], index + 1))
        fps = float(options.fps[int(rng.integers(len(options.fps)))])
        scenes = tuple(sample_scene(rng, options, noun=noun, verb=verb, fps=fps) for verb, noun in labels)
        name = f"{PARTICIPANTS[split]}_{index + 1:02d}"
        videos.append(VideoSpec(id=name, participant=PARTICIPANTS[split], fps=fps, scenes=scenes))
    return tuple(videos)


def actions(videos: tuple[VideoSpec, ...]) -> tuple[Action, ...]:
    """All clips of `videos`, in order."""
    found = []
    for video in videos:
        first = 0
        for index, scene in enumerate(video.scenes):
            start = Fraction(100 * first) / rate(video.fps)
            stop = Fraction(100 * (first + scene.frames)) / rate(video.fps)
            found.append(Action(video=video, index=index, start=-int(-start // 1), stop=int(stop // 1)))
            first += scene.frames
    return tuple(found)
