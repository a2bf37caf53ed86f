"""Magma: its formulas in float64, recorded values, and what holds for any optimizer."""

import functools
import itertools
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_bad_input import raises
from test_reference import LR, adam, momentum, rmsprop, sgd

import lrd_optax
from lrd_optax import experimental

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optax_promotion")]

SMALL = {"b": (5,), "w": (4, 5)}
SHAPES = {"b": (5,), "stack": (3, 4, 5), "w": (4, 5)}
BASES = {"adam": optax.adam(0.1), "sgd": optax.sgd(0.1)}
RECORDED = json.loads((Path(__file__).parent / "data" / "magma.json").read_text())


def random_tree(seed, shapes=SHAPES, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(rng.standard_normal(s), dtype) for n, s in shapes.items()}


def is_matrix(tree):
    return jax.tree.map(lambda x: jnp.ndim(x) >= 2, tree)


def eligible(tree, names=("stack", "w")):
    """The tree with a MaskedNode in the place of each leaf that is not eligible."""
    return {n: x if n in names else optax.MaskedNode() for n, x in tree.items()}


def magma(optimizer=None, keep_prob=0.5, key=7, **kwargs):
    """Magma of SGD by default."""
    optimizer = optimizer or optax.sgd(0.1)
    return experimental.magma(optimizer, keep_prob, key=key, **kwargs)


def take_steps(tx, steps=3, *, params=None, update=None, state=None, start=1):
    """Updates and states of some steps with given gradients."""
    params = random_tree(0) if params is None else params
    state = tx.init(params) if state is None else state
    update, history = update or tx.update, []
    for step in range(start, start + steps):
        shapes = jax.tree.map(jnp.shape, params, is_leaf=lambda x: hasattr(x, "shape"))
        dtype = jax.tree.leaves(params)[0].dtype
        updates, state = update(random_tree(step, shapes, dtype), state, params)
        history.append((updates, state))
    return history


def avals(tree):
    return jax.tree.map(jax.typeof, tree)


# The formulas, in float64.

STEPS, KEEP = 200, 0.5
# Each leaf has another granularity, and its name says which.
LEAVES = {
    "bias": (5,),
    "column": (4, 5),
    "row": (4, 5),
    "stack": (3, 4, 5),
    "tensor": (4, 5),
}
GRANULARITY = {
    "bias": "tensor",
    "column": "column",
    "row": "row",
    "stack": (0,),
    "tensor": "tensor",
}
OTHER_AXES = {"column": (0,), "row": (1,), "stack": (1, 2), "tensor": (0, 1)}


class Case(NamedTuple):
    """An optimizer of Optax, the same as equations, and where its momentum is."""

    optax: optax.GradientTransformation
    equations: Callable
    momentum: Callable | None = None
    options: dict[str, float] = {}  # noqa: RUF012


CASES = {
    "adam": Case(optax.adam(LR), adam, lambda s: s[0]),
    "sgd momentum": Case(optax.sgd(LR, momentum=0.9), momentum, lambda s: s),
    "sgd": Case(optax.sgd(LR), sgd),
    "rmsprop": Case(
        optax.rmsprop(LR),
        rmsprop,
        options={"temperature": 0.5, "alignment_decay": 0.8, "momentum_decay": 0.7},
    ),
}
WRONG = ["momentum before", "1/p", "score before", "whole tree", "masked gradient"]


def gradient(theta, noise, xp=np):
    return {n: xp.tanh(2 * theta[n] - 1) + theta[n] + noise[n] for n in LEAVES}


def noises():
    return random_tree(1, {n: (STEPS, *shape) for n, shape in LEAVES.items()})


@functools.cache
def draw_masks():
    """Masks of each step, which no optimizer changes, and the states they are of."""
    dropout = lrd_optax.learning_rate_dropout(KEEP, key=7, granularity=GRANULARITY)
    tree = eligible(random_tree(0, LEAVES), OTHER_AXES)

    def step(state, _):
        masks = lrd_optax.sample_mask(dropout, state, tree)
        return dropout.update(tree, state)[1], (masks, state)

    scan = jax.jit(lambda s: jax.lax.scan(step, s, length=STEPS)[1])
    return jax.tree.map(np.asarray, scan(dropout.init(tree)))


@functools.cache
def run(name):
    """Parameters and scores of each step."""
    case = CASES[name]
    tx = magma(case.optax, KEEP, key=7, granularity=GRANULARITY, **case.options)

    def step(carry, noise):
        theta, state = carry
        updates, new = tx.update(gradient(theta, noise, jnp), state, theta)
        theta = optax.apply_updates(theta, updates)
        scores = eligible(new.alignment, OTHER_AXES)
        return (theta, new), (theta, scores, state.dropout)

    theta = random_tree(0, LEAVES)
    scan = jax.jit(lambda c: jax.lax.scan(step, c, noises())[1])
    *paths, states = jax.tree.map(np.asarray, scan((theta, tx.init(theta))))
    chex.assert_trees_all_equal(states, draw_masks()[1])
    return paths


def cosine(a, b, axes):
    product = (a * b).sum(axes, keepdims=True)
    norms = [np.sqrt((x * x).sum(axes, keepdims=True)) for x in (a, b)]
    defined = norms[0] * norms[1] > 0
    return np.where(defined, product / np.where(defined, norms[0] * norms[1], 1), 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(case, masks, wrong=None, steps=STEPS):
    """Parameters and scores of each step by the equations; `wrong` plants an error."""
    options = {"temperature": 2.0, "alignment_decay": 0.9, "momentum_decay": 0.9}
    tau, beta, slow = (options | case.options).values()
    theta = {n: np.float64(x) for n, x in random_tree(0, LEAVES).items()}
    noise = {n: np.float64(x) for n, x in noises().items()}
    states = dict.fromkeys(LEAVES, 0.0)
    mus = {n: np.zeros(shape) for n, shape in LEAVES.items()}
    scores = dict.fromkeys(OTHER_AXES, 0.5)
    path, score_path = [], []
    for t in range(steps):
        gradients = gradient(theta, {n: x[t] for n, x in noise.items()})
        change, before = {}, dict(mus)
        for n, g in gradients.items():
            seen = g
            if wrong == "masked gradient" and n in OTHER_AXES:
                seen = g * masks[n][t]
            change[n], states[n] = case.equations(seen, states[n], t + 1)
            mus[n] = slow * mus[n] + (1 - slow) * seen
            if case.momentum:
                mus[n] = case.momentum(states[n])
        used = before if wrong == "momentum before" else mus
        together = [
            np.concatenate([tree[n].ravel() for n in OTHER_AXES])
            for tree in (used, gradients)
        ]
        for n, axes in OTHER_AXES.items():
            cos = cosine(used[n], gradients[n], axes)
            if wrong == "whole tree":
                cos = np.full_like(cos, cosine(*together, 0)[0])
            old, scores[n] = (
                scores[n],
                beta * scores[n] + (1 - beta) * sigmoid(cos / tau),
            )
            factor = old if wrong == "score before" else scores[n]
            if wrong == "1/p":
                factor = factor / KEEP
            change[n] = factor * masks[n][t] * change[n]
        theta = {n: theta[n] + change[n] for n in LEAVES}
        path.append(theta)
        score_path.append({n: s.squeeze(OTHER_AXES[n]) for n, s in scores.items()})
    return path, score_path


def assert_close(paths, expected):
    for n in LEAVES:
        values = np.array([theta[n] for theta in expected[0]])
        error = np.abs(paths[0][n][: len(values)] - values).max() / np.abs(values).max()
        assert error < 1e-5, (n, error)
    for n in OTHER_AXES:
        values = np.array([scores[n] for scores in expected[1]])
        np.testing.assert_allclose(paths[1][n][: len(values)], values, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_equations(name):
    masks = draw_masks()[0]
    # Blocks are kept or dropped as a whole, and not all alike.
    for n, axes in OTHER_AXES.items():
        along = tuple(axis + 1 for axis in axes)
        np.testing.assert_array_equal(masks[n].all(along), masks[n].any(along))
        assert abs(masks[n].mean() - KEEP) < 0.12
    assert_close(run(name), reference(CASES[name], masks))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wrong", WRONG)
def test_the_check_rejects_other_formulas(name, wrong):
    expected = reference(CASES[name], draw_masks()[0], wrong, steps=40)
    with pytest.raises(AssertionError):
        assert_close(run(name), expected)


# Values recorded from rollfast.


@functools.cache
def replay(name):
    """Our updates and scores in a recorded case, without masks."""
    options = RECORDED["recorded"][name]["options"]
    rate, tau = options["learning_rate"], options["magma_tau"]
    if name == "sgd":
        optimizer, decay = optax.sgd(rate), options["decay"]
    else:
        rest = {n: options[n] for n in ("b1", "b2", "eps", "weight_decay")}
        optimizer, decay = optax.adamw(rate, **rest), 0.0
    tx = magma(optimizer, 1, mask=True, temperature=tau, momentum_decay=decay)
    params = as_arrays(RECORDED["params"])
    factor = np.float32(RECORDED["recorded"][name]["factor"])

    def step(state, gradient):
        updates, state = tx.update(gradient, state, params)
        return state, (updates, state.alignment)

    gradients = {n: factor * g for n, g in as_arrays(RECORDED["gradients"]).items()}
    scan = jax.jit(lambda s: jax.lax.scan(step, s, gradients)[1])
    return jax.tree.map(np.asarray, scan(tx.init(params)))


def as_arrays(tree):
    return {n: np.array(value, np.float32) for n, value in tree.items()}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_equals_rollfast(name):
    updates, scores = replay(name)
    case = RECORDED["recorded"][name]
    for n, expected in as_arrays(case["updates"]).items():
        kept = np.array(case["kept"][n])
        kept = kept.reshape(-1, *[1] * (expected.ndim - 1))
        np.testing.assert_allclose(scores[n], case["scores"][n], rtol=2e-6)
        ours = np.where(kept, updates[n], 0)
        np.testing.assert_allclose(ours, expected, rtol=5e-5, atol=1e-8)
        # The values tell the cases apart.
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(updates[n], expected, rtol=5e-5, atol=1e-8)


def test_rollfast_takes_a_cosine_of_tiny_gradients_as_smaller():
    name = "adam, tiny gradients"
    updates, scores = replay(name)
    case = RECORDED["recorded"][name]
    gradients = {
        n: case["factor"] * np.float64(g)
        for n, g in as_arrays(RECORDED["gradients"]).items()
    }
    for n, theirs in as_arrays(case["scores"]).items():
        # Ours do not depend on the size of the gradients.
        np.testing.assert_allclose(scores[n], replay("adam")[1][n], rtol=2e-6)
        mu, floored = np.zeros_like(gradients[n][0]), [0.5]
        for g in gradients[n]:
            mu = 0.9 * mu + 0.1 * g
            norms = np.linalg.norm(mu) * np.linalg.norm(g)
            assert norms < 1e-12
            sample = sigmoid((mu * g).sum() / max(norms, 1e-12) / 2)
            floored.append(0.9 * floored[-1] + 0.1 * sample)
        np.testing.assert_allclose(theirs, floored[1:], rtol=2e-6)
        # The vector's first two gradients are zero, which is 0 for both.
        first = 2 if n == "vector" else 0
        assert (scores[n][first:] - theirs[first:] > 0.01).all()
        # Nothing else differs: without the scores the updates are alike.
        shape = (-1, *[1] * (updates[n].ndim - 1))
        kept = np.array(case["kept"][n]).reshape(shape)
        ours = np.where(kept, updates[n] / scores[n].reshape(shape), 0)
        expected = np.array(case["updates"][n]) / theirs.reshape(shape)
        np.testing.assert_allclose(ours, expected, rtol=5e-5, atol=1e-8)


# Masks.


def decreasing(count):
    return jnp.where(count < 2, 0.9, 0.2)


@pytest.mark.parametrize(
    ("keep_prob", "granularity"),
    [
        (0.5, "tensor"),
        (0.3, "row"),
        (decreasing, (0,)),
        ({"b": 0.1, "stack": 0.9, "w": 0.4}, {"b": "row", "stack": (0, 2), "w": "row"}),
    ],
    ids=["defaults", "rows", "schedule", "trees"],
)
def test_masks_are_those_of_masked_dropout(keep_prob, granularity):
    key = jax.random.key(11)
    tx = magma(optax.adam(0.1), keep_prob, key, granularity=granularity)
    dropout = lrd_optax.learning_rate_dropout(
        keep_prob, key=key, granularity=granularity
    )
    masked = optax.masked(dropout, is_matrix)
    params = random_tree(0)
    state, magma_state = masked.init(params), tx.init(params)
    for count, (updates, new) in enumerate(take_steps(tx, 5)):
        chex.assert_trees_all_equal(magma_state.dropout, state.inner_state)
        assert magma_state.dropout.count == count
        expected = lrd_optax.sample_mask(masked, state, params)
        chex.assert_trees_all_equal(jax.tree.map(lambda u: u != 0, updates), expected)
        # The sampler also finds the state in that of Magma.
        if not isinstance(keep_prob, dict):
            of_magma = lrd_optax.sample_mask(dropout, magma_state, eligible(params))
            chex.assert_trees_all_equal(of_magma, eligible(expected))
        (_, state), magma_state = masked.update(params, state), new


def test_default_keep_prob_and_granularity_and_keys_of_all_kinds():
    tx = experimental.magma(optax.sgd(1.0), key=5)
    masks = [
        {n: np.asarray(u != 0).mean() for n, u in updates.items()}
        for updates, _ in take_steps(tx, 60, update=jax.jit(tx.update))
    ]
    kept = np.array([[mask["stack"], mask["w"]] for mask in masks])
    assert set(kept.ravel()) == {0.0, 1.0}  # tensors as a whole
    assert 0.35 < kept.mean() < 0.65
    assert (kept[:, 0] != kept[:, 1]).any()
    words = tx.init(random_tree(0)).dropout.rng_key
    for key in (jax.random.key(5), jax.random.PRNGKey(5), np.int64(5)):
        state = magma(key=key).init(random_tree(0))
        np.testing.assert_array_equal(state.dropout.rng_key, words)


# Scores.


def test_it_is_there_without_an_import_of_its_own():
    assert lrd_optax.experimental is experimental


def test_first_score():
    g = random_tree(1)
    sample = sigmoid(0.5)  # the first momentum has the direction of the gradient
    for start, expected in [
        (0.5, 0.45 + 0.1 * sample),
        (1.0, 0.9 + 0.1 * sample),
        (0, 0.1 * sample),
        ("first", sample),
    ]:
        tx = magma(initial_alignment=start)
        state = tx.init(g)
        before = 0.0 if start == "first" else start
        assert state.alignment["w"] == before
        assert state.alignment["w"].shape == ()
        history = take_steps(tx, 2)
        scores = [s.alignment["w"] for _, s in history]
        np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
        # From the second step on it is an average for all of them.
        mu, g2 = (np.float64(x["w"]) for x in (history[1][1].momentum, random_tree(2)))
        sample2 = sigmoid(cosine(mu, g2, (0, 1)).item() / 2)
        np.testing.assert_allclose(scores[1], 0.9 * expected + 0.1 * sample2, rtol=1e-6)


@pytest.mark.parametrize("factor", [2.0**-45, 2.0**45])
@pytest.mark.parametrize("base", ["momentum", "sgd"])
def test_score_does_not_depend_on_the_size_of_gradients(base, factor):
    optimizer = optax.sgd(0.1, momentum=0.9) if base == "momentum" else optax.sgd(0.1)
    tx = magma(optimizer, granularity="row")

    def scaled(g, state, params):
        return tx.update(jax.tree.map(lambda x: factor * x, g), state, params)

    pairs = zip(take_steps(tx), take_steps(tx, update=scaled), strict=True)
    for (_, expected), (_, state) in pairs:
        chex.assert_trees_all_close(state.alignment, expected.alignment, rtol=1e-6)


def test_score_is_between_its_limits_and_follows_the_sign():
    tx = magma(optax.sgd(0.1, momentum=0.9), alignment_decay=0.0, temperature=0.25)
    params, update = random_tree(0), tx.update
    g = random_tree(1)
    _, state = update(g, tx.init(params), params)
    np.testing.assert_allclose(state.alignment["w"], sigmoid(4), rtol=1e-6)
    # The trace is 0.9 g - g / 2 then: in the direction of g, against the gradient.
    opposite = jax.tree.map(lambda x: -x / 2, g)
    _, state = update(opposite, state, params)
    np.testing.assert_allclose(state.alignment["w"], sigmoid(-4), rtol=1e-6)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_cosine_of_a_zero_vector_is_0(granularity):
    tx = magma(granularity=granularity, initial_alignment="first")
    zeros = jax.tree.map(jnp.zeros_like, random_tree(0))
    update = tx.update
    updates, state = update(zeros, tx.init(zeros), zeros)
    for score in jax.tree.leaves(state.alignment):
        np.testing.assert_array_equal(score, np.full(score.shape, 0.5, np.float32))
    chex.assert_trees_all_equal(jax.tree.map(jnp.abs, updates), zeros)
    # A momentum that is not zero, and a gradient that is.
    _, state = update(random_tree(1), state, zeros)
    before = state.alignment
    _, state = update(zeros, state, zeros)
    for name in ("stack", "w"):
        expected = 0.9 * before[name] + 0.05
        np.testing.assert_allclose(state.alignment[name], expected, rtol=1e-6)


def test_gradient_through_a_block_of_zeros():
    def change(x):
        tx = magma(keep_prob=1)
        g = {"w": x * jnp.zeros((2, 2)), "v": x * jnp.ones((2, 2))}
        updates, _ = tx.update(g, tx.init(g))
        return updates["w"].sum() + updates["v"].sum()

    expected = -0.4 * (0.45 + 0.1 * sigmoid(0.5))
    np.testing.assert_allclose(jax.grad(change)(1.0), expected, rtol=1e-6)


def test_gradient_through_a_score():
    mu, g = (random_tree(seed, {"w": (4, 5)}) for seed in (1, 2))
    tx = magma(granularity="row", momentum_decay=1.0, alignment_decay=0.0)
    state = tx.init(g)._replace(momentum=mu)

    def ours(g):
        return tx.update(g, state)[1].alignment["w"].sum()

    def expected(g):
        norms = jnp.linalg.norm(mu["w"], axis=1) * jnp.linalg.norm(g["w"], axis=1)
        return jax.nn.sigmoid((mu["w"] * g["w"]).sum(1) / norms / 2).sum()

    chex.assert_trees_all_close(
        jax.jit(jax.grad(ours))(g), jax.jit(jax.grad(expected))(g), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("base", ["adam", "sgd"])
def test_scores_stay_finite(bad, base):
    optimizer = BASES[base]
    tx = magma(optimizer, granularity={"b": "row", "stack": "tensor", "w": "row"})
    params, update = random_tree(0), tx.update
    history = take_steps(tx, 1, update=update)
    before = history[0][1]
    g = random_tree(2)
    good_updates, good = update(g, before, params)
    g["stack"], g["w"] = g["stack"].at[0, 1].set(bad), g["w"].at[1, 2].set(bad)
    updates, state = update(g, before, params)
    chex.assert_tree_all_finite(state.alignment)
    # Only the score of the block is that of a cosine of 0, and only that block is lost.
    expected = 0.9 * before.alignment["stack"] + 0.05
    np.testing.assert_allclose(state.alignment["stack"], expected, rtol=1e-6)
    scores, good_scores = (np.asarray(s.alignment["w"]) for s in (state, good))
    np.testing.assert_allclose(
        scores[1], 0.9 * before.alignment["w"][1] + 0.05, rtol=1e-6
    )
    others = [0, 2, 3]
    np.testing.assert_array_equal(scores[others], good_scores[others])
    np.testing.assert_array_equal(updates["w"][others, :], good_updates["w"][others, :])


def test_a_dropped_nan_is_0():
    tx, params = magma(), random_tree(0)
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    update, state, kept = tx.update, tx.init(params), []
    for _ in range(12):
        updates, state = update(bad, state, params)
        for name in ("stack", "w"):
            is_nan = np.isnan(updates[name])
            kept.append(is_nan.all())
            assert is_nan.all() or not np.any(updates[name])
        assert np.isnan(updates["b"]).all()
    assert set(kept) == {True, False}
    chex.assert_tree_all_finite(state.alignment)


# Dtypes, avals, and the ways to run it.


@pytest.mark.parametrize("base", ["adam", "sgd"])
def test_dtypes_and_avals(x64, base):
    dtypes = ["bfloat16", "float32", *["float64"] * x64]
    shapes = {"w": (4, 5)}
    trees = [{d: random_tree(seed, shapes, d) for d in dtypes} for seed in range(4)]
    optimizer, params = BASES[base], trees[0]
    tx = magma(optimizer, granularity="row")
    state = tx.init(params)
    assert avals(state) == avals(jax.eval_shape(tx.init, params))
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    dense = jax.eval_shape(optimizer.update, params, state.inner, params)[0]
    for g in trees[1:]:
        updates, new = update(g, state, params)
        assert avals(updates) == avals(dense)
        assert avals(new) == avals(state)
        state = new
    chex.clear_trace_counter()
    for dtype in dtypes:
        assert updates[dtype]["w"].dtype == dtype
        score = state.alignment[dtype]["w"]
        assert score.dtype == ("float64" if dtype == "float64" else "float32")
        assert score.shape == (4,)
        if base == "sgd":
            assert state.momentum[dtype]["w"].dtype == dtype


def test_bfloat16_scores_are_computed_in_float32():
    shapes = {"w": (4, 5)}
    params = random_tree(0, shapes, jnp.bfloat16)
    tx = magma(optax.adam(0.1), initial_alignment="first", alignment_decay=0.0)
    updates, state = take_steps(tx, 3, params=params)[-1]
    mu, g = state.inner[0].mu["w"], random_tree(3, shapes, jnp.bfloat16)["w"]
    cos = cosine(np.float64(mu), np.float64(g), (0, 1)).item()
    np.testing.assert_allclose(state.alignment["w"], sigmoid(cos / 2), rtol=1e-5)
    assert updates["w"].dtype == jnp.bfloat16


def test_bfloat16_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        params = random_tree(0, dtype=jnp.bfloat16)
        tx = magma(optax.sgd(0.1, momentum=0.9), initial_alignment=1.0)
        updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16


def test_complex_leaves():
    shapes = {"w": (3, 4)}
    params = random_tree(0, shapes, np.complex64)
    g = {"w": params["w"] * jnp.complex64(1 + 2j)}
    tx = magma(keep_prob=1, alignment_decay=0.0, momentum_decay=0.0)
    updates, state = tx.update(g, tx.init(params), params)
    assert state.alignment["w"].dtype == jnp.float32
    np.testing.assert_allclose(state.alignment["w"], sigmoid(0.5), rtol=1e-6)
    expected = -0.1 * g["w"] * sigmoid(0.5)
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


def test_state_of_parameters_of_a_weak_type():
    # jnp.full(shape, 1.0) has one. A scan takes a state only if its types stay.
    params = {"w": jnp.full((2, 3), 1.0)}
    assert jax.typeof(params["w"]).weak_type
    tx = magma()
    state = tx.init(params)
    assert avals(tx.update(params, state, params)[1]) == avals(state)


def test_python_numbers_as_leaves():
    # As learning_rate_dropout and the optimizers of Optax take them.
    tx = magma(keep_prob=1, mask=True)
    updates, _ = tx.update({"x": 2.0}, tx.init({"x": 1.0}), {"x": 1.0})
    expected = -0.1 * 2 * (0.45 + 0.1 * sigmoid(0.5))
    np.testing.assert_allclose(updates["x"], expected, rtol=1e-6)


NUMBERS = {
    "temperature": 0.7,
    "alignment_decay": 0.8,
    "momentum_decay": 0.6,
    "initial_alignment": 0.3,
}


@pytest.mark.parametrize("promotion", ["standard", "strict"])
def test_numbers_as_arrays(x64, promotion):
    params = random_tree(0, {"w": (4, 5)})
    with jax.numpy_dtype_promotion(promotion):
        tx = magma(**{name: jnp.float32(x) for name, x in NUMBERS.items()})
        state = tx.init(params)
        assert avals(state) == avals(magma(**NUMBERS).init(params))
        updates, new = tx.update(params, state, params)
        assert avals(new) == avals(state)
    expected, _ = magma(**NUMBERS).update(params, state, params)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_jit_eager_and_scan_agree():
    tx = magma(optax.rmsprop(0.1), granularity="column")
    params = random_tree(0, SMALL)
    jitted = take_steps(tx, params=params, update=jax.jit(tx.update))
    eager = take_steps(tx, params=params)
    chex.assert_trees_all_close(jitted, eager, rtol=2e-5, atol=1e-7)
    masks = [jax.tree.map(lambda u: u != 0, [u for u, _ in h]) for h in (jitted, eager)]
    chex.assert_trees_all_equal(*masks)

    def step(state, g):
        return tx.update(g, state, params)[::-1]

    gradients = jax.tree.map(
        lambda *x: jnp.stack(x), *(random_tree(n, SMALL) for n in (1, 2, 3))
    )
    scan = jax.jit(lambda s: jax.lax.scan(step, s, gradients))
    last, updates = scan(tx.init(params))
    chex.assert_trees_all_close(last, jitted[-1][1], rtol=2e-5, atol=1e-7)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[u for u, _ in jitted])
    chex.assert_trees_all_close(updates, stacked, rtol=2e-5, atol=1e-7)


def test_vmap_over_keys():
    params, g = (
        random_tree(0, {"w": (4, 5)}),
        [random_tree(n, {"w": (4, 5)}) for n in (1, 2)],
    )

    def train(key):
        tx = magma(key=key, granularity="row")
        state, theta, masks = tx.init(params), params, []
        for gradient in g:
            updates, state = tx.update(gradient, state, theta)
            theta = optax.apply_updates(theta, updates)
            masks.append(jax.tree.map(lambda u: u != 0, updates))
        return theta, state, masks

    keys = jax.random.split(jax.random.key(0), 4)
    members, one = jax.jit(jax.vmap(train))(keys), jax.jit(train)
    masks = np.concatenate([np.reshape(m["w"], (4, -1)) for m in members[2]], 1)
    assert len(np.unique(masks, axis=0)) == 4
    for number, key in enumerate(keys):
        theta, state, masks = one(key)
        member = jax.tree.map(lambda x, n=number: x[n], members)
        chex.assert_trees_all_equal(member[2], masks)
        np.testing.assert_array_equal(member[1].dropout.rng_key, state.dropout.rng_key)
        chex.assert_trees_all_close(member[:2], (theta, state), rtol=1e-5, atol=1e-7)


def test_donated_state():
    tx = magma(optax.rmsprop(0.1), key=jax.random.PRNGKey(3))
    params = random_tree(0, SMALL)
    state, update = tx.init(params), jax.jit(tx.update, donate_argnums=1)
    expected = take_steps(tx, params=params)[-1]
    got = take_steps(tx, params=params, update=update, state=state)[-1]
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-7)
    assert state.alignment["w"].is_deleted()
    tx.init(params)  # the key is still there


# Which momentum.

OPTIMIZERS = {
    "adam": (optax.adam(0.1), lambda s: s[0].mu),
    "adamw": (optax.adamw(0.1), lambda s: s[0].mu),
    "lion": (optax.lion(0.1), lambda s: s[0].mu),
    "sgd momentum": (optax.sgd(0.1, momentum=0.9), lambda s: s[0].trace),
    "sgd nesterov": (
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        lambda s: s[0].trace,
    ),
    "clip, adam": (
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
        lambda s: s[1][0].mu,
    ),
    "injected adam": (
        optax.inject_hyperparams(optax.adam)(0.1),
        lambda s: s.inner_state[0].mu,
    ),
    "sgd": (optax.sgd(0.1), None),
    "rmsprop": (optax.rmsprop(0.1), None),
    "rmsprop momentum": (optax.rmsprop(0.1, momentum=0.9), None),
    "lars": (optax.lars(0.1), None),
    "clip, sgd momentum": (
        optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)),
        None,
    ),
    "adam of a part": (optax.masked(optax.adam(0.1), is_matrix), None),
}


@functools.cache
def history_of(name):
    return take_steps(magma(OPTIMIZERS[name][0]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_which_momentum(name):
    of_state, history = OPTIMIZERS[name][1], history_of(name)
    average = jax.tree.map(np.zeros_like, random_tree(0))
    for step, (_, state) in enumerate(history, 1):
        g = random_tree(step)
        average = {n: 0.9 * average[n] + 0.1 * np.float64(g[n]) for n in g}
        if of_state is None:
            used = state.momentum
            assert used["b"] == optax.MaskedNode()
            for n in ("stack", "w"):
                np.testing.assert_allclose(used[n], average[n], rtol=2e-5, atol=1e-7)
        else:
            assert state.momentum is None
            used = of_state(state.inner)
        if step > 1:
            before = history[step - 2][1].alignment
            for n in ("stack", "w"):
                cos = cosine(np.float64(used[n]), np.float64(g[n]), None).item()
                expected = 0.9 * before[n] + 0.1 * sigmoid(cos / 2)
                np.testing.assert_allclose(state.alignment[n], expected, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "adam of a part"])
def test_the_optimizers_state_and_updates_are_dense(name):
    # Magma feeds the optimizer whole gradients: its state is that of a dense run.
    optimizer, _ = OPTIMIZERS[name]
    pairs = zip(history_of(name), take_steps(optimizer), strict=True)
    for (updates, state), (dense, dense_state) in pairs:
        chex.assert_trees_all_equal(state.inner, dense_state)
        np.testing.assert_array_equal(updates["b"], dense["b"])
        for n in ("stack", "w"):
            scaled = np.asarray(dense[n]) * np.asarray(state.alignment[n])
            expected = scaled if np.any(updates[n]) else np.zeros_like(scaled)
            np.testing.assert_array_equal(updates[n], expected)


# Eligible leaves.


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        (None, ["stack", "w"]),
        (True, ["b", "stack", "w"]),
        ({"b": True, "stack": False, "w": True}, ["b", "w"]),
        ({"b": np.True_, "stack": np.False_, "w": False}, ["b"]),
        (lambda tree: {n: n == "stack" for n in tree}, ["stack"]),
        (lambda tree: {"b": False, "stack": True, "w": True}, ["stack", "w"]),
    ],
    ids=["default", "all", "tree", "numpy", "function", "constant function"],
)
def test_eligible_leaves(mask, names):
    tx = magma(**({} if mask is None else {"mask": mask}))
    history = take_steps(tx, 4)
    for n in SHAPES:
        scored = not isinstance(history[0][1].alignment[n], optax.MaskedNode)
        dropped = any(not np.any(updates[n]) for updates, _ in history)
        assert scored == dropped == (n in names)


def test_inject_hyperparams():
    inject = optax.inject_hyperparams(experimental.magma, static_args="key")
    injected = inject(optax.sgd(0.1), 0.5, key=7)
    params = random_tree(0)
    updates, _ = injected.update(params, injected.init(params))
    expected, _ = magma().update(params, magma().init(params))
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_float8_leaves():
    params = random_tree(0, dtype=jnp.float8_e4m3fn)
    tx = magma(optax.scale(-0.5))
    updates, state = tx.update(params, tx.init(params))
    assert updates["w"].dtype == jnp.float8_e4m3fn
    assert state.alignment["w"].dtype == jnp.float32


def test_mask_as_a_prefix_of_a_deeper_tree():
    params = {"a": random_tree(0), "c": [random_tree(1), random_tree(2)]}
    tx = magma(mask={"a": False, "c": [True, False]})
    updates, state = tx.update(params, tx.init(params), params)
    assert jax.tree.leaves(state.alignment["a"]) == []
    assert len(jax.tree.leaves(state.alignment["c"][0])) == 3
    assert jax.tree.leaves(state.alignment["c"][1]) == []
    dense = jax.tree.map(lambda g: np.float32(-0.1) * g, params)
    chex.assert_trees_all_equal(updates["a"], dense["a"])
    chex.assert_trees_all_equal(updates["c"][1], dense["c"][1])


@pytest.mark.parametrize("base", ["adam", "sgd"])
def test_none_and_masked_nodes_in_the_tree(base):
    optimizer = BASES[base]
    params, g = random_tree(0), random_tree(1)
    holes = {"a": None, "c": optax.MaskedNode()}
    expected, _ = magma(optimizer).update(g, magma(optimizer).init(params), params)
    masks = [
        is_matrix,
        {"a": None, "c": optax.MaskedNode(), "b": False, "stack": True, "w": True},
        {"a": True, "c": False, "b": False, "stack": True, "w": True},
    ]
    for mask in masks:
        tx = magma(optimizer, mask=mask)
        state = tx.init(params | holes)
        updates, new = tx.update(g | holes, state, params | holes)
        assert updates["a"] is None
        assert updates["c"] == optax.MaskedNode()
        assert jax.tree.structure(new) == jax.tree.structure(state)
        chex.assert_trees_all_equal({n: updates[n] for n in g}, expected)


@pytest.mark.parametrize("base", ["adam", "sgd"])
def test_without_eligible_leaves_it_is_the_dense_optimizer(base):
    optimizer = BASES[base]
    tx = magma(optimizer, mask=False)
    pairs = zip(take_steps(tx), take_steps(optimizer), strict=True)
    for (updates, state), (dense, dense_state) in pairs:
        chex.assert_trees_all_equal(updates, dense)
        chex.assert_trees_all_equal(state.inner, dense_state)
        assert jax.tree.leaves((state.momentum, state.alignment)) == []
        assert state.dropout.count > 0


# Weight decay, bit for bit.

DECAY = np.float32(0.25)


def test_decay_inside_is_masked_and_scaled():
    params, g = random_tree(0), random_tree(1)
    dense = optax.adamw(0.5, weight_decay=0.25)
    tx = magma(dense, granularity="row")
    update, state = tx.update, tx.init(params)
    full, _ = dense.update(g, dense.init(params), params)
    mask = np.asarray(masks_of(state, "row", params)["w"])
    updates, state = update(g, state, params)
    score = np.asarray(state.alignment["w"])[:, None]
    assert 0 < mask.mean() < 1
    # What is dropped does not decay.
    np.testing.assert_array_equal(
        updates["w"], np.where(mask, np.asarray(full["w"]) * score, np.float32(0))
    )
    np.testing.assert_array_equal(updates["b"], full["b"])


def test_decay_behind_is_whole():
    params, g = random_tree(0), random_tree(1)
    inner = magma(optax.scale_by_adam(), granularity="row")
    tx = optax.chain(
        inner, optax.add_decayed_weights(0.25), optax.scale_by_learning_rate(0.5)
    )
    # The rate and the decay are powers of two: whether a product is rounded before
    # the sum makes no difference.
    updates, state = tx.update(g, tx.init(params), params)
    masked, _ = inner.update(g, inner.init(params), params)
    for n in SHAPES:
        step = np.asarray(masked[n])
        expected = np.float32(-0.5) * (step + DECAY * np.asarray(params[n]))
        np.testing.assert_array_equal(updates[n], expected)
    mask = np.asarray(masks_of(inner.init(params), "row", params)["w"])
    np.testing.assert_array_equal(masked["w"] != 0, mask)
    dropped = ~mask
    assert dropped.any()
    np.testing.assert_array_equal(
        np.asarray(updates["w"])[dropped],
        (np.float32(-0.125) * np.asarray(params["w"]))[dropped],
    )
    assert state[0].momentum is None


def masks_of(state, granularity, tree):
    dropout = lrd_optax.learning_rate_dropout(0.5, key=7, granularity=granularity)
    return lrd_optax.sample_mask(dropout, state.dropout, eligible(tree))


# Extra arguments.


def scale_by_value():
    """An optimizer that needs the value of the loss."""

    def update(updates, state, params=None, *, value):
        del params
        return jax.tree.map(lambda u: -value * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def test_extra_arguments_reach_the_optimizer():
    params, g = random_tree(0), random_tree(1)
    tx = optax.chain(optax.identity(), magma(scale_by_value()))
    updates, _ = tx.update(g, tx.init(params), params, value=jnp.float32(4))
    np.testing.assert_array_equal(updates["b"], -4 * np.asarray(g["b"]))
    with pytest.raises(TypeError, match="value"):
        tx.update(g, tx.init(params), params)
    # An optimizer that takes none is not given any.
    plain = magma()
    chex.assert_trees_all_equal(
        plain.update(g, plain.init(params), params, value=jnp.float32(4)),
        plain.update(g, plain.init(params)),
    )


# Bad input.

ONES = {"w": np.ones((2, 3), np.float32)}
PREFIX = "must be one value or a tree prefix of the updates, which are"


def step_once(**kwargs):
    tx = magma(**kwargs)
    return tx.update(ONES, tx.init(ONES))


BAD_CALLS = {
    "temperature 0": (
        lambda: magma(temperature=0),
        ValueError,
        "temperature must be a finite number above 0, got 0",
    ),
    "temperature infinite": (
        lambda: magma(temperature=math.inf),
        ValueError,
        "temperature must be a finite number above 0, got inf",
    ),
    "temperature a string": (
        lambda: magma(temperature="2"),
        TypeError,
        "temperature must be a finite number above 0, got '2'",
    ),
    "alignment_decay 1.5": (
        lambda: magma(alignment_decay=1.5),
        ValueError,
        "alignment_decay must be a finite number of at least 0 and of at most 1, "
        "got 1.5",
    ),
    "momentum_decay -1": (
        lambda: magma(momentum_decay=-1),
        ValueError,
        "momentum_decay must be a finite number of at least 0 and of at most 1, got -1",
    ),
    "initial_alignment: another word": (
        lambda: magma(initial_alignment="last"),
        ValueError,
        "initial_alignment must be \"first\" or a number from 0 to 1, got 'last'",
    ),
    "initial_alignment 2": (
        lambda: magma(initial_alignment=2),
        ValueError,
        "initial_alignment must be a finite number of at least 0 and of at most 1, "
        "got 2",
    ),
    "initial_alignment none": (
        lambda: magma(initial_alignment=None),
        TypeError,
        "initial_alignment must be a finite number of at least 0 and of at most 1, "
        "got None",
    ),
    "mask: a number": (
        lambda: step_once(mask={"w": 0.5}),
        TypeError,
        "mask must hold True or False for each leaf, got 0.5",
    ),
    "mask: 1 from a function": (
        lambda: step_once(mask=lambda tree: 1),
        TypeError,
        "mask must hold True or False for each leaf, got 1",
    ),
    "mask: an array": (
        lambda: step_once(mask={"w": np.ones((2, 3), bool)}),
        TypeError,
        "mask must hold True or False for each leaf, got bool of shape (2, 3)",
    ),
    "mask: no prefix": (
        lambda: step_once(mask={"v": True}),
        ValueError,
        f"mask {PREFIX} PyTreeDef({{'w': *}}), got PyTreeDef({{'v': *}})",
    ),
    "granularity: no prefix": (
        lambda: step_once(granularity=["row"]),
        ValueError,
        f"granularity {PREFIX} PyTreeDef({{'w': *}}), got PyTreeDef([*])",
    ),
    "granularity: another word": (
        lambda: magma(granularity="layer"),
        ValueError,
        "granularity must be one of 'element', 'row', 'column', 'tensor' or a tuple "
        "such as (-1,), got 'layer'",
    ),
    "optimizer: adam without ()": (
        lambda: magma(optax.adam),
        TypeError,
        "optimizer must be a gradient transformation, as optax.adam(1e-3) is, "
        "got a function",
    ),
    "state: of another transformation": (
        lambda: magma().update(random_tree(0), optax.EmptyState()),
        TypeError,
        "state must be the MagmaState that init returns, got EmptyState",
    ),
    "optimizer: a word": (
        lambda: magma("adam"),
        TypeError,
        "optimizer must be a gradient transformation, as optax.adam(1e-3) is, "
        "got 'adam'",
    ),
    "keep_prob 0": (
        lambda: magma(keep_prob=0),
        ValueError,
        "keep_prob must be a finite number above 0 and of at most 1, got 0",
    ),
    "key is missing": (
        lambda: experimental.magma(optax.sgd(0.1)),
        TypeError,
        "magma() missing 1 required keyword-only argument: 'key'",
    ),
    "key none": (
        lambda: magma(key=None),
        TypeError,
        "key must be an int, a jax.random key, or a legacy uint32 key, got None",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_call(case):
    call, error, message = BAD_CALLS[case]
    raises(error, message, call)


# Checkpoints.


def by_pickle(state, fresh, path):
    return pickle.loads(pickle.dumps(state))


def by_flax(state, fresh, path):
    return serialization.from_bytes(fresh, serialization.to_bytes(state))


def by_flax_dict(state, fresh, path):
    as_dict = serialization.to_state_dict(state)
    return serialization.from_state_dict(fresh, as_dict)


def by_orbax(state, fresh, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "state", fresh)


@functools.cache
def saved():
    """An optimizer, its state after two steps, and the two steps that follow."""
    tx = magma(granularity="row")  # which keeps a momentum of its own
    state = take_steps(tx, 2)[-1][1]
    follow = functools.partial(take_steps, tx, 2, start=3)
    expected = follow(state=state)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(follow(), expected)  # from a fresh state
    return tx, state, follow, expected


@pytest.mark.parametrize("save", [by_pickle, by_flax, by_flax_dict, by_orbax])
def test_a_saved_state_goes_on(save, tmp_path):
    tx, state, follow, expected = saved()
    restored = save(state, tx.init(random_tree(0)), tmp_path)
    assert isinstance(restored, experimental.MagmaState)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal(follow(state=restored), expected)


# Meshes.

SPECS = {"bias": P(), "both": P("x", "y"), "columns": P(None, "y"), "rows": P("x")}
SHARDED = {n: (8,) if n == "bias" else (8, 6) for n in SPECS}
ON_MESHES = {"bias": (), "both": "tensor", "columns": "column", "rows": "row"}


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    types = (request.param,) * 2
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=types)
    with jax.set_mesh(mesh):
        yield mesh


def place(tree, mesh=None):
    if mesh is None:
        return tree
    return {
        n: jax.device_put(x, NamedSharding(mesh, SPECS[n])) for n, x in tree.items()
    }


def train(mesh=None):
    """Masks, scores and parameters of each step, and avals of each state."""
    tx = magma(optax.rmsprop(0.01), granularity=ON_MESHES)
    params = place(random_tree(0, SHARDED), mesh)
    eager, state = tx.init(params), jax.jit(tx.init)(params)

    @jax.jit
    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        masks = jax.tree.map(lambda u: u != 0, updates)
        return optax.apply_updates(params, updates), state, masks

    history, types = [], [avals(eager), avals(state)]
    for number in range(1, 6):
        g = place(random_tree(number, SHARDED), mesh)
        params, state, masks = step(params, state, g)
        history.append(jax.device_get((masks, (state.alignment, params))))
        types.append(avals(state))
    return history, types, params


@functools.cache
def on_one_device():
    return train()[0]


def test_same_masks_and_scores_on_a_mesh(mesh):
    with jax.set_mesh(jax.sharding.Mesh(np.array(jax.devices()[:1]), "x")):
        expected = on_one_device()
    history, types, params = train(mesh)
    for (masks, values), (one_masks, one_values) in zip(history, expected, strict=True):
        chex.assert_trees_all_equal(masks, one_masks)
        chex.assert_trees_all_close(values, one_values, rtol=1e-5, atol=1e-6)
    for n, spec in SPECS.items():
        assert params[n].sharding.is_equivalent_to(
            NamedSharding(mesh, spec), params[n].ndim
        )
    if mesh.axis_types[0] == AxisType.Explicit:
        for before, after in itertools.pairwise(types):
            assert before == after
        assert types[-1].alignment["rows"].sharding.spec == P("x")


@pytest.fixture
def manual():
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


LOCAL = {"replicated": P(), "varying": P("x")}
IN_SHARDS = {"replicated": (4, 6), "varying": (16, 6)}


def test_each_shard_of_a_varying_leaf_has_its_own_score_and_mask(manual):
    tx, steps = magma(), 12
    stacked = random_tree(1, {n: (steps, *s) for n, s in IN_SHARDS.items()})

    def body(params, gradients):
        def step(state, g):
            updates, state = tx.update(g, state, params)
            masks = jax.tree.map(lambda u: (u != 0).all()[None], updates)
            scores = jax.tree.map(lambda s: s[None], state.alignment)
            return state, (updates, masks, scores)

        return jax.lax.scan(step, tx.init(params), gradients)[1]

    outer = {n: P(None, *spec) for n, spec in LOCAL.items()}
    mapped = jax.shard_map(
        body, mesh=manual, in_specs=(LOCAL, outer), out_specs=(outer,) * 3
    )
    params = random_tree(0, IN_SHARDS)
    updates, masks, scores = jax.jit(mapped)(params, stacked)
    assert masks["varying"].shape == scores["varying"].shape == (steps, 4)
    assert masks["replicated"].shape == scores["replicated"].shape == (steps, 1)
    # Each shard is scored as if it were a leaf of its own. A leaf that is replicated
    # is scored and masked as outside.
    for shard in range(4):
        part = slice(4 * shard, 4 * shard + 4)
        own = {n: x[:, part] if n == "varying" else x for n, x in stacked.items()}
        state, update = tx.init(jax.tree.map(lambda x: x[0], own)), one_step()
        for t in range(steps):
            g = jax.tree.map(lambda x, t=t: x[t], own)
            outside, state = update(g, state)
            for n, column in (("varying", shard), ("replicated", 0)):
                np.testing.assert_allclose(
                    scores[n][t, column], state.alignment[n], rtol=1e-5
                )
            np.testing.assert_allclose(
                updates["replicated"][t], outside["replicated"], rtol=1e-4, atol=1e-6
            )
            whole = updates["varying"][t, part]
            assert np.all(whole != 0) == masks["varying"][t, shard] == np.any(whole)
    assert len(np.unique(masks["varying"], axis=1).T) == 4
    assert len(np.unique(scores["varying"][-1])) == 4


@functools.cache
def one_step():
    return jax.jit(magma().update)


def test_state_that_is_carried_from_one_shard_map_to_the_next(manual):
    tx = magma(granularity="row")
    specs = experimental.MagmaState(P(), P(), LOCAL, LOCAL)
    init = jax.shard_map(tx.init, mesh=manual, in_specs=(LOCAL,), out_specs=specs)
    update = jax.shard_map(
        tx.update, mesh=manual, in_specs=(LOCAL, specs), out_specs=(LOCAL, specs)
    )
    params = random_tree(0, IN_SHARDS)
    state, plain = jax.jit(init)(params), tx.init(params)
    assert state.alignment["varying"].shape == (16,)
    update, plain_update = jax.jit(update), one_row_step()
    for step in range(1, 5):
        g = random_tree(step, IN_SHARDS)
        updates, state = update(g, state)
        outside, plain = plain_update(g, plain)
        # A row lies in one shard, so its score is the same. Its mask is not.
        chex.assert_trees_all_close(state.alignment, plain.alignment, rtol=1e-5)
        chex.assert_trees_all_close(state.momentum, plain.momentum, rtol=1e-5)
        chex.assert_trees_all_equal(state.dropout, plain.dropout)
        np.testing.assert_allclose(
            updates["replicated"], outside["replicated"], rtol=1e-5
        )
    assert np.any((updates["varying"] != 0) != (outside["varying"] != 0))


def one_row_step():
    return jax.jit(magma(granularity="row").update)
