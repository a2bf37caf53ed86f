"""Every schedule is its formula, to the last step and the last digits."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import schedule_reference as reference

from lrd_optax import schedules

LAST = 2**31 - 1


class Case(NamedTuple):
    """One schedule for every T, and what it is at its ends."""

    make: Callable[..., Any]  # schedules or reference -> T -> schedule
    low: float  # nothing is below
    high: float
    ends: bool = False  # it is `low` from T on


def case(name, *before, low, high, after=(), ends=False, mult=1, **options):
    """The schedule `name` with `before`, T times `mult`, and `after` as arguments."""

    def make(module, steps):
        return getattr(module, name)(*before, steps * mult, *after, **options)

    return Case(make, low, high, ends)


def composed(make, **bounds):
    return Case(make, **bounds)


CASES = {
    "inverse time": case("inverse_time_decay", 0.3, 0.1, low=0, high=0.3),
    "inverse time, staircase": case(
        "inverse_time_decay", 0.3, 0.1, low=0, high=0.3, after=(True,)
    ),
    "step": case("step_decay", 0.3, 0.7, low=0, high=0.3),
    "step, offset 1": case("step_decay", 0.3, 0.7, low=0, high=0.3, after=(1,)),
    "exponential step": case("exponential_step_decay", 0.3, 0.7, low=0, high=0.3),
    "natural exponential": Case(
        lambda module, steps: module.natural_exponential_decay(0.3, 1.1 / steps), 0, 0.3
    ),
    "polynomial 1": case(
        "polynomial_decay", 0.3, 0.0, 1, low=0, high=0.3, ends=True
    ),
    "polynomial 0.9": case(
        "polynomial_decay", 0.3, 0.01, 0.9, low=0.01, high=0.3, ends=True
    ),
    "polynomial 2.5": case(
        "polynomial_decay", 0.3, 0.0, 2.5, low=0, high=0.3, ends=True
    ),
    "polynomial 3, rising": case(
        "polynomial_decay", 0.0, 0.3, 3, low=0, high=0.3
    ),
    "cosine": case("cosine_annealing", 0.3, 0.0, low=0, high=0.3, ends=True),
    "cosine to 0.001": case(
        "cosine_annealing", 0.1, 0.001, low=0.001, high=0.1, ends=True
    ),
    "restarts": case("cosine_annealing_warm_restarts", 0.3, 0.0, low=0, high=0.3),
    "restarts, 2": case(
        "cosine_annealing_warm_restarts", 0.3, 0.01, low=0.01, high=0.3, after=(2, 0.9)
    ),
    "restarts, 1.5": case(
        "cosine_annealing_warm_restarts", 0.3, 0.0, low=0, high=0.3, after=(1.5,)
    ),
    "triangular": case("cyclical", 0.0, 0.3, low=0, high=0.3),
    "triangular2": case("cyclical", 0.01, 0.3, low=0.01, high=0.3, cycle_gamma=0.5),
    "exp_range": case("cyclical", 0.01, 0.3, low=0.01, high=0.3, step_gamma=0.99994),
    "exp_range of the paper": case(
        "cyclical", 0.01, 0.3, low=0, high=0.3, step_gamma=0.99994, decay_base=True
    ),
    "welch": case("cyclical", 0.0, 0.3, low=0, high=0.3, window="welch"),
    "hann": case("cyclical", 0.0, 0.3, low=0, high=0.3, window="hann"),
    "uneven cycle": case("cyclical", 0.01, 0.3, low=0.01, high=0.3, step_size_down=7),
    "inverse sqrt": case("inverse_sqrt_decay", 0.3, low=0, high=0.3),
    "Transformer": Case(
        lambda module, steps: module.warmup(
            module.inverse_sqrt_decay(0.3, steps), steps
        ),
        0,
        0.3,
    ),
}
for _decay in ("linear", "cosine", "1-sqrt"):
    CASES[f"warm-up, stable, {_decay}"] = Case(
        lambda module, steps, decay=_decay: module.warmup_stable_decay(
            0.3, 3, 0, steps, decay=decay
        ),
        0,
        0.3,
    )

each_case = pytest.mark.parametrize("name", CASES)


def counts(steps):
    """The counts of the accuracy test, where things go wrong if they do."""
    some = [0, 1, 2, steps - 1, steps, steps + 1, 10 * steps, 10**6]
    return np.unique(np.array([*some, 2**24 - 1, 2**24, 2**24 + 1, LAST - 1, LAST]))


@each_case
@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("steps", [1, 7, 390, 10**5, 2**24 + 3, LAST])
def test_formula(name, run, steps, x64):
    count = counts(steps)
    count = count[count <= LAST]
    expected = CASES[name].make(reference, steps)(count)
    value = run(CASES[name].make(schedules, steps))(jnp.asarray(count))
    assert value.dtype == (jnp.float64 if x64 else jnp.float32)
    assert value.shape == count.shape
    error = np.abs(np.asarray(value, np.float64) - expected)
    print(name, steps, np.max(error/CASES[name].high), np.max(np.where(expected>1e-30, error/np.maximum(expected,1e-300), 0)))
    assert np.all(error <= 1e-6 * CASES[name].high)
    assert np.all((error <= 1e-6 * expected) | (expected <= 1e-30))
