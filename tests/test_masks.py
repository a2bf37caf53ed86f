"""The law of the masks, and which bits they are."""

import functools
import hashlib

import chex
import jax
import jax.numpy as jnp
import mask_reference
import numpy as np
import pytest
from drawn_masks import mask_of
from law import p_values, worst

import lrd_optax

STEPS, LEAVES, SHAPE = 16, 6, (64, 64)
SMALL = 6, 4  # steps and leaves that are enough for a planted bug to show


@functools.cache
def ours(p: float) -> np.ndarray:
    """Masks of `learning_rate_dropout` over steps, leaves, rows and columns."""
    tx = lrd_optax.learning_rate_dropout(p, key=0)
    ones = [jnp.ones(SHAPE)] * LEAVES

    def step(state, _):
        updates, state = tx.update(ones, state)
        return state, jnp.stack(updates) != 0

    return np.asarray(jax.lax.scan(step, tx.init(ones), length=STEPS)[1])


def bernoulli(p: float, size: tuple[int, int] = (STEPS, LEAVES)) -> np.ndarray:
    """Masks of the right law, from another generator."""
    return np.random.default_rng(0).random((*size, *SHAPE)) < p


def repeat(axis: int, every: int):
    """Plants a bug: along `axis`, each entry equals the one `every` before it."""

    def planted(p: float) -> np.ndarray:
        masks = np.moveaxis(bernoulli(p, SMALL), axis, 0).copy()
        masks[every] = masks[0]
        return np.moveaxis(masks, 0, axis)

    return planted


def fixed_count(p: float) -> np.ndarray:
    """Plants a bug: exactly the expected number is kept in each row."""
    rows = np.arange(SHAPE[1]) < round(p * SHAPE[1])
    rows = np.broadcast_to(rows, (*SMALL, *SHAPE))
    return np.random.default_rng(0).permuted(rows, axis=-1)


def one_for_two(p: float) -> np.ndarray:
    """Plants a bug: neighbours share a draw."""
    return np.repeat(bernoulli(p, SMALL)[..., ::2], 2, axis=-1)


WRONG = {
    "p too large": lambda p: bernoulli(p + 0.01, SMALL),
    "p too small": lambda p: bernoulli(p - 0.01, SMALL),
    "keeps what it should drop": lambda p: ~bernoulli(p if p != 0.5 else 0.51, SMALL),
    "one step repeats": repeat(0, 5),
    "one leaf repeats": repeat(1, 3),
    "one row repeats": repeat(2, 40),
    "one column repeats": repeat(3, 7),
    "neighbours share a draw": one_for_two,
    "count is fixed": fixed_count,
    "xor of coordinates": lambda p: (
        bernoulli(p, SMALL)[:, :, :1]
        ^ bernoulli(p, SMALL)[:, :, :, :1]
        ^ np.zeros(SHAPE, bool)
    ),
}


@pytest.mark.parametrize("p", [0.5, 0.1, 0.9])
@pytest.mark.parametrize("masks", [ours, bernoulli])
def test_right_law_is_accepted(masks, p):
    assert worst(masks(p), p) > 0.01, p_values(masks(p), p)


@pytest.mark.parametrize("p", [0.5, 0.1])
@pytest.mark.parametrize("bug", WRONG)
def test_wrong_law_is_rejected(bug, p):
    assert worst(WRONG[bug](p), p) < 1e-6


def test_seeds_are_independent():
    # 16 neighbouring seeds stand where the steps stood.
    leaves = [jax.ShapeDtypeStruct(SHAPE, jnp.float32)] * LEAVES
    masks = jax.vmap(lambda seed: jnp.stack(mask_of(seed, leaves, 0.5)))
    masks = np.asarray(jax.jit(masks)(jnp.arange(STEPS)))
    assert worst(masks, 0.5) > 0.01, p_values(masks, 0.5)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.3, 2**-24, 1e-50])
@pytest.mark.parametrize("seed", [0, 7, -1, 2**40 + 3])
def test_masks_are_those_of_the_reference(seed, p, x64):
    tree = [jnp.ones(shape) for shape in [(9, 5), (), (3, 1, 2, 4), (100,), (0, 2)]]
    tx = lrd_optax.learning_rate_dropout(p, key=seed)
    state = tx.init(tree)
    for step in range(4):
        words = mask_reference.step_words((seed >> 32 & 0xFFFFFFFF, seed % 2**32), step)
        updates, state = tx.update(tree, state)
        for leaf, update in enumerate(updates):
            expected = mask_reference.mask(words, leaf, update.shape, p)
            np.testing.assert_array_equal(update != 0, expected)


def overlapping(shift: int, **bug) -> np.ndarray:
    """Masks of two leaves where their parts of the Weyl sequence are the same.

    The draws of one are those of the other `shift` elements later, up to the place
    where the second word enters. Steps and the two leaves stand as law.py expects.
    """
    stride = pow(mask_reference.LEAF_STRIDE, -1, 2**32)
    other = (shift * mask_reference.ODD * stride) % 2**32  # its number
    index, masks = np.arange(4096), []
    for step in range(STEPS):
        words = mask_reference.step_words((0, 1), step)
        pair = [
            mask_reference.draws(words, leaf, start + index, **bug) < 2**31
            for leaf, start in ((0, shift), (other, 0))
        ]
        masks.append(np.stack(pair).reshape(2, 64, 64))
    return np.stack(masks)


@pytest.mark.parametrize("shift", [1, 2, 3, 64, 2**10, 2**16, 2**21, 2**31])
def test_leaves_that_overlap_are_independent(shift):
    assert worst(overlapping(shift), 0.5) > 0.01
    # Where the second word enters without the index they are equal.
    assert worst(overlapping(shift, second_alone=True), 0.5) < 1e-6


@pytest.mark.parametrize("other", [1, 2**16, 2**21, 2**22, 2**24, 2**31])
def test_leaves_with_numbers_far_apart_are_independent(other):
    # Trees of so many leaves do not fit here: the reference stands for them.
    masks = [
        [
            mask_reference.draws(words, leaf, np.arange(4096)) < 2**31
            for leaf in (0, other)
        ]
        for words in (mask_reference.step_words((0, 2), step) for step in range(STEPS))
    ]
    masks = np.array(masks).reshape(STEPS, 2, 64, 64)
    assert worst(masks, 0.5) > 0.01, p_values(masks, 0.5)


def test_leaves_of_one_shape_are_independent_however_many():
    ones = [jax.ShapeDtypeStruct((64,), jnp.float32)] * 1024
    masks = np.stack(mask_of(0, ones, 0.5))
    assert worst(masks.reshape(4, 4, 64, 64), 0.5) > 0.01


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_sample_mask_is_what_the_update_applies(p):
    tx = lrd_optax.learning_rate_dropout(p, key=3)
    updates = {"a": jnp.ones((7, 5)), "b": [jnp.ones(11), jnp.ones(())]}
    state = tx.init(updates)
    for _ in range(3):
        mask = lrd_optax.sample_mask(tx, state, updates)
        updates_out, state = tx.update(updates, state)
        chex.assert_trees_all_equal(jax.tree.map(lambda u: u != 0, updates_out), mask)


def test_mask_needs_shapes_only():
    shape = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    chex.assert_trees_all_equal(
        mask_of(0, shape, 0.5),
        mask_of(0, np.zeros((3, 4), np.float16), 0.5),
    )


def test_mask_depends_on_the_flat_index_alone():
    flat = mask_of(0, jnp.ones(2 * 3 * 5 * 7), 0.5)
    for shape in [(2, 3, 5, 7), (6, 35), (210, 1), (1, 210, 1)]:
        mask = mask_of(0, jnp.ones(shape), 0.5)
        np.testing.assert_array_equal(mask.reshape(-1), flat)


@pytest.mark.parametrize(("platform", "p"), [("tpu", 0.123), ("cuda", 0.321)])
def test_the_branches_of_other_platforms_draw_the_same_bits(platform, p, monkeypatch):
    """A CPU does not run them. Here each is taken in the place of the CPU's own."""

    def choose(*operands, default, **branches):
        return branches.get(platform, default)(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    # With these probabilities nothing else was traced, which would not be traced again.
    shapes = [(), (7,), (1, 5), (3, 4), (2, 1, 3, 5), (0, 3)]
    masks = mask_of(2**40 + 1, [jnp.ones(s) for s in shapes], p)
    words = mask_reference.step_words((2**8, 1), 0)
    for leaf, (mask, shape) in enumerate(zip(masks, shapes, strict=True)):
        expected = mask_reference.mask(words, leaf, shape, p)
        np.testing.assert_array_equal(mask, expected)


def test_appending_a_leaf_leaves_the_others_alone():
    leaves = [jnp.ones(50), jnp.ones(50)]
    few = mask_of(0, leaves, 0.5)
    more = mask_of(0, [*leaves, jnp.ones(50)], 0.5)
    chex.assert_trees_all_equal(few, more[:2])


@pytest.mark.parametrize("shape", [(2, 2**31), (2, 2, 2**31), (2, 2**31, 2**32)])
def test_slices_of_any_length(shape):
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    mask = jax.eval_shape(lambda: mask_of(0, leaf, 0.5))
    assert mask.shape == shape


def test_a_leaf_of_2_to_the_32_elements_is_one_slice():
    leaf = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)
    last = jax.jit(lambda: mask_of(0, leaf, 0.5)[-1])()
    drawn = mask_reference.draws(
        mask_reference.step_words((0, 0), 0), 0, np.arange(2**32 - 2**16, 2**32)
    )
    np.testing.assert_array_equal(last, drawn < 2**31)


def test_more_elements_than_32_bits_can_number():
    # 2**32 elements lie between the two pairs of rows that are compared: an index
    # cut off at 32 bits would give them the same draws.
    leaf = jax.ShapeDtypeStruct((2**17 + 2, 2**15), jnp.float32)

    @jax.jit
    def ends(key):
        mask = mask_of(key, leaf, 0.5)
        return mask[:2], mask[2**17 :]

    first, last = (np.asarray(x) for x in ends(np.uint32([0, 1])))
    words = mask_reference.step_words((0, 1), 0)
    for row, mask in [*enumerate(first), *enumerate(last, 2**17)]:
        own = mask_reference.slice_words(words, 0, row)
        drawn = mask_reference.draws(own, -1, np.arange(2**15))
        np.testing.assert_array_equal(mask, drawn < 2**31)
    both = np.concatenate([first, last]).reshape(4, 8, 64, 64)
    assert worst(both, 0.5) > 0.01


# Golden bits: a change of the draw must be noticed, it changes every run. They hold on
# the default device, so on a machine with a GPU they say that it draws as a CPU does.
GOLDEN = "111110010001101000011010000001000111000110010"
GOLDEN_20_STEPS = {
    0: "2df09ed76e6ea299",
    1: "44dbafe80de4a31b",
    -1: "8de456c09199928c",
    2**40 + 7: "d8d669043419830d",
}
TREE = {"a": (9, 5), "b": (3,), "c": (2, 3, 4), "d": (), "e": (1000,)}


def test_golden_bits(x64):
    tree = [jnp.ones((9, 5), jnp.float32), jnp.ones(3, jnp.bfloat16)]
    eager = mask_of(np.uint32([1, 2]), tree, 0.5)
    jitted = jax.jit(mask_of)(np.uint32([1, 2]), tree, 0.5)
    chex.assert_trees_all_equal(eager, jitted)
    assert "".join("01"[int(b)] for b in np.ravel(eager[0])) == GOLDEN


@pytest.mark.parametrize("run", ["eager", "jit", "scan"])
def test_golden_bits_of_20_steps(run, x64):
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)
    updates = {name: jnp.ones(shape) for name, shape in TREE.items()}

    def step(state, _):
        out, state = tx.update(updates, state)
        return state, jnp.concatenate([u.reshape(-1) for u in out.values()])

    jitted = jax.jit(step) if run == "jit" else step
    digests = {}
    for seed in GOLDEN_20_STEPS:
        state = lrd_optax.learning_rate_dropout(0.5, key=seed).init(updates)
        if run == "scan":
            history = jax.lax.scan(step, state, length=20)[1]
        else:
            history = []
            for _ in range(20):
                state, out = jitted(state, None)
                history.append(out)
        bits = np.packbits(np.asarray(history).astype(bool))
        digests[seed] = hashlib.sha256(bits).hexdigest()[:16]
    assert digests == GOLDEN_20_STEPS


@jax.jit
def mask_of_traced_keep_prob(p):
    return mask_of(5, jnp.ones(1000, jnp.float32), p)


@pytest.mark.parametrize("p", [0.1, 0.5, 1 / 3, 1 - 2**-24, 2**-24])
def test_keep_prob_draws_the_same_bits_in_any_form(p, x64):
    leaf = jnp.ones(1000, jnp.float32)
    number = mask_of(5, leaf, p)
    for array in (np.float64(p), np.float32(p), jnp.asarray(p, jnp.float32)):
        chex.assert_trees_all_equal(mask_of(5, leaf, array), number)
    chex.assert_trees_all_equal(mask_of_traced_keep_prob(p), number)


@pytest.mark.parametrize("p", [1 / 3, 0.7, 0.999])
def test_keep_prob_is_met(p):
    # Fine enough to notice a keep_prob that was rounded to bfloat16 on the way.
    size = 2**24
    leaf = jax.ShapeDtypeStruct((size,), jnp.float32)
    kept = jax.jit(lambda: mask_of(0, leaf, p).sum())()
    assert abs(int(kept) - p * size) < 4.5 * (p * (1 - p) * size) ** 0.5


def test_keep_prob_saturates():
    leaf = jax.ShapeDtypeStruct((2**20,), jnp.float32)
    draw = jax.jit(lambda p: mask_of(0, leaf, p).sum())
    assert draw(1.0) == draw(2.0) == draw(1e30) == draw(jnp.inf) == 2**20
    assert draw(0.0) == draw(-1.0) == draw(-jnp.inf) == draw(jnp.nan) == 0
    assert abs(draw(2.0**-16) - 16) < 5 * 4  # binomial(2**20, 2**-16)
