"""Arithmetic that stays exact under jit: whole numbers first, floats at the end.

XLA turns a division by a constant into a product with its reciprocal, so that T / T
need not be 1, and float32 has no odd numbers above 2**24.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from lrd_optax.schedules._arguments import Number, Steps


def real(value: ArrayLike) -> jax.Array:
    """Returns `value` as float32, or as float64 where 64-bit types are on."""
    # An int may be too large for int32.
    value = jnp.asarray(float(value) if isinstance(value, int) else value)
    return value.astype(jnp.result_type(float))


def as_count(count: ArrayLike) -> jax.Array:
    """Returns `count` as int32 or float32 (or 64 bit), with 0 for what is negative."""
    most = jnp.iinfo(jnp.result_type(int)).max
    if isinstance(count, int) and count > most:
        count = float(count)
    if isinstance(count, (np.ndarray, np.generic)) and count.dtype.kind in "iu":
        count = count.astype(float) if np.any(count > most) else count
    count = jnp.asarray(count)
    if is_whole(count):
        most = min(most, jnp.iinfo(count.dtype).max)
        count = jnp.clip(count, 0, most).astype(jnp.result_type(int))
    elif jnp.issubdtype(count.dtype, jnp.floating):
        count = jnp.maximum(real(count), 0)
    else:
        raise TypeError(f"count must be a real number, got dtype {count.dtype}")
    return count


def is_whole(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.integer)


def divide(count: jax.Array, steps: Steps) -> tuple[jax.Array, jax.Array]:
    """Returns how many times `steps` are in `count`, and the rest, both exactly."""
    if _out_of_reach(count, steps):
        return jnp.zeros_like(count), count
    count, divisor = _alike(count, steps)
    rest = jnp.remainder(count, divisor)
    if is_whole(count):
        return count // divisor, rest
    # Of a multiple: the quotient is off by less than a half, and rounds to what it is.
    return jnp.round((count - rest) / divisor), rest


def fractions(count: jax.Array, steps: Steps) -> tuple[jax.Array, jax.Array]:
    """Returns which parts of `steps` are done and left: 0 and 1 exactly at the ends.

    Each has all its digits: 1 - done would have lost them where little is left.
    """
    if _out_of_reach(count, steps):
        count = real(count)
    count, total = _alike(count, steps)
    count = jnp.clip(count, 0, total)
    done = jnp.minimum(real(count) / real(total), 1)
    left = jnp.minimum(real(total - count) / real(total), 1)
    return jnp.where(count < total, done, 1), jnp.where(count > 0, left, 1)


def reached(count: jax.Array, steps: Steps) -> jax.Array:
    """Returns whether `count` is at least `steps`."""
    if _out_of_reach(count, steps):
        return jnp.zeros(count.shape, bool)
    count, steps = _alike(count, steps)
    return count >= steps


def later(count: jax.Array, steps: Steps) -> jax.Array:
    """Returns `count` - `steps`, no less than 0 and without an overflow."""
    if isinstance(steps, int) and steps < 0 and is_whole(count):
        most = jnp.iinfo(count.dtype).max
        return jnp.minimum(count, most + max(steps, -most)) - max(steps, -most)
    if _out_of_reach(count, steps):
        return jnp.zeros_like(count)
    count, steps = _alike(count, steps)
    return jnp.maximum(count - steps, 0)


def between(low: ArrayLike, high: ArrayLike, height: jax.Array) -> jax.Array:
    """Returns `low` at height 0, `high` at 1, exactly, and never less than `low`."""
    low, high = real(low), real(high)
    return jnp.where(height == 1, high, low + (high - low) * height)


def ramp(
    start: ArrayLike, end: ArrayLike, done: jax.Array, left: jax.Array
) -> jax.Array:
    """Returns `start` where all is left, `end` where all is done.

    Measured from the lower of the two, so that nothing cancels.
    """
    start, end = real(start), real(end)
    low, high = jnp.minimum(start, end), jnp.maximum(start, end)
    return between(low, high, jnp.where(start >= end, left, done))


def half_wave(x: jax.Array) -> jax.Array:
    """Returns ``(1 - cos(pi x)) / 2`` for x in [0, 1], with all digits near 0."""
    return jnp.where(x < 1, jnp.sin(x * (math.pi / 2)) ** 2, 1)


def log2(value: Number) -> Number:
    return jnp.log2(real(value)) if isinstance(value, jax.Array) else math.log2(value)


def power_of_two(rate: Number, count: jax.Array) -> jax.Array:
    """Returns ``2 ** (rate * count)``, exact where that is a whole power.

    A rounded product of 100 would make the power wrong by 4e-6. So the rate is split
    after 8 bits and the count after 16: the large products are exact, and what is left
    of each behind the point is small.
    """
    head, tail = _split(rate)
    below = jnp.remainder(count, jnp.asarray(2**16, count.dtype))
    products = [real(count - below) * head, real(below) * head, real(count) * tail]
    whole = sum(jnp.floor(each) for each in products)
    part = sum(each - jnp.floor(each) for each in products)
    whole, part = whole + jnp.floor(part), part - jnp.floor(part)
    return jnp.exp(part * math.log(2)) * _whole_power_of_two(whole)


def call(schedule: optax.ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """Returns the value of any schedule or number, of the shape of `count`."""
    value = schedule(count) if callable(schedule) else schedule
    return jnp.broadcast_to(real(value), count.shape)


def _out_of_reach(count: jax.Array, steps: Steps) -> bool:
    return (
        is_whole(count)
        and isinstance(steps, int)
        and steps > jnp.iinfo(count.dtype).max
    )


def _alike(count: jax.Array, steps: Steps) -> tuple[jax.Array, jax.Array]:
    """Returns both as whole numbers of one dtype, or as floats where one is none."""
    if is_whole(count) and (isinstance(steps, int) or is_whole(steps)):
        return count, jnp.asarray(steps).astype(count.dtype)
    return real(count), real(steps)


def _split(rate: Number) -> tuple[ArrayLike, ArrayLike]:
    """Returns `rate` as the sum of its first 8 bits and the rest."""
    if isinstance(rate, jax.Array):
        rate = jnp.clip(rate, -(2.0**64), 2.0**64)
        head = jax.lax.reduce_precision(rate, exponent_bits=8, mantissa_bits=7)
        return head, rate - head
    rate = min(max(rate, -(2.0**64)), 2.0**64)  # no overflow, and 0 or inf all the same
    mantissa, exponent = math.frexp(rate)
    first = math.ldexp(round(mantissa * 2**8), exponent - 8)
    return first, rate - first


def _whole_power_of_two(exponent: jax.Array) -> jax.Array:
    """Returns ``2 ** exponent`` by its bits: 0 or infinity out of range."""
    dtype = exponent.dtype
    info = jnp.finfo(dtype)
    whole = jnp.int64 if info.bits == 64 else jnp.int32
    biased = jnp.clip(exponent + info.maxexp - 1, 0, 2 * info.maxexp - 1)
    return jax.lax.bitcast_convert_type(biased.astype(whole) << info.nmant, dtype)
