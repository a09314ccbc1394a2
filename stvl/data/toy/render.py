"""Draws scenes: anti-aliased shapes from signed distances over a cluttered background that stands still.

Pixels see only ``+ - * / sqrt min max abs``, which round the same in every lane of a vector unit, and per-frame poses
are computed one by one with `math`; hence the exact mirror images that `world` promises.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from stvl.data.toy.words import NOUNS, VERBS
from stvl.data.toy.world import Prop, SceneSpec

Plane = Float[np.ndarray, "..."]


@dataclasses.dataclass(frozen=True, slots=True)
class Pose:
    """Where and how the object stands in one frame: centre and radius in shares of the side, angle, opacity."""

    x: float
    y: float
    radius: float
    angle: float
    alpha: float = 1.0


def clock(index: int, frames: int) -> float:
    """``u = (2 i + 1 - T) / T`` in (-1, 1), exactly antisymmetric: ``clock(T - 1 - i) == -clock(i)``."""
    return (2 * index + 1 - frames) / frames


def progress(u: float, ease: float, hold: float) -> float:
    """An odd curve from -1 to 1: at rest for `hold`/2 at both ends, even or smooth speed between."""
    v = max(-1.0, min(1.0, u / (1.0 - hold)))
    return v * ((1.0 - ease) + ease * (1.5 - 0.5 * v * v))


def pose(spec: SceneSpec, index: int) -> Pose:
    """The object's pose in frame `index`. Opposite verbs differ in the sign of the progress only."""
    verb = VERBS[spec.verb]
    u = clock(index, spec.frames)
    p = verb.sign * progress(u, spec.ease, spec.hold)
    still = Pose(spec.x, spec.y, spec.radius, spec.angle)
    wave = math.cos(math.pi * spec.cycles * u + spec.phase)
    along, across = 0.5 * spec.travel * p, 0.5 * spec.travel * spec.tilt * p
    match verb.motion:
        case "x":
            return dataclasses.replace(still, x=spec.x + along, y=spec.y + across)
        case "y":
            return dataclasses.replace(still, x=spec.x + across, y=spec.y + along)
        case "size":
            return dataclasses.replace(still, radius=spec.radius * math.exp(0.5 * math.log(spec.growth) * p))
        case "angle":
            return dataclasses.replace(still, angle=spec.angle + 0.5 * spec.sweep * p)
        case "alpha":
            return dataclasses.replace(still, alpha=0.5 + 0.5 * p)
        case "shake":
            return dataclasses.replace(still, x=spec.x + 0.09 * wave, angle=spec.angle + 0.25 * wave)
        case "blink":
            return dataclasses.replace(still, alpha=max(0.0, min(1.0, 0.5 + 1.2 * wave)))
    raise AssertionError(verb.motion)


def _disc(x: Plane, y: Plane) -> Plane:
    return np.sqrt(x * x + y * y) - 0.95


def _square(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.abs(x), np.abs(y)) - 0.8


def _sides(x: Plane, y: Plane, count: int, reach: float) -> Plane:
    """Distance to a regular polygon with one side at the bottom; `reach` is the radius of the inner circle."""
    turns = [2 * math.pi * k / count for k in range(count)]
    far = None
    for turn in turns:
        side = float(math.sin(turn)) * x + float(math.cos(turn)) * y
        far = side if far is None else np.maximum(far, side)
    assert far is not None
    return far - reach


def _triangle(x: Plane, y: Plane) -> Plane:
    return _sides(x, y - 0.12, 3, 0.52)


def _hexagon(x: Plane, y: Plane) -> Plane:
    return _sides(x, y, 6, 0.86)


def _star(x: Plane, y: Plane) -> Plane:
    """A five-pointed star as the union of five spikes, each the meet of two half planes and its own side of the centre."""
    inner, outer = 0.46, 1.08
    half = math.pi / 5
    px, py = inner * math.sin(half), inner * math.cos(half)
    nx, ny = outer - py, px
    length = math.hypot(nx, ny)
    nx, ny = nx / length, ny / length
    best = None
    for k in range(5):
        turn = 2 * math.pi * k / 5
        cos, sin = math.cos(turn), math.sin(turn)
        across, up = np.abs(cos * x + sin * y), sin * x - cos * y
        spike = np.maximum(nx * across + ny * up - ny * outer, -up)
        best = spike if best is None else np.minimum(best, spike)
    assert best is not None
    return np.minimum(best, np.sqrt(x * x + y * y) - 0.42)


def _ring(x: Plane, y: Plane) -> Plane:
    return np.abs(np.sqrt(x * x + y * y) - 0.7) - 0.27


def _heart(x: Plane, y: Plane) -> Plane:
    across = np.abs(x)
    lobe = np.sqrt((across - 0.44) * (across - 0.44) + (y + 0.34) * (y + 0.34)) - 0.5
    point = np.maximum(0.7071 * (across + y) - 0.652, -(y + 0.34) - 0.1)
    return np.minimum(lobe, np.maximum(point, across - 0.94))


def _cross(x: Plane, y: Plane) -> Plane:
    one, two = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(one - 0.95, two - 0.36), np.maximum(one - 0.36, two - 0.95))


def _moon(x: Plane, y: Plane) -> Plane:
    shifted = x - 0.48
    return np.maximum(_disc(x + 0.05, y), 0.66 - np.sqrt(shifted * shifted + y * y))


def _bar(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.abs(x) - 0.42, np.abs(y) - 1.05)


def _diamond(x: Plane, y: Plane) -> Plane:
    return 0.8 * np.abs(x) + 0.6 * np.abs(y) - 0.62


def _dome(x: Plane, y: Plane) -> Plane:
    return np.maximum(_disc(x, y - 0.35) - 0.1, y - 0.4)


SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "hexagon": _hexagon,
    "heart": _heart,
    "cross": _cross,
    "moon": _moon,
    "bar": _bar,
    "diamond": _diamond,
    "dome": _dome,
}


def background(seed: int, size: int, clutter: float) -> UInt8[np.ndarray, "y x c"]:
    """A greyish wall with a soft gradient and faint boxes, discs and lines; `clutter` in 0 to 1 sets their contrast."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(105, 150) + rng.uniform(-9, 9, 3)
    coarse = (
        base
        + rng.uniform(-1, 1, (4, 4, 1)) * (8 + 22 * clutter)
        + rng.uniform(-1, 1, (4, 4, 3)) * 8 * clutter
    )
    wall = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    scale = 2
    layer = wall.resize((size * scale, size * scale))
    pen = ImageDraw.Draw(layer)
    for _ in range(round(14 * clutter)):
        grey = base + rng.uniform(-1, 1) * 45 + rng.uniform(-12, 12, 3)
        fill = tuple(int(value) for value in np.clip(grey, 0, 255))
        cx, cy = rng.uniform(0, size * scale, 2)
        w, h = rng.uniform(0.04, 0.2, 2) * size * scale
        kind = int(rng.integers(3))
        if kind == 0:
            pen.rectangle((cx - w, cy - h, cx + w, cy + h), fill=fill)
        elif kind == 1:
            pen.ellipse((cx - w, cy - h, cx + w, cy + h), fill=fill)
        else:
            pen.line((cx - 2 * w, cy - 2 * h, cx + 2 * w, cy + 2 * h), fill=fill, width=max(1, size // 32))
    layer = layer.resize((size, size), Image.Resampling.BOX)
    return np.asarray(Image.blend(wall, layer, min(1.0, 0.25 + 0.5 * clutter)))


def _box(poses: list[Pose], size: int) -> tuple[slice, slice]:
    """Rows and columns that the shape can touch in any frame."""
    rows, columns = [], []
    for item in poses:
        reach = 1.3 * item.radius * size + 1
        rows += [item.y * size - reach, item.y * size + reach]
        columns += [item.x * size - reach, item.x * size + reach]

    def span(values: list[float]) -> slice:
        low = min(max(0, math.floor(min(values))), size - 1)
        return slice(low, max(low + 1, min(size, math.ceil(max(values)))))

    return span(rows), span(columns)


def _column(values: list[float]) -> Float[np.ndarray, "t 1 1"]:
    return np.asarray(values, np.float32)[:, None, None]


def _paint(canvas: UInt8[np.ndarray, "t y x c"], noun: int, poses: list[Pose]) -> None:
    """Draw one object into all frames: body, darker rim, and a hand from its centre that shows which way it points."""
    size = canvas.shape[1]
    rows, columns = _box(poses, size)
    px = (np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5))[None, None, :]
    py = (np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5))[None, :, None]
    unit = _column([item.radius * size for item in poses])
    cos = _column([math.cos(item.angle) for item in poses]) / unit
    sin = _column([math.sin(item.angle) for item in poses]) / unit
    dx = px - _column([item.x * size for item in poses])
    dy = py - _column([item.y * size for item in poses])
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    away = SHAPES[NOUNS[noun].shape](x, y)

    def cover(distance: Plane) -> Float[np.ndarray, "t y x 1"]:
        return np.minimum(np.maximum(np.float32(0.5) - distance * unit, 0), 1)[..., None]

    body = np.asarray(NOUNS[noun].colour, np.float32)
    light = float(body @ np.asarray((0.3, 0.59, 0.11))) > 140
    rim = body * np.float32(0.55) if light else body * np.float32(0.5)
    hand = np.asarray((24, 24, 32) if light else (255, 255, 255), np.float32)
    inside = cover(away + np.float32(0.11))
    pointer = cover(
        np.maximum(
            np.maximum(np.abs(x) + np.float32(0.34) * y, -y - np.float32(0.86)), away + np.float32(0.11)
        )
    )
    paint = rim + inside * (body - rim)
    paint = paint + pointer * (hand - paint)
    alpha = cover(away) * _column([item.alpha for item in poses])[..., None]
    under = canvas[:, rows, columns].astype(np.float32)
    canvas[:, rows, columns] = (under + alpha * (paint - under) + np.float32(0.5)).astype(np.uint8)


def render_scene(spec: SceneSpec, size: int = 96) -> UInt8[np.ndarray, "t y x c"]:
    """All frames of a scene, RGB; a pure function of its arguments.

    Shapes: (T, size, size, 3). ``render_scene(mirror(spec)) == render_scene(spec)[::-1]`` exactly.
    """
    still = background(spec.background, size, spec.clutter)[None].copy()
    for prop in spec.props:
        _paint(still, prop.noun, [_stand(prop)])
    canvas = np.repeat(still, spec.frames, axis=0)
    _paint(canvas, spec.noun, [pose(spec, index) for index in range(spec.frames)])
    return canvas


def _stand(prop: Prop) -> Pose:
    return Pose(prop.x, prop.y, prop.radius, prop.angle)
