"""Proof that it is Learning Rate Dropout: the equations, in float64 NumPy.

The reference takes its masks from `sample_mask` and shares nothing else with the
library: its optimizers are written from their papers' equations.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import mask_reference
import numpy as np
import optax
import pytest
from drawn_masks import mask_of

import lrd_optax

pytestmark = pytest.mark.usefixtures("optax_promotion")

STEPS, SIZE, P = 200, 40, 0.5
LR, DECAY = 0.001, 0.1
_RNG = np.random.default_rng(0)
MATRIX = _RNG.standard_normal((SIZE, SIZE)) / math.sqrt(SIZE)
TARGET = _RNG.standard_normal(SIZE)
START = _RNG.standard_normal(SIZE)


def gradient(theta, xp=np):
    """Gradient of sum(log cosh(A theta - b)) + |theta|^2 / 2: smooth, not quadratic."""
    matrix, target = xp.asarray(MATRIX, theta.dtype), xp.asarray(TARGET, theta.dtype)
    return matrix.T @ xp.tanh(matrix @ theta - target) + theta


# Each step function maps (gradient, state, t) to (update, state), t from 1.


def sgd(g, s, t):
    return -LR * g, s


def momentum(g, s, t):
    s = g + 0.9 * s
    return -LR * s, s


def nesterov(g, s, t):
    s = g + 0.9 * s
    return -LR * (g + 0.9 * s), s


def rmsprop(g, s, t):
    s = 0.9 * s + 0.1 * g**2
    return -LR * g / np.sqrt(s + 1e-8), s


def rmsprop_momentum(g, s, t):
    nu, buffer = s if isinstance(s, tuple) else (0.0, 0.0)
    nu = 0.9 * nu + 0.1 * g**2
    buffer = 0.9 * buffer - LR * g / np.sqrt(nu + 1e-8)
    return buffer, (nu, buffer)


def moments(g, s, t):
    mu, nu, *rest = s if isinstance(s, tuple) else (0.0, 0.0, 0.0)
    mu, nu = 0.9 * mu + 0.1 * g, 0.999 * nu + 0.001 * g**2
    return mu, nu, *rest


def adam(g, s, t):
    mu, nu, *_ = s = moments(g, s, t)
    mu_hat, nu_hat = mu / (1 - 0.9**t), nu / (1 - 0.999**t)
    return -LR * mu_hat / (np.sqrt(nu_hat) + 1e-8), s


def amsgrad(g, s, t):
    mu, nu, largest = moments(g, s, t)
    mu_hat, largest = mu / (1 - 0.9**t), np.maximum(largest, nu / (1 - 0.999**t))
    return -LR * mu_hat / (np.sqrt(largest) + 1e-8), (mu, nu, largest)


def radam(g, s, t):
    mu, nu, *_ = s = moments(g, s, t)
    limit = 2 / (1 - 0.999) - 1
    length = limit - 2 * t * 0.999**t / (1 - 0.999**t)
    mu_hat, nu_hat = mu / (1 - 0.9**t), nu / (1 - 0.999**t)
    if length < 5:
        return -LR * mu_hat, s
    rectifier = math.sqrt(
        ((length - 4) * (length - 2) * limit) / ((limit - 4) * (limit - 2) * length)
    )
    return -LR * rectifier * mu_hat / (np.sqrt(nu_hat) + 1e-8), s


class Case(NamedTuple):
    """An optimizer of Optax, and the same one as equations."""

    optax: optax.GradientTransformation
    equations: Callable


CASES = {
    "sgd": Case(optax.sgd(LR), sgd),
    "sgd momentum": Case(optax.sgd(LR, momentum=0.9), momentum),
    "sgd nesterov": Case(optax.sgd(LR, momentum=0.9, nesterov=True), nesterov),
    "rmsprop": Case(optax.rmsprop(LR), rmsprop),
    "rmsprop momentum": Case(optax.rmsprop(LR, momentum=0.9), rmsprop_momentum),
    "adam": Case(optax.adam(LR), adam),
    "amsgrad": Case(optax.amsgrad(LR), amsgrad),
    "radam": Case(optax.radam(LR), radam),
}


def dropout():
    return lrd_optax.learning_rate_dropout(P, key=0)


@functools.cache
def run(tx):
    """Parameters after each step with `tx`, float32, and the masks it used."""
    mask_state = dropout().init(None)

    def step(carry, _):
        theta, state, mask_state = carry
        updates, state = tx.update(gradient(theta, jnp), state, theta)
        mask = mask_of(mask_state.rng_key, theta, P)
        _, mask_state = dropout().update(theta, mask_state)
        theta = optax.apply_updates(theta, updates)
        return (theta, state, mask_state), (theta, mask)

    theta = jnp.asarray(START, jnp.float32)
    carry = (theta, tx.init(theta), mask_state)
    return jax.tree.map(
        np.asarray, jax.jit(lambda c: jax.lax.scan(step, c, length=STEPS)[1])(carry)
    )


def reference(equations, masks, decay=None):
    """The same in float64 from the equations; `decay` is None, "kept" or "dense"."""
    theta, state, path = START.astype(np.float32).astype(np.float64), 0.0, []
    for t, mask in enumerate(masks, start=1):
        update, state = equations(gradient(theta), state, t)
        weight_decay = -LR * DECAY * theta if decay else 0.0
        if decay == "kept":
            update = update + weight_decay
        step = np.where(mask, update, 0.0)
        if decay == "dense":
            step = step + weight_decay
        theta = theta + step
        path.append(theta)
    return np.array(path)


def assert_close(path, expected):
    error = np.abs(path - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error.max() < 1e-5, error.max()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_equals_the_equations(name):
    case = CASES[name]
    path, masks = run(optax.chain(case.optax, dropout()))
    assert_close(path, reference(case.equations, masks))
    # The check can fail: without the dropout it does, and with it in front too (but
    # for plain SGD, to which it is all the same).
    wrong = [case.optax, optax.chain(dropout(), case.optax)]
    for tx in wrong[:1] if name == "sgd" else wrong:
        with pytest.raises(AssertionError):
            assert_close(run(tx)[0], reference(case.equations, masks))


def test_adamw_with_dropout_last_drops_the_decay():
    path, masks = run(optax.chain(optax.adamw(LR, weight_decay=DECAY), dropout()))
    assert_close(path, reference(adam, masks, decay="kept"))
    with pytest.raises(AssertionError):
        assert_close(path, reference(adam, masks, decay="dense"))


def test_adamw_with_dropout_before_the_decay_decays_every_weight():
    tx = optax.chain(
        optax.scale_by_adam(),
        dropout(),
        optax.add_decayed_weights(DECAY),
        optax.scale_by_learning_rate(LR),
    )
    path, masks = run(tx)
    assert_close(path, reference(adam, masks, decay="dense"))
    with pytest.raises(AssertionError):
        assert_close(path, reference(adam, masks, decay="kept"))


def side_by_side(*optimizers):
    """Last states and all updates of optimizers that are fed the same gradients."""
    theta = jnp.asarray(START, jnp.float32)
    gradients = np.random.default_rng(1).standard_normal((STEPS, SIZE), np.float32)

    def step(states, g):
        results = [
            tx.update(g, state, theta)
            for tx, state in zip(optimizers, states, strict=True)
        ]
        updates, states = zip(*results, strict=True)
        return states, updates

    states = tuple(tx.init(theta) for tx in optimizers)
    return jax.jit(lambda s: jax.lax.scan(step, s, gradients))(states)


@pytest.mark.parametrize("name", [*CASES, "adamw"])
def test_moments_are_the_dense_optimizers_bit_for_bit(name):
    base = optax.adamw(LR, weight_decay=DECAY) if name == "adamw" else CASES[name].optax
    one_at_run_time = lrd_optax.learning_rate_dropout(
        lambda count: jnp.where(count < 0, 0.5, 1.0), key=0
    )
    # With a keep_prob of 1 that is known at run time only the updates are the same.
    # (Not always the parameters: where nothing stands between them, XLA may contract
    # the update's product and the addition.)
    states, (dense, thinned, kept) = side_by_side(
        base, optax.chain(base, dropout()), optax.chain(base, one_at_run_time)
    )
    chex.assert_trees_all_equal(states[1][0], states[0])
    np.testing.assert_array_equal(thinned, np.where(thinned, dense, 0))
    assert abs(np.mean(thinned != 0) - P) < 0.02
    np.testing.assert_array_equal(kept, dense)


@pytest.mark.parametrize("name", CASES)
def test_keep_prob_1_is_the_base_optimizer_bit_for_bit(name):
    base = CASES[name].optax
    always = optax.chain(base, lrd_optax.learning_rate_dropout(1.0, key=0))
    np.testing.assert_array_equal(run(always)[0], run(base)[0])


# Structured masks. They are taken from the reference in NumPy here, for keys of 0.

SHAPE = (8, 5)
WORDS = [mask_reference.step_words((0, 0), step) for step in range(STEPS + 1)]


def of_axes(axes, hold_steps=1, late=0):
    holds = [(step + late) // hold_steps for step in range(STEPS)]
    return [mask_reference.mask(WORDS[hold], 0, SHAPE, P, axes) for hold in holds]


def of_cycles(length, hold_steps=1):
    return [
        mask_reference.cycle_mask((0, 0), step // hold_steps, 0, SHAPE, length, (0,))
        for step in range(STEPS)
    ]


STRUCTURED = {
    "element": ({}, lambda: of_axes((0, 1))),
    "row": ({"granularity": "row"}, lambda: of_axes((0,))),
    "column": ({"granularity": "column"}, lambda: of_axes((1,))),
    "tensor": ({"granularity": "tensor"}, lambda: of_axes(())),
    "hold": ({"hold_steps": 7}, lambda: of_axes((0, 1), hold_steps=7)),
    "cycle": (
        {"granularity": "row", "sampler": "cycle", "hold_steps": 3},
        lambda: of_cycles(2, hold_steps=3),
    ),
}


@functools.cache
def structured_path(base, kind):
    """Parameters after each step with masks of a kind."""
    masks = lrd_optax.learning_rate_dropout(P, key=0, **STRUCTURED[kind][0])
    tx = optax.chain(CASES[base].optax, masks)

    def step(carry, _):
        theta, state = carry
        g = gradient(theta.reshape(-1), jnp).reshape(SHAPE)
        updates, state = tx.update(g, state, theta)
        theta = optax.apply_updates(theta, updates)
        return (theta, state), theta.reshape(-1)

    theta = jnp.asarray(START, jnp.float32).reshape(SHAPE)
    carry = theta, tx.init(theta)
    return np.asarray(jax.jit(lambda c: jax.lax.scan(step, c, length=STEPS)[1])(carry))


@pytest.mark.slow
@pytest.mark.parametrize("base", ["sgd momentum", "adam"])
@pytest.mark.parametrize("kind", STRUCTURED)
def test_structured_masks_equal_the_equations(kind, base):
    masks = [mask.reshape(-1) for mask in STRUCTURED[kind][1]()]
    path = structured_path(base, kind)
    assert_close(path, reference(CASES[base].equations, masks))
    others = [other() for name, (_, other) in STRUCTURED.items() if name != kind]
    if kind == "hold":  # one step too late
        others.append(of_axes((0, 1), hold_steps=7, late=1))
    for wrong in others:
        wrong = [mask.reshape(-1) for mask in wrong]
        with pytest.raises(AssertionError):
            assert_close(path, reference(CASES[base].equations, wrong))


# Identities of the law: u is the dense step, M its mask.


@functools.cache
def many_masks(p, shape=1000, draws=4000, granularity="element"):
    """Masks from many keys, (draws, size)."""
    keys = jax.random.bits(jax.random.key(5), (draws, 2))
    leaf = jax.ShapeDtypeStruct(np.atleast_1d(shape), jnp.float32)
    one = functools.partial(mask_of, tree=leaf, keep_prob=p, granularity=granularity)
    return np.asarray(jax.jit(jax.vmap(one))(keys)).reshape(draws, -1)


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_mean_and_variance_of_an_element(p):
    masks = many_masks(p)
    draws = len(masks)
    u = np.linspace(-3, 3, masks.shape[1])
    steps = masks * u
    z = (steps.mean(0) - p * u) / np.sqrt(p * (1 - p) * u**2 / draws)
    assert abs(z).max() < 4.5  # of 1000 normals
    assert 0.9 < z.var() < 1.1
    variance = steps.var(0) / u**2
    np.testing.assert_allclose(variance, p * (1 - p), rtol=0.25)


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_number_kept_is_binomial(p):
    counts = many_masks(p).sum(axis=1)
    draws, size = many_masks(p).shape
    z = (counts - size * p) / math.sqrt(size * p * (1 - p))
    assert abs(z.mean()) < 4 / math.sqrt(draws)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / draws)
    assert abs((z**3).mean() - (1 - 2 * p) / math.sqrt(size * p * (1 - p))) < 4 * (
        math.sqrt(15 / draws)
    )


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_expected_loss_on_a_quadratic(p):
    masks = many_masks(p, SIZE, draws=100_000)
    hessian = MATRIX @ MATRIX.T
    g = hessian @ START
    u = 0.3 * g
    theta = START - masks * u
    losses = 0.5 * np.einsum("ni,ij,nj->n", theta, hessian, theta)
    expected = (
        0.5 * START @ hessian @ START
        - p * g @ u
        + 0.5 * (p**2 * u @ hessian @ u + p * (1 - p) * np.diag(hessian) @ u**2)
    )
    error = losses.std() / math.sqrt(len(losses))
    assert abs(losses.mean() - expected) < 4 * error
    without_variance = expected - 0.5 * p * (1 - p) * np.diag(hessian) @ u**2
    assert abs(losses.mean() - without_variance) > 4 * error  # the test has power


@pytest.mark.parametrize("p", [0.5, 0.1])
@pytest.mark.parametrize("granularity", ["element", "row", "column", "tensor"])
def test_expected_loss_of_blocks_on_a_quadratic(granularity, p):
    # E f = f(theta - u) + (1 - p) / (2 p) sum_B u_B' H_BB u_B, over the blocks B.
    masks = many_masks(p, SHAPE, draws=100_000, granularity=granularity)
    hessian = MATRIX @ MATRIX.T
    u = 0.3 * hessian @ START
    theta = START - masks * u / p
    losses = 0.5 * np.einsum("ni,ij,nj->n", theta, hessian, theta)
    axes = {"element": (0, 1), "row": (0,), "column": (1,), "tensor": ()}
    expected = {}
    for name in axes:
        block = mask_reference.index(SHAPE, axes[name]).reshape(-1)
        together = hessian * (block[:, None] == block)
        variance = (1 - p) / (2 * p) * u @ together @ u
        expected[name] = 0.5 * (START - u) @ hessian @ (START - u) + variance
    error = losses.std() / math.sqrt(len(losses))
    for name, value in expected.items():
        assert (abs(losses.mean() - value) < 4 * error) == (name == granularity)


def mean_step(tx, steps=400, size=20_000):
    """Mean update over the last 300 steps under a constant gradient of ones."""
    g = jnp.ones(size)

    def step(state, _):
        updates, state = tx.update(g, state)
        return state, updates.mean()

    means = jax.jit(lambda s: jax.lax.scan(step, s, length=steps)[1])(tx.init(g))
    return -float(means[100:].mean())


def test_mean_step_of_momentum_under_a_constant_gradient():
    # p lr g / (1 - mu). Masking the buffer, the classic bug, gives a fifth of that.
    right = mean_step(optax.chain(optax.sgd(0.1, momentum=0.9), dropout()))
    assert abs(right - P * 0.1 / (1 - 0.9)) < 0.002
    wrong = optax.chain(masked_buffer(0.9), optax.scale(-0.1))
    assert abs(mean_step(wrong) - 0.0909) < 0.002


def masked_buffer(decay):
    """Plants the bug: the momentum buffer itself is masked."""
    drop = dropout()

    def init(params):
        return jnp.zeros_like(params), drop.init(params)

    def update(g, state, params=None):
        buffer, drop_state = state
        buffer, drop_state = drop.update(g + decay * buffer, drop_state)
        return buffer, (buffer, drop_state)

    return optax.GradientTransformation(init, update)


def test_unbiased_mean_step_is_the_dense_step():
    for p in (0.5, 0.1):
        tx = optax.chain(
            optax.sgd(0.1), lrd_optax.learning_rate_dropout(p, key=0, unbiased=True)
        )
        assert abs(mean_step(tx) - 0.1) < 0.001
