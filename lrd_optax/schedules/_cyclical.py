"""Schedules that come back: cycles and restarts."""

from __future__ import annotations  # so that help shows short names

import decimal
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrd_optax.schedules import _arguments as args
from lrd_optax.schedules import _arithmetic as ar
from lrd_optax.schedules._arguments import Number, Steps

Window = Literal["triangular", "welch", "hann"] | Callable[[jax.Array], jax.Array]

# The height at distances `near` from the base and `far` from the peak; near + far = 1.
_WINDOWS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "triangular": lambda near, far: near,
    "welch": lambda near, far: near * (1 + far),
    "hann": lambda near, far: ar.half_wave(near),
}

_LAST_COUNT = 2**31 - 1
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

    With the whole cycles :math:`c` before count :math:`t`, and the distance
    :math:`x` from the peak of this cycle, 1 at its ends and 0 in its middle:

    .. math:: \eta_t = \eta_b + (\eta_p - \eta_b)\, g_t\, h(x), \qquad
      g_t = \gamma_c^{\,c}\, \gamma_s^{\,t}

    triangular2 of the paper is ``cycle_gamma=0.5``, exp_range ``step_gamma=0.99994``;
    the paper lowers both bounds with it (``decay_base=True``), most ports the range
    alone. To begin in the middle of a cycle (for a momentum that is low where the
    learning rate is high), `shift` it by ``-step_size``.

    Args:
      base_value: :math:`\eta_b`, at every multiple of the cycle.
      peak_value: :math:`\eta_p`, at least `base_value`.
      step_size: steps from the base to the peak, half a cycle unless `step_size_down`
        is given. The paper advises 2 to 10 epochs.
      window: :math:`h`: ``'triangular'`` is :math:`1 - x`, ``'welch'``
        :math:`1 - x^2` (higher: 2/3 of the range on average, not 1/2), ``'hann'``
        :math:`(1 + \cos \pi x) / 2`, or a function of :math:`x`.
      step_size_down: steps from the peak to the base, by default `step_size`.
      cycle_gamma: :math:`\gamma_c`, in (0, 1], shrinks the range with each cycle.
      step_gamma: :math:`\gamma_s`, in (0, 1], shrinks the range with each step.
      decay_base: if True the base shrinks too:
        :math:`\eta_t = g_t (\eta_b + (\eta_p - \eta_b) h(x))`.

    Returns:
      A schedule: float32 (float64 under x64) of the count's shape.

    Raises:
      ValueError, TypeError: if an argument is no finite number, out of range, or no
        known window.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> schedule = lrd_optax.schedules.cyclical(1.0, 3.0, 2, cycle_gamma=0.5)
      >>> schedule(jnp.arange(8))
      Array([1. , 2. , 3. , 2. , 1. , 1.5, 2. , 1.5], dtype=float32)

    References:
      Smith, `Cyclical Learning Rates <https://arxiv.org/abs/1506.01186>`_, 2017
    """
    base_value = args.number("base_value", base_value)
    peak_value = args.number("peak_value", peak_value)
    args.ordered("base_value", base_value, "peak_value", peak_value)
    up = args.whole_number("step_size", step_size)
    down = up
    if step_size_down is not None:
        down = args.whole_number("step_size_down", step_size_down)
    cycle_gamma = args.number("cycle_gamma", cycle_gamma, above=0, most=1)
    step_gamma = args.number("step_gamma", step_gamma, above=0, most=1)
    if not callable(window) and not (isinstance(window, str) and window in _WINDOWS):
        names = ", ".join(map(repr, _WINDOWS))
        raise ValueError(
            f"window must be one of {names}, or a function, got {window!r}"
        )

    @ar.schedule
    def schedule(count: jax.Array) -> jax.Array:
        cycle, position = ar.divide(count, ar.add(up, down))
        risen, to_rise = ar.fractions(position, up)
        fallen, to_fall = ar.fractions(ar.later(position, up), down)
        falls = ar.reached(position, up)
        near = jnp.where(falls, to_fall, risen)
        far = jnp.where(falls, fallen, to_rise)
        if isinstance(window, str):
            height = _WINDOWS[window](near, far)
        else:
            height = ar.call(window, far)
        # Left out where they do nothing, which is known when they are plain numbers.
        exponents = [
            ar.exponent(ar.log2(gamma), times)
            for gamma, times in ((cycle_gamma, cycle), (step_gamma, count))
            if isinstance(gamma, jax.Array) or gamma != 1
        ]
        if not exponents:
            return ar.between(base_value, peak_value, height)
        if decay_base:
            value = ar.between(base_value, peak_value, height)
            return ar.scale(value, *exponents)
        spread = ar.real(peak_value) - ar.real(base_value)
        shrunk = ar.scale(spread, *exponents)
        peak = jnp.where(shrunk == spread, peak_value, ar.real(base_value) + shrunk)
        return ar.between(base_value, peak, height)

    return schedule


def cosine_annealing_warm_restarts(
    max_value: Number,
    min_value: Number,
    first_decay_steps: Steps,
    t_mult: float = 1,
    peak_mult: Number = 1.0,
) -> optax.Schedule:
    r"""Cosine annealing that starts again from the top whenever it has come down.

    With :math:`T_i = T_0 m^i` and restart :math:`i` at
    :math:`S_i = T_0 + \dots + T_{i-1}`, for :math:`S_i \le t < S_{i+1}`:

    .. math:: \eta_t = \eta_{min} + \tfrac12 (\eta_i - \eta_{min})
      (1 + \cos(\pi\,(t - S_i) / T_i)), \qquad
      \eta_i = \max(\eta_{min}, \eta_{max}\, q^i)

    It restarts without an end. Restarts are at exact steps: for a fractional `t_mult`
    the first step at or after :math:`S_i`, where 1.1 means eleven tenths.

    Args:
      max_value: :math:`\eta_{max}`, the value at count 0.
      min_value: :math:`\eta_{min}`, at most `max_value`; each cycle ends one step short
        of it.
      first_decay_steps: :math:`T_0`, the steps to the first restart. Not a JAX array,
        unless `t_mult` is 1: the restarts are computed when the schedule is made.
      t_mult: :math:`m`, at least 1, by how much longer each cycle is than the one
        before. Not a JAX array.
      peak_mult: :math:`q`, in (0, 1], by how much lower each peak is.

    Returns:
      A schedule: float32 (float64 under x64) of the count's shape. With a `t_mult`
      above 1, a count beyond 2**31 - 1 is taken for that.

    Raises:
      ValueError, TypeError: if an argument is no finite number, or out of range, or
        `t_mult` so near to 1 that 2**31 steps have more than 2,000 restarts.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> restarts = lrd_optax.schedules.cosine_annealing_warm_restarts
      >>> schedule = restarts(1.0, 0.0, 2, t_mult=2)
      >>> schedule(jnp.array([0, 2, 3, 6]))
      Array([1.        , 1.        , 0.85355335, 1.        ], dtype=float32)

    References:
      Loshchilov and Hutter, `SGDR <https://arxiv.org/abs/1608.03983>`_, 2017
    """
    max_value = args.number("max_value", max_value)
    min_value = args.number("min_value", min_value)
    args.ordered("min_value", min_value, "max_value", max_value)
    first = args.whole_number("first_decay_steps", first_decay_steps)
    written = args.static("t_mult", t_mult)
    longer = args.number("t_mult", t_mult, least=1) != 1
    peak_mult = args.number("peak_mult", peak_mult, above=0, most=1)
    table = None
    if longer:
        # As it is written: the float 1.1 is a little more than eleven tenths, and would
        # put the restart at step 21 of 10 * (1 + 1.1) one step late.
        exact = decimal.Decimal(str(written))
        table = _restarts(args.static("first_decay_steps", first), exact)

    @ar.schedule
    def schedule(count: jax.Array) -> jax.Array:
        if table is None:
            index, position = ar.divide(count, first)
            _, left = ar.fractions(position, first)
        else:
            index, left = _place(count, table)
        peak = ar.real(max_value)
        if isinstance(peak_mult, jax.Array) or peak_mult != 1:
            peak = ar.scale(peak, ar.exponent(ar.log2(peak_mult), index))
            peak = jnp.maximum(peak, ar.real(min_value))
        return ar.between(min_value, peak, ar.half_wave(left))

    return schedule


class _Restarts(NamedTuple):
    """A row for each cycle: all that begin before 2**31 steps."""

    starts: np.ndarray  # S_i, float64
    first_steps: np.ndarray  # the first whole step from there on, int32
    last_steps: np.ndarray  # S_{i+1} rounded down to a whole step, uint32
    rests: np.ndarray  # what is lost by that, float64
    lengths: np.ndarray  # T_i, float64


def _restarts(first: int, t_mult: decimal.Decimal) -> _Restarts:
    rows = []
    most = decimal.Decimal(10) ** 30  # for floats; what is longer is as good as endless
    with decimal.localcontext() as context:
        context.prec = 80
        start, length = decimal.Decimal(0), decimal.Decimal(first)
        while start <= _LAST_COUNT:
            end = start + length
            whole = min(int(end), 2**32 - 1)
            rest = min(end - whole, most)
            rows.append((start, math.ceil(start), whole, rest, min(length, most)))
            start, length = end, length * t_mult
            if len(rows) > _MOST_RESTARTS:
                raise ValueError(
                    f"t_mult must be 1, or large enough for at most {_MOST_RESTARTS} "
                    f"restarts in 2**31 steps, got {t_mult}"
                )
    dtypes = (np.float64, np.int32, np.uint32, np.float64, np.float64)
    columns = zip(*rows, strict=True)
    return _Restarts(*(np.array(c, t) for c, t in zip(columns, dtypes, strict=True)))


def _place(count: jax.Array, table: _Restarts) -> tuple[jax.Array, jax.Array]:
    """Returns the number of the cycle at `count`, and the part of it that is left."""
    if ar.is_whole(count):
        count = jnp.minimum(count, _LAST_COUNT).astype(jnp.int32)
        starts = jnp.asarray(table.first_steps)
        whole, part = count, ar.real(0)
    else:
        largest = _LAST_COUNT if count.dtype == jnp.float64 else 2**31 - 128
        count = jnp.minimum(count, largest)
        starts = ar.real(table.starts)
        whole, part = jnp.floor(count).astype(jnp.int32), count - jnp.floor(count)
    # A sum over all rows, of which one counts, in place of a search and a lookup: one
    # small kernel, that any sharding of the counts goes through.
    begun = count[..., None] >= _row(starts, count.ndim)
    index = jnp.sum(begun, axis=-1, dtype=jnp.int32) - 1
    numbers = _row(np.arange(len(table.starts), dtype=np.int32), count.ndim)

    def pick(values: np.ndarray | jax.Array) -> jax.Array:
        here = jnp.where(numbers == index[..., None], _row(values, count.ndim), 0)
        return jnp.sum(here, axis=-1, dtype=values.dtype)

    ahead = pick(table.last_steps) - whole.astype(jnp.uint32)
    left = ar.real(ahead) - part + pick(ar.real(table.rests))
    return index, jnp.clip(left / pick(ar.real(table.lengths)), 0, 1)


def _row(values: np.ndarray | jax.Array, ndim: int) -> jax.Array:
    return jnp.reshape(values, (1,) * ndim + (-1,))
