"""The example that widens a network: its parts, each on a case that can be checked."""

import gzip
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lrd_optax

pytestmark = pytest.mark.usefixtures("optax_promotion")

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
try:
    import grow
finally:
    del sys.path[0]

INPUTS, HIDDEN, FACTOR = 20, 5, 4
X = np.random.default_rng(0).normal(size=(64, INPUTS)).astype(np.float32)
LABELS = np.arange(64, dtype=np.int32) % 3


def make_model(seed=0, dtype=np.float32):
    """A network of random weights, its biases too."""
    random, model = np.random.default_rng(seed), grow.abstract(INPUTS, HIDDEN, 3)

    def draw(x):
        return jnp.asarray(random.normal(size=x.shape), dtype)

    nnx.update(model, jax.tree.map(draw, nnx.state(model, nnx.Param)))
    return model


@nnx.jit
def evaluate(model, x):
    return model(x)


def copies(model):
    """Incoming weights, biases and outgoing weights, with an axis of copies."""
    return (
        model.hidden.kernel[...].reshape(INPUTS, FACTOR, HIDDEN).swapaxes(0, 1),
        model.hidden.bias[...].reshape(FACTOR, HIDDEN),
        model.out.kernel[...].reshape(FACTOR, HIDDEN, 3),
    )


def trainer(make, scale=1.0):
    """Returns a function that trains copies: (steps with LRD, all steps) -> network."""
    graph, start = nnx.split(grow.widen(make_model(), FACTOR))
    start = jax.tree.map(lambda x: scale * x, start)

    @jax.jit
    def run(lrd_steps, steps):
        dropout = lrd_optax.learning_rate_dropout(
            lambda count: jnp.where(count < lrd_steps, 0.5, 1.0), key=0
        )
        tx = optax.chain(make(), dropout)

        def loss_of(params):
            return grow.cross_entropy(nnx.merge(graph, params)(X), LABELS)

        def step(_, carry):
            params, state = carry
            updates, state = tx.update(jax.grad(loss_of)(params), state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))[0]

    return lambda *args: nnx.merge(graph, run(*args))


@pytest.mark.parametrize("factor", [1, 3, 4])
def test_widening_keeps_the_function(x64, factor):
    dtype = np.float64 if x64 else np.float32
    for seed in range(3):
        model = make_model(seed, dtype)
        wide = grow.widen(model, factor)
        assert wide.hidden.out_features == wide.out.in_features == factor * HIDDEN
        assert wide.out.kernel[...].dtype == dtype
        expected, actual = (evaluate(m, X.astype(dtype)) for m in (model, wide))
        bound = (1e-14 if x64 else 4e-6) * np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


def test_the_narrow_network_is_left_alone():
    model, same = make_model(), make_model()
    grow.add_noise(grow.widen(model, FACTOR), HIDDEN, 1.0, jax.random.key(0))
    np.testing.assert_array_equal(evaluate(model, X), evaluate(same, X))


def test_copies_have_equal_gradients():
    def loss_of(model):
        return grow.cross_entropy(model(X), LABELS)

    gradient = nnx.jit(nnx.grad(loss_of))
    grads = gradient(grow.widen(make_model(), FACTOR))
    narrow = gradient(make_model())
    incoming, bias, outgoing = copies(grads)
    # Incoming gradients are shared out among the copies, outgoing ones are repeated.
    for part, expected in (
        (incoming, narrow.hidden.kernel[...] / FACTOR),
        (bias, narrow.hidden.bias[...] / FACTOR),
        (outgoing, narrow.out.kernel[...]),
    ):
        for copy in part:
            np.testing.assert_allclose(copy, expected, rtol=2e-4, atol=1e-6)


def test_lrd_gains_nothing_from_weights_that_are_all_zero():
    trained = trainer(lambda: optax.adam(0.1), scale=0.0)(20, 20)
    assert not np.asarray(trained.hidden.kernel[...]).any()
    assert not np.asarray(trained.out.kernel[...]).any()
    assert np.asarray(trained.out.bias[...]).all()  # it was trained


@pytest.mark.parametrize("make", [lambda: optax.sgd(0.5, 0.9), lambda: optax.adam(0.1)])
def test_dense_training_keeps_copies_and_lrd_separates_them(make):
    train = trainer(make)
    start, dense = train(0, 0), train(0, 20)
    moved = np.abs(dense.hidden.kernel[...] - start.hidden.kernel[...]).max()
    assert moved > 0.1
    for part in map(np.asarray, copies(dense)):
        np.testing.assert_allclose(part, part[:1].repeat(FACTOR, 0), atol=1e-4 * moved)
    assert grow.distinct_units(start) == grow.distinct_units(dense) == HIDDEN
    # One step of LRD is enough, and what is apart stays apart in dense training.
    kernel = np.asarray(train(1, 1).hidden.kernel[...])
    assert len(np.unique(kernel, axis=1).T) == FACTOR * HIDDEN
    assert grow.distinct_units(train(5, 20)) == FACTOR * HIDDEN


def test_without_steps_of_lrd_the_optimizer_is_the_plain_one():
    numbers = np.float32(0.1), np.float32(0.5)
    params = nnx.state(make_model(), nnx.Param)
    grads = jax.tree.map(lambda x: x + 1, params)
    updates = []
    for tx in (
        grow.make_optimizer("adam", grow.Run(None, 0, *numbers, np.int32(0))),
        grow.OPTIMIZERS["adam"](0.1),
        grow.make_optimizer("adam", grow.Run(None, 0, *numbers, np.int32(1))),
    ):
        updates.append(jax.tree.leaves(tx.update(grads, tx.init(params), params)[0]))
    none, plain, one = map(np.concatenate, ([x.ravel() for x in u] for u in updates))
    np.testing.assert_allclose(none, plain, rtol=1e-6)
    assert 0.2 < np.mean(one == 0) < 0.8


def test_noise_spares_the_first_copy_and_has_the_size_asked_for():
    wide = grow.widen(make_model(), FACTOR)
    before = copies(wide)
    spread = np.std(before[0])
    grow.add_noise(wide, HIDDEN, 0.5, jax.random.key(1))
    after = copies(wide)
    np.testing.assert_array_equal(after[0][0], before[0][0])
    size = np.std(after[0][1:] - before[0][1:]) / spread
    assert 0.35 < size < 0.65
    for x, y in zip(before[1:], after[1:], strict=True):
        np.testing.assert_array_equal(x, y)


T = grow.TOLERANCE


@pytest.mark.parametrize(
    ("columns", "biases", "expected"),
    [
        ([[1, 2], [1, 2], [1, 2]], [0, 0, 0], 1),
        ([[1, 2], [2, 1], [1, 2], [2, 1]], [0, 0, 0, 0], 2),
        ([[1, 2], [1, 2]], [0, 1], 2),  # they differ by the bias alone
        ([[1, 2], [1, 2 + T], [1, 2 - T]], [0, 0, 0], 1),  # the largest weight is 2
        ([[1, 2], [1, 2 + 3 * T]], [0, 0], 2),
        ([[1, 2], [1, 2 + 3 * T]], [9, 9], 1),  # and here it is 9
        ([[0, 0], [0, 0]], [0, 0], 1),
        ([[1, 2], [-1, -2]], [0, 0], 2),
    ],
)
def test_counts_distinct_units(columns, biases, expected):
    model = grow.abstract(2, len(biases), 3)
    model.hidden.kernel = nnx.Param(jnp.asarray(columns, np.float32).T)
    model.hidden.bias = nnx.Param(jnp.asarray(biases, np.float32))
    assert grow.distinct_units(model) == expected


def test_every_image_is_in_one_batch_of_an_epoch():
    orders = grow.batch_orders(0, images=23, batch=5, steps=10)
    assert orders.shape == (10, 5)
    for epoch in (orders[:4], orders[4:8]):
        assert len(np.unique(epoch)) == 20
    assert orders.max() == 22
    assert (orders[:4] != orders[4:8]).any()


def idx_bytes(values):
    values = np.asarray(values, np.uint8)
    sizes = np.asarray(values.shape, ">u4").tobytes()
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


def write_folder(folder, opener, images=4):
    random = np.random.default_rng(0)
    pixels = {p: random.integers(256, size=(images, 28, 28)) for p in ("train", "t10k")}
    for part, values in pixels.items():
        for name, content in (
            ("images-idx3-ubyte", values),
            ("labels-idx1-ubyte", np.arange(images)),
        ):
            suffix = ".gz" if opener is gzip.open else ""
            with opener(folder / f"{part}-{name}{suffix}", "wb") as file:
                file.write(idx_bytes(content))
    return pixels


@pytest.mark.parametrize("opener", [open, gzip.open], ids=["plain", "gz"])
def test_reads_a_folder(tmp_path, opener):
    pixels = write_folder(tmp_path, opener)
    data = grow.Data(*grow.load_folder(tmp_path))
    for part, x, y in (
        ("train", data.train_x, data.train_y),
        ("t10k", data.test_x, data.test_y),
    ):
        np.testing.assert_array_equal(y, np.arange(4))
        corner = x.reshape(4, 14, 14)[2, 3, 5]
        expected = pixels[part][2, 6:8, 10:12].mean() / 255
        np.testing.assert_allclose(corner, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "has neither {0} nor {0}.gz"),
        ("not zipped", "{0}.gz cannot be read: Not a gzipped file"),
        ("magic", "{0} is not an idx file of unsigned bytes in 1 dim"),
        ("empty", "{0} is not an idx file of unsigned bytes in 1 dim"),
        ("short", "{0} should hold 4 bytes, not 3"),
    ],
)
def test_wrong_files_are_named(tmp_path, how, message):
    write_folder(tmp_path, open)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    raw = path.read_bytes()
    broken = {"magic": b"\0\0\x0b" + raw[3:], "empty": b"", "short": raw[:-1]}
    path.write_bytes(broken.get(how, raw))
    if how == "not zipped":
        path.rename(f"{path}.gz")
    if how == "missing":
        path.unlink()
    with pytest.raises(ValueError, match=re.escape(message.format(path.name))):
        grow.load_folder(tmp_path)


def test_a_truncated_gz_file_is_named(tmp_path):
    write_folder(tmp_path, gzip.open)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        grow.load_folder(tmp_path)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1, 2, 10]], ids=["count", "class"])
def test_labels_must_fit(tmp_path, labels):
    write_folder(tmp_path, open)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(ValueError, match="train must be images of 28x28 pixels, each"):
        grow.load_folder(tmp_path)


def test_without_data_one_sentence_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(grow, "DEBIAN", tmp_path)
    message = "neither train-images-idx3-ubyte nor .*dataset-fashion-mnist"
    with pytest.raises(SystemExit, match=message):
        grow.load("fashion-mnist")


def test_too_few_images_are_refused(tmp_path):
    write_folder(tmp_path, open)
    with pytest.raises(SystemExit, match="--data must have 250 images or more, got"):
        grow.load(str(tmp_path))
