"""Plots of values against the step or the learning rate."""

from __future__ import annotations  # so that help shows short names

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from matplotlib.ticker import MaxNLocator

from lrd_optax import _checks
from lrd_optax._range_result import RangeTestResult, range_test_band
from lrd_optax.plotting import _style
from lrd_optax.plotting._style import Axes
from lrd_optax.schedules import _arithmetic

# Group ids of what is drawn, so that a later call on the same Axes recognizes it.
_RANGE_TEST, _SEEDS = "range test", "seeds"


def plot_schedules(
    named: Mapping[str, optax.ScalarOrSchedule],
    num_steps: int,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draws schedules against the step, from 0 to `num_steps` - 1.

    Stairs, restarts and other jumps are vertical, where the steps beside them change by
    less than a quarter of the jump. All else is drawn as a line.

    Args:
      named: a dict from names, which the legend shows, to schedules or numbers.
      num_steps: the number of steps. If there are more than 10,000, only 10,000 of them
        are drawn, evenly spaced.
      ax: the Axes to draw on; None: those of a new figure.

    Returns:
      The Axes.

    Raises:
      TypeError: if `named` is not a dict of schedules and numbers.
      ValueError: if it is empty, `num_steps` is not a whole number from 1 to 2**31 - 1,
        or no value of a schedule is finite.

    Examples:
      >>> import optax
      >>> from lrd_optax import plotting, schedules
      >>> rates = {
      ...     "cosine": schedules.cosine_annealing(0.1, 0.001, 100),
      ...     "step": optax.exponential_decay(0.1, 30, 0.5, staircase=True),
      ... }
      >>> ax = plotting.plot_schedules(rates, num_steps=100)
    """
    _style.check_named("named", named, "schedules")
    num_steps = _checks.whole_number("num_steps", num_steps, static=True)
    steps = np.unique(np.linspace(0, num_steps - 1, min(num_steps, 10_000)).astype(int))
    curves = {}
    for name, schedule in named.items():
        label = f"schedule {name!r}"
        schedule = _checks.schedule(schedule, label, or_number=True)
        # Some schedules of Optax take no array of counts.
        call = functools.partial(_arithmetic.call, schedule)
        curves[name] = _style.finite(label, jax.vmap(call)(jnp.asarray(steps)))
    ax = _style.axes(ax)
    earlier = len(ax.get_lines())  # of a call before this one
    end = max(num_steps, ax.get_xlim()[1] if earlier else 0)
    for i, (name, y) in enumerate(curves.items(), earlier):
        ax.plot(*_hold_at_jumps(steps, y, num_steps), label=name, **_style.line(i))
    ax.set(xlabel="step", ylabel="value", xlim=(0, end))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _style.finish(ax)
    if earlier + len(named) > 1:
        _style.legend(ax)
    return ax


def _hold_at_jumps(
    x: np.ndarray, y: np.ndarray, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points of a curve, with one more before each jump.

    If it ends in a stair, it has one more at the end of that too.
    """
    sizes = np.abs(np.diff(y, prepend=y[0], append=y[-1]))
    # Four times the change before it and the one after it: no smooth curve has that.
    is_jump = sizes[1:-1] > 4 * np.maximum(sizes[:-2], sizes[2:])
    jumps = 1 + np.flatnonzero(is_jump)
    if sizes[-2] == 0 or is_jump[-1]:
        x, y = np.append(x, end), np.append(y, y[-1])
    return np.insert(x, jumps, x[jumps]), np.insert(y, jumps, y[jumps - 1])


def plot_range_test(
    result: RangeTestResult,
    *,
    label: str | None = None,
    marks: Mapping[str, float] | None = None,
    cycle: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the loss against the learning rate.

    One run is drawn as points (its losses) and a line (its smoothed losses). Many
    seeds, run under ``vmap``, are drawn as a line (the mean of their smoothed losses)
    and a band that holds 90 % of them (see :func:`lrd_optax.range_test_band`). A loss
    that blows up leaves the plot at the top.

    Args:
      result: the result of :func:`lrd_optax.lr_range_test`.
      label: its name in the legend, if several results are drawn on one Axes.
      marks: a dict from names, which the legend shows, to learning rates. Each is
        marked by a vertical line.
      cycle: the base and the peak of a cycle. The background is shaded between them.
      ax: the Axes to draw on; None: those of a new figure.

    Returns:
      The Axes. Its x axis is logarithmic, unless the rates are spaced evenly.

    Raises:
      ValueError: if no point is valid.

    Examples:
      >>> import jax, jax.numpy as jnp, lrd_optax, optax
      >>> from lrd_optax import plotting
      >>> def loss_fn(params, batch): return jnp.mean((params - batch) ** 2)
      >>> batches = 3 + jax.random.normal(jax.random.key(0), (101, 1000))
      >>> result = lrd_optax.lr_range_test(
      ...     loss_fn, jnp.zeros(()), batches, optax.sgd, min_value=1e-4, max_value=10)
      >>> ax = plotting.plot_range_test(
      ...     result,
      ...     marks={"steepest": lrd_optax.suggest_learning_rate(result, "steepest")},
      ...     cycle=lrd_optax.suggest_cycle(result))
    """
    band = range_test_band(result)
    valid = np.asarray(band.valid & jnp.isfinite(band.mean))
    if not valid.any():
        raise ValueError("result has no point that is valid (in all seeds) to draw")
    ax = _style.axes(ax)
    earlier = [line for line in ax.get_lines() if line.get_gid() == _RANGE_TEST]
    rates, mean, low, high = map(np.asarray, band[:4])
    style = {**_style.line(len(earlier)), "linewidth": 1.6, "gid": _RANGE_TEST}
    color, name = style["color"], "" if label is None else f"{label}, "
    if np.ndim(result.losses) > 1:
        seeds = int(np.prod(np.shape(result.losses)[:-1]))
        text = f"{name}90 % of {seeds} seeds"
        ax.fill_between(rates, low, high, color=color, label=text, **_style.BAND)
        (line,) = ax.plot(rates, mean, label=f"{name}mean, smoothed", **style)
    else:
        low = np.where(valid, result.losses, np.nan)
        ax.plot(rates, low, ".", ms=3, color=color, alpha=0.4, label=f"{name}loss")
        (line,) = ax.plot(rates, mean, label=f"{name}smoothed", **style)
    for i, (mark, rate) in enumerate((marks or {}).items(), len(earlier) + 1):
        # Dark gray, since the colors are for curves, and more curves may follow.
        style = {**_style.line(i), "color": "0.2"}
        ax.axvline(rate, label=f"{name}{mark} {rate:.2g}", **style)
    if cycle is not None:
        color = color if earlier else _style.COLORS[5]
        text = f"{name}cycle {cycle[0]:.2g} to {cycle[1]:.2g}"
        ax.axvspan(*cycle, color=color, label=text, **_style.BAND)
    ax.set(xlabel="learning rate", ylabel="loss")
    ends = np.array([rates[0], rates[-1], *(ax.get_xlim() if earlier else ())])
    if _unevenness(np.log(rates)) <= _unevenness(rates):
        ax.set(xscale="log", xlabel="learning rate, log scale")
    ax.set_xlim(ends.min(), ends.max())
    _style.finish(ax)
    # From the lowest loss to the start of the falls, with room for the legend above.
    curves = [np.asarray(curve.get_ydata(), float) for curve in [*earlier, line]]
    start = max(np.nanmax(y[: np.nanargmin(y) + 1]) for y in curves)
    bottom = min(np.nanmin(y) for y in [*curves, low])
    height = start - bottom or 7.0
    limits = bottom - 0.15 * height, bottom + 1.15 * height
    _style.legend(ax, limits=limits)
    return ax


def _unevenness(values: np.ndarray) -> float:
    """Returns how uneven the steps are: 0 if all are the same."""
    steps = np.diff(values)
    return float(np.ptp(steps) / steps.mean())


def plot_learning_curves(
    curves: Mapping[str, ArrayLike],
    *,
    steps: ArrayLike | None = None,
    confidence: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Draws curves against the step, and the mean of several seeds with its interval.

    Args:
      curves: a dict from names, which the legend shows, to arrays: ``[steps]``, or
        ``[seeds, steps]``. For several seeds, the mean and its confidence interval
        (Student's t) are drawn. A value that is not finite leaves a gap, even if only
        one seed has it.
      steps: the x values, ``[steps]``; None: 0, 1, ...
      confidence: the level of the interval, in (0, 1).
      ax: the Axes to draw on; None: those of a new figure. Their axes can be
        renamed by ``ax.set(xlabel=..., ylabel=...)``.

    Returns:
      The Axes.

    Raises:
      TypeError: if `curves` is not a dict.
      ValueError: if it is empty; if a curve does not have one or two dimensions, has
        no finite value, or is not as long as `steps`; if `confidence` is not in (0, 1).

    Examples:
      >>> import jax
      >>> from lrd_optax import plotting
      >>> losses = 1 + 0.1 * jax.random.normal(jax.random.key(0), (2, 8, 50))
      >>> ax = plotting.plot_learning_curves({"dense": losses[0], "LRD": losses[1]})
      >>> ax = plotting.plot_learning_curves({"one seed": losses[0, 0]}, ax=ax)
    """
    _style.check_named("curves", curves, "arrays")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    runs = {}
    for name, curve in curves.items():
        shape = np.shape(curve)
        fits = steps is None or np.shape(steps) == shape[-1:]
        if len(shape) not in (1, 2) or 0 in shape or not fits:
            given = "" if steps is None else f" and steps of shape {np.shape(steps)}"
            rule = f"curve {name!r} must be of shape [steps] or [seeds, steps]"
            raise ValueError(f"{rule}, got {shape}{given}")
        runs[name] = np.atleast_2d(_style.finite(f"curve {name!r}", curve))
    ax = _style.axes(ax)
    # On Axes that already have curves, the new ones take the next colors.
    for i, (name, run) in enumerate(runs.items(), len(ax.get_lines())):
        seeds, style = len(run), _style.line(i)
        x = np.arange(run.shape[1]) if steps is None else np.asarray(steps)
        mean = run.mean(0)
        ax.plot(
            x, mean, label=name if seeds == 1 else f"{name}, {seeds} seeds", **style
        )
        if seeds > 1:
            error = run.std(0, ddof=1) / seeds**0.5
            half = _style.stdtrit(seeds - 1, (1 + confidence) / 2) * error
            band = {**_style.BAND, "color": style["color"], "gid": _SEEDS}
            ax.fill_between(x, mean - half, mean + half, **band)
    ax.set(xlabel="step", ylabel="loss")
    ax.margins(x=0)
    _style.finish(ax)
    bands = any(band.get_gid() == _SEEDS for band in ax.collections)
    title = f"line: mean, band: {100 * confidence:g} % interval" if bands else None
    _style.legend(ax, title)
    return ax
