"""Does Learning Rate Dropout (LRD) leave saddles and poor minima, in two dimensions?

    python examples/saddle.py               # about 25 seconds on 2 CPU cores
    python examples/saddle.py --runs 2000   # narrower intervals

Gradient descent, momentum and Adam run in four arms each: "dense" (the plain
optimizer), "dense, half the rate" (dense at keep_prob x the rate, the mean step of
LRD), "noise" (dense, with a little noise on the gradient, as mini-batches have) and
"LRD" (at the rate of dense). Each run has its own start and seed, which the four arms
share. All runs of an arm go at once, by `vmap`.

The loss is 1/2 s^2 + 1/4 u^4 - 1/2 u^2 - tilt u, where s and u are the two parameters
turned by an angle. It is a valley along u, with two minima and a saddle between them.
The line along s leads into the saddle. Runs at a saddle start 0.5 to 1 away from it
along this line, and a tiny distance off it, to either side. Runs at a minimum start
anywhere in its half of the valley.

A run escapes at the first step after which it is beyond the saddle, at a loss below the
mean of the losses of the saddle and of the minimum there. LRD drops steps and adds
none, so where a gradient is 0 it can do nothing.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import options

if __name__ == "__main__":  # before the imports that take seconds
    options.end_on_ctrl_c()
    options.saddle()

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from report import progress_bar, save_picture, write_report
from rich.console import Console
from rich.table import Table
from scipy import stats

import lrd_optax
from lrd_optax import plotting

OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "gradient descent": (optax.sgd, 0.05),
    # In the long run its step is that of gradient descent: 0.005 / (1 - 0.9) = 0.05.
    "momentum": (lambda rate: optax.sgd(rate, momentum=0.9), 0.005),
    "Adam": (optax.adam, 0.02),
}
NOISE = 1e-3  # standard deviation; the gradients at the starts by a saddle are 0.5 to 1
TILT = 0.2
DISTANCES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
SHOWN, SHOWN_STEPS = 4, 200  # the first runs are drawn, none are picked


class Problem(NamedTuple):
    name: str
    degrees: float  # by which the valley is turned from the axes
    tilt: float = 0.0  # 0: two equal minima; above: that at negative u is the poor one
    side: int = 0  # escape to positive u, to negative u, or (0) to either
    speed: int = 1  # factor of the rates
    distance: float = DISTANCES[0]  # of the start from the line into the saddle


TURNED = Problem("saddle, turned by 30 degrees", 30)
ALONG = Problem("saddle, along an axis", 0)
POOR = Problem("from the poor minimum to the good one", 30, TILT, 1)
GOOD = POOR._replace(name="from the good minimum to the poor one", side=-1)
FAST_POOR = POOR._replace(name="from the poor minimum, 10 x the rate", speed=10)
FAST_GOOD = GOOD._replace(name="from the good minimum, 10 x the rate", speed=10)
PROBLEMS = (
    TURNED,
    TURNED._replace(name="saddle, turned by 45 degrees", degrees=45),
    ALONG,
    ALONG._replace(name="saddle, along an axis, started on it", distance=0.0),
    *(POOR, GOOD, FAST_POOR, FAST_GOOD),
)
SWEEP = tuple(TURNED._replace(distance=distance) for distance in DISTANCES)


class Run(NamedTuple):
    """What differs between runs. Each field is an array over all runs."""

    start: Any
    seed: Any
    angle: Any
    tilt: Any
    side: Any
    speed: Any
    ridge: Any  # u of the saddle
    level: Any  # a run beyond the ridge at a loss below this has escaped


class Escapes(NamedTuple):
    """How many runs escape, and when, with 95 % intervals; inf means not in time."""

    percent: float
    percent_low: float
    percent_high: float
    median_steps: float
    median_low: float
    median_high: float


Results = dict[tuple[Problem, str, str], Escapes]
Paths = dict[tuple[Problem, str, str], np.ndarray]


def turn(point: Any, angle: Any) -> tuple[Any, Any]:
    """Returns s and u of a point."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * point[0] + sin * point[1], cos * point[1] - sin * point[0]


def height(u: Any, tilt: Any) -> Any:
    return u**4 / 4 - u**2 / 2 - tilt * u


def loss_of(point: Any, angle: Any, tilt: Any) -> Any:
    s, u = turn(point, angle)
    return s**2 / 2 + height(u, tilt)


def make_runs(problem: Problem, runs: int) -> Run:
    random = np.random.default_rng(0)
    low, ridge, high = np.sort(np.roots([1, 0, -1, -problem.tilt]).real)
    if problem.side == 0:
        s = random.uniform(0.5, 1, runs) * random.choice([-1, 1], runs)
        u = problem.distance * random.choice([-1, 1], runs)
    else:
        s = random.uniform(-1, 1, runs)
        u = ridge - problem.side * random.uniform(0, 1.4, runs)
    target = low if problem.side < 0 else high
    level = (height(ridge, problem.tilt) + height(target, problem.tilt)) / 2
    angle = math.radians(problem.degrees)
    start = np.stack(turn((s, u), -angle), axis=1)
    shared = (angle, problem.tilt, problem.side, problem.speed, ridge, level)
    shared = (np.full(runs, value, np.float32) for value in shared)
    return Run(start.astype(np.float32), np.arange(runs), *shared)


def make_optimizer(name: str, arm: str, run: Run, keep_prob: float):
    make, rate = OPTIMIZERS[name]
    base = make(rate * run.speed)
    if arm == "noise":
        return optax.chain(optax.add_noise(NOISE**2, 0.0, run.seed), base)
    if arm == "LRD":
        dropout = lrd_optax.learning_rate_dropout(keep_prob, key=run.seed)
        return optax.chain(base, dropout)
    return base


@partial(jax.jit, static_argnums=(0, 1, 3, 4, 5))
def descend(name: str, arm: str, runs: Run, count: int, steps: int, keep_prob: float):
    """Returns the steps to escape (inf: no escape) and the first `SHOWN` paths.

    Both have a leading axis for the problems: each has `count` of the runs.
    """

    def begin(run):
        state = make_optimizer(name, arm, run, keep_prob).init(run.start)
        return run.start, state, jnp.inf

    def step(run, carry, number):
        point, state, escaped = carry
        loss, grads = jax.value_and_grad(loss_of)(point, run.angle, run.tilt)
        beyond = run.side * (turn(point, run.angle)[1] - run.ridge) >= 0
        is_escape = beyond & (loss < run.level)
        escaped = jnp.minimum(escaped, jnp.where(is_escape, number, jnp.inf))
        optimizer = make_optimizer(name, arm, run, keep_prob)
        updates, state = optimizer.update(grads, state, point)
        return optax.apply_updates(point, updates), state, escaped

    def step_all(carry, number):
        stepped = jax.vmap(step, in_axes=(0, 0, None))(runs, carry, number)
        return stepped, carry[0].reshape(-1, count, 2)[:, :SHOWN]

    # One iteration more than steps: each looks at the point before its own step.
    numbers = jnp.arange(steps + 1)
    carry, paths = jax.lax.scan(step_all, jax.vmap(begin)(runs), numbers)
    return carry[2].reshape(-1, count), paths.transpose(1, 2, 0, 3)


def make_arms(keep_prob: float) -> tuple[str, ...]:
    return "dense", options.lower_rate(keep_prob), "noise", "LRD"


def measure(runs: int, steps: int, keep_prob: float) -> tuple[Results, Paths]:
    problems = list(dict.fromkeys((*PROBLEMS, *SWEEP)))  # TURNED is in both
    groups = [make_runs(problem, runs) for problem in problems]
    usual = jax.tree.map(lambda *parts: np.concatenate(parts), *groups)
    lower = usual._replace(speed=usual.speed * np.float32(keep_prob))
    arms = make_arms(keep_prob)
    # The arm at the lower rate is the program of dense, with other numbers.
    programs = ("dense", usual), ("dense", lower), ("noise", usual), ("LRD", usual)
    results, paths = {}, {}
    with progress_bar() as bar:
        bar.console.print("Each optimizer is compiled three times: dense, noise, LRD.")
        task = bar.add_task("", total=len(OPTIMIZERS) * len(arms))
        for name in OPTIMIZERS:
            for arm, (program, start) in zip(arms, programs, strict=True):
                does = "running" if start is lower else "compiling, then running"
                bar.update(task, description=f"{name}, {arm}: {does}")
                outputs = descend(name, program, start, runs, steps, keep_prob)
                outputs = map(np.asarray, outputs)
                for problem, escaped, path in zip(problems, *outputs, strict=True):
                    results[problem, name, arm] = summarize(escaped)
                    paths[problem, name, arm] = path
                bar.advance(task)
    return results, paths


def summarize(escaped: np.ndarray) -> Escapes:
    runs, ordered = len(escaped), np.sort(escaped)
    share = stats.binomtest(int(np.isfinite(escaped).sum()), runs)
    low, high = share.proportion_ci(method="wilson")
    # The median lies between these two of the sorted runs, whatever the distribution.
    # Runs that did not escape count as later than all that did.
    first = int(stats.binom.ppf(0.025, runs, 0.5)) - 1
    median = ordered[(runs - 1) // 2], ordered[first], ordered[-1 - first]
    return Escapes(100 * share.statistic, 100 * low, 100 * high, *map(float, median))


def compare(ours: Escapes, other: Escapes) -> str:
    """Returns + if ours escape sooner or more often, - if later or less, else =."""
    if ours.median_high < other.median_low or ours.percent_low > other.percent_high:
        return "+"
    if ours.median_low > other.median_high or ours.percent_high < other.percent_low:
        return "-"
    return "="


def verdict(results: Results, keep_prob: float) -> list[str]:
    """Returns what the intervals show, in words."""
    others = make_arms(keep_prob)[:2]

    def ahead(problem, name):
        ours = results[problem, name, "LRD"]
        return all(compare(ours, results[problem, name, arm]) == "+" for arm in others)

    better = f'LRD escapes sooner or more often than "{others[0]}" and "{others[1]}":'
    lines = []
    for is_better in (True, False):
        lines.append(better if is_better else "The intervals do not show this for:")
        for problem in PROBLEMS:
            names = [name for name in OPTIMIZERS if ahead(problem, name) == is_better]
            if names and problem.side >= 0:  # leaving the good minimum is no help
                lines.append(f"- {problem.name}: {', '.join(names)}")
    lines.append("LRD leaves the good minimum too (in brackets, the poor one):")
    for good, poor in ((GOOD, POOR), (FAST_GOOD, FAST_POOR)):
        for name in OPTIMIZERS:
            shares = [results[side, name, "LRD"].percent for side in (good, poor)]
            text = f"{shares[0]:.1f} % of the runs ({shares[1]:.1f} %)"
            lines.append(f"- {name}, {good.speed} x the rate: {text}")
    tried = ", ".join(f"{distance:g}" for distance in DISTANCES)
    lines.append(
        f"{TURNED.name.capitalize()}: the largest distance of the start from the line,"
        f" of {tried}, at which LRD escapes sooner than both:"
    )
    for name in OPTIMIZERS:
        far = [f"{start.distance:g}" for start in SWEEP if ahead(start, name)]
        lines.append(f"- {name}: {far[-1] if far else 'none'}")
    return lines


def make_table(
    problem: Problem, results: Results, steps: int, keep_prob: float
) -> Table:
    def percent(number):
        return f"{number:.{0 if 10 <= number < 99 else 1}f}".removesuffix(".0")

    def count(number):
        return f"{number:g}" if number < math.inf else f">{steps}"

    def cell(name, arm):
        escapes, ours = results[problem, name, arm], results[problem, name, "LRD"]
        share, low, high = map(percent, escapes[:3])
        median, first, last = map(count, escapes[3:])
        interval = f" [{first}, {last}]" if first != last else ""
        sign = "" if arm == "LRD" else f" {compare(ours, escapes)}"
        return f"{share}% [{low}, {high}]\n{median}{interval}{sign}"

    table = Table(title=problem.name, title_justify="left", title_style="bold")
    table.box, table.pad_edge, table.padding = None, False, (0, 1, 0, 0)
    arms = make_arms(keep_prob)
    for arm in arms:
        table.add_column(arm.replace(", ", ",\n"), width=19)
    for name in OPTIMIZERS:
        table.add_row(f"[italic]{name}")
        table.add_row(*(cell(name, arm) for arm in arms))
    return table


def draw(
    results: Results, paths: Paths, steps: int, keep_prob: float, path: Path
) -> None:
    def outcome(escapes):
        if escapes.median_steps == math.inf:
            return f"{escapes.percent:.1f} %"
        return f"{escapes.median_steps:g} steps"

    figure = Figure(figsize=(9, 14), layout="constrained")
    rows = figure.subfigures(4, 1)
    title: dict[str, Any] = {"x": 0.01, "ha": "left", "weight": "bold"}
    # One legend for each row, below its panels, where it hides nothing.
    below: dict[str, Any] = {"loc": "outside lower center", "frameon": False}
    for row, problem in zip(rows, (TURNED, ALONG, POOR), strict=False):
        text = f"{problem.name}: the first {SHOWN_STEPS} steps of {SHOWN} runs"
        row.suptitle(f"{text.capitalize()}, circle to cross", **title)
        angle, room = math.radians(problem.degrees), (-1.9, 1.9)
        loss = partial(loss_of, angle=angle, tilt=problem.tilt)
        for ax, name in zip(row.subplots(1, 3, sharey=True), OPTIMIZERS, strict=True):
            whole = {arm: paths[problem, name, arm] for arm in ("dense", "LRD")}
            shown = {arm: path[:, : SHOWN_STEPS + 1] for arm, path in whole.items()}
            plotting.plot_trajectories(loss, shown, xlim=room, ylim=room, ax=ax)
            escapes = [f"{arm} {outcome(results[problem, name, arm])}" for arm in shown]
            ax.set_title(f"{name}\nescape: {', '.join(escapes)}", fontsize="small")
            ax.set_aspect("equal")
            ax.label_outer()
            ax.get_legend().remove()
            if problem.tilt:
                for u, word in ((-1.55, "poor"), (1.0, "good")):
                    x, y = turn((0.0, u), -angle)
                    ax.text(float(x), float(y), word, ha="center", style="italic")
        row.legend(*ax.get_legend_handles_labels(), ncols=2, **below)
    text = "median steps to escape against the distance of the start"
    rows[3].suptitle(f"{TURNED.name}: {text}".capitalize(), **title)
    lower = options.lower_rate(keep_prob)
    styles = {"dense": "o-", "LRD": "o--", lower: "o-.", "noise": "o:"}
    for ax, name in zip(rows[3].subplots(1, 3, sharey=True), OPTIMIZERS, strict=True):
        for (arm, style), color in zip(styles.items(), plotting.COLORS, strict=False):
            medians = [results[problem, name, arm].median_steps for problem in SWEEP]
            label = f"noise of {NOISE:g}" if arm == "noise" else arm
            ax.plot(DISTANCES, medians, style, color=color, ms=3, label=label)
        ax.set(xscale="log", yscale="log", ylim=(20, steps))
        ax.set(xlabel="distance from the line, log scale", ylabel="steps, log scale")
        ax.set_title(name, fontsize="small")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.grid(alpha=0.3)
        ax.label_outer()
    rows[3].legend(*ax.get_legend_handles_labels(), ncols=4, **below)
    save_picture(figure, path, dpi=110)


def write_json(results: Results, config: dict[str, Any], path: Path) -> None:
    rates = {name: rate for name, (_, rate) in OPTIMIZERS.items()}
    rows = [
        problem._asdict() | {"optimizer": name, "arm": arm} | escapes._asdict()
        for (problem, name, arm), escapes in results.items()
    ]
    write_report(config | {"rates": rates, "noise": NOISE}, rows, path)


def main() -> None:
    args = options.saddle()
    names = ("runs", "steps", "keep_prob")
    config = {name: getattr(args, name) for name in names}
    results, paths = measure(**config)
    console = Console(highlight=False)
    rates = ", ".join(f"{rate:g} ({name})" for name, (_, rate) in OPTIMIZERS.items())
    console.print(
        "First line: the share of runs that escape; second line: the median steps to"
        f" escape; in brackets 95 % intervals. {args.runs} runs per arm,"
        f" of {args.steps} steps, at a saddle {DISTANCES[0]:g} off the line into it."
        f" Rates: {rates}; noise:"
        f" {NOISE:g} on the gradient. + LRD clearly escapes sooner than this, or"
        " more often; - later, or less often; = the intervals overlap.\n"
    )
    for problem in PROBLEMS:
        console.print(make_table(problem, results, args.steps, args.keep_prob), "")
    console.print("\n".join([*verdict(results, args.keep_prob), ""]))
    if args.quick:
        console.print(f"{options.QUICK.strip()}\n")
    options.save(
        args.output / "saddle.json", lambda path: write_json(results, config, path)
    )
    options.save(
        args.output / "saddle.png",
        lambda path: draw(results, paths, args.steps, args.keep_prob, path),
    )
    console.print(f"Wrote {args.output}/saddle.png and .json")


if __name__ == "__main__":
    main()
