"""What the curve of a learning-rate range test suggests."""

from __future__ import annotations  # so that help shows short names

from typing import Literal, NamedTuple

import jax
import numpy as np

from lrd_optax import _checks
from lrd_optax._range_result import RangeTestResult, by_seed

# A slope below this share of the steepest one counts as no fall. Smoothing flattens the
# ends of a straight fall to 0.33 to 0.38 of its slope, which must still count.
_FLAT = 0.32


class _Curve(NamedTuple):
    """The valid points of a range test, interpolated at evenly spaced log rates.

    So a step of the index is always the same step of the log learning rate.
    """

    logs: np.ndarray  # natural logarithms of the learning rates
    losses: np.ndarray  # smoothed, the mean over the seeds
    bottom: int  # where the loss is lowest
    turned: bool  # whether the loss has risen again, or the test has stopped

    @property
    def slopes(self) -> np.ndarray:
        """Slopes of the lowest loss so far: coming down from a spike is no progress."""
        return np.gradient(np.minimum.accumulate(self.losses), self.logs)

    @property
    def ends(self) -> str:
        first, last = np.exp(self.logs[[0, -1]])
        return f"from {first:.3g} to {last:.3g}"


def suggest_learning_rate(
    result: RangeTestResult,
    method: Literal["peak", "steepest", "valley", "min_over_10"] = "peak",
) -> float:
    """Returns a learning rate that the curve of a range test suggests.

    * ``"peak"``: where nine tenths of the whole fall are done, the peak of
      :func:`suggest_cycle`. Of the four, it led to the lowest median loss with each of
      three optimizers (see the page on the range test).
    * ``"steepest"``: where the lowest smoothed loss so far falls fastest, by its slope
      against the logarithm of the learning rate. (The loss itself is steep on the way
      down from a spike too.)
    * ``"valley"``: the middle, in log learning rate, of the way down, from the point
      where a tenth of the whole fall is done to the lowest point.
    * ``"min_over_10"``: a tenth of the rate where the smoothed loss is lowest.

    Take it as the start of a search, not as its end: the best rate may be several times
    as high.

    Args:
      result: the result of :func:`lr_range_test`. Under ``vmap``, the mean over the
        seeds is used, at the points that are valid in all of them.
      method: see above.

    Returns:
      A Python float, within the range of the test (for ``"min_over_10"`` maybe below
      it). Not for use under ``jit``.

    Raises:
      ValueError: if `method` is none of these, or the curve gives no answer. The
        message says why: too few points are valid, or the loss never falls by more than
        its noise, still falls at the last rate, or falls fastest at one end.
      TypeError: if `result` is not what :func:`lr_range_test` returns, or is traced.

    Examples:
      >>> import jax, jax.numpy as jnp, lrd_optax, optax
      >>> def loss_fn(params, batch): return jnp.mean((params - batch) ** 2)
      >>> batches = 3 + jax.random.normal(jax.random.key(0), (101, 1000))
      >>> result = lrd_optax.lr_range_test(
      ...     loss_fn, jnp.zeros(()), batches, optax.sgd, min_value=1e-4, max_value=10)
      >>> for method in ("peak", "steepest", "valley", "min_over_10"):
      ...     print(f"{lrd_optax.suggest_learning_rate(result, method):.3f}", method)
      0.076 peak
      0.027 steepest
      0.034 valley
      0.043 min_over_10
    """
    _checks.choice("method", method, _METHODS)
    return float(np.exp(_METHODS[method](_curve(result))))


def suggest_cycle(result: RangeTestResult) -> tuple[float, float]:
    """Returns the base and the peak for :func:`schedules.cyclical`, by Smith's rule.

    By this rule the base is the rate where the loss starts to fall, and the peak is the
    rate where the fall slows down, gets ragged or ends. Here the peak is the first rate
    at which nine tenths of the whole fall of the smoothed loss are done. The base is
    the last rate before it at which no more than a tenth is done.

    Args:
      result: as for :func:`suggest_learning_rate`.

    Returns:
      ``(base_value, peak_value)``, two Python floats. Not for use under ``jit``.

    Raises:
      ValueError: if the curve gives no answer. The message says why.
      TypeError: if `result` is not what :func:`lr_range_test` returns, or is traced.

    Examples:
      >>> import jax, jax.numpy as jnp, lrd_optax, optax
      >>> def loss_fn(params, batch): return jnp.mean((params - batch) ** 2)
      >>> batches = 3 + jax.random.normal(jax.random.key(0), (101, 1000))
      >>> result = lrd_optax.lr_range_test(
      ...     loss_fn, jnp.zeros(()), batches, optax.sgd, min_value=1e-4, max_value=10)
      >>> base_value, peak_value = lrd_optax.suggest_cycle(result)
      >>> print(f"{base_value:.3f} {peak_value:.3f}")
      0.003 0.076
      >>> rate = lrd_optax.schedules.cyclical(base_value, peak_value, step_size=2000)

    References:
      Smith, `Cyclical Learning Rates for Training Neural Networks
      <https://arxiv.org/abs/1506.01186>`_, 2017, section 3.3
    """
    curve = _curve(result)
    base, peak = np.exp(curve.logs[list(_fall_ends(curve))])
    return float(base), float(peak)


def _curve(result: RangeTestResult) -> _Curve:
    # In NumPy, since the seeds may be sharded.
    try:
        rates, raw, smoothed, valids = by_seed(result, np.asarray)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            "result must have values, got traced arrays: suggest rates outside of jit "
            "and vmap"
        ) from error
    valid = valids.all(0)
    number = int(valid.sum())
    if empty := int((~valids.any(1)).sum()):
        raise ValueError(
            f"the loss was not finite, or diverged, at once in {empty} of "
            f"{len(valids)} runs: look at the parameters, or lower min_value"
        )
    if number < 5:
        raise ValueError(
            f"at least 5 points must be valid (in all seeds), got {number} of "
            f"{len(valid)}: lower min_value, or raise num_steps"
        )
    logs = np.log(rates[0, valid].astype(float))
    losses = smoothed[:, valid].mean(0, dtype=float)
    noise = _noise(raw[:, valid].mean(0, dtype=float)) + 2 * _noise(losses)
    even_logs = np.linspace(logs[0], logs[-1], number)
    losses = np.interp(even_logs, logs, losses)
    bottom = int(losses.argmin())
    # A point that is missing in the middle is no turn; one at the end has diverged.
    curve = _Curve(even_logs, losses, bottom, bottom < number - 1 or not valid[-1])
    fall = losses[0] - losses[bottom]
    # Noise alone has a smaller range than this, smoothed or not.
    if not fall > 2 * noise:
        raise ValueError(
            f"the loss never falls clearly, by {fall:.3g} at most where its noise is "
            f"{noise:.3g}: try other learning rates (they are {curve.ends}), larger "
            "batches (is each entry of batches a whole one?), or more steps or seeds"
        )
    return curve


def _fall_ends(curve: _Curve) -> tuple[int, int]:
    """Returns the points where one tenth and where nine tenths of the fall are done.

    The second is the first point that has fallen by nine tenths. The first is the last
    point before it that has fallen by at most a tenth: an earlier one may be noise.
    """
    _check_ends(curve, first=True, last=True)
    start, end = curve.losses[0], curve.losses[curve.bottom]
    done = (start - curve.losses) / (start - end)
    peak = int(np.flatnonzero(done >= 0.9)[0])
    return int(np.flatnonzero(done[:peak] <= 0.1)[-1]), peak


def _noise(losses: np.ndarray) -> float:
    """Returns the standard deviation of the noise on a smooth curve.

    It comes from the median of the second differences, which neither a trend nor a
    blow-up moves. With few points it would take the curve itself for noise, so it is 0.
    """
    if len(losses) < 20:
        return 0.0
    return float(np.median(np.abs(np.diff(losses, 2)))) / 0.6745 / 6**0.5


def _check_ends(curve: _Curve, first: bool, last: bool) -> None:
    """Raises if the fall began before the first point, or goes on after the last."""
    if first and curve.slopes[0] < _FLAT * curve.slopes.min():
        fault = "falls fast from the first learning rate on: lower min_value"
    elif last and not curve.turned:
        fault = "still falls at the last learning rate: raise max_value"
    else:
        return
    raise ValueError(f"the loss {fault} (the rates are {curve.ends})")


def _peak(curve: _Curve) -> float:
    return float(curve.logs[_fall_ends(curve)[1]])


def _steepest(curve: _Curve) -> float:
    falls = curve.slopes[curve.bottom] < _FLAT * curve.slopes.min()
    _check_ends(curve, first=True, last=bool(falls))
    return float(curve.logs[curve.slopes.argmin()])


def _valley(curve: _Curve) -> float:
    return float(curve.logs[_fall_ends(curve)[0]] + curve.logs[curve.bottom]) / 2


def _min_over_10(curve: _Curve) -> float:
    _check_ends(curve, first=False, last=True)
    return float(curve.logs[curve.bottom] - np.log(10))


_METHODS = {
    "peak": _peak,
    "steepest": _steepest,
    "valley": _valley,
    "min_over_10": _min_over_10,
}
