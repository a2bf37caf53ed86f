"""Draws the pictures of docs/schedules.md and docs/plotting.md.

    python examples/schedule_gallery.py                    # into results/schedules
    python examples/schedule_gallery.py --output docs/images/schedules

The picture below each table in docs/schedules.md has one panel for each row. The calls
are read from the table, so that the picture shows what stands above it. A schedule is
drawn for 100 steps. A gradient transformation is drawn as the size of its steps, for a
gradient of 1 and a loss that stalls after 40 steps.
"""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import options

if __name__ == "__main__":  # before the imports that take seconds
    options.end_on_ctrl_c()
    options.schedule_gallery()

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

import lrd_optax
from lrd_optax import plotting, schedules

PAGE = Path(__file__).parent.parent / "docs" / "schedules.md"
STEPS = 100


class Table(NamedTuple):
    heading: str
    rows: dict[str, list[str]]  # from the names of schedules to calls
    picture: str


def tables() -> list[Table]:
    found = []
    for part in re.split(r"^#+ ", PAGE.read_text(), flags=re.MULTILINE):
        if "| schedule | use | formula | call |" in part:
            rows = re.findall(r"^\| (.+?) \| .+ \| (`.+`) \|$", part, re.MULTILINE)
            calls = {
                name.strip("`"): re.findall(r"`(.*?)`", call) for name, call in rows
            }
            picture = re.findall(r"^!\[.+\]\(.*?(\w+\.png)\)$", part, re.MULTILINE)
            found.append(Table(part.splitlines()[0], calls, *picture))
    return found


def evaluate(call: str) -> Any:
    names = {"optax": optax, "schedules": schedules, "lrd_optax": lrd_optax}
    return eval(call, {**vars(schedules), **names})


def step_sizes(tx: optax.GradientTransformation, steps: int) -> np.ndarray:
    tx = optax.with_extra_args_support(tx)
    params = jnp.zeros(())
    state = tx.init(params)
    sizes = []
    for step in range(steps):
        loss = jnp.float32(max(1.0, 5 - 0.1 * step))
        updates, state = tx.update(jnp.ones(()), state, params, value=loss)
        sizes.append(abs(float(updates)))
    return np.array(sizes)


def labels(calls: list[str]) -> list[str]:
    """Returns what tells the calls apart: names of functions, or else arguments."""
    for pattern in (r"([a-z_]+)\(", r"[a-z_]+=[^,)]+"):
        matches = [re.findall(pattern, call) for call in calls]
        common = set.intersection(*map(set, matches))
        unique = [[word for word in words if word not in common] for words in matches]
        if all(unique):
            return [" + ".join(words) for words in unique]
    return calls


def as_schedule(call: str) -> optax.ScalarOrSchedule:
    """Returns a schedule; of a gradient transformation, that of its steps."""
    made = evaluate(call)
    if callable(made):
        return made
    sizes = jnp.asarray(step_sizes(made, STEPS))
    return lambda count: sizes[count]


def draw(table: Table, path: Path) -> None:
    columns = 2 if len(table.rows) in (2, 4) else 3
    lines = math.ceil(len(table.rows) / columns)
    figure = Figure(figsize=(3.3 * columns, 2.6 * lines), dpi=100, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes in panels[len(table.rows) :]:
        axes.remove()
    for axes, (name, calls) in zip(panels, table.rows.items(), strict=False):
        draw_panel(axes, name, calls)
    figure.savefig(path)


def draw_panel(axes: Axes, name: str, calls: list[str]) -> None:
    named = dict(zip(labels(calls), map(as_schedule, calls), strict=True))
    plotting.plot_schedules(named, STEPS, ax=axes)
    if not callable(evaluate(calls[0])):
        axes.set_ylabel("step for a gradient of 1")
    if axes.get_legend():
        axes.get_legend().remove()
    if len(calls) > 1:
        axes.legend(fontsize=7, framealpha=0.9, edgecolor="none")
    axes.set_title(name, fontsize=10)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_fontsize(8)
    axes.tick_params(labelsize=8)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_minor_locator(MultipleLocator(10))
    axes.grid(axis="x", which="minor", alpha=0.3, linewidth=0.6)


def draw_descent(path: Path) -> None:
    """Draws plain gradient descent in a long valley, with three learning rates."""

    def loss(point: jax.Array) -> jax.Array:
        return point[0] ** 2 / 10 + point[1] ** 2

    def descend(rate: float, steps: int) -> jax.Array:
        def step(point: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            return point - rate * jax.grad(loss)(point), point

        return jax.lax.scan(step, jnp.array([-8.0, 1.5]), length=steps + 1)[1]

    figure = Figure(figsize=(9, 2.9), dpi=100, layout="constrained")
    panels = {"too small": 0.05, "good": 0.9, "too large": 1.03}
    columns = figure.subplots(1, 3, sharey=True)
    for axes, (name, rate) in zip(columns, panels.items(), strict=True):
        descent = {name: descend(rate, 20)}
        plotting.plot_trajectories(loss, descent, xlim=(-9, 3), ylim=(-6, 6), ax=axes)
        axes.get_lines()[0].set(marker=".", markersize=4)
        axes.get_legend().remove()
        axes.set_title(f"{name}: 20 steps of rate {rate:g}", fontsize=10)
        axes.set_ylabel("second parameter" if name == "too small" else "")
    figure.savefig(path)


def draw_together(path: Path) -> None:
    named = {
        "fixed": 0.5,
        "inverse time": schedules.inverse_time_decay(1.0, 1.0, 10),
        "step": schedules.step_decay(1.0, 0.5, 20),
        "exponential": schedules.natural_exponential_decay(1.0, 0.05),
        "polynomial, power 2": schedules.polynomial_decay(1.0, 0.0, 2, STEPS),
        "cosine": schedules.cosine_annealing(1.0, 0.0, STEPS),
        "triangular": schedules.cyclical(0.1, 1.0, 25),
    }
    figure = Figure(figsize=(7, 3.6), dpi=100, layout="constrained")
    axes = plotting.plot_schedules(named, STEPS, ax=figure.subplots())
    axes.get_legend().remove()
    axes.set(ylabel="learning rate", ylim=(0, 1.05))
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path)


def draw_mask(path: Path) -> None:
    figure = Figure(figsize=(5, 2.6), dpi=100, layout="constrained")
    dropout, updates = lrd_optax.learning_rate_dropout(0.5, key=2), jnp.ones((24, 64))
    mask = lrd_optax.sample_mask(dropout, dropout.init(updates), updates)
    plotting.plot_mask(mask, ax=figure.subplots())
    figure.savefig(path)


def main() -> None:
    output = options.schedule_gallery().output
    options.save(output / "descent.png", draw_descent)
    print(f"Descent with three learning rates: {output / 'descent.png'}")
    options.save(output / "together.png", draw_together)
    print(f"Schedules in one plot: {output / 'together.png'}")
    options.save(output / "mask.png", draw_mask)
    print(f"A mask: {output / 'mask.png'}")
    for table in tables():
        options.save(output / table.picture, partial(draw, table))
        print(f"{table.heading}: {output / table.picture}")


if __name__ == "__main__":
    main()
