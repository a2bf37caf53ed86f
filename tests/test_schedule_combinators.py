"""Schedules made of schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from schedule_cases import LAST

from lrd_optax import schedules


def line(count):
    """Any schedule: this one returns what it is called with."""
    return jnp.asarray(count)


def climb(count):
    return 2.0 + jnp.asarray(count).astype(jnp.float32)


@pytest.mark.slow
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
    late = schedules.repeat(line, LAST)(jnp.array([0, 7, 2**24, LAST]))
    np.testing.assert_array_equal(late, [0, 7, 2**24, 0])


def test_shift():
    count = jnp.array([0, 4, 5, 14])
    np.testing.assert_array_equal(schedules.shift(line, 5)(count), [0, 0, 0, 9])
    np.testing.assert_array_equal(schedules.shift(line, -5)(count), [5, 9, 10, 19])
    end = jnp.array([0, LAST - 4, LAST])
    early = schedules.shift(lambda count: LAST - count, -5)(end)
    np.testing.assert_array_equal(early, [np.float32(LAST - 5), 0, 0])  # no overflow
    for steps in (LAST, -LAST):
        shifted = schedules.shift(line, steps)(count)
        expected = 0 if steps > 0 else np.float32(LAST)
        np.testing.assert_array_equal(shifted, [expected] * 4)


def test_shift_to_before_the_last_count():
    """What is behind the last count is taken for it: no schedule counts further."""
    cycles = schedules.cyclical(0.0, 1.0, 100)
    count = np.array([LAST - 1030, LAST - 1000, LAST - 999, LAST])
    expected = cycles(np.minimum(count + 1000, LAST))
    np.testing.assert_array_equal(schedules.shift(cycles, -1000)(count), expected)


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
