"""The theory of the study: the simulations agree with it, and with no wrong law."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
try:
    from benchmarks.study import theory
finally:
    del sys.path[0]

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(autouse=True)
def simulate_once(monkeypatch):
    for name, simulate in SIMULATIONS.items():
        monkeypatch.setattr(theory, name, simulate)


SIMULATIONS = {
    name: functools.cache(getattr(theory, name))
    for name in ("walks", "step_covariances")
}


def agrees(record):
    difference = abs(record["measured"] - record["expected"])
    return difference <= 5 * record["error"]


@pytest.mark.parametrize("statement", theory.STATEMENTS)
def test_simulations_agree(statement):
    records = statement(quick=True)
    assert [record for record in records if not agrees(record)] == []
    for record in records:
        assert record.keys() == {"theory", "cases", "expected", "measured", "error"}
        assert np.isfinite([record[key] for key in ("measured", "error")]).all()
        moves = not record["theory"].startswith("Where u is zero")
        assert (record["error"] > 0) == moves
        # The errors are small enough to tell something.
        assert record["error"] <= 0.05 * abs(record["expected"])
    json.dumps(records)


VARIANCE, COVARIANCE = theory.stationary_variance, theory.covariance
GROWTH = theory.growth

# For each wrong law what it replaces, and how many of whose records reject it.
WRONG = {
    "variance of the mean rate": (
        "stationary_variance",
        lambda p, eta, h, s: VARIANCE(p, p * eta, h, s),
        theory.variances,
        10,  # of p < 1: 4 + 2 with LRD, 4 unbiased
    ),
    "variance of a rate near zero": (
        "stationary_variance",
        lambda p, eta, h, s: eta * s**2 / (2 * h),
        theory.variances,
        12,  # not without LRD at 0.01, 0.03 and 0.05: near zero it is right
    ),
    "covariance without the diagonal": (
        "covariance",
        lambda p, cov, mean: p**2 * cov,
        theory.covariances,
        6,
    ),
    "diagonal of the variance only": (
        "covariance",
        lambda p, cov, mean: COVARIANCE(p, cov, 0 * mean),
        theory.covariances,
        6,
    ),
    "covariance off the diagonal too": (
        "covariance",
        lambda p, cov, mean: p**2 * cov + p * (1 - p) * (cov + np.outer(mean, mean)),
        theory.covariances,
        6,
    ),
    "p (1 - p) off the diagonal": (
        "covariance",
        lambda p, cov, mean: np.where(
            np.eye(3) > 0, COVARIANCE(p, cov, mean), p * (1 - p) * cov
        ),
        theory.covariances,
        4,  # not at p = 1/2, where it is p^2
    ),
    "speed of the full rate": (
        "mean_position",
        lambda p, eta, h, steps: (1 - eta * h) ** steps,
        theory.speeds,
        6,
    ),
    "mean square of the mean rate": (
        "growth",
        lambda p, eta, h: (1 - p * eta * h) ** 2,
        theory.stable_rates,
        18,
    ),
    "growth of the full rate": (
        "growth",
        lambda p, eta, h: GROWTH(1, eta, h),
        theory.stable_rates,
        18,
    ),
    "stable rate of the mean": (
        "stable_rate",
        lambda p, h: 2 / (p * h),
        theory.stable_rates,
        6,
    ),
    "coupled as if alone": (
        "coupled_growth",
        lambda p, eta, hessian, steps: GROWTH(p, eta, 1.8),
        theory.coupled,
        3,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_laws_are_rejected(name, monkeypatch):
    law, wrong, statement, changed = WRONG[name]
    monkeypatch.setattr(theory, law, wrong)
    rejected = [record for record in statement(quick=True) if not agrees(record)]
    assert len(rejected) == changed


def test_crossing_of_a_parabola():
    rate, error = theory.crossing((1.9, 2.1), [(0.905, 0.0), (1.105, 0.0)])
    assert (rate, error) == (pytest.approx(2), 0)


def test_run_puts_all_statements_together(monkeypatch):
    monkeypatch.setattr(
        theory, "STATEMENTS", (lambda quick: [quick], lambda quick: [2])
    )
    assert theory.run() == [False, 2]
    assert theory.run(quick=True) == [True, 2]
