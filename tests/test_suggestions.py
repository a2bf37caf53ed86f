"""What a curve suggests: a known one, those of other finders, one without an answer."""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrd_optax
import lrd_optax.plotting

RECORDED = json.loads((Path(__file__).parent / "data" / "lr_finders.json").read_text())
METHODS = ["peak", "steepest", "valley", "min_over_10"]


def result(rates, losses, valid=None):
    losses = np.asarray(losses, float)
    valid = np.isfinite(losses) if valid is None else valid
    rates = np.broadcast_to(rates, losses.shape)
    return lrd_optax.RangeTestResult(*map(jnp.asarray, (rates, losses, losses, valid)))


def fall(rates, center, width=0.25, limit=1.0):
    """A loss that falls from 2 to 0.5, fastest at `center`, and rises from `limit`."""
    x = np.log10(rates)
    down = 0.5 + 1.5 / (1 + np.exp((x - np.log10(center)) / width))
    return down + (rates / limit) ** 4


def every(found):
    suggested = [lrd_optax.suggest_learning_rate(found, m) for m in METHODS]
    return np.array([*suggested, *lrd_optax.suggest_cycle(found)])


LOG = np.geomspace(1e-4, 1, 201)
CURVE = fall(LOG, 0.01)


@pytest.mark.parametrize("center", [0.003, 0.01, 0.02])
def test_known_curve(center):
    curve = fall(LOG, center)
    found = result(LOG, curve)
    suggested, steepest, valley, tenth, base, peak = every(found)
    assert suggested == lrd_optax.suggest_learning_rate(found) == peak
    step = LOG[1] / LOG[0]
    assert center / step <= steepest <= center * step
    bottom = LOG[curve.argmin()]
    assert tenth == pytest.approx(bottom / 10)
    part = (curve[0] - curve) / (curve[0] - curve.min())
    assert base == pytest.approx(LOG[part <= 0.1].max())
    assert peak == pytest.approx(LOG[part >= 0.9].min())
    assert valley == pytest.approx((base * bottom) ** 0.5)
    assert base < steepest < peak


def test_slope_is_against_the_logarithm():
    """On evenly spaced rates too, where by index or by rate another one is steepest."""
    rates = np.linspace(1e-4, 1, 2001)
    curve = fall(rates, 0.02)
    steepest = lrd_optax.suggest_learning_rate(result(rates, curve), "steepest")
    assert steepest == pytest.approx(0.02, rel=0.05)
    by_index = rates[np.gradient(curve).argmin()]
    assert by_index < 0.01
    valley = lrd_optax.suggest_learning_rate(result(rates, curve), "valley")
    begin = rates[curve > 0.9 * curve[0] + 0.1 * curve.min()].max()
    assert valley == pytest.approx((begin * rates[curve.argmin()]) ** 0.5, rel=0.05)
    tenth = lrd_optax.suggest_learning_rate(result(rates, curve), "min_over_10")
    assert tenth == pytest.approx(rates[curve.argmin()] / 10, rel=0.02)


def test_units_do_not_matter():
    """Neither the scale of the loss nor an offset; a scale of the rates scales them."""
    expected = every(result(LOG, CURVE))
    np.testing.assert_allclose(every(result(LOG, 1e3 * CURVE - 5e3)), expected)
    scaled = every(result(1e-6 * LOG, CURVE))
    np.testing.assert_allclose(scaled, 1e-6 * expected, rtol=1e-5)


def test_only_valid_points():
    """What came after the stop, or is not finite, is no part of the curve."""
    stop = 180
    curve = np.where(np.arange(201) < stop, CURVE, np.nan)
    short = every(result(LOG[:stop], CURVE[:stop]))
    np.testing.assert_allclose(every(result(LOG, curve)), short)
    wild = np.where(np.arange(201) < stop, CURVE, -1e6 * np.arange(201))
    valid = np.arange(201) < stop
    np.testing.assert_allclose(every(result(LOG, wild, valid)), short)


def test_way_down_from_a_spike_is_no_improvement():
    spike = CURVE + 3 * np.exp(-0.5 * ((np.arange(201) - 160) / 1.5) ** 2)
    assert np.gradient(spike)[160:].min() < 5 * np.gradient(CURVE).min()
    found, expected = every(result(LOG, spike)), every(result(LOG, CURVE))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_seeds_are_averaged():
    rng = np.random.default_rng(0)
    curves = CURVE + 0.1 * rng.standard_normal((400, 1))  # levels differ, not shapes
    expected = every(result(LOG, CURVE))
    np.testing.assert_allclose(every(result(LOG, curves)), expected, rtol=1e-6)
    folded = result(LOG, curves.reshape(20, 20, 201))
    np.testing.assert_allclose(every(folded), expected, rtol=1e-6)
    # A seed that diverged early ends the curve for all.
    curves[7, 150:] = np.nan
    short = every(result(LOG, np.where(np.arange(201) < 150, CURVE, np.nan)))
    np.testing.assert_allclose(every(result(LOG, curves)), short, rtol=1e-6)


@pytest.mark.slow
def test_spread_over_seeds_is_small():
    """Noise of a tenth of the fall: the steepest point moves by less than a quarter of
    a decade, where unsmoothed it is anywhere."""

    def loss(params, batch):  # the curve itself: the parameter counts the steps
        fallen = jax.nn.sigmoid((params - 50.0) / 6)
        blown_up = jax.nn.sigmoid((params - 95.0) / 2)
        return 2 - fallen + 2 * blown_up + 0 * jnp.sum(batch)

    def count(schedule):
        schedule(0)

        def update(updates, state, params=None):
            return jnp.ones_like(updates), state

        return optax.GradientTransformation(lambda params: (), update)

    def one(noise):
        return lrd_optax.lr_range_test(
            lambda p, b: loss(p, b) + b,
            jnp.zeros(()),
            noise,
            count,
            min_value=1e-4,
            max_value=1.0,
            divergence=None,
        )

    noise = 0.05 * jax.random.normal(jax.random.key(0), (64, 101))
    runs = jax.vmap(one)(noise)

    def spread(found):
        return np.std(np.log10(found))

    singles = [jax.tree.map(lambda x, i=i: np.asarray(x[i]), runs) for i in range(64)]
    smooth = [lrd_optax.suggest_learning_rate(run, "steepest") for run in singles]
    rough = [run.learning_rates[np.gradient(run.losses).argmin()] for run in singles]
    assert spread(smooth) < 0.25 < 3 * 0.25 < spread(rough)
    bases, peaks = np.transpose([lrd_optax.suggest_cycle(run) for run in singles])
    assert spread(bases) < 0.25
    assert spread(peaks) < 0.25
    # Without a lag: the mean is where the true curve is steepest.
    middle = runs.learning_rates[0, 49]
    assert abs(np.mean(np.log10(smooth)) - np.log10(middle)) < 0.08


def recorded(finder, name):
    """The curve, of which they leave out the first 10 and the last 5 points."""
    run = RECORDED["runs"][finder][name]
    index = np.arange(len(run["losses"]))
    looked_at = (index >= 10) & (index < len(index) - 5)
    return result(run["learning_rates"], run["losses"], looked_at), run["suggestions"]


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_other_finders_where_they_are_right(name):
    """On the curves of others, the points that they look at, the same rates.

    torch-lr-finder takes the slope against the index, which is the logarithm's on such
    rates. Lightning takes it against the rate, and is not right; nor is the valley of
    fastai, whose length counts the noise before the fall.
    """
    step = 10**0.06 * 1.001  # from one rate to the next
    found, theirs = recorded("torch-lr-finder", name)
    ours = lrd_optax.suggest_learning_rate(found, "steepest")
    assert ours == pytest.approx(theirs["steepest"], rel=1e-5)
    found, theirs = recorded("fastai", name)
    for method, name in {"steepest": "steep", "min_over_10": "minimum"}.items():
        ours = lrd_optax.suggest_learning_rate(found, method)
        assert theirs[name] / step <= ours <= theirs[name] * step, method


NOISE = np.random.default_rng(0).standard_normal(201)
NO_ANSWER = {
    "one point": (
        np.where(np.arange(201) < 1, 1, np.nan),
        METHODS,
        "at least 5 points must be valid (in all seeds), got 1 of 201: "
        "lower min_value, or raise num_steps",
    ),
    "four points": (
        np.where(np.arange(201) < 4, 1, np.nan),
        METHODS,
        "at least 5 points must be valid (in all seeds), got 4 of 201: ",
    ),
    "no point": (
        np.full((2, 201), np.nan),
        METHODS,
        "the loss was not finite, or diverged, at once in 2 of 2 runs: look at the "
        "parameters, or lower min_value",
    ),
    "always the same": (
        np.ones(201),
        METHODS,
        "the loss never falls clearly, by 0 at most where its noise is 0: try other "
        "learning rates (they are from 0.0001 to 1), larger batches (is each entry of "
        "batches a whole one?), or more steps or seeds",
    ),
    "rising": (1 + LOG, METHODS, "the loss never falls clearly, by 0 at most"),
    "noise": (NOISE, METHODS, "the loss never falls clearly, by "),
    "falls to the end": (
        -np.square(np.maximum(np.log10(LOG) + 3, 0)),
        METHODS,
        "the loss still falls at the last learning rate: raise max_value "
        "(the rates are from 0.0001 to 1)",
    ),
    "falls from the beginning": (
        np.exp(-1.5e4 * LOG) + LOG,
        ["peak", "steepest", "valley"],
        "the loss falls fast from the first learning rate on: lower min_value "
        "(the rates are from 0.0001 to 1)",
    ),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, m) for name, (_, ms, _) in NO_ANSWER.items() for m in [*ms, "cycle"]],
)
def test_no_answer(name, method):
    """It says why there is none."""
    curve, _, sentence = NO_ANSWER[name]
    suggest = {"cycle": lrd_optax.suggest_cycle}.get(
        method, functools.partial(lrd_optax.suggest_learning_rate, method=method)
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        suggest(result(LOG, curve))


def test_noise_that_is_told():
    """Of raw noise, that of the losses and twice that of the (here same) smoothed."""
    with pytest.raises(ValueError, match=r"its noise is ") as caught:
        lrd_optax.suggest_learning_rate(result(LOG, NOISE))
    told = float(re.search(r"its noise is ([\d.]+):", str(caught.value))[1])
    assert told == pytest.approx(3, rel=0.2)


def test_fall_beside_noise():
    """Told from noise where it is some times as large, of one run or of many."""
    lrd_optax.suggest_learning_rate(result(LOG, CURVE + 0.01 * NOISE))
    with pytest.raises(ValueError, match="never falls clearly"):
        lrd_optax.suggest_learning_rate(result(LOG, CURVE + NOISE))
    many = np.random.default_rng(1).standard_normal((400, 201))
    lrd_optax.suggest_learning_rate(result(LOG, CURVE + 0.2 * many))
    # A smoothed fall of 1.5 beside losses with noise of 0.3, or of 0.15 in their mean.
    smooth = result(LOG, np.broadcast_to(CURVE, many.shape))
    for losses in (CURVE + 0.3 * NOISE, CURVE + 3 * many):
        curve = jax.tree.map(
            lambda x, to=losses.shape: x[0] if len(to) < 2 else x, smooth
        )
        lrd_optax.suggest_learning_rate(curve._replace(losses=losses))


@pytest.mark.parametrize("number", [5, 7, 10])
def test_few_points(number):
    """The curve itself is no noise."""
    rates = np.geomspace(1e-4, 1, number)
    found = result(rates, fall(rates, 0.01))
    found = lrd_optax.suggest_learning_rate(found, "steepest")
    assert 0.003 < found < 0.04


@pytest.mark.slow
@pytest.mark.parametrize("power", [1, 2])
def test_smoothed_fall_to_the_end(power):
    """Smoothing flattens it there, and it is no end of the fall all the same."""

    def loss(params, batch):
        return 0 * params.sum() + batch

    for number in (20, 100, 500):
        fallen = np.maximum(np.linspace(-1, 1, number + 1), 0) ** power
        for data, says in ((2 - fallen, "raise max"), (1 + fallen[::-1], "lower min")):
            found = lrd_optax.lr_range_test(
                loss,
                jnp.zeros(2),
                data.astype("f"),
                optax.sgd,
                min_value=1e-4,
                max_value=1.0,
                num_steps=number,
            )
            for method in ("peak", "steepest"):
                with pytest.raises(ValueError, match=says):
                    lrd_optax.suggest_learning_rate(found, method)


def test_steepest_needs_no_end_of_the_fall():
    """The loss may still fall at the last rate, if it falls much slower there."""
    curve = fall(LOG, 0.01, limit=1e9)
    assert curve.argmin() == 200
    found = lrd_optax.suggest_learning_rate(result(LOG, curve), "steepest")
    assert found == pytest.approx(0.01, rel=0.05)
    with pytest.raises(ValueError, match="still falls at the last"):
        lrd_optax.suggest_learning_rate(result(LOG, curve), "peak")


@pytest.mark.parametrize("method", ["best", ["steepest"]])
def test_method_is_checked(method):
    with pytest.raises(ValueError, match=r"^method must") as caught:
        lrd_optax.suggest_learning_rate(result(LOG, CURVE), method)
    rule = "method must be one of 'peak', 'steepest', 'valley', 'min_over_10'"
    assert str(caught.value) == f"{rule}, got {method!r}"


@pytest.mark.parametrize(
    "use",
    [
        lrd_optax.suggest_learning_rate,
        lrd_optax.suggest_cycle,
        lrd_optax.range_test_band,
        lrd_optax.plotting.plot_range_test,
    ],
)
def test_no_seeds(use):
    nothing = jax.tree.map(lambda x: x[None][:0], result(LOG, CURVE))
    sentence = "result must not be empty, got losses of shape (0, 201)"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        use(nothing)


def test_another_result():
    """As the band of a result, which has no losses of its own."""
    band = lrd_optax.range_test_band(result(LOG, CURVE))
    sentence = "result must be what lr_range_test returns, got a RangeTestBand"
    with pytest.raises(TypeError, match=f"^{sentence}$"):
        lrd_optax.suggest_learning_rate(band)


@pytest.mark.parametrize(
    "use", [lrd_optax.suggest_learning_rate, lrd_optax.suggest_cycle]
)
def test_traced_result(use):
    sentence = "result must have values, got traced arrays: suggest rates outside of"
    with pytest.raises(TypeError, match=f"^{sentence} jit and vmap"):
        jax.jit(use)(result(LOG, CURVE))
