"""Draws the picture of docs/masks.md: what each kind of mask keeps in four steps.

    python examples/mask_gallery.py                        # into results/masks
    python examples/mask_gallery.py --output docs/images

Each row is one call of learning_rate_dropout, each column a step. The tree is one
matrix. In the row "tensor" it is six small matrices.
"""

from pathlib import Path
from typing import Any, NamedTuple

import options

if __name__ == "__main__":  # before the imports that take seconds
    options.end_on_ctrl_c()
    options.mask_gallery()

import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

import lrd_optax
from lrd_optax import plotting

STEPS = 4
MATRIX = jnp.ones((6, 10))
SIX = [jnp.ones((3, 3))] * 6


class Row(NamedTuple):
    label: str
    meaning: str
    arguments: dict[str, Any]
    tree: Any = MATRIX


ROWS = [
    Row('granularity="element"', "each element by itself", {}),
    Row('granularity="row"', "whole rows (inputs)", {"granularity": "row"}),
    Row('granularity="column"', "whole columns (outputs)", {"granularity": "column"}),
    Row(
        'granularity="tensor"',
        "whole leaves, here 6",
        {"granularity": "tensor"},
        SIX,
    ),
    Row("hold_steps=2", "each mask for 2 steps", {"hold_steps": 2}),
    Row(
        'sampler="cycle"',
        "keep_prob=1/4: each element\nonce in the four steps",
        {"sampler": "cycle", "keep_prob": 1 / 4},
    ),
]


def draw_matrix(mask: Any, axes: Axes) -> None:
    plotting.plot_mask(mask, ax=axes)
    axes.set(title="", xlabel="", ylabel="", xticks=[], yticks=[])
    height, width = mask.shape
    axes.set_xticks(jnp.arange(1, width) - 0.5, minor=True)
    axes.set_yticks(jnp.arange(1, height) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def draw_row(row: Row, key: int, panels: list[SubFigure]) -> None:
    dropout = lrd_optax.learning_rate_dropout(key=key, **row.arguments)
    state = dropout.init(row.tree)
    for panel in panels:
        mask = lrd_optax.sample_mask(dropout, state, row.tree)
        if row.tree is MATRIX:
            draw_matrix(mask, panel.subplots())
        else:
            for matrix, axes in zip(mask, panel.subplots(2, 3).flat, strict=True):
                draw_matrix(matrix, axes)
        _, state = dropout.update(row.tree, state)


def draw(key: int, path: Path) -> None:
    figure = Figure(figsize=(9, 6.9), dpi=100)
    widths = [1.5] + [1] * STEPS
    heights = [0.22] + [1] * len(ROWS)
    grid = figure.subfigures(
        len(ROWS) + 1, STEPS + 1, width_ratios=widths, height_ratios=heights
    )
    for panel in grid.flat:
        panel.subplots_adjust(0.04, 0.05, 0.96, 0.95, wspace=0.16, hspace=0.16)
    grid[0, 0].text(0.04, 0.4, "dark: kept", va="center", fontsize=10.5, color="0.3")
    for step, panel in enumerate(grid[0, 1:]):
        panel.text(0.5, 0.4, f"step {step}", ha="center", va="center", fontsize=12)
    for row, (left, *panels) in zip(ROWS, grid[1:], strict=True):
        left.text(0.04, 0.57, row.label, family="monospace", fontsize=11)
        left.text(0.04, 0.42, row.meaning, va="top", fontsize=10.5, color="0.3")
        draw_row(row, key, panels)
    figure.savefig(path)


def main() -> None:
    args = options.mask_gallery()
    path = args.output / "masks.png"
    options.save(path, lambda path: draw(args.key, path))
    print(f"Masks in four steps: {path}")


if __name__ == "__main__":
    main()
