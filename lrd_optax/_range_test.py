"""The learning-rate range test: train while the learning rate rises, watch the loss."""

from __future__ import annotations  # so that help shows short names

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrd_optax import _checks
from lrd_optax._range_result import RangeTestResult, smooth


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
    r"""Trains for `num_steps` updates from `params` while the learning rate rises.

    With N = `num_steps` and :math:`r = \eta_{max} / \eta_{min}`, update :math:`i` has
    the learning rate

    .. math::

      \eta_i = \eta_{min}\, r^{i / (N - 1)} \text{ (log)}, \qquad
      \eta_i = \eta_{min} + (\eta_{max} - \eta_{min}) \frac{i}{N - 1} \text{ (linear)}.

    The loss recorded for update :math:`i` is :math:`L(\theta_{i+1}; b_{i+1})`: the loss
    of the parameters that the update made, on the next batch.

    The smoothed losses are means of running medians of five, so no single batch moves
    them. The means have Gaussian weights :math:`\exp(-(i-j)^2 / 2 h^2)` with
    :math:`h` = `smoothing` * N. The weights are symmetric, so the smoothed curve does
    not lag as an exponential average does. Losses far above the first are capped at a
    quarter of the fall above the first median.

    The training is one compiled :func:`jax.lax.scan`. The test neither changes, donates
    nor keeps your arrays. All updates are computed, but the points after the test has
    stopped (see `divergence`) are not valid.

    An update is skipped if its loss or gradient is not finite. So one bad batch is one
    missing point, and the test goes on. Once the parameters have exploded, no later
    loss is finite, and no later point is valid.

    Args:
      loss_fn: ``loss_fn(params, batch)`` returns a real scalar. It closes over what
        does not train, such as a module's definition or batch statistics. Random keys
        may be part of the batch.
      params: the initial parameters, arrays of floats, as the optimizer takes them.
      batches: a tree of arrays ``[n, batch size, ...]``: n batches, stacked. Update i
        trains on ``batches[i % n]``, so `num_steps` + 1 batches are enough to use none
        twice. A whole data set ``[examples, ...]`` would be read as batches of one
        example: reshape it first. A list of batches, an iterator or a data loader will
        do too; its first `num_steps` + 1 batches are stacked.
      make_optimizer: takes a schedule and returns an optimizer: ``optax.adam``, or
        ``lambda rate: optax.chain(optax.sgd(rate), learning_rate_dropout(...))``.
        The schedule is a function that returns the learning rate of the current
        update, whatever count it is given. The optimizer's `update` is also given
        `value`, `grad` and `value_fn`, if it takes them.
      min_value: the first learning rate, above 0.
      max_value: the last learning rate, above `min_value`.
      num_steps: the number of updates and learning rates, at least 2.
      scale: the spacing of the learning rates, ``"log"`` or ``"linear"``.
      smoothing: the standard deviation of the smoothing window, as a fraction of
        `num_steps`. From 0 (no smoothing) to 0.2 (which blurs the fall itself).
      divergence: the test stops at the first loss where an exponential average of the
        losses so far exceeds :math:`best + (divergence - 1) |best|`. Here best is the
        lowest value of that average so far, so for a positive loss the limit is
        `divergence` times the lowest. Above 1. None: the test never stops.

    Returns:
      A :class:`RangeTestResult` of float32 arrays (float64 under x64). Under ``vmap``,
      over random keys for instance, they have a leading axis, which
      :func:`suggest_learning_rate`, :func:`suggest_cycle`, :func:`range_test_band` and
      ``plotting.plot_range_test`` take.

    Raises:
      ValueError: if a number is out of its range, the rates do not rise in float32,
        `batches` are not stacked to one length, the loss is not a scalar, or the
        optimizer does not use the schedule.
      TypeError: if an argument has a wrong type, or a function of yours needs the
        value of an array that is traced.

    Examples:
      >>> import jax, jax.numpy as jnp, lrd_optax, optax
      >>> def loss_fn(params, batch): return jnp.mean((params - batch) ** 2)
      >>> batches = 3 + jax.random.normal(jax.random.key(0), (101, 1000))
      >>> result = lrd_optax.lr_range_test(
      ...     loss_fn, jnp.zeros(()), batches, optax.sgd, min_value=1e-4, max_value=10)
      >>> print(f"{lrd_optax.suggest_learning_rate(result):.2f}")
      0.08

    References:
      Smith, `Cyclical Learning Rates for Training Neural Networks
      <https://arxiv.org/abs/1506.01186>`_, 2017, section 3.3
    """
    _checks.function("loss_fn", loss_fn)
    _checks.function("make_optimizer", make_optimizer)
    _check_params(params)
    rates = jnp.asarray(_rates(min_value, max_value, num_steps, scale))
    batches = _stacked(batches, len(rates) + 1)
    part = _checks.number("smoothing", smoothing, least=0, most=0.2, static=True)
    if divergence is not None:
        divergence = _checks.number("divergence", divergence, above=1, static=True)
    train = jax.jit(functools.partial(_train, loss_fn, make_optimizer))
    losses = train(params, batches, rates)
    return _result(rates, losses, part * len(rates), divergence)


# Separate from the training, so that it is compiled once for all tests of one length.
@functools.partial(jax.jit, static_argnames=("window", "divergence"))
def _result(
    rates: jax.Array, losses: jax.Array, window: float, divergence: float | None
) -> RangeTestResult:
    valid = jnp.isfinite(losses[1:])  # no update came before the first loss
    if divergence is not None:
        # The memory of the average is as wide as the smoothing window.
        valid &= ~_stopped(losses, 1 - 1 / max(1, 2 * window), divergence)
    losses = jnp.where(valid, losses[1:], jnp.nan)
    return RangeTestResult(rates, losses, smooth(losses, window), valid)


class _Rate:
    """A schedule that returns the rate of the current update, whatever the count.

    An optimizer may not count every update: ``optax.MultiSteps`` counts every k-th one.
    """

    def __init__(self, value: jax.Array) -> None:
        self.value = value
        self.used = False

    def __call__(self, count: Any) -> jax.Array:
        self.used = True
        # full_like keeps it weakly typed, so that it does not widen bfloat16.
        return jax.lax.full_like(0.0, self.value)


def _train(
    loss_fn: Any, make_optimizer: Any, params: Any, batches: Any, rates: jax.Array
) -> jax.Array:
    """Returns the loss before each update and after the last, ``[num_steps + 1]``."""

    def step(carry: Any, inputs: tuple[jax.Array, jax.Array]) -> Any:
        index, rate = inputs
        batch = jax.tree.map(lambda stack: stack[index], batches)
        loss_of = functools.partial(_loss, loss_fn, batch)
        loss, grads = jax.value_and_grad(loss_of)(carry[0])
        extra = {"value": loss, "grad": grads, "value_fn": loss_of}
        new = _update(make_optimizer, _Rate(rate), grads, carry, extra)
        checks = [jnp.isfinite(x).all() for x in jax.tree.leaves((loss, grads))]
        finite = functools.reduce(jnp.logical_and, checks)
        carry = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, carry)
        return carry, loss.astype(rates.dtype)

    state = _optimizer(make_optimizer, _Rate(rates[0])).init(params)
    # One step more than there are rates: its loss is the one after the last update.
    order = jnp.arange(len(rates) + 1) % len(jax.tree.leaves(batches)[0])
    return jax.lax.scan(step, (params, state), (order, jnp.append(rates, rates[-1])))[1]


def _loss(loss_fn: Any, batch: Any, params: Any) -> Any:
    loss = _checks.call("loss_fn", loss_fn, params, batch)
    is_scalar = getattr(loss, "shape", None) == ()
    if not (is_scalar and jnp.issubdtype(loss.dtype, jnp.floating)):
        rule = "loss_fn must return a real scalar array and nothing else"
        raise ValueError(f"{rule}, got {_checks.shown(loss)}")
    return loss


def _optimizer(make_optimizer: Any, rate: _Rate) -> Any:
    optimizer = _checks.call("make_optimizer", make_optimizer, rate)
    # No isinstance check: optax.MultiSteps is no GradientTransformation, but works.
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            "make_optimizer must return an optax.GradientTransformation, "
            f"got {_checks.shown(optimizer)}"
        )
    return optimizer


def _update(
    make_optimizer: Any, rate: _Rate, grads: Any, carry: Any, extra: dict[str, Any]
) -> tuple[Any, Any]:
    """Returns the parameters and the optimizer's state after one update."""
    params, state = carry
    update = _optimizer(make_optimizer, rate).update
    accepted = inspect.signature(update).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        extra = {name: value for name, value in extra.items() if name in accepted}
    name = "the optimizer of make_optimizer"
    update = functools.partial(update, **extra)
    updates, state = _checks.call(name, update, grads, state, params)
    if not rate.used:
        raise ValueError(
            "make_optimizer must use the schedule that it is given, as "
            "lambda rate: optax.adam(rate) does, but it was never called"
        )
    return optax.apply_updates(params, updates), state


def _stopped(losses: jax.Array, memory: float, divergence: float) -> jax.Array:
    """Returns, for each loss but the first, whether an earlier loss has diverged."""

    def step(carry: Any, loss: jax.Array) -> Any:
        total, weight, best, stopped = carry
        finite = jnp.isfinite(loss)
        total = memory * total + jnp.where(finite, loss, 0)
        weight = memory * weight + jnp.where(finite, 1, 0)
        best = jnp.fmin(best, total / weight)
        # Written so, it is True for NaN.
        stopped |= finite & ~(total / weight <= best + (divergence - 1) * jnp.abs(best))
        return (total, weight, best, stopped), stopped

    start = *np.array([0, 0, np.inf], losses.dtype), False
    return jax.lax.scan(step, start, losses)[1][:-1]


def _check_params(params: Any) -> None:
    for path, leaf in jax.tree.leaves_with_path(params):
        dtype = getattr(leaf, "dtype", np.dtype(type(leaf)))
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} must be an array of floats, got "
                f"{dtype}: let loss_fn close over what does not train"
            )


def _rates(min_value: Any, max_value: Any, num_steps: Any, scale: Any) -> np.ndarray:
    low = _checks.number("min_value", min_value, above=0, static=True)
    high = _checks.number("max_value", max_value, above=low, static=True)
    steps = _checks.whole_number("num_steps", num_steps, least=2, static=True)
    _checks.choice("scale", scale, ("log", "linear"))
    dtype = jnp.result_type(float)
    space = np.geomspace if scale == "log" else np.linspace
    rates = space(low, high, steps).astype(dtype)
    if rates[0] < jnp.finfo(dtype).tiny or not (np.diff(rates) > 0).all():
        raise ValueError(
            "the learning rates must be normal numbers and rise at each step in "
            f"{dtype}, got {steps} from {low} to {high}"
        )
    return rates


def _stacked(batches: Any, max_batches: int) -> Any:
    """Returns the batches as a tree of arrays with one leading axis."""
    is_list = isinstance(batches, list) or hasattr(batches, "__next__")
    if not is_list and hasattr(batches, "__iter__") and not hasattr(batches, "shape"):
        # A data loader is iterable, but it is not a tree.
        is_list = jax.tree_util.treedef_is_leaf(jax.tree.structure(batches))
    if is_list:
        items = list(itertools.islice(batches, max_batches))
        shapes = sorted({str(jax.tree.map(np.shape, batch)) for batch in items})
        if len(shapes) > 1:
            got = " and ".join(shapes[:2])
            raise ValueError(f"batches in a list must be of one shape, got {got}")
        batches = jax.tree.map(_stack, *items) if items else ()
    leaf_shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batches)]
    lengths = {shape[0] if shape else 0 for shape in leaf_shapes}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "batches must be arrays, stacked along a leading axis of one length above "
            f"0, or a list of batches, got shapes {leaf_shapes[:9]}"
        )
    return batches


def _stack(*leaves: Any) -> jax.Array:
    # np.asarray takes tensors of other libraries too.
    return jnp.stack([x if isinstance(x, jax.Array) else np.asarray(x) for x in leaves])
