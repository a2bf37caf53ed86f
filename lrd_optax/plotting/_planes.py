"""Plots in two dimensions: a mask, and paths over a loss."""

from __future__ import annotations  # so that help shows short names

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator

from lrd_optax.plotting import _style
from lrd_optax.plotting._style import Axes


def plot_mask(mask: Any, *, ax: Axes | None = None) -> Axes:
    """Draws one mask. Kept elements are dark, dropped ones are light.

    Args:
      mask: one boolean array, a leaf of what :func:`lrd_optax.sample_mask` returns. If
        it has more than two dimensions, all but the last are flattened to rows.
      ax: the Axes to draw on; None: those of a new figure.

    Returns:
      The Axes. The title says how many elements are kept.

    Raises:
      TypeError: if `mask` is not an array.
      ValueError: if it is not boolean, or has no elements.

    Examples:
      >>> import jax.numpy as jnp, lrd_optax
      >>> from lrd_optax import plotting
      >>> dropout = lrd_optax.learning_rate_dropout(keep_prob=0.5, key=0)
      >>> updates = jnp.ones((16, 32))
      >>> mask = lrd_optax.sample_mask(dropout, dropout.init(updates), updates)
      >>> plotting.plot_mask(mask).get_title()
      'kept: 234 of 512 (45.7 %)'
    """
    rule = "mask must be one boolean array with elements"
    if not hasattr(mask, "dtype"):
        got = type(mask).__name__
        raise TypeError(f"{rule}, got a {got}: choose a leaf of it")
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.size == 0:
        raise ValueError(f"{rule}, got {mask.dtype} of shape {mask.shape}")
    ax = _style.axes(ax)
    rows = mask.reshape(-1, mask.shape[-1] if mask.ndim else 1)
    aspect: Any = "auto" if max(rows.shape) > 4 * min(rows.shape) else "equal"
    colors = ListedColormap(["#E8EEF2", _style.COLORS[0]])
    ax.imshow(rows, colors, vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
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
      loss: a function that takes a point, ``[2]``, and returns a scalar.
      paths: a dict from names, which the legend shows, to arrays: ``[steps, 2]``, or
        ``[runs, steps, 2]``. A circle marks the start of a path, a cross its end.
      xlim, ylim: the limits of the first and of the second axis; None: the limits of
        the paths, with a margin.
      ax: the Axes to draw on; None: those of a new figure.

    Returns:
      The Axes. Darker means a higher loss. The regions between one contour and the
      next have equal areas.

    Raises:
      TypeError: if `paths` is not a dict.
      ValueError: if it is empty, a path has another shape, or is nowhere finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> from lrd_optax import plotting
      >>> def loss(point): return point[0] ** 2 + 4 * point[1] ** 2
      >>> path = jnp.array([[1.0, 0.5], [0.8, 0.1], [0.6, 0.0]])
      >>> ax = plotting.plot_trajectories(loss, {"descent": path})
    """
    _style.check_named("paths", paths, "arrays")
    runs = {name: np.asarray(path, float) for name, path in paths.items()}
    for name, run in runs.items():
        has_shape = run.ndim in (2, 3) and run.shape[-1] == 2
        if not (has_shape and np.isfinite(run.reshape(-1, 2)).any(0).all()):
            raise ValueError(
                f"path {name!r} must be of shape [steps, 2] or [runs, steps, 2] and "
                f"somewhere finite, got shape {run.shape}"
            )
    ax = _style.axes(ax)
    points = np.concatenate([run.reshape(-1, 2) for run in runs.values()])
    xlim = _limits(points[:, 0]) if xlim is None else xlim
    ylim = _limits(points[:, 1]) if ylim is None else ylim
    x, y = np.meshgrid(np.linspace(*xlim, 200), np.linspace(*ylim, 200))
    height = np.asarray(jax.vmap(jax.vmap(loss))(jnp.stack([x, y], axis=-1)), float)
    height = np.where(np.isfinite(height), height, np.nan).reshape(x.shape)
    finite = height[np.isfinite(height)]
    quantiles = np.linspace(0, 1, 16)
    levels = np.unique(np.quantile(finite if finite.size else [0.0], quantiles))
    if len(levels) > 1:
        ax.contourf(x, y, height, levels=levels, cmap="Greys", alpha=0.35)
        ax.contour(x, y, height, levels, colors="0.75", linewidths=0.5, linestyles="-")
    for i, (name, run) in enumerate(runs.items()):
        style = _style.line(i)
        run = run.reshape(-1, *run.shape[-2:])
        for j, path in enumerate(run):
            ax.plot(*path.T, label=None if j else name, **style)
        ends: dict[str, Any] = {"color": style["color"], "linestyle": "", "zorder": 3}
        # Open circles that grow from name to name, since many paths may share a start.
        ax.plot(*run[:, 0].T, "o", fillstyle="none", markersize=5 + 2 * i, **ends)
        ax.plot(*run[:, -1].T, "x", markersize=6, markeredgewidth=1.6, **ends)
    ax.set(xlabel="first parameter", ylabel="second parameter", xlim=xlim, ylim=ylim)
    ax.legend(**_style.LEGEND)
    return ax


def _limits(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    margin = 0.1 * np.ptp(values) or 1.0
    return values.min() - margin, values.max() + margin
