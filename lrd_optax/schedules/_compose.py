"""Schedules made from other schedules."""

from __future__ import annotations  # so that help shows short names

import math

import jax
import jax.numpy as jnp
import optax

from lrd_optax import _checks
from lrd_optax._checks import Number, Steps
from lrd_optax.schedules import _arithmetic as ar


def per_epoch(
    schedule: optax.Schedule, steps_per_epoch: Steps, *, staircase: bool = True
) -> optax.Schedule:
    """Lets a schedule count epochs instead of updates.

    Args:
      schedule: a schedule of the epoch, from 0.
      steps_per_epoch: the number of updates in an epoch.
      staircase: if True, the schedule gets whole epochs, so its value is constant
        during an epoch; else it gets ``count / steps_per_epoch`` as a float.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> epochs = lrd_optax.schedules.step_decay(1.0, 0.5, 2)
      >>> lrd_optax.schedules.per_epoch(epochs, 100)(jnp.array([0, 199, 200]))
      Array([1. , 1. , 0.5], dtype=float32)
    """
    _checks.schedule(schedule)
    steps = _checks.whole_number("steps_per_epoch", steps_per_epoch)

    @ar.schedule
    def scheduled(count: jax.Array) -> jax.Array:
        epoch, rest = ar.divide(count, steps)
        if not staircase:
            whole = ar.real(epoch)
            # An epoch that is not over must not be rounded up to the next.
            before_next = jnp.nextafter(whole + 1, whole)
            part = ar.real(rest) / ar.real(steps)
            epoch = jnp.minimum(whole + part, before_next)
        return ar.call(schedule, epoch)

    return scheduled


def multiply(*schedules: optax.ScalarOrSchedule) -> optax.Schedule:
    """Multiplies schedules and numbers.

    Args:
      *schedules: at least one schedule or number.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> from lrd_optax import schedules
      >>> ramp = schedules.warmup(lambda count: 1.0, 4)
      >>> decay = schedules.inverse_time_decay(0.1, 1.0)
      >>> schedules.multiply(ramp, decay)(jnp.arange(3))
      Array([0.02, 0.02, 0.02], dtype=float32)
    """
    if not schedules:
        raise ValueError("multiply must get at least one schedule, got none")
    factors = [_checks.schedule(s, "each factor", or_number=True) for s in schedules]

    return ar.schedule(lambda count: math.prod(ar.call(f, count) for f in factors))


def clamp(
    schedule: optax.Schedule,
    min_value: Number | None = None,
    max_value: Number | None = None,
) -> optax.Schedule:
    """Keeps the value of a schedule within bounds.

    Args:
      schedule: a schedule.
      min_value: the smallest value, or None; one of the two bounds is needed.
      max_value: the largest value, or None.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> decay = lrd_optax.schedules.step_decay(1.0, 0.1, 10)
      >>> lrd_optax.schedules.clamp(decay, min_value=0.05)(jnp.array([0, 10, 20]))
      Array([1.  , 0.1 , 0.05], dtype=float32)
    """
    _checks.schedule(schedule)
    if min_value is None and max_value is None:
        raise ValueError("clamp must get min_value or max_value, got neither")
    low = -math.inf if min_value is None else _checks.number("min_value", min_value)
    high = math.inf if max_value is None else _checks.number("max_value", max_value)
    _checks.ordered("min_value", low, "max_value", high)

    return ar.schedule(lambda count: jnp.clip(ar.call(schedule, count), low, high))


def repeat(schedule: optax.Schedule, steps: Steps) -> optax.Schedule:
    """Starts a schedule again and again, without end.

    Args:
      schedule: a schedule.
      steps: the number of updates until it starts again. It gets ``count % steps``.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> line = lrd_optax.schedules.polynomial_decay(1.0, 0.0, 1, 4)
      >>> lrd_optax.schedules.repeat(line, 3)(jnp.arange(7))
      Array([1.  , 0.75, 0.5 , 1.  , 0.75, 0.5 , 1.  ], dtype=float32)
    """
    _checks.schedule(schedule)
    period = _checks.whole_number("steps", steps)

    return ar.schedule(lambda count: ar.call(schedule, ar.divide(count, period)[1]))


def shift(schedule: optax.Schedule, steps: Steps) -> optax.Schedule:
    """Moves a schedule to a later time, or to an earlier one.

    Args:
      schedule: a schedule.
      steps: the number of updates by which the schedule starts later. Until then, its
        value is the one at count 0. If negative, the schedule starts in its middle.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> line = lrd_optax.schedules.polynomial_decay(1.0, 0.0, 1, 4)
      >>> lrd_optax.schedules.shift(line, 2)(jnp.arange(5))
      Array([1.  , 1.  , 1.  , 0.75, 0.5 ], dtype=float32)
    """
    _checks.schedule(schedule)
    steps = _checks.whole_number("steps", steps, least=1 - 2**31)

    return ar.schedule(lambda count: ar.call(schedule, ar.later(count, steps)))
