"""How long a schedule takes to compile, and how many operations it has.

    python benchmarks/schedule_compile.py                # about 1 minute on 2 CPU cores
    python benchmarks/schedule_compile.py --name before  # where another version is used

Each row is a schedule of Optax and ours of the same shape, or ours alone. A schedule is
made, traced, lowered and compiled for one scalar int32 count, each time with another
number of steps, so that nothing is reused. The rows take turns in a random order. The
time is the median over the rounds, in milliseconds of the processor. The operations are
those in the jaxpr of one call, without the calls that only wrap others. Writes
benchmarks/results/<device>-schedule_compile.json, or with a name
benchmarks/results/<device>-schedule_compile_<name>.json.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import timing

from lrd_optax import schedules

Make = Callable[[int], optax.Schedule]


def sgdr(steps: int) -> optax.Schedule:
    cycle = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 0}
    lengths = [steps, 2 * steps, 4 * steps]
    return optax.sgdr_schedule([{**cycle, "decay_steps": n} for n in lengths])


def warmup_cosine(steps: int) -> optax.Schedule:
    return schedules.warmup(schedules.cosine_annealing(1.0, 0.01, steps), steps)


PAIRS: dict[str, tuple[Make | None, Make]] = {
    "natural_exponential_decay": (
        lambda n: optax.exponential_decay(1.0, n, 0.7),
        lambda n: schedules.natural_exponential_decay(1.0, 1 / n),
    ),
    "exponential_step_decay": (
        lambda n: optax.exponential_decay(1.0, n, 0.7),
        lambda n: schedules.exponential_step_decay(1.0, 0.7, n),
    ),
    "step_decay": (
        lambda n: optax.exponential_decay(1.0, n, 0.7, staircase=True),
        lambda n: schedules.step_decay(1.0, 0.7, n),
    ),
    "inverse_time_decay": (
        None,
        lambda n: schedules.inverse_time_decay(1.0, 0.7, n),
    ),
    "inverse_time_decay, stairs": (
        None,
        lambda n: schedules.inverse_time_decay(1.0, 0.7, n, staircase=True),
    ),
    "inverse_sqrt_decay": (
        None,
        lambda n: schedules.inverse_sqrt_decay(1.0, n),
    ),
    "polynomial_decay, power 1": (
        lambda n: optax.polynomial_schedule(1.0, 0.0, 1, n),
        lambda n: schedules.polynomial_decay(1.0, 0.0, 1, n),
    ),
    "polynomial_decay, power 0.9": (
        lambda n: optax.polynomial_schedule(1.0, 0.0, 0.9, n),
        lambda n: schedules.polynomial_decay(1.0, 0.0, 0.9, n),
    ),
    "cosine_annealing": (
        lambda n: optax.cosine_decay_schedule(1.0, n, alpha=0.01),
        lambda n: schedules.cosine_annealing(1.0, 0.01, n),
    ),
    "restarts, t_mult 1": (
        None,
        lambda n: schedules.cosine_annealing_warm_restarts(1.0, 0.0, n),
    ),
    "restarts, t_mult 2": (
        sgdr,
        lambda n: schedules.cosine_annealing_warm_restarts(1.0, 0.0, n, 2),
    ),
    "cyclical": (
        lambda n: optax.linear_onecycle_schedule(4 * n, 1.0),
        lambda n: schedules.cyclical(0.1, 1.0, n),
    ),
    "cyclical, hann, gammas": (
        lambda n: optax.cosine_onecycle_schedule(4 * n, 1.0),
        lambda n: schedules.cyclical(
            0.1, 1.0, n, window="hann", cycle_gamma=0.5, step_gamma=0.9999
        ),
    ),
    "warmup(cosine_annealing)": (
        lambda n: optax.warmup_cosine_decay_schedule(0.0, 1.0, n, 2 * n, 0.01),
        warmup_cosine,
    ),
    "warmup_stable_decay": (
        None,
        lambda n: schedules.warmup_stable_decay(1.0, n, n, n),
    ),
}


def milliseconds(make: Make, steps: int) -> float:
    start = time.process_time()
    jax.jit(make(steps)).lower(jnp.int32(3)).compile()
    return 1e3 * (time.process_time() - start)


def operations(make: Make) -> int:
    def count(jaxpr: Any) -> int:
        total = 0
        for equation in jaxpr.eqns:
            inner = [
                value.jaxpr if hasattr(value, "jaxpr") else value
                for value in equation.params.values()
                if hasattr(value, "eqns") or hasattr(value, "jaxpr")
            ]
            wraps = equation.primitive.name in ("pjit", "jit", "custom_jvp_call")
            total += (not wraps) + sum(count(part) for part in inner)
        return total

    return count(jax.make_jaxpr(make(100))(jnp.int32(3)).jaxpr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--name", help="is added to that of the file of results")
    options = parser.parse_args()
    makes = {
        (name, side): make
        for name, pair in PAIRS.items()
        for side, make in zip(("optax", "ours"), pair, strict=True)
        if make is not None
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in makes}
    for steps in range(1000, 1000 + options.rounds):
        for key in random.sample(list(makes), len(makes)):
            times[key].append(milliseconds(makes[key], steps))
    print("| schedule | Optax: ms | ours: ms | ratio | Optax: operations | ours |")
    print("|---|---|---|---|---|---|")
    rows = {}
    for name in PAIRS:
        row: dict[str, Any] = {}
        for side in ("optax", "ours"):
            if (name, side) in makes:
                row[f"{side}_ms"] = round(statistics.median(times[name, side]), 1)
                row[f"{side}_operations"] = operations(makes[name, side])
        rows[name] = row
        ratio = f"{row['ours_ms'] / row['optax_ms']:.2f}" if "optax_ms" in row else ""
        texts = [
            name,
            row.get("optax_ms", ""),
            row["ours_ms"],
            ratio,
            row.get("optax_operations", ""),
            row["ours_operations"],
        ]
        print("| " + " | ".join(map(str, texts)) + " |", flush=True)
    what = "schedule_compile" + (f"_{options.name}" if options.name else "")
    print(timing.write(what, {"schedules": rows}))


if __name__ == "__main__":
    main()
