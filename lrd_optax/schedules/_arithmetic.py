"""Arithmetic that stays exact under jit: whole numbers first, floats at the end.

XLA turns a division by a constant into a product with its reciprocal, so that T / T
need not be 1, and float32 has no odd numbers above 2**24.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from lrd_optax.schedules._arguments import Number, Steps


class Exponent(NamedTuple):
    """An exponent of 2, which may be far out of the range of a float's."""

    whole: jax.Array
    part: jax.Array  # in [0, 1)


def schedule(value: Callable[[jax.Array], jax.Array]) -> optax.Schedule:
    """Makes a schedule of a function of a clean count: an array, whole or float."""

    def scheduled(count: ArrayLike) -> jax.Array:
        result = value(as_count(count))
        # A scalar is weak, as those of Optax are: times a bfloat16 it is bfloat16.
        # full_like is the public way to a weak type.
        return jax.lax.full_like(0.0, result) if result.ndim == 0 else result

    return scheduled


def call(schedule: optax.ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """Returns the value of any schedule or number, of the shape of `count`."""
    value = schedule(count) if callable(schedule) else schedule
    return jnp.broadcast_to(real(value), count.shape)


def real(value: ArrayLike) -> jax.Array:
    """Returns `value` as float32, or as float64 where 64-bit types are on."""
    # An int may be too large for int32.
    value = jnp.asarray(float(value) if isinstance(value, int) else value)
    return value.astype(jnp.result_type(float))


def as_count(count: ArrayLike) -> jax.Array:
    """Returns `count` as int32 or float32 (or 64 bit), no less than 0."""
    if isinstance(count, int) and not isinstance(count, bool):
        count = min(max(count, 0), _most())
    if isinstance(count, (np.ndarray, np.generic)) and count.dtype.kind in "iu":
        count = np.clip(count, 0, min(_most(), np.iinfo(count.dtype).max))
    count = jnp.asarray(count)
    if is_whole(count):
        most = min(_most(), jnp.iinfo(count.dtype).max)
        return jnp.clip(count, 0, most).astype(jnp.result_type(int))
    if jnp.issubdtype(count.dtype, jnp.floating):
        return jnp.clip(real(count), 0, 1e30)  # what is infinite has no remainder
    raise TypeError(f"count must be a real number, got dtype {count.dtype}")


def is_whole(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.integer)


def alike(*steps: Steps) -> tuple[Any, ...]:
    """Returns all as Python ints, or all as arrays of the default int."""
    if all(isinstance(each, int) for each in steps):
        return steps
    return tuple(_whole(each) for each in steps)


def add(first: Steps, second: Steps) -> Steps:
    first, second = alike(first, second)
    if not isinstance(first, int):
        second = jnp.minimum(second, _most() - first)
    return first + second


def divide(count: jax.Array, steps: Steps) -> tuple[jax.Array, jax.Array]:
    """Returns how many times `steps` are in `count`, and the rest, both exactly."""
    if _out_of_reach(count, steps):
        return jnp.zeros_like(count), count
    divisor = _like(count, steps)
    rest = jnp.remainder(count, divisor)
    if is_whole(count):
        return count // divisor, rest
    # Of a multiple: the quotient is off by less than a half, and rounds to what it is.
    return jnp.round((count - rest) / divisor), rest


def fractions(count: jax.Array, steps: Steps) -> tuple[jax.Array, jax.Array]:
    """Returns which parts of `steps` are done and left: 0 and 1 exactly at the ends.

    Each has all its digits: 1 - done would have lost them where little is left.
    """
    within, total = _within(count, steps)
    divisor = jnp.maximum(real(total), 1)  # a traced length may be 0
    done = jnp.minimum(real(within) / divisor, 1)
    left = jnp.minimum(real(total - within) / divisor, 1)
    return jnp.where(within >= total, 1, done), jnp.where(within <= 0, 1, left)


def rounding(count: jax.Array, steps: Steps, left: jax.Array) -> jax.Array:
    """Returns by which part of itself `left` of `fractions` should be larger.

    ``remaining - left * total``, from the halves of the factors: their products are
    exact, and so are the differences. Of more than 24 bits 7 are put aside.
    """
    within, total = _within(count, steps)
    remaining = total - within

    def low(value: jax.Array) -> jax.Array:
        rest = jnp.remainder(value, jnp.asarray(2**7, value.dtype))
        return jnp.where(total < 2**24, 0, rest)

    def halves(value: jax.Array) -> tuple[jax.Array, jax.Array]:
        info = jnp.finfo(value.dtype)
        head = jax.lax.reduce_precision(value, info.nexp, info.nmant // 2)
        return head, value - head

    a, b = halves(left)
    c, d = halves(real(total - low(total)))
    difference = real(remaining - low(remaining)) - a * c
    difference = ((difference - a * d) - b * c) - b * d
    end = real(low(total))
    difference = difference + ((real(low(remaining)) - a * end) - b * end)
    difference = difference / jnp.maximum(real(remaining), 1e-30)
    # As a function of the count it is noise, which has no slope.
    return jax.lax.stop_gradient(difference)


def reached(count: jax.Array, steps: Steps) -> jax.Array:
    """Returns whether `count` is at least `steps`."""
    if _out_of_reach(count, steps):
        return jnp.zeros(count.shape, bool)
    return count >= _like(count, steps)


def later(count: jax.Array, steps: Steps) -> jax.Array:
    """Returns `count` - `steps`, no less than 0 and without an overflow."""
    if _out_of_reach(count, steps):
        return jnp.zeros_like(count)
    steps = _like(count, steps)
    if is_whole(count):
        count = jnp.minimum(count, _most() + jnp.minimum(steps, 0))
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
    falls = start >= end
    low, high = jnp.where(falls, end, start), jnp.where(falls, start, end)
    return between(low, high, jnp.where(falls, left, done))


def half_wave(x: jax.Array) -> jax.Array:
    """Returns ``(1 - cos(pi x)) / 2`` for x in [0, 1], with all digits near 0."""
    return jnp.where(x >= 1, 1, jnp.sin(x * (math.pi / 2)) ** 2)


def log2(value: Number) -> Number:
    return jnp.log2(real(value)) if isinstance(value, jax.Array) else math.log2(value)


def exponent(rate: Number, count: jax.Array) -> Exponent:
    """Returns ``rate * count``: a whole number and a part in [0, 1), which is precise.

    A rounded product of 100 would make the power wrong by 4e-6. So the rate is split
    after 8 bits and the count after 16: the large products are exact, and what is left
    of each behind the point is small.
    """
    head, tail = _split(rate)
    below = jnp.remainder(count, jnp.asarray(2**16, count.dtype))
    products = [real(count - below) * head, real(below) * head, real(count) * tail]
    # Far beyond what a float holds as a power of 2; here only so that none is infinite.
    products = [jnp.clip(each, -(2.0**20), 2.0**20) for each in products]
    pairs = [Exponent(jnp.floor(each), each - jnp.floor(each)) for each in products]
    return _sum(*pairs)


def scale(value: ArrayLike, *exponents: Exponent) -> jax.Array:
    """Returns `value` times 2 to the sum of `exponents`, in or out of range itself."""
    whole, part = _sum(*exponents)
    # In two halves: 1e30 times 2 ** -150 is a number, and 2 ** -150 is none.
    most = 2 * (jnp.finfo(whole.dtype).maxexp - 1)
    whole = jnp.clip(whole, -most, most)
    half = jnp.floor(whole / 2)
    scaled = real(value) * jnp.exp(part * math.log(2))
    return scaled * _power_of_two(half) * _power_of_two(whole - half)


def _most() -> int:
    return int(jnp.iinfo(jnp.result_type(int)).max)


def _whole(steps: Steps) -> jax.Array:
    """Returns `steps` as the default int, at most its largest."""
    if isinstance(steps, int):
        return jnp.asarray(max(min(steps, _most()), -_most()), jnp.result_type(int))
    most = _most()
    if is_whole(steps):
        most = min(most, jnp.iinfo(steps.dtype).max)
        steps = jnp.minimum(steps, jnp.asarray(most, steps.dtype))
    return steps.astype(jnp.result_type(int))


def _out_of_reach(count: jax.Array, steps: Steps) -> bool:
    return is_whole(count) and isinstance(steps, int) and steps > _most()


def _like(count: jax.Array, steps: Steps) -> jax.Array:
    return _whole(steps) if is_whole(count) else real(steps)


def _within(count: jax.Array, steps: Steps) -> tuple[jax.Array, jax.Array]:
    """Returns `count` from 0 to `steps`, and `steps`, both whole or both floats."""
    if _out_of_reach(count, steps):
        count = real(count)
    total = _like(count, steps)
    return jnp.clip(count, 0, total), total


def _sum(*exponents: Exponent) -> Exponent:
    whole = functools.reduce(jnp.add, [each.whole for each in exponents])
    part = functools.reduce(jnp.add, [each.part for each in exponents])
    return Exponent(whole + jnp.floor(part), part - jnp.floor(part))


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


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """Returns 2 to a whole exponent, by its bits: exact, 0 or infinity out of range."""
    dtype = exponent.dtype
    info = jnp.finfo(dtype)
    whole = jnp.int64 if info.bits == 64 else jnp.int32
    biased = jnp.clip(exponent + info.maxexp - 1, 0, 2 * info.maxexp - 1)
    return jax.lax.bitcast_convert_type(biased.astype(whole) << info.nmant, dtype)
