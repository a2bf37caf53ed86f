"""The masks of one device on eight: under any sharding by jit, and in shard_map."""

import itertools
import re

import chex
import jax
import jax.numpy as jnp
import mask_reference
import numpy as np
import optax
import pytest
from drawn_masks import mask_of
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from law import p_values, worst

import lrd_optax

pytestmark = pytest.mark.slow

STEPS = 20
SPECS = [P(), P("x"), P(None, "y"), P("x", "y"), P(("x", "y")), P(None, ("y", "x"))]
SHAPES = {"matrix": (24, 40), "odd": (7, 5, 3), "bias": (40,), "scalar": ()}
COLLECTIVES = (
    "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    "|collective-broadcast"
)


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    devices = jax.devices("cpu")[:8]
    types = (request.param,) * 2
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=types, devices=devices)
    with jax.set_mesh(mesh):
        yield mesh


def optimizer(keep_prob=0.5):
    dropout = lrd_optax.learning_rate_dropout(keep_prob, key=0)
    return optax.chain(optax.adam(0.01), dropout)


def place(tree, mesh=None, spec=None):
    """`tree` on one device, or on the mesh, its matrix sharded by `spec`."""
    if mesh is None:
        return jax.device_put(tree, jax.devices("cpu")[0])
    specs = {name: spec if name == "matrix" else P() for name in tree}
    return jax.tree.map(
        lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, specs
    )


def gradients(step):
    rng = np.random.default_rng(step)
    return {n: rng.standard_normal(s).astype("f") for n, s in SHAPES.items()}


def train(tx, mesh=None, spec=None):
    """Parameters and masks after each of 20 steps with given gradients."""
    params = place(gradients(0), mesh, spec)
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        masks = jax.tree.map(lambda u: u != 0, updates)
        return optax.apply_updates(params, updates), state, masks

    history = []
    for i in range(STEPS):
        grads = place(gradients(i + 1), mesh, spec)
        params, state, masks = step(params, state, grads)
        history.append(jax.device_get((params, masks)))
    return history, params, step.lower(params, state, grads).compile().as_text()


@pytest.fixture(scope="module")
def one_device():
    with jax.numpy_dtype_promotion("standard"):
        return train(optimizer())[0]


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_same_masks_and_parameters_without_communication(mesh, spec, one_device):
    history, params, hlo = train(optimizer(), mesh, spec)
    chex.assert_trees_all_equal(history, one_device)
    assert params["matrix"].sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
    assert not re.search(COLLECTIVES, hlo)
    assert ("[24,40]" in hlo) == (spec == P())


UNITS = {"row": (0,), "column": (1,), "tensor": (), "both": (0, 1)}
STRUCTURED = {
    "held": {"granularity": UNITS, "hold_steps": 2},
    "cycle": {"granularity": UNITS, "sampler": "cycle"},
}


def structured_updates(kind, sharding=None):
    """What is applied of constant updates in each of 6 steps, and the HLO of a step."""
    tx = lrd_optax.learning_rate_dropout(0.5, key=0, **STRUCTURED[kind])
    ones = {name: jnp.full((24, 40), 3.0) for name in UNITS}
    ones = jax.device_put(ones, sharding or jax.devices("cpu")[0])
    state, history = jax.jit(tx.init)(ones), []
    update = jax.jit(tx.update).lower(ones, state).compile()
    for _ in range(6):
        updates, state = update(ones, state)
        history.append(jax.device_get(updates))
        for leaf, unit in UNITS.items():  # shared where it should be
            others = tuple({0, 1} - set(unit))
            masks = history[-1][leaf] != 0
            np.testing.assert_array_equal(masks.any(others), masks.all(others))
    return history, updates, update.as_text()


@pytest.fixture(scope="module")
def structured_on_one_device():
    return {kind: structured_updates(kind)[0] for kind in STRUCTURED}


@pytest.mark.parametrize("spec", [P("x", "y"), P(None, "x"), P("y")], ids=str)
@pytest.mark.parametrize("kind", STRUCTURED)
def test_structured_masks_without_communication(
    mesh, kind, spec, structured_on_one_device
):
    sharding = NamedSharding(mesh, spec)
    history, updates, hlo = structured_updates(kind, sharding)
    chex.assert_trees_all_equal(history, structured_on_one_device[kind])
    assert all(u.sharding.is_equivalent_to(sharding, 2) for u in updates.values())
    assert not re.search(COLLECTIVES, hlo)
    assert "[24,40]" not in hlo


def bernoulli_dropout(update, state, params=None):
    """The usual way to write it, which the check above must catch."""
    leaves, treedef = jax.tree.flatten(update)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    masks = [
        jax.random.bernoulli(key, 0.5, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    kept = [jnp.where(m, u, 0) for m, u in zip(masks, leaves, strict=True)]
    return jax.tree.unflatten(treedef, kept), state


@pytest.mark.usefixtures("optax_promotion")
def test_the_checks_can_fail(mesh):
    bad = optax.GradientTransformation(lambda _: optax.EmptyState(), bernoulli_dropout)
    with jax.threefry_partitionable(False):
        hlo = train(optax.chain(optax.adam(0.01), bad), mesh, P("x", "y"))[2]
    if mesh.axis_types[0] == AxisType.Auto:
        assert re.search(COLLECTIVES, hlo)
    else:
        assert "[24,40]" in hlo


@pytest.mark.parametrize("spec", [P("x"), P("x", None, "y"), P(None, "y", "x")])
def test_ensemble_on_a_mesh(mesh, spec):
    if mesh.axis_types[0] == AxisType.Explicit and jax.__version_info__ < (0, 8):
        pytest.skip("JAX 0.7 cannot vmap over a sharded dimension of an Explicit mesh")

    def masked(seed, updates):
        tx = lrd_optax.learning_rate_dropout(0.5, key=seed)
        return tx.update(updates, tx.init(updates))[0]

    seeds, updates = jnp.arange(4), jnp.ones((4, 6, 8))
    expected = [masked(int(seed), updates[0]) for seed in seeds]
    seeds = jax.device_put(seeds, NamedSharding(mesh, P(*spec[:1])))
    updates = jax.device_put(updates, NamedSharding(mesh, spec))
    np.testing.assert_array_equal(jax.vmap(masked)(seeds, updates), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(masked))(seeds, updates), expected)


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_arrays_of_an_explicit_mesh_outside_of_set_mesh(jit):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    updates = jax.device_put(jnp.ones((8, 6)), NamedSharding(mesh, P("x", "y")))
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)
    update, state = jit(tx.update), tx.init(updates)
    # From the second step on the state lies on the mesh too.
    for _ in range(3):
        expected = mask_of(np.asarray(state.rng_key), np.ones((8, 6)), 0.5)
        mask = mask_of(state.rng_key, updates, 0.5)
        np.testing.assert_array_equal(mask, expected)
        out, state = update(updates, state)
        np.testing.assert_array_equal(out, expected)
        assert out.sharding.is_equivalent_to(updates.sharding, 2)
    expected = mask_of(0, np.ones((8, 6)), 0.5)
    state = tx.init(updates)
    whole = jax.device_put(state, NamedSharding(mesh, P()))
    parts = state._replace(
        rng_key=jax.device_put(state.rng_key, NamedSharding(mesh, P("y")))
    )
    for state in (whole, parts):
        np.testing.assert_array_equal(update(updates, state)[0], expected)
    copy = lrd_optax.learning_rate_dropout(0.5, key=whole.rng_key).init(updates)
    np.testing.assert_array_equal(copy.rng_key, whole.rng_key)


def test_shards_over_two_axes_are_those_of_the_reference():
    # The axes count in the order of their names: a set of them has none of its own.
    mesh = jax.make_mesh((4, 2), ("y", "x"), axis_types=(AxisType.Auto,) * 2)
    spec = P("y", "x")

    def masked(updates):
        return mask_of(0, updates, 0.5)

    shards = jax.shard_map(masked, mesh=mesh, in_specs=spec, out_specs=spec)
    mask = np.asarray(jax.jit(shards)(jnp.ones((8, 6)))).reshape(4, 2, 2, 3)
    words = mask_reference.step_words((0, 0), 0)
    for y, x in np.ndindex(4, 2):
        own = mask_reference.shard_words(words, (x, y))
        expected = mask_reference.mask(own, 0, (2, 3), 0.5)
        np.testing.assert_array_equal(mask[y, :, x], expected)


def test_leaves_on_meshes_of_different_order_without_jit():
    devices = np.array(jax.devices("cpu")[:4])
    tree = [
        jax.device_put(jnp.ones((8, 3)), NamedSharding(Mesh(order, ("x",)), P("x")))
        for order in (devices, devices[::-1])
    ]
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)
    out, _ = tx.update(tree, tx.init(tree))
    chex.assert_trees_all_equal(
        jax.device_get(out),
        jax.device_get(tx.update([np.ones((8, 3), "f")] * 2, tx.init(None))[0]),
    )


def test_key_that_was_sharded_with_the_rest_of_the_state(mesh):
    # Its two words are on two devices then: a rule for all arrays of a state does that.
    updates = jax.device_put(jnp.ones((8, 6)), NamedSharding(mesh, P("x", "y")))
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)
    expected, after = tx.update(np.ones((8, 6)), tx.init(None))
    state = tx.init(updates)
    words = jax.device_put(state.rng_key, NamedSharding(mesh, P("y")))
    state = state._replace(rng_key=words)
    for update in (tx.update, jax.jit(tx.update)):
        out, new = update(updates, state)
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(new.rng_key, after.rng_key)
        assert jax.typeof(new.rng_key) == jax.typeof(words)


def test_mask_of_shapes_with_shardings(mesh):
    expected = mask_of(0, np.ones((8, 6)), 0.5)
    for over in (mesh, mesh.abstract_mesh):
        sharding = NamedSharding(over, P("x", "y"))
        shape = jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=sharding)
        mask = jax.jit(lambda s=shape: mask_of(0, s, 0.5))()
        np.testing.assert_array_equal(mask, expected)
        if mesh.axis_types[0] == AxisType.Explicit:
            assert jax.typeof(mask).sharding.spec == P("x", "y")


def test_mesh_with_axes_of_two_types():
    types = (AxisType.Auto, AxisType.Explicit)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=types)
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)
    expected, _ = tx.update(np.ones((24, 40)), tx.init(None))
    with jax.set_mesh(mesh):
        spec = NamedSharding(mesh, P("x", "y"))
        updates = jax.device_put(jnp.ones((24, 40)), spec)
        step = jax.jit(tx.update).lower(updates, tx.init(None)).compile()
        np.testing.assert_array_equal(step(updates, tx.init(None))[0], expected)
        assert not re.search(COLLECTIVES, step.as_text())
        assert "[24,40]" not in step.as_text()


def test_dimension_that_the_mesh_does_not_divide():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, P("x", "y"))

    @jax.jit
    def masked(updates):
        updates = jax.lax.with_sharding_constraint(updates, sharding)
        return jax.lax.with_sharding_constraint(
            jnp.where(mask_of(0, updates, 0.5), updates, 0), sharding
        )

    expected = mask_of(0, jnp.ones((7, 5)), 0.5)
    np.testing.assert_array_equal(masked(jnp.ones((7, 5))), expected)


# Inside shard_map.

LOCAL = {"all": P(), "x": P("x"), "y": P("y"), "both": P("x", "y")}


@pytest.fixture
def manual():
    """A mesh to be used inside shard_map."""
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def shards(array):
    """The shard that each device of the mesh holds, as [x, y, ...]."""
    by_device = {s.device.id: np.asarray(s.data) for s in array.addressable_shards}
    mesh = array.sharding.mesh
    return np.stack([[by_device[d.id] for d in row] for row in mesh.devices])


def mapped(mesh, keep_prob=0.5, steps=2, **kwargs):
    """Masks of the last of some steps, drawn where the arrays are shards."""

    def body(updates):
        tx = lrd_optax.learning_rate_dropout(keep_prob, key=0)

        def step(state, _):
            masks = mask_of(state.rng_key, updates, keep_prob)
            out, state = tx.update(updates, state)
            return state, (out, masks)

        out, masks = jax.lax.scan(step, tx.init(updates), length=steps)[1]
        return jax.tree.map(lambda x: x[-1], (out, masks))

    return jax.jit(
        jax.shard_map(
            body, mesh=mesh, in_specs=(LOCAL,), out_specs=(LOCAL, LOCAL), **kwargs
        )
    )


def ones():
    return {name: jnp.ones((256, 64)) for name in LOCAL}


def test_shard_map_draws_apart_what_varies_and_alike_what_is_replicated(manual):
    updates, masks = mapped(manual)(ones())
    chex.assert_trees_all_equal(updates, jax.tree.map(np.float32, masks))
    masks = {name: shards(mask) for name, mask in masks.items()}
    for name, varies_x, varies_y in [
        ("all", False, False),
        ("x", True, False),
        ("y", False, True),
        ("both", True, True),
    ]:
        for axis, varies in enumerate((varies_x, varies_y)):
            first, second = np.take(masks[name], [0, 1], axis).swapaxes(0, axis)
            assert (first != second).any() == varies
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)
    _, state = tx.update(ones(), tx.init(None))
    outside = mask_of(state.rng_key, ones(), 0.5)
    np.testing.assert_array_equal(masks["all"][0, 0], outside["all"])


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_shards_are_independent(manual, p):
    # Steps and shards stand where law.py expects steps and leaves.
    spec = P(("x", "y"))

    def body(updates):
        tx = lrd_optax.learning_rate_dropout(p, key=1)

        def step(state, _):
            out, state = tx.update(updates, state)
            return state, out != 0

        return jax.lax.scan(step, tx.init(updates), length=16)[1]

    run = jax.shard_map(body, mesh=manual, in_specs=spec, out_specs=P(None, *spec))
    masks = np.array(jax.jit(run)(jnp.ones((8 * 64, 64)))).reshape(16, 8, 64, 64)
    assert worst(masks, p) > 0.01, p_values(masks, p)
    # Two shards alike, which is what a draw without axis_index gives, are noticed.
    masks[:, 5] = masks[:, 2]
    assert worst(masks, p) < 1e-6


@pytest.mark.parametrize(
    ("kind", "axes"), [("row", (0,)), ("column", (1,)), ("tensor", ())]
)
def test_in_shard_map_a_tensor_is_a_shard(manual, kind, axes):
    """JAX does not say along which of its own axes an array varies."""

    def body(updates):
        tx = lrd_optax.learning_rate_dropout(0.5, key=2, granularity=kind)

        def step(state, _):
            out, state = tx.update(updates, state)
            return state, out

        return jax.lax.scan(step, tx.init(updates), length=3)[1]

    stacked = {name: P(None, *spec) for name, spec in LOCAL.items()}
    run = jax.shard_map(body, mesh=manual, in_specs=(LOCAL,), out_specs=stacked)
    updates = jax.jit(run)({name: jnp.ones((32, 16)) for name in LOCAL})
    places = {"all": "", "x": "x", "y": "y", "both": "xy"}
    for leaf, name in enumerate(sorted(LOCAL)):
        for (x, y), step in itertools.product(np.ndindex(4, 2), range(3)):
            mine = shards(updates[name])[x, y][step]
            at = tuple({"x": x, "y": y}[axis] for axis in places[name])
            words = mask_reference.step_words((0, 2), step)
            words = mask_reference.shard_words(words, at)
            expected = mask_reference.mask(words, leaf, mine.shape, 0.5, axes)
            np.testing.assert_array_equal(mine != 0, expected)


def test_shard_map_does_not_communicate(manual):
    hlo = mapped(manual).lower(ones()).compile().as_text()
    assert not re.search(COLLECTIVES, hlo)


def test_shard_map_eager_equals_jit(manual):
    def body(updates):
        return mask_of(3, updates, 0.5)

    run = jax.shard_map(body, mesh=manual, in_specs=(LOCAL,), out_specs=LOCAL)
    small = {name: jnp.ones((8, 4)) for name in LOCAL}
    chex.assert_trees_all_equal(run(small), jax.jit(run)(small))


def test_shard_map_over_one_axis_of_two(mesh):
    # Manual over x and not over y: independent over x, global over y.
    def body(updates):
        return mask_of(0, updates, 0.5)

    def run(spec):
        one = jax.shard_map(body, axis_names={"x"}, in_specs=P("x"), out_specs=P("x"))
        local = jax.device_put(jnp.ones((8, 6)), NamedSharding(mesh, spec))
        return np.asarray(jax.jit(one)(local))

    np.testing.assert_array_equal(run(P("x")), run(P("x", "y")))
    assert len(np.unique(run(P("x")).reshape(4, -1), axis=0)) == 4


def test_shard_map_under_vmap(manual):
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)

    def body(updates):
        return tx.update(updates, tx.init(updates))[0]

    one = jax.shard_map(body, mesh=manual, in_specs=P("y"), out_specs=P("y"))
    members = jnp.ones((4, 8, 6))
    expected = np.tile(jax.jit(one)(members[0]), (4, 1, 1))
    for name in (None, "x"):
        out = jax.jit(jax.vmap(one, spmd_axis_name=name))(members)
        np.testing.assert_array_equal(out, expected)


def test_without_check_vma_shards_draw_alike_until_the_key_differs(manual):
    alike, _ = mapped(manual, check_vma=False)(ones())
    for array in jax.tree.leaves(alike):
        masks = shards(array).reshape(8, -1)
        assert (masks == masks[0]).all()

    def body(updates):
        key = jax.random.fold_in(jax.random.key(0), jax.lax.axis_index("x"))
        tx = lrd_optax.learning_rate_dropout(0.5, key=key)
        return tx.update(updates, tx.init(updates))[0]

    specs = {"in_specs": P("x"), "out_specs": P("x")}
    run = jax.shard_map(body, mesh=manual, check_vma=False, **specs)
    apart = shards(jax.jit(run)(jnp.ones((256, 64))))[:, 0].reshape(4, -1)
    assert len(np.unique(apart, axis=0)) == 4


def test_pmap_draws_alike_on_every_device():
    # Replicated training: the gradients are averaged, the parameters stay equal.
    tx = lrd_optax.learning_rate_dropout(0.5, key=0)
    updates = jax.pmap(lambda u: tx.update(u, tx.init(u))[0])(jnp.ones((8, 50)))
    expected = mask_of(0, jnp.ones(50), 0.5)
    np.testing.assert_array_equal(updates, np.tile(expected, (8, 1)))
