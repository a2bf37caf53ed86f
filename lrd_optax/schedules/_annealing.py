"""Schedules that go from one value to another, and stay there."""

from __future__ import annotations  # so that help shows short names

import jax
import jax.numpy as jnp
import optax

from lrd_optax import _checks
from lrd_optax._checks import Number, Steps
from lrd_optax.schedules import _arithmetic as ar


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

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> schedule = lrd_optax.schedules.polynomial_decay(1.0, 0.0, 2, 4)
      >>> schedule(jnp.arange(6))
      Array([1.    , 0.5625, 0.25  , 0.0625, 0.    , 0.    ], dtype=float32)
    """
    init_value = _checks.number("init_value", init_value)
    end_value = _checks.number("end_value", end_value)
    power = _checks.number("power", power, above=0)
    decay_steps = _checks.whole_number("decay_steps", decay_steps)

    @ar.schedule
    def schedule(count: jax.Array) -> jax.Array:
        if isinstance(power, float) and power == 1:
            return ar.ramp(init_value, end_value, *ar.fractions(count, decay_steps))
        # The power multiplies the relative error of what is left. So its logarithm is
        # taken of the part, done or left, that has its digits. Neither is infinite, for
        # the sake of the derivative: no count but the end has less left than 2**-31.
        steps = ar.like(count, decay_steps)
        within = jnp.minimum(count, steps)
        done = ar.real(within) / ar.real(steps)
        left = ar.part(steps - within, steps)
        early = jnp.log1p(-jnp.minimum(done, 0.5))
        log_left = jnp.where(done < 0.5, early, jnp.log(jnp.maximum(left, 2**-31)))
        exponent = ar.select(left == 0, -jnp.inf, power * log_left)
        return ar.ramp(init_value, end_value, -jnp.expm1(exponent), jnp.exp(exponent))

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

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> schedule = lrd_optax.schedules.cosine_annealing(0.1, 0.001, 100)
      >>> schedule(jnp.array([0, 99, 100]))
      Array([0.1       , 0.00102443, 0.001     ], dtype=float32)

    References:
      Loshchilov and Hutter, `SGDR <https://arxiv.org/abs/1608.03983>`_, 2017
    """
    low, high = _checks.interval("min_value", min_value, "max_value", max_value)
    decay_steps = _checks.whole_number("decay_steps", decay_steps)

    return ar.schedule(
        lambda count: ar.between(low, high, ar.half_wave(ar.left(count, decay_steps)))
    )
