"""Growing a network: Learning Rate Dropout (LRD) makes the copied units differ.

    python examples/grow.py                         # about a minute on 2 CPU cores
    python examples/grow.py --quick                 # a short look
    python examples/grow.py --data fashion-mnist    # 4 to 8 minutes

A small network is trained, then it gets 4 copies of each hidden unit, and the outgoing
weights are divided by 4 (Net2WiderNet of Chen, Goodfellow and Shlens, 2016). It is
still the same function. But copies get equal gradients, so the plain optimizer keeps
them copies, and the added width is of no use. LRD gives each weight its own mask. So
copies separate in a few steps, the function is not disturbed at the moment of growth,
and there is no size of noise to choose. These arms go on from the same narrow network:

- "dense": copies and the plain optimizer;
- "LRD, 10 steps" and "LRD, 100 steps": LRD in the first steps only, then dense;
- "LRD throughout";
- "noise": dense, with Gaussian noise on the incoming weights of all copies but the
  first. Its size is relative to the standard deviation of the weights of that layer.

"From scratch" is the wide network trained for all steps, those of the narrow network
included. Every arm begins with a new optimizer state and has a constant learning rate.
LRD for all steps halves the mean step, and copies train well at other rates than
distinct units. So kinds of arms have rates of their own, which did best on a held-out
part of the training set. The highest of them raise the error for some steps. All seeds
of an arm train at once, by `vmap`. The arms of one seed share its narrow network and
its batches.

LRD separates copies by their steps. So the copies of a unit with no gradient stay
alike, such as those of a ReLU that is 0 for all images. These networks have GELUs. The
digits are so few that the narrow network soon fits them. So it grows early, when more
width still matters.
"""

import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import options

if __name__ == "__main__":  # before the imports that take seconds
    options.end_on_ctrl_c()
    options.grow()

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits import BAND, interval, load_data
from fashion_mnist import DEBIAN, load_folder
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator
from report import progress_bar, save_picture, write_report
from rich import box
from rich.console import Console
from rich.table import Table

import lrd_optax

FACTOR = 4  # how many copies there are of each hidden unit after growth
CLASSES = 10
# Two units are the same if none of their incoming weights differ by more than this part
# of the largest weight in the layer. Copies that are trained densely do not stay equal
# for ever: rounding differs between them, and training makes small differences grow. A
# unit counts when it differs by more than that, and enough to be of some use.
TOLERANCE = 1e-3
COUNTED = (1, 10, 100)  # the table has the number of distinct units after these steps
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgdm": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
}


class Rates(NamedTuple):
    """Learning rates of the narrow network and of the kinds of arms."""

    narrow: float
    dense: float
    split: float  # dense after LRD in the first steps, or after noise
    throughout: float
    scratch: float


class Task(NamedTuple):
    hidden: int  # units of the narrow network
    batch: int
    narrow_steps: int
    wide_steps: int
    rates: dict[str, Rates]


# Each had the best mean accuracy of 4 to 7 rates on a held-out part of the training
# set: 300 of the digits with 16 other seeds, 10,000 of fashion-mnist with 6. `split`
# did best in the mean of LRD for 10 steps and noise of the sizes 0.1 and 1.
DIGITS = {
    "sgdm": Rates(0.3, dense=0.3, split=0.5, throughout=0.7, scratch=0.02),
    "adam": Rates(0.03, dense=0.003, split=0.1, throughout=0.1, scratch=0.003),
}
FASHION = {
    "sgdm": Rates(0.1, dense=0.05, split=0.2, throughout=0.5, scratch=0.1),
    "adam": Rates(0.01, dense=0.001, split=0.01, throughout=0.03, scratch=0.01),
}
TASKS = {
    "digits": Task(8, 100, narrow_steps=50, wide_steps=950, rates=DIGITS),
    "fashion-mnist": Task(16, 250, narrow_steps=720, wide_steps=1200, rates=FASHION),
}


class Arm(NamedTuple):
    name: str
    kind: str  # the field of Rates
    lrd_steps: int = 0
    noise: float = 0.0


NARROW = "narrow network"
SHORT = Arm("LRD, 10 steps", "split", lrd_steps=10)
ARMS = (
    Arm("dense", "dense"),
    SHORT,
    Arm("LRD, 100 steps", "split", lrd_steps=100),
    Arm("LRD throughout", "throughout", lrd_steps=2**31 - 1),
    *(Arm(f"noise {x:g}", "split", noise=x) for x in (1e-4, 1e-3, 0.01, 0.1, 1.0)),
    Arm("from scratch", "scratch"),
)
STYLES = (  # of the arms in the picture, in colors of Okabe and Ito
    {"color": "black", "label": "narrow network"},
    {"color": "#CC79A7", "ls": ":", "label": "wide from scratch"},
    {"color": "#0072B2", "label": "copies, dense"},
    {"color": "#009E73", "ls": "--", "label": "copies, best noise"},
    {"color": "#D55E00", "label": "copies, LRD for 10 steps"},
)


class Data(NamedTuple):
    train_x: Any  # [images, pixels]
    test_x: Any
    train_y: Any
    test_y: Any


class Run(NamedTuple):
    """What an arm trains with. It is not compiled in, so the arms share programs."""

    batches: Any  # [seeds, steps, batch], which images are in each batch
    key: Any  # [seeds], for the masks
    rate: Any
    keep_prob: Any
    lrd_steps: Any


AXES = 0, Run(batches=0, key=0, rate=None, keep_prob=None, lrd_steps=None)  # of seeds


class Curves(NamedTuple):
    accuracy: Any  # on the test set, per cent, [points, seeds]
    loss: Any  # on the test set
    distinct: Any  # number of distinct hidden units


class Result(NamedTuple):
    """The results of an arm: means over the seeds, half widths of 95 % intervals."""

    optimizer: str
    arm: str
    kind: str
    rate: float
    steps: list[int]  # after which the four curves were measured
    accuracy_percent: list[float]
    accuracy_half_width: list[float]
    loss: list[float]
    distinct_units: list[float]
    minus_dense: tuple[float, float]  # final accuracy, paired by seed, and half width
    minus_short: tuple[float, float]  # the same, against LRD for 10 steps


class MLP(nnx.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.gelu(self.hidden(x)))


def abstract(*sizes: int) -> MLP:
    """Returns a network without weights."""
    return nnx.eval_shape(lambda: MLP(*sizes, rngs=nnx.Rngs(0)))


def widen(model: MLP, factor: int) -> MLP:
    """Returns the same function as a network with `factor` copies of each unit."""
    hidden, out = model.hidden, model.out
    sizes = hidden.in_features, factor * hidden.out_features, out.out_features
    wide = abstract(*sizes)
    wide.hidden.kernel = nnx.Param(jnp.tile(hidden.kernel[...], (1, factor)))
    wide.hidden.bias = nnx.Param(jnp.tile(hidden.bias[...], factor))
    wide.out.kernel = nnx.Param(jnp.tile(out.kernel[...] / factor, (factor, 1)))
    wide.out.bias = nnx.Param(out.bias[...])
    return wide


def add_noise(wide: MLP, first: int, size: Any, key: jax.Array) -> None:
    """Adds noise to the incoming weights of all units but the `first` ones."""
    kernel = wide.hidden.kernel[...]
    noise = size * kernel.std() * jax.random.normal(key, kernel.shape, kernel.dtype)
    wide.hidden.kernel = nnx.Param(kernel.at[:, first:].add(noise[:, first:]))


def distinct_units(model: MLP) -> jax.Array:
    """Counts the hidden units that are not the same as an earlier one."""
    weights = jnp.vstack([model.hidden.kernel[...], model.hidden.bias[...][None]])
    gaps = jnp.abs(weights[:, :, None] - weights[:, None, :]).max(0)
    same = gaps <= TOLERANCE * jnp.abs(weights).max()
    return jnp.sum(~jnp.tril(same, -1).any(1))


def make_optimizer(name: str, run: Run) -> optax.GradientTransformation:
    def keep_prob(count):  # at 1, the updates are those of the plain optimizer
        return jnp.where(count < run.lrd_steps, run.keep_prob, 1.0)

    dropout = lrd_optax.learning_rate_dropout(keep_prob, key=run.key)
    return optax.chain(OPTIMIZERS[name](run.rate), dropout)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@partial(jax.jit, static_argnames=("name", "graph"))
def advance(name, graph, carry, run, data, first, stop):
    """Trains all seeds from step `first` to step `stop`, any two numbers."""

    def one_seed(carry, run):
        optimizer = make_optimizer(name, run)

        def step(number, carry):
            params, state = carry
            batch = run.batches[number]

            def loss_of(params):
                logits = nnx.merge(graph, params)(data.train_x[batch])
                return cross_entropy(logits, data.train_y[batch])

            updates, state = optimizer.update(jax.grad(loss_of)(params), state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(first, stop, step, carry)

    return jax.vmap(one_seed, AXES)(carry, run)


@partial(jax.jit, static_argnames="graph")
def measure(graph, params, data):
    # In parts that fit into the cache, which is twice as fast.
    parts = max(n for n in range(1, 41) if len(data.test_y) % n == 0)
    test_x, test_y = (x.reshape(parts, -1, *x.shape[1:]) for x in data[1::2])

    def one_seed(params):
        model = nnx.merge(graph, params)

        def part(images, labels):
            logits = model(images)
            return (logits.argmax(-1) == labels).mean(), cross_entropy(logits, labels)

        right, loss = jax.lax.map(lambda pair: part(*pair), (test_x, test_y))
        return Curves(100 * right.mean(), loss.mean(), distinct_units(model))

    return jax.vmap(one_seed)(params)


def train(name, graph, params, run: Run, data: Data, begin: int, points: list[int]):
    """Trains from step `begin` on; returns the weights and curves, by `points`."""
    init = jax.vmap(lambda params, run: make_optimizer(name, run).init(params), AXES)
    carry, rows = (params, init(params, run)), []
    for first, stop in itertools.pairwise([0, *points]):
        carry = advance(name, graph, carry, run, data, begin + first, begin + stop)
        rows.append(jax.device_get(measure(graph, carry[0], data)))
    return carry[0], Curves(*map(np.stack, zip(*rows, strict=True)))


def make_points(steps: int) -> list[int]:
    """Returns the steps to measure after: some close to growth, some evenly spaced."""
    close = [*COUNTED, 2, 3, 5, 20, 30, 50, 70]
    even = np.linspace(0, steps, 13).round().astype(int).tolist()
    return sorted({*even, *(step for step in close if step < steps)})


def batch_orders(seed: int, images: int, batch: int, steps: int) -> np.ndarray:
    """Returns which images make up each batch, [steps, batch]."""
    per_epoch = images // batch
    order = np.tile(np.arange(images, dtype=np.int32), (-(-steps // per_epoch), 1))
    order = np.random.default_rng(seed).permuted(order, axis=1)
    return order[:, : per_epoch * batch].reshape(-1, batch)[:steps]


def train_all(
    data: Data, task: Task, names: list[str], seeds: int, keep_prob: float
) -> list[tuple[str, Arm, list[int], Curves]]:
    inputs, images = data.train_x.shape[1], len(data.train_y)
    sizes = [(inputs, units * task.hidden, CLASSES) for units in (1, FACTOR)]
    narrow_graph, wide_graph = (nnx.graphdef(abstract(*size)) for size in sizes)

    def initial_params(size):  # with the generator that compiles fastest
        keys = [jax.random.key(seed, impl="rbg") for seed in range(seeds)]
        states = [nnx.state(MLP(*size, nnx.Rngs(key)), nnx.Param) for key in keys]
        return jax.tree.map(lambda *x: jnp.stack(x), *states)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, None))
    def grow(params, key, noise):
        wide = widen(nnx.merge(narrow_graph, params), FACTOR)
        add_noise(wide, task.hidden, noise, key)
        return nnx.state(wide, nnx.Param)

    numbers = jnp.arange(2 * seeds).reshape(seeds, 2).T
    mask_keys, noise_keys = jax.vmap(jax.vmap(jax.random.key))(numbers)
    steps = task.narrow_steps + task.wide_steps
    orders = [batch_orders(seed, images, task.batch, steps) for seed in range(seeds)]
    data, orders = jax.tree.map(jnp.asarray, (data, np.stack(orders)))
    # The first step in the order of the batches, and when to measure after it.
    first = {"narrow": (0, task.narrow_steps), "scratch": (0, steps)}
    grown = task.narrow_steps, task.wide_steps
    results, compiled = [], set()

    def train_arm(name, arm, graph, params):
        text = f"{name}, {arm.name}"
        if (name, graph) not in compiled:
            compiled.add((name, graph))
            text += ": compiling, then training"
        bar.update(bar_task, description=text)
        rate = getattr(task.rates[name], arm.kind)
        numbers = jnp.float32(rate), jnp.float32(keep_prob), jnp.int32(arm.lrd_steps)
        begin, length = first.get(arm.kind, grown)
        args = Run(orders, mask_keys, *numbers), data, begin, make_points(length)
        params, curves = train(name, graph, params, *args)
        results.append((name, arm, args[-1], curves))
        bar.advance(bar_task)
        return params

    with progress_bar() as bar:
        bar.console.print("Each optimizer is compiled twice: narrow and wide.")
        total = len(names) * (1 + len(ARMS))
        bar_task = bar.add_task("compiling initial weights", total=total)
        for name in names:
            start = initial_params(sizes[0])
            narrow = train_arm(name, Arm(NARROW, "narrow"), narrow_graph, start)
            for arm in ARMS:
                start = grow(narrow, noise_keys, arm.noise)
                start = initial_params(sizes[1]) if arm.kind == "scratch" else start
                train_arm(name, arm, wide_graph, start)
    return results


def summarize(
    runs: list[tuple[str, Arm, list[int], Curves]], task: Task
) -> list[Result]:
    final = {(name, arm.name): c.accuracy[-1] for name, arm, _, c in runs}
    results = []
    for name, arm, points, c in runs:
        others = final[name, "dense"], final[name, SHORT.name]
        gains = [tuple(map(float, interval(c.accuracy[-1] - o))) for o in others]
        curves = *interval(c.accuracy), c.loss.mean(-1), c.distinct.mean(-1)
        rate = getattr(task.rates[name], arm.kind)
        lists = [curve.tolist() for curve in curves]
        results.append(Result(name, *arm[:2], rate, points, *lists, *gains))
    return results


def load(data: str) -> tuple[Data, Task]:
    """Returns the data and the task; ends the program if they cannot be read."""
    if data == "digits":
        train_x, test_x, *labels = load_data()
        flat = (x.reshape(len(x), -1) for x in (train_x, test_x))
        return Data(*flat, *(y.astype(np.int32) for y in labels)), TASKS["digits"]
    folder, task = (
        DEBIAN if data == "fashion-mnist" else Path(data),
        TASKS["fashion-mnist"],
    )
    try:
        loaded = Data(*load_folder(folder))
    except ValueError as error:
        hint = "; Debian's package dataset-fashion-mnist has these files"
        sys.exit(f"--data: {error}{hint * (data == 'fashion-mnist')}")
    if len(loaded.train_y) < task.batch:
        sys.exit(f"--data must have {task.batch} images or more, got {data}")
    return loaded, task


def make_table(results: list[Result]) -> Table:
    """Makes the table of one optimizer."""
    table = Table(box=box.SIMPLE, pad_edge=False, padding=0)
    table.title, table.title_justify = results[0].optimizer, "left"
    counts = [f"units {COUNTED[0]}", *map(str, COUNTED[1:]), "end"]
    for number, header in enumerate(
        ["arm", "rate", "accuracy, %", "minus dense", "loss", *counts]
    ):
        table.add_column(header, justify="right" if number else "left", no_wrap=True)
    for r in results:
        narrow, dense = r.kind == "narrow", r.arm == "dense"
        gain = "{:+.2f} ± {:.2f}".format(*r.minus_dense)
        at = [r.steps.index(step) for step in COUNTED] if not narrow else []
        counts = [f"{r.distinct_units[index]:.1f}" for index in (*at, -1)]
        table.add_row(
            r.arm,
            f"{r.rate:g}",
            f"{r.accuracy_percent[-1]:.2f} ± {r.accuracy_half_width[-1]:.2f}",
            "" if dense else gain,
            # The narrow network is measured before growth, the others right after it.
            f"{r.loss[-1 if narrow else 0]:.4f}",
            *[""] * (4 - len(counts)),
            *counts,
            end_section=narrow,
        )
    return table


def arms_of(results: list[Result], name: str) -> tuple[dict[str, Result], Result]:
    """Returns the results of an optimizer by arm, and those of the best noise."""
    arms = {r.arm: r for r in results if r.optimizer == name}
    noise = [r for r in arms.values() if r.arm.startswith("noise")]
    return arms, max(noise, key=lambda r: r.accuracy_percent[-1])


def verdict(results: list[Result]) -> str:
    """Says in one sentence what the paired differences show."""

    def compare(gain, half, other):
        word = "does better than" if gain > half else "does worse than"
        word = word if abs(gain) > half else "cannot be told apart from"
        return f"{word} {other} ({gain:+.2f} ± {half:.2f} points)"

    parts = []
    for name in dict.fromkeys(r.optimizer for r in results):
        arms, noise = arms_of(results, name)
        others = noise, arms["from scratch"]
        other, scratch = (compare(*r.minus_short, "LRD") for r in others)
        parts.append(
            f"with {name}, LRD for 10 steps "
            f"{compare(*arms[SHORT.name].minus_dense, 'dense copies')}, noise of the "
            f"best size ({noise.arm.split()[1]}) {other}, and training from scratch "
            f"{scratch}"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def draw(results: list[Result], task: Task, seeds: int, path: Path) -> None:
    names = list(dict.fromkeys(r.optimizer for r in results))
    figure = Figure(figsize=(4.5 * max(len(names), 1.4), 6.2), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False, sharey="row")
    for name, errors, units in zip(names, *panels, strict=True):
        arms, noise = arms_of(results, name)
        shown = NARROW, "from scratch", "dense", noise.arm, SHORT.name
        for arm, style in zip(shown, STYLES, strict=True):
            r, grown = arms[arm], arm not in shown[:2]
            steps = np.array(r.steps) + task.narrow_steps * grown
            error, half = 100 - np.array(r.accuracy_percent), r.accuracy_half_width
            errors.plot(steps, error, **style)
            band = {"color": style["color"], **BAND}
            errors.fill_between(steps, error - half, error + half, **band)
            if grown:
                units.plot(r.steps, r.distinct_units, **style)
        errors.axvline(task.narrow_steps, color="black", lw=0.8)
        white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        place = {"transform": errors.get_xaxis_transform(), "va": "top", "bbox": white}
        x = task.narrow_steps + task.wide_steps / 20
        errors.text(x, 0.96, f"widened {FACTOR}x", **place)
        errors.set(title=name, xlabel="training step", yscale="log")
        units.set(xlabel="step after growth, log scale from 1 on")
        units.set_xscale("symlog", linthresh=1, linscale=0.4)
        units.xaxis.set_major_formatter("{x:g}")
        for panel in (errors, units):
            panel.grid(alpha=0.3)
    final = [100 - r.accuracy_percent[-1] for r in results]
    errors, units = panels[:, 0]
    # The errors of the first steps, up to 90 %, would flatten all later ones.
    errors.set(ylabel="test error (%), log scale")
    errors.set_ylim(0.85 * min(final), 2.5 * max(final))
    errors.yaxis.set_major_locator(FixedLocator([1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50]))
    errors.yaxis.set_major_formatter("{x:g}")
    errors.yaxis.set_minor_locator(NullLocator())
    units.set(ylabel="distinct hidden units", ylim=(0, 1.08 * FACTOR * task.hidden))
    units.set_yticks([n * task.hidden for n in range(FACTOR + 1)])
    lines, labels = panels[0, 0].get_legend_handles_labels()
    lines.append(Patch(color="gray", **BAND))
    labels.append(f"band: 95 % interval over {seeds} seeds")
    place = {"loc": "outside upper center", "ncols": min(3, 1 + len(names))}
    figure.legend(lines, labels, frameon=False, **place)
    save_picture(figure, path, dpi=150)


def main() -> None:
    args = options.grow()
    data, task = load(args.data)
    task = task._replace(wide_steps=240) if args.quick else task
    shared = args.optimizers, args.seeds, args.keep_prob
    results = summarize(train_all(data, task, *shared), task)
    sizes = {"train_images": len(data.train_y), "test_images": len(data.test_y)}
    names = ("data", "optimizers", "seeds", "keep_prob", "quick")
    config = {name: getattr(args, name) for name in names} | sizes
    config |= {"factor": FACTOR, "tolerance": TOLERANCE} | task._asdict()
    config["rates"] = {name: task.rates[name]._asdict() for name in args.optimizers}
    console = Console(highlight=False)
    for name in args.optimizers:
        console.print(make_table([r for r in results if r.optimizer == name]))
    console.print(
        f"{task.hidden} hidden units became {FACTOR * task.hidden} after "
        f"{task.narrow_steps} steps, and {task.wide_steps} steps followed; accuracy is "
        f"on the test set; ± is a 95 % interval over {args.seeds} seeds, of "
        "differences paired by seed; loss is the test loss right after growth, and "
        "for the narrow network right before it; units are the hidden units that "
        "differ, that many steps after growth. The rates did best on held-out data, "
        "each for its kind of arm. The best noise is the best of five sizes on the "
        "test set, which favors noise."
        f"\n\n{verdict(results)}{options.QUICK * args.quick}\n"
    )
    rows = [r._asdict() for r in results]
    options.save(
        args.output / "grow.json", lambda path: write_report(config, rows, path)
    )
    options.save(
        args.output / "grow.png", lambda path: draw(results, task, args.seeds, path)
    )
    console.print(f"Wrote {args.output}/grow.png and .json")


if __name__ == "__main__":
    main()
