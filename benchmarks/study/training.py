"""Trains all runs of an arm, its seeds and its rates, as one compiled program.

A run is one training. `Hyper` holds what differs between the runs of one program, as
traced numbers; `family` says what cannot be a number.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lrd_optax import experimental, learning_rate_dropout, schedules

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "SGD": optax.sgd,
    "SGD+momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "RMSprop": lambda rate: optax.rmsprop(rate, decay=0.99),
    "Adam": optax.adam,
    "AdamW": lambda rate: optax.adamw(rate, weight_decay=0.1),
}
FAMILIES = (
    "plain",
    "LRD",
    "LRD unbiased",
    "dropout",
    "noise",
    "scaled",
    "scaled matrices",
    "LRD row",
    "LRD column",
    "LRD tensor",
    "SkipUpdate",
    "Magma",
)


class Hyper(NamedTuple):
    """What differs between runs, each of shape [runs]."""

    rate: Any  # the peak of the cosine schedule
    keep_prob: Any
    begin: Any  # the mask, noise or dropout is on from this step ...
    end: Any  # ... until before that one
    dropout: Any  # how much ordinary dropout drops


class Task(NamedTuple):
    """What is trained, for how long, on what.

    The functions take the parameters, `pool`, which all runs share, and `data`, which
    differs between seeds.
    """

    loss: Callable[..., jax.Array]  # params, pool, data, batch, drop
    check: Callable[..., dict[str, jax.Array]]  # params, pool, data: on validation data
    test: Callable[..., dict[str, jax.Array]]  # params, pool, data: on test data
    orders: Callable[[jax.Array], jax.Array]  # key -> batches, [steps, batch]
    segments: int  # after each there is a check
    steps_per_segment: int
    cosine: bool = True  # or a constant rate


class Outcome(NamedTuple):
    params: Any
    losses: jax.Array  # mean training loss of each segment, [segments]
    checks: dict[str, jax.Array]  # [segments] each
    tests: dict[str, jax.Array]


def is_block(params: Any) -> Any:
    """True for the matrices of attention and MLP layers, for SkipUpdate and Magma."""

    def choose(path, leaf):
        name = jax.tree_util.keystr(path)
        outside = any(part in name for part in ("embed", "places", "norms", "head"))
        return "kernel" in name and not outside

    return jax.tree_util.tree_map_with_path(choose, params)


def step_noise(keep_prob: Any, key: jax.Array) -> optax.GradientTransformation:
    """Multiplies an update by 1 + s * N(0, 1): mean and variance of unbiased LRD.

    `keep_prob` is a function of the step.
    """

    def update(updates, count, params=None):
        size = jnp.sqrt((1 - keep_prob(count)) / keep_prob(count))
        leaves, tree = jax.tree.flatten(updates)
        keys = jax.random.split(jax.random.fold_in(key, count), len(leaves))
        noisy = [
            u * (1 + size * jax.random.normal(k, u.shape))
            for u, k in zip(leaves, keys, strict=True)
        ]
        return tree.unflatten(noisy), count + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def is_on(hyper: Hyper, count: jax.Array) -> jax.Array:
    step = count.astype(jnp.float32)
    return (step >= hyper.begin) & (step < hyper.end)


def make_optimizer(
    name: str, family: str, hyper: Hyper, steps: int | None, key: jax.Array
) -> optax.GradientTransformation:
    """`steps` is the length of the cosine, or None for a constant rate."""
    rate = hyper.rate
    if steps is not None:
        rate = schedules.cosine_annealing(
            max_value=hyper.rate, min_value=0.0, decay_steps=steps
        )
    base = OPTIMIZERS[name](rate)

    def keep_prob(count):
        return jnp.where(is_on(hyper, count), hyper.keep_prob, 1.0)

    match family:
        case "plain" | "dropout":
            return base
        case "noise":
            return optax.chain(base, step_noise(keep_prob, key))
        case "scaled":  # what LRD does to the mean step, without a mask
            return optax.chain(base, optax.scale_by_schedule(keep_prob))
        case "scaled matrices":
            return optax.chain(
                base, optax.masked(optax.scale(hyper.keep_prob), is_block)
            )
        case "LRD" | "LRD unbiased":
            unbiased = family == "LRD unbiased"
            mask = learning_rate_dropout(keep_prob, key=key, unbiased=unbiased)
            return optax.chain(base, mask)
        case "LRD row" | "LRD column" | "LRD tensor":
            blocks = family.removeprefix("LRD ")
            mask = learning_rate_dropout(
                keep_prob, key=key, unbiased=True, granularity=blocks
            )
            return optax.chain(base, mask)
        case "SkipUpdate":
            skip = learning_rate_dropout(
                keep_prob, key=key, unbiased=True, granularity="tensor"
            )
            return optax.chain(base, optax.masked(skip, is_block))
        case "Magma":
            return experimental.magma(base, hyper.keep_prob, key=key, mask=is_block)
    raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family}")


def make_program(task: Task, name: str, family: str) -> Callable[..., Outcome]:
    """Returns train(params, data, hyper, order_keys, arm_keys, pool).

    All but `pool` have the shape [runs, ...]. `order_keys` decide the batches, and
    `arm_keys` everything else that is random.
    """
    steps = task.segments * task.steps_per_segment

    def train(params, data, hyper, order_key, arm_key, pool):
        mask_key, drop_key = jax.random.split(arm_key)
        length = steps if task.cosine else None
        optimizer = make_optimizer(name, family, hyper, length, mask_key)

        def step(carry, batch):
            params, state, count = carry
            drop = None
            if family == "dropout":
                rate = jnp.where(is_on(hyper, count), hyper.dropout, 0.0)
                drop = rate, jax.random.fold_in(drop_key, count)
            loss, grads = jax.value_and_grad(task.loss)(params, pool, data, batch, drop)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state, count + 1), loss

        def segment(carry, number):
            orders = task.orders(jax.random.fold_in(order_key, number))
            carry, losses = jax.lax.scan(step, carry, orders)
            return carry, (losses.mean(), task.check(carry[0], pool, data))

        start = params, optimizer.init(params), jnp.int32(0)
        numbers = jnp.arange(task.segments)
        (params, _, _), (losses, checks) = jax.lax.scan(segment, start, numbers)
        return Outcome(params, losses, checks, task.test(params, pool, data))

    return jax.jit(jax.vmap(train, in_axes=(0, 0, 0, 0, 0, None)))
