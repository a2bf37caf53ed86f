"""Wrong calls, and the exact sentence that each must give.

And values that are known at run time only, which cannot raise: what they do.
"""

from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn_masks import mask_of
from flax import nnx

import lrd_optax

ONES = np.ones(3, np.float32)
NUMBER = "keep_prob must be a finite number above 0 and of at most 1, got"
KEY = "key must be an int, a jax.random key, or a legacy uint32 key"
RULE_UPDATES = "updates must be arrays of numbers, got a leaf of"
GRANULARITY = (
    "granularity must be one of 'element', 'row', 'column', 'tensor' "
    "or a tuple such as (-1,)"
)
CYCLE = 'must be 1/n for a whole number n of at most 2**24 if sampler is "cycle"'
SAMPLE_MASK = (
    "sample_mask takes (dropout, state, tree), where dropout is what "
    "learning_rate_dropout returns"
)
RULE_STATE = "state must be the LearningRateDropoutState that init returns, got"
RULE_HELD = (
    "state must be, or hold, the LearningRateDropoutState that init returns, as the "
    "state of a chain or optimizer.opt_state in Flax NNX, got"
)


def make(keep_prob=0.5, key=0, **kwargs):
    return lrd_optax.learning_rate_dropout(keep_prob, key=key, **kwargs)


def update(updates=ONES, state=None, **kwargs):
    tx = make(**kwargs)
    return tx.update(updates, tx.init(updates) if state is None else state)


def state(**changes):
    return make().init(ONES)._replace(**changes)


BAD_KEEP_PROBS = {
    "zero": (0, ValueError, f"{NUMBER} 0"),
    "zero as a float": (0.0, ValueError, f"{NUMBER} 0.0"),
    "negative": (-0.5, ValueError, f"{NUMBER} -0.5"),
    "above one": (1.5, ValueError, f"{NUMBER} 1.5"),
    "a percentage": (50, ValueError, f"{NUMBER} 50"),
    "nan": (float("nan"), ValueError, f"{NUMBER} nan"),
    "infinite": (float("inf"), ValueError, f"{NUMBER} inf"),
    "numpy number": (np.float64(2), ValueError, f"{NUMBER} 2.0"),
    "numpy array": (np.array(1.5), ValueError, f"{NUMBER} 1.5"),
    "huge": (10**400, ValueError, f"{NUMBER} {10**400}"),
    "fraction": (Fraction(1, 2), TypeError, f"{NUMBER} Fraction(1, 2)"),
    "string": ("0.5", TypeError, f"{NUMBER} '0.5'"),
    "none": (None, TypeError, f"{NUMBER} None"),
    "bool": (True, TypeError, f"{NUMBER} True"),
    "complex": (0.5j, TypeError, f"{NUMBER} 0.5j"),
    "empty list": ([], TypeError, f"{NUMBER} []"),
    "vector": (np.ones(3), ValueError, "keep_prob must be a scalar, got shape (3,)"),
    "bool array": (np.array(True), TypeError, f"{NUMBER} a scalar of dtype bool"),
    "numpy bool": (np.True_, TypeError, f"{NUMBER} a scalar of dtype bool"),
    "numpy complex": (
        np.complex64(0.5),
        TypeError,
        f"{NUMBER} a scalar of dtype complex64",
    ),
}


@pytest.mark.parametrize("case", BAD_KEEP_PROBS)
def test_bad_keep_prob(case):
    value, error, message = BAD_KEEP_PROBS[case]
    raises(error, message, lambda: make(value))
    message = (
        f"the value of the keep_prob schedule {message.removeprefix('keep_prob ')}"
    )
    raises(error, message, lambda: update(keep_prob=lambda count: value))
    raises(error, message, lambda: jax.jit(lambda: update(keep_prob=lambda _: value))())


BAD_KEYS = {
    "none": (None, TypeError, f"{KEY}, got None"),
    "bool": (True, TypeError, f"{KEY}, got True"),
    "numpy bool": (np.bool_(True), TypeError, f"{KEY}, got np.True_"),
    "float": (1.0, TypeError, f"{KEY}, got 1.0"),
    "numpy float": (np.float32(1), TypeError, f"{KEY}, got np.float32(1.0)"),
    "string": ("0", TypeError, f"{KEY}, got '0'"),
    "list": ([0, 1], TypeError, f"{KEY}, got [0, 1]"),
    "float array": (ONES[:2], TypeError, f"{KEY}, got an array of dtype float32"),
    "int array": (
        np.zeros(2, np.int32),
        TypeError,
        f"{KEY}, got an array of dtype int32",
    ),
    "float scalar": (
        np.zeros(()),
        TypeError,
        f"{KEY}, got a scalar of dtype float64",
    ),
    "bool scalar": (np.array(True), TypeError, f"{KEY}, got a scalar of dtype bool"),
    "3 words": (
        np.zeros(3, np.uint32),
        ValueError,
        f"{KEY} of shape (2,), got shape (3,)",
    ),
    "2 legacy keys": (
        np.zeros((2, 2), np.uint32),
        ValueError,
        f"{KEY} of shape (2,), got shape (2, 2)",
    ),
    "long": (tuple(range(100)), TypeError, f"{KEY}, got a tuple"),
    "too wide": (2**64, ValueError, f"key as an int must fit in 64 bits, got {2**64}"),
    "too negative": (
        -(2**63) - 1,
        ValueError,
        f"key as an int must fit in 64 bits, got {-(2**63) - 1}",
    ),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_bad_key(case):
    key, error, message = BAD_KEYS[case]
    raises(error, message, lambda: make(key=key))


# Not in the table: a key made there would start the backend at collection.
def test_several_typed_keys():
    keys = jax.random.split(jax.random.key(0), 3)
    message = "key must be one key, got keys of shape (3,)"
    raises(ValueError, message, lambda: make(key=keys))


@pytest.mark.parametrize("name", ["Rngs", "RngStream"])
def test_source_of_keys(name):
    """The message says how to get a key, and that one is taken."""
    rngs = nnx.Rngs(0)
    source = rngs if name == "Rngs" else rngs.params
    advice = ": call it, as rngs.params(), and pass what it returns"
    raises(TypeError, f"{KEY}, got a {name}{advice}", lambda: make(key=source))
    make(key=rngs.params())


def test_state_as_key():
    message = f"{KEY}, got a LearningRateDropoutState: pass its field rng_key"
    raises(TypeError, message, lambda: make(key=state()))
    make(key=state().rng_key)


@pytest.mark.usefixtures("optax_promotion")
def test_state_of_nnx():
    """The message says which state sample_mask takes, and that one is taken."""
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    tx = optax.chain(optax.sgd(0.1), make())
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    for wrong in (nnx.state(optimizer), nnx.state(optimizer)["opt_state"]):
        raises(
            TypeError,
            f"{RULE_HELD} a State",
            lambda wrong=wrong: lrd_optax.sample_mask(make(), wrong, params),
        )
    mask = lrd_optax.sample_mask(make(), optimizer.opt_state, params)
    expected = lrd_optax.sample_mask(make(), make().init(None), params)
    chex.assert_trees_all_equal(mask, expected)
    raises(
        TypeError,
        f"{SAMPLE_MASK}, got an Optimizer for it",
        lambda: lrd_optax.sample_mask(optimizer, optimizer.opt_state, params),
    )


@pytest.mark.usefixtures("optax_promotion")
def test_schedules_of_nnx():
    """The count is a variable of Flax there, which a schedule cannot compare."""
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    dropout = make(lambda step: jnp.where(step < 10, 0.5, 1.0))
    tx = optax.chain(optax.sgd(0.1), dropout)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    mask = lrd_optax.sample_mask(dropout, optimizer.opt_state, params)
    chex.assert_trees_all_equal(
        mask, lrd_optax.sample_mask(make(), optimizer.opt_state, params)
    )


BAD_CALLS = {
    "key is missing": (
        lambda: lrd_optax.learning_rate_dropout(0.5),
        TypeError,
        "learning_rate_dropout() missing 1 required keyword-only argument: 'key'",
    ),
    "key by position": (
        lambda: lrd_optax.learning_rate_dropout(0.5, 0),
        TypeError,
        "learning_rate_dropout() takes from 0 to 1 positional arguments "
        "but 2 were given",
    ),
    "sample_mask of a transformation without masks": (
        lambda: lrd_optax.sample_mask(optax.sgd(1.0), state(), ONES),
        TypeError,
        "dropout must be, or wrap, what learning_rate_dropout returns, "
        "got a transformation without it",
    ),
    "unbiased is a string": (
        lambda: make(unbiased="no"),
        TypeError,
        "unbiased must be True or False, got 'no'",
    ),
    "unbiased is a number": (
        lambda: make(unbiased=0.5),
        TypeError,
        "unbiased must be True or False, got 0.5",
    ),
    "keep_prob: a list in a dict": (
        lambda: make({"w": [0.5, 2]}),
        ValueError,
        f"{NUMBER} 2",
    ),
    "keep_prob: a schedule that returns a list": (
        lambda: update(keep_prob=lambda count: [0.5]),
        TypeError,
        f"the value of the keep_prob schedule {NUMBER[10:]} [0.5]",
    ),
    "keep_prob: no prefix": (
        lambda: update({"w": ONES, "b": ONES}, keep_prob={"w": 0.5}),
        ValueError,
        "keep_prob must be one value or a tree prefix of the updates, which are "
        "PyTreeDef({'b': *, 'w': *}), got PyTreeDef({'w': *})",
    ),
    "granularity: no prefix of a large tree": (
        lambda: update(dict.fromkeys("abcdefghijklm", ONES), granularity=["row"]),
        ValueError,
        "granularity must be one value or a tree prefix of the updates, which are "
        "PyTreeDef({'a': *, 'b': *, 'c': *, 'd': *, 'e': *, 'f': *, 'g': *, 'h': *, ' "
        "..., got PyTreeDef([*])",
    ),
    "granularity: another word": (
        lambda: make(granularity="layer"),
        ValueError,
        f"{GRANULARITY}, got 'layer'",
    ),
    "granularity: a number": (
        lambda: make(granularity=-1),
        ValueError,
        f"{GRANULARITY}, got -1",
    ),
    "granularity: none": (
        lambda: make(granularity=None),
        ValueError,
        f"{GRANULARITY}, got None",
    ),
    "granularity: a float among the axes": (
        lambda: make(granularity=(0, 1.5)),
        ValueError,
        f"{GRANULARITY}, got (0, 1.5)",
    ),
    "granularity: a function that returns another word": (
        lambda: update(granularity=lambda updates: "rows"),
        ValueError,
        f"{GRANULARITY}, got 'rows'",
    ),
    "hold_steps: 0": (
        lambda: make(hold_steps=0),
        ValueError,
        "hold_steps must be a whole number from 1 to 2**31 - 1, got 0",
    ),
    "hold_steps: a fraction": (
        lambda: make(hold_steps=1.5),
        ValueError,
        "hold_steps must be a whole number from 1 to 2**31 - 1, got 1.5",
    ),
    "sampler: another word": (
        lambda: make(sampler="uniform"),
        ValueError,
        "sampler must be one of 'bernoulli', 'cycle', got 'uniform'",
    ),
    "sampler: a cycle of no whole number": (
        lambda: make(0.3, sampler="cycle"),
        ValueError,
        f"keep_prob {CYCLE}, got 0.3, which is 1/3.33333",
    ),
    "sampler: a cycle that is too long": (
        lambda: make({"w": 0.5, "b": 1e-9}, sampler="cycle"),
        ValueError,
        f"keep_prob {CYCLE}, got 1e-09, which is 1/1e+09",
    ),
    "sampler: a number near 0": (
        lambda: make(5e-324, sampler="cycle"),
        ValueError,
        f"keep_prob {CYCLE}, got 5e-324, which is 1/inf",
    ),
    "sampler: a schedule of no whole number": (
        lambda: update(keep_prob=lambda count: 0.4, sampler="cycle"),
        ValueError,
        f"the value of the keep_prob schedule {CYCLE}, got 0.4, which is 1/2.5",
    ),
    "sample_mask: the old form": (
        lambda: lrd_optax.sample_mask(0, ONES, 0.5),
        TypeError,
        f"{SAMPLE_MASK}, got 0 for it",
    ),
    "sample_mask: the old form with words": (
        lambda: lrd_optax.sample_mask(state().rng_key, ONES, 0.5),
        TypeError,
        f"{SAMPLE_MASK}, got uint32 of shape (2,) for it",
    ),
    "sample_mask: the words in place of the state": (
        lambda: lrd_optax.sample_mask(make(), state().rng_key, ONES),
        TypeError,
        f"{RULE_HELD} uint32 of shape (2,)",
    ),
    "sample_mask: two of them in a chain": (
        lambda: lrd_optax.sample_mask(make(), (state(), [state()]), ONES),
        ValueError,
        "state must hold one LearningRateDropoutState, got 2: pass the one of this "
        "transformation",
    ),
    "sample_mask: inside of masked": (
        lambda: lrd_optax.sample_mask(make(), (optax.MaskedState(state()),), ONES),
        ValueError,
        "state must hold a LearningRateDropoutState outside of optax.masked: pass "
        "optax.masked(...) itself as dropout",
    ),
    "granularity: a function that reads a tracer": (
        lambda: jax.jit(
            make(granularity=lambda tree: "row" if tree.sum() else ()).update
        )(ONES, state()),
        TypeError,
        "the function granularity must be made of JAX operations, to be compiled: it "
        "asks for the value of an array that is traced, as float(...), int(...), if "
        "and NumPy do",
    ),
    "sample_mask: none in a chain": (
        lambda: lrd_optax.sample_mask(make(), (optax.EmptyState(),), ONES),
        TypeError,
        f"{RULE_HELD} (EmptyState(),)",
    ),
    "updates: a string": (
        lambda: update({"w": ONES, "name": "linear"}),
        TypeError,
        f"{RULE_UPDATES} type str",
    ),
    "updates: a bool": (lambda: update(True), TypeError, f"{RULE_UPDATES} type bool"),
    "updates: bools": (
        lambda: update(ONES > 0),
        TypeError,
        f"{RULE_UPDATES} dtype bool",
    ),
    "updates: a key": (
        lambda: update([jax.random.key(0)]),
        TypeError,
        f"{RULE_UPDATES} dtype key<fry>",
    ),
    "updates: objects": (
        lambda: update(np.array([None])),
        TypeError,
        f"{RULE_UPDATES} dtype object",
    ),
    "updates: a gradient of integers": (
        lambda: update(
            jax.grad(lambda x: 1.0, allow_int=True)(jnp.arange(3)), state=state()
        ),
        TypeError,
        f"{RULE_UPDATES} dtype float0",
    ),
    "updates: integers, unbiased": (
        lambda: update(np.arange(3), unbiased=True),
        TypeError,
        "unbiased needs float or complex updates, got int32",
    ),
    "a dimension of more than 2**32": (
        lambda: jax.eval_shape(
            lambda: mask_of(0, jax.ShapeDtypeStruct((3, 2**32 + 1), jnp.int8))
        ),
        ValueError,
        "a leaf must have at most 2**32 slices of at most 2**32 elements, "
        f"got shape (3, {2**32 + 1})",
    ),
    "more than 2**32 slices": (
        lambda: jax.eval_shape(
            lambda: mask_of(0, jax.ShapeDtypeStruct((2**33, 1), jnp.int8))
        ),
        ValueError,
        "a leaf must have at most 2**32 slices of at most 2**32 elements, "
        f"got shape ({2**33}, 1)",
    ),
    "mask: a string": (
        lambda: mask_of(0, {"name": "linear"}),
        TypeError,
        f"{RULE_UPDATES} type str",
    ),
    "updates: shapes": (
        lambda: update(jax.ShapeDtypeStruct((3,), jnp.float32)),
        TypeError,
        f"{RULE_UPDATES} type ShapeDtypeStruct",
    ),
    "updates: a dtype without a zero": (
        lambda: update(jnp.ones(3, jnp.float8_e8m0fnu)),
        TypeError,
        "updates must have a zero, got a leaf of dtype float8_e8m0fnu",
    ),
    "keep_prob: a schedule that reads a tracer": (
        lambda: jax.jit(make(lambda count: 1 / float(count + 1)).update)(ONES, state()),
        TypeError,
        "the keep_prob schedule must be made of JAX operations, to be compiled: it "
        "asks for the value of an array that is traced, as float(...), int(...), if "
        "and NumPy do",
    ),
    "updates: a string, and all is kept": (
        lambda: update("linear", keep_prob=1),
        TypeError,
        f"{RULE_UPDATES} type str",
    ),
    "state: of a chain": (
        lambda: update(state=(state(),)),
        TypeError,
        f"{RULE_STATE} tuple",
    ),
    "state: of another transformation": (
        lambda: update(state=optax.scale_by_adam().init(ONES)),
        TypeError,
        f"{RULE_STATE} ScaleByAdamState",
    ),
    "state: a dict": (
        lambda: update(state=state()._asdict()),
        TypeError,
        f"{RULE_STATE} dict",
    ),
    "state: of a stateless transformation": (
        lambda: update(state=optax.EmptyState()),
        TypeError,
        f"{RULE_STATE} EmptyState",
    ),
    "state: of an ensemble": (
        lambda: update(state=jax.vmap(lambda s: make(key=s).init(ONES))(jnp.arange(4))),
        ValueError,
        "state.rng_key must be uint32 of shape (2,), got uint32 of shape (4, 2)",
    ),
    "state: cast to float": (
        lambda: update(state=state(rng_key=np.ones(2, np.float32))),
        ValueError,
        "state.rng_key must be uint32 of shape (2,), got float32 of shape (2,)",
    ),
    "state: a typed key put in": (
        lambda: update(state=state(rng_key=jax.random.key(0))),
        ValueError,
        "state.rng_key must be uint32 of shape (2,), got key<fry> of shape ()",
    ),
    "state: an int put in": (
        lambda: update(state=state(rng_key=7)),
        ValueError,
        "state.rng_key must be uint32 of shape (2,), got 7",
    ),
    "state: a list put in": (
        lambda: update(state=state(rng_key=[0, 7])),
        ValueError,
        "state.rng_key must be uint32 of shape (2,), got [0, 7]",
    ),
    "state: no key": (
        lambda: update(state=state(rng_key=None)),
        ValueError,
        "state.rng_key must be uint32 of shape (2,), got None",
    ),
    "state: no count": (
        lambda: update(state=state(count=None)),
        ValueError,
        "state.count must be an integer scalar, got None",
    ),
    "state: counts of an ensemble": (
        lambda: update(state=state(count=np.zeros(3, np.int32))),
        ValueError,
        "state.count must be an integer scalar, got int32 of shape (3,)",
    ),
    "state: a float as count": (
        lambda: update(state=state(count=1.5)),
        ValueError,
        "state.count must be an integer scalar, got 1.5",
    ),
    "state: key of 4 words": (
        lambda: update(state=state(rng_key=np.zeros(4, np.uint32))),
        ValueError,
        "state.rng_key must be uint32 of shape (2,), got uint32 of shape (4,)",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_call(case):
    call, error, message = BAD_CALLS[case]
    raises(error, message, call)


def raises(error, message, call):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_there_are_enough():
    assert len(BAD_KEEP_PROBS) + len(BAD_KEYS) + len(BAD_CALLS) >= 40


@pytest.mark.usefixtures("optax_promotion")
def test_another_tree_than_at_init():
    # It keeps nothing a leaf, so a state goes with any tree; an optimizer that does
    # gives its own error, which it must not hide.
    trees = {"w": ONES}, {"w": ONES, "b": ONES}
    tx = make()
    chex.assert_trees_all_equal(
        tx.update(trees[1], tx.init(trees[0])), tx.update(trees[1], tx.init(trees[1]))
    )
    messages = []
    for tx in (optax.adam(0.1), optax.chain(optax.adam(0.1), make())):
        with pytest.raises(ValueError, match=r".+") as caught:
            tx.update(trees[1], tx.init(trees[0]))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("value", "kept"),
    [(np.nan, 0), (-0.5, 0), (-np.inf, 0), (0.0, 0), (1.5, 3), (np.inf, 3)],
)
def test_values_at_run_time_saturate(value, kept, jit):
    tx = make(lambda count: jnp.float32(value))
    out, _ = jit(tx.update)(ONES, tx.init(ONES))
    assert out.sum() == kept
    mask = jit(lambda p: mask_of(0, ONES, p))(jnp.float32(value))
    assert mask.sum() == kept


@pytest.mark.skipif(
    not hasattr(jax.typeof(1.0), "memory_space"), reason="types without memory spaces"
)
@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_updates_in_host_memory(run):
    device = jax.sharding.SingleDeviceSharding(
        jax.devices("cpu")[0], memory_kind="pinned_host"
    )
    updates = {"w": jax.device_put(jnp.ones(3), device)}
    tx = make()
    raises(
        ValueError,
        "updates must be in device memory, got a leaf in host memory: "
        "move it with jax.device_put",
        lambda: run(tx.update)(updates, tx.init(None)),
    )
