"""Masks by row, column and tensor, masks that are held, and masks in cycles."""

import functools
import math

import chex
import equinox
import jax
import jax.numpy as jnp
import mask_reference
import numpy as np
import optax
import pytest
from drawn_masks import mask_of
from flax import nnx
from jax import export
from law import p_values, worst

import lrd_optax

AXES = {"element": None, "row": (-2,), "column": (-1,), "tensor": ()}
AXES |= {axes: axes for axes in [(), (-1,), (0,), (0, -1), (-1, 0), (1, -3), (7, -2)]}
SHAPES = [(9, 5), (), (3, 1, 2, 4), (100,), (0, 2)]
VARIANTS = {
    "row": {"granularity": "row"},
    "column": {"granularity": "column"},
    "tensor": {"granularity": "tensor"},
    "layers": {"granularity": (0, -1)},
    "hold": {"hold_steps": 3},
    "cycle": {"sampler": "cycle"},
    "all": {
        "granularity": "row",
        "hold_steps": 2,
        "sampler": "cycle",
        "unbiased": True,
    },
}


def make(keep_prob=0.5, key=0, **kwargs):
    return lrd_optax.learning_rate_dropout(keep_prob, key=key, **kwargs)


def axes_in(shape, granularity):
    """The axes of a leaf along which decisions differ, from 0, without the others."""
    axes = AXES[granularity]
    if axes is None:
        return tuple(range(len(shape)))
    return tuple(n for n in range(len(shape)) if n in axes or n - len(shape) in axes)


@functools.cache
def masks_of_steps(shapes, steps, keep_prob=0.5, key=0, **kwargs):
    """The masks that updates apply, for each leaf as [step, ...]."""
    tx, ones = make(keep_prob, key, **kwargs), [jnp.ones(shape) for shape in shapes]

    def step(state, _):
        updates, state = tx.update(ones, state)
        return state, [update != 0 for update in updates]

    masks = jax.jit(lambda s: jax.lax.scan(step, s, length=steps)[1])(tx.init(ones))
    return [np.asarray(mask) for mask in masks]


# Which bits they are.


# A tree of all granularities, since one program for all is compiled faster.
EVERY = {str(granularity): [np.ones(s, "f") for s in SHAPES] for granularity in AXES}
BY_NAME = {str(granularity): granularity for granularity in AXES}


def assert_reference(masks, words, p):
    position = 0
    for name in sorted(masks):
        for mask, shape in zip(masks[name], SHAPES, strict=True):
            axes = axes_in(shape, BY_NAME[name])
            expected = mask_reference.mask(words, position, shape, p, axes)
            np.testing.assert_array_equal(mask, expected)
            position += 1


def test_masks_are_those_of_the_reference(x64):
    tx = make(0.4, 2**40 + 3, granularity=BY_NAME)
    state, update = tx.init(EVERY), jax.jit(tx.update)
    for step in range(3):
        words = mask_reference.step_words((2**8, 3), step)
        updates, state = (update if step else tx.update)(EVERY, state)
        assert_reference(jax.tree.map(lambda u: u != 0, updates), words, 0.4)


@pytest.mark.parametrize("hold_steps", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_cycles_are_those_of_the_reference(length, hold_steps, x64):
    how = {"sampler": "cycle", "hold_steps": hold_steps, "granularity": "row"}
    masks = masks_of_steps(((9, 5), (100,)), 18, 1 / length, **how)
    for step in range(18):
        hold = step // hold_steps
        for leaf, axes in enumerate([(0,), ()]):
            mask = masks[leaf][step]
            expected = mask_reference.cycle_mask(
                (0, 0), hold, leaf, mask.shape, length, axes
            )
            np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(("platform", "p"), [("tpu", 0.124), ("cuda", 0.322)])
def test_the_branches_of_other_platforms_draw_the_same_bits(platform, p, monkeypatch):
    def choose(*operands, default, **branches):
        return branches.get(platform, default)(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    # With these probabilities nothing else was traced, which would not be traced again.
    masks = mask_of(5, EVERY, p, granularity=BY_NAME)
    assert_reference(masks, mask_reference.step_words((0, 5), 0), p)


def test_defaults_are_the_elementwise_mask():
    said = {"granularity": "element", "hold_steps": 1, "sampler": "bernoulli"}
    tree = {"w": jnp.ones((7, 5)), "b": jnp.ones(11)}
    chex.assert_trees_all_equal(mask_of(3, tree), mask_of(3, tree, **said))


@pytest.mark.parametrize("granularity", ["row", "column", (0,), "tensor"])
def test_leaves_of_more_elements_than_32_bits_can_number(granularity):
    leaf = jax.ShapeDtypeStruct((2, 2**31, 2**32), jnp.float32)
    mask = jax.eval_shape(lambda: mask_of(0, leaf, granularity=granularity))
    assert mask.shape == leaf.shape


# What shares a decision, and the law of the decisions.


def decisions(masks, axes):
    """The decisions in masks [step, ...] of a leaf. Raises if they are not shared."""
    others = tuple(n + 1 for n in range(masks.ndim - 1) if n not in axes)
    shared = masks.any(others, keepdims=True)
    assert (masks == shared).all(), "what shares a decision differs"
    return shared.reshape(len(masks), -1)


LAWS = {  # the shape of a leaf, and along which axes its decisions differ
    "row": ((4096, 3), (0,)),
    "column": ((3, 4096), (1,)),
    (0, -1): ((64, 3, 64), (0, 2)),
    "tensor": ((2, 3), ()),
}


def decided(granularity, p, **kwargs):
    """The decisions of 16 steps and 2 leaves, or of tensors, as law.py expects them."""
    shape, axes = LAWS[granularity]
    if axes:
        masks = masks_of_steps((shape,) * 2, 16, p, granularity=granularity, **kwargs)
        return np.stack([decisions(mask, axes) for mask in masks], 1).reshape(
            16, 2, 64, 64
        )
    # Eight keys stand where its steps and leaves are, 64 steps and leaves inside.
    tree = [jnp.ones(shape)] * 64

    def masks_of_key(key):
        tx = make(p, key, granularity=granularity)

        def step(state, _):
            updates, state = tx.update(tree, state)
            return state, jnp.stack(updates) != 0

        return jax.lax.scan(step, tx.init(tree), length=64)[1]

    masks = np.asarray(jax.jit(jax.vmap(masks_of_key))(jnp.arange(8)))
    return decisions(masks.reshape(-1, *shape), axes).reshape(4, 2, 64, 64)


@pytest.mark.parametrize("p", [0.5, 0.1])
@pytest.mark.parametrize("granularity", LAWS, ids=str)
def test_law_of_decisions(granularity, p):
    masks = decided(granularity, p)
    assert worst(masks, p) > 0.01, p_values(masks, p)


@pytest.mark.parametrize("granularity", LAWS, ids=str)
def test_wrong_laws_of_decisions_are_rejected(granularity):
    shape, axes = LAWS[granularity]
    shared = np.repeat(decided(granularity, 0.5)[..., ::2], 2, axis=-1)
    assert worst(shared, 0.5) < 1e-6  # two rows, columns or tensors decide together
    elements = masks_of_steps((shape,), 4)[0]
    with pytest.raises(AssertionError, match="differs"):
        decisions(elements, axes)  # a row, column or tensor does not


def test_axes_that_a_leaf_lacks_are_left_out():
    tree = [jnp.ones(6), jnp.ones(()), jnp.ones((4, 6))]
    for granularity, differ in [
        ((np.int64(-2),), (1, 1, 4)),
        ("row", (1, 1, 4)),  # a vector is one row
        ("column", (6, 1, 6)),
        ("tensor", (1, 1, 1)),
        ((0, -1), (6, 1, 24)),
        ((3,), (1, 1, 1)),
    ]:
        masks = [mask_of(key, tree, granularity=granularity) for key in range(20)]
        for leaf, number in enumerate(differ):
            stacked = np.stack([mask[leaf].reshape(-1) for mask in masks])
            assert len(np.unique(stacked, axis=1).T) == number


def test_negative_axes_count_from_the_end():
    leaf = jnp.ones((3, 4, 5))
    for negative, positive in [((-1,), (2,)), ((-3, -1), (0, 2)), ("row", (1,))]:
        chex.assert_trees_all_equal(
            mask_of(0, leaf, granularity=negative),
            mask_of(0, leaf, granularity=positive),
        )


# Parts of a tree.

PARTS = {"a": jnp.ones((8, 5)), "b": [jnp.ones((8, 5)), jnp.ones((8, 5))]}


def test_granularity_as_a_tree_prefix_and_as_a_function():
    by_name = {name: mask_of(0, PARTS, granularity=name) for name in ("row", "column")}
    elements = mask_of(0, PARTS)
    b = by_name["column"]["b"]
    for prefix, expected in [
        ({"a": "row", "b": "column"}, {"a": by_name["row"]["a"], "b": b}),
        ({"a": (0,), "b": [(), "column"]}, None),
        (lambda tree: {"a": "element", "b": (1,)}, {"a": elements["a"], "b": b}),
        (
            lambda tree: jax.tree.map(lambda x: "row" if x.ndim > 1 else (), tree),
            by_name["row"],
        ),
    ]:
        expected = expected or {
            "a": by_name["row"]["a"],
            "b": [mask_of(0, PARTS, granularity="tensor")["b"][0], b[1]],
        }
        for run in (mask_of, jax.jit(mask_of, static_argnames="granularity")):
            if run is mask_of or callable(prefix):
                mask = run(0, PARTS, granularity=prefix)
                chex.assert_trees_all_equal(mask, expected)
    tuples = (jnp.ones((8, 5)), {"b": jnp.ones((8, 5))})
    chex.assert_trees_all_equal(
        mask_of(0, tuples, granularity=("row", {"b": "column"})),
        (by_name["row"]["a"], {"b": b[0]}),
    )


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_keep_prob_as_a_tree_prefix(jit):
    def of(p):
        return mask_of(0, PARTS, p)

    for prefix, expected in [
        ({"a": 0.9, "b": 0.1}, {"a": of(0.9)["a"], "b": of(0.1)["b"]}),
        ({"a": lambda count: 0.3, "b": [1, 0.5]}, None),
        ({"a": jnp.float32(0.9), "b": 0.1}, {"a": of(0.9)["a"], "b": of(0.1)["b"]}),
    ]:
        expected = expected or {
            "a": of(0.3)["a"],
            "b": [jnp.full((8, 5), True), of(0.5)["b"][1]],
        }
        tx = make(prefix, unbiased=True)
        updates, _ = jit(tx.update)(PARTS, tx.init(PARTS))
        chex.assert_trees_all_equal(jax.tree.map(lambda u: u != 0, updates), expected)
        assert updates["a"].max() > 1  # divided by its own probability
    assert updates["b"][0].max() == np.float32(
        2**24 / math.ceil(np.float32(0.1) * 2**24)
    )


def test_a_module_that_can_be_called_is_a_tree():
    updates = equinox.nn.Linear(3, 4, key=jax.random.key(0))
    prefix = jax.tree.map(lambda x: "row" if x.ndim > 1 else "tensor", updates)
    mask = mask_of(0, updates, granularity=prefix)
    assert (mask.weight == mask.weight[:, :1]).all()
    expected = mask_of(0, updates, granularity=lambda tree: prefix)
    chex.assert_trees_all_equal(jax.tree.leaves(mask), jax.tree.leaves(expected))


def test_keep_prob_traced_in_a_tree_prefix_and_mapped_over():
    probs = {"a": jnp.array([0.2, 0.8]), "b": jnp.array([0.5, 1.0])}
    masks = jax.jit(jax.vmap(lambda p: mask_of(0, PARTS, p)))(probs)
    for n in range(2):
        one = mask_of(0, PARTS, {"a": float(probs["a"][n]), "b": float(probs["b"][n])})
        chex.assert_trees_all_equal(jax.tree.map(lambda m, n=n: m[n], masks), one)


def test_parts_that_are_masked_out_need_no_value():
    tree = {"a": jnp.ones((8, 5)), "b": optax.MaskedNode(), "c": None}
    tx = make(
        {"a": 0.5, "b": 0.9, "c": 0.9}, granularity={"a": "row", "b": (), "c": ()}
    )
    updates, _ = tx.update(tree, tx.init(tree))
    chex.assert_trees_all_equal(
        updates["a"] != 0, mask_of(0, {"a": tree["a"]}, granularity="row")["a"]
    )


# Holds.


@pytest.mark.parametrize("hold_steps", [2, 5])
def test_a_mask_stays_for_the_steps_of_its_hold(hold_steps):
    (held,) = masks_of_steps(((40,),), 20, hold_steps=hold_steps)
    (fresh,) = masks_of_steps(((40,),), 20)
    np.testing.assert_array_equal(held, np.repeat(fresh, hold_steps, axis=0)[:20])
    # A hold that ends one step too early or too late is noticed.
    for shift in (-1, 1):
        off = np.roll(np.repeat(fresh, hold_steps, axis=0), shift, axis=0)[:20]
        assert (held != off).any()


def test_the_key_is_replaced_at_the_end_of_each_hold():
    tx, ones = make(hold_steps=3), jnp.ones(4)
    state, keys = tx.init(ones), []
    for _ in range(7):
        keys.append(state.rng_key)
        _, state = tx.update(ones, state)
    assert [int((keys[0] != key).any()) for key in keys] == [0, 0, 0, 1, 1, 1, 1]
    chex.assert_trees_all_equal(*keys[3:6])
    assert (keys[6] != keys[5]).all()
    assert state.count == 7


def test_hold_steps_may_be_traced_and_mapped_over():
    ones = jnp.ones(40)

    def run(hold_steps):
        tx = make(hold_steps=hold_steps)

        def step(state, _):
            updates, state = tx.update(ones, state)
            return state, updates != 0

        return jax.lax.scan(step, tx.init(ones), length=12)[1]

    for n, masks in enumerate(jax.jit(jax.vmap(run))(jnp.arange(1, 4)), start=1):
        (expected,) = masks_of_steps(((40,),), 12, hold_steps=n)
        np.testing.assert_array_equal(masks, expected)


@pytest.mark.parametrize("variant", ["hold", "cycle", "all"])
def test_a_saved_state_goes_on_in_the_middle_of_a_hold(variant):
    tx, ones = make(1 / 2, **VARIANTS[variant]), jnp.ones((30, 2))
    state, masks = tx.init(ones), []
    for step in range(8):
        # Through NumPy and back, as a checkpoint would take it.
        state = tx.init(ones)._replace(
            count=np.asarray(state.count), rng_key=np.asarray(state.rng_key)
        )
        assert state.count == step
        updates, state = tx.update(ones, state)
        masks.append(updates != 0)
    (expected,) = masks_of_steps(((30, 2),), 8, 1 / 2, **VARIANTS[variant])
    np.testing.assert_array_equal(masks, expected)


# Cycles.


@pytest.mark.parametrize("granularity", ["element", "row", "tensor"])
@pytest.mark.parametrize(("length", "hold_steps"), [(1, 2), (2, 1), (3, 2), (10, 1)])
def test_each_decision_is_kept_exactly_once_in_a_cycle(length, hold_steps, granularity):
    steps = 3 * length * hold_steps
    how = {"sampler": "cycle", "hold_steps": hold_steps, "granularity": granularity}
    for masks in masks_of_steps(((8, 5), (50,)), steps, 1 / length, **how):
        per_hold = masks.reshape(3, length, hold_steps, -1)
        assert (per_hold == per_hold[:, :, :1]).all()
        assert (per_hold[:, :, 0].sum(1) == 1).all()
    # Independent masks do not cover every decision.
    if length > 1:
        how["sampler"] = "bernoulli"
        (masks, _) = masks_of_steps(((8, 5), (50,)), steps, 1 / length, **how)
        assert (masks.reshape(3, length, -1, 40)[:, :, 0].sum(1) != 1).any()


@pytest.mark.parametrize("length", [2, 3, 5])
def test_the_order_is_drawn_anew_for_each_cycle(length):
    cycles = 16
    shapes = ((64, 64),) * 2
    masks = masks_of_steps(shapes, cycles * length, 1 / length, sampler="cycle")
    orders = np.stack(masks, axis=1).reshape(cycles, length, 2, 64, 64)
    for place in range(length):
        at = orders[:, place]
        assert worst(at, 1 / length) > 0.01, p_values(at, 1 / length)
    repeated = orders.copy()
    repeated[7] = repeated[2]  # a cycle that repeats its order
    assert worst(repeated[:, 0], 1 / length) < 1e-6
    shifted = np.roll(repeated, 1, axis=1)[7], orders[2]
    assert (shifted[0] != shifted[1]).any()


def test_unbiased_cycles_add_up_to_the_dense_steps():
    for length in (2, 3, 8):
        tx, ones = make(1 / length, sampler="cycle", unbiased=True), jnp.ones(1000)
        state, total = tx.init(ones), np.zeros(1000)
        for _ in range(2 * length):
            updates, state = tx.update(ones, state)
            total += updates
        np.testing.assert_allclose(total, 2 * length, rtol=1e-6)


def test_windows_of_a_cycle_that_does_not_divide_the_draws():
    # 2**24 = 5000 * 3355 + 2216: the first 2216 windows have one draw more.
    leaf, tx = (
        jax.ShapeDtypeStruct((2**16,), jnp.float32),
        make(1 / 5000, sampler="cycle"),
    )
    draw = jax.jit(lambda state: lrd_optax.sample_mask(tx, state, leaf))
    for count in (0, 1, 2215, 2216, 2217, 4999, 5000):
        words = mask_reference.later((0, 0), count)
        state = tx.init(None)._replace(
            count=jnp.int32(count), rng_key=np.array(words, np.uint32)
        )
        expected = mask_reference.cycle_mask((0, 0), count, 0, (2**16,), 5000)
        np.testing.assert_array_equal(draw(state), expected)
        assert expected.any()


@pytest.mark.parametrize("traced", [False, True])
def test_a_schedule_may_change_the_length_of_a_cycle(traced):
    def schedule(count):
        if not traced:
            return 1 / 2 if count < 4 else 1 / 3
        return jnp.where(count < 4, 1 / 2, 1 / 3)

    tx, ones = make(schedule, sampler="cycle"), jnp.ones(60)
    state, masks = tx.init(ones), []
    for _ in range(12):
        updates, state = tx.update(ones, state)
        masks.append(np.asarray(updates != 0))
    for first, last in ((0, 2), (2, 4), (6, 9), (9, 12)):
        assert (np.sum(masks[first:last], axis=0) == 1).all()
    assert (np.sum(masks[4:6], axis=0) <= 1).all()  # the cycle that was cut


@pytest.mark.parametrize(
    ("value", "kept"), [(0.0, 0), (-1.0, 0), (np.nan, 0), (1.0, 9), (3.0, 9)]
)
def test_values_of_a_cycle_that_are_known_at_run_time_saturate(value, kept):
    tx = make(lambda count: jnp.float32(value), sampler="cycle", unbiased=True)
    updates, state = jax.jit(tx.update)(jnp.ones(9), tx.init(None))
    assert updates.sum() == kept
    assert tx.update(jnp.ones(9), state)[0].sum() == kept


def test_lengths_of_cycles_that_are_known_at_run_time_are_the_nearest():
    tx, ones = make(lambda count: jnp.float32(0.34), sampler="cycle"), jnp.ones(50)
    by_number = make(1 / 3, sampler="cycle")
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: bool((a == b).all()),
            tx.update(ones, tx.init(None)),
            by_number.update(ones, by_number.init(None)),
        )
    )


def test_parts_of_a_tree_have_cycles_of_their_own():
    tx = make({"a": 1 / 2, "b": 1 / 3}, sampler="cycle")
    state, masks = tx.init(PARTS), []
    for _ in range(6):
        updates, state = tx.update(PARTS, state)
        masks.append(jax.tree.map(lambda u: np.asarray(u != 0), updates))
    for name, length in (("a", 2), ("b", 3)):
        leaf = [mask[name] if name == "a" else mask[name][1] for mask in masks]
        covered = np.stack(leaf).reshape(6 // length, length, 8, 5).sum(1)
        assert (covered == 1).all()


# sample_mask, and what it all combines with.


@pytest.mark.parametrize("variant", VARIANTS)
def test_sample_mask_is_what_the_update_applies(variant):
    tx = make(lambda count: 1 / (2 + count // 4), **VARIANTS[variant])
    chain = optax.chain(optax.trace(0.9), tx)
    state = chain.init(PARTS)
    for _ in range(6):
        mask = lrd_optax.sample_mask(tx, state, PARTS)
        updates, state = chain.update(PARTS, state)
        chex.assert_trees_all_equal(jax.tree.map(lambda u: u != 0, updates), mask)


def test_sample_mask_of_wrappers():
    tree = {"w": jnp.ones((7, 5)), "b": jnp.ones(7)}
    masked = optax.masked(make(granularity="row"), {"w": True, "b": False})
    inject = optax.inject_hyperparams(lrd_optax.learning_rate_dropout)
    injected = inject(keep_prob=0.3, key=1, granularity="row", hold_steps=2)
    for tx in (masked, injected):
        state = tx.init(tree)
        updates, _ = tx.update(tree, state)
        for held in (state, (optax.EmptyState(), {"in": state})):
            mask = lrd_optax.sample_mask(tx, held, tree)
            chex.assert_trees_all_equal(mask, jax.tree.map(lambda u: u != 0, updates))
    assert lrd_optax.sample_mask(masked, masked.init(tree), tree)["b"].all()
    # A chain as the wrapper, in a chain; and numbers as leaves, of which one is 0.
    inner = optax.chain(make(), make(key=1))
    outer = optax.chain(optax.sgd(0.1), inner)
    mask = lrd_optax.sample_mask(inner, outer.init(tree), tree)
    updates, _ = outer.update(tree, outer.init(tree))
    chex.assert_trees_all_equal(mask, jax.tree.map(lambda u: u != 0, updates))
    numbers = {"a": 0.0, "b": 0, "c": 0j, "d": 2.0}
    assert all(jax.tree.leaves(mask_of(0, numbers, 1.0)))


def test_sample_mask_of_an_nnx_optimizer():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    tx = make(granularity="column")
    optimizer = nnx.Optimizer(model, optax.chain(optax.sgd(0.1), tx), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    mask = lrd_optax.sample_mask(tx, optimizer.opt_state, params)
    before = jax.tree.map(jnp.copy, params)
    optimizer.update(model, jax.tree.map(jnp.ones_like, params))
    after = nnx.state(model, nnx.Param)
    moved = jax.tree.map(lambda a, b: a != b, before, after)
    chex.assert_trees_all_equal(jax.tree.leaves(moved), jax.tree.leaves(mask))
    # There the updates are an nnx.State, so a tree prefix must be one too.
    tx = make(
        nnx.State({"bias": 1.0, "kernel": 0.5}),
        granularity=nnx.State({"bias": (), "kernel": "row"}),
    )
    optimizer = nnx.Optimizer(model, optax.chain(optax.sgd(0.1), tx), wrt=nnx.Param)
    ones = nnx.State({"bias": jnp.ones(4), "kernel": jnp.ones((3, 4))})
    mask = lrd_optax.sample_mask(tx, optimizer.opt_state, ones)
    optimizer.update(model, jax.tree.map(jnp.ones_like, params))
    assert mask["bias"].all()
    assert (mask["kernel"] == mask["kernel"][:, :1]).all()
    for wrong in (
        {"bias": 1.0, "kernel": 0.5},
        # Its variables can be called, but they are no schedules.
        jax.tree.map(lambda param: 0.5, params),
    ):
        tx = make(wrong)
        with pytest.raises(ValueError, match="keep_prob must be one value or a tree"):
            tx.update(ones, tx.init(None))


@pytest.mark.parametrize("variant", ["column", "tensor", "all"])
def test_ensemble_equals_one_by_one(variant):
    tree = {"w": jnp.ones((8, 5)), "b": jnp.ones(6)}

    def masks(key):
        tx = make(0.5, key, **VARIANTS[variant])

        def step(state, _):
            updates, state = tx.update(tree, state)
            return state, updates

        return jax.lax.scan(step, tx.init(tree), length=5)[1]

    ensemble = jax.jit(jax.vmap(masks))(jnp.arange(4))
    for key in range(4):
        one = jax.jit(masks)(key)
        chex.assert_trees_all_equal(jax.tree.map(lambda x, k=key: x[k], ensemble), one)
    members = ensemble["w"].reshape(4, -1)
    assert len(np.unique(members, axis=0)) == 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_export_with_symbolic_shapes_for_all_platforms(variant):
    shape = export.symbolic_shape("4*n, 3, m")
    tx = make(0.5, **VARIANTS[variant])
    spec = [jax.ShapeDtypeStruct(shape, jnp.float32)]
    exported = export.export(
        jax.jit(tx.update), platforms=("cpu", "cuda", "rocm", "tpu")
    )(spec, jax.eval_shape(tx.init, spec))
    updates = [jnp.ones((20, 3, 7))]
    chex.assert_trees_all_equal(
        exported.call(updates, tx.init(updates)), tx.update(updates, tx.init(updates))
    )


@pytest.mark.parametrize("variant", ["row", "all"])
def test_no_second_trace_and_state_of_equal_avals(variant):
    tx = make(0.5, **VARIANTS[variant])
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(PARTS)
    avals = jax.tree.map(jax.typeof, state)
    for _ in range(3):
        _, state = update(PARTS, state)
        assert jax.tree.map(jax.typeof, state) == avals
    chex.clear_trace_counter()
