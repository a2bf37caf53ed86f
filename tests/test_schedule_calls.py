"""How a schedule may be called: counts of every kind, gradients, ensembles, meshes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schedule_cases import LAST, at_length, together

from lrd_optax import schedules

pytestmark = pytest.mark.slow


def line(count):
    """Any schedule: this one returns what it is called with."""
    return jnp.asarray(count)


def test_whole_floats_and_shapes():
    ours, _ = at_length(5)
    run = together(ours)
    expected, floats = run(jnp.arange(12)), run(jnp.arange(12.0).reshape(3, 4))
    # bfloat16 has these exactly.
    narrow, none = run(jnp.arange(12, dtype=jnp.bfloat16)), run(np.zeros((0, 2), int))
    for name, value in expected.items():
        chex.assert_shape(floats[name], (3, 4))
        for other in (floats[name].ravel(), narrow[name]):
            np.testing.assert_allclose(other, value, rtol=1e-6, atol=1e-8)
        chex.assert_shape(none[name], (0, 2))


def test_counts_of_every_kind(x64):
    """What is done with a count is the same for all schedules: here for one."""
    schedule = schedules.cyclical(0.01, 0.3, 5, step_size_down=7)
    expected = np.asarray(schedule(jnp.arange(12)))
    dtype = jnp.float64 if x64 else jnp.float32
    for kind in (int, np.int64, np.uint8, np.float32, jnp.int16, jnp.uint32, float):
        value = schedule(kind(7))
        chex.assert_shape(value, ())
        chex.assert_type(value, dtype)
        assert value.weak_type  # as Optax has it: bfloat16 parameters stay bfloat16
        np.testing.assert_allclose(value, expected[7], rtol=1e-6)
    np.testing.assert_array_equal(schedule(jnp.array([-1, -LAST, 0])), expected[0])
    np.testing.assert_array_equal(schedule(np.array([-1.5, -np.inf])), expected[0])
    scanned = jax.lax.scan(lambda c, _: (c + 1, schedule(c)), 0, length=12)[1]
    np.testing.assert_allclose(scanned, expected, rtol=1e-6)
    mapped = jax.jit(jax.vmap(schedule))(jnp.arange(12))
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)


def test_counts_that_no_int32_holds_are_its_largest():
    """Neither wrapped, nor an OverflowError; and infinity is not NaN."""
    schedule = schedules.cyclical(0.01, 0.3, 5, step_size_down=7)
    expected = schedule(LAST)
    for count in (3 * 10**9, 10**30, np.int64(3 * 10**9), jnp.uint32(3 * 10**9)):
        np.testing.assert_array_equal(schedule(count), expected)
    for count in (-3 * 10**9, -(10**30), np.int64(-3 * 10**9)):
        np.testing.assert_array_equal(schedule(count), schedule(0))
    ours, _ = at_length(LAST)
    for name, value in together(ours)(np.float32([np.inf, np.nan])).items():
        np.testing.assert_array_equal(np.isfinite(value), [True, False], err_msg=name)


@pytest.mark.parametrize("x64", [True], indirect=True)
def test_int64_counts_in_x64(x64):
    schedule = schedules.cyclical(0.01, 0.3, 5, step_size_down=7)
    value = schedule(jnp.array([-(2**40), 7, LAST, 2**40]))
    expected = [schedule(c) for c in (0, 7, LAST, LAST)]
    np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("count", [True, 1j, np.array([False])])
def test_counts_that_are_none(count):
    with pytest.raises(TypeError, match="count must be a real number, got dtype"):
        schedules.step_decay(1.0, 0.5, 10)(count)


def test_gradient_with_respect_to_the_count():
    """Finite everywhere, and the slope of the curve away from its corners."""
    ours, _ = at_length(10)
    slopes = together({name: jax.vmap(jax.grad(f)) for name, f in ours.items()})
    step = np.float32(0.25)
    smooth = np.array([3.5, 6.25, 13.75, 26.25, 57.25], np.float32)
    counts = np.concatenate([np.arange(61, dtype=np.float32), smooth])
    ahead, behind = (together(ours)(counts + d) for d in (step, -step))
    for name, slope in slopes(counts).items():
        assert np.all(np.isfinite(slope)), name
        rise = np.asarray(ahead[name], float) - np.asarray(behind[name], float)
        if "stairs" not in name and not name.startswith("step"):
            rise = rise[-5:] / (2 * step)
            np.testing.assert_allclose(slope[-5:], rise, 0.03, 2e-5, err_msg=name)


def test_gradient_with_respect_to_the_values():
    def total(init, rate, power):
        made = [
            schedules.inverse_time_decay(init, rate, 3),
            schedules.step_decay(init, rate, 3),
            schedules.exponential_step_decay(init, rate, 3),
            schedules.natural_exponential_decay(init, rate),
            schedules.polynomial_decay(init, 0.1 * init, power, 9),
            schedules.cyclical(0.1 * init, init, 3, step_gamma=rate),
            schedules.cosine_annealing_warm_restarts(init, 0.0, 3, 2, rate),
            schedules.warmup(schedules.inverse_sqrt_decay(init, 4), 5),
        ]
        return sum(f(jnp.arange(20)).sum() for f in made)

    args = (0.3, 0.7, 1.7)
    slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*args)
    for n, slope in enumerate(slopes):
        ahead, behind = (
            total(*[a + d * (n == i) for i, a in enumerate(args)])
            for d in (1e-2, -1e-2)
        )
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-2, rtol=2e-3)


@pytest.mark.parametrize(("start", "end"), [(0.3, 0.3), (0.0, 0.3), (0.3, 0.0)])
def test_gradient_of_a_line(start, end):
    """What is done is the end's share, also where both are equal."""

    def value(start, end, count):
        return schedules.polynomial_decay(start, end, 1, 10)(count)

    for count in (0, 2, 8, 10):
        shares = jax.grad(value, argnums=(0, 1))(start, end, count)
        np.testing.assert_allclose(shares, (1 - count / 10, count / 10), rtol=1e-6)


def test_steps_of_any_dtype():
    count = jnp.array([0, 1, 100, 150, 200, 298, 299])
    for kind in (jnp.int8, jnp.uint8, jnp.int16, jnp.uint32, jnp.float32):
        ours = schedules.cyclical(0.0, 1.0, kind(100), step_size_down=jnp.int32(100))
        expected = schedules.cyclical(0.0, 1.0, 100)
        np.testing.assert_allclose(ours(count), expected(count), rtol=1e-6)
        ours = schedules.step_decay(1.0, 0.5, 300, kind(1))(count)
        np.testing.assert_array_equal(ours, [1, 1, 1, 1, 1, 1, 0.5])
    far = schedules.cyclical(0.0, 1.0, jnp.int32(LAST))(jnp.array([2**30, LAST - 1]))
    np.testing.assert_allclose(far, [0.5, 1], rtol=1e-6)
    assert schedules.shift(line, jnp.int32(-5))(LAST) == np.float32(LAST)
    assert schedules.repeat(line, jnp.float32(2))(2**24 + 1) == 1


def test_nothing_is_nan_on_the_way():
    with jax.debug_nans(True):
        value = schedules.warmup(1.0, jnp.int32(0))(jnp.arange(3))
    np.testing.assert_array_equal(value, [1, 1, 1])


def test_an_ensemble_with_values_and_steps_of_its_own():
    init, rate = jnp.array([0.1, 0.3]), jnp.array([0.5, 0.9])
    steps = jnp.array([3, 8])
    count = jnp.arange(30)
    makers = [
        lambda i, r, s: schedules.step_decay(i, r, s, offset=1),
        lambda i, r, s: schedules.inverse_time_decay(i, r, s, staircase=True),
        lambda i, r, s: schedules.polynomial_decay(i, r, 2.0, s),
        lambda i, r, s: schedules.cosine_annealing(i, 0.0, s),
        lambda i, r, s: schedules.cosine_annealing_warm_restarts(i, 0.0, s, 1, r),
        lambda i, r, s: schedules.cyclical(0.0, i, s, cycle_gamma=r, step_size_down=s),
        lambda i, r, s: schedules.warmup_stable_decay(i, s, s, s, end_value=0.0),
        lambda i, r, s: schedules.repeat(schedules.natural_exponential_decay(i, r), s),
        lambda i, r, s: schedules.shift(schedules.exponential_step_decay(i, r, s), s),
        lambda i, r, s: schedules.per_epoch(schedules.inverse_sqrt_decay(i, s), s),
        lambda i, r, s: schedules.clamp(schedules.step_decay(1.0, r, s), max_value=i),
    ]

    def run(init, rate, steps):
        return [make(init, rate, steps)(count) for make in makers]

    alone = [run(float(init[n]), float(rate[n]), int(steps[n])) for n in range(2)]
    ensemble = jax.jit(jax.vmap(run))(init, rate, steps)
    for values, *expected in zip(ensemble, *alone, strict=True):
        np.testing.assert_allclose(values, expected, rtol=3e-6, atol=1e-9)


def test_traces_once():
    schedule = schedules.cosine_annealing_warm_restarts(0.3, 0.0, 3, 1.5)
    run = jax.jit(chex.assert_max_traces(schedule, 1))
    for count in range(5):
        run(jnp.int32(count))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_on_a_mesh(kind):
    axis = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis,))
    ours, _ = at_length(5)
    run, count = together(ours), jnp.arange(16)
    expected = run(count)
    with jax.set_mesh(mesh):
        whole = jax.device_put(3, jax.sharding.NamedSharding(mesh, jax.P()))
        parts = jax.device_put(count, jax.sharding.NamedSharding(mesh, jax.P("data")))
        one, all_parts = run(whole), run(parts)
    for name, value in expected.items():
        np.testing.assert_allclose(one[name], value[3], rtol=1e-6, err_msg=name)
        parts = np.asarray(all_parts[name])
        np.testing.assert_allclose(parts, value, 1e-6, 1e-9, err_msg=name)
