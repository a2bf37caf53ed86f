"""SkipUpdate as a recipe: it is Learning Rate Dropout with a mask for each matrix."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_magma import is_matrix, random_tree
from test_reference import LR, adam, rmsprop

import lrd_optax

pytestmark = pytest.mark.usefixtures("optax_promotion")

STEPS, KEEP = 200, 0.5
SHAPES = {"bias": (5,), "scale": (), "stack": (3, 4, 5), "w": (4, 5)}
MATRICES = ("stack", "w")
CASES = {"adam": (optax.adam(LR), adam), "rmsprop": (optax.rmsprop(LR), rmsprop)}
WRONG = ["no 1/p", "masked gradient", "all leaves", "one mask", "a mask an element"]


def skip_update():
    """The recipe."""
    dropout = lrd_optax.learning_rate_dropout(
        KEEP, key=0, granularity="tensor", unbiased=True
    )
    return optax.masked(dropout, is_matrix)


def gradient(theta, noise, xp=np):
    return {n: xp.tanh(2 * theta[n] - 1) + theta[n] + noise[n] for n in SHAPES}


def noises():
    return random_tree(1, {n: (STEPS, *shape) for n, shape in SHAPES.items()})


@functools.cache
def run(name):
    """Parameters and masks of each step."""
    recipe = skip_update()
    tx = optax.chain(CASES[name][0], recipe)

    def step(carry, noise):
        theta, state = carry
        masks = lrd_optax.sample_mask(recipe, state[-1], theta)
        updates, state = tx.update(gradient(theta, noise, jnp), state, theta)
        theta = optax.apply_updates(theta, updates)
        return (theta, state), (theta, masks)

    theta = random_tree(0, SHAPES)
    scan = jax.jit(lambda c: jax.lax.scan(step, c, noises())[1])
    return jax.tree.map(np.asarray, scan((theta, tx.init(theta))))


def reference(equations, masks, wrong=None):
    """The same in float64; `masks` has one decision for each matrix and step."""
    theta = {n: np.float64(x) for n, x in random_tree(0, SHAPES).items()}
    noise = {n: np.float64(x) for n, x in noises().items()}
    states, path = dict.fromkeys(SHAPES, 0.0), []
    rng = np.random.default_rng(2)
    for t in range(STEPS):
        gradients = gradient(theta, {n: x[t] for n, x in noise.items()})
        new = {}
        for n, g in gradients.items():
            kept = masks[n][t] if n in MATRICES else 1.0
            if wrong == "all leaves" and n not in MATRICES:
                kept = masks["w"][t]
            if wrong == "one mask" and n in MATRICES:
                kept = masks["w"][t]
            if wrong == "a mask an element" and n in MATRICES:
                kept = rng.random(g.shape) < KEEP
            scale = 1 / KEEP if n in MATRICES and wrong != "no 1/p" else 1.0
            seen = g * kept if wrong == "masked gradient" else g
            step, states[n] = equations(seen, states[n], t + 1)
            new[n] = theta[n] + scale * kept * step
        theta = new
        path.append(theta)
    return path


def assert_close(path, expected):
    for n in SHAPES:
        values = np.array([theta[n] for theta in expected])
        error = np.abs(path[n] - values).max() / np.abs(values).max()
        assert error < 1e-5, (n, error)


def decisions(masks):
    """One boolean for each matrix and step; every other leaf is kept."""
    result = {}
    for n, mask in masks.items():
        flat = mask.reshape(STEPS, -1)
        np.testing.assert_array_equal(flat.all(1), flat.any(1))
        result[n] = np.float64(flat[:, 0])
        if n not in MATRICES:
            assert flat.all()
    return result


@pytest.mark.parametrize("name", CASES)
def test_equals_the_equations(name):
    path, masks = run(name)
    masks = decisions(masks)
    # One Bernoulli(1/2) for each matrix, independent of each other.
    for values in (masks["w"], masks["stack"], masks["w"] == masks["stack"]):
        assert abs(values.mean() - KEEP) < 0.12
    assert_close(path, reference(CASES[name][1], masks))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wrong", WRONG)
def test_the_check_rejects_other_formulas(name, wrong):
    path, masks = run(name)
    with pytest.raises(AssertionError):
        assert_close(path, reference(CASES[name][1], decisions(masks), wrong))


@pytest.mark.parametrize("name", CASES)
def test_moments_are_those_of_the_dense_optimizer(name):
    optimizer = CASES[name][0]
    tx, params = optax.chain(optimizer, skip_update()), random_tree(0, SHAPES)

    def step(states, g):
        dense, state = optimizer.update(g, states[0], params)
        kept, both = tx.update(g, states[1], params)
        return (state, both), (dense, kept)

    states = optimizer.init(params), tx.init(params)
    scan = jax.jit(lambda s: jax.lax.scan(step, s, noises()))
    (state, both), (dense, kept) = scan(states)
    chex.assert_trees_all_equal(both[0], state)
    for n in SHAPES:
        zero = np.float32(0)
        factor = np.float32(2 if n in MATRICES else 1)
        expected = np.where(kept[n], factor * np.asarray(dense[n]), zero)
        np.testing.assert_array_equal(kept[n], expected)


@pytest.mark.parametrize("make", [optax.sgd, optax.adam], ids=["sgd", "adam"])
def test_for_elements_it_is_plain_dropout_at_another_rate(make):
    # With 1/p at the rate p * lr. p is a power of two, so nothing is rounded.
    rate, p, noise = 0.1, 0.25, noises()["w"]

    def steps(unbiased):
        dropout = lrd_optax.learning_rate_dropout(p, key=0, unbiased=unbiased)

        def train(rate):
            tx = optax.chain(make(rate), dropout)

            def step(carry, noise):
                theta, state = carry
                g = jnp.tanh(2 * theta - 1) + theta + noise
                updates, state = tx.update(g, state, theta)
                theta = optax.apply_updates(theta, updates)
                return (theta, state), (updates, theta)

            return jax.lax.scan(step, (noise[0], tx.init(noise[0])), noise)[1]

        return jax.jit(train)

    plain, scaled = steps(unbiased=False)(rate), steps(unbiased=True)
    chex.assert_trees_all_equal(scaled(p * rate), plain)
    assert abs(np.mean(np.asarray(plain[0]) != 0) - p) < 0.05
    # At the same rate it is not.
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(scaled(rate), plain)
