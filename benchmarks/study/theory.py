"""Tests what `plan.md` says under Theory, by simulation of SGD with the library's LRD.

u is the step of SGD, M its mask, h a curvature, s the deviation of the gradient's
noise. All simulations run many independent keys; errors are from how these differ.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrd_optax

KEYS = 64
NAMES = {"LRD": "LRD", "unbiased": "unbiased LRD", "dense": "SGD without LRD"}


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
    """Returns the mean growth of E |theta|^2 per step, from a start of ones."""
    second = np.ones_like(hessian)
    for _ in range(steps):
        pull = hessian @ second
        step = covariance(p, pull @ hessian, np.zeros(len(hessian)))
        second = second - p * eta * (pull + pull.T) + eta**2 * step
    return (np.trace(second) / len(hessian)) ** (1 / steps)


# The simulations.


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


def key_pairs(*numbers: Any) -> tuple[jax.Array, jax.Array]:
    """Draws keys for the masks and keys for the noise, both from numbers."""
    key = jax.random.key(0)
    for number in numbers:
        key = jax.random.fold_in(key, np.float32(number).view(np.uint32))
    masks, noise = jax.random.split(key)
    return jax.random.split(masks, KEYS), jax.random.split(noise, KEYS)


@functools.partial(jax.jit, static_argnames=("kind", "steps", "size"))
def _walk(keys, rate, p, hessian, noise, *, kind, steps, size):
    def of_keys(mask_key, noise_key):
        tx = optimizer(kind, rate, p, mask_key)

        def step(carry, number):
            theta, state = carry
            key = jax.random.fold_in(noise_key, number)
            gradient = hessian @ theta + noise * jax.random.normal(key, theta.shape)
            updates, state = tx.update(gradient, state, theta)
            theta = optax.apply_updates(theta, updates)
            return (theta, state), Moments(theta.mean(axis=1), theta @ theta.T / size)

        theta = jnp.where(noise > 0, 0.0, jnp.ones((len(hessian), size)))
        return jax.lax.scan(step, (theta, tx.init(theta)), jnp.arange(steps))[1]

    return jax.vmap(of_keys)(*keys)


def walk(
    kind: str, p: float, eta: float, hessian: Any, noise: float, steps: int, size: int
) -> Moments:
    """Trains on theta' H theta / 2 with noisy gradients, from 0, or without noise 1."""
    hessian = np.atleast_2d(hessian).astype(np.float32)
    keys = key_pairs(p, eta, hessian[0, 0], noise, len(kind))
    moments = _walk(
        keys,
        jnp.float32(eta),
        jnp.float32(p),
        hessian,
        jnp.float32(noise),
        kind=kind,
        steps=steps,
        size=size,
    )
    return Moments(*(np.asarray(part, np.float64) for part in moments))


@functools.partial(jax.jit, static_argnames=("kind", "steps", "size"))
def _steps(keys, rate, p, mean, factor, *, kind, steps, size):
    """Returns the covariance of steps, and the farthest move, for each key."""

    def of_keys(mask_key, noise_key):
        tx = optimizer(kind, rate, p, mask_key)

        def step(state, number):
            key = jax.random.fold_in(noise_key, number)
            normal = jax.random.normal(key, (len(mean), size))
            moves, state = tx.update(mean[:, None] + factor @ normal, state)
            rest = moves - moves.mean(axis=1, keepdims=True)
            return state, (rest @ rest.T / (size - 1), abs(moves).max(axis=1))

        covs, far = jax.lax.scan(step, tx.init(mean), jnp.arange(steps))[1]
        return covs.mean(axis=0), far.max(axis=0)

    return jax.vmap(of_keys)(*keys)


def estimate(samples: np.ndarray) -> tuple[float, float]:
    """Returns the mean over the keys and its standard error."""
    return float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples)))


def record(
    theory: str, cases: dict[str, float], expected: float, found: tuple[float, float]
) -> dict[str, Any]:
    return {
        "theory": theory,
        "cases": ", ".join(f"{name} = {value:g}" for name, value in cases.items()),
        "expected": float(expected),
        "measured": found[0],
        "error": found[1],
    }


# The statements.


def covariances(quick: bool = False) -> list[dict[str, Any]]:
    """Tests the covariance of a step: gradients are normal, and the third is zero."""
    eta, mean = 0.5, np.array([1.0, -0.5, 0.0])
    factor = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 0.0]])
    cov = eta**2 * factor @ factor.T
    laws = {
        "LRD": "The covariance of a step with LRD is p^2 Cov(u) + p (1 - p) diag(E u^2)",
        "unbiased": "With unbiased LRD it is Cov(u) + (1 - p) / p diag(E u^2)",
    }
    size, found = 512 if quick else 8192, []
    for kind, law in laws.items():
        for p in (0.1, 0.5, 0.9):
            covs, far = _steps(
                key_pairs(p, len(kind)),
                jnp.float32(eta),
                jnp.float32(p),
                mean.astype(np.float32),
                factor.astype(np.float32),
                kind=kind,
                steps=8,
                size=size,
            )
            covs = np.asarray(covs, np.float64)
            expected = covariance(p, cov, eta * mean)
            if kind == "unbiased":
                expected = expected / p**2
            for place, (row, column) in {"diagonal": (0, 0), "other": (0, 1)}.items():
                text = f"{law}: {place} element."
                measured = estimate(covs[:, row, column])
                found.append(record(text, {"p": p}, expected[row, column], measured))
            text = f"An element whose u is zero never moves with {NAMES[kind]}."
            found.append(record(text, {"p": p}, 0, (float(far[:, 2].max()), 0.0)))
    return found


def variances(quick: bool = False) -> list[dict[str, Any]]:
    """Tests the stationary variance on a quadratic."""
    formula = "eta s^2 / (h (2 - eta h))"
    laws = {
        "LRD": f"The stationary variance with LRD is {formula}, for every p.",
        "unbiased": f"With unbiased LRD it is {formula} of the rate eta / p.",
        "dense": f"Without LRD at the rate p eta it is {formula} of that rate.",
    }
    cases = [(p, 0.1, 1.0, 1.0) for p in (0.1, 0.3, 0.5, 0.9, 1.0)]
    others = [(p, 0.75, 2.0, 0.5) for p in (0.1, 0.5)]  # eta h = 1.5
    found = []
    for kind, law in laws.items():
        for p, eta, h, s in cases + (others if kind == "LRD" else []):
            if kind == "dense" and p == 1:
                continue
            rate = p * eta if kind == "dense" else eta
            moments = walk(kind, p, rate, h, s, 1600, 64 if quick else 512)
            samples = moments.second[:, 800:, 0, 0].mean(axis=1)
            case = {"p": p, "eta": eta, "h": h, "s": s}
            full = {"LRD": eta, "unbiased": eta / p, "dense": p * eta}[kind]
            keep_prob = 1.0 if kind == "dense" else p
            expected = stationary_variance(keep_prob, full, h, s)
            found.append(record(law, case, expected, estimate(samples)))
    return found


def speeds(quick: bool = False) -> list[dict[str, Any]]:
    """Tests the mean path to the minimum of a quadratic."""
    laws = {
        "LRD": "From 1, E theta_t with LRD is (1 - p eta h)^t.",
        "unbiased": "With unbiased LRD it is (1 - eta h)^t.",
    }
    cases = [("LRD", p, 0.1, 1.0, 50) for p in (0.1, 0.5, 0.9)]
    cases += [("LRD", 0.3, 0.6, 2.0, 5), ("unbiased", 0.5, 0.1, 1.0, 20)]
    found = []
    for kind, p, eta, h, steps in cases:
        moments = walk(kind, p, eta, h, 0, steps, 512 if quick else 8192)
        full = eta / p if kind == "unbiased" else eta
        expected = mean_position(p, full, h, steps)
        case = {"p": p, "eta": eta, "h": h, "t": steps}
        found.append(
            record(laws[kind], case, expected, estimate(moments.mean[:, -1, 0]))
        )
    return found


def measured_growth(moments: Moments) -> tuple[float, float]:
    """Estimates the growth of the mean square per step, from 1, and its error."""
    squares = np.trace(moments.second[:, -1], axis1=1, axis2=2)
    value, error = estimate(squares / moments.second.shape[-1])
    steps = moments.second.shape[1]
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
    """Tests at which rates the mean square grows, over few steps: its tail is heavy."""
    laws = {
        "LRD": "The mean square grows by (1 - p) + p (1 - eta h)^2 per step with LRD.",
        "unbiased": "With unbiased LRD it grows by (1 - p) + p (1 - eta h / p)^2.",
    }
    ends = {
        "LRD": "It grows above the rate 2 / h with LRD, for every p.",
        "unbiased": "With unbiased LRD it grows above 2 p / h.",
    }
    size, h, found = 512 if quick else 8192, 2.0, []
    for kind, law in laws.items():
        for p in (0.1, 0.5, 0.9):
            scale = p if kind == "unbiased" else 1.0
            rates, factors = (1.9 * scale / h, 2.1 * scale / h), []
            for eta in rates:
                factors.append(measured_growth(walk(kind, p, eta, h, 0, 4, size)))
                case = {"p": p, "eta": eta, "h": h}
                expected = growth(p, eta / scale, h)
                found.append(record(law, case, expected, factors[-1]))
            expected = scale * stable_rate(p, h)
            end = crossing(rates, factors)
            found.append(record(ends[kind], {"p": p, "h": h}, expected, end))
    return found


def coupled(quick: bool = False) -> list[dict[str, Any]]:
    """Tests that the stable rate is higher where the Hessian is not diagonal."""
    hessian = np.array([[1.0, 0.8], [0.8, 1.0]])  # of curvature 1.8 along (1, 1)
    law = (
        "On a quadratic with two coupled parameters, at a rate at which |theta|^2 grows "
        "1.44-fold per step without LRD, the mean square grows with LRD by less."
    )
    eta, steps, found = 2.2 / 1.8, 8, []
    for p in (0.1, 0.5, 0.9):
        moments = walk("LRD", p, eta, hessian, 0, steps, 512 if quick else 8192)
        expected = coupled_growth(p, eta, hessian, steps)
        case = {"p": p, "eta": eta, "t": steps}
        found.append(record(law, case, expected, measured_growth(moments)))
    return found


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Tests all statements: what each expects, what was measured, and its error."""
    statements = (covariances, variances, speeds, stable_rates, coupled)
    return [entry for statement in statements for entry in statement(quick)]
