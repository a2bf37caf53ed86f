"""What all pictures share, and the one place that finds matplotlib missing."""

from typing import Any

try:
    from matplotlib.axes import Axes as Axes
    from scipy.special import stdtrit as stdtrit
except ImportError as error:
    raise ImportError(
        "lrd_optax.plotting needs matplotlib and scipy, which the extra plot installs: "
        "pip install '.[plot]' in a clone of lrd_optax"
    ) from error

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))
BAND: dict[str, Any] = {"color": COLORS[0], "alpha": 0.2, "linewidth": 0}
LEGEND: dict[str, Any] = {"framealpha": 0.85, "edgecolor": "none"}


def axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    # Here, since it chooses a backend: who gives an Axes may have none.
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def styles(number: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "color": COLORS[i % len(COLORS)],
            "linestyle": LINES[(i + i // len(COLORS)) % len(LINES)],
            "linewidth": 1.4,
        }
        for i in range(first, first + number)
    ]


def finish(ax: Axes) -> None:
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
