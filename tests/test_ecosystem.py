"""Learning Rate Dropout inside what users of Flax, Equinox and Optax put around it.

One row each. `docs/ecosystem.md` holds the tables of them, written by

    python tests/test_ecosystem.py

Every row is also run with masks of columns, held and in cycles.
"""

import copy
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState
from jax.experimental import checkify

import lrd_optax

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parent.parent / "docs" / "ecosystem.md"
STEPS = 4


# The headings of the page.
FLAX = "Flax and Equinox"
OPTAX = "Wrappers and combinators of Optax"
SAVING = "Saving a state"
STATE = "Reading and changing a state"
JAX = "Under JAX: compiling, donating, debugging"


class Row(NamedTuple):
    heading: str
    check: Callable[..., None]
    holds: str


ROWS: dict[str, Row] = {}


def row(heading: str, name: str, holds: str):
    def add(check):
        ROWS[name] = Row(heading, check, holds)
        return check

    return add


def structured_dropout(keep_prob=0.5, *, key):
    """Learning Rate Dropout of columns, held for two steps, in cycles."""
    how = {"granularity": "column", "hold_steps": 2, "sampler": "cycle"}
    return lrd_optax.learning_rate_dropout(keep_prob, key=key, **how)


# What the rows share: a chain, parameters, gradients, and a plain loop to equal.


@functools.cache  # one object, so that the rows share the update that is compiled
def chain(dropout):
    return behind(optax.sgd(0.1, 0.9), dropout)


def behind(base, dropout):
    return optax.chain(base, dropout(0.5, key=0))


def params():
    return {"w": jnp.linspace(-1, 1, 60).reshape(12, 5), "b": jnp.ones(12)}


def grads(step):
    return jax.tree.map(lambda p: jnp.cos(p + step) + 0.1, params())


def steps(tx, state=None, start=0, stop=STEPS):
    """Parameters and state after each step of a plain loop."""
    at, state = params(), tx.init(params()) if state is None else state
    update = jax.jit(tx.update)
    for step in range(start, stop):
        updates, state = update(grads(step), state, at)
        at = optax.apply_updates(at, updates)
    return at, state


def same(a, b):
    chex.assert_trees_all_equal(a, b)


def goes_on(tx, state, restored):
    """A restored state goes on as the one that was saved."""
    same(steps(tx, restored, 2)[0], steps(tx, state, 2)[0])
    with pytest.raises(AssertionError):
        same(steps(tx, tx.init(params()), 2)[0], steps(tx, state, 2)[0])


@row(FLAX, "`flax.nnx.Optimizer`", "equals a plain loop, also under `nnx.jit`")
@jax.numpy_rank_promotion("allow")  # nnx.Linear adds its bias so
def nnx_optimizer(dropout):
    tx = chain(dropout)
    model = nnx.Linear(12, 5, rngs=nnx.Rngs(0))
    model.kernel[...], model.bias[...] = params()["w"], jnp.zeros(5)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda m: m(x).sum())(model))

    at = {"bias": jnp.zeros(5), "kernel": params()["w"]}
    state, update = tx.init(at), jax.jit(tx.update)
    for i in range(STEPS):
        x = jnp.cos(jnp.arange(24.0).reshape(2, 12) + i)
        step(model, optimizer, x)
        slope = jax.grad(lambda p, x=x: (x @ p["kernel"] + p["bias"]).sum())(at)
        updates, state = update(slope, state, at)
        at = optax.apply_updates(at, updates)
    np.testing.assert_allclose(model.kernel[...], at["kernel"], rtol=1e-6)


@row(FLAX, "Flax Linen `TrainState`", "equals a plain loop, under `jit`")
def linen_train_state(dropout):
    tx = chain(dropout)
    state = TrainState.create(apply_fn=linen.Dense(5).apply, params=params(), tx=tx)
    step = jax.jit(lambda state, g: state.apply_gradients(grads=g))
    for i in range(STEPS):
        state = step(state, grads(i))
    same(state.params, steps(tx)[0])


class Module(equinox.Module):
    """The parameters of the plain loop, in their order, and a leaf that is no array."""

    b: jax.Array
    w: jax.Array
    activation: Callable = jnp.tanh


def module_and_loss(scale=1.0):
    def loss(at, x):
        return jnp.sum(jnp.tanh(at["w"] @ x + at["b"]))

    at = jax.tree.map(lambda p: p * scale, params())
    return at, loss, Module(**at), lambda m, x: jnp.sum(m.activation(m.w @ x + m.b))


@row(
    FLAX,
    "`equinox.filter_jit`",
    "equals a plain loop, for a module with leaves that are no arrays",
)
def equinox_training(dropout):
    tx = chain(dropout)
    at, loss, module, module_loss = module_and_loss()

    @equinox.filter_jit
    def step(module, state, x):
        _, slope = equinox.filter_value_and_grad(module_loss)(module, x)
        arrays = equinox.filter(module, equinox.is_inexact_array)
        updates, state = tx.update(slope, state, arrays)
        return equinox.apply_updates(module, updates), state

    state = tx.init(equinox.filter(module, equinox.is_inexact_array))
    plain_state, update = tx.init(at), jax.jit(tx.update)
    for i in range(STEPS):
        x = jnp.cos(jnp.arange(5.0) + i)
        module, state = step(module, state, x)
        updates, plain_state = update(jax.grad(loss)(at, x), plain_state, at)
        at = optax.apply_updates(at, updates)
    for name, value in at.items():
        np.testing.assert_allclose(getattr(module, name), value, 1e-6, 1e-6)


@row(
    FLAX,
    "`equinox.filter_vmap`",
    "members with seeds of their own equal those trained alone",
)
def equinox_ensemble(dropout):
    x = jnp.cos(jnp.arange(5.0))

    @equinox.filter_jit
    def train(seed, scale):
        tx = optax.chain(optax.sgd(0.1, 0.9), dropout(0.5, key=seed))
        _, _, module, loss = module_and_loss(scale)
        state = tx.init(equinox.filter(module, equinox.is_inexact_array))
        for _ in range(STEPS):
            slope = equinox.filter_grad(loss)(module, x)
            updates, state = tx.update(slope, state)
            module = equinox.apply_updates(module, updates)
        return module

    seeds, scales = jnp.arange(3), jnp.array([1.0, 1.0, 2.0])
    members = equinox.filter_vmap(train)(seeds, scales)
    for i in range(3):
        alone = train(seeds[i], scales[i])
        np.testing.assert_allclose(members.w[i], alone.w, 1e-6, 1e-6)
    assert (members.w[0] != members.w[1]).any()


@row(
    OPTAX,
    "`optax.MultiSteps`",
    "one mask for each real update, none for the steps in between",
)
def multi_steps(dropout):
    tx = chain(dropout)
    outer = optax.MultiSteps(tx, 3)
    at, state, update = params(), outer.init(params()), jax.jit(outer.update)
    for i in range(3 * STEPS):
        updates, state = update(grads(i // 3), state, at)
        at = optax.apply_updates(at, updates)
        assert (i % 3 == 2) == any(u.any() for u in jax.tree.leaves(updates))
    chex.assert_trees_all_close(at, steps(tx)[0], rtol=1e-5)
    assert state.inner_opt_state[-1].count == STEPS


@row(OPTAX, "`optax.apply_if_finite`", "a skipped step leaves the key as it was")
def apply_if_finite(dropout):
    tx = chain(dropout)
    outer = optax.apply_if_finite(tx, 5)
    _, state = steps(tx, stop=2)
    wrapped = outer.init(params())._replace(inner_state=state)
    bad = jax.tree.map(lambda g: g * jnp.nan, grads(0))
    updates, wrapped = jax.jit(outer.update)(bad, wrapped, params())
    assert not any(u.any() for u in jax.tree.leaves(updates))
    goes_on(tx, state, wrapped.inner_state)


@row(OPTAX, "`optax.masked`", "what is left out moves as without it")
def masked(dropout):
    mask = {"w": True, "b": False}
    tx = optax.chain(optax.sgd(0.1), optax.masked(dropout(0.5, key=0), mask))
    dense, thin = steps(optax.sgd(0.1), stop=1)[0], steps(tx, stop=1)[0]
    same(thin["b"], dense["b"])
    moved = thin["w"] != params()["w"]
    assert moved.any()
    assert not moved.all()


@row(OPTAX, "`optax.partition`", "groups with seeds of their own draw different masks")
def partition(dropout):
    tx = optax.partition(
        {
            "fast": optax.chain(optax.sgd(1.0), dropout(0.5, key=0)),
            "slow": optax.chain(optax.sgd(0.1), dropout(0.5, key=1)),
        },
        {"u": "fast", "v": "slow"},
    )
    ones = {"u": jnp.ones(100), "v": jnp.ones(100)}
    updates, _ = jax.jit(tx.update)(ones, tx.init(ones), ones)
    assert set(np.unique(updates["u"])) == {-1.0, 0.0}
    assert ((updates["u"] != 0) != (updates["v"] != 0)).sum() > 20


@row(
    OPTAX,
    "`optax.conditionally_mask`",
    "a step that is left out leaves the key as it was",
)
def conditionally_mask(dropout):
    tx = chain(dropout)
    outer = optax.conditionally_mask(tx, lambda step: step % 2 == 0)
    at, state, update = params(), outer.init(params()), jax.jit(outer.update)
    for i in range(2 * STEPS):
        updates, state = update(grads(i // 2), state, at)
        at = optax.apply_updates(at, updates)
    same(at, steps(tx)[0])


@row(
    OPTAX,
    "`optax.conditionally_transform`",
    "the plain optimizer while the condition is false: a late start",
)
def conditionally_transform(dropout):
    late = optax.conditionally_transform(dropout(0.5, key=0), lambda step: step >= 2)
    tx = optax.chain(optax.sgd(0.1), late)
    same(steps(tx, stop=2)[0], steps(optax.sgd(0.1), stop=2)[0])
    assert any(
        (a != b).any()
        for a, b in zip(
            jax.tree.leaves(steps(tx, stop=3)[0]),
            jax.tree.leaves(steps(optax.sgd(0.1), stop=3)[0]),
            strict=True,
        )
    )


@row(OPTAX, "`optax.lookahead`", "the fast parameters take the masked steps")
def lookahead(dropout):
    tx = chain(dropout)
    outer = optax.lookahead(tx, sync_period=3, slow_step_size=0.5)
    at = optax.LookaheadParams.init_synced(params())
    state, update = outer.init(at), jax.jit(outer.update)
    for i in range(2):
        updates, state = update(grads(i), state, at)
        at = optax.apply_updates(at, updates)
    same(at.fast, steps(tx, stop=2)[0])
    same(at.slow, params())


@row(OPTAX, "`optax.contrib.schedule_free`", "`z` takes the masked steps")
def schedule_free(dropout):
    tx = behind(optax.sgd(0.1), dropout)
    outer = optax.contrib.schedule_free(tx, learning_rate=0.1)
    state = outer.init(params())
    _, state = jax.jit(outer.update)(grads(0), state, params())
    same(state.z, steps(tx, stop=1)[0])


@row(OPTAX, "`optax.contrib.mechanize`", "stays finite, with one mask per step")
def mechanize(dropout):
    tx = optax.contrib.mechanize(chain(dropout))
    at, state = steps(tx)
    chex.assert_tree_all_finite(at)
    assert state.base_optimizer_state[-1].count == STEPS


@row(
    OPTAX,
    "`optax.contrib.sam`",
    "one mask for each outer step; its arithmetic on the state does no harm",
)
def sam(dropout):
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    tx = optax.contrib.sam(chain(dropout), adversary, sync_period=2)
    at, state = steps(tx, stop=2 * STEPS)
    chex.assert_tree_all_finite(at)
    assert state.opt_state[-1].count == STEPS


@row(
    OPTAX,
    "`optax.inject_hyperparams`",
    "a scheduled `keep_prob` equals the schedule given directly",
)
def inject_hyperparams(dropout):
    schedule = optax.linear_schedule(1.0, 0.25, 3)
    injected = optax.inject_hyperparams(dropout)(keep_prob=schedule, key=0)
    at, state = steps(optax.chain(optax.sgd(0.1), injected))
    same(at, steps(optax.chain(optax.sgd(0.1), dropout(schedule, key=0)))[0])
    np.testing.assert_allclose(state[-1].hyperparams["keep_prob"], 0.25, rtol=1e-6)


@row(OPTAX, "`optax.named_chain`", "equals `optax.chain`")
def named_chain(dropout):
    base = optax.sgd(0.1, 0.9)
    tx = optax.named_chain(("sgd", base), ("lrd", dropout(0.5, key=0)))
    same(steps(tx)[0], steps(chain(dropout))[0])


@row(
    OPTAX,
    "Unknown extra arguments",
    "are ignored, in a chain and with `optax.with_extra_args_support`",
)
def extra_args(dropout):
    tx = optax.with_extra_args_support(chain(dropout))
    plateau = optax.chain(
        optax.sgd(0.1), dropout(0.5, key=0), optax.contrib.reduce_on_plateau()
    )
    expected = steps(chain(dropout), stop=1)[0]
    for each in (tx, plateau, optax.chain(tx)):
        updates, _ = each.update(
            grads(0), each.init(params()), params(), value=1.0, unknown=None
        )
        chex.assert_trees_all_close(optax.apply_updates(params(), updates), expected)


@row(
    JAX,
    "Donated state, then `init` again",
    "the key that the caller holds is never deleted",
)
def donated(dropout):
    tx = dropout(0.5, key=jax.random.key(0))
    update = jax.jit(tx.update, donate_argnums=1)
    first = update(grads(0), tx.init(params()))[0]
    same(update(grads(0), tx.init(params()))[0], first)


@row(
    JAX,
    "One key object in two transformations, donated",
    "each holds a copy (and draws the same masks)",
)
def one_key_twice(dropout):
    key = jax.random.key(0)
    tx = optax.chain(dropout(0.5, key=key), dropout(0.5, key=key))
    update = jax.jit(tx.update, donate_argnums=1)
    same(
        update(grads(0), tx.init(params()))[0],
        dropout(0.5, key=0).update(grads(0), dropout(0.5, key=0).init(params()))[0],
    )


@row(
    JAX,
    "`jax.debug_key_reuse`",
    "nothing is reported, also when one key is used in two `init`",
)
def key_reuse(dropout):
    with jax.debug_key_reuse(True):
        tx = chain(lambda keep_prob, key: dropout(keep_prob, key=jax.random.key(key)))
        same(steps(tx), steps(tx))


@row(JAX, "`jax.debug_nans`", "nothing is reported")
def debug_nans(dropout):
    with jax.debug_nans(True):
        steps(chain(dropout))


@row(JAX, "`jax.experimental.checkify`", "no error, and the same updates")
def checkified(dropout):
    tx = chain(dropout)
    update = checkify.checkify(tx.update, errors=checkify.all_checks)
    error, (updates, _) = jax.jit(update)(grads(0), tx.init(params()), params())
    error.throw()
    chex.assert_trees_all_close(
        optax.apply_updates(params(), updates), steps(tx, stop=1)[0], rtol=1e-6
    )


@row(JAX, "`jax.eval_shape`", "shapes and dtypes of the state without making it")
def eval_shape(dropout):
    tx = chain(dropout)
    shapes = jax.eval_shape(tx.init, params())
    state = tx.init(params())
    assert jax.tree.map(lambda s: (s.shape, s.dtype), shapes) == jax.tree.map(
        lambda s: (s.shape, s.dtype), state
    )


@row(JAX, "A second step", "does not compile again")
def second_step(dropout):
    tx = chain(dropout)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(params())
    for i in range(3):
        _, state = update(grads(i), state, params())
    chex.clear_trace_counter()


@row(SAVING, "`pickle`", "a restored state goes on with the same masks")
def pickled(dropout, tmp_path):
    tx = chain(dropout)
    state = steps(tx, stop=2)[1]
    goes_on(tx, state, pickle.loads(pickle.dumps(state)))


@row(SAVING, "`copy.deepcopy`", "a copy of a state goes on with the same masks")
def deepcopied(dropout):
    tx = chain(dropout)
    state = steps(tx, stop=2)[1]
    goes_on(tx, state, copy.deepcopy(state))


@row(
    SAVING,
    "`np.savez`",
    "the leaves are plain arrays; loaded, they go on with the same masks",
)
def savez(dropout, tmp_path):
    tx = chain(dropout)
    state = steps(tx, stop=2)[1]
    leaves, treedef = jax.tree.flatten(state)
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as file:
        goes_on(tx, state, jax.tree.unflatten(treedef, list(file.values())))


@row(SAVING, "`flax.serialization`", "to bytes and to a state dict, and back")
def flax_serialization(dropout):
    tx = chain(dropout)
    state, fresh = steps(tx, stop=2)[1], tx.init(params())
    goes_on(tx, state, serialization.from_bytes(fresh, serialization.to_bytes(state)))
    as_dict = serialization.to_state_dict(state)
    goes_on(tx, state, serialization.from_state_dict(fresh, as_dict))


@row(SAVING, "`equinox.tree_serialise_leaves`", "to a file and back")
def equinox_serialise(dropout, tmp_path):
    tx = chain(dropout)
    state = steps(tx, stop=2)[1]
    equinox.tree_serialise_leaves(tmp_path / "state.eqx", state)
    like = tx.init(params())
    goes_on(tx, state, equinox.tree_deserialise_leaves(tmp_path / "state.eqx", like))


@row(SAVING, "orbax `StandardCheckpointer`", "to a folder and back")
def orbax_standard(dropout, tmp_path):
    tx = chain(dropout)
    state = steps(tx, stop=2)[1]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", tx.init(params()))
    goes_on(tx, state, restored)


@row(SAVING, "orbax `CheckpointManager`", "the latest of several, and back")
def orbax_manager(dropout, tmp_path):
    tx = chain(dropout)
    with ocp.CheckpointManager(tmp_path / "states") as manager:
        for stop in (1, 2):
            state = steps(tx, stop=stop)[1]
            manager.save(stop, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        args = ocp.args.StandardRestore(tx.init(params()))
        restored = manager.restore(manager.latest_step(), args=args)
    goes_on(tx, state, restored)


@row(
    STATE,
    "`optax.tree.get`",
    '`"rng_key"` is found; `"count"` is ambiguous, as in any chain of two counts',
)
def tree_get(dropout):
    state = steps(behind(optax.adam(0.1), dropout))[1]
    assert optax.tree.get(state, "rng_key") is state[-1].rng_key
    with pytest.raises(KeyError, match="multiple values"):
        optax.tree.get(state, "count")


@row(STATE, "`optax.tree.set`", "other words for `rng_key` reseed the run")
def tree_set(dropout):
    tx, other = chain(dropout), optax.chain(optax.sgd(0.1, 0.9), dropout(0.5, key=7))
    state = optax.tree.set(tx.init(params()), rng_key=np.uint32([0, 7]))
    same(steps(tx, state)[0], steps(other)[0])


@row(STATE, "`optax.tree.norm`", "of a state is a number")
def tree_norm(dropout):
    assert optax.tree.norm(steps(chain(dropout))[1]) > 0


@row(
    STATE,
    "`optax.tree.cast`",
    "casts the key too, and the next update says so (use `map_params`)",
)
def tree_cast(dropout):
    tx = chain(dropout)
    state = optax.tree.cast(steps(tx)[1], jnp.bfloat16)
    with pytest.raises(ValueError, match="rng_key must be uint32"):
        tx.update(grads(0), state, params())
    same(optax.tree.cast(tx.init(params()), None), tx.init(params()))


@row(STATE, "`optax.tree.map_params`", "maps the moments and leaves the key alone")
def tree_map_params(dropout):
    tx = chain(dropout)
    state = steps(tx, stop=2)[1]
    mapped = optax.tree.map_params(tx, lambda moment: moment * 2, state)
    assert mapped[-1] is not None
    assert (mapped[0][0].trace["w"] == 2 * state[0][0].trace["w"]).all()
    goes_on(dropout(0.5, key=0), state[-1], mapped[-1])


# Every optimizer that Optax exports as an alias.

ALIASES = sorted(
    name
    for name, made in vars(optax).items()
    if callable(made)
    and getattr(made, "__module__", "").endswith(".alias")
    and not name.startswith("_")
)
ARGUMENTS = {
    "noisy_sgd": {"learning_rate": 0.01, "key": 0},
    "polyak_sgd": {},
    "adadelta": {"learning_rate": 0.1},
    "adafactor": {"learning_rate": 0.01, "min_dim_size_to_factor": 4},
    # Its usual line search calls value_fn too, and takes four times as long to compile.
    "lbfgs": {"linesearch": optax.scale_by_backtracking_linesearch(5)},
}


def test_aliases_are_found():
    assert {"adam", "adamw", "sgd", "lbfgs", "polyak_sgd", "yogi"} < set(ALIASES)
    assert len(ALIASES) >= 25


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated")
@pytest.mark.parametrize("name", ALIASES)
def test_alias_with_keep_prob_1_is_dense(name):
    base = getattr(optax, name)(**ARGUMENTS.get(name, {"learning_rate": 0.01}))
    one = optax.chain(base, lrd_optax.learning_rate_dropout(1.0, key=0))
    half = optax.chain(base, lrd_optax.learning_rate_dropout(0.5, key=0))

    def loss(p):
        return jnp.sum(jnp.sin(p) ** 2)

    def step(tx, at, state):
        value, grad = jax.value_and_grad(loss)(at)
        updates, state = optax.with_extra_args_support(tx).update(
            grad, state, at, value=value, grad=grad, value_fn=loss
        )
        return optax.apply_updates(at, updates), state

    # In one program, because compiling is what takes the time here.
    all_three = base, one, half
    step_all = jax.jit(
        lambda run: [step(t, *r) for t, r in zip(all_three, run, strict=True)]
    )
    matrix = params()["w"]
    run = [(matrix, tx.init(matrix)) for tx in all_three]
    for _ in range(3):
        run = step_all(run)
    (dense, _), (kept, _), (thinned, _) = run
    same(kept, dense)
    chex.assert_tree_all_finite(thinned)
    with pytest.raises(AssertionError):
        same(thinned, dense)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(
    "dropout", [lrd_optax.learning_rate_dropout, structured_dropout]
)
def test_row(name, dropout, tmp_path):
    check = ROWS[name].check
    takes_path = "tmp_path" in check.__code__.co_varnames
    check(dropout, tmp_path) if takes_path else check(dropout)


def tables() -> str:
    parts = []
    for heading in (FLAX, OPTAX, SAVING, STATE, JAX):
        rows = [(name, row) for name, row in ROWS.items() if row.heading == heading]
        lines = [f"| {name} | {row.holds} |" for name, row in rows]
        parts += [
            f"## {heading}",
            "\n".join(["| with | what holds |", "|---|---|", *lines]),
        ]
    return "\n\n".join(parts) + "\n"


def test_the_tables_in_the_docs_are_these():
    assert DOCS.read_text().endswith("\n\n" + tables())


if __name__ == "__main__":
    head = DOCS.read_text().partition("\n## ")[0].rstrip("\n")
    DOCS.write_text(head + "\n\n" + tables())
