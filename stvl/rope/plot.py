"""Pictures of a rotary scheme: its angle curves, and the scores that it alone would give.

matplotlib belongs to the ``notebooks`` extra, so it is imported inside the functions, and figures are made without
pyplot's global state.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.rope.base import SequenceScheme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@config
class PlotOptions:
    """What is drawn.

    Attributes:
        head_width: width of a head; it has half as many pairs.
        frames, rows, columns: the grid of tokens.
        panels: at most so many frames in the score map.

    Raises:
        ConfigError: no panel.
    """

    head_width: int = 64
    frames: int = 8
    rows: int = 14
    columns: int = 14
    panels: int = 8

    def __post_init__(self) -> None:
        if self.panels < 1:
            raise ConfigError(f"PlotOptions(panels={self.panels}): at least one frame is shown")


def angle_curves(
    scheme: SequenceScheme, options: PlotOptions
) -> dict[str, tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n p"]]]:
    """For each axis, the coordinates that the grid spans and the angle of every pair along them.

    ``angle[i, k] = c[i] * F[axis, k]`` in radians; a pair that the axis does not turn has angle 0 throughout.
    """
    frequencies = scheme.frequencies(options.head_width)
    coords = scheme.coords(options.frames, options.rows, options.columns, 0)
    curves = {}
    for name, column, row in zip(scheme.axes, coords.T, frequencies, strict=True):
        # A grid of one frame has no extent in time: draw one unit, so that the slopes show.
        line = np.linspace(column.min(), max(column.max(), column.min() + 1), 200)
        curves[name] = (line, line[:, None] * row)
    return curves


def score_map(scheme: SequenceScheme, options: PlotOptions) -> Float[np.ndarray, "t y x"]:
    """Score of every token for the centre token where q and k are all ones: ``mean_k cos((c - c_centre) @ F)[k]``.

    1 at the centre token ``(frames // 2, rows // 2, columns // 2)``; the score is a function of (dt, dy, dx) from there.
    """
    t, y, x = options.frames, options.rows, options.columns
    coords = scheme.coords(t, y, x, 0).reshape(t, y, x, -1)
    offset = coords - coords[t // 2, y // 2, x // 2]
    return np.cos(offset @ scheme.frequencies(options.head_width)).mean(axis=-1)


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise ConfigError(
            "drawing needs matplotlib, which is not installed: pip install 'stvl[notebooks]'"
        ) from problem
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_angles(scheme: SequenceScheme, options: PlotOptions, title: str = "") -> Figure:
    """Angle curves of every axis (left) and their cosines (right), as in Figure 4 of VideoRoPE (arXiv 2502.05173).

    Lines are coloured by pair, from the fastest (dark) to the slowest (light). Where a curve on the left stays below the
    line at pi, its cosine falls all the way: distant coordinates are told apart by that pair.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    curves = angle_curves(scheme, options)
    figure = _new_figure(9.0, 2.4 * len(curves) + 0.4)
    from matplotlib import colormaps

    grid = np.atleast_2d(figure.subplots(len(curves), 2))
    pairs = options.head_width // 2
    colors = colormaps["viridis"](np.linspace(0, 0.9, pairs))
    for (name, (line, angles)), (left, right) in zip(curves.items(), grid, strict=True):
        used = np.flatnonzero(np.abs(angles).max(axis=0) > 0)
        for pair in used:
            left.plot(line, np.abs(angles[:, pair]), color=colors[pair], linewidth=0.8)
            right.plot(line, np.cos(angles[:, pair]), color=colors[pair], linewidth=0.8)
        flattest = np.abs(angles[-1, used]).min(initial=1.0)
        left.set_yscale("symlog", linthresh=max(float(flattest), 1e-6))
        left.axhline(np.pi, color="grey", linestyle=":", linewidth=1)
        left.set(xlabel=f"coordinate {name}", ylabel="|angle|, rad", title=f"{len(used)} of {pairs} pairs")
        right.set(xlabel=f"coordinate {name}", ylabel="cos angle", ylim=(-1.05, 1.05))
    figure.suptitle(title or type(scheme).__name__)
    return figure


def draw_scores(scheme: SequenceScheme, options: PlotOptions, title: str = "") -> Figure:
    """`score_map` frame by frame, and once over time and columns through the centre's row.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    scores = score_map(scheme, options)
    t, y, x = (size // 2 for size in scores.shape)
    shown = sorted(
        {*np.linspace(0, len(scores) - 1, min(options.panels, len(scores))).round().astype(int), t}
    )
    width = len(shown) + 1
    figure = _new_figure(1.7 * width + 1, 2.6)
    axes = np.atleast_1d(figure.subplots(1, width))
    edges = (-x - 0.5, scores.shape[2] - x - 0.5, scores.shape[1] - y - 0.5, -y - 0.5)
    low = min(float(scores.min()), 0.0)
    for panel, frame in zip(axes, shown, strict=False):
        panel.imshow(scores[frame], vmin=low, vmax=1, extent=edges)
        panel.set(title=f"dt = {frame - t:+d}", xlabel="dx", ylabel="dy" if frame == shown[0] else "")
    edges = (-x - 0.5, scores.shape[2] - x - 0.5, scores.shape[0] - t - 0.5, -t - 0.5)
    picture = axes[-1].imshow(scores[:, y], vmin=low, vmax=1, extent=edges, aspect="auto")
    axes[-1].set(title="dy = 0", xlabel="dx", ylabel="dt")
    figure.colorbar(picture, ax=list(axes), shrink=0.7)
    figure.suptitle(title or type(scheme).__name__)
    return figure


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def write_plots(scheme: SequenceScheme, name: str, folder: str | Path, options: PlotOptions) -> list[Path]:
    """Write ``NAME-angles.png`` and ``NAME-scores.png`` into `folder` and return their paths.

    Raises:
        ConfigError: matplotlib is not installed, or `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"pictures are written into a folder, and {str(folder)!r} is a file")
    pictures = {"angles": draw_angles(scheme, options, name), "scores": draw_scores(scheme, options, name)}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, figure in pictures.items():
        paths.append(folder / f"{name}-{kind}.png")
        paths[-1].write_bytes(png(figure))
    return paths
