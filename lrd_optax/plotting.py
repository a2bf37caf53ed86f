"""Pictures of schedules, range tests, learning curves, masks and trajectories.

Needs matplotlib, which the extra ``plot`` installs; ``import lrd_optax`` does not load
it. Each function draws on the Axes it is given, or on those of a new figure, and
returns them. The colours are those of Okabe and Ito, which colour-blind people can tell
apart, and lines differ in style too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from lrd_optax._range_test import RangeTestResult, range_test_band

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator
    from scipy.special import stdtrit
except ImportError as error:
    raise ImportError(
        "lrd_optax.plotting needs matplotlib and scipy, which the extra plot installs: "
        "pip install '.[plot]' in a clone of lrd_optax"
    ) from error

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))


def plot_schedules(
    named: Mapping[str, optax.ScalarOrSchedule],
    num_steps: int,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draws schedules against the step, from 0 to `num_steps` - 1, as stairs.

    Args:
      named: schedules, or numbers, by the names that the legend shows.
      num_steps: how many steps. Of more than 10,000 only so many, evenly spaced, are
        drawn.
      ax: where to draw; None: on a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: if `num_steps` is below 1.

    Examples:
      >>> import optax
      >>> from lrd_optax import plotting, schedules
      >>> rates = {
      ...     "cosine": schedules.cosine_annealing(0.1, 0.001, 100),
      ...     "step": optax.exponential_decay(0.1, 30, 0.5, staircase=True),
      ... }
      >>> ax = plotting.plot_schedules(rates, num_steps=100)
      >>> ax.figure.savefig("/dev/null", format="png")
    """
    if not num_steps >= 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    ax = _axes(ax)
    steps = np.unique(np.linspace(0, num_steps - 1, min(num_steps, 10_000)).astype(int))
    for (name, schedule), style in zip(named.items(), _styles(len(named)), strict=True):
        # Some schedules of Optax take no array of counts, or return a number for it.
        call = schedule if callable(schedule) else optax.constant_schedule(schedule)
        drawn = jax.vmap(lambda count, call=call: jnp.asarray(call(count)))(steps)
        # To num_steps, so that the last step has its width.
        x, y = np.append(steps, num_steps), np.append(drawn, drawn[-1])
        ax.plot(x, y, drawstyle="steps-post", label=name, **style)
    ax.set(xlabel="step", ylabel="value", xlim=(0, num_steps))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(ax)
    if len(named) > 1:
        ax.legend(**_LEGEND)
    return ax


def plot_range_test(
    result: RangeTestResult,
    *,
    marks: Mapping[str, float] | None = None,
    cycle: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the loss against the learning rate.

    Of one run the losses as points and smoothed as a line; of many seeds, under
    ``vmap``, the mean of the smoothed losses and a band that holds 90 % of them (see
    :func:`lrd_optax.range_test_band`). What blows up leaves the picture at the top.

    Args:
      result: of :func:`lrd_optax.lr_range_test`.
      marks: learning rates to mark by a vertical line, by the names in the legend.
      cycle: base and peak, between which the background is shaded.
      ax: where to draw; None: on a new figure.

    Returns:
      The Axes. Its x axis is logarithmic, unless the rates are spaced evenly.

    Raises:
      ValueError: if no point is valid.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax, optax
      >>> from lrd_optax import plotting
      >>> def loss_fn(params, batch): return jnp.mean((params - batch) ** 2)
      >>> result = lrd_optax.lr_range_test(
      ...     loss_fn, jnp.zeros(()), jnp.ones((1, 8)), optax.sgd,
      ...     min_value=1e-4, max_value=10)
      >>> ax = plotting.plot_range_test(
      ...     result,
      ...     marks={"steepest": lrd_optax.suggest_learning_rate(result)},
      ...     cycle=lrd_optax.suggest_cycle(result))
    """
    band = range_test_band(result)
    valid = np.asarray(band.valid)
    if not valid.any():
        raise ValueError("result has no point that is valid (in all seeds) to draw")
    ax = _axes(ax)
    rates, mean = np.asarray(band.learning_rates), np.asarray(band.mean)
    seeds = int(np.prod(np.shape(result.losses)[:-1]))
    if np.ndim(result.losses) == 1:
        raw = np.where(valid, result.losses, np.nan)
        lowest = np.nanmin(raw)
        ax.plot(rates, raw, ".", color="0.6", ms=3, label="loss")
    else:
        low, high = np.asarray(band.low), np.asarray(band.high)
        lowest = np.nanmin(low)
        label = f"90 % of {seeds} seeds"
        ax.fill_between(rates, low, high, label=label, **_BAND)
    label = "smoothed" if np.ndim(result.losses) == 1 else "mean, smoothed"
    ax.plot(rates, mean, color=COLORS[0], linewidth=1.6, label=label)
    for (name, rate), style in zip(
        (marks or {}).items(), _styles(len(marks or {}), first=1), strict=True
    ):
        ax.axvline(rate, label=f"{name} {rate:.2g}", **style)
    if cycle is not None:
        label = f"cycle {cycle[0]:.2g} to {cycle[1]:.2g}"
        ax.axvspan(*cycle, color=COLORS[5], alpha=0.2, linewidth=0, label=label)
    ax.set(xlabel="learning rate", ylabel="loss", xlim=(rates[0], rates[-1]))
    if not np.allclose(np.diff(rates, 2), 0, atol=1e-3 * (rates[-1] - rates[0])):
        ax.set_xscale("log")
    _finish(ax)
    legend = ax.legend(loc="upper center", ncols=2, fontsize="small", **_LEGEND)
    # The room that the legend takes, above where the fall begins.
    rows = (len(legend.get_texts()) + 1) // 2
    part = (0.17 * rows + 0.15) * ax.figure.dpi / ax.bbox.height
    start = np.nanmax(mean[: np.nanargmin(mean) + 1])
    room = 0.15 * (start - lowest) or 1.0
    bottom, top = lowest - room, start + room
    ax.set_ylim(bottom, bottom + (top - bottom) / (1 - min(part, 0.6)))
    return ax


def plot_learning_curves(
    curves: Mapping[str, ArrayLike],
    *,
    steps: ArrayLike | None = None,
    confidence: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
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
    ax = _axes(ax)
    drawn = len(ax.get_lines())  # on an Axes that has curves, take the next styles
    for (name, value), style in zip(
        values.items(), _styles(len(values), first=drawn), strict=True
    ):
        x = np.arange(value.shape[-1]) if steps is None else np.asarray(steps)
        if value.ndim == 1:
            ax.plot(x, value, label=name, **style)
            continue
        seeds, mean = len(value), value.mean(0)
        ax.plot(x, mean, label=f"{name}, mean of {seeds}", **style)
        if seeds > 1:
            error = value.std(0, ddof=1) / seeds**0.5
            half = stdtrit(seeds - 1, (1 + confidence) / 2) * error
            band = {**_BAND, "color": style["color"]}
            ax.fill_between(x, mean - half, mean + half, **band)
    ax.set(xlabel="step", ylabel="loss")
    ax.margins(x=0)
    _finish(ax)
    ax.legend(**_LEGEND)
    return ax


def plot_mask(mask: Any, *, ax: Axes | None = None) -> Axes:
    """Draws one mask: what is kept is dark, what is dropped is light.

    Args:
      mask: one boolean array, a leaf of what :func:`lrd_optax.sample_mask` returns. Of
        more than two dimensions all but the last are the rows.
      ax: where to draw; None: on a new figure.

    Returns:
      The Axes, with the kept share as title.

    Raises:
      ValueError, TypeError: if `mask` is not one boolean array with elements.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> from lrd_optax import plotting
      >>> masks = lrd_optax.sample_mask(0, {"w": jnp.ones((16, 32))}, 0.5)
      >>> plotting.plot_mask(masks["w"]).get_title()
      'kept: 259 of 512 (50.6 %)'
    """
    rule = "mask must be one boolean array with elements"
    if not hasattr(mask, "dtype"):
        kind = type(mask).__name__
        raise TypeError(f"{rule}, got a {kind}: choose a leaf of it")
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.size == 0:
        raise ValueError(f"{rule}, got {mask.dtype} of shape {mask.shape}")
    ax = _axes(ax)
    rows = mask.reshape(-1, mask.shape[-1] if mask.ndim else 1)
    slim = max(rows.shape) > 4 * min(rows.shape)
    colors = matplotlib.colors.ListedColormap(["#E8EEF2", COLORS[0]])
    ax.imshow(
        rows,
        cmap=colors,
        vmin=0,
        vmax=1,
        aspect="auto" if slim else "equal",
        interpolation="nearest",
    )
    kept = int(mask.sum())
    ax.set_title(f"kept: {kept:,} of {mask.size:,} ({100 * kept / mask.size:.1f} %)")
    ax.set(xlabel="column", ylabel="row")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(rows) == 1:
        ax.set(yticks=[], ylabel="")
    return ax


def plot_trajectories(
    loss: Callable[[jax.Array], jax.Array],
    paths: Mapping[str, ArrayLike],
    *,
    xlim: tuple[float, float] | None = None,
    ylim: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws paths over the contours of a loss of two parameters.

    Args:
      loss: a function of a point ``[2]``, a scalar.
      paths: by the names in the legend: ``[steps, 2]``, or ``[runs, steps, 2]``. A
        circle is where a path starts, a cross where it ends.
      xlim, ylim: what to show of the first and of the second parameter; None: the
        paths and some room around them.
      ax: where to draw; None: on a new figure.

    Returns:
      The Axes. The darker, the higher the loss; between two contours lie equal parts
      of the picture.

    Raises:
      ValueError: if there is no path, a path has another shape, or is nowhere finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> from lrd_optax import plotting
      >>> def loss(point): return point[0] ** 2 + 4 * point[1] ** 2
      >>> path = jnp.array([[1.0, 0.5], [0.8, 0.1], [0.6, 0.0]])
      >>> ax = plotting.plot_trajectories(loss, {"descent": path})
    """
    runs = {name: np.asarray(path, float) for name, path in paths.items()}
    for name, run in runs.items():
        if run.ndim not in (2, 3) or run.shape[-1] != 2 or not np.isfinite(run).any():
            raise ValueError(
                f"path {name!r} must be of shape [steps, 2] or [runs, steps, 2] and "
                f"somewhere finite, got shape {run.shape}"
            )
    if not runs:
        raise ValueError("paths must have at least one path, got none")
    ax = _axes(ax)
    points = np.concatenate([run.reshape(-1, 2) for run in runs.values()])
    shown = [
        _around(points[:, i]) if given is None else given
        for i, given in enumerate((xlim, ylim))
    ]
    x, y = np.meshgrid(*(np.linspace(*each, 200) for each in shown))
    heights = jax.vmap(loss)(jnp.stack([x.ravel(), y.ravel()], axis=1))
    height = np.asarray(heights, float).reshape(x.shape)
    levels = np.unique(np.nanquantile(height, np.linspace(0, 1, 16)))
    if len(levels) > 1:
        ax.contourf(x, y, height, levels=levels, cmap="Greys", alpha=0.35)
        thin: dict[str, Any] = {"linewidths": 0.5, "linestyles": "solid"}
        ax.contour(x, y, height, levels=levels, colors="0.75", **thin)
    for (name, run), style in zip(runs.items(), _styles(len(runs)), strict=True):
        run = run.reshape(-1, *run.shape[-2:])
        for number, path in enumerate(run):
            ax.plot(*path.T, label=name if number == 0 else None, **style)
        ends = {"color": style["color"], "linestyle": "", "zorder": 3}
        ax.plot(*run[:, 0].T, marker="o", markersize=4, **ends)
        ax.plot(*run[:, -1].T, marker="x", markersize=6, markeredgewidth=1.6, **ends)
    ax.set(xlabel="first parameter", ylabel="second parameter")
    ax.set(xlim=shown[0], ylim=shown[1])
    ax.legend(**_LEGEND)
    return ax


_BAND: dict[str, Any] = {"color": COLORS[0], "alpha": 0.2, "linewidth": 0}
_LEGEND: dict[str, Any] = {"framealpha": 0.85, "edgecolor": "none"}


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    # Here, since it chooses a backend: who gives an Axes may have none.
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def _styles(number: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "color": COLORS[i % len(COLORS)],
            "linestyle": LINES[(i + i // len(COLORS)) % len(LINES)],
            "linewidth": 1.4,
        }
        for i in range(first, first + number)
    ]


def _around(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    room = 0.1 * (high - low) or 1.0
    return low - room, high + room


def _finish(ax: Axes) -> None:
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
