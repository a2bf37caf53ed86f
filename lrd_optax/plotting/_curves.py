"""Values against the step or the learning rate."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from matplotlib.ticker import MaxNLocator

from lrd_optax._range_result import RangeTestResult, range_test_band
from lrd_optax.plotting import _style

# Marks on what was drawn, so that what comes next on the same Axes goes with it.
_RANGE_TEST, _SEEDS = "range test", "seeds"


def plot_schedules(
    named: Mapping[str, optax.ScalarOrSchedule],
    num_steps: int,
    *,
    ax: _style.Axes | None = None,
) -> _style.Axes:
    """Draws schedules against the step, from 0 to `num_steps` - 1.

    A schedule that jumps and then stays is drawn as stairs, any other as a line.

    Args:
      named: schedules, or numbers, by the names that the legend shows.
      num_steps: how many steps. Of more than 10,000 only so many, evenly spaced, are
        drawn.
      ax: where to draw; None: on a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: if `num_steps` is not from 1 to 2**31.

    Examples:
      >>> import optax
      >>> from lrd_optax import plotting, schedules
      >>> rates = {
      ...     "cosine": schedules.cosine_annealing(0.1, 0.001, 100),
      ...     "step": optax.exponential_decay(0.1, 30, 0.5, staircase=True),
      ... }
      >>> ax = plotting.plot_schedules(rates, num_steps=100)
    """
    if not 1 <= num_steps <= 2**31:
        raise ValueError(f"num_steps must be from 1 to 2**31, got {num_steps}")
    ax = _style.axes(ax)
    steps = np.unique(np.linspace(0, num_steps - 1, min(num_steps, 10_000)).astype(int))
    for (name, schedule), style in zip(
        named.items(), _style.styles(len(named)), strict=True
    ):
        # Some schedules of Optax take no array of counts, or return a number for it.
        call = schedule if callable(schedule) else optax.constant_schedule(schedule)
        drawn = jax.vmap(lambda count, call=call: jnp.asarray(call(count)))(steps)
        # As stairs where it jumps and stays; the last step has its width too.
        x, y = np.append(steps, num_steps), np.append(drawn, drawn[-1])
        changes = np.diff(y, prepend=y[0]) != 0
        jumps = changes[1:-1] & ~changes[:-2] & ~changes[2:]
        if jumps.any():
            style["drawstyle"] = "steps-post"
        else:
            x, y = x[:-1], y[:-1]
        ax.plot(x, y, label=name, **style)
    ax.set(xlabel="step", ylabel="value", xlim=(0, num_steps))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _style.finish(ax)
    if len(named) > 1:
        ax.legend(**_style.LEGEND)
    return ax


def plot_range_test(
    result: RangeTestResult,
    *,
    label: str | None = None,
    marks: Mapping[str, float] | None = None,
    cycle: tuple[float, float] | None = None,
    ax: _style.Axes | None = None,
) -> _style.Axes:
    """Draws the loss against the learning rate.

    Of one run the losses as points and smoothed as a line; of many seeds, under
    ``vmap``, the mean of the smoothed losses and a band that holds 90 % of them (see
    :func:`lrd_optax.range_test_band`). What blows up leaves the picture at the top.

    Args:
      result: of :func:`lrd_optax.lr_range_test`.
      label: what to call it in the legend, where several are drawn on one Axes.
      marks: learning rates to mark by a vertical line, by the names in the legend.
      cycle: base and peak, between which the background is shaded.
      ax: where to draw; None: on a new figure.

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
      ...     marks={"steepest": lrd_optax.suggest_learning_rate(result)},
      ...     cycle=lrd_optax.suggest_cycle(result))
    """
    band = range_test_band(result)
    valid = np.asarray(band.valid)
    if not valid.any():
        raise ValueError("result has no point that is valid (in all seeds) to draw")
    ax = _style.axes(ax)
    before = [line for line in ax.get_lines() if line.get_gid() == _RANGE_TEST]
    rates, mean, low, high = map(np.asarray, band[:4])
    style = {**_style.styles(1, first=len(before))[0], "linewidth": 1.6}
    color, name = style["color"], "" if label is None else f"{label}, "
    if np.ndim(result.losses) > 1:
        seeds = int(np.prod(np.shape(result.losses)[:-1]))
        text = f"{name}mean, smoothed"
        shade = {**_style.BAND, "color": color, "label": f"{name}90 % of {seeds} seeds"}
        ax.fill_between(rates, low, high, **shade)
    else:
        text = f"{name}smoothed"
        low = np.where(valid, result.losses, np.nan)
        points = {"color": color, "alpha": 0.4, "markersize": 3, "label": f"{name}loss"}
        ax.plot(rates, low, ".", **points)
    (line,) = ax.plot(rates, mean, label=text, gid=_RANGE_TEST, **style)
    marks = marks or {}
    # Not in the colours of the curves, of which there may be more.
    styles = _style.styles(len(marks), first=len(before) + 1)
    for (mark, rate), style in zip(marks.items(), styles, strict=True):
        ax.axvline(rate, label=f"{name}{mark} {rate:.2g}", **{**style, "color": "0.2"})
    if cycle is not None:
        text = f"{name}cycle {cycle[0]:.2g} to {cycle[1]:.2g}"
        yellow = _style.COLORS[5]
        shade = {**_style.BAND, "color": color if before else yellow, "label": text}
        ax.axvspan(*cycle, **shade)
    ax.set(xlabel="learning rate", ylabel="loss")
    ends = np.array([rates[0], rates[-1], *(ax.get_xlim() if before else ())])
    if _uneven(np.log(rates)) <= _uneven(rates):
        ax.set_xscale("log")
    ax.set_xlim(ends.min(), ends.max())
    _style.finish(ax)
    legend = ax.legend(loc="upper center", ncols=2, fontsize="small", **_style.LEGEND)
    legend.set_in_layout(False)  # it is within the Axes, which must not shrink for it
    # From the lowest to where the falls begin, and above it the room for the legend.
    curves = [np.asarray(each.get_ydata(), float) for each in [*before, line]]
    start = max(np.nanmax(y[: np.nanargmin(y) + 1]) for y in curves)
    bottom = min(np.nanmin(y) for y in [*curves, low])
    room = 0.15 * (start - bottom) or 1.0
    bottom, top = bottom - room, start + room
    rows = (len(legend.get_texts()) + 1) // 2
    part = (0.17 * rows + 0.15) * ax.figure.dpi / ax.bbox.height
    ax.set_ylim(bottom, bottom + (top - bottom) / (1 - min(part, 0.6)))
    return ax


def _uneven(values: np.ndarray) -> float:
    """Returns how uneven the steps are: 0 if all are the same."""
    steps = np.diff(values)
    return float(np.ptp(steps) / steps.mean())


def plot_learning_curves(
    curves: Mapping[str, ArrayLike],
    *,
    steps: ArrayLike | None = None,
    confidence: float = 0.95,
    ax: _style.Axes | None = None,
) -> _style.Axes:
    """Draws curves against the step; of several seeds the mean and its interval.

    Args:
      curves: by the names in the legend: ``[steps]``, or ``[seeds, steps]``, of which
        the mean and its confidence interval (Student's t) are drawn. A NaN of one seed
        leaves a gap.
      steps: the x values, ``[steps]``; None: 0, 1, ...
      confidence: of the interval, in (0, 1).
      ax: where to draw; None: on a new figure. ``ax.set(xlabel=..., ylabel=...)``
        renames the axes.

    Returns:
      The Axes.

    Raises:
      ValueError: if a curve has not one or two dimensions, has no step, is not as long
        as `steps`, or `confidence` is not in (0, 1).

    Examples:
      >>> import jax
      >>> from lrd_optax import plotting
      >>> losses = 1 + 0.1 * jax.random.normal(jax.random.key(0), (2, 8, 50))
      >>> ax = plotting.plot_learning_curves({"dense": losses[0], "LRD": losses[1]})
      >>> ax = plotting.plot_learning_curves({"one seed": losses[0, 0]}, ax=ax)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    values = {name: np.asarray(curve, float) for name, curve in curves.items()}
    for name, value in values.items():
        if value.ndim not in (1, 2) or not value.size:
            raise ValueError(
                f"curve {name!r} must be of shape [steps] or [seeds, steps], "
                f"got {value.shape}"
            )
        if steps is not None and np.shape(steps) != value.shape[-1:]:
            raise ValueError(
                f"steps must have the shape {value.shape[-1:]} of curve {name!r}, "
                f"got {np.shape(steps)}"
            )
    ax = _style.axes(ax)
    drawn = len(ax.get_lines())  # on an Axes that has curves, take the next styles
    for (name, value), style in zip(
        values.items(), _style.styles(len(values), first=drawn), strict=True
    ):
        x = np.arange(value.shape[-1]) if steps is None else np.asarray(steps)
        seeds = len(value) if value.ndim == 2 else 1
        if seeds == 1:
            ax.plot(x, value.ravel(), label=name, **style)
            continue
        mean, error = value.mean(0), value.std(0, ddof=1) / seeds**0.5
        half = _style.stdtrit(seeds - 1, (1 + confidence) / 2) * error
        ax.plot(x, mean, label=f"{name}, {seeds} seeds", **style)
        band = {**_style.BAND, "color": style["color"], "gid": _SEEDS}
        ax.fill_between(x, mean - half, mean + half, **band)
    ax.set(xlabel="step", ylabel="loss")
    ax.margins(x=0)
    _style.finish(ax)
    bands = any(band.get_gid() == _SEEDS for band in ax.collections)
    title = f"mean and {100 * confidence:g} % interval" if bands else None
    ax.legend(title=title, **_style.LEGEND)
    return ax
