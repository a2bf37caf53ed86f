"""Schedules that go from one value to another, and stay there."""

from __future__ import annotations  # so that help shows short names

import jax
import jax.numpy as jnp
import optax

from lrd_optax.schedules import _arguments as args
from lrd_optax.schedules import _arithmetic as ar
from lrd_optax.schedules._arguments import Number, Steps


def polynomial_decay(
    init_value: Number, end_value: Number, power: Number, decay_steps: Steps
) -> optax.Schedule:
    r"""Goes from one value to another along a power of the time that is left.

    .. math:: \eta_t = \eta_T + (\eta_0 - \eta_T)\,(1 - t / T)^p,
      \qquad \eta_t = \eta_T \text{ for } t \ge T

    What :func:`optax.polynomial_schedule` computes, except that for half of all T
    that one is NaN after the end under ``jit`` with a fractional power, or passes below
    `end_value`.

    Args:
      init_value: :math:`\eta_0`.
      end_value: :math:`\eta_T`, from count `decay_steps` on. May be above `init_value`.
      power: :math:`p`, above 0. 1 is a straight line.
      decay_steps: :math:`T`.

    Returns:
      A schedule: float32 (float64 under x64) of the count's shape.

    Raises:
      ValueError, TypeError: if an argument is no finite number, or out of range.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> schedule = lrd_optax.schedules.polynomial_decay(1.0, 0.0, 2, 4)
      >>> schedule(jnp.arange(6))
      Array([1.    , 0.5625, 0.25  , 0.0625, 0.    , 0.    ], dtype=float32)
    """
    init_value = args.number("init_value", init_value)
    end_value = args.number("end_value", end_value)
    power = args.number("power", power, above=0)
    decay_steps = args.whole_number("decay_steps", decay_steps)

    @ar.schedule
    def schedule(count: jax.Array) -> jax.Array:
        done, left = ar.fractions(count, decay_steps)
        inside, half = (done > 0) & (left > 0), done < 0.5
        # What is not used must be finite, so that its derivative is no NaN.
        some = jnp.where(inside, left, 0.25)
        # The power would multiply what was lost when `left` was rounded.
        lost = jnp.where(inside, ar.rounding(count, decay_steps, left), 0)
        falling = some ** ar.real(power) * jnp.exp(lost * ar.real(power))
        early = jnp.log1p(-jnp.where(inside & half, done, 0.25))
        log = jnp.where(half, early, jnp.log(some))  # each where it has its digits
        rising = -jnp.expm1(log * ar.real(power))
        done, left = jnp.where(inside, rising, done), jnp.where(inside, falling, left)
        return ar.ramp(init_value, end_value, done, left)

    return schedule


def cosine_annealing(
    max_value: Number, min_value: Number, decay_steps: Steps
) -> optax.Schedule:
    r"""Goes from the largest value to the smallest along half a wave of the cosine.

    .. math:: \eta_t = \eta_{min} + \tfrac12 (\eta_{max} - \eta_{min})
      (1 + \cos(\pi t / T)), \qquad \eta_t = \eta_{min} \text{ for } t \ge T

    The end is reached at count T: the last of T updates, with count T - 1, is one short
    of it.

    Args:
      max_value: :math:`\eta_{max}`, the value at count 0.
      min_value: :math:`\eta_{min}`, at most `max_value`, from count `decay_steps` on.
      decay_steps: :math:`T`.

    Returns:
      A schedule: float32 (float64 under x64) of the count's shape.

    Raises:
      ValueError, TypeError: if an argument is no finite number, or out of range.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> schedule = lrd_optax.schedules.cosine_annealing(0.1, 0.001, 100)
      >>> schedule(jnp.array([0, 99, 100]))
      Array([0.1       , 0.00102443, 0.001     ], dtype=float32)

    References:
      Loshchilov and Hutter, `SGDR <https://arxiv.org/abs/1608.03983>`_, 2017
    """
    max_value = args.number("max_value", max_value)
    min_value = args.number("min_value", min_value)
    args.ordered("min_value", min_value, "max_value", max_value)
    decay_steps = args.whole_number("decay_steps", decay_steps)

    @ar.schedule
    def schedule(count: jax.Array) -> jax.Array:
        _, left = ar.fractions(count, decay_steps)
        return ar.between(min_value, max_value, ar.half_wave(left))

    return schedule
