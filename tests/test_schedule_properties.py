"""Random schedules, and random schedules of schedules, against float64."""

import jax.numpy as jnp
import numpy as np
import pytest
import schedule_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import CASES, LAST, check

from lrd_optax import schedules

pytestmark = pytest.mark.slow

# The same examples in every run.
examples = settings(derandomize=True, deadline=None, database=None, max_examples=200)

values = st.floats(1e-6, 10.0)
shares = st.floats(0.0, 1.0)
factors = st.one_of(st.just(0.1), st.floats(0.01, 1.0))
rates = st.floats(1e-9, 3.0)
lengths = st.one_of(  # in steps
    st.just(1), st.integers(1, 50), st.integers(1, 10**6), st.integers(2**24, LAST)
)


def both(name, *arguments, **options):
    """The schedule of the library, and its reference."""
    modules = schedules, reference
    return tuple(getattr(m, name)(*arguments, **options) for m in modules)


@st.composite
def decays(draw):
    """What falls, or stays, at every count."""
    value, share, steps = draw(values), draw(shares), draw(lengths)
    power = draw(st.floats(0.1, 8.0))
    factor, offset = draw(factors), draw(st.integers(0, LAST))
    made = [
        both("inverse_time_decay", value, draw(rates), steps, draw(st.booleans())),
        both("step_decay", value, factor, steps, offset),
        both("exponential_step_decay", value, factor, steps),
        both("natural_exponential_decay", value, draw(rates)),
        both("polynomial_decay", value, share * value, power, steps),
        both("cosine_annealing", value, share * value, steps),
        both("inverse_sqrt_decay", value, steps),
    ]
    return draw(st.sampled_from(made))


@st.composite
def waves(draw):
    """What rises too."""
    value, steps, factor = draw(values), draw(lengths), draw(factors)
    low, t_mult = draw(shares) * value, draw(st.sampled_from([1, 1.3, 2, 10]))
    power, up, stable = draw(st.floats(0.1, 8.0)), draw(lengths), draw(lengths)
    cycles = {
        "window": draw(st.sampled_from(["triangular", "welch", "hann"])),
        "step_size_down": draw(lengths),
        "cycle_gamma": factor,
        "step_gamma": draw(st.sampled_from([1.0, 0.99994, factor])),
        "decay_base": draw(st.booleans()),
    }
    made = [
        both("cosine_annealing_warm_restarts", value, low, steps, t_mult, factor),
        both("cyclical", low, value, steps, **cycles),
        both("polynomial_decay", low, value, power, steps),
        both("warmup_stable_decay", value, up, stable, steps, end_value=low),
    ]
    return draw(st.sampled_from(made))


@st.composite
def combined(draw, parts):
    """A schedule made of one or two others."""
    (ours, theirs), (other, others) = draw(parts), draw(parts)
    steps, offset, bound = draw(lengths), draw(st.integers(-LAST, LAST)), draw(values)
    made = [
        (schedules.warmup(ours, steps), reference.warmup(theirs, steps)),
        (schedules.per_epoch(ours, steps), lambda t: theirs(t // steps)),
        (schedules.multiply(ours, other, 0.5), lambda t: 0.5 * theirs(t) * others(t)),
        (schedules.clamp(ours, bound), lambda t: np.maximum(theirs(t), bound)),
        (schedules.repeat(ours, steps), lambda t: theirs(t % steps)),
        (
            schedules.shift(ours, offset),
            lambda t: theirs(np.clip(t - offset, 0, LAST)),
        ),
    ]
    return draw(st.sampled_from(made))


# Of every size; of one shape, so that each operation is compiled once.
POWERS = 2 ** np.arange(20, 31)
counts = st.lists(st.integers(0, 2**20), min_size=20, max_size=20).map(
    lambda drawn: np.sort([*drawn, *(POWERS + drawn[0]), *POWERS, LAST])
)


def check_falls(value, expected):
    """Where the formula does not rise, the schedule does not: but for a rounding."""
    value = np.asarray(value, float)
    falls = np.diff(expected) <= 0
    assert np.all(value[1:][falls] <= value[:-1][falls] * (1 + 5e-7))


@examples
@given(decays(), counts)
def test_decays(schedule, count):
    ours, theirs = schedule
    value, expected = ours(jnp.asarray(count)), theirs(count)
    case = CASES["inverse time"]._replace(high=theirs(np.int64(0)))
    check(case, value, expected)
    check_falls(value, expected)


@examples
@given(waves(), counts)
def test_waves(schedule, count):
    ours, theirs = schedule
    value, expected = ours(jnp.asarray(count)), theirs(count)
    case = CASES["inverse time"]._replace(high=max(1e-20, *expected))
    check(case, value, expected)
    check_falls(value, expected)


@examples
@given(st.recursive(st.one_of(decays(), waves()), combined, max_leaves=4), counts)
def test_schedules_of_schedules(schedule, count):
    ours, theirs = schedule
    value, expected = ours(jnp.asarray(count)), theirs(count)
    np.testing.assert_allclose(value, expected, 2e-5, 1e-6 * max(1e-20, *expected))
    check_falls(value, expected)
