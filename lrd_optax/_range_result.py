"""The result of a learning-rate range test: smoothed losses, the mean over seeds."""

from __future__ import annotations  # so that help shows short names

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrd_optax import _checks


class RangeTestResult(NamedTuple):
    """What `lr_range_test` returns. Point i is one update and the loss after it.

    Attributes:
      learning_rates: the rate of update i, ``float[num_steps]``, rising.
      losses: the loss after update i, on the next batch, ``float[num_steps]``; NaN
        where not valid.
      smoothed_losses: a moving average of the losses that does not lag,
        ``float[num_steps]``; NaN where not valid.
      valid: True where the loss is finite and no earlier loss has diverged,
        ``bool[num_steps]``. A single False in the middle is a loss that was not finite.
    """

    learning_rates: jax.Array
    losses: jax.Array
    smoothed_losses: jax.Array
    valid: jax.Array


class RangeTestBand(NamedTuple):
    """What `range_test_band` returns: the smoothed losses of many seeds in one curve.

    Attributes:
      learning_rates: ``float[num_steps]``.
      mean: the mean over the seeds, ``float[num_steps]``, NaN where not valid.
      low: the lower end of the band, ``float[num_steps]``, NaN where not valid.
      high: the upper end of the band, ``float[num_steps]``, NaN where not valid.
      valid: True where the point is valid in all seeds, ``bool[num_steps]``.
    """

    learning_rates: jax.Array
    mean: jax.Array
    low: jax.Array
    high: jax.Array
    valid: jax.Array


def range_test_band(result: RangeTestResult, coverage: float = 0.9) -> RangeTestBand:
    """Returns the mean of the smoothed losses over the seeds, and a band around it.

    Args:
      result: the result of `lr_range_test` under ``vmap``: arrays with leading axes for
        the seeds. Without such axes, mean and band are the curve itself.
      coverage: the share of the seeds that the band holds at each rate: from the
        (1 - coverage) / 2 quantile to the (1 + coverage) / 2 quantile. 1 holds all.

    Returns:
      A :class:`RangeTestBand`. A point counts only where it is valid in all seeds,
      since a mean over those that happen to be left would jump.

    Raises:
      ValueError: if `coverage` is not in [0, 1], or `result` has no seed.
      TypeError: if `result` is not a :class:`RangeTestResult`.

    Examples:
      >>> import jax, jax.numpy as jnp, lrd_optax, optax
      >>> def loss_fn(params, batch): return jnp.mean((params - batch) ** 2)
      >>> def one_seed(key):
      ...   batches = 3 + jax.random.normal(key, (101, 50))
      ...   return lrd_optax.lr_range_test(
      ...     loss_fn, jnp.zeros(()), batches, optax.sgd, min_value=1e-4, max_value=10)
      >>> results = jax.vmap(one_seed)(jax.random.split(jax.random.key(0), 8))
      >>> band = lrd_optax.range_test_band(results)
      >>> print(f"{band.mean[0]:.1f}, from {band.low[0]:.1f} to {band.high[0]:.1f}")
      9.8, from 9.4 to 10.3
    """
    share = _checks.number("coverage", coverage, least=0, most=1, static=True)
    rates, _, smoothed, valids = by_seed(result, jnp.asarray)
    valid = valids.all(0)
    ends = jnp.array([(1 - share) / 2, (1 + share) / 2], smoothed.dtype)
    curves = smoothed.mean(0), *jnp.quantile(smoothed, ends, axis=0)
    mean, low, high = (jnp.where(valid, curve, jnp.nan) for curve in curves)
    return RangeTestBand(rates[0], mean, low, high, valid)


def by_seed(result: RangeTestResult, asarray: Any) -> Any:
    """Returns the arrays of a result as ``[seeds, num_steps]``."""
    if not isinstance(result, RangeTestResult):
        got = _checks.shown(result)
        raise TypeError(f"result must be what lr_range_test returns, got {got}")
    shape = np.shape(result.losses)
    if 0 in shape:
        raise ValueError(f"result must not be empty, got losses of shape {shape}")
    return [asarray(array).reshape(-1, shape[-1]) for array in result]


def smooth(losses: jax.Array, window: float) -> jax.Array:
    """Returns the weighted mean of the medians near each loss; NaN where it is NaN."""
    if window == 0:
        return losses
    padded = jnp.pad(losses, 2, constant_values=jnp.nan)
    windows = jnp.stack([padded[i : i + len(losses)] for i in range(5)])
    medians = jnp.nanmedian(windows, axis=0)
    # Capped, since a loss that blows up would reach far back through the window.
    first, lowest = medians[0], jnp.nanmin(medians)
    limit = jnp.where(lowest < first, first + (first - lowest) / 4, jnp.inf)
    reach = min(int(6 * window) + 1, len(losses) - 1)  # weights beyond are below 2e-8
    distance = np.arange(-reach, reach + 1)
    weights = jnp.asarray(np.exp(-0.5 * (distance / window) ** 2), losses.dtype)

    def weighted_sum(values: jax.Array) -> jax.Array:
        # mode="same" would be as long as the longer of the two.
        total = jnp.convolve(values, weights, precision=jax.lax.Precision.HIGHEST)
        return total[reach : reach + len(losses)]

    valid = ~jnp.isnan(losses)
    limited = jnp.where(valid, jnp.minimum(medians, limit), 0)
    mean = weighted_sum(limited) / weighted_sum(valid.astype(losses.dtype))
    return jnp.where(valid, mean, jnp.nan)
