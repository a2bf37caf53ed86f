"""Schedules that come back: cycles and restarts."""

from __future__ import annotations  # so that help shows short names

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrd_optax import _checks
from lrd_optax._checks import Number, Steps
from lrd_optax.schedules import _arithmetic as ar

Window = Literal["triangular", "welch", "hann"] | Callable[[jax.Array], jax.Array]

# The height at distances `near` from the base and `far` from the peak; near + far = 1.
_WINDOWS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "triangular": lambda near, far: near,
    "welch": lambda near, far: near * (1 + far),
    "hann": lambda near, far: ar.half_wave(near),
}

_MOST_RESTARTS = 2_000


def cyclical(
    base_value: Number,
    peak_value: Number,
    step_size: Steps,
    *,
    window: Window = "triangular",
    step_size_down: Steps | None = None,
    cycle_gamma: Number = 1.0,
    step_gamma: Number = 1.0,
    decay_base: bool = False,
) -> optax.Schedule:
    r"""Rises from the base to the peak and falls back, again and again.

    Before count :math:`t` there are :math:`c` whole cycles. The distance from the peak
    of the current cycle is :math:`x`: 1 at the ends of the cycle, 0 at the peak. Then:

    .. math:: \eta_t = \eta_b + (\eta_p - \eta_b)\, g_t\, h(x), \qquad
      g_t = \gamma_c^{\,c}\, \gamma_s^{\,t}

    The paper's triangular2 is ``cycle_gamma=0.5``. Its exp_range is
    ``step_gamma=0.99994`` and lowers both bounds (``decay_base=True``), but in most
    ports exp_range lowers the range alone. To begin in the middle of a cycle (for a
    momentum that is low while the learning rate is high), `shift` the schedule by
    ``-step_size``.

    Args:
      base_value: :math:`\eta_b`, the value at the ends of every cycle.
      peak_value: :math:`\eta_p`, at least `base_value`.
      step_size: steps from the base to the peak, half a cycle unless `step_size_down`
        is given. The paper advises 2 to 10 epochs.
      window: :math:`h`: ``'triangular'`` is :math:`1 - x`, ``'welch'``
        :math:`1 - x^2` (higher: 2/3 of the range on average, not 1/2), ``'hann'``
        :math:`(1 + \cos \pi x) / 2`, or a function of :math:`x`.
      step_size_down: steps from the peak to the base, by default `step_size`.
      cycle_gamma: :math:`\gamma_c`, in (0, 1]. Each cycle shrinks the range by it.
      step_gamma: :math:`\gamma_s`, in (0, 1]. Each step shrinks the range by it.
      decay_base: if True, the base shrinks too:
        :math:`\eta_t = g_t (\eta_b + (\eta_p - \eta_b) h(x))`.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> schedule = lrd_optax.schedules.cyclical(1.0, 3.0, 2, cycle_gamma=0.5)
      >>> schedule(jnp.arange(8))
      Array([1. , 2. , 3. , 2. , 1. , 1.5, 2. , 1.5], dtype=float32)

    References:
      Smith, `Cyclical Learning Rates <https://arxiv.org/abs/1506.01186>`_, 2017
    """
    base, peak = _checks.interval("base_value", base_value, "peak_value", peak_value)
    up = _checks.whole_number("step_size", step_size)
    down = step_size if step_size_down is None else step_size_down
    down = _checks.whole_number("step_size_down", down)
    cycle_gamma = _checks.number("cycle_gamma", cycle_gamma, above=0, most=1)
    step_gamma = _checks.number("step_gamma", step_gamma, above=0, most=1)
    if not callable(window):
        _checks.choice("window", window, _WINDOWS, ", or a function")

    @ar.schedule
    def schedule(count: jax.Array) -> jax.Array:
        rise, fall = ar.like(count, up), ar.like(count, down)
        cycle, position = ar.divide(count, rise + fall)
        # Both sides of the peak are measured from the base.
        falls = position >= rise
        from_base = jnp.where(falls, rise + fall - position, position)
        near, far = ar.fractions(from_base, jnp.where(falls, fall, rise))
        if callable(window):
            height = ar.call(window, far)
        else:
            height = _WINDOWS[window](near, far)
        shrink = ar.power(cycle_gamma, cycle) * ar.power(step_gamma, count)
        if decay_base:
            return shrink * ar.between(base, peak, height)
        return ar.between(base, peak, shrink * height)

    return schedule


def cosine_annealing_warm_restarts(
    max_value: Number,
    min_value: Number,
    first_decay_steps: Steps,
    t_mult: float = 1,
    peak_mult: Number = 1.0,
) -> optax.Schedule:
    r"""Cosine annealing that starts again from the top whenever it has come down.

    Cycle :math:`i` takes :math:`T_i = T_0 m^i` steps, rounded to a whole number, and
    starts at :math:`S_i = T_0 + \dots + T_{i-1}`. For :math:`S_i \le t < S_{i+1}`:

    .. math:: \eta_t = \eta_{min} + \tfrac12 (\eta_i - \eta_{min})
      (1 + \cos(\pi\,(t - S_i) / T_i)), \qquad
      \eta_i = \max(\eta_{min}, \eta_{max}\, q^i)

    It restarts without end. With 10 steps and a `t_mult` of 1.5 the cycles take 10,
    15, 23 (22.5), 34 (33.75) ... steps. None takes more than 2**31 - 1.

    Args:
      max_value: :math:`\eta_{max}`, the value at count 0.
      min_value: :math:`\eta_{min}`, at most `max_value`; each cycle ends one step short
        of it.
      first_decay_steps: :math:`T_0`, the steps to the first restart. Not a JAX array,
        unless `t_mult` is 1: the restarts are computed when the schedule is made.
      t_mult: :math:`m`, at least 1, the factor by which each cycle is longer than the
        one before. Not a JAX array.
      peak_mult: :math:`q`, in (0, 1], the factor by which each peak is lower than the
        one before.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Raises:
      ValueError: also if `t_mult` is so close to 1 that 2**31 steps have more than
        2,000 restarts.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> restarts = lrd_optax.schedules.cosine_annealing_warm_restarts
      >>> schedule = restarts(1.0, 0.0, 2, t_mult=2)
      >>> schedule(jnp.array([0, 2, 3, 6]))
      Array([1.        , 1.        , 0.85355335, 1.        ], dtype=float32)

    References:
      Loshchilov and Hutter, `SGDR <https://arxiv.org/abs/1608.03983>`_, 2017
    """
    low, high = _checks.interval("min_value", min_value, "max_value", max_value)
    t_mult = _checks.number("t_mult", t_mult, least=1, static=True)
    peak_mult = _checks.number("peak_mult", peak_mult, above=0, most=1)
    name, varies = "first_decay_steps", t_mult != 1
    first = _checks.whole_number(name, first_decay_steps, static=varies)
    table = _starts(first, t_mult) if varies else None

    @ar.schedule
    def schedule(count: jax.Array) -> jax.Array:
        if table is None:
            length = ar.like(count, first)
            cycle, position = ar.divide(count, first)
        else:
            cycle, start, end = jnp.vectorize(_cycle, excluded=[1])(count, table)
            position, length = count - start, end - start
        left = ar.part(length - position, length)
        peak = jnp.maximum(low, high * ar.power(peak_mult, cycle))
        return ar.between(low, peak, ar.half_wave(left))

    return schedule


def _starts(first: int, t_mult: float) -> np.ndarray:
    """Returns the first step of each cycle, up to one beyond the last count."""
    starts = [0]
    while starts[-1] <= ar.LAST:
        length = min(first * t_mult ** (len(starts) - 1), ar.LAST)
        starts.append(starts[-1] + math.floor(length + 0.5))
        if len(starts) > _MOST_RESTARTS:
            raise ValueError(
                f"t_mult must be 1, or large enough for at most {_MOST_RESTARTS} "
                f"restarts in 2**31 steps, got {t_mult}"
            )
    return np.array(starts, np.uint32)


def _cycle(count: jax.Array, starts: np.ndarray) -> tuple[jax.Array, ...]:
    """Returns the number of the cycle at a scalar `count`, its start and its end."""

    def combine(x: Any, y: Any) -> Any:
        return x[0] + y[0], jnp.maximum(x[1], y[1]), jnp.minimum(x[2], y[2])

    # One reduction over all starts compiles faster than a search and a lookup, and it
    # works under any sharding of the counts.
    starts = starts.astype(count.dtype)
    begun = starts <= jax.lax.stop_gradient(count)  # it changes in jumps only
    zero, last = starts[0], starts[-1]
    ends = jnp.where(begun, starts, zero), jnp.where(begun, last, starts)
    parts = begun.astype(count.dtype), *ends
    number, start, end = jax.lax.reduce(parts, (zero, zero, last), combine, (0,))
    return number - 1, start, end
