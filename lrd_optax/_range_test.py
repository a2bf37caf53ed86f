"""The learning-rate range test: train while the learning rate rises, watch the loss."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrd_optax import _checks
from lrd_optax._range_result import RangeTestResult, smooth


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

    The smoothed losses are means of running medians of five, which no single batch
    moves, weighted by :math:`\exp(-(i-j)^2 / 2 h^2)` with :math:`h` = `smoothing` * N.
    Being symmetric, they have no lag, as an exponential average has. Blow-ups
    count as a quarter of the fall above the first median.

    Args:
      loss_fn: ``loss_fn(params, batch)``, a real scalar. With what does not train
        (a module's definition, batch statistics, a random key) closed over, or as a
        part of the batch.
      params: where every run starts, as the optimizer takes them.
      batches: a tree of arrays ``[n, batch size, ...]``, n batches stacked: update i
        trains on ``batches[i % n]``. (An array of examples would be batches of one.)
        Give `num_steps` + 1 so that none comes twice. A list of batches is stacked, and
        so are the first of an iterator, which is used up so far, or a data loader.
      make_optimizer: called with a schedule, returns the optimizer: ``optax.adam``,
        or ``lambda rate: optax.chain(optax.sgd(rate), learning_rate_dropout(...))``.
        The schedule, a function, is the rate of the present update, whatever it is
        called with; :func:`schedules.multiply` makes other schedules of it.
        The `update` also gets `value`, `grad` and `value_fn`, those that it takes.
      min_value: the first learning rate, above 0.
      max_value: the last learning rate, above `min_value`.
      num_steps: how many updates and learning rates, at least 2.
      scale: how the rates are spaced, ``"log"`` or ``"linear"``.
      smoothing: standard deviation of the window as a part of `num_steps`, from 0 (the
        losses as they are) to 0.2, which blurs the fall itself.
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
      ValueError: if a number is out of its range, the rates do not rise in float32,
        `batches` are not stacked to one length, the loss is no scalar, or the
        optimizer does not use the schedule.
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
            hint = ", as optax.adam without ()" if hasattr(function, "update") else ""
            raise TypeError(f"{name} must be a function{hint}, got a {kind}")
    rates = _rates(min_value, max_value, num_steps, scale)
    batches, length = _stacked(batches, len(rates) + 1)
    window = _checks.static_number("smoothing", smoothing, least=0, most=0.2) * len(
        rates
    )
    if divergence is not None:
        divergence = _checks.static_number("divergence", divergence, above=1)
    memory = 1 - 1 / max(1, 2 * window)  # of the causal average; as wide as the window

    used = []

    def optimizer(rate: jax.Array) -> optax.GradientTransformation:
        def schedule(count: Any) -> jax.Array:
            # Not of the count: an optimizer may count otherwise, as optax.MultiSteps
            # does. full_like keeps it weak, so that it does not widen bfloat16.
            used.append(True)
            return jax.lax.full_like(0.0, rate)

        made = make_optimizer(schedule)
        # Not isinstance: optax.MultiSteps is none, and fits.
        if not (hasattr(made, "init") and hasattr(made, "update")):
            kind = type(made).__name__
            raise TypeError(
                "make_optimizer must return an optax.GradientTransformation, "
                f"got a {kind}"
            )
        return made

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
            limit = jnp.full_like(best, jnp.inf)
            if divergence is not None:
                limit = best + (divergence - 1) * jnp.abs(best)
            stopped = ~(jnp.isfinite(loss) & (corrected <= limit))
            extra = {"value": value, "grad": grads, "value_fn": value_fn}

            def update(params: Any, state: Any) -> tuple[Any, Any]:
                made = optimizer(rate)
                taken = _taken(made.update, extra)
                updates, state = made.update(grads, state, params, **taken)
                return optax.apply_updates(params, updates), state

            params, state = jax.lax.cond(
                stopped, lambda *same: same, update, run.params, run.state
            )
            run = _Run(params, state, average, best, stopped)
            return run, loss

        def stay(run: _Run, *inputs: jax.Array) -> Any:
            return run, jnp.full([], jnp.nan, rates.dtype)

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
        losses = jax.lax.scan(body, start, inputs)[1][1:]
        valid = jnp.isfinite(losses)
        smoothed = smooth(jnp.where(valid, losses, jnp.nan), window)
        return RangeTestResult(rates, losses, smoothed, valid)

    result: RangeTestResult = jax.jit(run)(params, batches, jnp.asarray(rates))
    if not used:
        raise ValueError(
            "make_optimizer must use the schedule that it is given, as "
            "lambda rate: optax.adam(rate) does, but it was never called"
        )
    return result


def _rates(min_value: Any, max_value: Any, num_steps: Any, scale: Any) -> np.ndarray:
    low = _checks.static_number("min_value", min_value, above=0)
    high = _checks.static_number("max_value", max_value, above=0)
    if low >= high:
        raise ValueError(f"min_value must be below max_value, got {low} and {high}")
    steps = _checks.static("num_steps", num_steps)
    steps = _checks.whole_number("num_steps", steps, least=2)
    if not isinstance(scale, str) or scale not in ("log", "linear"):
        raise ValueError(f"scale must be 'log' or 'linear', got {scale!r}")
    dtype = jnp.result_type(float)
    space: Any = np.geomspace if scale == "log" else np.linspace
    rates: np.ndarray = space(low, high, steps).astype(dtype)
    if rates[0] < jnp.finfo(dtype).tiny or not (np.diff(rates) > 0).all():
        raise ValueError(
            "the learning rates must be normal numbers and rise at each step in "
            f"{dtype}, got {steps} from {low} to {high}"
        )
    return rates


def _stacked(batches: Any, most: int) -> tuple[Any, int]:
    """Returns the batches as a tree of arrays, and how many there are."""
    several = isinstance(batches, list) or hasattr(batches, "__next__")
    if not several and not hasattr(batches, "shape") and hasattr(batches, "__iter__"):
        several = any(leaf is batches for leaf in jax.tree.leaves(batches))  # a loader
    if several:
        some = list(itertools.islice(batches, most))
        kinds = sorted({str(jax.tree.map(np.shape, batch)) for batch in some})
        if len(kinds) > 1:
            raise ValueError(
                "batches in a list must be of one shape, got "
                f"{len(some)} batches of shapes {' and '.join(kinds[:2])}"
            )
        batches = jax.tree.map(_stack, *some) if some else ()
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batches)]
    lengths = sorted({shape[0] if shape else 0 for shape in shapes})
    if len(lengths) != 1 or lengths[0] == 0:
        raise ValueError(
            "batches must be arrays, stacked along a leading axis of one length above "
            f"0, or a list of batches, got shapes {shapes[:9]}"
        )
    return batches, int(lengths[0])


def _stack(*arrays: Any) -> jax.Array:
    # Not only of JAX and NumPy: np.asarray takes tensors of other libraries too.
    known = (
        each if isinstance(each, jax.Array) else np.asarray(each) for each in arrays
    )
    return jnp.stack(list(known))


def _taken(update: Callable[..., Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Returns what of `extra` a function takes."""
    parameters = inspect.signature(update).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return extra
    return {name: value for name, value in extra.items() if name in parameters}


def _scalar(loss: Any) -> Any:
    shape = getattr(loss, "shape", None)
    if shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        got = type(loss).__name__ if shape is None else f"{loss.dtype}{list(shape)}"
        raise ValueError(
            f"loss_fn must return a real scalar array and nothing else, got {got}"
        )
    return loss
