"""How many of the lengths 1 to 1000 a schedule gets wrong under jit: Optax's and ours.

    python benchmarks/schedule_exactness.py           # about 10 minutes on 2 CPU cores
    python benchmarks/schedule_exactness.py --most 100

Each schedule is compiled with each length T as a constant, as in a training script. It
is called at 0, at 1, and at, just before and just after the first multiples of T. The
table counts the lengths T with

  NaN    a value that is NaN
  ends   a value at 0, at a peak, at the end or after it that is not the number passed
  below  a value below the end or base
  late   an error of more than a thousandth of the largest value: a stair, a cycle or a
         restart on the wrong step
  jit    a value that differs from the one without jit by more than 4 ulp of the largest

The second table has the relative errors at large counts. Writes
benchmarks/results/<device>-schedule_exactness.json.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from lrd_optax import schedules

CHUNK = 50  # lengths compiled together
FAULTS = ("NaN", "ends", "below", "late", "jit")


class Row(NamedTuple):
    title: str
    make: Callable[[int], optax.Schedule]
    formula: Callable[[int, np.ndarray], np.ndarray]  # of T and counts, in float64
    exact: dict[int, float]  # values at multiples of T
    low: float = 0.0
    high: float = 1.0


def left(steps: int, count: np.ndarray) -> np.ndarray:
    return np.maximum(steps - count, 0) / steps


def power(exponent: float) -> Callable[[int, np.ndarray], np.ndarray]:
    return lambda steps, count: left(steps, count) ** exponent


def cosine(steps: int, count: np.ndarray) -> np.ndarray:
    return 0.01 + 0.99 * np.sin(np.pi / 2 * left(steps, count)) ** 2


def stairs(steps: int, count: np.ndarray) -> np.ndarray:
    return 0.7 ** (count // steps)


def restarts(steps: int, count: np.ndarray) -> np.ndarray:
    return cosine(steps, np.where(count < 3 * steps, count % steps, steps))


def triangle(steps: int, count: np.ndarray) -> np.ndarray:
    return 0.1 + 0.9 * (1 - np.abs(count % (2 * steps) / steps - 1))


def warmup_cosine(steps: int, count: np.ndarray) -> np.ndarray:
    down = cosine(steps, np.maximum(count - steps, 0))
    return np.where(count < steps, count / steps, down)


def smith(steps: int) -> optax.Schedule:
    """Returns the formula of the paper, as it is usually written."""

    def schedule(count: jax.Array) -> jax.Array:
        count = count.astype(float)
        cycle = jnp.floor(1 + count / (2 * steps))
        x = jnp.abs(count / steps - 2 * cycle + 1)
        return 0.1 + 0.9 * jnp.maximum(0, 1 - x)

    return schedule


def optax_restarts(steps: int) -> optax.Schedule:
    cycle = {
        "init_value": 1.0,
        "peak_value": 1.0,
        "warmup_steps": 0,
        "decay_steps": steps,
        "end_value": 0.01,
    }
    return optax.sgdr_schedule([cycle] * 3)


DOWN, COSINE = {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0}, {0: 1.0, 1: 0.01, 2: 0.01, 3: 0.01}
STAIRS = {0: 1.0}
CYCLE = {0: 0.1, 1: 1.0, 2: 0.1, 3: 1.0}
WARM = {0: 0.0, 1: 1.0, 2: 0.01, 3: 0.01}
RESTARTS = {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.01}
ROWS = [
    Row(
        "optax.linear_schedule",
        lambda steps: optax.linear_schedule(1.0, 0.0, steps),
        power(1),
        DOWN,
    ),
    Row(
        "polynomial_decay, power 1",
        lambda steps: schedules.polynomial_decay(1.0, 0.0, 1, steps),
        power(1),
        DOWN,
    ),
    Row(
        "optax.polynomial_schedule, power 0.9",
        lambda steps: optax.polynomial_schedule(1.0, 0.0, 0.9, steps),
        power(0.9),
        DOWN,
    ),
    Row(
        "polynomial_decay, power 0.9",
        lambda steps: schedules.polynomial_decay(1.0, 0.0, 0.9, steps),
        power(0.9),
        DOWN,
    ),
    Row(
        "optax.cosine_decay_schedule",
        lambda steps: optax.cosine_decay_schedule(1.0, steps, alpha=0.01),
        cosine,
        COSINE,
        low=0.01,
    ),
    Row(
        "cosine_annealing",
        lambda steps: schedules.cosine_annealing(1.0, 0.01, steps),
        cosine,
        COSINE,
        low=0.01,
    ),
    Row(
        "optax.exponential_decay, staircase",
        lambda steps: optax.exponential_decay(1.0, steps, 0.7, staircase=True),
        stairs,
        STAIRS,
    ),
    Row(
        "step_decay",
        lambda steps: schedules.step_decay(1.0, 0.7, steps),
        stairs,
        STAIRS,
    ),
    Row(
        "optax.sgdr_schedule, 3 cycles",
        optax_restarts,
        restarts,
        RESTARTS,
        low=0.01,
    ),
    Row(
        "cosine_annealing_warm_restarts",
        lambda steps: schedules.cosine_annealing_warm_restarts(1.0, 0.01, steps),
        lambda steps, count: cosine(steps, count % steps),
        {**RESTARTS, 3: 1.0},
        low=0.01,
    ),
    Row("Smith's formula in float32", smith, triangle, CYCLE, low=0.1),
    Row(
        "cyclical",
        lambda steps: schedules.cyclical(0.1, 1.0, steps),
        triangle,
        CYCLE,
        low=0.1,
    ),
    Row(
        "optax.warmup_cosine_decay_schedule",
        lambda steps: optax.warmup_cosine_decay_schedule(
            0.0, 1.0, steps, 2 * steps, 0.01
        ),
        warmup_cosine,
        WARM,
    ),
    Row(
        "warmup(cosine_annealing)",
        lambda steps: schedules.warmup(
            schedules.cosine_annealing(1.0, 0.01, steps), steps, init_value=0.0
        ),
        warmup_cosine,
        WARM,
    ),
]


def faults(row: Row, most: int) -> dict[str, list[int]]:
    """Returns the lengths that have each of the faults."""
    found: dict[str, list[int]] = {fault: [] for fault in FAULTS}
    for first in range(1, most + 1, CHUNK):
        lengths = range(first, min(first + CHUNK, most + 1))
        functions = [row.make(steps) for steps in lengths]
        counts = np.array([near_multiples(steps) for steps in lengths])
        together = functools.partial(call_all, functions)
        jitted = np.asarray(jax.jit(together)(jnp.asarray(counts)), np.float32)
        eager = np.asarray(together(jnp.asarray(counts)), np.float32)
        for steps, count, value, plain in zip(
            lengths, counts, jitted, eager, strict=True
        ):
            expected = row.formula(steps, count)
            at = dict(zip(count.tolist(), value, strict=True))
            ulp = np.spacing(np.float32(row.high))
            wrong = {
                "NaN": np.isnan(value).any(),
                "ends": any(
                    at[multiple * steps] != np.float32(number)
                    for multiple, number in row.exact.items()
                ),
                "below": np.any(value < np.float32(row.low)),
                "late": np.any(np.abs(value - expected) > 1e-3 * row.high),
                "jit": not np.all(np.abs(value - plain) <= 4 * ulp),
            }
            for fault in FAULTS:
                if wrong[fault]:
                    found[fault].append(steps)
    return found


def call_all(functions: list[optax.Schedule], counts: jax.Array) -> jax.Array:
    pairs = zip(functions, counts, strict=True)
    return jnp.stack([schedule(count) for schedule, count in pairs])


def near_multiples(steps: int) -> list[int]:
    around = [m * steps + d for m in (1, 2, 3) for d in (-1, 0, 1)]
    return [0, 1, *around]


class Far(NamedTuple):
    title: str
    schedule: optax.Schedule
    formula: Callable[[int], float]
    count: int


SLOW, LONG = 1e-5, 2000
FAR = [
    Far(
        "optax.exponential_decay(1, 1, exp(-1e-5))",
        optax.exponential_decay(1.0, 1, float(np.exp(-SLOW))),
        lambda count: float(np.exp(-SLOW * count)),
        10**6,
    ),
    Far(
        "natural_exponential_decay(1, 1e-5)",
        schedules.natural_exponential_decay(1.0, SLOW),
        lambda count: float(np.exp(-SLOW * count)),
        10**6,
    ),
    Far(
        "Smith's formula in float32, 2000 steps",
        smith(LONG),
        lambda count: float(triangle(LONG, np.array(count))),
        20_000_500,
    ),
    Far(
        "cyclical, 2000 steps",
        schedules.cyclical(0.1, 1.0, LONG),
        lambda count: float(triangle(LONG, np.array(count))),
        20_000_500,
    ),
    Far(
        "optax.linear_schedule, 2**24 + 3 steps",
        optax.linear_schedule(1.0, 0.0, 2**24 + 3),
        lambda count: (2**24 + 3 - count) / (2**24 + 3),
        2**24,
    ),
    Far(
        "polynomial_decay, 2**24 + 3 steps",
        schedules.polynomial_decay(1.0, 0.0, 1, 2**24 + 3),
        lambda count: (2**24 + 3 - count) / (2**24 + 3),
        2**24,
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, default=1000, help="largest T")
    most = parser.parse_args().most
    results: dict[str, Any] = {"lengths": most, "faults": {}, "relative error": {}}
    print(f"Of the {most} lengths 1 to {most}, under jit, these are wrong:\n")
    print(f"{'':40}" + "".join(f"{fault:>7}" for fault in FAULTS))
    for row in ROWS:
        found = faults(row, most)
        print(f"{row.title:40}" + "".join(f"{len(t):7}" for t in found.values()))
        results["faults"][row.title] = {
            fault: {"number": len(lengths), "first": lengths[:10]}
            for fault, lengths in found.items()
        }
    print("\nRelative error at large counts, under jit:\n")
    for far in FAR:
        value = float(jax.jit(far.schedule)(jnp.int32(far.count)))
        expected = far.formula(far.count)
        error = abs(value / expected - 1)
        print(f"{far.title:42} at {far.count:10,}: {error:.1e}")
        results["relative error"][far.title] = {"count": far.count, "error": error}
    if most == 1000:
        print(f"\nWritten to {timing.write('schedule_exactness', results)}")
    else:
        print("\nNot written: only all of 1 to 1000 are recorded.")


if __name__ == "__main__":
    main()
