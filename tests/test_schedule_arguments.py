"""Wrong arguments of schedules get one sentence; numbers of every kind are right."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrd_optax import schedules


def line(count):
    """Any schedule: this one returns what it is called with."""
    return jnp.asarray(count)


NAN, INF = math.nan, math.inf
WRONG = [
    (
        lambda: schedules.inverse_time_decay(NAN, 0.1),
        "init_value must be a finite number, got nan",
    ),
    (
        lambda: schedules.inverse_time_decay(0.1, -0.1),
        "decay_rate must be a finite number of at least 0, got -0.1",
    ),
    (
        lambda: schedules.inverse_time_decay(0.1, 0.1, 0),
        "decay_steps must be a whole number from 1 to 2**31 - 1, got 0",
    ),
    (
        lambda: schedules.step_decay(INF, 0.1, 10),
        "init_value must be a finite number, got inf",
    ),
    (
        lambda: schedules.step_decay(1.0, 0, 10),
        "decay_rate must be a finite number above 0, got 0",
    ),
    (
        lambda: schedules.step_decay(1.0, 0.1, -10),
        "step_size must be a whole number from 1 to 2**31 - 1, got -10",
    ),
    (
        lambda: schedules.step_decay(1.0, 0.1, 10, -1),
        "offset must be a whole number from 0 to 2**31 - 1, got -1",
    ),
    (
        lambda: schedules.exponential_step_decay(1.0, NAN, 10),
        "decay_rate must be a finite number above 0, got nan",
    ),
    (
        lambda: schedules.natural_exponential_decay(1.0, -1),
        "decay_rate must be a finite number of at least 0, got -1",
    ),
    (
        lambda: schedules.polynomial_decay(1.0, 0.0, 0, 10),
        "power must be a finite number above 0, got 0",
    ),
    (
        lambda: schedules.polynomial_decay(1.0, 0.0, 1, 2.5),
        "decay_steps must be a whole number from 1 to 2**31 - 1, got 2.5",
    ),
    (
        lambda: schedules.polynomial_decay(1.0, 0.0, 1, NAN),
        "decay_steps must be a whole number from 1 to 2**31 - 1, got nan",
    ),
    (
        lambda: schedules.cosine_annealing(0.1, 0.2, 10),
        "min_value must be at most max_value, got 0.2 and 0.1",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, 10, 0.9),
        "t_mult must be a finite number of at least 1, got 0.9",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, 10, NAN),
        "t_mult must be a finite number of at least 1, got nan",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, 0),
        "first_decay_steps must be a whole number from 1 to 2**31 - 1, got 0",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, 9, 2, 1.5),
        "peak_mult must be a finite number above 0 and of at most 1, got 1.5",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, 1, 1.0000001),
        "t_mult must be 1, or large enough for at most 2000 restarts in 2**31 steps, "
        "got 1.0000001",
    ),
    (
        lambda: schedules.cyclical(0.2, 0.1, 10),
        "base_value must be at most peak_value, got 0.2 and 0.1",
    ),
    (
        lambda: schedules.cyclical(0.1, 0.2, 0),
        "step_size must be a whole number from 1 to 2**31 - 1, got 0",
    ),
    (
        lambda: schedules.cyclical(0.1, 0.2, 9, step_size_down=0),
        "step_size_down must be a whole number from 1 to 2**31 - 1, got 0",
    ),
    (
        lambda: schedules.cyclical(0.1, 0.2, 9, window="hamming"),
        "window must be one of 'triangular', 'welch', 'hann', or a function, "
        "got 'hamming'",
    ),
    (
        lambda: schedules.cyclical(0.1, 0.2, 9, cycle_gamma=1.1),
        "cycle_gamma must be a finite number above 0 and of at most 1, got 1.1",
    ),
    (
        lambda: schedules.cyclical(0.1, 0.2, 9, step_gamma=0),
        "step_gamma must be a finite number above 0 and of at most 1, got 0",
    ),
    (
        lambda: schedules.inverse_sqrt_decay(0.1, 0),
        "decay_steps must be a whole number from 1 to 2**31 - 1, got 0",
    ),
    (
        lambda: schedules.warmup(0.1, -1),
        "warmup_steps must be a whole number from 0 to 2**31 - 1, got -1",
    ),
    (
        lambda: schedules.warmup(0.1, 1, init_value=NAN),
        "init_value must be a finite number, got nan",
    ),
    (
        lambda: schedules.warmup_stable_decay(1.0, 1, -1, 1),
        "stable_steps must be a whole number from 0 to 2**31 - 1, got -1",
    ),
    (
        lambda: schedules.warmup_stable_decay(1.0, 1, 1, 0),
        "decay_steps must be a whole number from 1 to 2**31 - 1, got 0",
    ),
    (
        lambda: schedules.warmup_stable_decay(1.0, 1, 1, 1, end_value=2),
        "end_value must be at most peak_value, got 2.0 and 1.0",
    ),
    (
        lambda: schedules.warmup_stable_decay(1.0, 1, 1, 1, decay="sqrt"),
        "decay must be one of 'linear', 'cosine', '1-sqrt', got 'sqrt'",
    ),
    (
        lambda: schedules.per_epoch(line, 0),
        "steps_per_epoch must be a whole number from 1 to 2**31 - 1, got 0",
    ),
    (lambda: schedules.multiply(), "multiply must get at least one schedule, got none"),
    (
        lambda: schedules.multiply(line, NAN),
        "each factor must be a finite number, got nan",
    ),
    (
        lambda: schedules.clamp(line),
        "clamp must get min_value or max_value, got neither",
    ),
    (
        lambda: schedules.clamp(line, 2, 1),
        "min_value must be at most max_value, got 2.0 and 1.0",
    ),
    (
        lambda: schedules.repeat(line, 0),
        "steps must be a whole number from 1 to 2**31 - 1, got 0",
    ),
    (
        lambda: schedules.shift(line, 0.5),
        "steps must be a whole number from 1 - 2**31 to 2**31 - 1, got 0.5",
    ),
    (
        lambda: schedules.step_decay(jnp.ones(2), 0.5, 10),
        "init_value must be a scalar, got shape (2,)",
    ),
    (
        lambda: schedules.cosine_annealing(1e39, 0, 10),
        "max_value must be at most 3.4e+38 in size, got 1e+39",
    ),
    (
        lambda: schedules.polynomial_decay(1, 0, 1, 2**31),
        "decay_steps must be a whole number from 1 to 2**31 - 1, got 2147483648",
    ),
    (
        lambda: schedules.shift(line, -(2**31)),
        "steps must be a whole number from 1 - 2**31 to 2**31 - 1, got -2147483648",
    ),
    (
        lambda: schedules.cyclical(0, 1, 9, window=["hann"]),
        "window must be one of 'triangular', 'welch', 'hann', or a function, "
        "got ['hann']",
    ),
]
WRONG_TYPE = [
    (
        lambda: schedules.warmup(optax.sgd(0.1), 10),
        "schedule must be a function of the update count, or a number, "
        "got a GradientTransformationExtraArgs",
    ),
    (
        lambda: schedules.multiply([line, 0.5]),
        "each factor must be a function of the update count, or a number, got a list",
    ),
    (
        lambda: schedules.clamp(optax.sgd(0.1), 10),
        "schedule must be a function of the update count, "
        "got a GradientTransformationExtraArgs",
    ),
    (
        lambda: schedules.step_decay("0.1", 0.5, 10),
        "init_value must be a finite number, got '0.1'",
    ),
    (
        lambda: schedules.step_decay(0.1, True, 10),
        "decay_rate must be a finite number above 0, got True",
    ),
    (
        lambda: schedules.step_decay(0.1, 0.5, None),
        "step_size must be a whole number from 1 to 2**31 - 1, got None",
    ),
    (
        lambda: schedules.step_decay(0.1, jnp.array(True), 9),
        "decay_rate must be a finite number above 0, got a scalar of dtype bool",
    ),
    (
        lambda: schedules.repeat(0.1, 10),
        "schedule must be a function of the update count, got 0.1",
    ),
    (
        lambda: schedules.per_epoch(0.1, 10),
        "schedule must be a function of the update count, got 0.1",
    ),
    (
        lambda: schedules.shift(None, 10),
        "schedule must be a function of the update count, got None",
    ),
    (
        lambda: schedules.clamp(1, 0),
        "schedule must be a function of the update count, got 1",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, jnp.int32(9), 2),
        "first_decay_steps must be a Python number, got a JAX array",
    ),
    (
        lambda: schedules.cosine_annealing_warm_restarts(0.1, 0, 9, jnp.int32(2)),
        "t_mult must be a Python number, got a JAX array",
    ),
    (
        lambda: jax.jit(schedules.clamp(lambda count: float(count), 0))(3),
        "schedule must be made of JAX operations, to be compiled: it asks for the "
        "value of an array that is traced, as float(...), int(...), if and NumPy do",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), WRONG, ids=[s for _, s in WRONG])
def test_wrong_values(call, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        call()
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("call", "sentence"), WRONG_TYPE, ids=[s for _, s in WRONG_TYPE]
)
def test_wrong_types(call, sentence):
    with pytest.raises(TypeError, match=re.escape(sentence)) as error:
        call()
    assert str(error.value) == sentence


# Each with arguments that are fine; every one of them is then made wrong in turn.
FINE = {
    "inverse_time_decay": {"init_value": 1, "decay_rate": 0.1, "decay_steps": 5},
    "step_decay": {"init_value": 1, "decay_rate": 0.5, "step_size": 5, "offset": 0},
    "exponential_step_decay": {"init_value": 1, "decay_rate": 0.5, "step_size": 5},
    "natural_exponential_decay": {"init_value": 1, "decay_rate": 0.1},
    "polynomial_decay": {"init_value": 1, "end_value": 0, "power": 1, "decay_steps": 5},
    "cosine_annealing": {"max_value": 1, "min_value": 0, "decay_steps": 5},
    "cosine_annealing_warm_restarts": {
        "max_value": 1,
        "min_value": 0,
        "first_decay_steps": 5,
        "t_mult": 2,
        "peak_mult": 0.5,
    },
    "cyclical": {
        "base_value": 0,
        "peak_value": 1,
        "step_size": 5,
        "step_size_down": 5,
        "cycle_gamma": 0.5,
        "step_gamma": 0.5,
    },
    "inverse_sqrt_decay": {"init_value": 1, "decay_steps": 5},
    "warmup_stable_decay": {
        "peak_value": 1,
        "warmup_steps": 5,
        "stable_steps": 5,
        "decay_steps": 5,
        "init_value": 0,
        "end_value": 0,
    },
}
ALL_ARGUMENTS = [(name, argument) for name in FINE for argument in FINE[name]]


@pytest.mark.parametrize(("name", "argument"), ALL_ARGUMENTS)
def test_every_argument_is_checked(name, argument):
    make, fine = getattr(schedules, name), FINE[name]
    make(**fine)
    steps = "steps" in argument or "size" in argument or argument == "offset"
    wrong = [NAN, INF, 10**400, *([2.5, -1] if steps else [])]
    if steps and argument not in ("offset", "warmup_steps", "stable_steps"):
        wrong.append(0)
    if argument in ("min_value", "base_value") or (
        argument == "end_value" and name == "warmup_stable_decay"
    ):
        wrong.append(1.5)  # above the peak
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{argument} must be .*, got "):
            make(**{**fine, argument: value})
    with pytest.raises(TypeError, match=f"^{argument} must be .*, got 'x'$"):
        make(**{**fine, argument: "x"})


def test_numbers_of_every_kind():
    expected = schedules.step_decay(0.5, 0.25, 10)(jnp.arange(30))
    for kind in (np.float32, np.float64, jnp.float32, jnp.bfloat16, np.array):
        for steps in (10, 10.0, np.int8(10), jnp.int32(10), jnp.float32(10)):
            value = schedules.step_decay(kind(0.5), kind(0.25), steps)(jnp.arange(30))
            np.testing.assert_allclose(value, expected, rtol=1e-6)
