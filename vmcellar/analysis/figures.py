"""What all plots have in common: one look, figures without pyplot (so that any thread may draw), PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from vmcellar.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

INK, SOFT, GRID = "#1f2933", "#66727f", "#e4e8ec"
BLUE, ORANGE, RED, GREEN, VIOLET = "#2563a8", "#d9822b", "#c23030", "#2f8f5b", "#7a5195"
SERIES = (BLUE, ORANGE, GREEN, VIOLET, "#4ba3c3", "#8a6d3b", "#b35c8c", "#5b6770")
WIDTH = 10.0
_STEP = 1024.0
LEFT, ABOUT_DOWN = 0.01, 0.36
"""Where titles begin, as a share of the sheet; how many inches below its top the line about it is."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Plot(Figure):
    """A figure that a notebook shows as a PNG, without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        return png(self)


def sheet(
    title: str, about: str, height: float = 4.2, rows: int = 1, widths: Sequence[float] = (1,)
) -> tuple[Figure, list[Axes]]:
    """A figure with a title, one line about it, and `rows` axes one below the other that share their x axis, or axes
    of these `widths` beside each other.
    """
    figure = Plot(figsize=(WIDTH, height), dpi=110, layout="constrained")
    axes = figure.subplots(rows, len(widths), sharex=rows > 1, squeeze=False, width_ratios=widths).ravel()
    figure.suptitle(f"{title}\n", x=LEFT, ha="left", fontsize=13, fontweight="bold", color=INK)  # room for the line
    below = figure.transFigure + ScaledTranslation(0, -ABOUT_DOWN, figure.dpi_scale_trans)
    # At the sheet's edge, not the axes': beside long names it would not fit.
    figure.text(LEFT, 1.0, about, transform=below, va="top", fontsize=9.5, color=SOFT)
    for axis in axes:
        plain(axis)
    figure.align_ylabels(axes)
    return figure, list(axes)


def rows_of(axis: Axes, names: Sequence[str]) -> None:
    """Names of the rows of bars, the first at the top; each row has the same room."""
    axis.set_yticks(np.arange(len(names)), list(names))
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")


def legend(axis: Axes, columns: int) -> None:
    """A legend beside the title, where no bar can lie under it."""
    figure = axis.get_figure(root=True)
    handles, names = axis.get_legend_handles_labels()
    if figure is not None:
        made = figure.legend(handles, names, frameon=False, fontsize=9, ncols=columns, loc="upper right")
        made.set_in_layout(False)


def plain(axis: Axes) -> None:
    """Few lines, light ones, behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(SOFT)
    axis.tick_params(colors=SOFT, labelsize=9)
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)


def in_bytes(values: float) -> tuple[float, str]:
    """The unit in which sizes up to this one read well, and its name."""
    unit, scale = 0, 1.0
    while values >= 1000 * scale and unit < len(_UNITS) - 1:
        unit, scale = unit + 1, scale * _STEP
    return scale, _UNITS[unit]


def in_time(seconds: float) -> tuple[float, str]:
    """The unit in which durations up to this one read well, and its name."""
    for least, scale, name in ((3 * 86400, 86400.0, "days"), (3 * 3600, 3600.0, "hours"), (180, 60.0, "minutes")):
        if seconds >= least:
            return scale, name
    return 1.0, "seconds"


def label_end(axis: Axes, x: object, y: float, text: str, color: str) -> None:
    """Name a line at its end, above it, in its own color: nobody has to look for it in a legend."""
    axis.annotate(
        text, (x, y), (5, 0), textcoords="offset points", va="bottom", fontsize=9, color=color, annotation_clip=False
    )


def nothing(title: str, why: str) -> Figure:
    """A sheet that says why there is nothing to show."""
    figure, (axis,) = sheet(title, "", height=1.8)
    axis.set_axis_off()
    axis.text(0.0, 0.5, why, fontsize=11, color=SOFT, transform=axis.transAxes)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def need(found: bool, what: str) -> None:
    """PermanentError when a plot is asked of something that is not in the history."""
    if not found:
        raise PermanentError(f"{what} is not in this history", hint="`vmcellar catalog show` tells what is")
