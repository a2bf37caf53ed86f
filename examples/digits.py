"""Learning Rate Dropout (LRD) on the 1,797 handwritten digits of scikit-learn.

    python examples/digits.py            # about 3 minutes on 2 CPU cores
    python examples/digits.py --quick    # a short look
    python examples/digits.py --optimizers adam sgdm --keep-prob 0.3 --seeds 32

A small Flax NNX CNN is trained with the five optimizers of the paper, each in four
arms:

- "dense": the plain optimizer, which updates every element at every step;
- "dense, half the rate": dense at keep_prob x the learning rate;
- "LRD", at the rate of dense. It shrinks the mean step by keep_prob. So a gain over
  dense may come from a smaller step alone, unless it is a gain over half the rate too;
- "LRD, unbiased": the same mean step as dense. This is LRD at the rate / keep_prob, so
  it shares a compiled program with LRD. For these optimizers it is what
  `learning_rate_dropout(..., unbiased=True)` does at the rate.

All seeds of an arm train at once, by `vmap`. The arms of one seed share its initial
weights and its batches, so differences are paired by seed.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import options

if __name__ == "__main__":  # before the imports that take seconds
    options.end_on_ctrl_c()
    options.digits()

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator
from report import progress_bar, save_picture, write_report
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import lrd_optax

TRAIN_SIZE, BATCH = 1200, 100
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgdm": lambda rate: optax.sgd(rate, momentum=0.9),
    "rmsprop": lambda rate: optax.rmsprop(rate, decay=0.99),
    "adam": optax.adam,
    "amsgrad": optax.amsgrad,
    "radam": optax.radam,
}
STYLES = {  # colors of Okabe and Ito
    "dense": {"color": "#0072B2", "linestyle": "-"},
    "LRD": {"color": "#D55E00", "linestyle": "-"},
    "LRD, unbiased": {"color": "#CC79A7", "linestyle": "-."},
}
LOWER_STYLE = {"color": "#009E73", "linestyle": "--"}  # of "dense, half the rate"
BAND = {"alpha": 0.2, "linewidth": 0}


class Arm(NamedTuple):
    optimizer: str
    name: str
    rate: float
    has_lrd: bool


class Curves(NamedTuple):
    accuracy: np.ndarray  # on the test set, per cent, [epochs, seeds]
    loss: np.ndarray  # training loss, mean of the epoch's steps, [epochs, seeds]
    ms_per_step: float  # one step of all seeds together


class Result(NamedTuple):
    """The results of an arm: means over the seeds, half widths of 95 % intervals."""

    optimizer: str
    arm: str
    rate: float
    accuracy_percent: list[float]  # after each epoch
    accuracy_half_width: list[float]
    train_loss: list[float]
    ms_a_step_of_all_seeds: float


class Difference(NamedTuple):
    """The final accuracy of an arm minus that of another, in points."""

    optimizer: str
    arm: str
    minus: str
    points: float
    half_width: float


class CNN(nnx.Module):
    """A 3x3 convolution, a 2x2 one with stride 2, a dense head: 5,082 parameters.

    Under `vmap` over weights a convolution becomes a grouped one. On a CPU, XLA runs
    that more than ten times slower than the product of patches and a matrix used here.
    """

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Linear(3 * 3, 16, use_bias=False, rngs=rngs)
        self.conv2 = nnx.Linear(2 * 2 * 16, 32, use_bias=False, rngs=rngs)
        self.head = nnx.Linear(3 * 3 * 32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # [batch, 8, 8, 1]
        x = nnx.relu(self.conv1(patches(x, size=3, stride=1)))  # [batch, 6, 6, 16]
        x = nnx.relu(self.conv2(patches(x, size=2, stride=2)))  # [batch, 3, 3, 32]
        return self.head(x.reshape(len(x), -1))


def patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    shifted = [
        x[:, i : i + height : stride, j : j + width : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1)


def load_data() -> list[np.ndarray]:
    """Returns training images, test images, training labels, test labels."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    return train_test_split(x, y, train_size=TRAIN_SIZE, stratify=y, random_state=0)


def batch_orders(seed: int, epochs: int) -> np.ndarray:
    """Returns which images make up each batch, [epochs, steps, batch]."""
    images = np.tile(np.arange(TRAIN_SIZE, dtype=np.int32), (epochs, 1))
    shuffled = np.random.default_rng(seed).permuted(images, axis=1)
    return shuffled.reshape(epochs, -1, BATCH)


def make_optimizer(arm: Arm, rate: Any, keep_prob: float, key: jax.Array):
    base = OPTIMIZERS[arm.optimizer](rate)
    if not arm.has_lrd:
        return base
    dropout = lrd_optax.learning_rate_dropout(keep_prob=keep_prob, key=key)
    return optax.chain(base, dropout)


def make_arms(
    names: list[str], rates: dict[str, float], keep_prob: float, lower_rate: bool
) -> list[Arm]:
    arms = []
    for name in dict.fromkeys(names):
        rate = rates[name]
        arms.append(Arm(name, "dense", rate, False))
        if lower_rate:
            lower = options.lower_rate(keep_prob)
            arms.append(Arm(name, lower, rate * keep_prob, False))
        arms.append(Arm(name, "LRD", rate, True))
        arms.append(Arm(name, "LRD, unbiased", rate / keep_prob, True))
    return arms


def train(arms: list[Arm], seeds: int, epochs: int, keep_prob: float) -> list[Curves]:
    train_x, test_x, train_y, test_y = map(jnp.asarray, load_data())
    graph, _ = nnx.split(nnx.eval_shape(lambda: CNN(nnx.Rngs(0))))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    init_keys, mask_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    orders = np.stack([batch_orders(seed, epochs) for seed in range(seeds)], axis=1)

    @jax.jit
    @jax.vmap
    def initial_params(key):
        return nnx.state(CNN(nnx.Rngs(key)), nnx.Param)

    @jax.jit
    @jax.vmap
    def accuracy(params):
        predictions = nnx.merge(graph, params)(test_x).argmax(-1)
        return 100 * (predictions == test_y).mean()

    def loss_of(params, batch):
        logits, labels = nnx.merge(graph, params)(train_x[batch]), train_y[batch]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def compile_epoch(arm, *args):
        def epoch(carry, order, mask_key, rate):
            optimizer = make_optimizer(arm, rate, keep_prob, mask_key)

            def step(carry, batch):
                params, state = carry
                loss, grads = jax.value_and_grad(loss_of)(params, batch)
                updates, state = optimizer.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), loss

            carry, losses = jax.lax.scan(step, carry, order)
            return carry, losses.mean()

        all_seeds = jax.vmap(epoch, in_axes=(0, 0, 0, None))
        return jax.jit(all_seeds, donate_argnums=0).lower(*args).compile()

    def train_arm(arm):
        def initial_state(params, key):
            return make_optimizer(arm, rate, keep_prob, key).init(params)

        rate, params = jnp.float32(arm.rate), initial_params(init_keys)
        carry = params, jax.vmap(initial_state)(params, mask_keys)
        program = arm.optimizer, arm.has_lrd  # not the rate, which is an argument
        text = f"{arm.optimizer}, {arm.name}"
        if program not in programs:
            bar.update(task, description=f"{text}: compiling")
            programs[program] = compile_epoch(arm, carry, orders[0], mask_keys, rate)
        bar.update(task, description=text)
        accuracies, losses, seconds = [], [], []
        for order in orders:
            start = time.perf_counter()
            carry, loss = programs[program](carry, order, mask_keys, rate)
            losses.append(np.asarray(loss))  # waits for the result
            seconds.append(time.perf_counter() - start)
            accuracies.append(np.asarray(accuracy(carry[0])))
            bar.advance(task)
        ms_per_step = 1e3 * float(np.median(seconds)) / (TRAIN_SIZE // BATCH)
        return Curves(np.stack(accuracies), np.stack(losses), ms_per_step)

    programs: dict[tuple[str, bool], Callable] = {}
    with progress_bar() as bar:
        bar.console.print("Each optimizer is compiled twice: without and with LRD.")
        task = bar.add_task("compiling initial weights", total=len(arms) * epochs)
        return [train_arm(arm) for arm in arms]


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and half width of the 95 % interval (Student t) over the seeds."""
    seeds = values.shape[-1]
    error = values.std(-1, ddof=1) / math.sqrt(seeds)
    return values.mean(-1), stats.t.ppf(0.975, seeds - 1) * error


def summarize(arms: list[Arm], curves: list[Curves]) -> list[Result]:
    results = []
    for arm, c in zip(arms, curves, strict=True):
        mean, half = interval(c.accuracy)
        numbers = mean.tolist(), half.tolist(), c.loss.mean(-1).tolist()
        results.append(Result(*arm[:3], *numbers, c.ms_per_step))
    return results


def compare(
    arms: list[Arm], curves: list[Curves], keep_prob: float
) -> list[Difference]:
    final = {
        (arm.optimizer, arm.name): c.accuracy[-1]
        for arm, c in zip(arms, curves, strict=True)
    }
    lower = options.lower_rate(keep_prob)
    pairs = (("LRD", "dense"), ("LRD", lower), ("LRD, unbiased", "dense"))
    return [
        Difference(name, first, second, float(mean), float(half))
        for name in dict.fromkeys(arm.optimizer for arm in arms)
        for first, second in pairs
        if (name, second) in final
        for mean, half in [interval(final[name, first] - final[name, second])]
    ]


def make_table(results: list[Result]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    headers = "optimizer", "arm", "rate", "accuracy, %", "train loss", "ms/step"
    for number, header in enumerate(headers):
        justify = "left" if number < 2 else "right"
        table.add_column(header, justify=justify, no_wrap=True)
    for r in results:
        table.add_row(
            r.optimizer,
            r.arm,
            f"{r.rate:.3g}",
            f"{r.accuracy_percent[-1]:.2f} ± {r.accuracy_half_width[-1]:.2f}",
            f"{r.train_loss[-1]:.3g}",
            f"{r.ms_a_step_of_all_seeds:.1f}",
            end_section=r.arm == "LRD, unbiased",
        )
    return table


def make_difference_table(differences: list[Difference]) -> Table:
    pairs = dict.fromkeys((d.arm, d.minus) for d in differences)
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("optimizer", no_wrap=True)
    for first, second in pairs:
        # In two lines, since the name of an arm may have a comma in it.
        table.add_column(f"{first}\nminus {second}", justify="right", no_wrap=True)
    for name in dict.fromkeys(d.optimizer for d in differences):
        row = [d for d in differences if d.optimizer == name]
        table.add_row(name, *(f"{d.points:+.2f} ± {d.half_width:.2f}" for d in row))
    return table


def verdict(differences: list[Difference]) -> str:
    """Says in one sentence what the paired differences show."""
    found: dict[str, list[str]] = {}
    for d in differences:
        if abs(d.points) > d.half_width:
            word = "better" if d.points > 0 else "worse"
            text = f"{d.arm} is {word} than {d.minus} with"
            found.setdefault(text, []).append(d.optimizer)
    clear = "; ".join(f"{text} {' and '.join(names)}" for text, names in found.items())
    number, count = len(differences), sum(map(len, found.values()))
    return (
        f"{clear or 'No arm is clearly better or worse'}: {count} of {number} intervals"
        f" of differences exclude 0 (chance alone gives about {number * 0.05:.2g})."
    )


def draw(
    results: list[Result], differences: list[Difference], seeds: int, path: Path
) -> None:
    names = list(dict.fromkeys(r.optimizer for r in results))
    columns = min(3, len(names) + 1)
    rows = math.ceil((len(names) + 1) / columns)
    figure = Figure(figsize=(3 * columns, 2.7 * rows + 1), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    panels, summary = dict(zip(names, axes, strict=False)), axes[len(names)]
    for r in results:
        panel, style = panels[r.optimizer], STYLES.get(r.arm, LOWER_STYLE)
        half = np.array(r.accuracy_half_width)
        error, epochs = 100 - np.array(r.accuracy_percent), np.arange(1, len(half) + 1)
        panel.plot(epochs, error, label=r.arm, **style)
        band = {"color": style["color"], **BAND}
        panel.fill_between(epochs, error - half, error + half, **band)
    final = [100 - r.accuracy_percent[-1] for r in results]
    for name, panel in panels.items():
        panel.set(title=name, xlabel="epoch", ylabel="test error (%), log scale")
        panel.set_yscale("log")
        # The errors of the first epochs, up to 90 %, would flatten all later ones.
        panel.set_ylim(0.7 * min(final), max(15, 1.3 * max(final)))
        panel.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50, 100]))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.3)
    draw_differences(differences, names, summary)
    for unused in axes[len(names) + 1 :]:
        unused.set_axis_off()
    lines, labels = axes[0].get_legend_handles_labels()
    lines.append(Patch(color="gray", **BAND))
    labels.append(f"band: 95 % interval over {seeds} seeds")
    place: dict[str, Any] = {"frameon": False, "ncols": columns}
    figure.legend(lines, labels, loc="outside upper center", **place)
    marks, labels = summary.get_legend_handles_labels()
    figure.legend(marks, labels, loc="outside lower center", **place)
    save_picture(figure, path, dpi=150)


def draw_differences(
    differences: list[Difference], names: list[str], panel: Axes
) -> None:
    pairs = list(dict.fromkeys((d.arm, d.minus) for d in differences))
    for number, pair in enumerate(pairs):
        shown = [d for d in differences if (d.arm, d.minus) == pair]
        panel.errorbar(
            [d.points for d in shown],
            np.arange(len(names)) + 0.25 * (number - (len(pairs) - 1) / 2),
            xerr=[d.half_width for d in shown],
            fmt="os^"[number],
            ms=4,
            color=STYLES[pair[0]]["color"],
            fillstyle="full" if pair[1] == "dense" else "none",
            label=" minus ".join(f'"{name}"' if "," in name else name for name in pair),
        )
    panel.axvline(0, color="black", lw=0.8)
    panel.set_yticks(np.arange(len(names)), names)
    panel.invert_yaxis()
    panel.set(title="differences, 95 % intervals", xlabel="difference (points)")
    panel.grid(alpha=0.3, axis="x")


def main() -> None:
    args = options.digits()
    rates = options.RATES | dict(args.learning_rates)
    arms = make_arms(args.optimizers, rates, args.keep_prob, not args.no_lower_rate)
    config = {name: getattr(args, name) for name in ("seeds", "epochs", "keep_prob")}
    curves = train(arms, **config)
    results = summarize(arms, curves)
    differences = compare(arms, curves, args.keep_prob)
    console = Console(highlight=False)
    console.print(make_table(results))
    lower = options.lower_rate(args.keep_prob)
    equal = "" if args.no_lower_rate else f' "{lower}" has the mean step of LRD.'
    console.print(
        f"± is a 95 % interval over {args.seeds} seeds; accuracy is on the test set;"
        " train loss is the mean of the last epoch; ms/step is one step of all"
        f" {args.seeds} seeds together, {BATCH} images each, without compilation."
        f'{equal} "LRD, unbiased" has the mean step of dense. Differences of accuracy,'
        " in points, paired by seed:"
    )
    console.print(make_difference_table(differences))
    console.print(f"{verdict(differences)}{options.QUICK * args.quick}\n")
    config |= {"batch": BATCH, "train_images": TRAIN_SIZE}
    rows = [r._asdict() for r in results]
    more = [d._asdict() for d in differences]
    options.save(
        args.output / "digits.json",
        lambda path: write_report(config, rows, path, differences=more),
    )
    options.save(
        args.output / "digits.png",
        lambda path: draw(results, differences, args.seeds, path),
    )
    console.print(f"Wrote {args.output}/digits.png and .json")


if __name__ == "__main__":
    main()
