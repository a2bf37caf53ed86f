"""Differences of two arms, paired by seed, with the two intervals of `plan.md`.

`Study` takes them from the records of the study.
"""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from benchmarks import records

from . import plan
from .plan import Block

Record = dict[str, Any]

RESAMPLES = 10_000
HIGHER_IS_BETTER = {"accuracy", "octaves"}
NOT_RUN = "not run yet"


class Comparison(NamedTuple):
    """A mean difference over seeds, signed so that above zero the first arm is better.

    `low` and `high` are the ends of the plain 95 % interval, `wide_low` and `wide_high`
    those of the interval corrected for the number of comparisons.
    """

    mean: float
    low: float
    high: float
    wide_low: float
    wide_high: float

    @property
    def half(self) -> float:
        """Half the width of the corrected interval, which is symmetric."""
        return (self.wide_high - self.wide_low) / 2


@functools.cache
def shares(seeds: int) -> np.ndarray:
    """Returns how large a part of each resample each seed is, [resamples, seeds]."""
    even = np.full(seeds, 1 / seeds)
    return np.random.default_rng(0).multinomial(seeds, even, RESAMPLES) / seeds


def compare(
    first: ArrayLike,
    second: ArrayLike,
    higher_is_better: bool = True,
    comparisons: int = plan.COMPARISONS,
) -> Comparison:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(f"no pairs of seeds: shapes {first.shape} and {second.shape}")
    differences = first - second if higher_is_better else second - first
    seeds, mean = len(differences), differences.mean()
    means = shares(seeds) @ differences
    low, high = np.quantile(means, (0.025, 0.975))
    # Resamples scatter about the mean of these seeds, which lies closer to them than
    # the true mean does. So their variance is, on average, (n - 1) / n of what it
    # should be, as if a variance were divided by n and not by n - 1.
    error = means.std() * math.sqrt(seeds / (seeds - 1))
    half = error * stats.t.isf(0.05 / comparisons / 2, seeds - 1)
    return Comparison(*map(float, (mean, low, high, mean - half, mean + half)))


def word(comparison: Comparison) -> str:
    """Says in the words of the plan what was seen: clear, hint or tie."""
    side = "gain" if comparison.mean > 0 else "loss"
    if comparison.wide_low > 0 or comparison.wide_high < 0:
        return f"clear {side}"
    if comparison.low > 0 or comparison.high < 0:
        return f"hint of {side}"
    return "tie"


# What the records say.


class Study:
    """The cells that have been run, and what they say about a comparison."""

    def __init__(self, records: list[Record]):
        self.records = records
        self.cells: dict[tuple[str, str, str], Record] = {}
        for record in records:
            if "arm" in record:
                key = record["block"], record["arm"], record["seeds"]
                self.cells.setdefault(key, record)
        self.known: dict[tuple[str, ...], Comparison | None] = {}

    def find(self, block: Block, arm: str, seeds: str = "test") -> Record | None:
        return self.cells.get((block.name, arm, seeds))

    def has(self, block: Block) -> bool:
        return any(self.find(block, arm.name) for arm in block.arms)

    def arm(self, block: Block, name: str) -> str | None:
        """Returns the arm that is "best LRD" or "best remedy" on validation data."""
        if name not in plan.BEST:
            return name
        kinds = ("LRD",) if name == "best LRD" else ("dense", "remedy")
        found = [self.find(block, arm.name) for arm in block.arms if arm.kind in kinds]
        tuned = [cell for cell in found if cell and cell.get("validation") is not None]
        best = max(tuned, key=lambda cell: cell["validation"], default=None)
        return best["arm"] if best else None

    def compare(
        self, block: Block, metric: str, first: str, second: str, seeds: str = "test"
    ) -> Comparison | None:
        """Compares two arms; None if one is not there."""
        key = block.name, metric, first, second, seeds
        if key not in self.known:
            names = self.arm(block, first), self.arm(block, second)
            cells = [name and self.find(block, name, seeds) for name in names]
            values = [values_of(cell, metric) for cell in cells if cell]
            comparison = None
            if len(values) == 2:
                # A run that diverged may lack a metric that is not the main one.
                both = np.isfinite(values).all(0)
                if metric in block.metrics and not both.all():
                    raise ValueError(f"{block.name}, {names}: {metric} is missing")
                if both.sum() > 1:
                    first_values, second_values = np.array(values)[:, both]
                    higher = metric in HIGHER_IS_BETTER
                    comparison = compare(first_values, second_values, higher)
            self.known[key] = comparison
        return self.known[key]

    def outcome(self, block: Block, metric: str, first: str, second: str) -> str:
        """Like `word`, but a gain that other seeds did not confirm is not clear."""
        comparison = self.compare(block, metric, first, second)
        if comparison is None:
            return NOT_RUN
        if word(comparison) != "clear gain":
            return word(comparison)
        again = self.compare(block, metric, first, second, "replication")
        confirmed = again is not None and word(again) == "clear gain"
        return "clear gain" if confirmed else "gain, not confirmed"


def values_of(cell: Record, metric: str) -> np.ndarray:
    return np.array(cell["results"].get(metric, [None]), dtype=np.float64)


def read(folder: Path) -> list[Record]:
    """Reads the records of all files; a line that was cut off is not a result yet."""
    files = sorted(folder.glob("*.jsonl"))
    return [record for file in files for record in records.read_lines(file)]
