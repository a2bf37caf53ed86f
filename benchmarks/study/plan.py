"""What the study compares: `plan.md` in code. `python -m benchmarks.study --plan`."""

from typing import NamedTuple

# Seven rates for all arms of a block, three to a factor of 10. While the best lies at
# an end, seven more beyond that end are tried, twice at most.
LOWEST_RATE = {
    "SGD": 0.01,
    "SGD+momentum": 0.01,
    "RMSprop": 1e-4,
    "Adam": 3e-4,
    "AdamW": 3e-4,
}
RATES, TUNING_SEEDS, EXTENSIONS = 7, 6, 2
FINALISTS, FINAL_SEEDS = 3, 14  # the best rates are tried with more seeds
TEST_SEEDS, TRANSFORMER_TEST_SEEDS = 42, 14
FIRST_TEST_SEED, FIRST_REPLICATION_SEED = 1000, 2000
NOISE_ON_COPIES = (0.001, 0.01, 0.03, 0.1, 0.3, 1, 3)
MEMBERS, ENSEMBLES = 8, 36


class Arm(NamedTuple):
    name: str
    kind: str  # "dense", "LRD", "remedy" or "reference"
    family: str = "plain"
    keep_prob: float = 1.0
    begin: float = 0  # the mask is on from this step; below 1: part of the run
    steps: float = float("inf")  # for so many steps
    dropout: float = 0.0
    start: str = "given"
    noise: float = 0.0  # on the start
    dense_rate: float = 0.0  # not tuned: so many times the rate chosen for dense


class Block(NamedTuple):
    regime: str
    task: str
    optimizer: str
    arms: tuple[Arm, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    first_seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.regime}, {self.task}, {self.optimizer}"

    @property
    def is_ensemble(self) -> bool:
        return "calibration error" in self.metrics


DENSE = Arm("dense", "dense")
UNTUNED = (
    Arm("dense, half the rate", "remedy", dense_rate=0.5),
    Arm("LRD 0.5, dense's rate", "LRD", "LRD", 0.5, dense_rate=1.0),
)
CORE = (
    DENSE,
    *UNTUNED,
    *(Arm(f"LRD {p}", "LRD", "LRD", p) for p in (0.1, 0.3, 0.5, 0.7, 0.9)),
    *(Arm(f"LRD {p} unbiased", "LRD", "LRD unbiased", p) for p in (0.1, 0.5, 0.9)),
    Arm("LRD 0.5, first 10 steps", "LRD", "LRD", 0.5, steps=10),
    Arm("LRD 0.5, first 100 steps", "LRD", "LRD", 0.5, steps=100),
    Arm("LRD 0.5, second half", "LRD", "LRD", 0.5, begin=0.5),
    Arm("half the rate, first 100 steps", "remedy", "scaled", 0.5, steps=100),
    *(Arm(f"dropout {r}", "remedy", "dropout", dropout=r) for r in (0.1, 0.25, 0.5)),
    *(Arm(f"noise as LRD {p}", "remedy", "noise", p) for p in (0.1, 0.5)),
)
ON_COPIES = tuple(
    Arm(f"start + noise {size}", "remedy", start="noise", noise=size)
    for size in NOISE_ON_COPIES
)
SCRATCH = Arm("from scratch", "reference", start="scratch")
COPIED = (
    *CORE,
    *ON_COPIES,
    Arm("uneven split", "remedy", start="uneven"),
    SCRATCH,
)
SYMMETRIC = (*CORE, *ON_COPIES, SCRATCH)
EXPERTS = (
    *CORE,
    *ON_COPIES,
    Arm("random router", "remedy", start="router"),
    SCRATCH,
)
TRANSFORMERS = (
    DENSE,
    *UNTUNED,
    Arm("LRD 0.5", "LRD", "LRD", 0.5),
    Arm("LRD 0.9", "LRD", "LRD", 0.9),
    Arm("LRD 0.5 row, unbiased", "LRD", "LRD row", 0.5),
    Arm("LRD 0.5 column, unbiased", "LRD", "LRD column", 0.5),
    Arm("LRD 0.5 tensor, unbiased", "LRD", "LRD tensor", 0.5),
    Arm("SkipUpdate", "LRD", "SkipUpdate", 0.5),
    Arm("Magma", "LRD", "Magma", 0.5),
    Arm("dropout 0.1", "remedy", "dropout", dropout=0.1),
    Arm("noise as LRD 0.5", "remedy", "noise", 0.5),
)
STABLE = (
    DENSE,
    *(Arm(f"LRD {p}", "LRD", "LRD", p) for p in (0.1, 0.5, 0.9)),
    *(Arm(f"LRD {p} unbiased", "LRD", "LRD unbiased", p) for p in (0.1, 0.5, 0.9)),
)
# "dense" is one network. In all others eight are averaged, from one start and with
# one stream of batches, except for "starts" and "batches".
ENSEMBLE = (
    DENSE,
    *(Arm(f"LRD {p}", "LRD", "LRD", p) for p in (0.03, 0.1, 0.5, 0.9)),
    *(Arm(f"dropout {r}", "remedy", "dropout", dropout=r) for r in (0.1, 0.25, 0.5)),
    *(Arm(f"noise as LRD {p}", "remedy", "noise", p) for p in (0.1, 0.5)),
    Arm("starts", "remedy", start="starts"),
    Arm("batches", "remedy", start="batches"),
)

BOTH = ("SGD+momentum", "Adam")
ADAM = ("Adam",)
REGIMES: dict[str, tuple[tuple[Arm, ...], dict[str, tuple[str, ...]]]] = {
    "copied units": (COPIED, {"digits": BOTH, "Fashion": BOTH}),
    "copied channels": (COPIED, {"digits": BOTH}),
    "copied layers": (SYMMETRIC, {"digits": BOTH}),
    "copied experts": (EXPERTS, {"digits": BOTH, "Fashion": ADAM}),
    "equal weights": (SYMMETRIC, {"digits": BOTH, "Fashion": ADAM}),
    "near a saddle": (SYMMETRIC, {"digits": ("SGD", *BOTH), "Fashion": ADAM}),
    "good start": (
        CORE,
        {"digits": ("SGD+momentum", "RMSprop", "Adam"), "Fashion": BOTH},
    ),
    "full batch": (CORE, {"digits": BOTH, "Fashion": ADAM}),
    "large batch": (CORE, {"digits": BOTH, "Fashion": ADAM}),
    "20 % wrong labels": (CORE, {"digits": BOTH}),
    "40 % wrong labels": (CORE, {"digits": BOTH, "Fashion": ADAM}),
    "100 samples": (CORE, {"digits": BOTH, "Fashion": ADAM}),
    "300 samples": (CORE, {"digits": BOTH, "Fashion": ADAM}),
    "fine-tuning": (CORE, {"digits": BOTH, "Fashion": ADAM}),
    "stable rates": (STABLE, {"digits": ("SGD", "SGD+momentum", "RMSprop", "Adam")}),
    "ensembles, full batch": (ENSEMBLE[:-1], {"digits": ADAM, "Fashion": ADAM}),
    "ensembles, fine-tuning": (ENSEMBLE, {"digits": ADAM, "Fashion": ADAM}),
    "transformer": (
        TRANSFORMERS,
        {
            "source": ("AdamW", "RMSprop", "SGD+momentum"),
            "text": ("AdamW", "RMSprop"),
        },
    ),
    "photographs": (CORE, {"CIFAR-10": ADAM}),
}


def metrics_of(regime: str) -> tuple[str, ...]:
    if regime.startswith("ensembles"):
        return "accuracy", "NLL", "calibration error"
    return {"transformer": ("bits",), "stable rates": ("octaves",)}.get(
        regime, ("accuracy",)
    )


BLOCKS = tuple(
    Block(regime, task, optimizer, arms, metrics_of(regime))
    for regime, (arms, tasks) in REGIMES.items()
    for task, optimizers in tasks.items()
    for optimizer in optimizers
)

BEST = ("best LRD", "best remedy")
# LRD as in the paper, and the arm that has its mean step without a mask.
EQUAL_STEP = ("LRD 0.5, dense's rate", "dense, half the rate")


def comparisons(block: Block) -> list[tuple[str, str]]:
    """Returns pairs (arm, minus this arm); "best" is chosen on validation data."""
    names = [arm.name for arm in block.arms]
    pairs = [(name, "dense") for name in names if name != "dense"]
    if EQUAL_STEP[0] in names:
        pairs.append(EQUAL_STEP)
    if any(arm.kind == "remedy" for arm in block.arms):
        pairs.append(BEST)
    return pairs


COMPARISONS = sum(len(comparisons(block)) * len(block.metrics) for block in BLOCKS)


def describe() -> str:
    """Returns the blocks with the number of their arms and comparisons, as Markdown."""
    lines = [
        "| regime | task | optimizer | arms | comparisons |",
        "|---|---|---|---|---|",
    ]
    for block in BLOCKS:
        number = len(comparisons(block)) * len(block.metrics)
        cells = block.regime, block.task, block.optimizer, len(block.arms), number
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe(), f"\n\n{COMPARISONS} comparisons")
