"""Schedules that begin below their peak."""

from __future__ import annotations  # so that help shows short names

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from lrd_optax import _checks
from lrd_optax._checks import Number, Steps
from lrd_optax.schedules import _arithmetic as ar


def _one_minus_sqrt(done: jax.Array, left: jax.Array) -> jax.Array:
    """Returns 1 - sqrt(done), without the cancellation near the end."""
    begun = done > 0  # the derivative of the root at 0 is infinite
    return jnp.where(begun, left / (1 + jnp.sqrt(jnp.where(begun, done, 1))), 1)


# The height above the end, from the parts of the decay that are done and left.
_DECAYS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "linear": lambda done, left: left,
    "cosine": lambda done, left: ar.half_wave(left),
    "1-sqrt": _one_minus_sqrt,
}


def warmup(
    schedule: optax.ScalarOrSchedule,
    warmup_steps: Steps,
    *,
    init_value: Number | None = None,
) -> optax.Schedule:
    r"""Rises in a straight line to the first value of a schedule, then follows it.

    With :math:`W` steps and :math:`\eta_0` the first value of the schedule
    :math:`\eta`:

    .. math:: \eta_0\,\frac{t + 1}{W + 1} \text{ for } t < W,
      \qquad \eta(t - W) \text{ for } t \ge W

    So the first step is not zero, and W steps are smaller than :math:`\eta_0`. The
    schedule begins to count when they are over: a decay of T steps ends at W + T (at T
    in :func:`optax.warmup_cosine_decay_schedule`). To make it count from the start, use
    ``multiply(schedule, warmup(1.0, W))``.

    Args:
      schedule: a schedule, or a number for a constant after the warm-up.
      warmup_steps: :math:`W`, at least 0. With 0 there is no warm-up.
      init_value: the value at count 0 (Optax's schedules often have 0 there), by
        default :math:`\eta_0 / (W + 1)`. May be above :math:`\eta_0`.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> decay = lrd_optax.schedules.step_decay(1.0, 0.5, 2)
      >>> lrd_optax.schedules.warmup(decay, 3)(jnp.arange(7))
      Array([0.25, 0.5 , 0.75, 1.  , 1.  , 0.5 , 0.5 ], dtype=float32)

    References:
      Goyal et al, `Accurate, Large Minibatch SGD <https://arxiv.org/abs/1706.02677>`_,
      2017
    """
    schedule = _checks.schedule(schedule, or_number=True)
    steps = _checks.whole_number("warmup_steps", warmup_steps, least=0)
    if init_value is not None:
        init_value = _checks.number("init_value", init_value)

    @ar.schedule
    def scheduled(count: jax.Array) -> jax.Array:
        value = ar.call(schedule, ar.later(count, steps))
        # During the warm-up, `value` is that at 0, the top of the ramp.
        start = value / (ar.real(steps) + 1) if init_value is None else init_value
        # A ramp of 0 steps would be NaN, and so would its derivative.
        up = ar.ramp(start, value, *ar.fractions(count, jnp.maximum(steps, 1)))
        return jnp.where(count >= ar.like(count, steps), value, up)

    return scheduled


def warmup_stable_decay(
    peak_value: Number,
    warmup_steps: Steps,
    stable_steps: Steps,
    decay_steps: Steps,
    *,
    init_value: Number | None = None,
    end_value: Number = 0.0,
    decay: Literal["linear", "cosine", "1-sqrt"] = "linear",
) -> optax.Schedule:
    r"""Rises, stays at the peak, and falls at the end.

    With :math:`x` the part of `decay_steps` that is done, the last phase is
    :math:`\eta_T + (\eta_p - \eta_T)\, h(x)`.

    Args:
      peak_value: :math:`\eta_p`.
      warmup_steps: steps of `warmup`, at least 0, all of them below the peak.
      stable_steps: steps at the peak, at least 0.
      decay_steps: steps from the peak to `end_value`, which is reached at count
        ``warmup_steps + stable_steps + decay_steps`` and held.
      init_value: the value at count 0, by default ``peak_value / (warmup_steps + 1)``.
      end_value: :math:`\eta_T`, at most `peak_value`.
      decay: :math:`h`: ``'linear'`` is :math:`1 - x`, ``'cosine'``
        :math:`(1 + \cos \pi x) / 2`, ``'1-sqrt'`` :math:`1 - \sqrt x`.

    Returns:
      A schedule. Its value is float32 (float64 under x64) of the count's shape.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> schedule = lrd_optax.schedules.warmup_stable_decay(1.0, 1, 2, 2)
      >>> schedule(jnp.arange(7))
      Array([0.5, 1. , 1. , 1. , 0.5, 0. , 0. ], dtype=float32)

    References:
      Hu et al, `MiniCPM <https://arxiv.org/abs/2404.06395>`_, 2024; Hägele et al,
      `Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations
      <https://arxiv.org/abs/2405.18392>`_, 2024
    """
    end, peak = _checks.interval("end_value", end_value, "peak_value", peak_value)
    stable_steps = _checks.whole_number("stable_steps", stable_steps, least=0)
    decay_steps = _checks.whole_number("decay_steps", decay_steps)
    _checks.choice("decay", decay, _DECAYS)

    @ar.schedule
    def stable_decay(count: jax.Array) -> jax.Array:
        count = ar.later(count, stable_steps)
        done, left = ar.fractions(count, decay_steps)
        return ar.between(end, peak, _DECAYS[decay](done, left))

    return warmup(stable_decay, warmup_steps, init_value=init_value)
