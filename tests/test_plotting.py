"""The pictures: what is drawn, not how it looks."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from drawn_masks import mask_of
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import stats

import lrd_optax
from lrd_optax import plotting, schedules

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


@pytest.fixture
def backend():
    matplotlib.use("Agg")
    yield
    pyplot.close("all")


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_schedules(ax):
    """Ours, Optax's, a number; those that take no arrays too."""
    named = {
        "cosine": schedules.cosine_annealing(0.1, 0.001, 12),
        "one cycle": optax.linear_onecycle_schedule(10, 1.0),
        "constant": optax.constant_schedule(0.5),
        "number": 0.25,
    }
    assert plotting.plot_schedules(named, 10, ax=ax) is ax
    drawn = lines(ax)
    assert list(drawn) == labels(ax) == list(named)
    for name, schedule in named.items():
        call = schedule if callable(schedule) else lambda count: 0.25
        values = [float(call(jnp.int32(t))) for t in range(10)]
        flat = values[-1:] * (values[-1] == values[-2])  # it is drawn to its end
        np.testing.assert_allclose(drawn[name].get_ydata(), values + flat, rtol=1e-6)
        np.testing.assert_array_equal(drawn[name].get_xdata(), range(10 + len(flat)))
    assert ax.get_xlim() == (0, 10)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "value")


def test_second_call(ax):
    """It goes on with the next line, and keeps the axis of the longer one."""
    plotting.plot_schedules({"a": 0.1}, 20, ax=ax)
    plotting.plot_schedules({"b": 0.2}, 10, ax=ax)
    first, second = ax.get_lines()
    assert first.get_color() != second.get_color()
    assert labels(ax) == ["a", "b"]
    assert ax.get_xlim() == (0, 20)


def test_jumps_of_schedules(ax):
    """They are vertical: a value is held until the next, and the last stair ends."""
    restarts = schedules.cosine_annealing_warm_restarts(1.0, 0.0, 8)
    named = {"stairs": schedules.step_decay(1.0, 0.5, 3), "restarts": restarts}
    plotting.plot_schedules(named, 10, ax=ax)
    x, y = lines(ax)["stairs"].get_data()
    assert x.tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10]
    assert y.tolist() == [1] * 4 + [0.5] * 4 + [0.25] * 4 + [0.125] * 2
    x, y = lines(ax)["restarts"].get_data()
    assert x.tolist() == [*range(9), 8, 9]
    np.testing.assert_allclose(y[7:10], [restarts(7), restarts(7), 1.0])
    # Neither a fast decay nor a cycle has a jump.
    smooth = {
        "decay": schedules.inverse_time_decay(1.0, 1.0),
        "cycle": schedules.cyclical(0.0, 1.0, 5),
        "root": schedules.polynomial_decay(1.0, 0.1, 0.5, 10),
    }
    plotting.plot_schedules(smooth, 10, ax=ax)
    for name in smooth:
        assert lines(ax)[name].get_xdata().tolist() == list(range(10))


@pytest.mark.parametrize("height", [3, 8])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_legend_covers_no_curve(height, scale):
    figure = Figure(figsize=(4, height), dpi=100)
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.set_yscale(scale)
    plotting.plot_schedules({"SGD, schedule 0": 1.0, "1": 2.0}, 9, ax=ax)
    for seeds in (1, 4):  # more curves on the same Axes
        curves = {"curve": np.full((seeds, 9), 2.0 + seeds)}
        plotting.plot_learning_curves(curves, ax=ax)
        figure.canvas.draw()
        box = ax.get_legend().get_window_extent()
        top = max(ax.transData.transform(x.get_xydata())[:, 1].max() for x in ax.lines)
        assert top < box.y0
        assert box.x0 >= ax.bbox.x0
        assert box.x1 <= ax.bbox.x1
    assert ax.bbox.y0 <= ax.transData.transform((0, 1))[1]


def test_limits_of_the_caller(ax):
    ax.set_ylim(0, 3)
    plotting.plot_learning_curves({"a": np.arange(9)}, ax=ax)
    assert ax.get_ylim() == (0, 3)


def test_schedules_of_many_steps(ax):
    plotting.plot_schedules(
        {"cosine": schedules.cosine_annealing(1, 0, 10**9)}, 10**9, ax=ax
    )
    steps = lines(ax)["cosine"].get_xdata()
    assert (steps[0], steps[-1], len(steps)) == (0, 10**9 - 1, 10_000)
    assert ax.get_legend() is None


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_range_test(ax, scale):
    space = np.geomspace if scale == "log" else np.linspace
    rates = space(1e-3, 1, 50, dtype="f")
    smooth = 2 - np.tanh(np.linspace(0, 3, 50, dtype="f"))
    valid = np.arange(50) < 40
    raw = np.where(valid, smooth + 0.1, np.nan)
    result = lrd_optax.RangeTestResult(
        *map(jnp.asarray, (rates, raw, np.where(valid, smooth, np.nan), valid))
    )
    drawn = plotting.plot_range_test(
        result, marks={"steepest": 0.01}, cycle=(0.005, 0.1), ax=ax
    )
    assert drawn is ax
    assert labels(ax) == ["loss", "smoothed", "steepest 0.01", "cycle 0.005 to 0.1"]
    np.testing.assert_array_equal(lines(ax)["loss"].get_ydata(), raw)
    np.testing.assert_array_equal(lines(ax)["smoothed"].get_ydata()[:40], smooth[:40])
    np.testing.assert_array_equal(lines(ax)["steepest 0.01"].get_xdata(), [0.01, 0.01])
    assert ax.get_xscale() == scale
    assert ax.get_xlabel() == "learning rate" + ", log scale" * (scale == "log")
    low, high = ax.get_ylim()
    assert low < smooth[:40].min() < smooth.max() < high
    # The rates where the test had stopped are shown too.
    assert ax.get_xlim() == (rates[0], rates[-1])


def test_range_test_of_seeds(ax):
    rates = np.broadcast_to(np.geomspace(1e-3, 1, 20, dtype="f"), (3, 20))
    losses = np.linspace(2, 1, 20, dtype="f") + np.arange(3, dtype="f")[:, None]
    result = lrd_optax.RangeTestResult(
        *map(jnp.asarray, (rates, losses, losses, np.ones((3, 20), bool)))
    )
    plotting.plot_range_test(result, ax=ax)
    assert labels(ax) == ["90 % of 3 seeds", "mean, smoothed"]
    mean = lines(ax)["mean, smoothed"].get_ydata()
    np.testing.assert_allclose(mean, losses.mean(0), rtol=1e-6)
    (band,) = ax.collections
    low, high = np.quantile(losses[:, 0], [0.05, 0.95])
    ys = band.get_paths()[0].vertices[:, 1]
    assert ys.max() == pytest.approx(high)
    assert np.isclose(ys, low).any()


def test_range_tests_on_one_axes(ax):
    """Each has its colour, and both are to be seen."""
    rates = np.geomspace(1e-3, 1, 20, dtype="f")
    for number, name in enumerate(["a", "b"]):
        losses = np.linspace(2, 1, 20, dtype="f") + 5 * number
        curves = (rates, losses, losses, np.ones(20, bool))
        result = lrd_optax.RangeTestResult(*map(jnp.asarray, curves))
        plotting.plot_range_test(result, label=name, ax=ax)
    assert labels(ax) == ["a, loss", "a, smoothed", "b, loss", "b, smoothed"]
    colors = [lines(ax)[f"{name}, smoothed"].get_color() for name in "ab"]
    assert colors == list(plotting.COLORS[:2])
    assert ax.get_ylim()[0] < 1
    assert ax.get_ylim()[1] > 7
    assert ax.get_xlim() == pytest.approx((1e-3, 1))
    lower = jax.tree.map(lambda x: x, result)._replace(learning_rates=1e-3 * rates)
    plotting.plot_range_test(lower, label="c", marks={"mark": 1e-4}, ax=ax)
    assert ax.get_xlim() == pytest.approx((1e-6, 1))
    curves = {to_hex(line.get_color()) for line in ax.get_lines()[:-1]}
    assert to_hex(lines(ax)["c, mark 0.0001"].get_color()) not in curves


@pytest.mark.parametrize("number", [2, 50, 1000])
@pytest.mark.parametrize("ends", [(1e-7, 10), (1e-3, 0.1)])
def test_scale_of_the_rates(number, ends):
    for scale, space in (("log", np.geomspace), ("linear", np.linspace)):
        rates = space(*ends, number, dtype="f")
        curves = (rates, rates, rates, np.ones(number, bool))
        result = lrd_optax.RangeTestResult(*map(jnp.asarray, curves))
        drawn = plotting.plot_range_test(result, ax=Figure().subplots())
        assert drawn.get_xscale() == (scale if number > 2 else "log")


def test_blow_up_leaves_the_picture(ax):
    """The fall is to be seen, and there is room for the legend."""
    rates = np.geomspace(1e-3, 1, 50, dtype="f")
    losses = np.linspace(2, 1, 50, dtype="f")
    losses[45:] = 1e6
    curves = (rates, losses, losses, np.ones(50, bool))
    result = lrd_optax.RangeTestResult(*map(jnp.asarray, curves))
    plotting.plot_range_test(result, cycle=(0.01, 0.1), ax=ax)
    low, high = ax.get_ylim()
    assert low < 1
    assert 2.2 < high < 4
    span = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (span.x0, span.x1) == (pytest.approx(0.01), pytest.approx(0.1))


def test_learning_curves(ax):
    rng = np.random.default_rng(0)
    one, many = rng.uniform(size=30), rng.uniform(size=(5, 30))
    steps = 10 * np.arange(30)
    plotting.plot_learning_curves(
        {"one": one, "many": jnp.asarray(many)}, steps=steps, ax=ax
    )
    assert labels(ax) == ["one", "many, 5 seeds"]
    title = ax.get_legend().get_title().get_text()
    assert title == "line: mean, band: 95 % interval"
    np.testing.assert_array_equal(lines(ax)["one"].get_ydata(), one)
    mean = lines(ax)["many, 5 seeds"]
    np.testing.assert_allclose(mean.get_ydata(), many.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(mean.get_xdata(), steps)
    (band,) = ax.collections
    low, high = stats.t.interval(
        0.95, 4, loc=many.mean(0), scale=stats.sem(many, axis=0)
    )
    vertices = band.get_paths()[0].vertices[:, 1]
    assert vertices.min() == pytest.approx(low.min(), rel=1e-5)
    assert vertices.max() == pytest.approx(high.max(), rel=1e-5)
    # More curves on the same Axes look otherwise.
    plotting.plot_learning_curves({"third": one}, ax=ax)
    styles = [(to_hex(x.get_color()), x.get_linestyle()) for x in ax.get_lines()]
    assert len(set(styles)) == 3
    # The legend still says what the band is.
    assert ax.get_legend().get_title().get_text() == title
    plotting.plot_learning_curves({"two": many[:2]}, ax=ax)
    plotting.plot_learning_curves({"lone": many[:1]}, ax=ax)
    assert labels(ax)[3:] == ["two, 2 seeds", "lone"]
    assert len(ax.collections) == 2


def test_what_is_not_finite_is_a_gap(ax):
    """As at the start of 1 / t, and where one of the seeds has exploded."""
    plotting.plot_schedules({"1 / t": lambda count: 1 / count}, 5, ax=ax)
    drawn = lines(ax)["1 / t"].get_ydata()
    np.testing.assert_allclose(drawn, [np.nan, 1, 1 / 2, 1 / 3, 1 / 4], rtol=1e-6)
    runs = np.array([[3.0, 2.0, 1.0], [4.0, np.inf, 2.0]])
    plotting.plot_learning_curves({"runs": runs}, ax=ax)
    np.testing.assert_array_equal(
        lines(ax)["runs, 2 seeds"].get_ydata(), [3.5, np.nan, 1.5]
    )
    ax.figure.canvas.draw()


def test_mask(ax):
    mask = mask_of(0, {"w": jnp.ones((3, 4, 10))}, 0.5)["w"]
    assert plotting.plot_mask(mask, ax=ax) is ax
    (image,) = ax.get_images()
    np.testing.assert_array_equal(image.get_array(), np.reshape(mask, (12, 10)))
    kept = int(mask.sum())
    assert ax.get_title() == f"kept: {kept} of 120 ({100 * kept / 120:.1f} %)"
    light, dark = image.get_cmap().colors
    assert (light, dark) == ("#E8EEF2", plotting.COLORS[0])
    for shape in [(), (7,), (1, 5), (5, 1), (2, 3, 4, 5)]:
        plotting.plot_mask(np.ones(shape, bool), ax=ax)


def test_trajectories(ax):
    def loss(point):
        return point[0] ** 2 + 4 * point[1] ** 2

    path = np.array([[1.0, 0.5], [0.5, 0.1], [0.0, 0.0]])
    paths = {"one": path, "three": np.stack([path, -path, 2 * path])}
    assert plotting.plot_trajectories(loss, paths, ax=ax) is ax
    assert labels(ax) == ["one", "three"]
    drawn = [line for line in ax.get_lines() if len(line.get_xdata()) == 3]
    np.testing.assert_array_equal(np.transpose(drawn[0].get_data()), path)
    assert ax.get_xlim() == (pytest.approx(-1.3), pytest.approx(2.3))
    starts, ends = (
        np.concatenate([x.get_xydata() for x in ax.get_lines() if x.get_marker() == m])
        for m in "ox"
    )
    np.testing.assert_array_equal(starts, [path[0], path[0], -path[0], 2 * path[0]])
    np.testing.assert_array_equal(ends, np.zeros((4, 2)))
    fixed = Figure().subplots()
    ylim = np.array([0, 3])
    plotting.plot_trajectories(loss, {"one": path}, xlim=(-1, 1), ylim=ylim, ax=fixed)
    assert fixed.get_xlim() == (-1, 1)
    assert fixed.get_ylim() == (0, 3)
    # A path that left for infinity, a loss that is flat.
    away = np.array([[1.0, 1.0], [1e3, 10.0], [np.inf, np.nan]])
    plotting.plot_trajectories(
        lambda point: 0 * point[0], {"away": away}, ax=Figure().subplots()
    )


def test_contours():
    """Of the loss at (x, y), not at (y, x); between two of them lie equal parts."""
    seen = []
    ax = Figure().subplots()
    ax.contourf = lambda *args, levels, **kwargs: seen.append((*args, levels))

    def loss(point):  # infinite in a corner
        return jnp.where(point.sum() > 1.5, jnp.inf, point[0] + 10 * point[1] ** 2)

    plotting.plot_trajectories(
        loss, {"a": np.zeros((2, 2))}, xlim=(0, 1), ylim=(-1, 1), ax=ax
    )
    ((x, y, height, levels),) = seen
    expected = np.where(x + y > 1.5, np.nan, x + 10 * y**2)
    np.testing.assert_allclose(height, expected, rtol=1e-4, atol=1e-4)
    finite = height[np.isfinite(height)]
    counts, _ = np.histogram(finite, levels)
    assert np.ptp(counts) < 0.02 * finite.size


def test_new_figure(backend):
    """Without an Axes each call makes a figure of its own."""
    first = plotting.plot_schedules({"a": 0.1}, 3)
    second = plotting.plot_mask(np.ones((2, 2), bool))
    assert first.figure is not second.figure


def test_styles_differ(ax):
    """Where the colours come again the lines are others."""
    plotting.plot_schedules({str(i): float(i) for i in range(14)}, 3, ax=ax)
    styles = {(to_hex(x.get_color()), str(x._dash_pattern)) for x in ax.get_lines()}
    assert len(styles) == 14


BAD = {
    "steps": (
        lambda: plotting.plot_schedules({"a": 0.1}, 0),
        "num_steps must be a whole number from 1 to 2**31 - 1, got 0",
    ),
    "half a step": (
        lambda: plotting.plot_schedules({"a": 0.1}, 10.5),
        "num_steps must be a whole number from 1 to 2**31 - 1, got 10.5",
    ),
    "a list of schedules": (
        lambda: plotting.plot_schedules([0.1], 10),
        "named must be a dict of schedules by name, got [0.1]",
    ),
    "one schedule": (
        lambda: plotting.plot_schedules(schedules.step_decay(1, 0.5, 3), 10),
        "named must be a dict of schedules by name, got a function",
    ),
    "no schedule": (
        lambda: plotting.plot_schedules({}, 10),
        "named must have at least one name, got none",
    ),
    "an optimizer as schedule": (
        lambda: plotting.plot_schedules({"a": optax.sgd(0.1)}, 10),
        "schedule 'a' must be a function of the update count, or a number, got a "
        "GradientTransformationExtraArgs",
    ),
    "a schedule that reads a tracer": (
        lambda: plotting.plot_schedules({"a": lambda count: float(count)}, 10),
        "schedule must be made of JAX operations, to be compiled: it asks for the "
        "value of an array that is traced, as float(...), int(...), if and NumPy do",
    ),
    "an infinite schedule": (
        lambda: plotting.plot_schedules({"a": lambda count: jnp.inf}, 10),
        "schedule 'a' must have a finite value to draw, got none",
    ),
    "no curves": (
        lambda: plotting.plot_learning_curves({}),
        "curves must have at least one name, got none",
    ),
    "a curve without a name": (
        lambda: plotting.plot_learning_curves(np.zeros(99)),
        "curves must be a dict of arrays by name, got float64 of shape (99,)",
    ),
    "an infinite curve": (
        lambda: plotting.plot_learning_curves({"a": [np.inf, np.nan]}),
        "curve 'a' must have a finite value to draw, got none",
    ),
    "nothing valid": (
        lambda: plotting.plot_range_test(
            lrd_optax.RangeTestResult(*(jnp.full(3, jnp.nan),) * 3, jnp.zeros(3, bool))
        ),
        "result has no point that is valid (in all seeds) to draw",
    ),
    "curve": (
        lambda: plotting.plot_learning_curves({"a": np.zeros((2, 2, 2))}),
        "curve 'a' must be of shape [steps] or [seeds, steps], got (2, 2, 2)",
    ),
    "steps of curve": (
        lambda: plotting.plot_learning_curves({"a": np.zeros(3)}, steps=[1, 2]),
        "curve 'a' must be of shape [steps] or [seeds, steps], got (3,) and steps of "
        "shape (2,)",
    ),
    "confidence": (
        lambda: plotting.plot_learning_curves({"a": np.zeros(3)}, confidence=95),
        "confidence must be in (0, 1), got 95",
    ),
    "tree": (
        lambda: plotting.plot_mask({"w": np.ones(3, bool)}),
        "mask must be one boolean array with elements, got a dict: choose a leaf of it",
    ),
    "floats": (
        lambda: plotting.plot_mask(np.ones(3, "f")),
        "mask must be one boolean array with elements, got float32 of shape (3,)",
    ),
    "no element": (
        lambda: plotting.plot_mask(np.ones((0, 2), bool)),
        "mask must be one boolean array with elements, got bool of shape (0, 2)",
    ),
    "no path": (
        lambda: plotting.plot_trajectories(jnp.sum, {}),
        "paths must have at least one name, got none",
    ),
    "nowhere finite": (
        lambda: plotting.plot_trajectories(jnp.sum, {"a": [[np.nan, 1.0]]}),
        "path 'a' must be of shape [steps, 2] or [runs, steps, 2] and somewhere "
        "finite, got shape (1, 2)",
    ),
    "path": (
        lambda: plotting.plot_trajectories(jnp.sum, {"a": np.zeros((4, 3))}),
        "path 'a' must be of shape [steps, 2] or [runs, steps, 2] and somewhere "
        "finite, got shape (4, 3)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, sentence = BAD[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert str(caught.value) == sentence
    assert not pyplot.get_fignums()


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_dir_with_a_stand_in_for_matplotlib():
    code = """
import sys, unittest.mock
sys.modules["matplotlib"] = unittest.mock.MagicMock()
import lrd_optax
print("schedules" in dir(lrd_optax))
"""
    assert run(code) == "True\n"


def test_plotting_is_imported_when_it_is_touched():
    printed = run("""
import sys, jax, optax
before = {*sys.modules}
import lrd_optax
new = {name.split(".")[0] for name in {*sys.modules} - before}
assert not new & {"matplotlib", "scipy"}, new
assert "plotting" in dir(lrd_optax)
try: lrd_optax.plot
except AttributeError as error: print(error)
from matplotlib.figure import Figure
mask = jax.numpy.ones((2, 2), bool)
print(lrd_optax.plotting.plot_mask(mask, ax=Figure().subplots()).get_title())
""")
    assert printed.splitlines() == [
        "module 'lrd_optax' has no attribute 'plot'",
        "kept: 4 of 4 (100.0 %)",
    ]


@pytest.mark.parametrize("missing", ["matplotlib", "scipy"])
def test_without_matplotlib(missing):
    """It says what to install, and help works all the same."""
    printed = run(f"""
import pydoc, sys, lrd_optax
sys.modules[{missing!r}] = None
assert "plotting" not in dir(lrd_optax)
assert "lrd_optax" in pydoc.render_doc(lrd_optax)
try: lrd_optax.plotting
except ImportError as error: print(error)
try: from lrd_optax import plotting
except ImportError as error: print(error)
""")
    sentence = (
        "lrd_optax.plotting needs matplotlib and scipy, which the extra plot installs: "
        "pip install 'lrd_optax[plot]', or '.[plot]' in a clone"
    )
    assert printed.splitlines() == [sentence] * 2


def test_drawing_on_an_axes_needs_no_backend():
    """pyplot, which chooses one, is imported only to make a figure."""
    run("""
import sys
from lrd_optax import plotting
from matplotlib.figure import Figure
plotting.plot_schedules({'a': 0.1}, 3, ax=Figure().subplots())
assert 'matplotlib.pyplot' not in sys.modules
""")
