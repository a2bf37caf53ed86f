"""Tests what `plan.md` says under Theory, by simulation of SGD with the library's LRD.

u is the step of SGD, M its mask, h a curvature, s the deviation of the gradient's
noise. Each simulation runs with many independent keys. Its standard error is from how
they differ.
"""

import functools
import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrd_optax

KEYS = 64
STEPS = 20  # of a simulation without noise


# The laws.


def covariance(p: float, cov: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns Cov(M u), from Cov(u) and E u."""
    square = np.diag(cov) + mean**2
    return p**2 * cov + p * (1 - p) * np.diag(square)


def stationary_variance(p: float, eta: float, h: float, s: float) -> float:
    """Returns E theta^2 in the end: V = (1 - p) V + p ((1 - eta h)^2 V + (eta s)^2).

    It is the same for every p.
    """
    return eta * s**2 / (h * (2 - eta * h))


def mean_position(p: float, eta: float, h: float, steps: int) -> float:
    """Returns E theta after a number of steps from 1."""
    return (1 - p * eta * h) ** steps


def growth(p: float, eta: float, h: float) -> float:
    """Returns the factor by which E theta^2 grows at each step."""
    return (1 - p) + p * (1 - eta * h) ** 2


def stable_rate(p: float, h: float) -> float:
    """Returns the rate at which `growth` is 1."""
    return 2 / h


def coupled_growth(p: float, eta: float, hessian: np.ndarray, steps: int) -> float:
    """Returns the growth of the mean loss per step, from a start of ones."""
    second = np.ones_like(hessian)  # E theta theta'
    for _ in range(steps):
        pull = hessian @ second
        thinned = covariance(p, pull @ hessian, np.zeros(len(hessian)))
        second = second - p * eta * (pull + pull.T) + eta**2 * thinned
    return float((hessian * second).sum() / hessian.sum()) ** (1 / steps)


# The simulations.


class Case(NamedTuple):
    """SGD of a quadratic with LRD; `kind` is "LRD", "unbiased" or "dense"."""

    kind: str
    p: float
    eta: float
    h: Any  # a number, or a Hessian as tuples
    s: float = 0.0


class Moments(NamedTuple):
    """Means over the elements, for each key and step."""

    mean: np.ndarray  # of theta: [keys, steps, dimensions]
    second: np.ndarray  # of theta theta': [keys, steps, dimensions, dimensions]


def optimizer(kind: str, rate: Any, p: Any, key: Any) -> optax.GradientTransformation:
    """Makes SGD, alone or with LRD."""
    sgd = optax.sgd(rate)
    if kind == "dense":
        return sgd
    unbiased = kind == "unbiased"
    dropout = lrd_optax.learning_rate_dropout(p, key=key, unbiased=unbiased)
    return optax.chain(sgd, dropout)


def generator(*case: Any) -> np.random.Generator:
    """Makes a generator that belongs to a case."""
    return np.random.default_rng(zlib.crc32(repr(case).encode()))


def mask_seeds(cases: Any) -> np.ndarray:
    """Draws the seeds of the masks: [cases, KEYS]."""
    return np.stack(
        [generator(case).integers(2**32, size=KEYS, dtype=np.uint32) for case in cases]
    )


def normals(*shape: int) -> np.ndarray:
    """Draws the noise. All cases have the same, and masks of their own."""
    return generator(*shape).standard_normal((KEYS, *shape), np.float32)


def arrays(*rows: Any) -> list[np.ndarray]:
    """Makes float32 arrays of numbers."""
    return [np.asarray(row, np.float32) for row in rows]


@functools.partial(jax.jit, static_argnames=("kind", "steps", "size"))
def _walks(
    seeds: Any,
    normals: Any,
    rates: Any,
    ps: Any,
    hessians: Any,
    noises: Any,
    *,
    kind: str,
    steps: int,
    size: int,
) -> Any:
    def of_seed(
        seed: Any, normals: Any, rate: Any, p: Any, hessian: Any, noise: Any
    ) -> Any:
        tx = optimizer(kind, rate, p, jax.random.key(seed))

        def step(carry: Any, normal: Any) -> Any:
            theta, state = carry
            gradient = hessian @ theta
            if normal is not None:
                gradient += noise * normal
            updates, state = tx.update(gradient, state, theta)
            theta = optax.apply_updates(theta, updates)
            return (theta, state), Moments(theta.mean(axis=1), theta @ theta.T / size)

        theta = jnp.full((len(hessian), size), 1.0 if normals is None else 0.0)
        return jax.lax.scan(step, (theta, tx.init(theta)), normals, length=steps)[1]

    of_keys = jax.vmap(of_seed, (0, 0, None, None, None, None))
    of_cases = jax.vmap(of_keys, (0, None, 0, 0, 0, 0))
    return of_cases(seeds, normals, rates, ps, hessians, noises)


def walks(cases: tuple[Case, ...], steps: int, size: int) -> list[Moments]:
    """Trains on theta' H theta / 2: from 0 with noise, from 1 without any.

    The cases are of one kind.
    """
    kinds, ps, rates, hessians, noises = zip(*cases, strict=True)
    matrices = [np.atleast_2d(hessian) for hessian in hessians]
    noise = normals(steps, len(matrices[0]), size) if any(noises) else None
    numbers = arrays(rates, ps, matrices, noises)
    static = {"kind": kinds[0], "steps": steps, "size": size}
    moments = _walks(mask_seeds(cases), noise, *numbers, **static)
    mean, second = (np.asarray(part, np.float64) for part in moments)
    return [Moments(*pair) for pair in zip(mean, second, strict=True)]


@functools.partial(jax.jit, static_argnames=("kind",))
def _steps(seeds: Any, gradients: Any, rate: Any, ps: Any, *, kind: str) -> Any:
    def of_seed(seed: Any, gradients: Any, p: Any) -> Any:
        tx = optimizer(kind, rate, p, jax.random.key(seed))

        def step(state: Any, gradient: Any) -> Any:
            moves, state = tx.update(gradient, state)
            rest = moves - moves.mean(axis=1, keepdims=True)
            cov = rest @ rest.T / (moves.shape[1] - 1)
            return state, (cov, abs(moves).max(axis=1))

        covs, far = jax.lax.scan(step, tx.init(gradients[0]), gradients)[1]
        return covs.mean(axis=0), far.max(axis=0)

    of_keys = jax.vmap(of_seed, (0, 0, None))
    return jax.vmap(of_keys, (0, None, 0))(seeds, gradients, ps)


def step_covariances(
    kind: str, ps: tuple[float, ...], eta: float, mean: Any, factor: Any, size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns, per p, the covariance of the step and the farthest move, for each key.

    Gradients are normal, with this mean, and the factor times its transpose as their
    covariance.
    """
    steps = 8
    mean, factor = arrays(mean, factor)
    gradients = mean[:, None] + factor @ normals(steps, len(mean), size)
    seeds = mask_seeds([(kind, p) for p in ps])
    found = _steps(seeds, gradients, *arrays(eta, ps), kind=kind)
    return list(zip(*(np.asarray(part, np.float64) for part in found), strict=True))


def estimate(samples: np.ndarray) -> tuple[float, float]:
    """Returns the mean over the keys and its standard error."""
    return float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples)))


def record(
    theory: str, cases: dict[str, float], expected: float, found: tuple[float, float]
) -> dict[str, Any]:
    """Makes the record of one measurement, which is a value and its error."""
    return {
        "theory": theory,
        "cases": ", ".join(f"{name} = {value:g}" for name, value in cases.items()),
        "expected": float(expected),
        "measured": found[0],
        "error": found[1],
    }


# The statements.


def covariances(quick: bool = False) -> list[dict[str, Any]]:
    """Tests the covariance of the step, with a third element that is always zero."""
    eta, mean = 0.5, (1.0, -0.5, 0.0)
    factor = ((1.0, 0.0, 0.0), (0.8, 0.6, 0.0), (0.0, 0.0, 0.0))
    cov = eta**2 * np.array(factor) @ np.array(factor).T
    laws = {
        "LRD": "The covariance of the step is p^2 Cov(u) + p (1 - p) diag(E u^2)",
        "unbiased": "With unbiased LRD it is Cov(u) + (1 - p) / p diag(E u^2)",
    }
    ps, size, found = (0.1, 0.5, 0.9), 512 if quick else 8192, []
    for kind, law in laws.items():
        measured = step_covariances(kind, ps, eta, mean, factor, size)
        for p, (covs, far) in zip(ps, measured, strict=True):
            expected = covariance(p, cov, eta * np.array(mean))
            if kind == "unbiased":
                expected = expected / p**2
            for row, column in ((0, 0), (0, 1)):
                text = f"{law} ({'diagonal' if row == column else 'off-diagonal'})."
                one = estimate(covs[:, row, column])
                found.append(record(text, {"p": p}, expected[row, column], one))
            if kind == "LRD":
                text = "Where u is zero nothing moves (largest move)."
                found.append(record(text, {"p": p}, 0, (float(far[:, 2].max()), 0.0)))
    return found


def variances(quick: bool = False) -> list[dict[str, Any]]:
    """Tests the stationary variance on a quadratic."""
    formula = "eta s^2 / (h (2 - eta h))"
    laws = {
        "LRD": f"The stationary variance is {formula}, for every p.",
        "unbiased": f"With unbiased LRD it is {formula} of the rate eta / p.",
        "dense": f"Without LRD, at the rate p eta, it is {formula} of that rate.",
    }
    ps = {"LRD": (0.1, 0.3, 0.5, 0.9, 1.0), "unbiased": (0.1, 0.3, 0.5, 0.9)}
    others = {"LRD": [(0.1, 0.75, 2.0, 0.5), (0.5, 0.75, 2.0, 0.5)]}
    steps, found = 1000, []
    for kind, law in laws.items():
        cases = [(p, 0.1, 1.0, 1.0) for p in ps.get(kind, ps["unbiased"])]
        cases += others.get(kind, [])
        factors = [p if kind == "dense" else 1.0 for p, *_ in cases]
        trained = tuple(
            Case(kind, p, factor * eta, h, s)
            for factor, (p, eta, h, s) in zip(factors, cases, strict=True)
        )
        moments = walks(trained, steps, 64 if quick else 512)
        for (p, eta, h, s), result in zip(cases, moments, strict=True):
            full = {"LRD": eta, "unbiased": eta / p, "dense": p * eta}[kind]
            keep_prob = 1.0 if kind == "dense" else p
            expected = stationary_variance(keep_prob, full, h, s)
            case = {"p": p, "eta": eta, "h": h, "s": s}
            samples = result.second[:, steps // 2 :, 0, 0].mean(axis=1)
            found.append(record(law, case, expected, estimate(samples)))
    return found


def speeds(quick: bool = False) -> list[dict[str, Any]]:
    """Tests the mean path to the minimum of a quadratic."""
    laws = {
        "LRD": "Without noise, from 1, E theta_t is (1 - p eta h)^t.",
        "unbiased": "With unbiased LRD it is (1 - eta h)^t.",
    }
    groups = {
        "LRD": [(0.1, 0.1, 1.0), (0.5, 0.1, 1.0), (0.9, 0.05, 2.0)],
        "unbiased": [(0.1, 0.05, 1.0), (0.5, 0.1, 1.0), (0.9, 0.1, 1.0)],
    }
    found = []
    for kind, cases in groups.items():
        trained = tuple(Case(kind, *case) for case in cases)
        moments = walks(trained, STEPS, 512 if quick else 8192)
        for (p, eta, h), result in zip(cases, moments, strict=True):
            full = eta / p if kind == "unbiased" else eta
            expected = mean_position(p, full, h, STEPS)
            case = {"p": p, "eta": eta, "h": h, "t": STEPS}
            measured = estimate(result.mean[:, -1, 0])
            found.append(record(laws[kind], case, expected, measured))
    return found


def measured_growth(moments: Moments, hessian: Any, steps: int) -> tuple[float, float]:
    """Estimates the growth of the mean loss per step, from ones, and its error."""
    hessian = np.atleast_2d(hessian)
    losses = (hessian * moments.second[:, steps - 1]).sum(axis=(1, 2))
    value, error = estimate(losses / hessian.sum())
    return value ** (1 / steps), error * value ** (1 / steps - 1) / steps


def crossing(
    rates: tuple[float, float], factors: list[tuple[float, float]]
) -> tuple[float, float]:
    """Solves for the rate at which the growth is 1, and its error.

    The growth is a quadratic of the rate, and 1 at the rate 0. So (growth - 1) / rate
    is a line.
    """
    (low, high), (first, second) = rates, factors
    values = (first[0] - 1) / low, (second[0] - 1) / high
    slope = (values[1] - values[0]) / (high - low)
    rate = low - values[0] / slope
    shares = (high - rate) / (high - low), (rate - low) / (high - low)
    errors = shares[0] * first[1] / low, shares[1] * second[1] / high
    return rate, math.hypot(*errors) / abs(slope)


def stable_rates(quick: bool = False) -> list[dict[str, Any]]:
    """Tests how the mean square grows, over few steps: later its tail is heavy."""
    laws = {
        "LRD": "E theta^2 grows by (1 - p) + p (1 - eta h)^2 per step.",
        "unbiased": "With unbiased LRD it grows by (1 - p) + p (1 - eta h / p)^2.",
    }
    ends = {
        "LRD": "The rate above which E theta^2 grows is 2 / h, for every p.",
        "unbiased": "With unbiased LRD this rate is 2 p / h.",
    }
    h, found = 2.0, []
    for kind, law in laws.items():
        for p in (0.1, 0.5, 0.9):
            scale = p if kind == "unbiased" else 1.0
            # Far below, E theta^2 falls more slowly than (E theta)^2.
            rates = [x * scale / h for x in (0.5, 1.9, 2.1)]
            cases = tuple(Case(kind, p, eta, h) for eta in rates)
            factors = []
            for case, result in zip(
                cases, walks(cases, STEPS, 512 if quick else 8192), strict=True
            ):
                factors.append(measured_growth(result, h, 4))
                expected = growth(p, case.eta / scale, h)
                numbers = {"p": p, "eta": case.eta, "h": h}
                found.append(record(law, numbers, expected, factors[-1]))
            expected = scale * stable_rate(p, h)
            end = crossing((rates[1], rates[2]), factors[1:])
            found.append(record(ends[kind], {"p": p, "h": h}, expected, end))
    return found


def coupled(quick: bool = False) -> list[dict[str, Any]]:
    """Tests what the fourth leaves out: coupled parameters are stable for longer.

    The mean loss falls at all rates below 2 / c, where c is the largest eigenvalue of
    p H + (1 - p) diag(H).
    """
    hessian = ((1.0, 0.8), (0.8, 1.0))  # its largest eigenvalue is 1.8
    law = (
        "With the Hessian [[1, 0.8], [0.8, 1]], beyond its stable rate of 2 / 1.8, the "
        "mean loss grows by less per step than without LRD (1.44), or falls."
    )
    eta, steps, found = 2.2 / 1.8, 8, []
    cases = tuple(Case("LRD", p, eta, hessian) for p in (0.1, 0.5, 0.9))
    moments = walks(cases, STEPS, 512 if quick else 8192)
    for case, result in zip(cases, moments, strict=True):
        expected = coupled_growth(case.p, eta, np.array(hessian), steps)
        numbers = {"p": case.p, "eta": eta, "t": steps}
        found.append(
            record(law, numbers, expected, measured_growth(result, hessian, steps))
        )
    return found


STATEMENTS = (
    covariances,
    variances,
    speeds,
    stable_rates,
    coupled,
)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Tests all statements: what each expects, what was measured, and its error."""
    return [entry for statement in STATEMENTS for entry in statement(quick)]
