"""The reports for Optax in docs/upstream are true, as long as its faults are there."""

import contextlib
import inspect
import io
import re
import types
import unittest
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized  # Optax depends on it

REPORTS = sorted((Path(__file__).parents[1] / "docs" / "upstream").glob("*.md"))
HEADINGS = [
    "What happens",
    "What is expected",
    "Reproducer",
    "Versions",
    "Cause",
    "Correction",
    "Test",
]
each_report = pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.stem)


def reproducer(report):
    """Its code, and what its comments say that each line prints."""
    [code] = re.findall(r"```python\n(.*?)```", report.read_text(), re.DOTALL)
    promised = re.findall(r"^print\(.*\)  # (\S+)$", code, re.MULTILINE)
    assert len(promised) == code.count("print") > 1
    return code, promised


def printed(code, optax):
    """What it prints with this module in the place of Optax."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code.replace("import optax\n", ""), {"optax": optax})
    return out.getvalue().split()


@pytest.mark.usefixtures("optax_promotion")
@each_report
def test_reproducer(report):
    code, promised = reproducer(report)
    assert len(code.splitlines()) <= 10
    found = printed(code, optax)
    # The first is the value without jit.
    assert found[0] == promised[0]
    right = [promised[0]] * len(promised)
    if found == right != promised:
        pytest.skip(f"the fault has been mended in Optax {optax.__version__}")
    assert found == promised


@each_report
def test_report_is_complete(report):
    text = report.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert re.findall(r"^\+\+\+ b/(.*)$", text, re.MULTILINE) == [
        "optax/schedules/_schedule.py",
        "optax/schedules/_schedule_test.py",
    ]


def diffs(report):
    """The lines of its two diffs, without the heads."""
    return re.findall(r"^@@.*?\n(.*?)```", report.read_text(), re.DOTALL | re.MULTILINE)


def module(source):
    made = types.ModuleType("schedule")
    exec(source, made.__dict__)
    return made


def original_and_corrected(report):
    """Optax's file of schedules as it is, and with the first diff of the report."""
    source = Path(inspect.getsourcefile(optax.exponential_decay)).read_text()
    [diff, _] = diffs(report)
    # The comment for pyrefly is not in the releases yet.
    lines = [line for line in diff.splitlines(keepends=True) if "pyrefly" not in line]
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    if before not in source:
        pytest.skip(f"Optax {optax.__version__} has other lines")
    return module(source), module(source.replace(before, after))


@pytest.mark.usefixtures("optax_promotion")
@each_report
def test_correction(report):
    """It mends the reproducer, and changes no value without jit."""
    original, corrected = original_and_corrected(report)
    code, promised = reproducer(report)
    assert printed(code, corrected) == [promised[0]] * len(promised)
    calls = re.findall(r"= optax\.(\w+\(.*\))$", code, re.MULTILINE)
    assert calls
    for call in calls:
        before, after = (eval(f"m.{call}", {"m": m}) for m in (original, corrected))
        # One by one: for an array of counts, XLA takes a reciprocal without jit too.
        for count in range(50):
            assert after(count) == before(count), (call, count)


@pytest.mark.usefixtures("optax_promotion")
@each_report
def test_proposed_test(report):
    """Optax's file of tests would pass with the correction, and not without it."""
    [_, diff] = diffs(report)
    body = "\n".join(re.findall(r"^\+(.*)$", diff, re.MULTILINE))
    schedules = original_and_corrected(report)
    for schedule, passes in zip(schedules, (False, True), strict=True):
        names = {"parameterized": parameterized, "jax": jax, "np": np}
        names["_schedule"] = schedule
        exec(f"class Proposed(parameterized.TestCase):\n{body}", names)
        tests = unittest.defaultTestLoader.loadTestsFromTestCase(names["Proposed"])
        outcome = unittest.TestResult()
        tests.run(outcome)
        assert outcome.testsRun > 0
        assert not outcome.errors
        assert len(outcome.failures) == (0 if passes else outcome.testsRun)


def said(report, pattern):
    [count] = re.findall(pattern, " ".join(report.read_text().split()))
    return int(count)


@pytest.mark.usefixtures("optax_promotion")
def test_numbers_of_lengths():
    """They are counted from the cause, which is compared with XLA for some lengths."""
    late, nan = REPORTS
    lengths = np.arange(1, 1001, dtype=np.float32)
    reciprocals = np.float32(1) / lengths
    # The product of two numbers in float32 is exact in float64.
    rests = 1 - lengths.astype(float) * reciprocals.astype(float)
    assert np.sum(rests < 0) == said(nan, r"for (\d+) of the lengths 1 to 1,000")
    assert np.sum(rests < 0) == said(nan, r"for the same (\d+) lengths")
    assert np.sum(rests > 0) == said(nan, r"For (\d+) other lengths")
    stairs = np.arange(1, 4, dtype=np.float32)
    quotients = stairs[:, None] * lengths * reciprocals
    below = np.floor(quotients) < stairs[:, None]
    assert np.sum(below.any(axis=0)) == said(late, r"for (\d+) of the lengths 1 to")

    sample = [3, 41, *np.random.default_rng(0).choice(lengths, 20).astype(int).tolist()]

    @jax.jit
    def values(ends, multiples):  # one program for all, since the lengths are constants
        powers = [optax.polynomial_schedule(1.0, 0.0, 0.9, n) for n in sample]
        lines = [optax.linear_schedule(1.0, 0.0, n) for n in sample]
        steps = [optax.exponential_decay(1, n, 0.5, staircase=True) for n in sample]
        return [
            jnp.stack([f(count) for f, count in zip(made, counts, strict=True)])
            for made, counts in ((powers, ends), (lines, ends), (steps, multiples))
        ]

    ends = jnp.array(sample)
    power, line, step = values(ends, jnp.outer(ends, jnp.arange(1, 4)))
    if not jnp.any(jnp.isnan(power)):
        pytest.skip(f"the fault has been mended in Optax {optax.__version__}")
    index = np.array(sample) - 1
    np.testing.assert_array_equal(jnp.isnan(power), rests[index] < 0)
    np.testing.assert_allclose(line, rests[index], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(step) > 0.5**stairs, below[:, index].T)
