"""Schedules that decay, without an end or to an end."""

from __future__ import annotations  # so that help shows short names

import jax
import jax.numpy as jnp
import optax

from lrd_optax import _checks
from lrd_optax._checks import Number, Steps
from lrd_optax.schedules import _arithmetic as ar


def inverse_time_decay(
    init_value: Number,
    decay_rate: Number,
    decay_steps: Steps = 1,
    staircase: bool = False,
) -> optax.Schedule:
    r"""Divides by a number that grows evenly with time.

    .. math:: \eta_t = \frac{\eta_0}{1 + \alpha\, t / s}

    It halves by :math:`\alpha t = s`, and then falls ever more slowly: with
    :math:`\alpha = 0.1` it loses 9.1 % in the first step and 0.9 % in the hundredth.

    Args:
      init_value: :math:`\eta_0`, the value at count 0.
      decay_rate: :math:`\alpha`, at least 0.
      decay_steps: :math:`s`, the steps in which the divisor grows by
        :math:`\alpha`.
      staircase: if True, :math:`t / s` is rounded down: the value falls every
        `decay_steps` steps.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> schedule = lrd_optax.schedules.inverse_time_decay(0.1, 0.5)
      >>> schedule(jnp.array([0, 2, 6]))
      Array([0.1  , 0.05 , 0.025], dtype=float32)
    """
    init_value = _checks.number("init_value", init_value)
    decay_rate = _checks.number("decay_rate", decay_rate, least=0)
    decay_steps = _checks.whole_number("decay_steps", decay_steps)

    @ar.schedule
    def schedule(count: jax.Array) -> jax.Array:
        time = ar.real(count) / ar.real(decay_steps)
        if staircase:
            time = ar.real(ar.divide(count, decay_steps)[0])
        return init_value / (1 + decay_rate * time)

    return schedule


def step_decay(
    init_value: Number, decay_rate: Number, step_size: Steps, offset: Steps = 0
) -> optax.Schedule:
    r"""Multiplies by a factor every few steps.

    .. math:: \eta_t = \eta_0\, d^{\lfloor (t + o) / s \rfloor}

    Args:
      init_value: :math:`\eta_0`.
      decay_rate: :math:`d`, above 0.
      step_size: :math:`s`, the steps from one drop to the next.
      offset: :math:`o`, how many steps earlier every drop comes, at least 0. With 0
        the drops are at s, 2s, ...; with 1, as some courses have it, at s - 1,
        2s - 1, ...

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> schedule = lrd_optax.schedules.step_decay(1.0, 0.5, 10)
      >>> schedule(jnp.array([0, 9, 10, 30]))
      Array([1.   , 1.   , 0.5  , 0.125], dtype=float32)
    """
    init_value = _checks.number("init_value", init_value)
    decay_rate = _checks.number("decay_rate", decay_rate, above=0)
    step_size = _checks.whole_number("step_size", step_size)
    offset = _checks.whole_number("offset", offset, least=0)

    @ar.schedule
    def schedule(count: jax.Array) -> jax.Array:
        stairs, _ = ar.divide(count + ar.like(count, offset), step_size)
        return init_value * ar.power(decay_rate, stairs)

    return schedule


def exponential_step_decay(
    init_value: Number, decay_rate: Number, step_size: Steps
) -> optax.Schedule:
    r"""Decays smoothly, by a factor every few steps.

    .. math:: \eta_t = \eta_0\, d^{\,t / s}

    It is often printed as the formula of step decay, which it meets at every drop.
    :func:`optax.exponential_decay` is the same function, but raises a rounded factor
    to the power, which is off by 1 % after a million steps of a slow decay.

    Args:
      init_value: :math:`\eta_0`.
      decay_rate: :math:`d`, above 0.
      step_size: :math:`s`, the steps in which the value falls by `decay_rate`.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> schedule = lrd_optax.schedules.exponential_step_decay(1.0, 0.25, 10)
      >>> schedule(jnp.array([0, 5, 10]))
      Array([1.  , 0.5 , 0.25], dtype=float32)
    """
    init_value = _checks.number("init_value", init_value)
    decay_rate = _checks.number("decay_rate", decay_rate, above=0)
    step_size = _checks.whole_number("step_size", step_size)

    @ar.schedule
    def schedule(count: jax.Array) -> jax.Array:
        stairs, rest = ar.divide(count, step_size)
        part = ar.real(rest) / ar.real(step_size)
        return init_value * ar.power(decay_rate, stairs) * jnp.power(decay_rate, part)

    return schedule


def natural_exponential_decay(init_value: Number, decay_rate: Number) -> optax.Schedule:
    r"""Decays by the same share in every step.

    .. math:: \eta_t = \eta_0\, e^{-k t}

    Args:
      init_value: :math:`\eta_0`.
      decay_rate: :math:`k`, at least 0, in 1 / steps. It is not a factor: a factor of d
        every s steps, as in :func:`optax.exponential_decay`, is
        :math:`k = -\ln(d) / s`.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import lrd_optax
      >>> schedule = lrd_optax.schedules.natural_exponential_decay(1.0, 0.05)
      >>> print(f"{schedule(99):.6f}")
      0.007083
    """
    init_value = _checks.number("init_value", init_value)
    decay_rate = _checks.number("decay_rate", decay_rate, least=0)

    return ar.schedule(lambda count: init_value * ar.exponential(-decay_rate, count))


def inverse_sqrt_decay(init_value: Number, decay_steps: Steps = 1) -> optax.Schedule:
    r"""Divides by the square root of a number that grows evenly with time.

    .. math:: \eta_t = \frac{\eta_0}{\sqrt{1 + t / s}}

    ``warmup(inverse_sqrt_decay(peak_value, s), s)`` is the schedule of the
    Transformer: it rises for s steps, and then is ``peak_value * sqrt(s / t)``.

    Args:
      init_value: :math:`\eta_0`, the value at count 0.
      decay_steps: :math:`s`, the steps in which it falls to
        :math:`\eta_0 / \sqrt 2`.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> schedule = lrd_optax.schedules.inverse_sqrt_decay(0.1, 100)
      >>> schedule(jnp.array([0, 300, 9900]))
      Array([0.1 , 0.05, 0.01], dtype=float32)

    References:
      Vaswani et al, `Attention Is All You Need <https://arxiv.org/abs/1706.03762>`_,
      2017
    """
    init_value = _checks.number("init_value", init_value)
    decay_steps = _checks.whole_number("decay_steps", decay_steps)

    return ar.schedule(
        lambda count: init_value / jnp.sqrt(1 + ar.real(count) / ar.real(decay_steps))
    )


def polynomial_decay(
    init_value: Number, end_value: Number, power: Number, decay_steps: Steps
) -> optax.Schedule:
    r"""Goes from one value to another along a power of the time that is left.

    .. math:: \eta_t = \eta_T + (\eta_0 - \eta_T)\,(1 - t / T)^p,
      \qquad \eta_t = \eta_T \text{ for } t \ge T

    It is what :func:`optax.polynomial_schedule` computes. But that one has an error
    under ``jit`` for half of all T: after the end it is NaN if the power is fractional,
    or else passes below `end_value`.

    Args:
      init_value: :math:`\eta_0`.
      end_value: :math:`\eta_T`, from count `decay_steps` on. May be above `init_value`.
      power: :math:`p`, above 0. 1 is a straight line.
      decay_steps: :math:`T`.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

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

    # Compiled as one, since XLA multiplies by 1 / steps: an error that the power
    # multiplies. So the values without an outer jit are the same.
    @ar.schedule
    @jax.jit
    def schedule(count: jax.Array) -> jax.Array:
        if isinstance(power, float) and power == 1:
            return ar.ramp(init_value, end_value, *ar.fractions(count, decay_steps))
        # The power multiplies the relative error of `left`. So the logarithm of `left`
        # comes from `done` in the first half, where that is more precise. Neither form
        # is infinite, for the sake of the derivative: before the end, `left` is at
        # least 2**-31.
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
    r"""Goes from the largest value to the smallest along half a cosine wave.

    .. math:: \eta_t = \eta_{min} + \tfrac12 (\eta_{max} - \eta_{min})
      (1 + \cos(\pi t / T)), \qquad \eta_t = \eta_{min} \text{ for } t \ge T

    The end is reached at count T: the last of T updates, with count T - 1, is one short
    of it.

    Args:
      max_value: :math:`\eta_{max}`, the value at count 0.
      min_value: :math:`\eta_{min}`, at most `max_value`, from count `decay_steps` on.
      decay_steps: :math:`T`.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

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
