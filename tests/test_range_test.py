"""The range test: against NumPy, against PyTorch, and that it changes nothing."""

import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits

import lrd_optax

RECORDED = Path(__file__).parent / "data" / "lr_finders.json"
TARGET = np.linspace(1, 2, 4).astype("f")
RANGE = {"min_value": 1e-3, "max_value": 100.0, "num_steps": 40}


def batches(number=41, seed=0):
    noise = np.random.default_rng(seed).standard_normal((number, 8, 4))
    return (TARGET + 0.1 * noise).astype("f")


def loss_fn(params, batch):
    return jnp.mean(jnp.square(params[None] - batch.astype(params.dtype)))


def range_test(make_optimizer=optax.sgd, params=None, data=None, loss=loss_fn, **kw):
    params = jnp.zeros(4) if params is None else params
    data = batches() if data is None else data
    return lrd_optax.lr_range_test(loss, params, data, make_optimizer, **(RANGE | kw))


def reference(rates, data, divergence, smoothing):
    """Plain gradient descent in float64, one update after the other."""
    window = smoothing * len(rates)
    memory = 1 - 1 / max(1, 2 * window)
    params, losses, averages = np.zeros(4), [], []
    for step in range(len(rates) + 1):
        batch = data[step % len(data)].astype(float)
        losses.append(np.square(params - batch).mean())
        weights = memory ** np.arange(step, -1, -1)
        averages.append(np.dot(weights, losses) / weights.sum())
        if averages[-1] > divergence * min(averages):
            break
        if step < len(rates):
            params = params - rates[step] * 2 * (params - batch.mean(0)) / 4
    losses = np.array(losses[1:])  # the first was made by no rate
    ran = np.arange(len(losses))
    if not window:
        return losses, losses
    medians = np.array([np.median(losses[max(i - 2, 0) : i + 3]) for i in ran])
    fall = medians[0] - medians.min()
    limited = np.minimum(medians, medians[0] + fall / 4 if fall else np.inf)
    distance = np.subtract.outer(ran, ran)
    weights = np.exp(-0.5 * (distance / window) ** 2)
    return losses, weights @ limited / weights.sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["log", "linear"])
@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.2])
def test_descent_in_numpy(x64, scale, smoothing):
    """Rates, losses, pairing, divergence and smoothing are those of the definition."""
    data = batches(7)
    result = range_test(data=data, scale=scale, smoothing=smoothing, divergence=3.0)
    i = np.arange(40) / 39
    rates = 1e-3 * 1e5**i if scale == "log" else 1e-3 + 99.999 * i
    rtol = 1e-12 if x64 else 1e-6
    np.testing.assert_allclose(result.learning_rates, rates, rtol=rtol)
    losses, smoothed = reference(rates, data, 3.0, smoothing)
    ran = len(losses)
    assert ran < 40  # it diverges
    rtol = 1e-7 if x64 else 1e-4
    np.testing.assert_allclose(result.losses[:ran], losses, rtol=rtol)
    np.testing.assert_allclose(result.smoothed_losses[:ran], smoothed, rtol=rtol)
    assert np.isnan(result.losses[ran:]).all()
    assert np.isnan(result.smoothed_losses[ran:]).all()
    assert result.valid.tolist() == [True] * ran + [False] * (40 - ran)
    assert {result.losses.dtype, result.learning_rates.dtype} == {
        np.dtype("float64" if x64 else "float32")
    }


def test_ends_are_exact():
    rates = range_test(min_value=0.003, max_value=0.7).learning_rates
    assert rates[0] == np.float32(0.003)
    assert rates[-1] == np.float32(0.7)


def test_each_loss_is_with_the_rate_that_made_it():
    """Only the update of step 20 does anything: the loss is another from there on."""

    def make_optimizer(schedule):
        def only_one(count):
            return jnp.where(count == 20, schedule(count), 0)

        return optax.sgd(only_one)

    same = np.broadcast_to(TARGET, (1, 8, 4))
    losses = range_test(make_optimizer, data=same).losses
    assert len(np.unique(losses[:20])) == 1
    assert len(np.unique(losses[20:])) == 1
    assert losses[20] < losses[19]


def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))[:1200]
    x, y = (x[order] / 16).astype("f"), y[order]
    return {"x": x.reshape(12, 100, 64), "y": y.reshape(12, 100)}


def weights():
    rng = np.random.default_rng(1)
    first = rng.standard_normal((64, 32)) * math.sqrt(2 / 64)
    second = rng.standard_normal((32, 10)) * math.sqrt(1 / 32)
    layers = {"w1": first, "b1": np.zeros(32), "w2": second, "b2": np.zeros(10)}
    return {name: layer.astype("f") for name, layer in layers.items()}


def mlp_loss(params, batch):
    hidden = jax.nn.relu(batch["x"] @ params["w1"] + params["b1"][None])
    logits = hidden @ params["w2"] + params["b2"][None]
    labels = batch["y"]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize(
    ("name", "make_optimizer"),
    [
        ("sgd", optax.sgd),
        ("momentum", functools.partial(optax.sgd, momentum=0.9)),
        ("adam", optax.adam),
    ],
)
def test_losses_of_pytorch(name, make_optimizer):
    """The losses that torch-lr-finder saw, each one step after the rate it gave."""
    recorded = json.loads(RECORDED.read_text())["runs"]["torch-lr-finder"][name]
    low, high = recorded["range"]
    result = lrd_optax.lr_range_test(
        mlp_loss, weights(), digits(), make_optimizer, min_value=low, max_value=high
    )
    rates = recorded["set_rates"]
    np.testing.assert_allclose(result.learning_rates[: len(rates)], rates, rtol=1e-5)
    theirs = recorded["raw_losses"][1:85]
    np.testing.assert_allclose(result.losses[:84], theirs, rtol=1e-4)


@pytest.mark.usefixtures("optax_promotion")
def test_nothing_of_the_callers_changes():
    params, data = {"w": jnp.ones((4,)), "n": np.zeros(4, "f")}, jnp.asarray(batches())
    before = jax.tree.map(np.array, (params, data))

    def loss(params, batch):
        return loss_fn(params["w"] + params["n"], batch)

    first = range_test(optax.adam, params, data, loss)
    again = range_test(optax.adam, params, data, loss)
    jax.tree.map(np.testing.assert_array_equal, before, (params, data))
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_one_compiled_loop():
    """The loss is traced, not called step by step."""
    traces = []

    def loss(params, batch):
        traces.append(1)
        return loss_fn(params, batch)

    range_test(loss=loss, num_steps=40)
    few = len(traces)
    range_test(loss=loss, num_steps=200)
    assert len(traces) == 2 * few < 10


def with_extra(params, batch):
    return loss_fn(params, batch["x"]) + batch["extra"]


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_batch_that_is_not_finite(bad):
    """Is one missing point. No update is made from it, also not of Adam's moments."""
    extra = np.where(np.arange(41) == 11, bad, 0).astype("f")
    kw = {"loss": lambda p, b: loss_fn(p, b["x"] * (1 + b["extra"])), "max_value": 1.0}
    result = range_test(optax.adam, data={"x": batches(), "extra": extra}, **kw)
    # The update that is left out has one batch and one rate.
    assert np.flatnonzero(~np.asarray(result.valid)).tolist() == [10]
    for values in (result.losses, result.smoothed_losses):
        np.testing.assert_array_equal(np.isfinite(values), result.valid)
    usual = range_test(
        optax.adam, data={"x": batches(), "extra": np.zeros(41, "f")}, **kw
    )
    np.testing.assert_array_equal(result.losses[:10], usual.losses[:10])
    assert lrd_optax.suggest_learning_rate(result) == pytest.approx(
        lrd_optax.suggest_learning_rate(usual), rel=0.3
    )


def test_gradient_that_is_not_finite():
    """As that of a norm of 0: the loss is finite, and the update is left out."""

    def loss(params, batch):
        root = jnp.sqrt(batch["root"] * jnp.square(params).sum())
        return loss_fn(params, batch["x"]) + 0 * root

    root = (np.arange(41) != 11).astype("f")
    data = {"x": batches(), "root": root}
    result = range_test(params=jnp.ones(4) / 2, data=data, loss=loss, max_value=1.0)
    assert result.valid.all()


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("num_steps", [12, 100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_explosion(dtype, num_steps):
    """Of a network: later points are not valid, and the curve has turned."""
    params = {name: jnp.asarray(w, dtype) for name, w in weights().items()}
    params["w3"] = params.pop("w2")[:, :1] / 4  # a regression
    data = digits() | {"y": (digits()["y"] / 10).astype(dtype)}

    def loss(params, batch):
        hidden = jax.nn.relu(batch["x"].astype(dtype) @ params["w1"])
        for _ in range(3):  # deeper, so that it overflows within few steps
            hidden = jax.nn.relu(hidden @ params["w1"][:32] @ jnp.eye(32, dtype=dtype))
        return jnp.square((hidden @ params["w3"])[:, 0] - batch["y"]).mean()

    kw = {"max_value": 1e6, "num_steps": num_steps, "divergence": None}
    result = range_test(params=params, data=data, loss=loss, **kw)
    valid = np.asarray(result.valid)
    ran = int(valid.sum())
    assert 5 <= ran < num_steps - 1
    assert valid[:ran].all()
    assert np.isnan(result.losses[ran:]).all()
    assert lrd_optax.suggest_learning_rate(result, "min_over_10") < 1


def test_divergence_beside_a_missing_point():
    """A loss that is not finite is no part of the average that tells divergence."""
    extra = np.zeros(41, "f")
    extra[[0, 3]], extra[12:] = np.nan, 1e3
    for smoothing in (0.0, 0.05):
        data = {"x": batches(), "extra": extra}
        result = range_test(
            data=data, loss=with_extra, smoothing=smoothing, max_value=1.0
        )
        expected = [True] * 2 + [False] + [True] * 9 + [False] * 28
        assert result.valid.tolist() == expected


def test_debug_nans():
    """A test that does not stop makes no NaN on the way."""
    with jax.debug_nans(True):
        assert range_test(max_value=0.1, num_steps=5).valid.all()


def test_divergence_at_the_first_loss():
    result = range_test(params=jnp.full(4, jnp.nan))
    assert not result.valid.any()


def test_divergence_none_goes_on():
    """Without a limit all points are valid until the loss is infinite."""
    limited, free = (range_test(divergence=d, num_steps=200) for d in (4.0, None))
    assert limited.valid.sum() < free.valid.sum() < 200
    finite = np.isfinite(free.losses)
    np.testing.assert_array_equal(free.valid, finite)
    assert free.losses[finite].max() > 1e30


@pytest.mark.parametrize("offset", [-100.0, -0.5])
def test_negative_losses(offset):
    """A loss below 0 does not diverge by falling."""

    def loss(params, batch):
        return loss_fn(params, batch) + offset

    result = range_test(loss=loss, max_value=1.0)
    assert result.valid.all()
    assert result.losses[-1] < result.losses[0]


@pytest.mark.slow
def test_seeds_by_vmap():
    """Each seed is as it is alone, also one that diverges where others do not."""

    def one(scale, seed):
        dropout = functools.partial(lrd_optax.learning_rate_dropout, 0.5, key=seed)

        def make_optimizer(rate):
            return optax.chain(optax.sgd(rate), dropout())

        return range_test(make_optimizer, loss=lambda p, b: scale * loss_fn(p, b))

    scales, seeds = jnp.array([0.1, 1.0, 10.0]), jnp.arange(3)
    keys = jax.vmap(jax.random.key)(seeds)
    together = jax.vmap(one)(scales, keys)
    assert together.losses.shape == (3, 40)
    assert len(set(together.valid.sum(1).tolist())) == 3
    for i in range(3):
        alone = one(scales[i], keys[i])
        got = jax.tree.map(lambda x, i=i: x[i], together)
        np.testing.assert_array_equal(got.valid, alone.valid)
        for name in ("losses", "smoothed_losses", "learning_rates"):
            a, b = getattr(got, name), getattr(alone, name)
            np.testing.assert_allclose(a, b, rtol=1e-4, err_msg=name)


OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": lambda rate: optax.adamw(rate, weight_decay=0.1),
    "lion": optax.lion,
    "rmsprop": optax.rmsprop,
    "adagrad": optax.adagrad,
    "adadelta": optax.adadelta,
    "inject_hyperparams": lambda rate: optax.inject_hyperparams(optax.sgd)(rate),
    "clip": lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate)),
    "MultiSteps": lambda rate: optax.MultiSteps(optax.sgd(rate), 3),
    "apply_if_finite": lambda rate: optax.apply_if_finite(optax.adam(rate), 3),
    "schedule_free": lambda rate: optax.contrib.schedule_free_sgd(rate),
    "reduce_on_plateau": lambda rate: optax.chain(
        optax.sgd(rate), optax.contrib.reduce_on_plateau()
    ),
    "a warm-up of it": lambda rate: optax.sgd(lrd_optax.schedules.warmup(rate, 5)),
    "LRD": lambda rate: optax.chain(
        optax.adam(rate), lrd_optax.learning_rate_dropout(0.5, key=0)
    ),
    "unbiased LRD": lambda rate: optax.chain(
        optax.sgd(rate), lrd_optax.learning_rate_dropout(0.5, key=0, unbiased=True)
    ),
}


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, dtype):
    """Any that takes a schedule; the loss falls somewhere, and dtypes are no matter."""
    data = jnp.asarray(batches(5), dtype)
    result = range_test(OPTIMIZERS[name], jnp.zeros(4, dtype), data, max_value=1.0)
    assert result.losses.dtype == np.float32
    assert np.nanmin(result.losses) < 0.99 * result.losses[0]


def test_rate_is_weakly_typed():
    """As those of Optax's schedules are: times a bfloat16 it is a bfloat16."""
    seen = []

    def make_optimizer(schedule):
        seen.append(jax.typeof(schedule(0)).weak_type)
        return optax.sgd(schedule)

    range_test(make_optimizer)
    assert set(seen) == {True}


@pytest.mark.usefixtures("optax_promotion")
def test_rate_of_an_optimizer_that_counts_otherwise():
    """MultiSteps counts every third step only: its updates have this step's rate."""
    rates = []

    def make_optimizer(schedule):
        def update(updates, state, params=None):
            jax.debug.callback(lambda rate: rates.append(float(rate)), schedule(0))
            return updates, state

        seen = optax.GradientTransformation(lambda params: (), update)
        return optax.MultiSteps(optax.chain(optax.sgd(schedule), seen), 3)

    result = range_test(make_optimizer, max_value=1.0, num_steps=12)
    jax.effects_barrier()
    # Computed in every step, applied in each third.
    np.testing.assert_array_equal(sorted(set(rates)), result.learning_rates)
    steps = np.flatnonzero(np.abs(np.diff(result.losses)) > 0.3)
    assert set(steps % 3) <= {1}


def test_extra_arguments():
    """An update gets what it takes of value, grad and value_fn."""
    seen = []

    def some(updates, state, params=None, *, value, grad):
        jax.debug.callback(
            lambda *x: seen.append(x), value, grad, updates, ordered=True
        )
        return jax.tree.map(lambda u: -0.1 * u, updates), state

    def every(updates, state, params=None, **extra):
        value = extra["value_fn"](params)
        return some(updates, state, params, value=value, grad=extra["grad"])

    found = []
    for update in (some, every):
        seen.clear()
        made = optax.GradientTransformationExtraArgs(lambda params: (), update)

        def make_optimizer(rate, made=made):
            rate(0)
            return made

        result = range_test(make_optimizer, num_steps=5)
        jax.effects_barrier()
        for _, grad, given in seen:
            np.testing.assert_array_equal(grad, given)
        values = [float(value) for value, _, _ in seen]
        # Each is of the parameters before its update.
        np.testing.assert_allclose(values[1:], result.losses[: len(values) - 1])
        assert values[0] > 2
        found.append(values)
    np.testing.assert_allclose(*found, rtol=1e-6)


@pytest.mark.usefixtures("optax_promotion")
def test_sam():
    """It takes none of the extra arguments."""

    def make_optimizer(rate):
        return optax.contrib.sam(optax.sgd(rate), optax.sgd(0.05), sync_period=2)

    assert range_test(make_optimizer, max_value=1.0).valid.all()


def test_constant_loss_of_zero_is_no_divergence():
    def loss(params, batch):
        return 0 * loss_fn(params, batch)

    assert range_test(loss=loss, max_value=1.0).valid.all()


def test_list_or_loader_of_batches():
    """Stacked, and of a loader no more is taken than is used."""
    data = [{"x": batch} for batch in batches(7)]

    def loss(params, batch):
        return loss_fn(params, batch["x"])

    stacked = {"x": batches(7)}
    expected = range_test(data=stacked, loss=loss, num_steps=6, min_value=0.1)

    class Loader:  # as that of PyTorch: iterable, no iterator
        def __iter__(self):
            return iter(data)

    def endless():
        yield from data
        raise AssertionError("one too many")

    for given in (data, Loader(), endless(), iter(data)):
        result = range_test(data=given, loss=loss, num_steps=6, min_value=0.1)
        np.testing.assert_array_equal(result.losses, expected.losses)


@pytest.mark.parametrize("divergence", [2.0, 100.0, None])
def test_suggestions_do_not_depend_on_divergence(divergence):
    """What blows up does not reach back through the window of the smoothing."""
    for max_value in (10.0, 1e4):
        data, kw = batches(101), {"num_steps": 100, "max_value": max_value}
        usual = range_test(data=data, **kw)
        other = range_test(data=data, divergence=divergence, **kw)
        for method in ("peak", "steepest", "valley", "min_over_10"):
            expected = lrd_optax.suggest_learning_rate(usual, method)
            found = lrd_optax.suggest_learning_rate(other, method)
            window = (max_value / 1e-3) ** 0.05
            assert expected / window < found < expected * window, (max_value, method)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "size"), [(1, 2), (3, 2), (6, 5), (40, 5), (20, -2)])
def test_one_odd_batch(step, size):
    """It is no part of the curve."""
    extra = np.zeros(101, "f")
    extra[step] = size

    found = [
        range_test(
            data={"x": batches(101), "extra": each},
            loss=with_extra,
            num_steps=100,
            min_value=1e-4,
            max_value=10.0,
        )
        for each in (0 * extra, extra)
    ]
    usual, odd = (
        [
            lrd_optax.suggest_learning_rate(each, "steepest"),
            *lrd_optax.suggest_cycle(each),
        ]
        for each in found
    )
    np.testing.assert_allclose(odd, usual, rtol=0.3)


def test_batches_come_again():
    short = batches(5)
    again = range_test(data=np.concatenate([short] * 9)[:41])
    np.testing.assert_array_equal(range_test(data=short).losses, again.losses)


def test_keys_in_batches():
    """A random loss takes its key from the batch: typed keys are arrays too."""

    def loss(params, batch):
        return loss_fn(params, batch["x"]) + jax.random.uniform(batch["key"])

    keys = jax.random.split(jax.random.key(0), 41)
    result = range_test(loss=loss, data={"x": batches(), "key": keys}, min_value=1e-9)
    noise = jax.vmap(jax.random.uniform)(keys)[1:6]
    plain = range_test(min_value=1e-9).losses[:5]
    np.testing.assert_allclose(result.losses[:5] - plain, noise, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_meshes(kind):
    """Data and parameters may be sharded, and the losses are the same."""
    mesh = jax.make_mesh((4,), ("x",), (kind,), devices=jax.devices("cpu")[:4])
    alone = range_test(OPTIMIZERS["LRD"])
    with jax.set_mesh(mesh):
        data = jax.device_put(batches(), NamedSharding(mesh, P(None, "x")))
        params = jax.device_put(jnp.zeros(4), NamedSharding(mesh, P()))
        result = range_test(OPTIMIZERS["LRD"], params, data)
        sharded = jax.device_put(jnp.zeros(4), NamedSharding(mesh, P("x")))
        plain = jax.device_put(batches(), NamedSharding(mesh, P()))
        of_shards = range_test(OPTIMIZERS["LRD"], sharded, plain)
        seeds = jax.tree.map(lambda each: jnp.stack([each] * 4), alone)
        seeds = jax.device_put(seeds, NamedSharding(mesh, P("x")))
        of_seeds = lrd_optax.suggest_learning_rate(seeds)
    assert of_seeds == pytest.approx(lrd_optax.suggest_learning_rate(alone))
    for other in (result, of_shards):
        np.testing.assert_allclose(other.losses, alone.losses, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_flax():
    """An NNX module with batch norm and a Linen one; both are left as they were."""
    data = {"x": digits()["x"][:4], "y": digits()["y"][:4]}

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(64, 16, rngs=rngs)
            self.norm = nnx.BatchNorm(16, rngs=rngs)
            self.head = nnx.Linear(16, 10, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.first(x))))

    def cross_entropy(logits, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    model = Model(nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.state(model))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def nnx_loss(params, batch):
        copy = jax.tree.map(lambda leaf: leaf, rest)  # batch norm writes into it
        logits = nnx.merge(graph, params, copy)(batch["x"])
        return cross_entropy(logits, batch["y"])

    optimizer, found = OPTIMIZERS["LRD"], {}
    found["nnx"] = range_test(optimizer, params, data, nnx_loss)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(10)(linen.relu(linen.Dense(16)(x)))

    net = Net()
    variables = net.init(jax.random.key(0), data["x"][0])

    def linen_loss(variables, batch):
        return cross_entropy(net.apply(variables, batch["x"]), batch["y"])

    found["linen"] = range_test(optimizer, variables, data, linen_loss)
    for name, result in found.items():
        assert np.nanmin(result.losses) < 0.6 * result.losses[0], name


def test_smoothing_has_no_lag():
    """Of a straight line the smoothed losses are that line, off the ends."""

    def loss(params, batch):
        return 0 * params.sum() + batch

    data = np.linspace(5, 1, 101).astype("f")
    result = range_test(data=data, loss=loss, num_steps=100)
    np.testing.assert_allclose(
        result.smoothed_losses[30:-30], data[1:][30:-30], atol=1e-5
    )


def test_band():
    """Mean and quantiles over the seeds that are valid everywhere."""
    rng = np.random.default_rng(0)
    smoothed = rng.uniform(size=(4, 5, 30)).astype("f")
    valid = np.ones((4, 5, 30), bool)
    valid[2, 3, 25:] = False
    smoothed[2, 3, 25:] = np.nan
    rates = np.broadcast_to(np.geomspace(1e-3, 1, 30, dtype="f"), (4, 5, 30))
    result = lrd_optax.RangeTestResult(
        *map(jnp.asarray, (rates, smoothed, smoothed, valid))
    )
    for coverage in (0.0, 0.5, 0.9, 1.0):
        band = lrd_optax.range_test_band(result, coverage)
        flat = smoothed.reshape(20, 30)[:, :25]
        np.testing.assert_array_equal(band.learning_rates, rates[0, 0])
        assert band.valid.tolist() == [True] * 25 + [False] * 5
        np.testing.assert_allclose(band.mean[:25], flat.mean(0), rtol=1e-5)
        ends = [(1 - coverage) / 2, (1 + coverage) / 2]
        low, high = np.quantile(flat, ends, axis=0)
        np.testing.assert_allclose(band.low[:25], low, rtol=1e-5)
        np.testing.assert_allclose(band.high[:25], high, rtol=1e-5)
        for curve in (band.mean, band.low, band.high):
            assert np.isnan(curve[25:]).all()
    single = jax.tree.map(lambda x: x[1, 1], result)
    band = jax.jit(lrd_optax.range_test_band)(single)
    for curve in (band.mean, band.low, band.high):
        np.testing.assert_array_equal(curve, single.smoothed_losses)
    with pytest.raises(ValueError, match=r"^coverage must .* of at most 1, got 1.5$"):
        lrd_optax.range_test_band(result, 1.5)


NOT_STACKED = (
    "batches must be arrays, stacked along a leading axis of one length above 0, "
    "or a list of batches, got shapes "
)
READS_A_TRACER = (
    "must be made of JAX operations, to be compiled: it asks for the value of an array "
    "that is traced, as float(...), int(...), if and NumPy do"
)
WRONG = {
    "loss_fn": ({"loss": 3}, "loss_fn must be a function, got 3"),
    "make_optimizer": (
        {"make_optimizer": optax.sgd(0.1)},
        "make_optimizer must be a function, as optax.adam without (), "
        "got a GradientTransformationExtraArgs",
    ),
    "no rate": (
        {"make_optimizer": lambda rate: optax.sgd(0.1)},
        "make_optimizer must use the schedule that it is given, as "
        "lambda rate: optax.adam(rate) does, but it was never called",
    ),
    "made": (
        {"make_optimizer": lambda rate: 3},
        "make_optimizer must return an optax.GradientTransformation, got 3",
    ),
    "min_value": (
        {"min_value": 0},
        "min_value must be a finite number above 0, got 0",
    ),
    "max_value": (
        {"max_value": np.nan},
        "max_value must be a finite number above 0.001, got nan",
    ),
    "order": (
        {"max_value": 1e-3},
        "max_value must be a finite number above 0.001, got 0.001",
    ),
    "num_steps": (
        {"num_steps": 1},
        "num_steps must be a whole number from 2 to 2**31 - 1, got 1",
    ),
    "array": (
        {"num_steps": jnp.array(3)},
        "num_steps must be a Python number, got a JAX array",
    ),
    "scale": (
        {"scale": "cubic"},
        "scale must be one of 'log', 'linear', got 'cubic'",
    ),
    "smoothing": (
        {"smoothing": 0.9},
        "smoothing must be a finite number of at least 0 and of at most 0.2, got 0.9",
    ),
    "divergence": (
        {"divergence": 1},
        "divergence must be a finite number above 1, got 1",
    ),
    "same rate": (
        {"min_value": 1, "max_value": 1 + 1e-9},
        "the learning rates must be normal numbers and rise at each step in float32, "
        "got 40 from 1.0 to 1.000000001",
    ),
    "no normal number": (
        {"min_value": 1e-44},
        "the learning rates must be normal numbers and rise at each step in float32, "
        "got 40 from 1e-44 to 100.0",
    ),
    "no batches": ({"data": {}}, NOT_STACKED + "[]"),
    "empty list": ({"data": []}, NOT_STACKED + "[]"),
    "no axis": ({"data": {"x": np.float32(3)}}, NOT_STACKED + "[()]"),
    "lengths": (
        {"data": {"x": np.zeros((3, 2)), "y": np.zeros((4, 2))}},
        NOT_STACKED + "[(3, 2), (4, 2)]",
    ),
    "empty": ({"data": np.zeros((0, 2))}, NOT_STACKED + "[(0, 2)]"),
    "last batch": (
        {"data": [np.zeros((8, 4)), np.zeros((8, 4)), np.zeros((3, 4))]},
        "batches in a list must be of one shape, got (3, 4) and (8, 4)",
    ),
    "loss": (
        {"loss": lambda p, b: p - b[0]},
        "loss_fn must return a real scalar array and nothing else, got "
        "float32 of shape (4,)",
    ),
    "complex": (
        {"loss": lambda p, b: jax.lax.complex(loss_fn(p, b), p[0])},
        "loss_fn must return a real scalar array and nothing else, got "
        "complex64 of shape ()",
    ),
    "whole numbers as params": (
        {"params": {"w": np.ones(4, "f"), "steps": np.arange(3)}},
        "params['steps'] must be an array of floats, got int64: let loss_fn close over "
        "what does not train",
    ),
    "loss that reads a tracer": (
        {"loss": lambda p, b: jnp.float32(float(p[0]))},
        f"loss_fn {READS_A_TRACER}",
    ),
    "factory that reads a tracer": (
        {"make_optimizer": lambda rate: optax.sgd(float(rate(0)))},
        f"make_optimizer {READS_A_TRACER}",
    ),
    "aux": (
        {"loss": lambda p, b: (loss_fn(p, b), 3)},
        "loss_fn must return a real scalar array and nothing else, got a tuple",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input(name):
    arguments, sentence = WRONG[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        range_test(**arguments)
    assert str(caught.value) == sentence
