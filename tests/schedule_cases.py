"""A table of schedules, each for every length T, that the tests of schedules share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import schedule_reference as reference

from lrd_optax import schedules

LAST = 2**31 - 1  # the largest count


class Case(NamedTuple):
    """A schedule for every T: what it is called with, and what it hits exactly."""

    make: Callable[[Any, Any], Any]  # (schedules or reference, T) -> schedule
    low: float  # nothing is below
    high: float  # nor above
    exact: dict[int, float]  # values at multiples of T, as the numbers that were passed
    static: bool = False  # T must be a Python number
    far: float = 1e-5  # relative error, where the value is above 1e-30


def case(name, *before, after=(), exact, low=0.0, static=False, far=1e-5, **options):
    """The schedule `name`, with T between the arguments `before` and `after` it."""

    def make(module, steps):
        return getattr(module, name)(*before, steps, *after, **options)

    return Case(make, low, 0.3, exact, static, far)


def natural(module, steps):
    if isinstance(steps, jax.Array):
        steps = steps.astype("float32")
    return module.natural_exponential_decay(0.3, 1.1 / steps)


def transformer(module, steps):
    return module.warmup(module.inverse_sqrt_decay(0.3, steps), steps)


def warmup_stable(decay):
    def make(module, steps):
        return module.warmup_stable_decay(0.3, steps, steps, steps, decay=decay)

    return Case(make, 0.0, 0.3, {1: 0.3, 2: 0.3, 3: 0.0, 4: 0.0})


START = {0: 0.3}
DOWN = {0: 0.3, 1: 0.0, 2: 0.0}  # held from T on
CYCLES = {0: 0.0, 1: 0.3, 2: 0.0, 3: 0.3}
STEP = "step_decay"
RESTARTS = "cosine_annealing_warm_restarts"
CASES = {
    "inverse time": case("inverse_time_decay", 0.3, 0.1, exact=START),
    "inverse time, stairs": case(
        "inverse_time_decay", 0.3, 0.1, after=(True,), exact=START
    ),
    "step": case(STEP, 0.3, 0.7, exact=START),
    "step, halves": case(STEP, 0.3, 0.5, exact=START),
    "step, offset 1": case(STEP, 0.3, 0.7, after=(1,), exact={}),
    "exponential step": case("exponential_step_decay", 0.3, 0.7, exact=START),
    "natural exponential": Case(natural, 0.0, 0.3, START),
    "polynomial 1": case("polynomial_decay", 0.3, 0.0, 1, exact=DOWN),
    "polynomial 0.9": case(
        "polynomial_decay", 0.3, 0.01, 0.9, exact={0: 0.3, 1: 0.01, 2: 0.01}, low=0.01
    ),
    "polynomial 2.5": case("polynomial_decay", 0.3, 0.0, 2.5, exact=DOWN),
    "polynomial 3, rising": case(
        "polynomial_decay", 0.0, 0.3, 3, exact={0: 0.0, 1: 0.3, 2: 0.3}
    ),
    "polynomial 100": case(
        "polynomial_decay", 0.3, 0.01, 100, exact=START, low=0.01, far=2.5e-5
    ),
    "polynomial 60": case("polynomial_decay", 0.3, 0.0, 60.5, exact=DOWN, far=2.5e-5),
    "polynomial 0.1, rising": case(
        "polynomial_decay", 0.01, 0.3, 0.1, exact={0: 0.01, 1: 0.3, 2: 0.3}, low=0.01
    ),
    "cosine": case("cosine_annealing", 0.3, 0.0, exact=DOWN),
    "cosine to 0.001": case(
        "cosine_annealing", 0.3, 0.001, exact={0: 0.3, 1: 0.001, 2: 0.001}, low=0.001
    ),
    "restarts": case(RESTARTS, 0.3, 0.0, exact={0: 0.3, 1: 0.3, 2: 0.3}),
    "restarts, 2": case(
        RESTARTS, 0.3, 0.01, after=(2, 0.9), exact=START, low=0.01, static=True
    ),
    "restarts, peaks down to the floor": case(
        RESTARTS, 0.3, 0.1, after=(1, 0.5), exact=START, low=0.1
    ),
    "restarts, 1.5": case(RESTARTS, 0.3, 0.0, after=(1.5,), exact=START, static=True),
    "triangular": case("cyclical", 0.0, 0.3, exact=CYCLES),
    "triangular2": case(
        "cyclical",
        0.01,
        0.3,
        exact={0: 0.01, 1: 0.3, 2: 0.01, 4: 0.01},
        low=0.01,
        cycle_gamma=0.5,
    ),
    "exp_range": case(
        "cyclical", 0.01, 0.3, exact={0: 0.01, 2: 0.01}, low=0.01, step_gamma=0.99994
    ),
    "exp_range of the paper": case(
        "cyclical",
        0.01,
        0.3,
        exact={0: 0.01},
        step_gamma=0.99994,
        decay_base=True,
    ),
    "welch": case("cyclical", 0.0, 0.3, exact=CYCLES, window="welch"),
    "hann": case("cyclical", 0.0, 0.3, exact=CYCLES, window="hann"),
    "own window": case(
        "cyclical", 0.0, 0.3, exact={1: 0.3}, window=lambda x: 1 / (1 + 9 * x * x)
    ),
    "uneven cycle": case(
        "cyclical", 0.01, 0.3, exact={0: 0.01, 1: 0.3}, low=0.01, step_size_down=7
    ),
    "inverse sqrt": case("inverse_sqrt_decay", 0.3, exact=START),
    "Transformer": Case(transformer, 0.0, 0.3, {1: 0.3}),
    "warm-up, stable, linear": warmup_stable("linear"),
    "warm-up, stable, cosine": warmup_stable("cosine"),
    "warm-up, stable, 1-sqrt": warmup_stable("1-sqrt"),
}


def check(case, value, expected, far=None):
    """The relative error of values above 1e-3 of the largest, and above 1e-30."""
    value = np.asarray(value, np.float64)
    error = np.abs(value - expected)
    assert np.all(error <= 1e-6 * case.high)
    near = error <= 2e-6 * np.abs(expected)
    assert np.all(near | (expected <= 1e-3 * case.high))
    far = error <= (far or case.far) * np.abs(expected)
    assert np.all(far | (expected <= 1e-30))


def at_length(steps):
    """The schedules of all cases, and their references, of one length."""
    ours = {name: case.make(schedules, steps) for name, case in CASES.items()}
    theirs = {name: case.make(reference, steps) for name, case in CASES.items()}
    return ours, theirs


def together(made):
    """One compiled function for all: many times faster to compile than one by one."""
    return jax.jit(lambda count: {name: f(count) for name, f in made.items()})
