"""Every schedule drives every optimizer, with LRD, on real digits, and resumes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from sklearn.datasets import load_digits

import lrd_optax
from lrd_optax import schedules

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optax_promotion")]

HALF = 15  # steps to the checkpoint, and from there to the end
OPTIMIZERS = {  # with a rate that suits the problem
    "sgd": (optax.sgd, 0.5),
    "adagrad": (optax.adagrad, 0.1),
    "rmsprop": (optax.rmsprop, 0.02),
    "adam": (optax.adam, 0.05),
    "adadelta": (optax.adadelta, 30.0),
}
SCHEDULES = {
    "constant": optax.constant_schedule,
    "inverse time": lambda r: schedules.inverse_time_decay(r, 0.1),
    "inverse time, stairs": lambda r: schedules.inverse_time_decay(r, 0.5, 10, True),
    "step": lambda r: schedules.step_decay(r, 0.5, 10, offset=1),
    "exponential step": lambda r: schedules.exponential_step_decay(r, 0.5, 10),
    "natural exponential": lambda r: schedules.natural_exponential_decay(r, 0.05),
    "polynomial": lambda r: schedules.polynomial_decay(r, 0.0, 0.9, 29),
    "cosine": lambda r: schedules.cosine_annealing(r, r / 100, 30),
    "restarts": lambda r: schedules.cosine_annealing_warm_restarts(r, 0.0, 10),
    "restarts, 1.5": lambda r: schedules.cosine_annealing_warm_restarts(
        r, 0.0, 5, 1.5, 0.9
    ),
    "triangular": lambda r: schedules.cyclical(0.0, r, 4),
    "triangular2": lambda r: schedules.cyclical(r / 10, r, 4, cycle_gamma=0.5),
    "exp_range": lambda r: schedules.cyclical(
        r / 10, r, 4, step_gamma=0.99, decay_base=True
    ),
    "welch": lambda r: schedules.cyclical(0.0, r, 4, window="welch"),
    "hann": lambda r: schedules.cyclical(0.0, r, 4, window="hann", step_size_down=6),
    "Transformer": lambda r: schedules.warmup(schedules.inverse_sqrt_decay(r, 5), 5),
    "warm-up, stable, decay": lambda r: schedules.warmup_stable_decay(r, 5, 10, 10),
    "composed": lambda r: schedules.clamp(
        schedules.multiply(
            schedules.repeat(
                schedules.per_epoch(schedules.step_decay(1.0, 0.5, 1), 3), 12
            ),
            schedules.shift(schedules.natural_exponential_decay(r, 0.1), 10),
        ),
        min_value=r / 100,
    ),
}


@pytest.fixture(scope="module")
def loss():
    images, labels = load_digits(return_X_y=True)
    images, labels = (
        jnp.asarray(images[:300] / 16, jnp.float32),
        jnp.asarray(labels[:300]),
    )

    def mean_loss(params):
        logits = images @ params["w"] + params["b"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return mean_loss


def train(optimizer, loss, carry):
    """HALF steps; the losses before each."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, carry, length=HALF)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trains_and_resumes(optimizer, loss):
    """One run for each schedule, all in one program: run n takes schedule n."""
    make, rate = OPTIMIZERS[optimizer]
    made = [as_float32(schedule(rate)) for schedule in SCHEDULES.values()]
    runs = jnp.arange(len(made))
    params = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}

    def chain(run, direct):
        def schedule(count):
            return jax.lax.switch(run, made, count)

        base = make(schedule) if direct else optax.inject_hyperparams(make)(schedule)
        return optax.chain(base, lrd_optax.learning_rate_dropout(0.5, key=0))

    curves = []
    # Given directly it is the same curve.
    for direct in (False, True) if optimizer in ("sgd", "adam") else (False,):

        @jax.jit
        @jax.vmap
        def start(run, direct=direct):
            return params, chain(run, direct).init(params)

        @jax.jit
        @jax.vmap
        def half(run, carry, direct=direct):
            return train(chain(run, direct), loss, carry)

        fresh = start(runs)
        middle, first = half(runs, fresh)
        _, second = half(runs, middle)
        restored = serialization.from_bytes(fresh, serialization.to_bytes(middle))
        np.testing.assert_array_equal(half(runs, restored)[1], second)
        curves.append(np.concatenate([first, second], axis=1))
    for curve in curves:
        assert np.all(np.isfinite(curve))
        slow = curve[:, -1] >= 0.9 * curve[:, 0]
        assert not slow.any(), np.array(list(SCHEDULES))[slow]
        np.testing.assert_allclose(curve, curves[0], rtol=1e-4)


def as_float32(schedule):
    """One type for all the branches of a switch: the constant is a Python float."""
    return lambda count: jnp.asarray(schedule(count), jnp.float32)


def test_drives_other_hyperparameters(loss):
    """Momentum against the learning rate, weight decay, and keep_prob."""
    rates = schedules.cyclical(0.1, 0.5, 5)
    momenta = schedules.shift(schedules.cyclical(0.85, 0.95, 5), -5)
    np.testing.assert_allclose(
        (rates(jnp.arange(30)) - 0.1) / 0.4,
        (0.95 - momenta(jnp.arange(30))) / 0.1,
        atol=1e-5,
    )

    def decayed(learning_rate, momentum, weight_decay):
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.sgd(learning_rate, momentum=momentum),
        )

    keep = schedules.polynomial_decay(1.0, 0.5, 1, 10)
    chain = optax.chain(
        optax.inject_hyperparams(decayed)(
            rates, momenta, schedules.cosine_annealing(0.01, 0.0, 30)
        ),
        lrd_optax.learning_rate_dropout(keep, key=0),
    )
    params = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    carry, losses = jax.jit(lambda carry: train(chain, loss, carry))(
        (params, chain.init(params))
    )
    assert losses[-1] < 0.5 * losses[0]
    values = carry[1][0].hyperparams  # those of the last update
    last = HALF - 1
    np.testing.assert_allclose(values["learning_rate"], rates(last), rtol=1e-6)
    np.testing.assert_allclose(values["momentum"], momenta(last), rtol=1e-6)


@pytest.mark.parametrize("x64", [False, True], indirect=True)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_updates_keep_their_dtype_in_inject_hyperparams(dtype, x64):
    optimizer = optax.inject_hyperparams(optax.sgd)(
        schedules.cosine_annealing(0.1, 0.0, 9),
        momentum=schedules.shift(schedules.cyclical(0.85, 0.95, 3), -3),
    )
    grads = jnp.ones(3, dtype)
    state = optimizer.init(grads)

    def step(state, _):
        updates, state = optimizer.update(grads, state, grads)
        return state, updates

    assert jax.lax.scan(step, state, length=3)[1].dtype == dtype
