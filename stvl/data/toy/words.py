"""The nouns (coloured shapes) and verbs (motions) of the toy world, with their phrases and the pairs of opposites."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Noun:
    """A coloured shape: class key, RGB colour, shape name of `render`, and its phrases with their EK-100 style keys."""

    key: str
    colour: tuple[int, int, int]
    shape: str
    phrases: tuple[str, ...]
    category: str

    def instance(self, phrase: str) -> str:
        """EK-100 writes compound nouns head first: ``crimson disc`` -> ``disc:crimson``."""
        return ":".join(reversed(phrase.split(" ")))

    @property
    def instances(self) -> tuple[str, ...]:
        """All spellings of this class, for the class list."""
        return tuple(self.instance(phrase) for phrase in self.phrases)


@dataclasses.dataclass(frozen=True, slots=True)
class Verb:
    """A motion: class key, what it moves, its sign in its pair (0: unpaired), and (instance, template) phrases."""

    key: str
    motion: str
    sign: int
    phrases: tuple[tuple[str, str], ...]
    category: str

    @property
    def instances(self) -> tuple[str, ...]:
        """All spellings of this class, for the class list."""
        return tuple(name for name, _ in self.phrases)


NOUNS: tuple[Noun, ...] = (
    Noun("ball:red", (222, 28, 36), "disc", ("red ball", "crimson disc", "scarlet circle"), "round"),
    Noun("square:blue", (28, 70, 228), "square", ("blue square", "navy block", "cobalt box"), "flat"),
    Noun(
        "triangle:green",
        (18, 158, 52),
        "triangle",
        ("green triangle", "emerald wedge", "jade pyramid"),
        "pointed",
    ),
    Noun("star:yellow", (252, 214, 22), "star", ("yellow star", "golden star", "gold sparkle"), "pointed"),
    Noun("ring:purple", (140, 40, 200), "ring", ("purple ring", "violet hoop", "purple donut"), "round"),
    Noun(
        "hexagon:orange",
        (250, 122, 10),
        "hexagon",
        ("orange hexagon", "amber nut", "tangerine hexagon"),
        "flat",
    ),
    Noun("heart:pink", (255, 110, 184), "heart", ("pink heart", "rose heart", "magenta heart"), "pointed"),
    Noun("cross:cyan", (20, 214, 232), "cross", ("cyan cross", "turquoise plus", "aqua cross"), "flat"),
    Noun("moon:white", (250, 250, 246), "moon", ("white moon", "pale crescent", "ivory moon"), "round"),
    Noun("bar:brown", (128, 66, 20), "bar", ("brown bar", "wooden plank", "chestnut stick"), "flat"),
    Noun(
        "diamond:black",
        (18, 18, 22),
        "diamond",
        ("black diamond", "dark rhombus", "ebony diamond"),
        "pointed",
    ),
    Noun("dome:lime", (150, 240, 30), "dome", ("lime dome", "neon igloo", "lime half-disc"), "round"),
)

VERBS: tuple[Verb, ...] = (
    Verb(
        "move-left",
        "x",
        -1,
        (
            ("move-left", "move {n} left"),
            ("slide-left", "slide {n} to the left"),
            ("push-left", "push {n} leftwards"),
        ),
        "move",
    ),
    Verb(
        "move-right",
        "x",
        1,
        (
            ("move-right", "move {n} right"),
            ("slide-right", "slide {n} to the right"),
            ("push-right", "push {n} rightwards"),
        ),
        "move",
    ),
    Verb(
        "move-up",
        "y",
        -1,
        (("move-up", "move {n} up"), ("lift", "lift {n}"), ("raise", "raise {n} upwards")),
        "move",
    ),
    Verb(
        "move-down",
        "y",
        1,
        (("move-down", "move {n} down"), ("lower", "lower {n}"), ("drop", "drop {n} downwards")),
        "move",
    ),
    Verb(
        "grow",
        "size",
        1,
        (("grow", "grow {n}"), ("enlarge", "enlarge {n}"), ("expand", "make {n} bigger")),
        "change",
    ),
    Verb(
        "shrink",
        "size",
        -1,
        (("shrink", "shrink {n}"), ("reduce", "reduce {n}"), ("contract", "make {n} smaller")),
        "change",
    ),
    Verb(
        "turn-clockwise",
        "angle",
        1,
        (
            ("turn-clockwise", "turn {n} clockwise"),
            ("rotate-clockwise", "rotate {n} clockwise"),
            ("screw-in", "screw in {n}"),
        ),
        "turn",
    ),
    Verb(
        "turn-anticlockwise",
        "angle",
        -1,
        (
            ("turn-anticlockwise", "turn {n} anticlockwise"),
            ("rotate-anticlockwise", "rotate {n} counter-clockwise"),
            ("unscrew", "unscrew {n}"),
        ),
        "turn",
    ),
    Verb(
        "appear",
        "alpha",
        1,
        (("appear", "let {n} appear"), ("fade-in", "fade in {n}"), ("reveal", "reveal {n}")),
        "change",
    ),
    Verb(
        "disappear",
        "alpha",
        -1,
        (("disappear", "let {n} disappear"), ("fade-out", "fade out {n}"), ("hide", "hide {n}")),
        "change",
    ),
    Verb(
        "shake",
        "shake",
        0,
        (("shake", "shake {n}"), ("wiggle", "wiggle {n}"), ("rattle", "rattle {n}")),
        "repeat",
    ),
    Verb(
        "blink",
        "blink",
        0,
        (("blink", "blink {n}"), ("flash", "flash {n}"), ("flicker", "make {n} flicker")),
        "repeat",
    ),
)

OPPOSITES: dict[int, int] = {
    one: other
    for one, verb in enumerate(VERBS)
    for other, peer in enumerate(VERBS)
    if verb.sign and verb.motion == peer.motion and verb.sign == -peer.sign
}
