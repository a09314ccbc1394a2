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
    Noun("ball:red", (222, 28, 36), "disc", ("red ball", "crimson ball", "red disc"), "round"),
    Noun("square:blue", (28, 70, 228), "square", ("blue square", "navy square", "blue box"), "flat"),
    Noun(
        "triangle:green",
        (18, 158, 52),
        "triangle",
        ("green triangle", "emerald triangle", "green wedge"),
        "pointed",
    ),
    Noun("star:yellow", (252, 214, 22), "star", ("yellow star", "golden star", "yellow sparkle"), "pointed"),
    Noun("ring:purple", (140, 40, 200), "ring", ("purple ring", "violet ring", "purple hoop"), "round"),
    Noun(
        "hexagon:orange", (250, 122, 10), "hexagon", ("orange hexagon", "amber hexagon", "orange nut"), "flat"
    ),
    Noun("heart:pink", (255, 110, 184), "heart", ("pink heart", "rose heart", "magenta heart"), "pointed"),
    Noun("cross:cyan", (20, 214, 232), "cross", ("cyan cross", "turquoise cross", "cyan plus"), "flat"),
    Noun("moon:white", (250, 250, 246), "moon", ("white moon", "pale moon", "white crescent"), "round"),
    Noun("bar:brown", (128, 66, 20), "bar", ("brown bar", "wooden bar", "brown plank"), "flat"),
    Noun(
        "diamond:black",
        (18, 18, 22),
        "diamond",
        ("black diamond", "dark diamond", "black rhombus"),
        "pointed",
    ),
    Noun("dome:lime", (150, 240, 30), "dome", ("lime dome", "neon dome", "lime igloo"), "round"),
)


def _verb(key: str, motion: str, sign: int, phrases: str, category: str) -> Verb:
    """A verb from templates ``a; b; c``; the EK-100 style instance is a template's words without the noun."""
    pairs = [
        (text.replace("{n} ", "").replace(" {n}", "").replace(" ", "-"), text) for text in phrases.split("; ")
    ]
    return Verb(key, motion, sign, tuple(pairs), category)


VERBS: tuple[Verb, ...] = (
    _verb("move-left", "x", -1, "move {n} left; slide {n} left; push {n} to the left", "move"),
    _verb("move-right", "x", 1, "move {n} right; slide {n} right; push {n} to the right", "move"),
    _verb("move-up", "y", -1, "move {n} up; slide {n} up; lift {n} up", "move"),
    _verb("move-down", "y", 1, "move {n} down; slide {n} down; drop {n} down", "move"),
    _verb("grow", "size", 1, "grow {n}; enlarge {n}; grow {n} bigger", "change"),
    _verb("shrink", "size", -1, "shrink {n}; reduce {n}; shrink {n} smaller", "change"),
    _verb(
        "turn-clockwise", "angle", 1, "turn {n} clockwise; rotate {n} clockwise; spin {n} clockwise", "turn"
    ),
    _verb(
        "turn-counterclockwise",
        "angle",
        -1,
        "turn {n} counterclockwise; rotate {n} counterclockwise; spin {n} counterclockwise",
        "turn",
    ),
    _verb("appear", "alpha", 1, "reveal {n}; show {n}; fade in {n}", "change"),
    _verb("disappear", "alpha", -1, "hide {n}; conceal {n}; fade out {n}", "change"),
    _verb("shake", "shake", 0, "shake {n}; wiggle {n}; shake {n} about", "repeat"),
    _verb("blink", "blink", 0, "blink {n}; flash {n}; blink {n} on and off", "repeat"),
)

OPPOSITES: dict[int, int] = {
    one: other
    for one, verb in enumerate(VERBS)
    for other, peer in enumerate(VERBS)
    if verb.sign and verb.motion == peer.motion and verb.sign == -peer.sign
}
