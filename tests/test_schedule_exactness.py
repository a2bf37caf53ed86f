"""Ends, stairs, cycles and restarts are on their exact steps, for every length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import schedule_reference as reference
from schedule_cases import CASES, LAST, at_length, check, together

from lrd_optax import schedules

pytestmark = pytest.mark.slow

LENGTHS = np.array([*range(1, 1001), 10**5, 2**24 + 3, LAST])


def marks(steps):
    """0, 1, and T - 1, T, T + 1 for multiples of T and starts of cycles; far counts."""
    around = [m * steps + d for m in (1, 2, 3, 4, 7, 10) for d in (-1, 0, 1)]
    around += [-(-5 * steps // 2) + d for d in (-1, 0, 1)]  # T + 1.5 T
    far = [10**6, 2**24 - 1, 2**24, 2**24 + 1, LAST - 1, LAST]
    return np.minimum(np.array([0, 1, *around, *far], np.int64), LAST)


def check_marks(case, steps, count, value):
    for multiple, number in case.exact.items():
        if multiple * steps <= LAST:
            hit = value[count == multiple * steps]
            assert np.all(hit == np.float32(number)), (steps, multiple)


@pytest.mark.parametrize("name", CASES)
def test_all_lengths(name):
    """That jit and eager agree and the marks are hit, for T known to the compiler.

    XLA multiplies by the reciprocal of a constant. It does so for an array of
    constants too, so that one compilation does for all T: on linear decay with power
    0.5, written the plain way, as many T fail as one by one (the next test).
    """
    case, lengths = CASES[name], LENGTHS
    if case.static:  # each with a table of its own, and so a program of its own
        lengths = lengths[(lengths < 8) | (lengths % 166 == 0) | (lengths > 999)]
    count = np.stack([marks(steps) for steps in lengths])
    if case.static:  # without jit one by one, and with it only some
        made = [case.make(schedules, int(steps)) for steps in lengths]
        rows = zip(made, jnp.asarray(count), strict=True)
        eager = np.stack([schedule(row) for schedule, row in rows])
        some = range(0, len(made), 3)
        rows = {str(n): lambda count, n=n: made[n](count[n]) for n in some}
        value = np.array(eager)
        for n, row in together(rows)(jnp.asarray(count)).items():
            value[int(n)] = row
    else:
        each = jax.vmap(lambda steps, c: case.make(schedules, steps)(c))
        eager = np.asarray(each(jnp.asarray(lengths), jnp.asarray(count)))
        value = np.asarray(jax.jit(lambda count: each(lengths, count))(count))
    expected = [
        case.make(reference, int(steps))(row)
        for steps, row in zip(lengths, count, strict=True)
    ]
    for result in (value, eager):
        assert result.dtype == np.float32
        assert not np.any(np.isnan(result))
        assert np.all(result >= np.float32(case.low))
        assert np.all(result <= np.float32(case.high))
        # A stair or cycle a step late is off by more. A length that is traced makes a
        # rate that is rounded twice.
        check(case, result, np.stack(expected), far=2.5e-5)
        for steps, *rows in zip(lengths, count, result, strict=True):
            check_marks(case, steps, *rows)
    assert np.max(np.abs(value - eager)) <= 4 * np.spacing(np.float32(case.high))


@pytest.mark.parametrize("power", [1, 1.5, 2, 3.7, 9.5, 33.25])
def test_powers_without_jit(power):
    """The power multiplies what a product with 1 / T in place of a division changes."""
    schedule = schedules.polynomial_decay(1.0, 0.0, power, 1000)
    count = jnp.arange(1001)
    eager, jitted = np.asarray(schedule(count)), np.asarray(jax.jit(schedule)(count))
    assert np.all(np.abs(eager - jitted) <= 4 * np.spacing(jitted))


def test_a_plain_division_would_fail():
    lengths = np.arange(1, 1000)

    def plain(steps, count):
        return (1 - jnp.minimum(count, steps) / steps) ** 0.5

    with jax.numpy_dtype_promotion("standard"):
        run = jax.jit(lambda count: jax.vmap(plain)(lengths, count))
        constants = np.isnan(run(jnp.asarray(lengths)))
        few = jax.jit(lambda c: [plain(int(s), c[s]) for s in range(1, 41)])
        one_by_one = np.isnan(few(jnp.arange(41)))
    assert constants.sum() > 100
    np.testing.assert_array_equal(one_by_one, constants[:40])


@pytest.mark.parametrize("steps", [1, 3, 47])
def test_every_count(steps):
    count = np.arange(7 * steps + 3)
    ours, theirs = at_length(steps)
    for name, value in together(ours)(count).items():
        check(CASES[name], value, theirs[name](count))
        check_marks(CASES[name], steps, count, np.asarray(value))


def test_every_restart():
    """The first step of each cycle below 2**31, and the one before."""
    growing = [(first, m) for first in (1, 3, 1000) for m in (1, 2, 3, 1.5)]
    growing += [(10, m) for m in (1, 2, 10, 1.1, 1.25, 1.03, 3.14159265)]
    ours, counts = {}, {}
    for first, t_mult in growing:
        args = (0.3, 0.0, first, t_mult)
        if t_mult == 1:
            starts = [first * i for i in (1, 2, 3, 1000, LAST // first)]
        else:
            starts = reference.restarts(first, t_mult)[1:-1]
        ours[args] = schedules.cosine_annealing_warm_restarts(*args)
        counts[args] = np.array([start + d for start in starts for d in (-1, 0)])
    run = jax.jit(lambda counts: [f(counts[args]) for args, f in ours.items()])
    for (args, count), value in zip(counts.items(), run(counts), strict=True):
        expected = reference.cosine_annealing_warm_restarts(*args)(count)
        check(CASES["restarts"], value, expected)
        assert np.all(np.asarray(value)[1::2] == np.float32(0.3))


def test_cycles_take_whole_steps():
    """T_0 m^i, rounded: a half is rounded up, and 1.1 is eleven tenths."""
    restarts = schedules.cosine_annealing_warm_restarts
    value = restarts(1.0, 0.0, 10, 1.5)(jnp.arange(90))
    starts = [0, 10, 10 + 15, 10 + 15 + 23, 10 + 15 + 23 + 34]
    np.testing.assert_array_equal(np.flatnonzero(value == 1), starts)
    for t_mult in (1.1, np.float32(1.1), np.float64(1.1)):
        assert restarts(1.0, 0.0, 10, t_mult)(21) == 1


def test_a_decay_stays_decayed():
    """It came back once, where an exponent had overflowed."""
    made = {
        "step": schedules.step_decay(1.0, 0.1, 1),
        "exponential": schedules.exponential_step_decay(1.0, 0.1, 1),
        "natural": schedules.natural_exponential_decay(1.0, 0.05),
        "huge": schedules.natural_exponential_decay(1.0, 3e38),
        "restarts": schedules.cosine_annealing_warm_restarts(1.0, 0.0, 1, 1, 0.1),
        "cycles": schedules.cyclical(0.0, 1.0, 1, cycle_gamma=0.1),
        "steps": schedules.cyclical(0.0, 1.0, 1, step_gamma=0.1, decay_base=True),
    }
    run = together(made)
    for count in (np.array([4000, 2**28, LAST]), np.float32([4000, 1e12, np.inf])):
        for name, value in run(count).items():
            np.testing.assert_array_equal(value, 0, err_msg=name)
    grows = schedules.step_decay(0.0, 2.0, 1)(np.array([0, 200, LAST]))
    np.testing.assert_array_equal(grows, 0)  # not 0 times infinity
