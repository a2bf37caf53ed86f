"""Learning-rate finders: what they suggest, how much that varies, how well it trains.

    python benchmarks/studies/lr_finders.py

The model is the small MLP of tests/data/lr_finders.json on the digits. Each of 64 seeds
has its own weights and batches. All rules read the same range test: ours, and those of
torch-lr-finder, Lightning and fastai. Theirs are written out here, each with its own
smoothing, pairing and stop, and without the points that it leaves out. (The originals
are run by benchmarks/record_lr_finders.py.) Then each seed is trained for 10 epochs at
the rate that its own curve suggested.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import lrd_optax

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/
from timing import write

SEEDS, STEPS, BATCH, EPOCHS = 64, 100, 100, 10
OPTIMIZERS: dict[str, tuple[Callable[..., Any], float, float]] = {
    "SGD": (optax.sgd, 1e-5, 10.0),
    "SGD+momentum": (lambda rate: optax.sgd(rate, momentum=0.9), 1e-5, 10.0),
    "Adam": (optax.adam, 1e-6, 1.0),
}
METHODS = ("steepest", "valley", "min_over_10")


def data() -> list[jax.Array]:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    parts = train_test_split(x, y, train_size=1200, stratify=y, random_state=0)
    return list(map(jnp.asarray, parts))


def initial_params(key: jax.Array) -> dict[str, jax.Array]:
    first, second = jax.random.split(key)
    return {
        "w1": jax.random.normal(first, (64, 32)) * (2 / 64) ** 0.5,
        "b1": jnp.zeros(32),
        "w2": jax.random.normal(second, (32, 10)) * (1 / 32) ** 0.5,
        "b2": jnp.zeros(10),
    }


def mean_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def range_tests(name: str, params: Any, orders: Any, x: Any, y: Any) -> Any:
    """Returns our result, without a stop, and the loss before the first update."""
    make_optimizer, low, high = OPTIMIZERS[name]

    def loss_fn(params, batch):
        return mean_loss(params, x[batch], y[batch])

    def one_seed(params, order):
        test = functools.partial(
            lrd_optax.lr_range_test,
            loss_fn,
            params,
            order,
            make_optimizer,
            min_value=low,
            max_value=high,
            num_steps=STEPS,
        )
        return test(), test(divergence=None).losses, loss_fn(params, order[0])

    return jax.vmap(one_seed)(params, orders)


def averaged(losses: np.ndarray, memory: float, late: int) -> np.ndarray:
    """Returns an exponential average. Its bias correction is `late` steps ahead."""
    total, averages = 0.0, []
    for step, loss in enumerate(losses):
        total = memory * total + (1 - memory) * loss
        averages.append(total / (1 - memory ** (step + 1 + late)))
    return np.array(averages)


def cut(losses: np.ndarray, times: float) -> np.ndarray:
    """Cuts the curve after the first point above `times` the best so far."""
    over = np.flatnonzero(losses > times * np.minimum.accumulate(losses))
    return losses[: over[0] + 1] if len(over) else losses


def torch_lr_finder(rates: np.ndarray, losses: np.ndarray) -> float:
    smooth = [losses[0]]
    for loss in losses[1:]:
        smooth.append(0.05 * loss + 0.95 * smooth[-1])
    curve = cut(np.array(smooth), 5)
    return rates[10:-5][np.gradient(curve[10:-5]).argmin()]


def lightning(rates: np.ndarray, losses: np.ndarray) -> float:
    curve = cut(averaged(losses, 0.98, late=1), 4)
    return rates[10:][np.gradient(curve[10:-1], rates[10 : len(curve) - 1]).argmin()]


def fastai_curve(rates: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, ...]:
    curve = cut(averaged(losses, 0.98, late=0), 4)
    return rates[10 : len(curve) - 5], curve[10:-5]


def fastai_steep(rates: np.ndarray, losses: np.ndarray) -> float:
    rates, curve = fastai_curve(rates, losses)
    return rates[(np.diff(curve) / np.diff(np.log(rates))).argmin()]


def fastai_minimum(rates: np.ndarray, losses: np.ndarray) -> float:
    rates, curve = fastai_curve(rates, losses)
    return rates[curve.argmin()] / 10


def fastai_valley(rates: np.ndarray, losses: np.ndarray) -> float:
    rates, curve = fastai_curve(rates, losses)
    lengths = np.ones(len(curve), int)
    for i in range(len(curve)):
        lengths[i] += lengths[:i][curve[:i] > curve[i]].max(initial=0)
    end = lengths.argmax()
    start, third = max(end - lengths[end], 0), lengths[end] / 3
    return rates[start + int(third) + int(third / 2)]


OTHERS = {
    "torch-lr-finder": torch_lr_finder,
    "Lightning": lightning,
    "fastai valley": fastai_valley,
    "fastai steep": fastai_steep,
    "fastai minimum / 10": fastai_minimum,
}


def train(name: str, rates: Any, params: Any, orders: Any, x: Any, y: Any, test: Any):
    """Returns each seed's test loss after training at its own fixed rate."""

    @jax.jit
    @jax.vmap
    def one_seed(rate, params, order):
        optimizer = OPTIMIZERS[name][0](rate)

        def step(carry, batch):
            params, state = carry
            grads = jax.grad(mean_loss)(params, x[batch], y[batch])
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = params, optimizer.init(params)
        (params, _), _ = jax.lax.scan(step, start, order)
        return mean_loss(params, *test)

    return np.asarray(one_seed(jnp.asarray(rates, jnp.float32), params, orders))


def suggestions(name: str, params: Any, orders: Any, x: Any, y: Any) -> dict[str, Any]:
    result, free, first = range_tests(name, params, orders, x, y)
    rates = np.asarray(result.learning_rates[0], float)
    # The others pair a rate with the loss measured just before its update.
    before = np.concatenate([np.asarray(first)[:, None], free[:, :-1]], axis=1)
    names = [*(f"ours, {method}" for method in METHODS), "ours, peak of cycle", *OTHERS]
    found: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(SEEDS):
        single = jax.tree.map(lambda leaf, seed=seed: leaf[seed], result)
        for method in METHODS:
            rate = lrd_optax.suggest_learning_rate(single, method)
            found[f"ours, {method}"].append(rate)
        found["ours, peak of cycle"].append(lrd_optax.suggest_cycle(single)[1])
        for other, rule in OTHERS.items():
            with np.errstate(over="ignore"):
                found[other].append(float(rule(rates, before[seed].astype(float))))
    return found


def main() -> None:
    x, test_x, y, test_y = data()
    params = jax.vmap(initial_params)(jax.random.split(jax.random.key(0), SEEDS))
    random = np.random.default_rng(0)
    images = np.tile(np.arange(1200, dtype=np.int32), (SEEDS, EPOCHS, 1))
    orders = random.permuted(images, axis=2).reshape(SEEDS, -1, BATCH)
    report: dict[str, Any] = {"seeds": SEEDS, "steps": STEPS, "results": []}
    print(f"{'':14}{'':22}{'median':>10}{'scatter':>10}{'test loss':>11}{'worst':>8}")
    for name, (_, low, high) in OPTIMIZERS.items():
        found = suggestions(name, params, orders, x, y)
        # For comparison, the best fixed rate of a grid, the same for all seeds.
        grid = np.geomspace(low * 100, high, 31)
        losses = [
            train(name, np.full(SEEDS, r), params, orders, x, y, (test_x, test_y))
            for r in grid
        ]
        best = int(np.argmin([np.nan_to_num(loss, nan=1e9).mean() for loss in losses]))
        rows = {"best of a grid": ([float(grid[best])] * SEEDS, losses[best])}
        for rule, rates in found.items():
            loss = train(name, rates, params, orders, x, y, (test_x, test_y))
            rows[rule] = rates, loss
        for rule, (rates, loss) in rows.items():
            loss = np.nan_to_num(loss, nan=np.inf, posinf=np.inf)
            row = {
                "optimizer": name,
                "rule": rule,
                "median": float(np.median(rates)),
                # Half of the range of the middle 68 %, in decades: robust to outliers.
                "scatter_decades": float(
                    np.diff(np.quantile(np.log10(rates), [0.16, 0.84]))[0] / 2
                ),
                "test_loss_median": float(np.median(loss)),
                "test_loss_worst": float(np.max(loss)),
            }
            report["results"].append(row)
            print(
                f"{name:14}{rule:22}{row['median']:10.2g}{row['scatter_decades']:10.2f}"
                f"{row['test_loss_median']:11.3f}{row['test_loss_worst']:8.3g}"
            )
    print(f"Wrote {write('lr_finders', report)}")


if __name__ == "__main__":
    main()
