"""Draws all differences of the study with their intervals."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.report import save_picture

from . import plan
from .claims import NAMES, PAIRS
from .intervals import NOT_RUN, Comparison, Study, word
from .plan import Block

COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")  # Okabe and Ito, one a column
LINEAR = {"accuracy": 1.0, "bits": 0.05, "octaves": 1.0, "NLL": 0.1}  # the even scale
FARTHEST = 30  # times that
EMPTY = {
    "ha": "center",
    "va": "center",
    "fontsize": 8,
    "color": "#666666",
    "backgroundcolor": "white",
}
KIND_COLORS = {"LRD": "#D55E00", "remedy": "#0072B2", "reference": "#666666"}


def draw_interval(
    axes: Axes, y: float, found: Comparison, end: float, **style: Any
) -> None:
    """Draws a dot with its corrected interval, and an arrow where that is cut."""
    color, filled, size = style["color"], word(found).startswith("clear"), style["ms"]
    low, high = (
        float(np.clip(x, -end, end)) for x in (found.wide_low, found.wide_high)
    )
    axes.plot((low, high), (y, y), color=color, lw=style["lw"], alpha=style["alpha"])
    face = color if filled else "white"
    at = float(np.clip(found.mean, -end, end))
    axes.plot(at, y, "o", ms=size, color=color, mfc=face, alpha=style["alpha"])
    for x, marker in ((low, "<"), (high, ">")):
        if abs(x) >= end:
            axes.plot(x, y, marker, ms=size, color=color, clip_on=False)


def draw_row(panels: Any, study: Study, block: Block, metric: str, y: int) -> None:
    end = LINEAR.get(metric, 1.0) * FARTHEST
    pairs = plan.comparisons(block) + [PAIRS[0]] * (
        plan.BEST in plan.comparisons(block)
    )
    for panel, pair, color in zip(panels, PAIRS[:3], COLORS, strict=False):
        found = study.compare(block, metric, *pair)
        if pair in pairs and found:
            draw_interval(panel, y, found, end, color=color, ms=4, lw=1.4, alpha=1)
    arms = [arm for arm in block.arms if arm.name != "dense"]
    for number, arm in enumerate(arms):
        found = study.compare(block, metric, arm.name, "dense")
        if found:
            place = y + 0.8 * ((number + 0.5) / len(arms) - 0.5)
            style = {"color": KIND_COLORS[arm.kind], "ms": 1.5, "lw": 0.4, "alpha": 0.6}
            draw_interval(panels[3], place, found, end, **style)


def dress(panels: Any, metric: str, blocks: list[Block]) -> None:
    names = [block.name for block in blocks]
    ends = [y for y, (a, b) in enumerate(itertools.pairwise(blocks)) if a[0] != b[0]]
    linear = LINEAR.get(metric, 1.0)
    ticks = [sign * linear * size for sign in (-1, 1) for size in (1, 10)]
    for panel in panels:
        panel.set_xscale("symlog", linthresh=linear, linscale=1.2)
        panel.set_xlim(-linear * FARTHEST, linear * FARTHEST)
        panel.set_xticks([0, *ticks], [f"{tick:g}" for tick in (0, *ticks)], fontsize=7)
        panel.minorticks_off()
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.set_yticks(range(len(names)), names, fontsize=7)
        panel.grid(alpha=0.3, lw=0.5, axis="x")
        if not panel.lines:
            panel.text(0.5, 0.5, "not compared", transform=panel.transAxes, **EMPTY)
        panel.axvline(0, color="black", lw=0.8)
        for y in ends:  # between regimes
            panel.axhline(y + 0.5, color="#bbbbbb", lw=0.6)
        panel.tick_params(
            length=2, labelleft=panel is panels[0], labeltop=len(names) > 9
        )
    panels[0].set_ylabel(
        NAMES[metric].replace("%", "points").replace(" (", "\n("), fontsize=8
    )


def draw(study: Study, path: Path) -> None:
    rows = {
        metric: [b for b in plan.BLOCKS if metric in b.metrics and study.has(b)]
        for metric in NAMES
    }
    rows = {metric: blocks for metric, blocks in rows.items() if blocks}
    counts = [len(blocks) for blocks in rows.values()]
    figure = Figure(figsize=(9, 1.5 + 0.4 * len(rows) + 0.19 * sum(counts)))
    figure.set_layout_engine("constrained")
    if not rows:
        figure.text(0.5, 0.5, NOT_RUN, ha="center")
        return save_picture(figure, path, dpi=200)
    heights = [count + 1.5 for count in counts]
    panels = figure.subplots(len(rows), 4, squeeze=False, height_ratios=heights)
    titles = [f"{first}\n- {second}" for first, second in PAIRS[:3]]
    for panel, title in zip(panels[0], [*titles, "every arm\n- dense"], strict=True):
        panel.set_title(
            f"{title}\nworse $\\leftarrow$  $\\rightarrow$ better", fontsize=8
        )
    for line, (metric, blocks) in zip(panels, rows.items(), strict=True):
        for y, block in enumerate(blocks):
            draw_row(line, study, block, metric, y)
        dress(line, metric, blocks)
    save_picture(figure, path, dpi=200)
