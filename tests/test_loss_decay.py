"""Loss decay is the loss times the schedule, and learning-rate decay only for SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrd_optax
from lrd_optax import schedules

pytestmark = pytest.mark.usefixtures("optax_promotion")

OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "rmsprop": optax.rmsprop,
    "adagrad": optax.adagrad,
    "adadelta": optax.adadelta,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_the_loss_times_the_schedule(name):
    decay = schedules.step_decay(1.0, 0.5, 3, offset=1)
    target = jnp.arange(1.0, 5.0)
    params = {"w": jnp.ones(4), "b": jnp.float32(0)}

    def loss(params, factor):
        return factor * jnp.sum((params["w"] * target + params["b"] - 3) ** 2)

    def run(optimizer, factor):
        def step(carry, count):
            params, state = carry
            grads = jax.grad(loss)(params, factor(count))
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, jnp.arange(20))[1]

    base = OPTIMIZERS[name](10.0 if name == "adadelta" else 0.01)
    ours = run(optax.chain(lrd_optax.loss_decay(decay), base), lambda count: 1.0)
    expected = run(base, decay)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, expected
    )
    plain = run(base, lambda count: 1.0)  # and it is not nothing
    assert not np.allclose(ours["w"], plain["w"], rtol=1e-3)


STEPS = 20_000


def mean_steps(name):
    """Mean size of the last steps, of the plain run: with loss decay, with rate decay.

    The gradients are given, the same in all three, so that nothing feeds back. The
    schedule falls slowly, to a tenth at the end.
    """
    decay = schedules.exponential_step_decay(1.0, 0.1, STEPS)
    base = OPTIMIZERS[name]
    runs = [
        base(0.1),
        optax.chain(lrd_optax.loss_decay(decay), base(0.1)),
        base(schedules.multiply(decay, 0.1)),
    ]

    def step(states, grads):
        updates, states = zip(
            *(tx.update(grads, s, grads) for tx, s in zip(runs, states, strict=True)),
            strict=True,
        )
        return states, [jnp.mean(jnp.abs(each)) for each in updates]

    states = tuple(tx.init(jnp.ones(8)) for tx in runs)
    grads = 1 + 0.5 * np.random.default_rng(0).standard_normal((STEPS, 8), np.float32)
    sizes = jax.lax.scan(step, states, grads)[1]
    plain, decayed, rate = (np.mean(each[-200:]) for each in sizes)
    return decayed / plain, rate / plain


def test_is_rate_decay_for_sgd():
    loss, rate = mean_steps("sgd")
    np.testing.assert_allclose(loss, rate, rtol=1e-6)
    np.testing.assert_allclose(rate, 0.1, rtol=0.02)


def test_is_not_rate_decay_with_momentum():
    """The longer the memory, the more: with 0.999, a thousand steps."""
    decay = schedules.natural_exponential_decay(1.0, 0.01)

    def last_step(optimizer):
        def step(state, _):
            updates, state = optimizer.update(jnp.ones(()), state)
            return state, updates

        return jax.lax.scan(step, optimizer.init(jnp.ones(())), length=500)[1][-1]

    def base(rate):
        return optax.sgd(rate, momentum=0.9)

    loss = last_step(optax.chain(lrd_optax.loss_decay(decay), base(1.0)))
    ratio = loss / last_step(base(decay))
    # sum of (0.9 e^0.01)^k over that of 0.9^k
    np.testing.assert_allclose(ratio, 0.1 / (1 - 0.9 * np.exp(0.01)), rtol=1e-3)
    assert ratio > 1.09


@pytest.mark.parametrize(
    ("name", "size"), [("adam", 0.88), ("rmsprop", 1.0), ("adadelta", 0.98)]
)
def test_nearly_vanishes(name, size):
    """The rate at a tenth makes steps of a tenth; the loss at a tenth hardly any less.

    Adam's second moment remembers a thousand steps, in which the loss falls by a tenth.
    """
    loss, rate = mean_steps(name)
    np.testing.assert_allclose(rate, 0.1, rtol=0.02)
    np.testing.assert_allclose(loss, size, atol=0.005)


def test_half_vanishes_in_adagrad():
    loss, rate = mean_steps("adagrad")
    np.testing.assert_allclose(rate, 0.1, rtol=0.02)
    # c(T) over the root of the mean of c(t)^2 up to T
    np.testing.assert_allclose(loss, 0.1 / np.sqrt(0.99 / (2 * np.log(10))), rtol=0.03)


def test_a_clip_behind_it_undoes_it():
    decay = schedules.step_decay(1.0, 0.5, 1)
    clipped = optax.chain(
        lrd_optax.loss_decay(decay), optax.clip_by_global_norm(1.0), optax.sgd(0.1)
    )
    grads = jnp.array([30.0, 40.0])
    state = clipped.init(grads)
    for _ in range(4):  # 50, 25, 12.5, 6.25: all are above 1
        updates, state = clipped.update(grads, state)
        np.testing.assert_allclose(updates, [-0.06, -0.08], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64"])
def test_keeps_dtypes(dtype):
    tx = lrd_optax.loss_decay(schedules.inverse_time_decay(1.0, 1.0))
    updates = {"a": jnp.ones(3, dtype), "none": None}
    state = tx.init(updates)
    assert isinstance(state, optax.ScaleByScheduleState)
    _, state = tx.update(updates, state)
    out, state = jax.jit(tx.update)(updates, state)
    assert out["a"].dtype == updates["a"].dtype
    np.testing.assert_array_equal(out["a"], jnp.full(3, 0.5, dtype))
    assert out["none"] is None
    assert state.count == 2


def test_wrong_schedule():
    with pytest.raises(TypeError) as error:
        lrd_optax.loss_decay(0.5)
    sentence = "schedule must be a function of the update count, got 0.5"
    assert str(error.value) == sentence
