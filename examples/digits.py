"""Learning Rate Dropout (LRD) on the 1,797 handwritten digits of scikit-learn.

    python examples/digits.py            # about 100 seconds on 2 CPU cores
    python examples/digits.py --quick    # a short look
    python examples/digits.py --optimizers adam sgdm --keep-prob 0.3 --seeds 32

A small Flax NNX CNN is trained with the five optimizers of the paper, each in three
arms: "dense" (the plain optimizer), "control" (dense at keep_prob x the learning rate)
and "LRD". LRD shrinks the mean step by keep_prob. So a gain over the dense arm may come
from a smaller step alone, unless it is a gain over the control too. All seeds of an arm
train at once, by `vmap`. The arms of one seed share its initial weights and its
batches, so differences are paired by seed.
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
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from report import save_picture, write_report
from rich import box, progress
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
    "control": {"color": "#009E73", "linestyle": "--"},
    "LRD": {"color": "#D55E00", "linestyle": "-"},
}
LABELS = {
    "dense": "dense",
    "control": "control (dense, keep_prob x rate)",
    "LRD": "LRD",
}
BAND = {"alpha": 0.2, "linewidth": 0}


class Arm(NamedTuple):
    optimizer: str
    kind: str  # "dense", "control" or "LRD"
    rate: float


class Curves(NamedTuple):
    accuracy: np.ndarray  # on the test set, per cent, [epochs, seeds]
    loss: np.ndarray  # training loss, mean of the epoch's steps, [epochs, seeds]
    ms_per_step: float  # one step of all seeds together


class Result(NamedTuple):
    """The results of an arm: means over the seeds, half widths of 95 % intervals."""

    optimizer: str
    kind: str
    rate: float
    accuracy_percent: list[float]  # after each epoch
    accuracy_half_width: list[float]
    train_loss: list[float]
    ms_a_step_of_all_seeds: float
    lrd_minus_this: float  # points of final accuracy
    lrd_minus_this_half_width: float


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
    if arm.kind != "LRD":
        return base
    return optax.chain(base, lrd_optax.learning_rate_dropout(keep_prob, key=key))


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

    def train_arm(arm, on_epoch):
        def initial_state(params, key):
            return make_optimizer(arm, rate, keep_prob, key).init(params)

        rate, params = jnp.float32(arm.rate), initial_params(init_keys)
        carry = params, jax.vmap(initial_state)(params, mask_keys)
        program = arm.optimizer, arm.kind == "LRD"  # not the rate, which is an argument
        if program not in programs:
            programs[program] = compile_epoch(arm, carry, orders[0], mask_keys, rate)
        accuracies, losses, seconds = [], [], []
        for order in orders:
            start = time.perf_counter()
            carry, loss = programs[program](carry, order, mask_keys, rate)
            losses.append(np.asarray(loss))  # waits for the result
            seconds.append(time.perf_counter() - start)
            accuracies.append(np.asarray(accuracy(carry[0])))
            on_epoch()
        ms_per_step = 1e3 * float(np.median(seconds)) / (TRAIN_SIZE // BATCH)
        return Curves(np.stack(accuracies), np.stack(losses), ms_per_step)

    programs: dict[tuple[str, bool], Callable] = {}
    # On stderr, so that stdout can go to a file and hold the table alone.
    columns = (*progress.Progress.get_default_columns(), progress.MofNCompleteColumn())
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(arms) * epochs)
        curves = []
        for arm in arms:
            bar.update(task, description=f"{arm.optimizer + ' ' + arm.kind:15}")
            curves.append(train_arm(arm, lambda: bar.advance(task)))
    return curves


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and half width of the 95 % interval (Student t) over the seeds."""
    seeds = values.shape[-1]
    error = values.std(-1, ddof=1) / math.sqrt(seeds)
    return values.mean(-1), stats.t.ppf(0.975, seeds - 1) * error


def summarize(arms: list[Arm], curves: list[Curves]) -> list[Result]:
    pairs = list(zip(arms, curves, strict=True))
    lrd = {arm.optimizer: c.accuracy[-1] for arm, c in pairs if arm.kind == "LRD"}
    results = []
    for arm, c in pairs:
        mean, half = interval(c.accuracy)
        gain, gain_half = interval(lrd[arm.optimizer] - c.accuracy[-1])
        loss = c.loss.mean(-1).tolist()
        numbers = mean.tolist(), half.tolist(), loss, c.ms_per_step, float(gain)
        results.append(Result(*arm, *numbers, float(gain_half)))
    return results


def make_table(results: list[Result]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    headers = "optimizer arm rate accuracy,% LRD-this train_loss ms/step"
    for number, header in enumerate(headers.split()):
        justify = "left" if number < 2 else "right"
        table.add_column(header.replace("_", " "), justify=justify, no_wrap=True)
    for r in results:
        is_lrd = r.kind == "LRD"
        table.add_row(
            r.optimizer,
            r.kind,
            f"{r.rate:.3g}",
            f"{r.accuracy_percent[-1]:.2f} ± {r.accuracy_half_width[-1]:.2f}",
            ""
            if is_lrd
            else f"{r.lrd_minus_this:+.2f} ± {r.lrd_minus_this_half_width:.2f}",
            f"{r.train_loss[-1]:.3g}",
            f"{r.ms_a_step_of_all_seeds:.1f}",
            end_section=is_lrd,
        )
    return table


def verdict(results: list[Result]) -> str:
    """Says in one sentence what the paired differences show."""
    others = [r for r in results if r.kind != "LRD"]
    clear = [
        f"{'better' if r.lrd_minus_this > 0 else 'worse'} than {r.kind} {r.optimizer}"
        for r in others
        if abs(r.lrd_minus_this) > r.lrd_minus_this_half_width
    ]
    return (
        f"LRD is {', '.join(clear) or 'not clearly different from the other arms'}: "
        f"{len(clear)} of {len(others)} intervals of LRD-this exclude 0"
        f" (chance alone gives about {len(others) * 0.05:.2g})."
    )


def draw(results: list[Result], path: Path) -> None:
    names = list(dict.fromkeys(r.optimizer for r in results))
    kinds = list(dict.fromkeys(r.kind for r in results if r.kind != "LRD"))
    columns = min(3, len(names) + 1)
    rows = math.ceil((len(names) + 1) / columns)
    figure = Figure(figsize=(3 * columns, 2.7 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    panels, summary = dict(zip(names, axes, strict=False)), axes[len(names)]
    for r in results:
        panel, style = panels[r.optimizer], STYLES[r.kind]
        color, half = style["color"], np.array(r.accuracy_half_width)
        error, epochs = 100 - np.array(r.accuracy_percent), np.arange(1, len(half) + 1)
        panel.plot(epochs, error, label=LABELS[r.kind], **style)
        panel.fill_between(epochs, error - half, error + half, color=color, **BAND)
        if r.kind in kinds:
            y = names.index(r.optimizer) + 0.3 * kinds.index(r.kind)
            half = r.lrd_minus_this_half_width
            summary.errorbar(r.lrd_minus_this, y, xerr=half, color=color, fmt="o", ms=4)
    final = [100 - r.accuracy_percent[-1] for r in results]
    for name, panel in panels.items():
        panel.set(title=name, xlabel="epoch", ylabel="test error (%)", yscale="log")
        # The errors of the first epochs, up to 90 %, would flatten all later ones.
        panel.set_ylim(0.7 * min(final), max(15, 1.3 * max(final)))
        panel.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50, 100]))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.3)
    summary.axvline(0, color="black", lw=0.8)
    summary.set_yticks(np.arange(len(names)) + 0.15 * (len(kinds) - 1), names)
    summary.invert_yaxis()
    summary.set(title="LRD minus the other arms", xlabel="accuracy (points)")
    summary.grid(alpha=0.3, axis="x")
    for unused in axes[len(names) + 1 :]:
        unused.set_axis_off()
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=3, frameon=False)
    save_picture(figure, path, dpi=150)


def write_json(results: list[Result], config: dict[str, Any], path: Path) -> None:
    config = config | {"batch": BATCH, "train_images": TRAIN_SIZE}
    write_report(config, [r._asdict() for r in results], path)


def main() -> None:
    args = options.digits()
    rates = options.RATES | dict(args.learning_rates)
    arms = []
    for name in dict.fromkeys(args.optimizers):
        arms.append(Arm(name, "dense", rates[name]))
        if not args.no_lower_rate:
            arms.append(Arm(name, "control", rates[name] * args.keep_prob))
        arms.append(Arm(name, "LRD", rates[name]))
    config = {name: getattr(args, name) for name in ("seeds", "epochs", "keep_prob")}
    results = summarize(arms, train(arms, **config))
    console = Console(highlight=False)
    console.print(make_table(results))
    console.print(
        "control is dense at keep_prob x the rate, which gives the mean step of LRD;"
        f" ± is a 95 % interval over {args.seeds} seeds; accuracy is on the test"
        " set; LRD-this is the accuracy of LRD minus this arm's, paired by seed; train"
        f" loss is the mean of the last epoch; ms/step is one step of all"
        f" {args.seeds} seeds together, {BATCH} images each, without compilation."
    )
    console.print(f"\n{verdict(results)}\n")
    options.save(
        args.output / "digits.json", lambda path: write_json(results, config, path)
    )
    options.save(args.output / "digits.png", lambda path: draw(results, path))
    console.print(f"Wrote {args.output}/digits.png and .json")


if __name__ == "__main__":
    main()
