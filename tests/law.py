"""Statistical tests of the law of a mask: p-values that reject what is not iid.

A mask is an array of booleans, (steps, leaves, rows, columns). Under the law every
entry is Bernoulli(p), all of them independent, so the standardised entries have mean
0, variance 1, and every product of two different ones has mean 0.
"""

import itertools
import math

import numpy as np

AXES = ("steps", "leaves", "rows", "columns")


def p_values(masks: np.ndarray, p: float) -> dict[str, float]:
    """Returns a p-value for each way in which `masks` could break the law."""
    z = (masks - p) / math.sqrt(p * (1 - p))
    result = {"mean": _two_sided(z.sum() / math.sqrt(z.size))}
    for axis, name in enumerate(AXES):
        slices = np.moveaxis(z, axis, 0).reshape(z.shape[axis], -1)
        products = slices @ slices.T / math.sqrt(slices.shape[1])
        pairs = products[np.triu_indices(len(products), k=1)]
        result[f"{name} repeat"] = _largest(pairs)
        # The number kept in a slice is binomial: neither too even nor too clumped.
        counts = slices.sum(axis=1) / math.sqrt(slices.shape[1])
        result[f"{name} mean"] = _largest(counts)
    flat = z.reshape(-1)
    lags = [*range(1, 65), *(2**i + j for i in range(7, 14) for j in (-1, 0, 1))]
    result["lags"] = _largest(
        np.array([flat[k:] @ flat[:-k] / math.sqrt(flat.size - k) for k in lags])
    )
    for size in (16, 256, 4096):
        result[f"count in {size}"] = _dispersion(flat, size, p)
    quadruples = [
        flat[: -a - b] * flat[a:-b] * flat[b:-a] * flat[a + b :]
        for a, b in itertools.combinations((1, 2, 3, 8, 64, 65, 100, 4096), 2)
    ]
    result["quadruples"] = _largest(
        np.array([q.sum() / math.sqrt(q.size) for q in quadruples])
    )
    return result


def worst(masks: np.ndarray, p: float) -> float:
    """Returns the smallest p-value, corrected for how many there are."""
    values = p_values(masks, p).values()
    return min(1.0, min(values) * len(values))


def _two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


def _largest(z: np.ndarray) -> float:
    return min(1.0, z.size * _two_sided(np.abs(z).max()))


def _dispersion(flat: np.ndarray, size: int, p: float) -> float:
    blocks = flat[: flat.size // size * size].reshape(-1, size)
    squares = blocks.sum(axis=1) ** 2 / size
    excess = (1 - 6 * p * (1 - p)) / (p * (1 - p) * size)  # kurtosis of a binomial
    return _two_sided((squares.mean() - 1) / math.sqrt((2 + excess) / len(blocks)))
