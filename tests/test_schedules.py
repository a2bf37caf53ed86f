"""Every schedule is its formula, to the last step and the last digits."""

import json
import math
import re
from collections.abc import Callable
from fractions import Fraction
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

LAST = 2**31 - 1  # the largest count of an int32


class Case(NamedTuple):
    """A schedule for every T: what it is called with, and what it hits exactly."""

    make: Callable[[Any, Any], Any]  # (schedules or reference, T) -> schedule
    low: float  # nothing is below
    high: float  # nor above
    exact: dict[int, float]  # values at multiples of T, as the numbers that were passed
    whole: bool = False  # T must be a Python number


def case(name, *before, after=(), exact, low=0.0, high=0.3, whole=False, **options):
    """The schedule `name`, with T between the arguments `before` and `after` it."""

    def make(module, steps):
        return getattr(module, name)(*before, steps, *after, **options)

    return Case(make, low, high, exact, whole)


def natural(module, steps):
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
    "step, halves": case(STEP, 0.3, 0.5, exact={0: 0.3, 1: 0.15, 2: 0.075, 3: 0.0375}),
    "step, offset 1": case(STEP, 0.3, 0.7, after=(1,), exact={}),
    "exponential step": case("exponential_step_decay", 0.3, 0.7, exact=START),
    "natural exponential": Case(natural, 0.0, 0.3, START, whole=True),
    "polynomial 1": case("polynomial_decay", 0.3, 0.0, 1, exact=DOWN),
    "polynomial 0.9": case(
        "polynomial_decay", 0.3, 0.01, 0.9, exact={0: 0.3, 1: 0.01, 2: 0.01}, low=0.01
    ),
    "polynomial 2.5": case("polynomial_decay", 0.3, 0.0, 2.5, exact=DOWN),
    "polynomial 3, rising": case(
        "polynomial_decay", 0.0, 0.3, 3, exact={0: 0.0, 1: 0.3, 2: 0.3}
    ),
    "polynomial 100": case("polynomial_decay", 0.3, 0.01, 100, exact=START, low=0.01),
    "polynomial 60": case("polynomial_decay", 0.3, 0.0, 60.5, exact=DOWN),
    "polynomial 0.1, rising": case(
        "polynomial_decay", 0.01, 0.3, 0.1, exact={0: 0.01, 1: 0.3, 2: 0.3}, low=0.01
    ),
    "cosine": case("cosine_annealing", 0.3, 0.0, exact=DOWN),
    "cosine to 0.001": case(
        "cosine_annealing", 0.3, 0.001, exact={0: 0.3, 1: 0.001, 2: 0.001}, low=0.001
    ),
    "restarts": case(RESTARTS, 0.3, 0.0, exact={0: 0.3, 1: 0.3, 2: 0.3}),
    "restarts, 2": case(
        RESTARTS, 0.3, 0.01, after=(2, 0.9), exact=START, low=0.01, whole=True
    ),
    "restarts, peaks down to the floor": case(
        RESTARTS, 0.3, 0.1, after=(1, 0.5), exact=START, low=0.1
    ),
    "restarts, 1.5": case(RESTARTS, 0.3, 0.0, after=(1.5,), exact=START, whole=True),
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
each_case = pytest.mark.parametrize("name", CASES)


def check(case, value, expected, tolerance=1e-6):
    """Both of the largest value, and of the value itself where it is above 1e-30."""
    value = np.asarray(value, np.float64)
    error = np.abs(value - expected)
    assert np.all(error <= tolerance * case.high)
    assert np.all((error <= tolerance * np.abs(expected)) | (expected <= 1e-30))


@each_case
@pytest.mark.parametrize("steps", [1, 7, 390, 10**5, 2**24 + 3, LAST])
def test_formula(name, steps):
    case = CASES[name]
    some = [0, 1, 2, steps - 1, steps, steps + 1, 2 * steps, 10 * steps, 10**6]
    count = np.array([*some, 2**24 - 1, 2**24, 2**24 + 1, LAST - 1, LAST])
    count = np.minimum(count, LAST)
    expected = case.make(reference, steps)(count)
    schedule = case.make(schedules, steps)
    for run in (schedule, jax.jit(schedule)):
        value = run(jnp.asarray(count))
        chex.assert_type(value, jnp.float32)
        chex.assert_shape(value, count.shape)
        check(case, value, expected)


@each_case
@pytest.mark.parametrize("x64", [True], indirect=True)
def test_formula_in_x64(name, x64):
    case, steps = CASES[name], 390
    count = np.array([0, 1, steps - 1, steps, steps + 1, 10**6, 2**24 + 1, LAST])
    value = jax.jit(case.make(schedules, steps))(jnp.asarray(count, jnp.int32))
    chex.assert_type(value, jnp.float64)
    check(case, value, case.make(reference, steps)(count), 1e-12)


def near_multiples(steps):
    """0, 1, and T - 1, T, T + 1 for the first multiples of T and starts of cycles."""
    around = [m * steps + d for m in (1, 2, 3, 4, 7) for d in (-1, 0, 1)]
    more = [-(-5 * steps // 2) + d for d in (-1, 0, 1)]  # T + 1.5 T
    return np.array([0, 1, *around, *more])


def check_at_multiples(case, steps, count, value):
    index = {int(c): v for c, v in zip(count, np.asarray(value), strict=True)}
    for multiple, number in case.exact.items():
        assert index[multiple * steps] == np.float32(number), (steps, multiple)


@each_case
def test_all_steps_from_1_to_1000(name):
    """That jit and eager agree and the marks are hit, for T known to the compiler.

    XLA multiplies by the reciprocal of a constant. It does so for an array of
    constants too, so that one compilation does for all T: on linear decay with power
    0.5, written the plain way, as many T fail as one by one (the next test).
    """
    case, lengths = CASES[name], np.arange(1, 1001)
    if case.whole:  # one by one after all, and slow to compile
        lengths = lengths[(lengths < 30) | (lengths % 9 == 0)]
    count = np.stack([near_multiples(steps) for steps in lengths])
    if case.whole:
        made = [case.make(schedules, int(steps)) for steps in lengths]
        run = [f(jnp.asarray(c)) for f, c in zip(made, count, strict=True)]
        eager = np.array(run)

        def jitted(count):
            return jnp.stack([f(count[n]) for n, f in enumerate(made)])

    else:
        each = jax.vmap(lambda steps, c: case.make(schedules, steps)(c))
        eager = each(jnp.asarray(lengths), jnp.asarray(count))

        def jitted(count):
            return each(lengths, count)

    value = np.asarray(jax.jit(jitted)(jnp.asarray(count)))
    expected = np.stack(
        [
            case.make(reference, int(steps))(c)
            for steps, c in zip(lengths, count, strict=True)
        ]
    )
    for result in (value, np.asarray(eager)):
        assert not np.any(np.isnan(result))
        assert np.all(result >= np.float32(case.low))
        assert np.all(result <= np.float32(case.high))
        check(case, result, expected)  # a stair or cycle a step late is off by more
        for row, steps in enumerate(lengths):
            check_at_multiples(case, steps, count[row], result[row])
    assert np.max(np.abs(value - eager)) <= 4 * np.spacing(np.float32(case.high))


def test_a_plain_division_would_fail():
    lengths = np.arange(1, 1000)

    def plain(steps, count):
        return (1 - jnp.minimum(count, steps) / steps) ** 0.5

    with jax.numpy_dtype_promotion("standard"):
        run = jax.jit(lambda count: jax.vmap(plain)(lengths, count))
        constants = np.isnan(run(jnp.asarray(lengths)))
        few = [jax.jit(lambda c, s=int(s): plain(s, c))(s) for s in lengths[:40]]
    assert constants.sum() > 100
    np.testing.assert_array_equal(np.isnan(few), constants[:40])


@each_case
def test_every_count_of_some_lengths(name):
    case = CASES[name]
    for steps in (1, 3, 47):
        count = np.arange(7 * steps + 3)
        value = jax.jit(case.make(schedules, steps))(jnp.asarray(count))
        check(case, value, case.make(reference, steps)(count))
        check_at_multiples(case, steps, count, value)


@pytest.mark.parametrize(
    ("first", "t_mult"),
    [
        *[(first, t_mult) for first in (1, 3, 1000) for t_mult in (1, 2, 3, 1.5)],
        *[(10, t_mult) for t_mult in (1, 2, 10, 1.1, 1.25, 1.03, 3.14159265)],
    ],
)
def test_every_restart(first, t_mult):
    """The first step of each cycle below 2**31, and the one before."""
    if t_mult == 1:
        starts = [Fraction(first * i) for i in (1, 2, 3, 1000, LAST // first)]
    else:
        starts = reference.restarts(first, t_mult)[1:-1]
    count = np.array([math.ceil(start) + d for start in starts for d in (-1, 0)])
    args = (0.3, 0.0, first, t_mult)
    expected = reference.cosine_annealing_warm_restarts(*args)(count)
    value = schedules.cosine_annealing_warm_restarts(*args)(jnp.asarray(count))
    case = CASES["restarts"]
    check(case, value, expected)
    if t_mult in (1, 2, 3, 10):
        assert np.all(np.asarray(value)[1::2] == np.float32(0.3))


def test_a_fractional_t_mult_is_as_it_is_written():
    for t_mult in (1.1, np.float32(1.1), np.float64(1.1)):
        value = schedules.cosine_annealing_warm_restarts(1.0, 0.0, 10, t_mult)(21)
        assert value == 1


def test_numbers_of_the_report():
    epochs = jnp.arange(100)
    step = schedules.step_decay(1.0, 0.5, 10, offset=1)(epochs)
    drops = np.flatnonzero(np.diff(step)) + 1
    np.testing.assert_array_equal(drops, range(9, 100, 10))
    assert step[-1] == 2.0**-10
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


# How a schedule may be called.


SOME = ["step", "polynomial 0.9", "restarts, 1.5", "uneven cycle", "Transformer"]


@each_case
def test_whole_floats_and_shapes(name):
    schedule = CASES[name].make(schedules, 5)
    expected = np.asarray(schedule(jnp.arange(12)))
    value = schedule(jnp.arange(12.0).reshape(3, 4))
    np.testing.assert_allclose(value.ravel(), expected, rtol=1e-6, atol=1e-8)
    chex.assert_shape(value, (3, 4))


@pytest.mark.parametrize("name", ["step", "restarts, 1.5", "uneven cycle"])
def test_counts_of_every_kind(name, x64):
    schedule = CASES[name].make(schedules, 5)
    expected = np.asarray(schedule(jnp.arange(12)))
    dtype = jnp.float64 if x64 else jnp.float32
    one = [7, np.int64(7), np.uint8(7), np.float32(7), jnp.int16(7), jnp.uint32(7), 7.0]
    for count in one:
        value = schedule(count)
        chex.assert_shape(value, ())
        chex.assert_type(value, dtype)
        assert value.weak_type  # as Optax has it: bfloat16 parameters stay bfloat16
        np.testing.assert_allclose(value, expected[7], rtol=1e-6, atol=1e-8)
    # bfloat16 has these exactly.
    many = schedule(jnp.arange(12, dtype=jnp.bfloat16))
    np.testing.assert_allclose(many, expected, rtol=1e-6, atol=1e-8)
    chex.assert_shape(schedule(np.zeros((0, 2), int)), (0, 2))
    np.testing.assert_array_equal(schedule(jnp.array([-1, -LAST, 0])), expected[0])
    np.testing.assert_array_equal(schedule(np.array([-1.5, -np.inf])), expected[0])
    scanned = jax.lax.scan(lambda c, _: (c + 1, schedule(c)), 0, length=12)[1]
    np.testing.assert_allclose(scanned, expected, rtol=1e-6, atol=1e-8)
    mapped = jax.jit(jax.vmap(schedule))(jnp.arange(12))
    np.testing.assert_allclose(mapped, expected, rtol=1e-6, atol=1e-8)


@each_case
def test_counts_that_no_int32_holds_are_its_largest(name):
    """Neither wrapped, nor an OverflowError; and infinity is not NaN."""
    schedule = CASES[name].make(schedules, 4 * 10**9)
    expected = schedule(LAST)
    for count in (3 * 10**9, 10**30, np.int64(3 * 10**9), jnp.uint32(3 * 10**9)):
        np.testing.assert_array_equal(schedule(count), expected)
    for count in (-3 * 10**9, -(10**30), np.int64(-3 * 10**9)):
        np.testing.assert_array_equal(schedule(count), schedule(0))
    assert jnp.isfinite(schedule(jnp.inf))
    assert jnp.isnan(schedule(jnp.nan))


@pytest.mark.parametrize("x64", [True], indirect=True)
def test_counts_above_2_to_the_31_in_x64(x64):
    decay = schedules.inverse_time_decay(1.0, 1.0, 2**38)
    np.testing.assert_allclose(decay(2**40), 0.2, rtol=1e-14)
    cycle = schedules.cyclical(0.0, 1.0, 2**40)(
        jnp.array([2**40, 2**41, 2**40 + 2**39])
    )
    np.testing.assert_array_equal(cycle, [1, 0, 0.5])
    restart = schedules.cosine_annealing_warm_restarts(1.0, 0.0, LAST, 2)
    assert restart(float(LAST)) == restart(LAST) == 1


@pytest.mark.parametrize("count", [True, 1j, np.array([False])])
def test_counts_that_are_none(count):
    with pytest.raises(TypeError, match="count must be a real number, got dtype"):
        schedules.step_decay(1.0, 0.5, 10)(count)


@each_case
def test_gradient_with_respect_to_the_count(name):
    """Finite everywhere, and the slope of the curve away from its corners."""
    schedule = CASES[name].make(schedules, 10)
    slope = jax.jit(jax.vmap(jax.grad(schedule)))
    assert np.all(np.isfinite(slope(jnp.arange(0, 61, dtype=jnp.float32))))
    count = np.array([3.5, 6.25, 13.75, 26.25, 57.25], np.float32)
    step = np.float32(0.25)
    ahead, behind = schedule(count + step), schedule(count - step)
    rise = (np.asarray(ahead, float) - np.asarray(behind, float)) / (2 * step)
    if "stairs" not in name and not name.startswith("step"):
        np.testing.assert_allclose(slope(count), rise, rtol=0.03, atol=2e-5)


def test_gradient_with_respect_to_the_values():
    def total(init, rate, power):
        made = [
            schedules.inverse_time_decay(init, rate, 3),
            schedules.step_decay(init, rate, 3),
            schedules.exponential_step_decay(init, rate, 3),
            schedules.natural_exponential_decay(init, rate),
            schedules.polynomial_decay(init, 0.1 * init, power, 9),
            schedules.cyclical(0.1 * init, init, 3, step_gamma=rate),
            schedules.cosine_annealing_warm_restarts(init, 0.0, 3, 2, rate),
            schedules.warmup(schedules.inverse_sqrt_decay(init, 4), 5),
        ]
        return sum(f(jnp.arange(20)).sum() for f in made)

    args = (0.3, 0.7, 1.7)
    slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*args)
    for n, slope in enumerate(slopes):
        ahead, behind = (
            total(*[a + d * (n == i) for i, a in enumerate(args)])
            for d in (1e-2, -1e-2)
        )
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-2, rtol=2e-3)


@pytest.mark.parametrize(("start", "end"), [(0.3, 0.3), (0.0, 0.3), (0.3, 0.0)])
def test_gradient_of_a_line(start, end):
    """What is done is the end's share, also where both are equal."""

    def value(start, end, count):
        return schedules.polynomial_decay(start, end, 1, 10)(count)

    for count in (0, 2, 8, 10):
        shares = jax.grad(value, argnums=(0, 1))(start, end, count)
        np.testing.assert_allclose(shares, (1 - count / 10, count / 10), rtol=1e-6)


def test_slow_decays_at_many_counts():
    """Where the exponent is up to 65, and rounded it would be wrong by 4e-6."""
    rng = np.random.default_rng(0)
    for rate in 10 ** rng.uniform(-7, -1, 30):
        count = rng.integers(0, int(65 / rate), 500)
        expected = reference.natural_exponential_decay(0.3, rate)(count)
        value = schedules.natural_exponential_decay(0.3, rate)(count)
        np.testing.assert_allclose(value, expected, rtol=5e-7)
        # A traced rate is a float32, and this is what that one gives.
        rounded = jnp.float32(rate)
        exact = reference.natural_exponential_decay(0.3, float(rounded))(count)
        value = schedules.natural_exponential_decay(0.3, rounded)(count)
        np.testing.assert_allclose(value, exact, rtol=1e-5)
        factor = math.exp(-rate)
        value = schedules.step_decay(0.3, factor, 1)(count)
        expected = 0.3 * np.exp(math.log(factor) * count)
        np.testing.assert_allclose(value, expected, rtol=5e-7)


@pytest.mark.parametrize("power", [0.125, 3, 10, 33.25, 100, 1e4])
@pytest.mark.parametrize("steps", [1000, 10**7 + 1, 2**24 + 3, 10**9 + 7])
def test_powers(power, steps):
    """The power multiplies the relative error of what is left: it must have none."""
    rng = np.random.default_rng(0)
    # Above 1e-30 where what is left is above this:
    count = rng.integers(0, int(steps * -math.expm1(-69 / power)) or 1, 2000)
    expected = np.exp(power * np.log1p(-count / steps))
    schedule = schedules.polynomial_decay(1.0, 0.0, power, steps)
    value = jax.jit(schedule)(jnp.asarray(count))
    check(Case(None, 0.0, 1.0, {}), value, expected)


def test_what_a_power_alone_would_not_hold():
    tiny, huge = np.float32(1e-30), np.float32(1e30)
    pairs = [
        (schedules.step_decay(0.0, 2.0, 1)(200), 0),
        (schedules.step_decay(huge, 0.1, 1)(38), 1e-8),
        (schedules.step_decay(huge, 0.1, 10, 300)(90), 1e-9),
        (schedules.step_decay(tiny, 10.0, 1)(45), 1e15),
        (schedules.natural_exponential_decay(huge, 1.0)(100), 1e30 * math.exp(-100)),
        (schedules.cyclical(0.0, huge, 1, cycle_gamma=0.1)(81), 1e-10),
        (schedules.step_decay(1.0, 0.5, 1)(LAST), 0),
        (schedules.step_decay(1.0, 1e-300, 1)(1), 0),
    ]
    for value, expected in pairs:
        np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_steps_of_any_dtype():
    count = jnp.array([0, 1, 100, 150, 200, 298, 299])
    for kind in (jnp.int8, jnp.uint8, jnp.int16, jnp.uint32, jnp.float32):
        ours = schedules.cyclical(0.0, 1.0, kind(100), step_size_down=jnp.int32(100))
        expected = schedules.cyclical(0.0, 1.0, 100)
        np.testing.assert_allclose(ours(count), expected(count), rtol=1e-6)
        ours = schedules.step_decay(1.0, 0.5, 300, kind(1))(count)
        np.testing.assert_array_equal(ours, [1, 1, 1, 1, 1, 1, 0.5])
    far = schedules.cyclical(0.0, 1.0, jnp.int32(LAST))(jnp.array([2**30, LAST - 1]))
    np.testing.assert_allclose(far, [0.5, 1], rtol=1e-6)
    assert schedules.shift(line, jnp.int32(-5))(LAST) == np.float32(LAST)
    assert schedules.step_decay(1.0, 0.5, jnp.uint32(3 * 10**9))(0) == 1
    assert schedules.repeat(line, jnp.float32(2))(2**24 + 1) == 1


def test_nothing_is_nan_on_the_way():
    with jax.debug_nans(True):
        value = schedules.warmup(1.0, jnp.int32(0))(jnp.arange(3))
    np.testing.assert_array_equal(value, [1, 1, 1])


def test_an_ensemble_with_values_and_steps_of_its_own():
    init, rate = jnp.array([0.1, 0.3]), jnp.array([0.5, 0.9])
    steps = jnp.array([3, 8])
    count = jnp.arange(30)
    makers = [
        lambda i, r, s: schedules.step_decay(i, r, s, offset=1),
        lambda i, r, s: schedules.inverse_time_decay(i, r, s, staircase=True),
        lambda i, r, s: schedules.polynomial_decay(i, r, 2.0, s),
        lambda i, r, s: schedules.cosine_annealing(i, 0.0, s),
        lambda i, r, s: schedules.cosine_annealing_warm_restarts(i, 0.0, s, 1, r),
        lambda i, r, s: schedules.cyclical(0.0, i, s, cycle_gamma=r, step_size_down=s),
        lambda i, r, s: schedules.warmup_stable_decay(i, s, s, s, end_value=0.0),
        lambda i, r, s: schedules.repeat(schedules.natural_exponential_decay(i, r), s),
        lambda i, r, s: schedules.shift(schedules.exponential_step_decay(i, r, s), s),
        lambda i, r, s: schedules.per_epoch(schedules.inverse_sqrt_decay(i, s), s),
        lambda i, r, s: schedules.clamp(schedules.step_decay(1.0, r, s), max_value=i),
    ]
    for make in makers:
        together = jax.vmap(lambda i, r, s, m=make: m(i, r, s)(count))(
            init, rate, steps
        )
        for n in range(2):
            alone = make(float(init[n]), float(rate[n]), int(steps[n]))(count)
            np.testing.assert_allclose(together[n], alone, rtol=2e-6, atol=1e-9)


def test_traces_once():
    schedule = schedules.cosine_annealing_warm_restarts(0.3, 0.0, 3, 1.5)
    run = jax.jit(chex.assert_max_traces(schedule, 1))
    for count in range(5):
        run(jnp.int32(count))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_on_a_mesh(kind):
    axis = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis,))
    count = jnp.arange(16)
    for name in [*SOME, "natural exponential", "warm-up, stable, 1-sqrt"]:
        schedule = jax.jit(CASES[name].make(schedules, 5))
        with jax.set_mesh(mesh):
            whole = jax.device_put(3, jax.sharding.NamedSharding(mesh, jax.P()))
            parts = jax.device_put(
                count, jax.sharding.NamedSharding(mesh, jax.P("data"))
            )
            np.testing.assert_array_equal(schedule(whole), schedule(3))
            values = np.asarray(schedule(parts))
        np.testing.assert_allclose(values, schedule(count), rtol=1e-6, atol=1e-9)


# The combinators.


def line(count):
    """Any schedule: this one returns what it is called with."""
    return jnp.asarray(count)


def climb(count):
    return 2.0 + jnp.asarray(count).astype(jnp.float32)


def test_per_epoch():
    count = jnp.array([0, 389, 390, 390 * 7 + 195, LAST])
    whole = schedules.per_epoch(line, 390)(count)
    np.testing.assert_array_equal(whole, [0, 0, 1, 7, LAST // 390])
    parts = schedules.per_epoch(line, 390, staircase=False)(count)
    np.testing.assert_allclose(parts, np.asarray(count, float) / 390, rtol=1e-6)
    every = jnp.arange(1, 1001)  # whole epochs are whole, also under jit
    for steps in (3, 7, 41, 47, 390):
        epochs = schedules.per_epoch(line, steps, staircase=False)
        np.testing.assert_array_equal(jax.jit(epochs)(every * steps), every)


def test_per_epoch_of_stairs_between_whole_epochs():
    """The stairs of a schedule of fractional epochs are at their exact updates."""
    for steps in (1, 3, 7, 41, 47, 390):
        epochs = schedules.step_decay(1.0, 0.5, 3)
        schedule = schedules.per_epoch(epochs, steps, staircase=False)
        count = np.arange(10 * steps)
        expected = 0.5 ** (count // (3 * steps))
        np.testing.assert_array_equal(jax.jit(schedule)(count), expected)


@pytest.mark.parametrize(
    ("steps", "epoch"), [(390, 100_000), (10**5, 511), (10**6, 127), (2000, 16_383)]
)
def test_the_last_update_of_an_epoch_is_in_it(steps, epoch):
    """Far out, where the sum of both would be rounded up to the next epoch."""
    count = jnp.array([epoch * steps, epoch * steps + steps - 1, (epoch + 1) * steps])
    epochs = schedules.per_epoch(line, steps, staircase=False)(count)
    np.testing.assert_array_equal(jnp.floor(epochs), [epoch, epoch, epoch + 1])
    np.testing.assert_allclose(epochs, np.asarray(count, float) / steps, rtol=1e-7)


def test_multiply():
    ramp = schedules.warmup(2.0, 3)
    both = schedules.multiply(ramp, line, 0.5)
    np.testing.assert_allclose(both(jnp.arange(5)), [0, 0.5, 1.5, 3, 4], rtol=1e-6)


def test_clamp():
    count = jnp.arange(5)
    np.testing.assert_array_equal(schedules.clamp(line, 2)(count), [2, 2, 2, 3, 4])
    both = schedules.clamp(line, 1, 3)
    np.testing.assert_array_equal(both(count), [1, 1, 2, 3, 3])
    top = schedules.clamp(line, max_value=2)
    np.testing.assert_array_equal(top(count), [0, 1, 2, 2, 2])


def test_repeat():
    count = jnp.array([0, 4, 5, 14, LAST])
    np.testing.assert_array_equal(
        schedules.repeat(line, 5)(count), [0, 4, 0, 4, LAST % 5]
    )
    late = schedules.repeat(line, 3 * 10**9)(jnp.array([0, 7, 2**24]))
    np.testing.assert_array_equal(late, [0, 7, 2**24])


def test_shift():
    count = jnp.array([0, 4, 5, 14])
    np.testing.assert_array_equal(schedules.shift(line, 5)(count), [0, 0, 0, 9])
    np.testing.assert_array_equal(schedules.shift(line, -5)(count), [5, 9, 10, 19])
    end = jnp.array([0, LAST - 4, LAST])
    early = schedules.shift(lambda count: LAST - count, -5)(end)
    np.testing.assert_array_equal(early, [np.float32(LAST - 5), 0, 0])  # no overflow
    for steps in (3 * 10**9, LAST, -3 * 10**9):
        np.testing.assert_array_equal(
            schedules.shift(line, steps)(count),
            [0 if steps > 0 else np.float32(LAST)] * 4,
        )


def test_warmup():
    count = jnp.arange(6)
    constant = schedules.warmup(1.0, 3)(count)
    np.testing.assert_array_equal(constant, [0.25, 0.5, 0.75, 1, 1, 1])
    zero = schedules.warmup(optax.constant_schedule(1.0), 2, init_value=0.0)(count)
    np.testing.assert_array_equal(zero, [0, 0.5, 1, 1, 1, 1])
    after = schedules.warmup(climb, 2)(count)
    np.testing.assert_allclose(after, [2 / 3, 4 / 3, 2, 3, 4, 5], rtol=1e-6)
    down = schedules.warmup(0.9, 2, init_value=1.0)(count)
    np.testing.assert_allclose(down, [1, 0.95, 0.9, 0.9, 0.9, 0.9], rtol=1e-6)


def test_warmup_calls_its_schedule_once():
    calls = []
    schedule = calls.append
    for _ in range(3):
        schedule = schedules.warmup(lambda c, f=schedule: f(c) or 1.0, 2)
    schedule(1)
    assert len(calls) == 1


def test_zero_length_phases_are_exact():
    count = jnp.arange(5)
    same = schedules.warmup(climb, 0)(count)
    np.testing.assert_array_equal(same, [2, 3, 4, 5, 6])
    traced = jax.jit(lambda w: schedules.warmup(climb, w)(count))(0)
    np.testing.assert_array_equal(traced, [2, 3, 4, 5, 6])
    down = schedules.warmup_stable_decay(1.0, 0, 0, 4)(count)
    np.testing.assert_array_equal(down, [1, 0.75, 0.5, 0.25, 0])
    no_rest = schedules.warmup_stable_decay(1.0, 1, 0, 2)(count)
    np.testing.assert_array_equal(no_rest, [0.5, 1, 0.5, 0, 0])


def test_combinators_of_combinators():
    """In any order, on the exact steps, at the largest count."""
    schedule = schedules.clamp(
        schedules.multiply(
            schedules.shift(
                schedules.repeat(schedules.cyclical(0.0, 1.0, 10), 15), 1000
            ),
            schedules.per_epoch(schedules.step_decay(1.0, 0.5, 2), 500),
        ),
        min_value=0.01,
    )
    count = np.array([0, 1000, 1010, 1014, 1015, 1025, 1999, 2000])
    place = np.maximum(count - 1000, 0) % 15
    height = np.where(place <= 10, place / 10, 2 - place / 10)
    expected = np.maximum(height * 0.5 ** (count // 1000), 0.01)
    np.testing.assert_allclose(jax.jit(schedule)(count), expected, rtol=1e-6)
    assert schedule(LAST) == np.float32(0.01)


@pytest.mark.usefixtures("optax_promotion")
def test_around_schedules_of_optax():
    linear = optax.linear_schedule(1.0, 0.0, 4)
    value = schedules.repeat(linear, 4)(jnp.arange(6))
    np.testing.assert_array_equal(value, [1, 0.75, 0.5, 0.25, 1, 0.75])
    joined = optax.join_schedules(
        [schedules.cosine_annealing(1.0, 0.5, 3), linear], [3]
    )
    np.testing.assert_allclose(joined(jnp.array([0, 2, 3, 5])), [1, 0.625, 1, 0.5])


# Wrong arguments.

NAN, INF = math.nan, math.inf
WRONG = [
    (
        lambda: schedules.inverse_time_decay(NAN, 0.1),
        "init_value must be a finite number, got nan",
    ),
    (
        lambda: schedules.inverse_time_decay(0.1, -0.1),
        "decay_rate must be a finite number of at least 0, got -0.1",
    ),
    (
        lambda: schedules.inverse_time_decay(0.1, 0.1, 0),
        "decay_steps must be a whole number of at least 1, got 0",
    ),
    (
        lambda: schedules.step_decay(INF, 0.1, 10),
        "init_value must be a finite number, got inf",
    ),
    (
        lambda: schedules.step_decay(1.0, 0, 10),
        "decay_rate must be a finite number above 0, got 0",
    ),
    (
        lambda: schedules.step_decay(1.0, 0.1, -10),
        "step_size must be a whole number of at least 1, got -10",
    ),
    (
        lambda: schedules.step_decay(1.0, 0.1, 10, -1),
        "offset must be a whole number of at least 0, got -1",
    ),
    (
        lambda: schedules.exponential_step_decay(1.0, NAN, 10),
        "decay_rate must be a finite number above 0, got nan",
    ),
    (
        lambda: schedules.natural_exponential_decay(1.0, -1),
        "decay_rate must be a finite number of at least 0, got -1",
    ),
    (
        lambda: schedules.polynomial_decay(1.0, 0.0, 0, 10),
        "power must be a finite number above 0, got 0",
    ),
    (
        lambda: schedules.polynomial_decay(1.0, 0.0, 1, 2.5),
        "decay_steps must be a whole number of at least 1, got 2.5",
    ),
    (
        lambda: schedules.polynomial_decay(1.0, 0.0, 1, NAN),
        "decay_steps must be a whole number of at least 1, got nan",
    ),
    (
        lambda: schedules.cosine_annealing(0.1, 0.2, 10),
        "min_value must be at most max_value, got 0.2 and 0.1",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, 10, 0.9),
        "t_mult must be a finite number of at least 1, got 0.9",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, 10, NAN),
        "t_mult must be a finite number of at least 1, got nan",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, 0),
        "first_decay_steps must be a whole number of at least 1, got 0",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, 9, 2, 1.5),
        "peak_mult must be a finite number above 0 and of at most 1, got 1.5",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, 1, 1.0000001),
        "t_mult must be 1, or large enough for at most 2000 restarts in 2**31 steps, "
        "got 1.0000001",
    ),
    (
        lambda: schedules.cyclical(0.2, 0.1, 10),
        "base_value must be at most peak_value, got 0.2 and 0.1",
    ),
    (
        lambda: schedules.cyclical(0.1, 0.2, 0),
        "step_size must be a whole number of at least 1, got 0",
    ),
    (
        lambda: schedules.cyclical(0.1, 0.2, 9, step_size_down=0),
        "step_size_down must be a whole number of at least 1, got 0",
    ),
    (
        lambda: schedules.cyclical(0.1, 0.2, 9, window="hamming"),
        "window must be one of 'triangular', 'welch', 'hann', or a function, "
        "got 'hamming'",
    ),
    (
        lambda: schedules.cyclical(0.1, 0.2, 9, cycle_gamma=1.1),
        "cycle_gamma must be a finite number above 0 and of at most 1, got 1.1",
    ),
    (
        lambda: schedules.cyclical(0.1, 0.2, 9, step_gamma=0),
        "step_gamma must be a finite number above 0 and of at most 1, got 0",
    ),
    (
        lambda: schedules.inverse_sqrt_decay(0.1, 0),
        "decay_steps must be a whole number of at least 1, got 0",
    ),
    (
        lambda: schedules.warmup(0.1, -1),
        "warmup_steps must be a whole number of at least 0, got -1",
    ),
    (
        lambda: schedules.warmup(0.1, 1, init_value=NAN),
        "init_value must be a finite number, got nan",
    ),
    (
        lambda: schedules.warmup_stable_decay(1.0, 1, -1, 1),
        "stable_steps must be a whole number of at least 0, got -1",
    ),
    (
        lambda: schedules.warmup_stable_decay(1.0, 1, 1, 0),
        "decay_steps must be a whole number of at least 1, got 0",
    ),
    (
        lambda: schedules.warmup_stable_decay(1.0, 1, 1, 1, end_value=2),
        "end_value must be at most peak_value, got 2.0 and 1.0",
    ),
    (
        lambda: schedules.warmup_stable_decay(1.0, 1, 1, 1, decay="sqrt"),
        "decay must be one of 'linear', 'cosine', '1-sqrt', got 'sqrt'",
    ),
    (
        lambda: schedules.per_epoch(line, 0),
        "steps_per_epoch must be a whole number of at least 1, got 0",
    ),
    (lambda: schedules.multiply(), "multiply must get at least one schedule, got none"),
    (
        lambda: schedules.multiply(line, NAN),
        "each factor must be a finite number, got nan",
    ),
    (
        lambda: schedules.clamp(line),
        "clamp must get min_value or max_value, got neither",
    ),
    (
        lambda: schedules.clamp(line, 2, 1),
        "min_value must be at most max_value, got 2.0 and 1.0",
    ),
    (
        lambda: schedules.repeat(line, 0),
        "steps must be a whole number of at least 1, got 0",
    ),
    (lambda: schedules.shift(line, 0.5), "steps must be a whole number, got 0.5"),
    (
        lambda: schedules.step_decay(jnp.ones(2), 0.5, 10),
        "init_value must be a scalar, got shape (2,)",
    ),
    (
        lambda: schedules.cosine_annealing(1e39, 0, 10),
        "max_value must be at most 3.4e+38 in size, got 1e+39",
    ),
    (
        lambda: schedules.cosine_annealing(1, 0, 10**19),
        "decay_steps must be below 2**63, got 10000000000000000000",
    ),
    (
        lambda: schedules.cyclical(0, 1, 9, window=["hann"]),
        "window must be one of 'triangular', 'welch', 'hann', or a function, "
        "got ['hann']",
    ),
]
WRONG_TYPE = [
    (
        lambda: schedules.warmup(optax.sgd(0.1), 10),
        "schedule must be a function of the update count, or a number, "
        "got a GradientTransformationExtraArgs",
    ),
    (
        lambda: schedules.multiply([line, 0.5]),
        "each factor must be a function of the update count, or a number, got a list",
    ),
    (
        lambda: schedules.clamp(optax.sgd(0.1), 10),
        "schedule must be a function of the update count, "
        "got a GradientTransformationExtraArgs",
    ),
    (
        lambda: schedules.step_decay("0.1", 0.5, 10),
        "init_value must be a finite number, got '0.1'",
    ),
    (
        lambda: schedules.step_decay(0.1, True, 10),
        "decay_rate must be a finite number above 0, got True",
    ),
    (
        lambda: schedules.step_decay(0.1, 0.5, None),
        "step_size must be a whole number of at least 1, got None",
    ),
    (
        lambda: schedules.step_decay(0.1, jnp.array(True), 9),
        "decay_rate must be a finite number above 0, got a scalar of dtype bool",
    ),
    (
        lambda: schedules.repeat(0.1, 10),
        "schedule must be a function of the update count, got 0.1",
    ),
    (
        lambda: schedules.per_epoch(0.1, 10),
        "schedule must be a function of the update count, got 0.1",
    ),
    (
        lambda: schedules.shift(None, 10),
        "schedule must be a function of the update count, got None",
    ),
    (
        lambda: schedules.clamp(1, 0),
        "schedule must be a function of the update count, got 1",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, jnp.int32(9), 2),
        "first_decay_steps must be a Python number, got a JAX array",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, 9, jnp.int32(2)),
        "t_mult must be a Python number, got a JAX array",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), WRONG, ids=[s for _, s in WRONG])
def test_wrong_values(call, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        call()
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("call", "sentence"), WRONG_TYPE, ids=[s for _, s in WRONG_TYPE]
)
def test_wrong_types(call, sentence):
    with pytest.raises(TypeError, match=re.escape(sentence)) as error:
        call()
    assert str(error.value) == sentence


# Each with arguments that are fine; every one of them is then made wrong in turn.
FINE = {
    "inverse_time_decay": {"init_value": 1, "decay_rate": 0.1, "decay_steps": 5},
    "step_decay": {"init_value": 1, "decay_rate": 0.5, "step_size": 5, "offset": 0},
    "exponential_step_decay": {"init_value": 1, "decay_rate": 0.5, "step_size": 5},
    "natural_exponential_decay": {"init_value": 1, "decay_rate": 0.1},
    "polynomial_decay": {"init_value": 1, "end_value": 0, "power": 1, "decay_steps": 5},
    "cosine_annealing": {"max_value": 1, "min_value": 0, "decay_steps": 5},
    "cosine_annealing_warm_restarts": {
        "max_value": 1,
        "min_value": 0,
        "first_decay_steps": 5,
        "t_mult": 2,
        "peak_mult": 0.5,
    },
    "cyclical": {
        "base_value": 0,
        "peak_value": 1,
        "step_size": 5,
        "step_size_down": 5,
        "cycle_gamma": 0.5,
        "step_gamma": 0.5,
    },
    "inverse_sqrt_decay": {"init_value": 1, "decay_steps": 5},
    "warmup_stable_decay": {
        "peak_value": 1,
        "warmup_steps": 5,
        "stable_steps": 5,
        "decay_steps": 5,
        "init_value": 0,
        "end_value": 0,
    },
}
ALL_ARGUMENTS = [(name, argument) for name in FINE for argument in FINE[name]]


@pytest.mark.parametrize(("name", "argument"), ALL_ARGUMENTS)
def test_every_argument_is_checked(name, argument):
    make, fine = getattr(schedules, name), FINE[name]
    make(**fine)
    steps = "steps" in argument or "size" in argument or argument == "offset"
    wrong = [NAN, INF, 10**400, *([2.5, -1] if steps else [])]
    if steps and argument not in ("offset", "warmup_steps", "stable_steps"):
        wrong.append(0)
    if argument in ("min_value", "base_value") or (
        argument == "end_value" and name == "warmup_stable_decay"
    ):
        wrong.append(1.5)  # above the peak
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{argument} must be .*, got "):
            make(**{**fine, argument: value})
    with pytest.raises(TypeError, match=f"^{argument} must be .*, got 'x'$"):
        make(**{**fine, argument: "x"})


def test_numbers_of_every_kind():
    expected = schedules.step_decay(0.5, 0.25, 10)(jnp.arange(30))
    for kind in (np.float32, np.float64, jnp.float32, jnp.bfloat16, np.array):
        for steps in (10, 10.0, np.int8(10), jnp.int32(10), jnp.float32(10)):
            value = schedules.step_decay(kind(0.5), kind(0.25), steps)(jnp.arange(30))
            np.testing.assert_allclose(value, expected, rtol=1e-6)
