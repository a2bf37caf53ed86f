"""The transformer: its equations, masks and text, and the same step on any mesh."""

import collections
import math
import re
import sys
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import lrd_optax

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
try:
    import decoder
    import options
    import runs
    import text
    import transformer
finally:
    del sys.path[0]

pytestmark = pytest.mark.usefixtures("optax_promotion")

SHAPE = decoder.Shape(layers=2, features=16, heads=4, hidden=24)
BATCH, CONTEXT = 8, 12
DATA = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)
SCALES = ("attention_scale", "mlp_scale")


def on(data, tensor):
    return jax.set_mesh(transformer.make_mesh(data, tensor))


def abstract_params(shape):
    with on(1, 1):
        return jax.eval_shape(partial(decoder.initial_params, shape, 0))


@pytest.fixture
def one():
    with on(1, 1):
        yield


@pytest.fixture(scope="module")
def params():
    """Random parameters. Scales that are not 1 have a part in the logits."""
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: np.float32(0.3 * random.standard_normal(x.shape)),
        abstract_params(SHAPE),
    )


@pytest.fixture(scope="module")
def model():
    with on(1, 1):
        return transformer.make_model(SHAPE)


# The model.


def test_sizes():
    """The names are the sizes, to 10 %; README and docs may give these counts."""
    counts = {
        size: sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(shape)))
        for size, shape in decoder.SHAPES.items()
    }
    assert counts == {
        "1M": 918_656,
        "3M": 3_148_032,
        "10M": 10_818_432,
        "30M": 30_419_456,
        "100M": 103_302_144,
        "300M": 308_855_808,
        "1B": 1_028_737_024,
    }
    units = {"M": 10**6, "B": 10**9}
    for size, count in counts.items():
        assert abs(count / (int(size[:-1]) * units[size[-1]]) - 1) < 0.1


def reference(params, tokens):
    """Logits of one text in float64, with a loop over layers, heads and positions."""
    tree = jax.tree.map(np.float64, params)

    def normalized(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    def rotated(x):  # a pair of features is a complex number
        half = x.shape[-1] // 2
        angles = np.outer(np.arange(len(x)), 10_000.0 ** (-np.arange(half) / half))
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.concatenate([z.real, z.imag], axis=-1)

    x = tree["embedding"][tokens]
    for i in range(SHAPE.layers):
        layer = {name: leaf[i] for name, leaf in tree["layers"].items()}
        y = normalized(x, layer["attention_scale"])
        q, k, v = (
            np.split(y @ layer[n], SHAPE.heads, 1) for n in ("query", "key", "value")
        )
        heads = []
        for a, b, values in zip(map(rotated, q), map(rotated, k), v, strict=True):
            scores = a @ b.T / math.sqrt(b.shape[1])
            weights = [np.exp(row[: t + 1]) for t, row in enumerate(scores)]
            heads.append([w @ values[: len(w)] / w.sum() for w in weights])
        x = x + np.concatenate(heads, axis=1) @ layer["out"]
        y = normalized(x, layer["mlp_scale"])
        gate = y @ layer["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["up"])) @ layer["down"]
    return normalized(x, tree["final_scale"]) @ tree["head"]


def error_of(model, params):
    tokens = text.windows(DATA, np.arange(2), CONTEXT)
    logits = jax.jit(model)(params, tokens)
    expected = np.stack([reference(params, row) for row in tokens])
    return np.abs(logits - expected).max() / np.abs(expected).max()


def test_the_logits_are_those_of_the_equations(one, params, model):
    assert error_of(model, params) < 1e-5
    assert error_of(transformer.make_model(SHAPE, jnp.float32, True), params) < 1e-5
    assert 1e-5 < error_of(transformer.make_model(SHAPE, jnp.bfloat16), params) < 0.05


PLANTED = {
    "no rotation": ("rotate", lambda x: x),
    "no causality": ("attend", lambda q, k, v: jax.nn.dot_product_attention(q, k, v)),
    "no norm": ("normalize", lambda x, scale: x * scale[...][None, None]),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_the_check_rejects_other_models(one, params, monkeypatch, bug):
    monkeypatch.setattr(decoder, *PLANTED[bug])
    assert error_of(transformer.make_model(SHAPE), params) > 0.01


def test_a_byte_changes_no_logits_before_it(one, params, model):
    tokens = text.windows(DATA, np.array([0]), CONTEXT)
    other = tokens.copy()
    other[0, 7] ^= 1
    before, after = (np.asarray(jax.jit(model)(params, x))[0] for x in (tokens, other))
    np.testing.assert_array_equal(before[:7], after[:7])
    assert (before[7:] != after[7:]).any(axis=1).all()


@pytest.mark.slow
def test_remat_changes_no_gradient(one, params):
    tokens = text.windows(DATA, np.arange(2), CONTEXT)
    # JAX 0.7 needs them on the mesh to know how their gradient lies there.
    mesh = transformer.make_mesh(1, 1)
    params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))

    def gradient(remat):
        loss = partial(transformer.loss_of, transformer.make_model(SHAPE, remat=remat))
        return jax.jit(jax.grad(loss))(params, tokens)

    first, second = gradient(False), gradient(True)
    chex.assert_trees_all_close(first, second, rtol=1e-4, atol=1e-6)


# The methods.

DEEP = decoder.Shape(layers=16, features=8, heads=2, hidden=12)
MATRICES = ("down", "gate", "key", "out", "query", "up", "value")


def updates_of(tx, steps=1):
    """The last update for given gradients."""
    random = np.random.default_rng(0)
    tree = jax.tree.map(
        lambda x: np.float32(random.normal(size=x.shape)), abstract_params(DEEP)
    )
    state, update = jax.jit(tx.init)(tree), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(tree, state, tree)
    return jax.device_get(updates)


def layer_decisions(mask):
    """One decision for each layer, or an AssertionError."""
    flat = mask.reshape(DEEP.layers, -1)
    np.testing.assert_array_equal(flat.all(1), flat.any(1))
    assert 0 < flat[:, 0].sum() < DEEP.layers
    return flat[:, 0]


def test_a_tensor_mask_decides_for_each_layer_and_leaf(one):
    updates = updates_of(transformer.make_optimizer(0.1, "lrd", "tensor"))
    decisions = [layer_decisions(leaf != 0) for leaf in updates["layers"].values()]
    assert len({row.tobytes() for row in decisions}) == len(decisions) == 9
    assert 0.35 < np.mean(decisions) < 0.65
    for name in ("embedding", "final_scale", "head"):
        assert (updates[name] != 0).all() or not updates[name].any()
    naive = lrd_optax.learning_rate_dropout(0.5, key=0, granularity="tensor")
    for leaf in updates_of(optax.chain(optax.adam(0.1), naive))["layers"].values():
        with pytest.raises(AssertionError):  # the check sees one decision for all
            layer_decisions(leaf != 0)


def test_a_row_mask_decides_for_each_layer_and_row(one):
    updates = updates_of(transformer.make_optimizer(0.1, "lrd", "row"))
    for name, leaf in updates["layers"].items():
        mask = leaf != 0
        if name in SCALES:  # a vector is a row
            layer_decisions(mask)
            continue
        np.testing.assert_array_equal(mask.all(-1), mask.any(-1))
        rows = mask[..., 0]  # [layers, in]
        assert len({row.tobytes() for row in rows}) > DEEP.layers / 2
        assert 0.3 < rows.mean() < 0.7
    tokens = updates["embedding"] != 0
    np.testing.assert_array_equal(tokens.all(1), tokens.any(1))
    assert 0.4 < tokens[:, 0].mean() < 0.6


@pytest.mark.parametrize(("unbiased", "factor"), [(False, 1), (True, 2)])
def test_an_element_mask_keeps_the_step_of_adamw(one, unbiased, factor):
    chosen = {"mask": "element", "unbiased": unbiased}
    kept = updates_of(transformer.make_optimizer(0.1, "lrd", **chosen))
    dense = updates_of(transformer.make_optimizer(0.1))
    assert all((leaf != 0).all() for leaf in jax.tree.leaves(dense))
    expected = jax.tree.map(
        lambda x, y: np.where(x != 0, np.float32(factor) * y, 0), kept, dense
    )
    chex.assert_trees_all_close(kept, expected, rtol=1e-6)
    assert 0.48 < np.mean(kept["layers"]["up"] != 0) < 0.52


# Two programs may round differently.
assert_close = partial(np.testing.assert_allclose, rtol=1e-6)


def test_skipupdate_and_magma_mask_the_matrices_of_layers_alone(one):
    dense = updates_of(transformer.make_optimizer(0.1))
    skip = updates_of(transformer.make_optimizer(0.1, "skipupdate"))
    magma = updates_of(transformer.make_optimizer(0.1, "magma"))
    decisions = set()
    for name in MATRICES:
        kept = layer_decisions(skip["layers"][name] != 0)
        decisions.add(kept.tobytes())
        factor = np.float32(2) * kept[:, None, None]
        assert_close(skip["layers"][name], factor * dense["layers"][name])
        np.testing.assert_array_equal(kept, layer_decisions(magma["layers"][name] != 0))
        ratio = magma["layers"][name][kept] / dense["layers"][name][kept]
        assert ((ratio > 0.5) & (ratio < 0.63)).all()  # they agree at the first step
    assert len(decisions) == len(MATRICES)
    for tree in skip, magma:
        assert set(tree["layers"]) == {*MATRICES, *SCALES}
        for name in ("embedding", "final_scale", "head"):
            assert_close(tree[name], dense[name])
        for name in SCALES:
            assert_close(tree["layers"][name], dense["layers"][name])


def test_only_matrices_of_layers_decay_and_gradients_are_clipped(one):
    def updates(gradient, clip):
        tree = {"layers": {"up": jnp.ones((2, 3, 4)), "mlp_scale": jnp.ones((2, 3))}}
        tree |= {name: jnp.ones(3) for name in ("embedding", "final_scale", "head")}
        tx = transformer.make_optimizer(0.1, clip=clip)
        grads = jax.tree.map(lambda x: jnp.full_like(x, gradient), tree)
        return tx.update(grads, tx.init(tree), tree)[0]

    decayed = updates(0.0, 1.0)
    np.testing.assert_allclose(decayed["layers"]["up"], -0.1 * 0.1, rtol=1e-6)
    del decayed["layers"]["up"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(decayed))
    # Adam divides by the gradient plus 1e-8, so such small ones show what was clipped.
    long, whole, short = (
        updates(g, c)["head"] for g, c in ((1e-7, 1e-8), (1e-7, 0), (1e-7, 1))
    )
    assert abs(long[0]) < 0.5 * abs(whole[0])
    np.testing.assert_array_equal(whole, short)


@pytest.mark.parametrize("steps", [1, 2, 20, 1000])
def test_the_rate_rises_stays_and_falls_to_zero(steps):
    rate = np.asarray(transformer.learning_rate(0.5, steps)(jnp.arange(steps + 1)))
    rise = steps // 20
    assert (np.diff(rate[: rise + 1]) > 0).all()
    assert rate.max() == 0.5
    assert (rate[rise : steps - max(1, steps // 5)] == 0.5).all()
    assert rate[steps] == 0 < rate[steps - 1]


# Text.


def test_batches_depend_on_the_seed_and_the_step_alone():
    def batch(seed, step):
        return text.batch_of(DATA, seed, step, BATCH, CONTEXT)

    np.testing.assert_array_equal(batch(1, 2), batch(1, 2))
    for seed, step in (2, 1), (0, 2), (1, 3):
        assert (batch(1, 2) != batch(seed, step)).any()
    assert batch(0, 0).shape == (BATCH, CONTEXT + 1)
    data = np.arange(CONTEXT + 2, dtype=np.uint8)  # two windows
    starts = text.batch_of(data, 0, 0, 50, CONTEXT)[:, 0]
    assert set(starts) == {0, 1}
    held_out = text.validation_batches(DATA, 3, 4, CONTEXT)
    assert [x.shape for x in held_out] == [(4, CONTEXT + 1)] * 3
    assert (held_out[0][0] == DATA[: CONTEXT + 1]).all()
    assert (held_out[-1][-1] == DATA[-CONTEXT - 1 :]).all()


def test_the_text_is_a_file_or_a_folder_in_the_order_of_names(tmp_path):
    (tmp_path / "tests").mkdir()
    for name, content in {"u": b"3", "tests/x": b"2", "a": b"1", "v": b"\0"}.items():
        (tmp_path / name).write_bytes(content)
    assert text.read(tmp_path) == b"1\n2\n3"  # v is no text
    (tmp_path / "c").write_bytes(bytes(range(1, 101)) * 10)
    train, validation = text.load(tmp_path / "c", 8)
    assert (len(train), len(validation)) == (950, 50)
    assert validation.tobytes() == (bytes(range(1, 101)) * 10)[-50:]
    with pytest.raises(SystemExit, match="--text must have at least 2001 bytes with"):
        text.load(tmp_path / "c", 98)


def test_a_text_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SystemExit, match=r"^\S+/a cannot be read: Permission denied$"):
        text.load(tmp_path, 8)


def test_another_text_of_the_same_name_and_length_is_another_run(tmp_path, monkeypatch):
    plans, path = [], tmp_path / "text"
    monkeypatch.setattr(runs, "train", lambda plan, *rest: plans.append(plan))
    monkeypatch.setitem(decoder.SHAPES, "1M", SHAPE)
    words = f"transformer --text {path} --context 8 --steps 2 --mesh 1,1 --output"
    monkeypatch.setattr(sys, "argv", [*words.split(), str(tmp_path / "run")])
    for at in (None, 0, -1):
        data = bytearray(DATA[:1000])
        if at is not None:
            data[at] ^= 1
        path.write_bytes(data)
        with monkeypatch.context() as patch:
            patch.setattr(options, "end_on_ctrl_c", lambda **_: None)
            transformer.main()
    first, *others = (plan.config for plan in plans)
    for other in others:
        differing = {name for name in first if first[name] != other[name]}
        assert differing == {"checksum_of_text"}


def test_a_sample_has_no_codes_for_the_terminal():
    assert text.readable(b"a\x1b[2J\r\xff\n\tb" + "é".encode()) == "a�[2J��\n\tbé"


def test_pythons_own_library_is_long_and_without_packages():
    data = text.read(None)
    assert len(data) > 5_000_000
    assert b"class JSONDecoder" in data
    assert b"class CheckpointManager" not in data


@pytest.mark.slow
def test_the_sample_is_drawn_from_the_model_byte_by_byte(one, params, model):
    prompt, key, length = b"ab", jax.random.key(3), 14  # longer than the context
    params = params | {"head": 20 * params["head"]}  # so that the model decides
    write = transformer.make_writer(model, prompt, CONTEXT, length)
    written = np.asarray(write(params, key))
    np.testing.assert_array_equal(written, write(params, key))
    assert (written != write(params, jax.random.key(4))).any()
    logits_of, expected = jax.jit(model), list(prompt)
    for at in range(2, 2 + length):
        seen = expected[-CONTEXT:]
        padded = np.array([seen + [0] * (CONTEXT - len(seen))])
        logits = logits_of(params, padded)[0, len(seen) - 1]
        step_key = jax.random.fold_in(key, at)
        # A whole batch of one, as it is drawn.
        expected.append(int(jax.random.categorical(step_key, logits[None])[0]))
    assert written.tolist() == expected


# Meshes.

COLLECTIVES = (
    " (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    r"|collective-broadcast)(?:-start)?\("
)
MESHES = [(4, 2), (2, 4)]


def train(mesh, method, mask="element", steps=4):
    """Losses, and the parameters and masks of each step."""
    tx = transformer.make_optimizer(0.01, method, mask)
    split = jax.NamedSharding(mesh, transformer.BATCH)
    with jax.set_mesh(mesh):
        state = jax.jit(partial(transformer.initial_state, SHAPE, tx, 0))()
        step = transformer.make_step(transformer.make_model(SHAPE), tx)
        history = []
        for number in range(steps):
            before = jax.device_get(state["params"])
            tokens = text.batch_of(DATA, 0, number, BATCH, CONTEXT)
            state = step(state, jax.device_put(tokens, split))
            after, loss = jax.device_get((state["params"], state["sums"]["loss"]))
            moved = jax.tree.map(np.not_equal, before, after)
            history.append((loss, after, moved))
    return history, state


@pytest.fixture(scope="module")
def one_device():
    with jax.numpy_dtype_promotion("standard"):
        return train(transformer.make_mesh(1, 1), "lrd")[0]


@pytest.mark.slow
@pytest.mark.parametrize("axes", MESHES)
def test_the_step_of_one_device(axes, one_device):
    mesh = transformer.make_mesh(*axes)
    history, state = train(mesh, "lrd")
    for (loss, params, moved), (loss_1, params_1, moved_1) in zip(
        history, one_device, strict=True
    ):
        np.testing.assert_allclose(loss, loss_1, rtol=1e-5)
        chex.assert_trees_all_close(params, params_1, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_equal(moved, moved_1)
    assert 0.4 < np.mean(moved["layers"]["up"]) < 0.6
    up, layers = (
        state["params"]["layers"]["up"],
        state["opt_state"][1][0][0].mu["layers"],
    )
    assert up.sharding.shard_shape(up.shape) == (2, 16, 24 // axes[1])
    for name, leaf in state["params"]["layers"].items():
        assert layers[name].sharding == leaf.sharding


def bernoulli(updates, state, params=None):
    """The usual mask, whose bits are drawn as a whole and then split."""
    leaves, treedef = jax.tree.flatten(updates)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    kept = [
        jnp.where(jax.random.bernoulli(key, 0.5, leaf.shape), leaf, 0)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, kept), state


def program(tx):
    """The collectives of a step, and how often each whole array is in the program."""
    mesh = transformer.make_mesh(2, 4)
    lowered = transformer.lower_step(SHAPE, mesh, tx, BATCH, CONTEXT)
    hlo = lowered.compile().as_text()
    whole = {s: hlo.count(s) for s in ("[2,16,24]", "[2,24,16]", "[2,16,16]")}
    return collections.Counter(re.findall(COLLECTIVES, hlo)), whole


@pytest.fixture(scope="module")
def dense_program():
    with jax.numpy_dtype_promotion("standard"):
        return program(transformer.make_optimizer(0.01))


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["element", "row", "tensor"])
def test_a_mask_adds_no_communication_and_no_whole_array(mask, dense_program):
    dense, whole = dense_program
    assert dense["all-reduce"] >= 4  # a layer needs two, and its gradient two
    assert set(whole.values()) == {0}
    assert program(transformer.make_optimizer(0.01, "lrd", mask)) == (dense, whole)


@pytest.mark.slow
def test_the_check_of_the_program_can_fail(dense_program):
    dense, whole = dense_program
    magma, _ = program(transformer.make_optimizer(0.01, "magma"))
    assert magma.total() > dense.total()  # its sums are those of whole matrices
    bad = optax.GradientTransformation(lambda _: optax.EmptyState(), bernoulli)
    with jax.threefry_partitionable(False):
        tx = optax.chain(transformer.make_optimizer(0.01), bad)
        assert all(program(tx)[1][name] > n for name, n in whole.items())


@pytest.mark.slow
def test_no_device_holds_the_whole_parameters_when_they_are_made():
    tx = transformer.make_optimizer(0.01, "lrd")
    with on(2, 4):
        init = jax.jit(partial(transformer.initial_state, SHAPE, tx, 0)).lower()
    hlo = init.compile().as_text()
    assert "[2,16,6]" in hlo  # a device's part of `up`
    assert not re.search(r"\[2,16,24\]|\[2,24,16\]|\[2,16,16\]", hlo)


@pytest.mark.slow
def test_the_largest_step_is_lowered_without_an_array():
    mesh = transformer.make_mesh(2, 4)
    tx = transformer.make_optimizer(0.01, "lrd", "row")
    shape = decoder.SHAPES["1B"]
    with jax.set_mesh(mesh):
        state = transformer.abstract_state(shape, mesh, tx)
    up = state["params"]["layers"]["up"]
    assert up.sharding.shard_shape(up.shape) == (20, 2048, 5632 // 4)
    lowered = transformer.lower_step(shape, mesh, tx, 16, 1024, jnp.bfloat16, True)
    assert len(lowered.as_text()) < 10**6  # a constant would be in it
    chex.assert_trees_all_equal_shapes_and_dtypes(lowered.out_info, state)


# The whole program.


def result(folder):
    """The last checkpoint, and the records without times."""
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        items = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = manager.restore(6, args=items)["state"]
    records = runs.read_records(folder)
    names = ("step", "train_bits", "validation_bits", "sample")
    return state, [[record[name] for name in names] for record in records]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*[Ss]harding")  # read without what wrote it
def test_a_killed_run_ends_bit_for_bit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(options, "end_on_ctrl_c", lambda **_: None)
    monkeypatch.setitem(decoder.SHAPES, "1M", SHAPE)
    (tmp_path / "text").write_bytes(DATA.tobytes())
    words = f"transformer --text {tmp_path / 'text'} --mesh 2,2 --batch 4 --context 16 "
    words += "--steps 6 --report-every 3 --save-every 2 --output"
    alone, killed = tmp_path / "alone", tmp_path / "killed"

    def run(folder):
        monkeypatch.setattr(sys, "argv", [*words.split(), str(folder)])
        transformer.main()
        return capsys.readouterr().out

    def fail(data, seed, step, *size):
        """In the middle of the training, from which memory keeps nothing."""
        if step == 5:
            raise RuntimeError("killed")
        return batch_of(data, seed, step, *size)

    out, batch_of = run(alone), text.batch_of
    assert re.search(r"step 6 of 6: .*validation bits \d", out)
    assert f"Wrote {alone}/curves.png and records.jsonl" in out
    with monkeypatch.context() as patch:
        patch.setattr(text, "batch_of", fail)
        with pytest.raises(RuntimeError, match="killed"):
            run(killed)
    assert "resumed at step 4\n" in run(killed)
    expected = result(alone)
    chex.assert_trees_all_equal(result(killed), expected)
    assert [row[0] for row in expected[1]] == [3, 6]
    assert (alone / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("axes", "processes", "message"),
    [
        ("16,1", 1, "--mesh must have at most 8 devices, got 16,1"),
        ("4,1", 2, "--mesh must have all 8 devices of several processes, got 4,1"),
    ],
)
def test_a_mesh_that_does_not_fit(tmp_path, monkeypatch, axes, processes, message):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(transformer, "train", lambda args, mesh: None)
    monkeypatch.setattr(options, "end_on_ctrl_c", lambda **_: None)
    words = ["transformer", "--mesh", axes, "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=f"^{message}$"):
        transformer.main()


def test_options_have_the_sizes_of_the_models():
    assert list(options.SIZES) == list(decoder.SHAPES)
