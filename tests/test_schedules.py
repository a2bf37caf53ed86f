"""Every schedule is its formula, to the last digits."""

import json
import math
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import schedule_reference as reference
from schedule_cases import CASES, LAST, at_length, check, together

from lrd_optax import schedules


@pytest.mark.parametrize("steps", [7, 390, 2**24 + 3, LAST])
def test_formula(steps):
    ours, theirs = at_length(steps)
    rng = np.random.default_rng(0)
    near = [0, 1, 2, steps - 1, steps, steps + 1, 2 * steps, 10 * steps]
    some = rng.integers(0, 10 ** rng.uniform(0, 9.3, 1000))
    count = np.minimum([*near, *some, *some * steps // 10**6, LAST - 1, LAST], LAST)
    for name, value in together(ours)(jnp.asarray(count)).items():
        chex.assert_type(value, jnp.float32)
        chex.assert_shape(value, count.shape)
        check(CASES[name], value, theirs[name](count))


@pytest.mark.slow
@pytest.mark.parametrize("x64", [True], indirect=True)
def test_formula_in_x64(x64):
    steps = 390
    ours, theirs = at_length(steps)
    count = np.array([0, 1, steps - 1, steps, steps + 1, 10**6, 2**24 + 1, LAST])
    for name, value in together(ours)(jnp.asarray(count, jnp.int32)).items():
        chex.assert_type(value, jnp.float64)
        expected = theirs[name](count)
        np.testing.assert_allclose(value, expected, 1e-12, 1e-30, err_msg=name)


@pytest.mark.slow
def test_slow_decays():
    """Where the exponent is up to 69, and twice rounded would be wrong by 1e-5."""
    rng = np.random.default_rng(0)
    case = CASES["natural exponential"]
    for rate in 10 ** rng.uniform(-8, 0, 60):
        count = np.minimum(rng.integers(0, int(70 / rate), 500), LAST)
        expected = reference.natural_exponential_decay(0.3, rate)(count)
        check(case, schedules.natural_exponential_decay(0.3, rate)(count), expected)
        # A traced rate is a float32, and this is what that one gives.
        rounded = jnp.float32(rate)
        expected = reference.natural_exponential_decay(0.3, float(rounded))(count)
        check(case, schedules.natural_exponential_decay(0.3, rounded)(count), expected)
        factor, size = rng.uniform(0.05, 0.99), max(1, int(1 / rate))
        count = np.minimum(rng.integers(0, 70 * size, 500), LAST)
        for name in ("step_decay", "exponential_step_decay"):
            expected = getattr(reference, name)(0.3, factor, size)(count)
            check(case, getattr(schedules, name)(0.3, factor, size)(count), expected)


@pytest.mark.slow
def test_powers():
    """The power multiplies the relative error of what is left."""
    rng = np.random.default_rng(0)
    for power in (0.125, 3, 10, 33.25, 100, 1e4):
        for steps in (1000, 10**7 + 1, 2**24 + 3, 10**9 + 7):
            # Above 1e-30 where what is left is above this:
            most = int(steps * -math.expm1(-69 / power)) or 1
            count = rng.integers(0, most, 2000)
            expected = np.exp(power * np.log1p(-count / steps))
            value = schedules.polynomial_decay(1.0, 0.0, power, steps)(count)
            case = CASES["polynomial 60" if power > 10 else "polynomial 2.5"]
            check(case._replace(high=1.0), value, expected)


def test_values_far_from_1():
    tiny, huge = np.float32(1e-30), np.float32(1e30)
    pairs = [
        (schedules.step_decay(huge, 0.1, 1)(28), 1e2),
        (schedules.step_decay(tiny, 10.0, 1)(38), 1e8),
        (schedules.natural_exponential_decay(huge, 1.0)(80), 1e30 * math.exp(-80)),
        (schedules.step_decay(1.0, 1e-300, 1)(1), 0),
        (schedules.step_decay(1.0, 1e-300, 1)(0), 1),
    ]
    for value, expected in pairs:
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-37)


def test_numbers_of_the_report():
    epochs = jnp.arange(100)
    step = schedules.step_decay(1.0, 0.5, 10, offset=1)(epochs)
    drops = np.flatnonzero(np.diff(step)) + 1
    np.testing.assert_array_equal(drops, range(9, 100, 10))
    np.testing.assert_allclose(step[-1], 2.0**-10, rtol=2e-7)
    exponential = schedules.natural_exponential_decay(1.0, 0.05)(epochs)
    np.testing.assert_allclose(exponential[-1], 0.0070834, atol=5e-8)
    cosine = schedules.cosine_annealing(0.1, 0.001, 100)(epochs)
    np.testing.assert_allclose(cosine[-1], 0.00102443, atol=5e-9)
    inverse = schedules.inverse_time_decay(1.0, 0.1)(jnp.arange(102))
    loss = 1 - inverse[1:] / inverse[:-1]
    np.testing.assert_allclose(loss[jnp.array([0, 100])], [0.0909, 0.0090], atol=5e-5)
    welch = schedules.cyclical(0.0, 1.0, 3000, window="welch")(jnp.arange(6000))
    np.testing.assert_allclose(welch.mean(), 2 / 3, rtol=1e-6)


TORCH = json.loads((Path(__file__).parent / "data/torch_schedules.json").read_text())
OURS = {
    "triangular": schedules.cyclical(0.01, 0.3, 7),
    "triangular2": schedules.cyclical(0.01, 0.3, 7, cycle_gamma=0.5),
    "exp_range": schedules.cyclical(0.01, 0.3, 7, step_gamma=0.98),
    "uneven cycle": schedules.cyclical(0.01, 0.3, 5, step_size_down=11),
    "restarts": schedules.cosine_annealing_warm_restarts(0.3, 0.001, 10),
    "restarts, 2": schedules.cosine_annealing_warm_restarts(0.3, 0.001, 5, 2),
    "restarts, 3": schedules.cosine_annealing_warm_restarts(0.3, 0.001, 1, 3),
    "step": schedules.step_decay(0.3, 0.7, 10),
    "polynomial 1": schedules.polynomial_decay(0.3, 0.0, 1, 37),
    "polynomial 2.5": schedules.polynomial_decay(0.3, 0.0, 2.5, 37),
}


@pytest.mark.parametrize("name", TORCH["recorded"])
def test_values_of_pytorch(name):
    """Recorded by benchmarks/record_torch_schedules.py."""
    values = np.array(TORCH["recorded"][name]["values"])
    ours = OURS[name](jnp.arange(len(values)))
    np.testing.assert_allclose(ours, values, rtol=1e-6, atol=3e-8)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_values_of_optax():
    """Where its functions are exact: eager, and not too many steps."""
    count = jnp.arange(60)
    pairs = [
        (schedules.polynomial_decay(0.3, 0.01, 2, 37), (0.3, 0.01, 2, 37)),
        (schedules.polynomial_decay(0.01, 0.3, 0.9, 37), (0.01, 0.3, 0.9, 37)),
    ]
    for ours, args in pairs:
        theirs = optax.polynomial_schedule(*args)(count)
        np.testing.assert_allclose(ours(count), theirs, rtol=3e-6)
    ours = schedules.cosine_annealing(0.3, 0.03, 37)
    theirs = optax.cosine_decay_schedule(0.3, 37, alpha=0.1)
    np.testing.assert_allclose(ours(count), theirs(count), rtol=1e-6)
    for staircase, ours in (
        (False, schedules.exponential_step_decay(0.3, 0.7, 10)),
        (True, schedules.step_decay(0.3, 0.7, 10)),
    ):
        theirs = optax.exponential_decay(0.3, 10, 0.7, staircase=staircase)
        np.testing.assert_allclose(ours(count), theirs(count), rtol=1e-6)
