"""What happens in the toy world: its options and the sampled description of each scene.

A noun is a (colour, shape) pair, a verb is a motion. Ten of the twelve verbs form five pairs of temporal opposites.
Every scene is a closed formula of the antisymmetric clock ``u_i = (2 i + 1 - T) / T`` (frame i of T), and a verb
enters a paired motion as a sign only, so that for each scene

    frames(scene, verb)[::-1] == frames(scene, opposite verb)        bit for bit.

All other parameters come from the same distributions for both verbs of a pair: no unordered set of frames tells
moves left from moves right, and a model without temporal positions stays at 50 % on them.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.data.toy.words import NOUNS, OPPOSITES, VERBS


@config
class ToyOptions:
    """The size and the difficulty of a toy world. Two worlds with equal options are equal frame by frame.

    Attributes:
        seed: seeds everything, as (seed, split, video).
        train_videos, test_videos: files per split.
        actions: scenes (clips) per video, >= 5 (an intra question has five choices).
        pairs: scenes per video that come with the opposite motion of the same object, in pairs of two scenes.
        size: height and width in pixels, even (H.264 with 4:2:0 chroma).
        fps: frame rates, one drawn per video. The defaults put every frame boundary on a hundredth of a second, so that
            EK-100's time stamps are exact and the middle-of-segment sampler sees opposites as mirror images.
        seconds: shortest and longest scene.
        clutter: 0 plain background to 1 strong texture.
        distractors: most static objects of other nouns in a scene.
        qp: constant quantiser of x264, 1 (best) to 51.
        keyframe_every: longest distance of key frames; each scene starts with one. At 1 every frame is coded by itself,
            so that decoded frames keep the mirror symmetry to the bit; above it, frames carry traces of earlier ones.
    """

    seed: int = 0
    train_videos: int = 264
    test_videos: int = 48
    actions: int = 6
    pairs: int = 2
    size: int = 96
    fps: tuple[float, ...] = (10.0, 12.5, 20.0, 25.0)
    seconds: tuple[float, float] = (1.0, 2.0)
    clutter: float = 0.4
    distractors: int = 2
    qp: int = 17
    keyframe_every: int = 1

    def __post_init__(self) -> None:
        checks = (
            (self.seed >= 0, "seed", "a whole number >= 0", self.seed),
            (self.train_videos >= 1, "train_videos", "at least 1", self.train_videos),
            (
                self.test_videos >= 5,
                "test_videos",
                "at least 5 (an inter question needs five videos)",
                self.test_videos,
            ),
            (
                5 <= self.actions <= 24,
                "actions",
                "5 to 24 (an intra question needs five scenes)",
                self.actions,
            ),
            (self.pairs >= 1 and 2 * self.pairs <= self.actions, "pairs", "1 to actions / 2", self.pairs),
            (self.size >= 32 and self.size % 2 == 0, "size", "even and at least 32", self.size),
            (
                len(self.fps) > 0 and all(1 <= rate <= 120 for rate in self.fps),
                "fps",
                "rates of 1 to 120",
                self.fps,
            ),
            (0 < self.seconds[0] <= self.seconds[1], "seconds", "0 < shortest <= longest", self.seconds),
            (
                min(self.fps, default=0) * self.seconds[0] >= 5,
                "seconds",
                "at least 5 frames a scene",
                self.seconds,
            ),
            (0 <= self.clutter <= 1, "clutter", "0 to 1", self.clutter),
            (0 <= self.distractors <= 6, "distractors", "0 to 6", self.distractors),
            (1 <= self.qp <= 51, "qp", "1 to 51", self.qp),
            (self.keyframe_every >= 1, "keyframe_every", "at least 1", self.keyframe_every),
        )
        for good, name, expected, found in checks:
            if not good:
                raise ConfigError(f"ToyOptions.{name}: expected {expected}, found {found}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prop:
    """A static distractor: noun class, centre and radius in shares of the frame, angle in radians."""

    noun: int
    x: float
    y: float
    radius: float
    angle: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SceneSpec:
    """One action, fully described: `render.render_scene` draws it without any further randomness.

    Lengths are in shares of the frame's side, angles in radians (clockwise on the screen).

    Attributes:
        verb, noun: classes (rows of `VERBS` and `NOUNS`); verb_text, noun_text: the spellings used in narration.
        frames: T, odd (see `sample_scene`); fps: frames per second.
        x, y, radius, angle: pose at half time.
        travel, tilt: way of a move and its slant against the axis; growth: ratio of the last to the first radius;
        sweep: angle of a turn; cycles, phase: of a shake or a blink.
        ease: 0 even speed, 1 slow at both ends; hold: share of the scene at rest, half before and half after.
        clutter, background: strength and seed of the background; props: static distractors.
    """

    verb: int
    noun: int
    narration: str
    verb_text: str
    noun_text: str
    frames: int
    fps: float
    x: float
    y: float
    radius: float
    angle: float
    travel: float
    tilt: float
    growth: float
    sweep: float
    cycles: float
    phase: float
    ease: float
    hold: float
    clutter: float
    background: int
    props: tuple[Prop, ...] = ()

    @property
    def seconds(self) -> float:
        """Length of the scene."""
        return self.frames / self.fps


def rate(fps: float) -> Fraction:
    """The frame rate as the fraction that a container stores."""
    return Fraction(fps).limit_denominator(1001)


#: Share of each spelling, the plain one first: like word frequencies in narrations, synonyms are a minority each.
_SPELLINGS = (0.6, 0.2, 0.2)


def phrase(rng: np.random.Generator, verb: int, noun: int) -> tuple[str, str, str]:
    """Draw one phrasing: (narration, verb instance, noun instance)."""
    verb_text, template = VERBS[verb].phrases[int(rng.choice(3, p=_SPELLINGS))]
    words = NOUNS[noun].phrases[int(rng.choice(3, p=_SPELLINGS))]
    return template.format(n=words), verb_text, NOUNS[noun].instance(words)


def sample_scene(
    rng: np.random.Generator,
    options: ToyOptions,
    noun: int | None = None,
    verb: int | None = None,
    fps: float | None = None,
) -> SceneSpec:
    """Draw a scene; `noun`, `verb` and `fps` are drawn too where they are None.

    T is odd: with an even T the middle of a segment can fall on a frame boundary, where "the frame shown at time t" is
    the later one for both directions of time, and a set of sampled frames would betray its order.
    """
    noun = int(rng.integers(len(NOUNS))) if noun is None else noun
    verb = int(rng.integers(len(VERBS))) if verb is None else verb
    fps = float(options.fps[int(rng.integers(len(options.fps)))]) if fps is None else fps
    narration, verb_text, noun_text = phrase(rng, verb, noun)
    frames = max(3, 2 * int(rng.uniform(*options.seconds) * fps / 2) + 1)
    motion = VERBS[verb].motion
    along, across = rng.uniform(0.42, 0.58), rng.uniform(0.3, 0.7)
    # A turn is read off a small mark, so what turns is large and stands near the middle.
    low, high = (0.44, 0.56) if motion == "angle" else (0.34, 0.66)
    place = {"x": (along, across), "y": (across, along)}.get(motion, rng.uniform(low, high, 2))
    radius = {"size": (0.17, 0.19), "angle": (0.27, 0.31)}.get(motion, (0.18, 0.22))
    return SceneSpec(
        verb=verb,
        noun=noun,
        narration=narration,
        verb_text=verb_text,
        noun_text=noun_text,
        frames=frames,
        fps=fps,
        x=float(place[0]),
        y=float(place[1]),
        radius=float(rng.uniform(*radius)),
        angle=float(rng.uniform(-0.35, 0.35)),
        travel=float(rng.uniform(0.44, 0.56)),
        tilt=float(rng.uniform(-0.2, 0.2)),
        growth=float(rng.uniform(2.2, 2.8)),
        sweep=float(rng.uniform(0.8, 1.15) * math.pi),
        cycles=float(rng.uniform(2.5, 3.5)),
        phase=float(rng.uniform(0, 2 * math.pi)),
        ease=float(rng.uniform(0.0, 0.7)),
        hold=float(rng.uniform(0.0, 0.15)),
        clutter=options.clutter,
        background=int(rng.integers(2**31)),
        props=_props(rng, options, noun),
    )


def _props(rng: np.random.Generator, options: ToyOptions, noun: int) -> tuple[Prop, ...]:
    others = [index for index in range(len(NOUNS)) if index != noun]
    props = []
    for _ in range(int(rng.integers(options.distractors + 1))):
        side, place = rng.integers(2, size=2), rng.uniform(0.09, 0.22, 2)
        x, y = np.where(side == 1, 1 - place, place)
        kind, radius, angle = (
            others[int(rng.integers(len(others)))],
            rng.uniform(0.07, 0.1),
            rng.uniform(-0.35, 0.35),
        )
        props.append(Prop(noun=kind, x=float(x), y=float(y), radius=float(radius), angle=float(angle)))
    return tuple(props)


def mirror(spec: SceneSpec) -> SceneSpec:
    """The same scene with the opposite verb: its frames are the frames of `spec` in reverse order.

    Raises:
        ConfigError: the verb has no opposite.
    """
    if spec.verb not in OPPOSITES:
        paired = ", ".join(VERBS[verb].key for verb in OPPOSITES)
        raise ConfigError(f"{VERBS[spec.verb].key!r} has no opposite; expected one of: {paired}")
    verb = OPPOSITES[spec.verb]
    index = VERBS[spec.verb].instances.index(spec.verb_text)
    words = NOUNS[spec.noun].phrases[NOUNS[spec.noun].instances.index(spec.noun_text)]
    verb_text, template = VERBS[verb].phrases[index]
    return dataclasses.replace(spec, verb=verb, verb_text=verb_text, narration=template.format(n=words))
