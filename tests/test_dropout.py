"""What the transformation does to updates of every kind."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn_masks import mask_of
from flax import serialization
from jax import export

import lrd_optax

FLOATS = ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn"]
COMPLEX = ["complex64", "complex128"]


def apply_once(updates, keep_prob=0.5, key=0, **kwargs):
    """The updates after one step from a fresh state."""
    tx = lrd_optax.learning_rate_dropout(keep_prob, key=key, **kwargs)
    return tx.update(updates, tx.init(updates))[0]


def jitted_once(updates, keep_prob=0.5, **kwargs):
    return jax.jit(lambda u: apply_once(u, keep_prob, **kwargs))(updates)


def values(dtype, size=400):
    rng = np.random.default_rng(0)
    real = rng.standard_normal(size) + 4
    if np.issubdtype(np.dtype(dtype), np.complexfloating):
        real = real + 1j * rng.standard_normal(size)
    return jnp.asarray(real, dtype)


def of_each(dtypes, make):
    """Returns a leaf for each dtype, so that one program does for all of them."""
    return {dtype: make(jax.dtypes.canonicalize_dtype(dtype)) for dtype in dtypes}


@pytest.mark.parametrize("run", [apply_once, jitted_once])
def test_selects_and_keeps_the_dtype(run, x64):
    updates = of_each(FLOATS + COMPLEX, values)
    masks, results = mask_of(0, updates, 0.5), run(updates)
    for dtype, update in updates.items():
        mask, out = masks[dtype], results[dtype]
        assert out.dtype == update.dtype
        assert 150 < mask.sum() < 250
        np.testing.assert_array_equal(out, np.where(mask, update, 0))


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("run", [apply_once, jitted_once])
def test_dropped_nan_and_infinity_are_zero(run, unbiased):
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        out = run(jnp.full(100, value), unbiased=unbiased)
        mask = mask_of(0, out, 0.5)
        np.testing.assert_array_equal(out, np.where(mask, value, 0))


@pytest.mark.parametrize("run", [apply_once, jitted_once])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.1])
def test_unbiased_multiplies_what_is_kept(run, p, x64):
    kept = np.ceil(np.float32(p) * 2**24) / 2**24  # the probability of the mask
    assert abs(kept - p) < 2**-24
    updates = of_each(FLOATS[:4] + COMPLEX, values)
    masks, results = (
        mask_of(0, updates, p),
        run(updates, p, unbiased=True),
    )
    for dtype, update in updates.items():
        out = results[dtype]
        assert out.dtype == update.dtype
        wide = np.complex128 if np.iscomplexobj(update) else np.float64
        expected = np.where(masks[dtype], np.asarray(update, wide) / float(kept), 0)
        # Off by the rounding of 1/p, of the product, and of the result: 1.5 ulp.
        rtol = 1.5 * float(jnp.finfo(update.dtype).eps)
        np.testing.assert_allclose(np.asarray(out, wide), expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("p", [1e-5, 1e-6, 1e-7])
def test_unbiased_divides_by_the_probability_that_the_mask_has(p, traced):
    # Of 2**24 values of a draw a whole number are kept: 17 at 1e-6, 1.3 % too many.
    kept = np.ceil(np.float32(p) * 2**24) / 2**24
    size, many = 2**22, 2**6

    def run(p, seed):
        tx = lrd_optax.learning_rate_dropout(p, key=seed, unbiased=True)
        out, _ = tx.update(jnp.ones(size), tx.init(None))
        return out.mean(), out.max()

    def all_of(p):
        return jax.lax.map(lambda seed: run(p, seed), jnp.arange(many))

    means, largest = jax.jit(all_of)(p) if traced else jax.jit(lambda: all_of(p))()
    assert largest.max() == np.float32(1 / kept)
    # The mean of the update is that of the dense one, within what chance allows.
    deviation = (kept * size * many) ** -0.5
    assert abs(float(means.mean()) - 1) < 3 * deviation


def test_unbiased_in_bfloat16_is_the_rounded_float32_product():
    updates = values("bfloat16")
    mask = mask_of(0, updates, 0.9)
    exact = updates.astype(jnp.float32) * np.float32(1 / 0.9)
    expected = jnp.where(mask, exact.astype(jnp.bfloat16), 0)
    np.testing.assert_array_equal(apply_once(updates, 0.9, unbiased=True), expected)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("keep_prob", [0.5, "traced"])
def test_weak_type_is_kept(unbiased, keep_prob, x64):
    def out(p, updates):
        return apply_once(updates, p, unbiased=unbiased)

    for value in (1.5, jnp.asarray(1.5, jnp.float32), 2j):
        strong = isinstance(value, jax.Array)
        p = jnp.float32(0.5) if keep_prob == "traced" else 0.5
        result = jax.jit(out)(p, value) if keep_prob == "traced" else out(p, value)
        assert result.weak_type is not strong
        assert result.dtype == jnp.result_type(value)


@pytest.mark.parametrize("p", [1, 1.0, np.float32(1), jnp.float32(1), lambda _: 1.0])
@pytest.mark.parametrize("unbiased", [False, True])
def test_keep_prob_1_returns_the_updates_bit_for_bit(unbiased, p, x64):
    special = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-30, 3.0]
    updates = of_each(
        [*FLOATS[:4], "complex64"], lambda dtype: jnp.asarray(special, dtype)
    )
    for run in (apply_once, jitted_once):
        results = run(updates, p, unbiased=unbiased)
        for dtype, update in updates.items():
            out = results[dtype]
            if unbiased and jnp.iscomplexobj(update):
                # A complex product with an infinite part has NaN where JAX puts it.
                np.testing.assert_array_equal(out[-2:], update[-2:])
            else:
                assert np.asarray(out).tobytes() == np.asarray(update).tobytes()


def test_none_masked_nodes_scalars_empties_and_numpy():
    updates = {
        "none": None,
        "masked": optax.MaskedNode(),
        "scalar": jnp.float32(1),
        "python": 1.0,
        "empty": jnp.zeros((3, 0, 2)),
        "numpy": np.ones((4, 5), np.float32),
        "nested": [(), {}, (jnp.ones(3),)],
    }
    for run in (apply_once, jitted_once):
        out = run(updates)
        assert out["none"] is None
        assert out["masked"] == optax.MaskedNode()
        assert out["empty"].shape == (3, 0, 2)
        mask = mask_of(0, updates, 0.5)
        np.testing.assert_array_equal(out["numpy"], mask["numpy"].astype(np.float32))
        assert jax.tree.structure(out) == jax.tree.structure(updates)
        everything = run(updates, 1.0)
        np.testing.assert_array_equal(everything["numpy"], updates["numpy"])
        for leaf in jax.tree.leaves([out, everything]):  # whatever is kept
            assert isinstance(leaf, jax.Array)
    for empty in ({}, None, [], optax.MaskedNode()):
        assert apply_once(empty) == empty
        assert mask_of(0, empty, 0.5) == empty


def test_integer_updates_are_selected_but_not_divided():
    out = apply_once(jnp.arange(1, 101))
    mask = mask_of(0, out, 0.5)
    np.testing.assert_array_equal(out, np.where(mask, np.arange(1, 101), 0))


@pytest.mark.usefixtures("optax_promotion")
def test_schedule_is_a_function_of_the_update_count():
    schedule = optax.piecewise_interpolate_schedule("linear", 1.0, {4: 0.25})
    tx = lrd_optax.learning_rate_dropout(schedule, key=0)
    ones = jnp.ones(50)
    state = tx.init(ones)
    for count in range(6):
        mask = mask_of(state.rng_key, ones, schedule(count))
        out, state = jax.jit(tx.update)(ones, state)
        np.testing.assert_array_equal(out, mask.astype(jnp.float32))


def test_late_start_by_a_schedule():
    tx = lrd_optax.learning_rate_dropout(
        lambda count: jnp.where(count < 3, 1.0, 0.3), key=0, unbiased=True
    )
    state = tx.init(None)
    ones = jnp.ones(1000)
    for count in range(5):
        out, state = tx.update(ones, state)
        assert set(out.tolist()) == ({1.0} if count < 3 else {0.0, float(out.max())})
    assert out.max() == np.float32(1 / 0.3)


def test_inject_hyperparams():
    make = optax.inject_hyperparams(lrd_optax.learning_rate_dropout)
    ones = jnp.ones(200)
    for key in (0, jax.random.key(0), jax.random.PRNGKey(0)):
        tx = make(keep_prob=optax.linear_schedule(1.0, 0.5, 2), key=key)
        state = tx.init(ones)
        for prob in (1.0, 0.75, 0.5, 0.5):
            mask = mask_of(state.inner_state.rng_key, ones, prob)
            out, state = jax.jit(tx.update)(ones, state)
            np.testing.assert_array_equal(out, mask.astype(jnp.float32))
            assert state.hyperparams["keep_prob"] == prob


def test_vmap_over_keep_prob_equals_one_by_one():
    probs = jnp.array([0.1, 0.5, 1.0])
    ones = jnp.ones(300)
    members = jax.vmap(lambda p: apply_once(ones, p))(probs)
    np.testing.assert_array_equal(members, [apply_once(ones, p) for p in probs])
    # One draw, three thresholds: what a smaller keep_prob keeps, a larger one keeps.
    assert (np.diff(members, axis=0) >= 0).all()


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_ensemble_over_seeds_keep_probs_and_parameters_equals_one_by_one():
    def train(seed, keep_prob, params):
        dropout = lrd_optax.learning_rate_dropout(keep_prob, key=seed)
        tx = optax.chain(optax.adam(0.1), dropout)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
            masks = jax.tree.map(lambda u: u != 0, updates)
            return (optax.apply_updates(params, updates), state), masks

        (params, _), masks = jax.lax.scan(step, (params, tx.init(params)), length=5)
        return params, masks

    rng = np.random.default_rng(0)
    seeds, probs = np.arange(6), np.float32([0.2, 0.5, 0.9, 0.2, 0.5, 0.9])
    params = {
        n: rng.random((6, *s)).astype("f") for n, s in {"w": (8, 3), "b": (50,)}.items()
    }
    ensemble = jax.jit(jax.vmap(train))(seeds, probs, params)
    one_by_one = [
        jax.jit(train)(seeds[i], probs[i], jax.tree.map(lambda x, i=i: x[i], params))
        for i in range(6)
    ]
    chex.assert_trees_all_equal(
        ensemble, jax.tree.map(lambda *x: jnp.stack(x), *one_by_one)
    )
    masks = ensemble[1]["b"].reshape(6, -1)
    assert len(np.unique(masks, axis=0)) == 6
    shares = masks.mean(1)
    assert (
        np.abs(shares - probs) < 5 * np.sqrt(probs * (1 - probs) / masks.shape[1])
    ).all()


@pytest.mark.usefixtures("optax_promotion")
def test_ensemble_of_one_key_shares_its_masks():
    # vmap over the parameters alone is vmap over nothing that the key depends on.
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)
    members = jnp.ones((4, 100))
    out, _ = jax.vmap(tx.update)(members, jax.vmap(tx.init)(members))
    np.testing.assert_array_equal(out, np.tile(apply_once(members[0]), (4, 1)))


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("base", [optax.sgd, optax.adam])
def test_meta_gradient_through_unrolled_updates(base):
    target = jnp.linspace(-1, 1, 20)

    def loss(params):
        return jnp.sum((params - target) ** 2)

    def unrolled(meta, update):
        params, rate = meta
        tx, dropout = base(rate), lrd_optax.learning_rate_dropout(0.5, key=0)
        state, keys = tx.init(params), dropout.init(params)
        for _ in range(5):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            updates, keys = update(dropout, updates, keys)
            params = optax.apply_updates(params, updates)
        return loss(params)

    def by_hand(dropout, updates, keys):
        mask = mask_of(keys.rng_key, updates, 0.5)
        return updates * mask.astype(jnp.float32), dropout.update(updates, keys)[1]

    meta = jnp.zeros(20), 0.1
    ours = jax.jit(jax.grad(lambda m: unrolled(m, lambda d, u, s: d.update(u, s))))(
        meta
    )
    theirs = jax.jit(jax.grad(lambda m: unrolled(m, by_hand)))(meta)
    dense = jax.jit(jax.grad(lambda m: unrolled(m, lambda d, u, s: (u, s))))(meta)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6)
    assert not np.allclose(ours[1], dense[1], rtol=0.01)


def test_eager_update_is_one_call_for_the_whole_tree():
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)
    tree = [jnp.ones((3, n)) for n in range(1, 6)]
    state = tx.init(tree)
    tx.update(tree, state)
    with jax.log_compiles(), jax.no_tracing():
        tx.update(tree, state)  # nothing is traced or compiled a second time


def test_schedule_of_numbers_does_not_compile_for_each():
    tx = lrd_optax.learning_rate_dropout(lambda count: 0.5 + int(count) / 100, key=0)
    ones, state = jnp.ones(50), tx.init(None)
    _, state = tx.update(ones, state)
    with jax.no_tracing():
        for _ in range(3):
            out, state = tx.update(ones, state)
    before = state._replace(count=jnp.int32(4), rng_key=state.rng_key)
    mask = mask_of(before.rng_key, ones, 0.54)
    np.testing.assert_array_equal(tx.update(ones, before)[0], mask.astype(jnp.float32))
    assert out.sum() > 0


def test_leaves_on_different_devices_without_jit():
    devices = jax.devices("cpu")[:3]
    tree = [jnp.ones((4, 5)), jnp.ones(7), jnp.ones((4, 5))]
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)
    expected, after = tx.update(tree, tx.init(tree))
    apart = [jax.device_put(x, d) for x, d in zip(tree, devices, strict=True)]
    out, state = tx.update(apart, tx.init(apart))
    chex.assert_trees_all_equal(out, expected)
    chex.assert_trees_all_equal(state, after)
    assert [x.devices() for x in out] == [{d} for d in devices]


@pytest.mark.parametrize("text", ["n", "4*n, m", "3, n, m", "n, 1, m", "2, 3"])
def test_export_with_symbolic_shapes_for_all_platforms(text):
    shape = export.symbolic_shape(text)
    tx = lrd_optax.learning_rate_dropout(0.5, key=0, unbiased=True)
    spec = [jax.ShapeDtypeStruct(shape, jnp.float32)]
    exported = export.export(
        jax.jit(tx.update), platforms=("cpu", "cuda", "rocm", "tpu")
    )(spec, jax.eval_shape(tx.init, spec))
    sizes = {"n": 5, "m": 7, "4*n": 20}
    updates = [jnp.ones([sizes.get(str(dim), dim) for dim in shape])]
    chex.assert_trees_all_equal(
        exported.call(updates, tx.init(updates)), tx.update(updates, tx.init(updates))
    )


@pytest.mark.usefixtures("optax_promotion")
def test_no_second_trace_and_state_of_equal_avals():
    tx = optax.chain(optax.adam(1e-3), lrd_optax.learning_rate_dropout(0.5, key=0))
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(params)
    avals = jax.tree.map(jax.typeof, state)
    for _ in range(3):
        _, state = update(params, state, params)
        assert jax.tree.map(jax.typeof, state) == avals
    assert jax.tree.map(jax.typeof, jax.eval_shape(tx.init, params)) == avals
    chex.clear_trace_counter()


def test_the_state_goes_on_whatever_is_kept():
    states = []
    for p in (0.5, 1, 1.0, jnp.float32(1)):
        tx = lrd_optax.learning_rate_dropout(p, key=0)
        states.append(tx.update(jnp.ones(3), tx.init(None))[1])
    chex.assert_trees_all_equal(*states)


def test_the_count_stays_at_the_largest_of_an_int32():
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)
    state = tx.init(None)._replace(count=jnp.int32(2**31 - 1))
    assert tx.update(jnp.ones(3), state)[1].count == 2**31 - 1


@pytest.mark.usefixtures("optax_promotion")
def test_saved_state_goes_on_with_the_same_masks(tmp_path):
    tx = optax.chain(optax.adam(1e-3), lrd_optax.learning_rate_dropout(0.5, key=0))
    ones = jnp.ones(100)
    _, state = tx.update(ones, tx.init(ones))
    leaves, treedef = jax.tree.flatten(state)
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as file:
        from_numpy = jax.tree.unflatten(treedef, list(file.values()))
    from_flax = serialization.from_bytes(tx.init(ones), serialization.to_bytes(state))
    from_pickle = pickle.loads(pickle.dumps(state))
    for restored in (from_numpy, from_flax, from_pickle):
        chex.assert_trees_all_equal(tx.update(ones, restored), tx.update(ones, state))


def test_gradient_through_an_update_is_the_masked_gradient():
    for kwargs, scale in (({}, 1), ({"unbiased": True}, 2)):
        grad = jax.grad(lambda u, kw=kwargs: apply_once(u, **kw).sum())(jnp.ones(50))
        mask = mask_of(0, grad, 0.5)
        np.testing.assert_array_equal(grad, mask.astype(jnp.float32) * scale)


def test_keep_prob_as_a_bfloat16_scalar():
    half = np.asarray(jnp.bfloat16(0.5))[()]
    np.testing.assert_array_equal(
        apply_once(jnp.ones(99), half), apply_once(jnp.ones(99))
    )


def test_unbiased_under_debug_nans():
    with jax.debug_nans(True):
        jitted_once(jnp.ones(9), jnp.float32(0), unbiased=True)


@pytest.mark.parametrize("p", [-1.0, 0.0, 1e-9, 2.0])
def test_unbiased_at_a_keep_prob_that_saturates(p):
    # Divided by the probability that the mask has, and with finite gradients.
    updates = jnp.ones(100)
    value, grad = jax.value_and_grad(
        lambda u: apply_once(u, jnp.float32(p), unbiased=True).sum()
    )(updates)
    assert value == (100 if p > 1 else 0)
    np.testing.assert_array_equal(grad, np.full(100, float(p > 1)))


def test_tree_nodes_that_hold_floats_only():
    @jax.tree_util.register_pytree_node_class
    class Box:
        def __init__(self, value):
            assert jnp.issubdtype(jnp.result_type(value), jnp.floating)
            self.value = value

        def tree_flatten(self):
            return (self.value,), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    for unbiased in (False, True):
        out = apply_once({"box": Box(jnp.ones(9))}, unbiased=unbiased)
        assert isinstance(out["box"], Box)
