"""Draws the pictures of docs/schedules.md and docs/plotting.md.

    python examples/schedule_gallery.py                    # into results/schedules
    python examples/schedule_gallery.py --output docs/images/schedules

Each row of the tables in docs/schedules.md has a picture. Its calls are read from the
row, so that the picture shows what stands beside it. A schedule is drawn for 100
steps. A gradient transformation is drawn as the size of its steps, for a gradient of 1
and a loss that stalls after 40 steps.
"""

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
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

import lrd_optax
from lrd_optax import plotting, schedules

PAGE = Path(__file__).parent.parent / "docs" / "schedules.md"
STEPS = 100


class Row(NamedTuple):
    schedule: str
    calls: list[str]
    picture: str


def rows() -> list[Row]:
    row = re.compile(r"^\| (.+?) \| .+ \| (.+) \| !\[.+\]\((.+)\) \|$", re.MULTILINE)
    return [
        Row(schedule.strip("`"), re.findall(r"`(.*?)`", calls), Path(picture).name)
        for schedule, calls, picture in row.findall(PAGE.read_text())
    ]


def evaluate(call: str) -> Any:
    names = {"optax": optax, "schedules": schedules, "lrd_optax": lrd_optax}
    return eval(call, names)


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


def draw(row: Row, path: Path) -> None:
    height = 2.0 + 0.2 * len(row.calls) * (len(row.calls) > 1)
    figure = Figure(figsize=(3.3, height), dpi=100, layout="constrained")
    axes = figure.subplots()
    named = dict(zip(labels(row.calls), map(as_schedule, row.calls), strict=True))
    plotting.plot_schedules(named, STEPS, ax=axes)
    steps = not callable(evaluate(row.calls[0]))
    axes.set_ylabel("step for a gradient of 1" if steps else "value", fontsize=7)
    axes.set_xlabel("step", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_minor_locator(MultipleLocator(10))
    axes.grid(axis="x", which="minor", alpha=0.3, linewidth=0.6)
    figure.savefig(path)


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
    dropout = lrd_optax.learning_rate_dropout(keep_prob=0.5, key=0)
    updates = jnp.ones((24, 64))
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
    for row in rows():
        options.save(output / row.picture, partial(draw, row))
        print(f"{row.schedule}: {output / row.picture}")


if __name__ == "__main__":
    main()
