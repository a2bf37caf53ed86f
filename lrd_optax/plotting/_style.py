"""What all plots share. Says what to install if matplotlib is missing."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lrd_optax import _checks

try:
    from matplotlib.axes import Axes as Axes
    from scipy.special import stdtrit as stdtrit
except ImportError as error:
    raise ImportError(
        "lrd_optax.plotting needs matplotlib and scipy, which the extra plot installs: "
        "pip install 'lrd_optax[plot]', or '.[plot]' in a clone"
    ) from error

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))
BAND: dict[str, Any] = {"alpha": 0.2, "linewidth": 0}
LEGEND: dict[str, Any] = {"framealpha": 0.85, "edgecolor": "none"}


def check_named(argument: str, named: Any, what: str) -> None:
    """Raises unless `named` is a mapping with at least one name."""
    if not isinstance(named, Mapping):
        got = _checks.shown(named)
        raise TypeError(f"{argument} must be a dict of {what} by name, got {got}")
    if not named:
        raise ValueError(f"{argument} must have at least one name, got none")


def finite(name: str, values: Any) -> np.ndarray:
    """Returns `values` with NaN, which is drawn as a gap, where they are not finite."""
    values = np.asarray(values, float)
    if not np.isfinite(values).any():
        raise ValueError(f"{name} must have a finite value to draw, got none")
    return np.where(np.isfinite(values), values, np.nan)


def axes(ax: Axes | None) -> Axes:
    """Returns `ax`, or the Axes of a new figure."""
    if ax is not None:
        return ax
    # Imported here, since it chooses a backend, which a caller with Axes may not have.
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def line(number: int) -> dict[str, Any]:
    """Returns the style of line `number`. If a color comes again, the dashes differ."""
    dashes = LINES[(number + number // len(COLORS)) % len(LINES)]
    color = COLORS[number % len(COLORS)]
    return {"color": color, "linestyle": dashes, "linewidth": 1.4}


def finish(ax: Axes) -> None:
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def legend(
    ax: Axes, title: str | None = None, limits: tuple[float, float] | None = None
) -> None:
    """Adds a legend, and room for it above the limits of y.

    The limits are those that are given, or else those that autoscaling has set. What
    the caller has set stays as it is.
    """
    labels = ax.get_legend_handles_labels()[1]
    width, height = np.asarray(ax.bbox.size) / ax.figure.dpi  # inches
    columns = len(labels)
    while columns > 1 and _legend_width(labels, columns) > width:
        columns -= 1
    style: dict[str, Any] = {**LEGEND, "fontsize": "small", "title_fontsize": "small"}
    if limits is None and not ax.get_autoscaley_on():
        ax.legend(title=title, **style)
        return
    made = ax.legend(title=title, loc="upper center", ncols=columns, **style)
    made.set_in_layout(False)  # it lies on the Axes, which must not shrink for it
    rows = -(-len(labels) // columns) + (title is not None)
    share = min((0.2 + 0.175 * rows) / height, 0.6)
    scale = ax.yaxis.get_transform()
    low, high = scale.transform(np.array(limits or ax.get_ylim()))
    ends = scale.inverted().transform(np.array([low, low + (high - low) / (1 - share)]))
    # auto: curves that are added later, or another scale, change it again.
    ax.set_ylim(*ends, auto=limits is None)


def _legend_width(labels: list[str], columns: int) -> float:
    """Returns about how wide a legend is, in inches."""
    parts = np.array_split(labels, columns)
    return sum(0.5 + 0.06 * max(map(len, part)) for part in parts)
