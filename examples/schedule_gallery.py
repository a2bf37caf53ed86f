"""Draws every row of the table in docs/schedules.md.

    python examples/schedule_gallery.py                    # into results/schedules
    python examples/schedule_gallery.py --output docs/images/schedules

The calls are read from the table, so that a picture shows what stands beside it. A
schedule is drawn for 100 steps. What is no schedule but a whole transformation is drawn
as the size of its steps, given a gradient of 1 and a loss that stalls after 40 steps.
"""

import argparse
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

import lrd_optax
from lrd_optax import schedules

TABLE = Path(__file__).parent.parent / "docs" / "schedules.md"
STEPS = 100
STYLES = [  # colours of Okabe and Ito
    {"color": "#0072B2", "linestyle": "-"},
    {"color": "#D55E00", "linestyle": "--"},
    {"color": "#009E73", "linestyle": "-."},
    {"color": "#000000", "linestyle": ":"},
]


class Row(NamedTuple):
    system: str
    calls: list[str]
    picture: str


def rows() -> list[Row]:
    found = []
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if re.match(r"\| \d+ \|", line):
            _, system, _, calls, picture = cells
            name = Path(re.search(r"\((.*)\)", picture)[1]).name
            found.append(Row(system, re.findall(r"`(.*?)`", calls), name))
    return found


def make(call: str) -> Any:
    names = {"optax": optax, "schedules": schedules, "lrd_optax": lrd_optax}
    return eval(call, names)


def value(schedule: optax.Schedule, time: np.ndarray) -> np.ndarray:
    return np.broadcast_to(schedule(jnp.asarray(time, jnp.float32)), time.shape)


def step_sizes(made: optax.GradientTransformation, steps: int) -> np.ndarray:
    made = optax.with_extra_args_support(made)
    params = jnp.zeros(())
    state = made.init(params)
    sizes = []
    for step in range(steps):
        loss = jnp.float32(max(1.0, 5 - 0.1 * step))
        updates, state = made.update(jnp.ones(()), state, params, value=loss)
        sizes.append(abs(float(updates)))
    return np.array(sizes)


def labels(calls: list[str]) -> list[str]:
    """What tells the calls apart: names of functions, or else arguments."""
    for pattern in (r"([a-z_]+)\(", r"[a-z_]+=[^,)]+"):
        found = [re.findall(pattern, call) for call in calls]
        common = set.intersection(*map(set, found))
        apart = [[each for each in some if each not in common] for some in found]
        if all(apart):
            return [" + ".join(some) for some in apart]
    return calls


def draw(row: Row, path: Path) -> None:
    legend = len(row.calls) > 1
    height = 2.0 + legend * (0.1 + 0.15 * len(row.calls))
    figure = Figure(figsize=(3.3, height), dpi=100, layout="constrained")
    axes = figure.subplots()
    time = np.linspace(0, STEPS, 20 * STEPS, endpoint=False)
    for call, label, style in zip(row.calls, labels(row.calls), STYLES, strict=False):
        made, style = make(call), {**style, "label": label, "linewidth": 1.3}
        if callable(made):
            axes.plot(time, value(made, time), **style)
            axes.set_ylabel("value", fontsize=7)
        else:
            sizes = step_sizes(made, STEPS + 1)
            axes.plot(sizes, drawstyle="steps-post", **style)
            axes.set_ylabel("step for a gradient of 1", fontsize=7)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, STEPS)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("step", fontsize=7)
    axes.xaxis.set_minor_locator(MultipleLocator(10))
    axes.grid(axis="x", which="both", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        figure.legend(fontsize=7, frameon=False, loc="outside upper center")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("results/schedules"))
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for row in rows():
        draw(row, output / row.picture)
        print(f"{row.system}: {output / row.picture}")


if __name__ == "__main__":
    main()
