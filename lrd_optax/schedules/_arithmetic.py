"""Arithmetic that stays exact under jit: whole numbers first, floats at the end.

XLA turns a division by a constant into a product with its reciprocal, so T / T need not
be 1. And float32 has no odd numbers above 2**24. So counts stay whole numbers as long
as possible, and values at the ends are selected instead of computed.

Inside a schedule a count is uint32, or a float if the caller gave a float. Sums of two
counts or steps, each below 2**31, do not overflow.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from lrd_optax import _checks
from lrd_optax._checks import Number, Steps

LAST = 2**31 - 1  # the largest count


def schedule(function: Callable[[jax.Array], Any]) -> optax.Schedule:
    """Makes a schedule from a function of a count that `as_count` has converted."""

    def scheduled(count: ArrayLike) -> jax.Array:
        result = function(as_count(count))
        # A scalar is weakly typed, as in Optax: a bfloat16 times it is bfloat16.
        # full_like is the public way to make a weak type.
        return jax.lax.full_like(0.0, result) if result.ndim == 0 else result

    return scheduled


def call(schedule: optax.ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """Returns the value of any schedule or number, in the count's shape."""
    if is_whole(count):
        count = jnp.minimum(count, LAST).astype(jnp.int32)
    value = (
        _checks.call("schedule", schedule, count) if callable(schedule) else schedule
    )
    return jnp.broadcast_to(real(value), count.shape)


def as_count(count: ArrayLike) -> jax.Array:
    """Returns `count` as uint32 or float32 (float64 under x64), from 0 to LAST."""
    if isinstance(count, int):
        count = min(max(count, 0), LAST)
    # In NumPy if possible: JAX would cut off the high bits of an int64 first.
    xp: Any = np if isinstance(count, (int, np.ndarray, np.generic)) else jnp
    array = xp.asarray(count)
    if is_whole(array):
        if jnp.iinfo(array.dtype).max > LAST:
            array = xp.minimum(array, LAST)
        return jnp.asarray(xp.maximum(array, 0)).astype(jnp.uint32)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.clip(real(array), 0, LAST)
    raise TypeError(f"count must be a real number, got dtype {array.dtype}")


def is_whole(value: jax.Array | np.ndarray) -> bool:
    return jnp.issubdtype(value.dtype, jnp.integer)


def real(value: ArrayLike) -> jax.Array:
    """Returns `value` as float32, or as float64 where 64-bit types are on."""
    return jnp.asarray(value).astype(jnp.result_type(float))


def like(count: jax.Array, steps: Steps) -> jax.Array:
    """Returns `steps` as an array of the count's shape and dtype."""
    return jnp.full_like(count, steps)


def divide(count: jax.Array, steps: Steps) -> tuple[jax.Array, jax.Array]:
    """Returns the whole part of `count` / `steps`, and the rest, both exactly."""
    steps = like(count, steps)
    rest = jax.lax.rem(count, steps)
    if is_whole(count):
        return jax.lax.div(count, steps), rest
    # count - rest is a multiple, so the quotient is off by less than a half.
    return jnp.round((count - rest) / steps), rest


def part(count: jax.Array, steps: jax.Array) -> jax.Array:
    """Returns `count` / `steps` for a count up to `steps`, exactly 1 at the end."""
    return select(count == steps, 1, jnp.minimum(real(count) / real(steps), 1))


def left(count: jax.Array, steps: Steps) -> jax.Array:
    """Returns the part of `steps` left at `count`: from exactly 1 to exactly 0."""
    steps = like(count, steps)
    return part(steps - jnp.minimum(count, steps), steps)


def fractions(count: jax.Array, steps: Steps) -> tuple[jax.Array, jax.Array]:
    """Returns the parts of `steps` that are done and left at `count`.

    Both are precise: 1 - done would lose digits when little is left.
    """
    steps = like(count, steps)
    return part(jnp.minimum(count, steps), steps), left(count, steps)


def later(count: jax.Array, steps: Steps) -> jax.Array:
    """Returns `count` - `steps`, but at least 0. `steps` may be negative."""
    if not is_whole(count):
        return jnp.maximum(count - like(count, steps), 0)
    steps = jnp.asarray(steps, jnp.int32)
    # uint32 wraps around, and the difference is below 2**32.
    start = jnp.maximum(count.astype(jnp.int32), steps).astype(jnp.uint32)
    return start - steps.astype(jnp.uint32)


def select(condition: jax.Array, value: Number, other: jax.Array) -> jax.Array:
    """Returns `value` where the condition holds, else `other`, in its dtype."""
    return jnp.where(condition, jnp.full_like(other, value), other)


def between(low: Number, high: Number, height: jax.Array) -> jax.Array:
    """Returns exactly `low` at height 0 and `high` at 1, and never less than `low`."""
    return select(height == 1, high, low + (high - low) * height)


def ramp(start: Number, end: Number, done: jax.Array, left: jax.Array) -> jax.Array:
    """Returns `start` where all is left, and `end` where all is done.

    The value is measured from the lower of the two, so that no digits cancel.
    """
    falls = start >= end
    if isinstance(falls, bool):
        return between(end, start, left) if falls else between(start, end, done)
    return jnp.where(falls, between(end, start, left), between(start, end, done))


def half_wave(x: jax.Array) -> jax.Array:
    """Returns ``(1 - cos(pi x)) / 2`` for x in [0, 1], precise near 0 too."""
    return select(x == 1, 1, jnp.sin(x * (math.pi / 2)) ** 2)


def power(base: Number, times: jax.Array) -> jax.Array:
    """Returns ``base ** times``, but at most the largest float.

    float32 keeps few digits of a base near 1, and a large exponent multiplies what is
    lost. So what float32 loses gets a factor of its own.
    """
    times, rest = real(times), 0.0
    if isinstance(base, float):
        exact, base = base, float32_above(base)
        rest = math.log(exact / base)  # at most 0
    powers = jnp.power(base, times)
    # Capped, since infinity times a value of 0 would be NaN.
    largest = float(jnp.finfo(powers.dtype).max)
    return jnp.minimum(powers, largest) * jnp.exp(rest * times)


def exponential(rate: Number, count: jax.Array) -> jax.Array:
    """Returns ``exp(rate * count)`` for a rate of at most 0; see `power`."""
    times, rest = real(count), 0.0
    if isinstance(rate, float):
        exact, rate = rate, float32_above(rate)
        rest = exact - rate
    return jnp.exp(rate * times) * jnp.exp(rest * times)


def float32_above(value: float) -> float:
    """Returns the nearest float32 that is not below `value`, and not denormal."""
    rounded = np.float32(value)
    if float(rounded) < value:  # NumPy would compare a float32 in float32
        rounded = np.nextafter(rounded, np.float32(np.inf))
    tiny = float(np.finfo(np.float32).tiny)
    return tiny if 0 < value < tiny else float(rounded)
