"""A learning-rate range test on the digits, and training with what it suggests.

    python examples/range_test.py                      # about a minute on 2 CPU cores
    python examples/range_test.py --quick              # a short look
    python examples/range_test.py --optimizer adam --keep-prob 0.3

The test runs from the initial weights of every seed at once, "dense" (the plain
optimizer) and with Learning Rate Dropout ("LRD"). Then the CNN of examples/digits.py is
trained, also dense and with LRD, by five schedules:

- "fixed, peak": the rate where nine tenths of the fall of the loss are done. It is
  recommended to begin with;
- "fixed, steepest": the lower rate where the loss fell fastest;
- "cyclical": cyclical learning rates from the base of the curve to its peak;
- "fixed, mean of cycle": the mean of these. Cyclical rates have to beat this too: a
  gain over another rate may come from the rate alone;
- "fixed, tuned": the rate of examples/digits.py, found by many dense trainings instead
  of by one test. With LRD it is divided by keep_prob, which keeps the mean step.
"""

import math
import sys
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
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator
from report import progress_bar, save_picture, write_report
from rich import box
from rich.console import Console
from rich.table import Table

import lrd_optax
from lrd_optax import plotting, schedules

RANGE = {"min_value": 1e-5, "max_value": 10.0}
CYCLES = 3  # in the whole training


class Suggestion(NamedTuple):
    peak: float  # recommended to begin with
    base: float
    steepest: float
    valley: float
    min_over_10: float


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
    minus_dense_peak: float  # points of final accuracy
    minus_dense_peak_half_width: float


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
    arm = digits.Arm(name, kind, rate, kind == "LRD")
    return digits.make_optimizer(arm, rate, keep_prob, key)


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
    base, peak = lrd_optax.suggest_cycle(result)
    methods = ("steepest", "valley", "min_over_10")
    rates = (lrd_optax.suggest_learning_rate(result, method) for method in methods)
    return Suggestion(peak, base, *rates)


def make_training(task, orders, name: str, kind: str, keep_prob: float):
    """Returns a function: rates of all steps -> test accuracy, [seeds, epochs].

    The rates are an argument, so that all arms of a kind share one program.
    """

    def one_seed(params, key, order, rates):
        tx = optimizer(name, kind, lambda count: rates[count], keep_prob, key)

        def step(carry, batch):
            params, state = carry
            grads = jax.grad(task["loss_fn"])(params, batch)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry, batches):
            carry, _ = jax.lax.scan(step, carry, batches)
            return carry, task["accuracy"](carry[0])

        return jax.lax.scan(epoch, (params, tx.init(params)), order)[1]

    all_seeds = jax.jit(jax.vmap(one_seed, in_axes=(0, 0, 0, None)))

    def train(rates):
        return np.asarray(all_seeds(task["params"], task["mask_keys"], orders, rates))

    return train


def make_arms(
    name: str, kind: str, suggestion: Suggestion, steps: int, keep_prob: float
) -> list[Arm]:
    cycle = schedules.cyclical(suggestion.base, suggestion.peak, steps // (2 * CYCLES))
    tuned = options.RATES[name] / (keep_prob if kind == "LRD" else 1)
    return [
        Arm(kind, "fixed, peak", suggestion.peak),
        Arm(kind, "fixed, steepest", suggestion.steepest),
        Arm(kind, "cyclical", cycle),
        Arm(kind, "fixed, mean of cycle", (suggestion.base + suggestion.peak) / 2),
        Arm(kind, "fixed, tuned", tuned),
    ]


def rates_of(arm: Arm, steps: int) -> jax.Array:
    """Returns the learning rate of each step."""
    if callable(arm.rate):
        return jax.vmap(arm.rate)(jnp.arange(steps))
    return jnp.full(steps, arm.rate)


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


def verdict(results: list[Result]) -> str:
    """Says in one sentence what the paired differences show."""
    clear: dict[str, list[str]] = {}
    others = results[1:]
    for r in others:
        if abs(r.minus_dense_peak) > r.minus_dense_peak_half_width:
            word = "better" if r.minus_dense_peak > 0 else "worse"
            clear.setdefault(word, []).append(f'"{r.kind}, {r.schedule}"')
    parts = [
        f"{' and '.join(arms)} {'is' if len(arms) == 1 else 'are'} clearly {word}"
        for word, arms in clear.items()
    ]
    number = len(others) - sum(map(len, clear.values()))
    parts.append(f"{number} of {len(others)} arms cannot be told apart from it")
    first = 'Beside "dense, fixed, peak", which is recommended to begin with'
    return f"{first}, {'; '.join(parts)}."


def draw(ranges, suggestions, arms, accuracies, path: Path) -> None:
    figure = Figure(figsize=(10, 8), layout="constrained")
    upper, lower = figure.subplots(2, 2)
    for axes, (kind, result) in zip(upper, ranges.items(), strict=True):
        axes.sharey(upper[0])
        suggestion = suggestions[kind]
        marks = {"peak": suggestion.peak, "steepest": suggestion.steepest}
        cycle = suggestion.base, suggestion.peak
        plotting.plot_range_test(result, marks=marks, cycle=cycle, ax=axes)
        axes.set(title=f"range test, {kind}")
    errors = [100 - accuracy for accuracy in accuracies]
    lowest, epochs = min(e.mean(0).min() for e in errors), np.arange(errors[0].shape[1])
    for axes, kind in zip(lower, ranges, strict=True):
        curves = {
            arm.schedule: error
            for arm, error in zip(arms, errors, strict=True)
            if arm.kind == kind
        }
        plotting.plot_learning_curves(curves, steps=epochs + 1, ax=axes)
        axes.set(xlabel="epoch", ylabel="test error (%), log scale", yscale="log")
        # The errors of the first epochs, up to 90 %, would flatten all later ones.
        axes.set_ylim(0.8 * lowest, max(20, 4 * lowest))
        axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 3, 5, 10, 20, 50]))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(f"training, {kind}")
    # One legend for both, which have the same lines. Outside of them it hides none.
    lines, _ = axes.get_legend_handles_labels()
    for axes in lower:
        axes.get_legend().remove()
    lines.append(Patch(color="gray", **digits.BAND))
    labels = [*curves, f"band: 95 % interval over {len(errors[0])} seeds"]
    below = {"loc": "outside lower center", "ncols": 3, "frameon": False}
    figure.legend(lines, labels, **below)
    save_picture(figure, path, dpi=100)


def make_table(results: list[Result]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    headers = "arm", "schedule", "learning rate", "accuracy, %", "minus dense, peak"
    for number, header in enumerate(headers):
        justify = "left" if number < 2 else "right"
        table.add_column(header, justify=justify, no_wrap=True)
    for number, r in enumerate(results):
        gain = f"{r.minus_dense_peak:+.2f} ± {r.minus_dense_peak_half_width:.2f}"
        accuracy = f"{r.accuracy_percent[-1]:.2f} ± {r.accuracy_half_width[-1]:.2f}"
        table.add_row(
            *(r.kind, r.schedule, r.rate, accuracy, gain if number else ""),
            end_section=r.schedule == "fixed, tuned",
        )
    return table


def main() -> None:
    args = options.range_test()
    console, name, keep_prob = Console(highlight=False), args.optimizer, args.keep_prob
    batches = digits.TRAIN_SIZE // digits.BATCH
    test_epochs = math.ceil((args.steps + 1) / batches)
    orders = batch_orders(args.seeds, test_epochs)
    kinds, ranges, suggestions, arms = ("dense", "LRD"), {}, {}, []
    steps = args.epochs * batches
    with progress_bar() as bar:
        bar.console.print(
            "Tests and trainings are compiled twice: without and with LRD."
        )
        progress = bar.add_task("compiling initial weights", total=len(kinds))
        task = setup(args.seeds)
        for kind in kinds:
            text = f"range test, {kind}: compiling, then running"
            bar.update(progress, description=text)
            test = test_range(task, orders, name, kind, keep_prob, args.steps)
            try:
                ranges[kind], suggestions[kind] = test, suggest(test)
            except ValueError as error:  # its advice after ":" is for the library
                advice = "try other --steps, --seeds or --keep-prob"
                fault = str(error).partition(": ")[0]
                sys.exit(f"range test, {kind}: {fault}; {advice}")
            arms += make_arms(name, kind, suggestions[kind], steps, keep_prob)
            bar.advance(progress)
    console.print(f"Suggested learning rates for {name}:")
    for kind, suggestion in suggestions.items():
        rates = suggestion._asdict().items()
        listed = ", ".join(f"{method} {rate:.2g}" for method, rate in rates)
        console.print(f"{kind}: {listed}")
    orders, accuracies, training = batch_orders(args.seeds, args.epochs), [], {}
    with progress_bar() as bar:
        progress = bar.add_task("", total=len(arms))
        for arm in arms:
            text = f"training {arm.kind}, {arm.schedule}"
            if arm.kind not in training:
                text += ": compiling, then running"
                tools = task, orders, name, arm.kind, keep_prob
                training[arm.kind] = make_training(*tools)
            bar.update(progress, description=text)
            accuracies.append(training[arm.kind](rates_of(arm, steps)))
            bar.advance(progress)
    results = summarize(arms, accuracies, suggestions)
    console.print(make_table(results))
    console.print(
        f"± is a 95 % interval over {args.seeds} seeds, of differences paired by "
        f"seed; accuracy is on the test set after {args.epochs} epochs.\n\n"
        f"{verdict(results)}{options.QUICK * args.quick}\n"
    )
    names = "optimizer", "seeds", "epochs", "keep_prob", "steps"
    config = {key: getattr(args, key) for key in names} | RANGE
    rows = [r._asdict() for r in results]
    more = {kind: rates._asdict() for kind, rates in suggestions.items()}
    options.save(
        args.output / "range_test.json",
        lambda path: write_report(config, rows, path, suggestions=more),
    )
    options.save(
        args.output / "range_test.png",
        lambda path: draw(ranges, suggestions, arms, accuracies, path),
    )
    console.print(f"Wrote {args.output}/range_test.png and .json")


if __name__ == "__main__":
    main()
