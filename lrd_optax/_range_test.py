"""The learning-rate range test: train while the learning rate rises, watch the loss."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrd_optax.schedules import _arguments


class RangeTestResult(NamedTuple):
    """What `lr_range_test` returns. Point i is one update and the loss after it.

    Attributes:
      learning_rates: the rate of update i, ``float[num_steps]``, rising.
      losses: the loss of the parameters that update i made, on the next batch,
        ``float[num_steps]``; NaN where the test had stopped.
      smoothed_losses: a moving average of the losses without a lag,
        ``float[num_steps]``; NaN where not valid.
      valid: True where the test had not stopped and the loss is finite,
        ``bool[num_steps]``.
    """

    learning_rates: jax.Array
    losses: jax.Array
    smoothed_losses: jax.Array
    valid: jax.Array


class RangeTestBand(NamedTuple):
    """What `range_test_band` returns: the smoothed losses of many seeds in one curve.

    Attributes:
      learning_rates: ``float[num_steps]``.
      mean: the mean of the seeds, ``float[num_steps]``, NaN where not valid.
      low: the lower end of the band, ``float[num_steps]``, NaN where not valid.
      high: the upper end of the band, ``float[num_steps]``, NaN where not valid.
      valid: True where the point is valid in all seeds, ``bool[num_steps]``.
    """

    learning_rates: jax.Array
    mean: jax.Array
    low: jax.Array
    high: jax.Array
    valid: jax.Array


class _Run(NamedTuple):
    params: Any
    state: Any
    average: jax.Array  # of the losses so far, exponential, its bias not yet corrected
    best: jax.Array  # the lowest corrected average so far
    stopped: jax.Array


def lr_range_test(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: optax.Params,
    batches: Any,
    make_optimizer: Callable[[optax.Schedule], optax.GradientTransformation],
    *,
    min_value: float,
    max_value: float,
    num_steps: int = 100,
    scale: Literal["log", "linear"] = "log",
    smoothing: float = 0.05,
    divergence: float | None = 4.0,
) -> RangeTestResult:
    r"""Trains for `num_steps` updates while the learning rate rises, from `params`.

    With :math:`r = \eta_{max} / \eta_{min}` and N steps, update :math:`i` has the rate

    .. math::

      \eta_i = \eta_{min}\, r^{i / (N - 1)} \text{ (log)}, \qquad
      \eta_i = \eta_{min} + (\eta_{max} - \eta_{min}) \frac{i}{N - 1} \text{ (linear)},

    and its loss is that of the parameters it made, :math:`L(\theta_{i+1}; b_{i+1})`:
    the loss measured in the same step, before the update, is the work of the rate
    before. Everything is one compiled :func:`jax.lax.scan`. Nothing of the caller's
    is changed, donated or kept.

    The smoothed losses weight point j by :math:`\exp(-(i-j)^2 / 2 h^2)` with
    :math:`h` = `smoothing` * N. Being symmetric, they have no lag, as an exponential
    average has. A loss above the limit of `divergence` counts as that limit in them.

    Args:
      loss_fn: ``loss_fn(params, batch)``, a real scalar. With what does not train
        (a module's definition, batch statistics, a random key) closed over, or as a
        part of the batch.
      params: where every run starts, as the optimizer takes them.
      batches: a tree of arrays, stacked along a leading axis: update i trains on
        ``batches[i % n]``. Give `num_steps` + 1 batches so that none comes twice.
      make_optimizer: called with a schedule, returns the optimizer: ``optax.adam``,
        or ``lambda rate: optax.chain(optax.sgd(rate), learning_rate_dropout(...))``.
        The schedule is the rate of the present update, whatever it is called with.
        The `update` also gets `value`, `grad` and `value_fn`, if it takes them.
      min_value: the first learning rate, above 0.
      max_value: the last learning rate, above `min_value`.
      num_steps: how many updates and learning rates, at least 2.
      scale: how the rates are spaced, ``"log"`` or ``"linear"``.
      smoothing: standard deviation of the window as a part of `num_steps`, from 0
        (none) to 0.5.
      divergence: the test stops once a causal average of the losses is above
        :math:`best + (divergence - 1) |best|`, which is `divergence` times its lowest
        value so far for a positive loss; above 1. None: only a loss that is not
        finite stops it. From there on no update is computed.

    Returns:
      A :class:`RangeTestResult`. Its arrays are float32 (float64 under x64). Under
      ``vmap``, over keys for instance, they have a leading axis, which
      :func:`suggest_learning_rate`, :func:`suggest_cycle`, :func:`range_test_band` and
      ``plotting.plot_range_test`` take.

    Raises:
      ValueError: if a number is out of its range, the arrays in `batches` are not
        stacked to one length, or the loss is no scalar.
      TypeError: if an argument is of a wrong type.

    Examples:
      >>> import jax, jax.numpy as jnp, lrd_optax, optax
      >>> def loss_fn(params, batch): return jnp.mean((params - batch) ** 2)
      >>> batches = 3 + jax.random.normal(jax.random.key(0), (101, 1000))
      >>> result = lrd_optax.lr_range_test(
      ...     loss_fn, jnp.zeros(()), batches, optax.sgd, min_value=1e-4, max_value=10)
      >>> print(f"{lrd_optax.suggest_learning_rate(result):.2f}")
      0.03

    References:
      Smith, `Cyclical Learning Rates for Training Neural Networks
      <https://arxiv.org/abs/1506.01186>`_, 2017, section 3.3
    """
    for name, function in (("loss_fn", loss_fn), ("make_optimizer", make_optimizer)):
        if not callable(function):
            kind = type(function).__name__
            raise TypeError(f"{name} must be a function, got a {kind}")
    length = _length(batches)
    rates = _rates(min_value, max_value, num_steps, scale)
    window = _static_number("smoothing", smoothing, least=0, most=0.5) * len(rates)
    if divergence is not None:
        divergence = _static_number("divergence", divergence, above=1)
    memory = 1 - 1 / max(1, 2 * window)  # of the causal average; as wide as the window

    def optimizer(rate: jax.Array) -> optax.GradientTransformationExtraArgs:
        # Not of the count: an optimizer may count otherwise, as optax.MultiSteps does.
        # full_like keeps it weak, so that it does not widen bfloat16.
        made = make_optimizer(lambda count: jax.lax.full_like(0.0, rate))
        # Not isinstance: optax.MultiSteps is none, and fits.
        if not (hasattr(made, "init") and hasattr(made, "update")):
            kind = type(made).__name__
            raise TypeError(
                "make_optimizer must return an optax.GradientTransformation, "
                f"got a {kind}"
            )
        return optax.with_extra_args_support(made)

    def run(params: Any, batches: Any, rates: jax.Array) -> RangeTestResult:
        def train(
            run: _Run, step: jax.Array, rate: jax.Array, weight: jax.Array
        ) -> Any:
            def value_fn(params: Any) -> Any:
                batch = jax.tree.map(
                    lambda b: jax.lax.dynamic_index_in_dim(b, step % length, 0, False),
                    batches,
                )
                return _scalar(loss_fn(params, batch))

            value, grads = jax.value_and_grad(value_fn)(run.params)
            loss = value.astype(rates.dtype)
            average = memory * run.average + (1 - memory) * loss
            corrected = average / weight
            best = jnp.minimum(run.best, corrected)
            limit = _limit(best, divergence)
            stopped = ~(jnp.isfinite(loss) & (corrected <= limit))

            def update(params: Any, state: Any) -> tuple[Any, Any]:
                updates, state = optimizer(rate).update(
                    grads, state, params, value=value, grad=grads, value_fn=value_fn
                )
                return optax.apply_updates(params, updates), state

            params, state = jax.lax.cond(
                stopped, lambda *same: same, update, run.params, run.state
            )
            run = _Run(params, state, average, best, stopped)
            return run, (loss, jnp.minimum(loss, limit))

        def stay(run: _Run, *inputs: jax.Array) -> Any:
            nothing = jnp.full([], jnp.nan, rates.dtype)
            return run, (nothing, nothing)

        def body(run: _Run, inputs: Any) -> Any:
            return jax.lax.cond(run.stopped, stay, train, run, *inputs)

        params = jax.tree.map(jnp.asarray, params)
        zero = jnp.zeros([], rates.dtype)
        state = optimizer(rates[0]).init(params)
        start = _Run(params, state, zero, zero + jnp.inf, jnp.zeros([], bool))
        # One more than there are rates: a loss is measured before its step's update.
        steps = np.arange(len(rates) + 1)
        weights = jnp.asarray(1 - memory ** (steps + 1), rates.dtype)
        inputs = jnp.asarray(steps), jnp.append(rates, rates[-1]), weights
        _, (losses, limited) = jax.lax.scan(body, start, inputs)
        losses, limited = losses[1:], limited[1:]
        valid = jnp.isfinite(losses)
        smoothed = _smooth(limited, valid, window)
        return RangeTestResult(rates, losses, smoothed, valid)

    rates_array = jnp.asarray(rates, jnp.result_type(float))
    result: RangeTestResult = jax.jit(run)(params, batches, rates_array)
    return result


def range_test_band(result: RangeTestResult, coverage: float = 0.9) -> RangeTestBand:
    """Returns the mean of the smoothed losses over the seeds, and a band around it.

    Args:
      result: of `lr_range_test` under ``vmap``: arrays with leading axes for the
        seeds. Without such axes, mean and band are the curve itself.
      coverage: which part of the seeds the band holds at each rate, in the middle: from
        the (1 - coverage) / 2 quantile to the (1 + coverage) / 2 quantile. 1 is all.

    Returns:
      A :class:`RangeTestBand`. A point counts only where it is valid in all seeds: a
      mean over those that happen to be left would jump.

    Raises:
      ValueError: if `coverage` is not in [0, 1].
    """
    coverage = _static_number("coverage", coverage, least=0, most=1)
    size = result.losses.shape[-1]
    smoothed = result.smoothed_losses.reshape(-1, size)
    valid = result.valid.reshape(-1, size).all(0)
    ends = jnp.array([(1 - coverage) / 2, (1 + coverage) / 2], smoothed.dtype)
    low, high = jnp.quantile(smoothed, ends, axis=0)
    mean, low, high = (
        jnp.where(valid, each, jnp.nan) for each in (smoothed.mean(0), low, high)
    )
    rates = result.learning_rates.reshape(-1, size)[0]
    return RangeTestBand(rates, mean, low, high, valid)


def _rates(min_value: Any, max_value: Any, num_steps: Any, scale: Any) -> np.ndarray:
    low = _static_number("min_value", min_value, above=0)
    high = _static_number("max_value", max_value, above=0)
    if low >= high:
        raise ValueError(f"min_value must be below max_value, got {low} and {high}")
    steps = _arguments.static("num_steps", num_steps)
    steps = _arguments.whole_number("num_steps", steps, least=2)
    if scale not in ("log", "linear"):
        raise ValueError(f"scale must be 'log' or 'linear', got {scale!r}")
    return (np.geomspace if scale == "log" else np.linspace)(low, high, steps)


def _static_number(name: str, value: Any, **limits: float) -> float:
    return float(_arguments.number(name, _arguments.static(name, value), **limits))


def _length(batches: Any) -> int:
    leaves = jax.tree.leaves(batches)
    shapes = [np.shape(leaf) for leaf in leaves]
    rule = "batches must be a tree of arrays, stacked along a leading axis"
    if not leaves or not all(shapes):
        raise ValueError(f"{rule}, got leaves of shapes {shapes}")
    lengths = sorted({shape[0] for shape in shapes})
    if len(lengths) > 1 or lengths[0] == 0:
        raise ValueError(f"{rule} of one length above 0, got lengths {lengths}")
    return int(lengths[0])


def _scalar(loss: Any) -> Any:
    shape = getattr(loss, "shape", None)
    if shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        got = type(loss).__name__ if shape is None else f"{loss.dtype}{list(shape)}"
        raise ValueError(f"loss_fn must return a real scalar, got {got}")
    return loss


def _limit(best: jax.Array, divergence: float | None) -> jax.Array:
    if divergence is None:
        return jnp.full_like(best, jnp.inf)
    return best + (divergence - 1) * jnp.abs(best)


def _smooth(losses: jax.Array, valid: jax.Array, window: float) -> jax.Array:
    """Returns the mean of the valid losses around each, with Gaussian weights."""
    reach = min(int(9 * window) + 1, len(losses) - 1)  # the rest is below 1e-17
    distance = np.arange(-reach, reach + 1)
    gaussian = np.exp(-0.5 * (distance / max(window, 1e-3)) ** 2)
    weights = jnp.asarray(gaussian, losses.dtype)

    def around(values: jax.Array) -> jax.Array:
        # Not mode="same", which is as long as the longer of the two.
        total = jnp.convolve(values, weights, precision=jax.lax.Precision.HIGHEST)
        return total[reach : reach + len(losses)]

    mean = around(jnp.where(valid, losses, 0)) / around(valid.astype(losses.dtype))
    return jnp.where(valid, mean, jnp.nan)
