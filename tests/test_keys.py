"""Every kind of key, and the words that it becomes."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrd_optax


def words(key):
    """The two words that a fresh state holds."""
    return lrd_optax.learning_rate_dropout(0.5, key=key).init(None).rng_key


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_int_seed_is_jax_random_key(seed, x64):
    typed = jax.random.key(np.uint32(seed), impl="threefry2x32")
    np.testing.assert_array_equal(words(seed), jax.random.key_data(typed))
    assert words(seed).dtype == jnp.uint32


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**32 + 5, 2**64 - 1])
def test_wide_seed_keeps_its_high_bits(seed, x64):
    expected = np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)
    np.testing.assert_array_equal(words(seed), expected)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("partitionable", [True, False])
def test_int_seed_ignores_the_configured_generator(impl, partitionable):
    tx = lrd_optax.learning_rate_dropout(0.5, key=7)
    ones = jnp.ones(100)
    expected = tx.update(ones, tx.init(ones))
    with jax.default_prng_impl(impl), jax.threefry_partitionable(partitionable):
        chex.assert_trees_all_equal(tx.update(ones, tx.init(ones)), expected)


@pytest.mark.parametrize(
    "key",
    [
        3,
        np.int64(3),
        np.array(3, np.int16),
        np.uint32(3),
        jnp.int32(3),
        np.uint32([0, 3]),
        jnp.array([0, 3], jnp.uint32),
    ],
    ids=repr,
)
def test_one_seed_in_any_form(key):
    np.testing.assert_array_equal(words(key), [0, 3])
    np.testing.assert_array_equal(jax.jit(words)(key), [0, 3])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_and_legacy_keys_of_any_implementation(impl):
    typed = jax.random.key(3, impl=impl)
    legacy = jax.random.PRNGKey(3, impl=impl)
    expected = words(typed)
    assert expected.shape == (2,)
    np.testing.assert_array_equal(words(legacy), expected)
    np.testing.assert_array_equal(jax.jit(words)(typed), expected)
    assert not np.array_equal(words(jax.random.key(4, impl=impl)), expected)
    if impl == "threefry2x32":
        np.testing.assert_array_equal(expected, jax.random.key_data(typed))


def test_every_word_of_a_wide_key_counts():
    key = np.uint32([1, 2, 3, 4])
    for i in range(4):
        other = key.copy()
        other[i] += 1
        assert not np.array_equal(words(other), words(key))


@pytest.mark.parametrize("seed", [3, -3, 2**31 - 1])
def test_traced_seed_equals_the_int(seed, x64):
    for dtype in (jnp.int32, jnp.int64) if x64 else (jnp.int32,):
        traced = jax.jit(words)(jnp.asarray(seed, dtype))
        np.testing.assert_array_equal(traced, words(seed))


@pytest.mark.parametrize("x64", [True], indirect=True)
@pytest.mark.parametrize("seed", [2**40 + 3, -(2**40)])
def test_traced_seed_keeps_its_high_word(seed, x64):
    traced = jax.jit(words)(jnp.asarray(seed, jnp.int64))
    np.testing.assert_array_equal(traced, words(seed))


def test_vmap_over_seeds_gives_every_member_its_own_masks():
    ones = jnp.ones(100)

    def masked(key):
        tx = lrd_optax.learning_rate_dropout(0.5, key=key)
        return tx.update(ones, tx.init(ones))[0]

    seeds = jnp.arange(4)
    typed = jax.vmap(jax.random.key)(seeds)
    members = jax.vmap(masked)(seeds)
    assert len(np.unique(members, axis=0)) == 4
    np.testing.assert_array_equal(members, jax.vmap(masked)(typed))
    np.testing.assert_array_equal(members, [masked(int(s)) for s in seeds])


def test_key_is_threaded():
    ones = jnp.ones(100)
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)
    state = tx.init(ones)
    seen = []
    for step in range(5):
        assert state.count == step
        assert state.count.dtype == jnp.int32
        updates, state = tx.update(ones, state)
        seen.append((tuple(state.rng_key.tolist()), tuple(updates.tolist())))
    assert len({key for key, _ in seen}) == len({masks for _, masks in seen}) == 5
    assert seen[0][0] == (0x9E3779B9, 0xBB67AE85)


DERIVED = {
    "fold_in": lambda key: [jax.random.fold_in(key, i) for i in range(20)],
    "split": lambda key: list(jax.random.split(key, 20)),
    "split in a chain": lambda key: [
        key := jax.random.split(key)[0] for _ in range(20)
    ],
    "bits": lambda key: list(jax.random.bits(key, (20, 2))),
    "seeds": lambda key: list(range(1, 21)),
    "counting": lambda key: [np.uint32([0, 0]) + np.uint32(i) for i in range(1, 21)],
}


@jax.jit
@jax.vmap
def masks_of_50_steps(rng_key):
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)

    def step(state, _):
        updates, state = tx.update(jnp.ones(64), state)
        return state, updates

    state = tx.init(None)._replace(rng_key=rng_key)
    return jax.lax.scan(step, state, length=50)[1]


@pytest.mark.parametrize("how", DERIVED)
def test_keys_derived_from_one_another_never_meet(how):
    # Before, the state's next key was fold_in(key, 0): such a key drew each mask of
    # the first one step earlier.
    key = jax.random.key(0, impl="threefry2x32")
    keys = jnp.stack([words(key), *(words(k) for k in DERIVED[how](key))])
    drawn = np.asarray(masks_of_50_steps(keys)).reshape(-1, 64)
    assert len(np.unique(drawn, axis=0)) == 21 * 50


def test_caller_keeps_the_key():
    # A state that shared the caller's buffer would delete it when it is donated.
    for key in (jax.random.key(0), jax.random.PRNGKey(0), jnp.int32(0)):
        tx = lrd_optax.learning_rate_dropout(0.5, key=key)
        update = jax.jit(tx.update, donate_argnums=1)
        first = update(jnp.ones(9), tx.init(None))[0]
        chex.assert_trees_all_equal(update(jnp.ones(9), tx.init(None))[0], first)
        assert not key.is_deleted()


def test_one_key_object_in_two_transforms_donated():
    key = jax.random.key(0)
    tx = [lrd_optax.learning_rate_dropout(0.5, key=key) for _ in range(2)]
    states = [t.init(None) for t in tx]
    update = jax.jit(
        lambda u, s: [t.update(u, x) for t, x in zip(tx, s, strict=True)],
        donate_argnums=1,
    )
    (first, _), (second, _) = update(jnp.ones(9), states)
    chex.assert_trees_all_equal(first, second)  # equal keys, equal masks


def test_nothing_is_made_before_init():
    # The number of CPU devices can be set only until the backend starts.
    code = """
import jax, lrd_optax
tx = lrd_optax.learning_rate_dropout(0.5, key=0)
jax.config.update("jax_num_cpu_devices", 2)
assert jax.device_count() == 2
tx.init(None)
try:
    jax.config.update("jax_num_cpu_devices", 3)
except RuntimeError:
    print("backend started by init")
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"JAX_PLATFORMS": "cpu"},
    )
    assert run.stdout == "backend started by init\n", run.stderr
