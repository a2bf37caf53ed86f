"""The claims of the paper, and what the records say about them."""

from collections import Counter
from typing import NamedTuple

from . import plan
from .intervals import NOT_RUN, Record, Study, word
from .plan import EQUAL_STEP, Arm, Block

NAMES = {
    "accuracy": "test accuracy (%)",
    "bits": "bits per character",
    "octaves": "highest stable rate (octaves)",
    "NLL": "negative log-likelihood",
    "calibration error": "calibration error (points)",
}
# The differences that the three questions of the plan are about.
PAIRS = (
    ("best LRD", "dense"),
    plan.BEST,
    plan.EQUAL_STEP,
    (plan.EQUAL_STEP[0], "dense"),
)


class Claim(NamedTuple):
    text: str
    regimes: tuple[str, ...]
    metric: str
    first: str  # the arm with LRD
    rival: str  # which it must beat too, besides dense


SADDLES = tuple(
    name for name in plan.REGIMES if name.startswith(("copied", "equal", "near"))
)
ORDINARY = tuple(
    block.regime
    for block in plan.BLOCKS
    if EQUAL_STEP[0] in [arm.name for arm in block.arms] and block.regime not in SADDLES
)
OVER_FITTED = tuple(
    name for name in plan.REGIMES if name.endswith(("wrong labels", "samples"))
)
CLAIMS = (
    Claim(
        "faster convergence: a lower mean of the training loss over the run",
        ORDINARY,
        "mean training loss",
        *EQUAL_STEP,
    ),
    Claim(
        "escape from saddle points: a higher test accuracy from a start at or near one",
        SADDLES,
        "accuracy",
        *plan.BEST,
    ),
    Claim(
        "less over-fitting: a higher test accuracy with few or wrong labels",
        OVER_FITTED,
        "accuracy",
        *plan.BEST,
    ),
    Claim(
        "less over-fitting: validation accuracy falls less from its best, same regimes",
        OVER_FITTED,
        "over-fitting",
        *plan.BEST,
    ),
)


def holds(outcomes: list[tuple[str, str]]) -> bool:
    """`outcomes`: task and outcome of each block."""
    count = Counter(outcome for _, outcome in outcomes)
    tasks = {task for task, outcome in outcomes if outcome == "clear gain"}
    return len(tasks) > 1 and count["clear gain"] > count["clear loss"]


def judge(study: Study, claim: Claim) -> tuple[str, list[Counter[str]]]:
    """Returns the verdict, and what was seen beside dense and beside the rival."""
    sides = []
    for other in ("dense", claim.rival):
        pairs = [
            (block.task, study.outcome(block, claim.metric, claim.first, other))
            for block in plan.BLOCKS
            if block.regime in claim.regimes
        ]
        sides.append([pair for pair in pairs if pair[1] != NOT_RUN])
    counts = [Counter(outcome for _, outcome in side) for side in sides]
    if not all(sides):
        return NOT_RUN, counts
    if not holds(sides[0]):
        return "not seen", counts
    return "seen" if holds(sides[1]) else "only beside dense", counts


def to_replicate(block: Block, records: list[Record]) -> list[Arm]:
    """Returns the arms in a clear comparison that are to be trained with more seeds.

    These are the comparisons of the plan, and gains in what the claims are about.
    """
    study, names = Study(records), set()
    pairs = [(m, *pair) for m in block.metrics for pair in plan.comparisons(block)]
    for claim in CLAIMS:
        if block.regime in claim.regimes:
            others = ("dense", claim.rival)
            pairs += [(claim.metric, claim.first, other) for other in others]
    for metric, first, second in pairs:
        comparison = study.compare(block, metric, first, second)
        found = word(comparison) if comparison else NOT_RUN
        if found == "clear gain" or (found == "clear loss" and metric in block.metrics):
            names |= {study.arm(block, first), study.arm(block, second)}
    return [
        arm
        for arm in block.arms
        if arm.name in names and not study.find(block, arm.name, "replication")
    ]
