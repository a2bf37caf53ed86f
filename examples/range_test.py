"""A learning-rate range test on the digits, and training with what it suggests.

    python examples/range_test.py                      # about a minute on 2 CPU cores
    python examples/range_test.py --quick              # a short look
    python examples/range_test.py --optimizer adam --keep-prob 0.3

The test runs from the initial weights of every seed at once, with and without Learning
Rate Dropout (LRD). Then the CNN of examples/digits.py is trained, also with and without
LRD, by four schedules:

- the fixed rate where the loss fell fastest;
- cyclical learning rates (CLR) between the bounds that the curve suggests;
- the fixed rate that is the mean of the cycle. CLR has to beat this too: a gain over
  another rate may come from the rate alone;
- the fixed rate of examples/digits.py, found by many trainings without LRD instead of
  by one test.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import options

if __name__ == "__main__":  # before the imports that take seconds
    options.end_on_ctrl_c()
    options.range_test()

import digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from report import save_picture, write_report
from rich import box
from rich.console import Console
from rich.table import Table

import lrd_optax
from lrd_optax import plotting, schedules

RANGE = {"min_value": 1e-5, "max_value": 10.0}
CYCLES = 3  # in the whole training


class Suggestion(NamedTuple):
    steepest: float
    valley: float
    min_over_10: float
    base: float
    peak: float


class Arm(NamedTuple):
    kind: str  # "dense" or "LRD"
    schedule: str
    rate: Any  # a number or a schedule


class Result(NamedTuple):
    kind: str
    schedule: str
    rate: str
    accuracy_percent: list[float]  # after each epoch, mean of the seeds
    accuracy_half_width: list[float]  # of 95 % intervals
    minus_fixed: float  # points of final accuracy above the dense, fixed rate
    minus_fixed_half_width: float


def setup(seeds: int) -> dict[str, Any]:
    """Returns the loss, the accuracy, and the weights and mask keys of all seeds."""
    train_x, test_x, train_y, test_y = map(jnp.asarray, digits.load_data())
    graph, _ = nnx.split(nnx.eval_shape(lambda: digits.CNN(nnx.Rngs(0))))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    init_keys, mask_keys = jax.vmap(jax.random.split, out_axes=1)(keys)

    def loss_fn(params, batch):
        logits, labels = nnx.merge(graph, params)(train_x[batch]), train_y[batch]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def accuracy(params):
        predictions = nnx.merge(graph, params)(test_x).argmax(-1)
        return 100 * (predictions == test_y).mean()

    def initial_params(key):
        return nnx.state(digits.CNN(nnx.Rngs(key)), nnx.Param)

    return {
        "loss_fn": loss_fn,
        "accuracy": accuracy,
        "params": jax.jit(jax.vmap(initial_params))(init_keys),
        "mask_keys": mask_keys,
    }


def batch_orders(seeds: int, epochs: int) -> np.ndarray:
    return np.stack([digits.batch_orders(seed, epochs) for seed in range(seeds)])


def optimizer(name: str, kind: str, rate: Any, keep_prob: float, key: jax.Array):
    return digits.make_optimizer(digits.Arm(name, kind, rate), rate, keep_prob, key)


def test_range(task, orders, name: str, kind: str, keep_prob: float, steps: int):
    def one_seed(params, key, order):
        return lrd_optax.lr_range_test(
            task["loss_fn"],
            params,
            order.reshape(-1, digits.BATCH),
            lambda rate: optimizer(name, kind, rate, keep_prob, key),
            num_steps=steps,
            **RANGE,
        )

    return jax.vmap(one_seed)(task["params"], task["mask_keys"], orders)


def suggest(result: lrd_optax.RangeTestResult) -> Suggestion:
    methods = ("steepest", "valley", "min_over_10")
    rates = (lrd_optax.suggest_learning_rate(result, method) for method in methods)
    return Suggestion(*rates, *lrd_optax.suggest_cycle(result))


def train(task, orders, name: str, arm: Arm, keep_prob: float) -> np.ndarray:
    """Returns the test accuracy after each epoch, [seeds, epochs]."""

    def one_seed(params, key, order):
        tx = optimizer(name, arm.kind, arm.rate, keep_prob, key)

        def step(carry, batch):
            params, state = carry
            grads = jax.grad(task["loss_fn"])(params, batch)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry, batches):
            carry, _ = jax.lax.scan(step, carry, batches)
            return carry, task["accuracy"](carry[0])

        return jax.lax.scan(epoch, (params, tx.init(params)), order)[1]

    accuracies = jax.jit(jax.vmap(one_seed))(task["params"], task["mask_keys"], orders)
    return np.asarray(accuracies)


def make_arms(name: str, kind: str, suggestion: Suggestion, steps: int) -> list[Arm]:
    cycle = schedules.cyclical(suggestion.base, suggestion.peak, steps // (2 * CYCLES))
    mean = (suggestion.base + suggestion.peak) / 2
    return [
        Arm(kind, "fixed, steepest", suggestion.steepest),
        Arm(kind, "fixed, mean of CLR", mean),
        Arm(kind, "CLR", cycle),
        Arm(kind, "fixed, tuned for dense", options.RATES[name]),
    ]


def summarize(
    arms: list[Arm], accuracies: list[np.ndarray], suggestions: dict[str, Suggestion]
) -> list[Result]:
    results = []
    for arm, accuracy in zip(arms, accuracies, strict=True):
        mean, half = digits.interval(accuracy.T)
        gain, gain_half = digits.interval(accuracy[:, -1] - accuracies[0][:, -1])
        cycle = suggestions[arm.kind]
        rate = f"{cycle.base:.2g} to {cycle.peak:.2g}"
        if not callable(arm.rate):
            rate = f"{arm.rate:.2g}"
        numbers = mean.tolist(), half.tolist(), float(gain), float(gain_half)
        results.append(Result(arm.kind, arm.schedule, rate, *numbers))
    return results


def draw(ranges, suggestions, arms, accuracies, path: Path) -> None:
    figure = Figure(figsize=(9, 8), layout="constrained")
    upper, lower = figure.subplots(2, 2)
    for axes, (kind, result) in zip(upper, ranges.items(), strict=True):
        axes.sharey(upper[0])
        marks = {"steepest": suggestions[kind].steepest}
        cycle = suggestions[kind].base, suggestions[kind].peak
        plotting.plot_range_test(result, marks=marks, cycle=cycle, ax=axes)
        axes.set_title(f"range test, {kind}")
    errors = [100 - accuracy for accuracy in accuracies]
    lowest, epochs = min(e.mean(0).min() for e in errors), np.arange(errors[0].shape[1])
    for axes, kind in zip(lower, ranges, strict=True):
        curves = {
            arm.schedule: error
            for arm, error in zip(arms, errors, strict=True)
            if arm.kind == kind
        }
        plotting.plot_learning_curves(curves, steps=epochs + 1, ax=axes)
        axes.set(xlabel="epoch", ylabel="test error (%)", yscale="log")
        # The errors of the first epochs, up to 90 %, would flatten all later ones.
        axes.set_ylim(0.8 * lowest, max(20, 4 * lowest))
        axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 3, 5, 10, 20, 50]))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(f"training, {kind}")
    # One legend for both, which have the same lines. Outside of them it hides none.
    title = f"{axes.get_legend().get_title().get_text()}, {len(errors[0])} seeds"
    lines, _ = axes.get_legend_handles_labels()
    for axes in lower:
        axes.get_legend().remove()
    below = {"loc": "outside lower center", "ncols": 4, "frameon": False}
    figure.legend(lines, curves, title=title, **below)
    save_picture(figure, path, dpi=100)


def make_table(results: list[Result]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for number, header in enumerate(
        ("arm", "schedule", "learning rate", "accuracy, %", "minus dense, steepest")
    ):
        table.add_column(header, justify="left" if number < 2 else "right")
    for number, r in enumerate(results):
        gain = f"{r.minus_fixed:+.2f} ± {r.minus_fixed_half_width:.2f}"
        accuracy = f"{r.accuracy_percent[-1]:.2f} ± {r.accuracy_half_width[-1]:.2f}"
        table.add_row(r.kind, r.schedule, r.rate, accuracy, gain if number else "")
    return table


def main() -> None:
    args = options.range_test()
    console, progress = Console(highlight=False), Console(highlight=False, stderr=True)
    name, keep_prob = args.optimizer, args.keep_prob
    batches = digits.TRAIN_SIZE // digits.BATCH
    test_epochs = math.ceil((args.steps + 1) / batches)
    task, orders = setup(args.seeds), batch_orders(args.seeds, test_epochs)
    ranges, suggestions = {}, {}
    for kind in ("dense", "LRD"):
        ranges[kind] = test_range(task, orders, name, kind, keep_prob, args.steps)
        suggestions[kind] = suggest(ranges[kind])
        rates = suggestions[kind]._asdict().items()
        listed = ", ".join(f"{method} {rate:.2g}" for method, rate in rates)
        console.print(f"{name}, {kind}: {listed}")
    orders = batch_orders(args.seeds, args.epochs)
    steps = args.epochs * batches
    arms = []
    for kind, suggestion in suggestions.items():
        arms += make_arms(name, kind, suggestion, steps)
    accuracies = []
    for arm in arms:
        progress.print(f"training {arm.kind}, {arm.schedule}")
        accuracies.append(train(task, orders, name, arm, keep_prob))
    results = summarize(arms, accuracies, suggestions)
    config = {
        key: getattr(args, key)
        for key in ("optimizer", "seeds", "epochs", "keep_prob", "steps")
    }
    console.print(make_table(results))
    console.print(
        f"± is a 95 % interval over {args.seeds} seeds, of differences paired by "
        f"seed; accuracy is on the test set after {args.epochs} epochs.\n"
    )
    rows = [r._asdict() for r in results]
    more = {kind: rates._asdict() for kind, rates in suggestions.items()}
    options.save(
        args.output / "range_test.json",
        lambda path: write_report(config | RANGE, rows, path, suggestions=more),
    )
    options.save(
        args.output / "range_test.png",
        lambda path: draw(ranges, suggestions, arms, accuracies, path),
    )
    console.print(f"Wrote {args.output}/range_test.png and .json")


if __name__ == "__main__":
    main()
