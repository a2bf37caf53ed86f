"""Runs a cell of the study: the tuning of an arm, then its fresh seeds."""

import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import records

from . import plan
from .plan import Arm, Block
from .tasks import Setup, hyper_of, keys_of, program
from .training import Outcome

Record = dict[str, Any]


class Scale(NamedTuple):
    """How many runs a cell has. The whole study has the numbers of the plan."""

    rates: int = plan.RATES
    tuning_seeds: int = plan.TUNING_SEEDS
    finalists: int = plan.FINALISTS
    final_seeds: int = plan.FINAL_SEEDS
    extensions: int = plan.EXTENSIONS
    test_seeds: int = plan.TEST_SEEDS
    text_seeds: int = plan.TRANSFORMER_TEST_SEEDS
    members: int = plan.MEMBERS
    ensembles: int = plan.ENSEMBLES
    stable_rates: int = 24

    def seeds(self, block: Block) -> int:
        if "bits" in block.metrics:
            return self.text_seeds
        if block.is_ensemble:
            return self.ensembles
        return self.test_seeds


QUICK = Scale(2, 2, 2, 2, 0, 4, 4, 2, 2, 4)


class Run(NamedTuple):
    """One training. Members of an ensemble share the seed."""

    seed: int
    rate: float
    member: int = 0


def width_of(block: Block, scale: Scale) -> int:
    """Returns how many runs one call trains, so that a program is compiled once."""
    if "bits" in block.metrics:
        return scale.text_seeds
    if block.is_ensemble:
        return scale.tuning_seeds * scale.members  # one rate in a call
    return scale.test_seeds


def train(setup: Setup, block: Block, arm: Arm, runs: list[Run], width: int) -> Outcome:
    """Trains the runs, `width` in a call, and joins what they give."""
    parts = []
    for begin in range(0, len(runs), width):
        part = runs[begin : begin + width]
        padded = part + [part[-1]] * (width - len(part))
        parts.append(first(len(part), call(setup, block, arm, padded)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def first(count: int, outcome: Outcome) -> Outcome:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], outcome)


def call(setup: Setup, block: Block, arm: Arm, runs: list[Run]) -> Outcome:
    task = setup.task
    seeds = [run.seed for run in runs]
    members = [100_003 * (run.member + 1) + run.seed for run in runs]
    own = members if arm.start == "starts" else seeds
    params = setup.start(arm.start, arm.noise, seeds, own)
    orders = members if arm.start == "batches" else seeds
    rates = np.array([run.rate for run in runs], np.float32)
    hyper = hyper_of(arm, rates, task.segments * task.steps_per_segment)
    run_all = program(setup.spec, block.optimizer, arm.family)
    keys = keys_of(orders, 6), keys_of(members, 7)
    outcome = run_all(params, setup.draw(seeds), hyper, *keys, setup.pool)
    return outcome._replace(params=None)


def ensemble_scores(log_probabilities: np.ndarray, labels: np.ndarray) -> Record:
    """`log_probabilities`: [ensembles, members, images, classes]."""
    mean = np.exp(np.float64(log_probabilities)).mean(1)
    mean = np.where(np.isfinite(mean), mean, 1 / mean.shape[-1])
    own = np.take_along_axis(mean, labels[..., None], -1)[..., 0]
    right = mean.argmax(-1) == labels
    return {
        "accuracy": 100 * right.mean(-1),
        "NLL": -np.log(np.maximum(own, 1e-12)).mean(-1),
        "calibration error": calibration_error(mean.max(-1), right),
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15):
    """Expected calibration error in points, [ensembles], with bins of equal width."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        np.abs(((right - confidence) * (which == number)).sum(-1))
        for number in range(bins)
    ]
    return 100 * np.sum(gaps, 0) / confidence.shape[-1]


def rates_of(block: Block, scale: Scale) -> list[float]:
    lowest = plan.LOWEST_RATE[block.optimizer]
    return [short(lowest * 10 ** (k / 3)) for k in range(scale.rates)]


def short(rate: float) -> float:
    return float(f"{rate:.3g}")


def beyond(rates: list[float], scores: list[float]) -> list[float]:
    """Returns as many rates beyond the end at which the best lies, or none."""
    best, count = int(np.argmax(scores)), plan.RATES
    if best == 0:
        return [short(rates[0] / 10 ** (k / 3)) for k in range(count, 0, -1)]
    if best == len(rates) - 1:
        return [short(rates[-1] * 10 ** (k / 3)) for k in range(1, count + 1)]
    return []


def validate(setup, block, arm, rates, seeds: range, scale: Scale) -> np.ndarray:
    """Returns the scores on validation data, [rates, seeds]; higher is better."""
    runs = members_of(block, arm, [(s, rate) for rate in rates for s in seeds], scale)
    outcome = train(setup, block, arm, runs, width_of(block, scale))
    if block.is_ensemble:
        labels = np.tile(setup.draw(list(seeds)).valid_y, (len(rates), 1))
        log_probabilities = grouped(outcome.tests["valid"], labels)
        values = -ensemble_scores(log_probabilities, labels)["NLL"]
    elif "bits" in block.metrics:
        values = -outcome.checks["bits"][:, -1]
    else:
        values = outcome.checks["accuracy"][:, -1]
    return values.reshape(len(rates), -1)


def grouped(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return values.reshape(len(groups), -1, *values.shape[1:])


def members_of(block: Block, arm: Arm, runs, scale: Scale) -> list[Run]:
    """Makes runs of (seed, rate): as many as an ensemble has, if it is one."""
    is_ensemble = block.is_ensemble and arm.kind != "dense"
    members = range(scale.members if is_ensemble else 1)
    return [Run(seed, rate, member) for seed, rate in runs for member in members]


def tune(setup, block: Block, arm: Arm, scale: Scale) -> Record:
    rates = rates_of(block, scale)
    seeds = range(block.first_seed, block.first_seed + scale.tuning_seeds)
    scores = validate(setup, block, arm, rates, seeds, scale)
    for _ in range(scale.extensions):
        more = beyond(rates, scores.mean(1).tolist())
        if not more:
            break
        new = validate(setup, block, arm, more, seeds, scale)
        pairs = [*zip(rates, scores, strict=True), *zip(more, new, strict=True)]
        pairs.sort(key=lambda pair: pair[0])
        rates, scores = [rate for rate, _ in pairs], np.array([row for _, row in pairs])
    return {"rates": rates, "tuning": scores.tolist()} | choose(
        setup, block, arm, rates, scores, scale
    )


def choose(setup, block: Block, arm: Arm, rates, scores, scale: Scale) -> Record:
    """Chooses a rate. By accuracy, six seeds cannot tell close rates apart.

    So the best few are trained with more seeds, and the mean over all seeds decides.
    """
    best = np.sort(np.argsort(-scores.mean(1), kind="stable")[: scale.finalists])
    scores, final = scores[best], {}
    if block.metrics == ("accuracy",):
        first = block.first_seed + scale.tuning_seeds
        seeds = range(first, first + scale.final_seeds)
        final = {"final rates": [rates[k] for k in best]}
        more = validate(setup, block, arm, final["final rates"], seeds, scale)
        final["final tuning"] = more.tolist()
        scores = np.concatenate([scores, more], 1)
    means = scores.mean(1)
    chosen = {"rate": rates[best[means.argmax()]], "validation": float(means.max())}
    return chosen | final


def measure(setup, block: Block, arm: Arm, rate: float, first: int, scale: Scale):
    """Returns the results of fresh seeds on test data, by metric."""
    seeds = list(range(first, first + scale.seeds(block)))
    runs = members_of(block, arm, [(seed, rate) for seed in seeds], scale)
    outcome = train(setup, block, arm, runs, width_of(block, scale))
    if block.is_ensemble:
        labels = np.tile(np.asarray(setup.pool.test_y), (len(seeds), 1))
        return ensemble_scores(grouped(outcome.tests["test"], labels), labels)
    extra = {
        "training loss": outcome.losses[:, -1],
        "mean training loss": outcome.losses.mean(1),
    }
    if "bits" in block.metrics:
        return dict(outcome.tests) | extra
    checks = outcome.checks["accuracy"]
    return dict(outcome.tests) | extra | {"over-fitting": checks.max(1) - checks[:, -1]}


def stable_octaves(setup, block: Block, arm: Arm, first: int, scale: Scale) -> Record:
    """Returns log2 of the highest rate with which each seed learns.

    Lower rates may fail, since they are too slow.
    """
    lowest = plan.LOWEST_RATE[block.optimizer]
    rates = [lowest * 2 ** (k / 2) for k in range(scale.stable_rates)]
    seeds = range(first, first + scale.seeds(block))
    runs = [Run(seed, rate) for rate in rates for seed in seeds]
    outcome = train(setup, block, arm, runs, width_of(block, scale))
    last = outcome.losses[:, -1].reshape(len(rates), -1)
    learns = last <= math.log(10) / 2
    highest = np.where(learns, np.arange(len(rates))[:, None], -1).max(0)
    return {"octaves": math.log2(lowest) + highest / 2}


def run_cell(setup, block: Block, arm: Arm, dense_rate: float | None, scale: Scale):
    """Returns the record of an arm. `dense_rate` is the one chosen for dense."""
    begin = time.perf_counter()
    first = block.first_seed + plan.FIRST_TEST_SEED
    if block.metrics == ("octaves",):
        chosen = {"rate": None, "validation": None}
        results = stable_octaves(setup, block, arm, first, scale)
    else:
        if arm.dense_rate:
            chosen = {"rate": arm.dense_rate * dense_rate, "validation": None}
        else:
            chosen = tune(setup, block, arm, scale)
        results = measure(setup, block, arm, chosen["rate"], first, scale)
    return record_of(block, arm, "test", chosen, results, begin)


def replicate(setup, block: Block, arm: Arm, rate: float | None, scale: Scale):
    """Returns a record of the same arm at the same rate, with other seeds."""
    begin = time.perf_counter()
    first = block.first_seed + plan.FIRST_REPLICATION_SEED
    if block.metrics == ("octaves",):
        results = stable_octaves(setup, block, arm, first, scale)
    else:
        results = measure(setup, block, arm, rate, first, scale)
    return record_of(block, arm, "replication", {"rate": rate}, results, begin)


def record_of(block, arm, seeds, chosen, results, begin) -> Record:
    seconds = time.perf_counter() - begin
    names = {"block": block.name, "arm": arm.name, "seeds": seeds}
    values = {name: np.asarray(value).tolist() for name, value in results.items()}
    return rounded(names | chosen | {"results": values, "seconds": seconds})


def rounded(record: Record) -> Record:
    """Five digits are more than the seeds can tell; a file of results stays small."""
    return records.rounded(record, 5, lambda number: None)


def time_alone(setup, block: Block, scale: Scale) -> Record:
    """Compares the time of one run among many in a call, and of one in a call."""

    def seconds(runs: list[Run]) -> float:
        train(setup, block, plan.DENSE, runs, len(runs))  # compiles
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            train(setup, block, plan.DENSE, runs, len(runs))
            times.append(time.perf_counter() - begin)
        return min(times)

    rate = rates_of(block, scale)[0]
    width = width_of(block, scale)
    together = seconds([Run(seed, rate) for seed in range(width)]) / width
    alone = seconds([Run(0, rate)])
    speed = {"runs": width, "together": together, "alone": alone}
    return rounded({"block": block.name, "speed": speed})
