"""The training of a ResNet on CIFAR-10: each of its parts against a reference."""

import collections
import functools
import itertools
import json
import math
import re
import signal
import socket
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from compilation import running
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image
from scipy import stats

import lrd_optax

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
try:
    import cifar10
    import images
    import resnet
    import runs
finally:
    del sys.path[0]

pytestmark = pytest.mark.usefixtures("optax_promotion")

SIZE, BATCH, CLASSES = 8, 16, 3  # small, so that little is compiled
SHALLOW = (1, 1)  # the blocks of a network that is compiled sooner
resnet.BLOCKS[6] = SHALLOW
COLLECTIVES = r"(?:all|reduce|collective)-[a-z-]+(?=\()"


@pytest.fixture(scope="module")
def data():
    """67 images for training and 37 for the test, so the last batches are not full."""
    random = np.random.default_rng(0)
    arrays = []
    for number in (67, 37):
        labels = np.arange(number, dtype=np.int32) % CLASSES
        noise = random.integers(0, 100, (number, SIZE, SIZE, 3))
        arrays += [(noise + 50 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8), labels]
    return images.Data(*arrays, classes=["a", "b", "c"], source="made")


def options_of(folder=None, **changed):
    args = {
        **{"optimizer": "sgdm", "learning_rate": 0.1, "keep_prob": 0.5},
        **{"unbiased": False, "epochs": 2, "batch": BATCH, "depth": 6, "width": 4},
        **{"bfloat16": False, "seed": 0, "save_every": None, "output": folder},
    }
    return Namespace(**args | changed)


def mesh_of(number):
    devices = jax.devices()[:number]
    types = (AxisType.Auto,)
    return jax.make_mesh((number,), ("data",), axis_types=types, devices=devices)


# The model.


def shapes_of(**arguments):
    model = nnx.eval_shape(lambda: resnet.ResNet(rngs=nnx.Rngs(0), **arguments))
    return nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_resnet_34_has_the_size_of_the_paper(dtype):
    params, batch_stats = shapes_of(dtype=dtype)
    leaves = jax.tree.leaves(params)
    assert sum(leaf.size for leaf in leaves) == 21_282_122
    kernels = [leaf.shape for leaf in leaves if leaf.ndim == 4]
    assert len([shape for shape in kernels if shape[0] == 3]) == 33
    assert len([shape for shape in kernels if shape[0] == 1]) == 3  # shortcuts
    assert len(jax.tree.leaves(batch_stats)) == 2 * len(kernels)
    for leaf in (*leaves, *jax.tree.leaves(batch_stats)):
        assert leaf.dtype == jnp.float32


def test_other_depths_and_widths():
    for depth in (10, 18, 34):
        params, _ = shapes_of(depth=depth, width=4, classes=100)
        kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
        assert len(kernels) - 3 + 1 == depth == 2 * sum(resnet.BLOCKS[depth]) + 2
        assert jax.tree.leaves(params["head"])[-1].shape == (32, 100)


@pytest.mark.slow
def test_weights_begin_as_in_torchvision():
    params = jax.jit(
        lambda: nnx.state(resnet.ResNet(6, 32, rngs=nnx.Rngs(0)), nnx.Param)
    )()
    for leaf in jax.tree.leaves(params):
        values = np.asarray(leaf)
        if values.ndim == 4:
            size, outputs = values.shape[0], values.shape[-1]
            deviation = math.sqrt(2 / (size * size * outputs))
            assert abs(values.std() / deviation - 1) < 5 / math.sqrt(2 * values.size)
            if values.size > 10_000:  # normal, and not cut off at two deviations
                assert stats.kstest(values.ravel() / deviation, "norm").pvalue > 1e-3
    kernel = np.asarray(params["head"]["kernel"][...])
    bound = 1 / math.sqrt(len(kernel))
    assert stats.kstest(kernel.ravel(), "uniform", (-bound, 2 * bound)).pvalue > 1e-3
    assert not np.asarray(params["head"]["bias"][...]).any()


def reference_logits(model, x, training):
    """The same network from the equations, and its first mean and variance."""
    seen = []

    def conv(layer, x, size, stride):
        kernel, pad = jnp.asarray(layer.kernel[...]), (size // 2,) * 2
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), (pad, pad), dimension_numbers=names
        )

    def norm(layer, x):
        mean, variance = (jnp.asarray(v[...]) for v in (layer.mean, layer.var))
        if training:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            seen.append((mean, variance))
        mean, variance, scale, bias = (
            jnp.asarray(v[...]).reshape(1, 1, 1, -1)
            for v in (mean, variance, layer.scale, layer.bias)
        )
        return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias

    x = jax.nn.relu(norm(model.norm, conv(model.conv, x, 3, 1)))
    for number, block in enumerate(model.blocks.layers):
        stride = 2 if number else 1  # with depth 10 each stage has one block
        y = jax.nn.relu(norm(block.norm1, conv(block.conv1, x, 3, stride)))
        y = norm(block.norm2, conv(block.conv2, y, 3, 1))
        if number:
            x = norm(block.norm3, conv(block.conv3, x, 1, stride))
        x = jax.nn.relu(x + y)
    head = model.head
    return x.mean((1, 2)) @ head.kernel[...] + head.bias[...].reshape(1, -1), seen


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_that_of_the_equations(training):
    graph, shapes = nnx.split(
        nnx.eval_shape(lambda: resnet.ResNet(10, 4, CLASSES, rngs=nnx.Rngs(0)))
    )
    random = np.random.default_rng(0)

    def draw(leaf):
        """No scale of 1 and no bias of 0, which would hide a mistake."""
        values = random.uniform(0.5, 2, leaf.shape)
        if leaf.ndim > 1:
            values *= random.normal(0, (9 * leaf.shape[-1]) ** -0.5, leaf.shape)
        return jnp.asarray(values, jnp.float32)

    state = jax.tree.map(draw, shapes)
    x = random.normal(size=(6, SIZE, SIZE, 3)).astype("f")

    @jax.jit
    def both(state):
        """The network and its new mean and variance, and all that of the reference."""
        model, again = nnx.merge(graph, state), nnx.merge(graph, state)
        if not training:
            model.eval()
        logits, first = model(x), (model.norm.mean[...], model.norm.var[...])
        return logits, first, reference_logits(again, x, training)

    before = (
        np.asarray(state["norm"]["mean"][...]),
        np.asarray(state["norm"]["var"][...]),
    )
    logits, after, (expected, seen) = both(state)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    for old, new, number in zip(before, after, (0, 1), strict=True):
        wanted = 0.9 * old + 0.1 * seen[0][number] if training else old
        np.testing.assert_allclose(new, wanted, rtol=1e-4, atol=1e-6)


def test_bfloat16_is_what_it_computes_in():
    model = nnx.eval_shape(
        lambda: resnet.ResNet(10, 4, CLASSES, jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    graph, state = nnx.split(model)
    x = jnp.zeros((2, SIZE, SIZE, 3))
    program = jax.make_jaxpr(lambda state: nnx.merge(graph, state)(x))(state)
    convolutions = re.findall(r":(\w+)\[[\d,]+\] = conv_general_dil", str(program))
    assert convolutions == ["bf16"] * 12
    assert program.out_avals[0].dtype == jnp.float32


# The images.


def positions(number):
    """Images whose pixels tell their row and their column."""
    rows, columns = np.indices((SIZE, SIZE)) + 1
    image = np.stack([rows, columns, np.full_like(rows, 7)], -1).astype(np.uint8)
    return np.broadcast_to(image, (number, SIZE, SIZE, 3))


def windows():
    """Returns the number of each of the 81 crops, and of their 81 mirror images."""
    padded = np.pad(positions(1)[0], ((4, 4), (4, 4), (0, 0)))
    views = [
        padded[top : top + SIZE, left : left + SIZE][:, ::step]
        for step in (1, -1)
        for top in range(9)
        for left in range(9)
    ]
    return {view.tobytes(): number for number, view in enumerate(views)}


def law_of(numbers):
    """Returns the p-value of "all 162 windows are equally likely"."""
    return stats.chisquare(np.bincount(numbers, minlength=162)).pvalue


def test_crops_and_flips_are_windows_of_the_padded_image():
    number, known = 162 * 50, windows()
    assert len(known) == 162
    crops = np.asarray(jax.jit(cifar10.augment)(jax.random.key(0), positions(number)))
    # A KeyError is an image that is none of the windows.
    seen = np.array([known[crop.tobytes()] for crop in crops])
    assert law_of(seen) > 1e-3
    flips, tops, lefts = np.unravel_index(seen, (2, 9, 9))
    # The test of the law rejects each of these.
    assert law_of(seen[seen < 81]) < 1e-6  # no flips
    assert law_of(81 * flips + 9 * np.minimum(tops, 7) + lefts) < 1e-6  # 8 rows
    assert law_of(81 * flips + 9 * tops + tops) < 1e-6  # one draw for both axes
    assert law_of(np.repeat(seen[::2], 2)) < 1e-6  # each is drawn for two images


def test_channels_are_normalized_exactly(data):
    channels = cifar10.channels_of(data.train_images)
    pixels = data.train_images.astype(np.float64)
    np.testing.assert_allclose(channels.mean.ravel(), pixels.mean((0, 1, 2)), 1e-6)
    np.testing.assert_allclose(channels.deviation.ravel(), pixels.std((0, 1, 2)), 1e-6)
    x = np.asarray(cifar10.normalize(jnp.asarray(data.train_images), channels))
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-5)
    pixels = np.full((2, 3, 3, 3), 7, np.uint8)
    assert not cifar10.normalize(jnp.asarray(pixels), cifar10.channels_of(pixels)).any()


def test_an_epoch_shows_each_image_once_and_drops_the_rest():
    epochs = [
        np.stack([cifar10.indices_of(step, BATCH, 67, seed) for step in steps])
        for seed in (0, 1)
        for steps in (range(1, 5), range(5, 9))
    ]
    for indices in epochs:
        assert indices.shape == (4, BATCH)
        assert len(np.unique(indices)) == 4 * BATCH
        assert indices.min() >= 0
        assert indices.max() < 67
    assert len({indices.tobytes() for indices in epochs}) == 4
    again = cifar10.indices_of(6, BATCH, 67, 0)
    np.testing.assert_array_equal(again, epochs[1][1])


# The optimizers.


@pytest.mark.parametrize(
    ("steps", "first", "second"),
    [(200 * 390, 100 * 390, 150 * 390), (8, 4, 6), (6, 3, 5), (1, 1, 1)],
)
def test_the_rate_drops_after_a_half_and_three_quarters(steps, first, second):
    schedule = cifar10.make_schedule(0.1, steps)
    for count in {0, first - 1, first, second - 1, second, steps - 1}:
        expected = 0.1 * 0.1 ** ((count >= first) + (count >= second))
        if count < steps:
            np.testing.assert_allclose(schedule(count), expected, rtol=1e-6)


def torch_step(name, g, p, m, v, t, rate):
    """One step of PyTorch's optimizer: the parameters and the moments after it."""
    if name == "sgdm":
        m = 0.9 * m + g
        return p - rate * m, m, v
    if name == "rmsprop":
        v = 0.99 * v + 0.01 * g**2
        return p - rate * g / (np.sqrt(v) + 1e-8), m, v
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    first, second = m / (1 - 0.9**t), v / (1 - 0.999**t)
    return p - rate * first / (np.sqrt(second) + 1e-8), m, v


@pytest.mark.parametrize("penalty", ["coupled", "decoupled"])
@pytest.mark.parametrize("name", ["sgdm", "rmsprop", "adam"])
def test_the_penalty_goes_through_the_moments(name, penalty):
    """float64 NumPy, with gradients so small that the penalty and eps count."""
    random, rate = np.random.default_rng(0), 0.01
    tx = cifar10.make_optimizer(name, rate, 1, jax.random.key(0))
    ours = random.normal(size=200).astype("f")
    state, p, m, v = tx.init(ours), ours.astype(np.float64), 0.0, 0.0
    for t in range(1, 6):
        g = 1e-4 * random.normal(size=200).astype("f")
        updates, state = jax.jit(tx.update)(g, state, ours)
        ours = optax.apply_updates(ours, updates)
        coupled = penalty == "coupled"
        p_next, m, v = torch_step(name, g + coupled * 5e-4 * p, p, m, v, t, rate)
        p = p_next - (not coupled) * rate * 5e-4 * p
    close = np.allclose(ours, p, rtol=0, atol=2e-6 if name == "sgdm" else 1e-5)
    assert close == (penalty == "coupled")


@pytest.mark.parametrize("keep_prob", [1, 0.999])
@pytest.mark.parametrize("name", cifar10.OPTIMIZERS)
def test_a_keep_prob_of_1_is_the_optimizer_alone_bit_for_bit(name, keep_prob):
    base = cifar10.OPTIMIZERS[name](0.1)
    alone = optax.chain(optax.add_decayed_weights(cifar10.L2), base)
    with_lrd = cifar10.make_optimizer(name, 0.1, keep_prob, jax.random.key(0))
    ends = []
    for tx in (alone, with_lrd):
        params = jnp.linspace(-1, 1, 5000)
        state, update = tx.init(params), jax.jit(tx.update)
        for seed in range(3):
            gradient = np.random.default_rng(seed).normal(size=5000).astype("f")
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        ends.append(params)
    assert np.array_equal(*ends) == (keep_prob == 1)


def test_the_dropout_comes_last_and_may_be_unbiased():
    """The momentum has the whole gradient, the step half of its elements."""
    gradient, params = jnp.ones(1000), jnp.zeros(1000)
    for unbiased, factor in ((False, 1), (True, 2)):
        key = jax.random.key(0)
        tx = cifar10.make_optimizer("sgdm", 0.1, 0.5, key, unbiased)
        updates, state = tx.update(gradient, tx.init(params), params)
        moved = np.asarray(updates)[np.asarray(updates) != 0]
        np.testing.assert_allclose(moved, -0.1 * factor, rtol=1e-6)
        assert 400 < len(moved) < 600
        assert (optax.tree_utils.tree_get(state, "trace") == 1).all()


# The training step.


def place(tree, mesh):
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.device_put(leaf, everywhere), tree)


class Training(NamedTuple):
    states: list  # before each step and after the last, as NumPy arrays
    program: Any  # the compiled step
    programs: cifar10.Programs
    sets: list  # training images and labels, test images and labels


def train_some(data, args, devices=1, steps=6, start=None):
    mesh = mesh_of(devices)
    channels = cifar10.channels_of(data.train_images)
    programs = cifar10.make_programs(args, channels, CLASSES, 4, mesh)
    sets = [cifar10.replicate(array, mesh) for array in data[:4]]
    state = programs.new_state() if start is None else place(start, mesh)
    states, program = [jax.device_get(state)], None
    for step in range(1, steps + 1):
        batch = cifar10.indices_of(step, args.batch, 67, args.seed)
        if program is None:
            lowered = programs.train_step.lower(state, *sets[:2], batch)
            program = lowered.compile()
        state = program(state, *sets[:2], batch)
        states.append(jax.device_get(state))
    return Training(states, program, programs, sets)


@pytest.fixture(scope="module")
def on_one(data):
    with jax.numpy_dtype_promotion("standard"):
        return train_some(data, options_of())


def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def all_close(a, b):
    close = functools.partial(np.allclose, rtol=1e-3, atol=1e-4)
    return jax.tree.all(jax.tree.map(close, a, b))


@pytest.mark.slow
def test_equal_runs_have_equal_bits(data, on_one):
    assert equal(train_some(data, options_of()).states, on_one.states)
    assert not equal(on_one.states[0], on_one.states[1])


@pytest.mark.slow
def test_a_step_draws_crops_of_its_own(on_one):
    """The same images, parameters and all, but another number of the step."""
    losses = []
    for number in (0, 1):
        state = on_one.states[0] | {"step": np.int32(number)}
        batch = np.arange(BATCH, dtype=np.int32)
        after = on_one.program(place(state, mesh_of(1)), *on_one.sets[:2], batch)
        losses.append(float(after["sums"]["loss"]))
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_the_last_batch_of_the_test_counts_once(on_one, data):
    """37 images in batches of 16: the network is asked about each one alone."""
    state = on_one.states[-1]
    graph, _ = nnx.split(
        nnx.eval_shape(lambda: resnet.ResNet(6, 4, CLASSES, rngs=nnx.Rngs(0)))
    )
    channels = cifar10.channels_of(data.train_images)
    x = cifar10.normalize(jnp.asarray(data.test_images), channels)

    @jax.jit
    def predict(params, batch_stats):
        model = nnx.merge(graph, params, batch_stats)
        model.eval()
        return model(x).argmax(-1)

    right = np.asarray(predict(state["params"], state["batch_stats"]))
    assert 0 < (right == data.test_labels).sum() < 37
    # The labels of the last image decide whether those that fill the batch are counted.
    for label in range(CLASSES):
        labels = data.test_labels.copy()
        labels[-1] = label
        placed = place(state, mesh_of(1))
        count = on_one.programs.count_correct(placed, on_one.sets[2], labels)
        assert int(count) == (right == labels).sum()


def mask_of(state, args):
    """The mask that the next step applies, by the public function."""
    dropout = lrd_optax.learning_rate_dropout(args.keep_prob, key=0)
    opt_state, params = state["opt_state"], state["params"]
    return jax.tree.leaves(lrd_optax.sample_mask(dropout, opt_state, params))


def collectives(program):
    """What is sent in a step: kind and shapes, and how often."""
    lines = re.findall(rf"= (.*?) ({COLLECTIVES})", program.as_text())
    return collections.Counter(
        (kind, re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)) for shape, kind in lines
    )


@pytest.mark.slow
def test_eight_devices_train_as_one(data, on_one, monkeypatch):
    args, start = options_of(), on_one.states[0]
    many = train_some(data, args, devices=8, steps=3, start=start)
    for before, after in itertools.pairwise(many.states):
        moved, kept = 0, 0
        leaves = jax.tree.leaves(before["params"]), jax.tree.leaves(after["params"])
        for mask, old, new in zip(mask_of(before, args), *leaves, strict=True):
            np.testing.assert_array_equal(old[~mask], new[~mask])
            moved, kept = moved + (old != new).sum(), kept + mask.sum()
        assert moved > 0.95 * kept  # what is kept moves, but for rounding
    for one, other in zip(on_one.states, many.states, strict=False):
        assert equal(one["opt_state"][-1], other["opt_state"][-1])  # the keys
        assert equal(mask_of(one, args), mask_of(other, args))
        # Also the statistics of BatchNorm: they are those of the whole batch.
        for name in ("params", "batch_stats", "sums"):
            assert all_close(one[name], other[name])
    assert not all_close(on_one.states[0]["params"], on_one.states[3]["params"])
    # The images are not sent, and the masks send nothing.
    assert {kind for kind, _ in collectives(many.program)} == {"all-reduce"}
    identity = optax.stateless(lambda updates, params: updates)
    monkeypatch.setattr(
        lrd_optax, "learning_rate_dropout", lambda *args, **kwargs: identity
    )
    alone = start | {"opt_state": (*start["opt_state"][:2], optax.EmptyState())}
    dense = train_some(data, args, devices=8, steps=1, start=alone)
    assert collectives(dense.program) == collectives(many.program)


# The run, from its options to its files.


@pytest.mark.slow
def test_a_run_leaves_records_and_a_picture(data, tmp_path):
    args = options_of(tmp_path / "run")
    _, records = cifar10.train(args, data, mesh_of(1))
    assert [(r["epoch"], r["step"]) for r in records] == [(1, 4), (2, 8)]
    assert records == runs.read_records(args.output)
    np.testing.assert_allclose([r["learning_rate"] for r in records], [0.1, 0.001])
    for record in records:
        for name, number in (("train", 64), ("test", 37)):
            right = (100 - record[f"{name}_error"]) * number / 100
            assert right == pytest.approx(round(right))
        assert 0.1 < record["train_loss"] < 3
    config = json.loads((args.output / "config.json").read_text())
    del config["checksum_of_images"]
    assert config.pop("example") == "cifar10.py"
    assert config.items() <= vars(args).items()
    with Image.open(args.output / "curves.png") as picture:
        assert picture.size == (1350, 540)
    # Other images are another run.
    changed = data._replace(test_labels=data.test_labels[::-1].copy())
    with pytest.raises(SystemExit, match="holds a run with checksum of images"):
        cifar10.train(args, changed, mesh_of(1))


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """The images as files."""
    root = tmp_path_factory.mktemp("images")
    for part, pixels, labels in (("train", *data[:2]), ("test", *data[2:4])):
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            path = root / part / data.classes[label] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


# As in pyproject.toml, whose patterns -W does not know. These modules of Matplotlib
# below 3.11 call what pyparsing has renamed.
WARNINGS = ["-W", "error"]
for name in ("_fontconfig_pattern", "_mathtext"):
    WARNINGS += ["-W", f"ignore::DeprecationWarning:matplotlib.{name}"]


def small_run(folder, output, *words):
    small = f"--data {folder} --output {output} --depth 10 --width 4 --batch 16".split()
    return [*small, "--save-every", "5", *words]


def command(folder, output, *words):
    code = f"import sys; sys.path[0] = {str(EXAMPLES)!r}; import resnet, cifar10\n"
    code += f"resnet.BLOCKS[10] = {SHALLOW}; cifar10.main()"
    small = small_run(folder, output, *words)
    return [sys.executable, *WARNINGS, "-c", code, *small]


def test_what_does_not_fit_is_one_line(folder, tmp_path, monkeypatch):
    def message(*words):
        argv = ["cifar10.py", *small_run(folder, tmp_path, *words)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as error:
            cifar10.main()
        return str(error.value)

    assert message("--batch", "68") == (
        "--batch must be at most 67, the number of training images, got 68"
    )
    assert message("--batch", "12") == (
        "--batch must be a multiple of the number of devices, 8, got 12"
    )
    # An epoch has 4 steps, which are counted in int32.
    assert message("--epochs", f"{2**29}") == (
        f"--epochs must be at most {2**29 - 1} with 4 steps per epoch, got {2**29}"
    )
    # The quick run has 7 images.
    assert "--batch must be at most 7, the" in message("--quick", "--batch", "8")


def finish(process):
    out, error = process.communicate()
    assert process.returncode == 0, error
    return [line for line in out.splitlines() if not line.startswith("[Gloo]")]


def last_state(output, data):
    """The step and the state of the last checkpoint, on one device."""
    mesh, channels = mesh_of(1), cifar10.channels_of(data.train_images)
    programs = cifar10.make_programs(options_of(), channels, CLASSES, 4, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(programs.new_state),
    )
    args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
    with ocp.CheckpointManager(output / "checkpoints") as manager:
        step = manager.latest_step()
        return step, jax.device_get(manager.restore(step, args=args)["state"])


def numbers_of(output):
    return [
        {
            name: value
            for name, value in record.items()
            if name not in ("seconds", "ms_per_step")
        }
        for record in runs.read_records(output)
    ]


@pytest.mark.slow
def test_a_killed_run_ends_bit_for_bit_as_one_left_alone(folder, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    epochs = ("--epochs", "15")  # 60 steps
    with running(command(folder, whole, *epochs)) as process:
        finish(process)
    with running(command(folder, killed, *epochs)) as process:
        for _ in range(8):  # until a report that no checkpoint need have
            assert process.stdout.readline()
        process.kill()
        assert process.wait() == -signal.SIGKILL  # it had not ended by itself
    with running(command(folder, killed, *epochs)) as process:
        lines = finish(process)
    begin = next(line for line in lines if line.startswith("resumed at step "))
    assert 0 < int(begin.split()[-1]) < 60
    (last, state), (same, resumed) = (
        last_state(output, data) for output in (whole, killed)
    )
    assert last == same == 60
    assert equal(state, resumed)
    assert numbers_of(whole) == numbers_of(killed)


@pytest.mark.slow
def test_two_processes_train_as_one(folder, data, tmp_path):
    args = options_of(tmp_path / "one")
    state = jax.device_get(cifar10.train(args, images.load(folder), mesh_of(2))[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = ["--epochs", "2", "--num-processes", "2", "--process-id"]
    two, more = tmp_path / "two", ("--coordinator", address)
    with (
        running(command(folder, two, *words, "0", *more)) as first,
        running(command(folder, two, *words, "1", *more)) as second,
    ):
        lines = finish(first)
        assert finish(second) == []  # the first one prints for both
    assert "on 2 device(s) (cpu)" in lines[0]
    step, other = last_state(two, data)
    assert step == 8
    assert equal(state["opt_state"][-1], other["opt_state"][-1])
    assert all_close(state["params"], other["params"])
    assert len(runs.read_records(two)) == 2
