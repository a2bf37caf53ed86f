"""Blocks beyond the plan: where might LRD beat the best of the other remedies?

    python -m benchmarks.study --explore

They were thought of after the first results of the plan, so they have seeds of their
own, and a win here is a guess until other seeds and a second task confirm it.
"""

from .plan import Arm, Block, metrics_of

NOISE = tuple(
    Arm(f"start + noise {size}", "remedy", start="noise", noise=size)
    for size in (0.01, 0.03, 0.1, 0.3, 1, 3)
)
FIRST = tuple(
    Arm(f"LRD {p}, first {steps} steps", "LRD", "LRD", p, steps=steps)
    for p in (0.1, 0.5)
    for steps in (3, 10)
)
# What the plan lacks: the other remedies in the first steps only, as LRD has them.
FIRST_REMEDIES = (
    Arm("dropout 0.25, first 10 steps", "remedy", "dropout", steps=10, dropout=0.25),
    *(
        Arm(f"noise as LRD {p}, first 10 steps", "remedy", "noise", p, steps=10)
        for p in (0.1, 0.5)
    ),
)
GROWTH = (
    Arm("dense", "dense"),
    Arm("LRD 0.5", "LRD", "LRD", 0.5),
    Arm("LRD 0.5 unbiased", "LRD", "LRD unbiased", 0.5),
    *FIRST,
    *(Arm(f"dropout {r}", "remedy", "dropout", dropout=r) for r in (0.1, 0.25)),
    Arm("noise as LRD 0.5", "remedy", "noise", 0.5),
    *FIRST_REMEDIES,
    *NOISE,
    Arm("uneven split", "remedy", start="uneven"),
    Arm("from scratch", "reference", start="scratch"),
)

# Fewer of these, since a decoder takes long. LRD in the first steps is half the rate
# and a mask, so each of the two has an arm of its own.
GROWN_DECODER = (
    *(
        arm
        for arm in GROWTH
        if arm.name
        in (
            *("dense", "LRD 0.5", "LRD 0.5 unbiased", "LRD 0.5, first 10 steps"),
            *("noise as LRD 0.5, first 10 steps", "uneven split", "from scratch"),
            *(f"start + noise {size}" for size in (0.1, 0.3, 1)),
        )
    ),
    Arm("half the rate, first 10 steps", "remedy", "scaled", 0.5, steps=10),
    Arm("LRD 0.5 unbiased, first 10 steps", "LRD", "LRD unbiased", 0.5, steps=10),
)

# Ensembles of LRD 0.03 looked best in the plan, where no other arm has as much noise.
ENSEMBLE = (
    Arm("dense", "dense"),
    *(Arm(f"LRD {p}", "LRD", "LRD", p) for p in (0.01, 0.03, 0.1)),
    Arm("starts and LRD 0.03", "LRD", "LRD", 0.03, start="starts"),
    *(Arm(f"dropout {r}", "remedy", "dropout", dropout=r) for r in (0.05, 0.1, 0.25)),
    *(Arm(f"noise as LRD {p}", "remedy", "noise", p) for p in (0.01, 0.03, 0.1)),
    Arm("starts", "remedy", start="starts"),
    Arm("starts and dropout 0.1", "remedy", "dropout", dropout=0.1, start="starts"),
)

# Magma does best in the plan. Is it the mask, the scaling by agreement, or that the
# matrices of the layers get a lower rate than everything else?
TRANSFORMERS = (
    Arm("dense", "dense"),
    Arm("Magma", "LRD", "Magma", 0.5),
    Arm("Magma without its mask", "remedy", "Magma", 1.0),
    *(
        Arm(f"matrices at {part} of the rate", "remedy", "scaled matrices", part)
        for part in (0.5, 0.25, 0.125)
    ),
)

# Regime: what is trained, as the page says it.
TEXTS = {
    "short growth": (
        "As copied units, but with only 4 passes on digits and 2 on Fashion after the "
        "growth. The idea: noise large enough to separate copies damages the function, "
        "and a short training has no time to repair it."
    ),
    "grown transformer": (
        "The decoder of the plan with only 32 hidden units in each MLP layer, trained "
        "for 300 steps with Adam at 0.01; then each hidden unit is copied four times "
        "and its outgoing weights are divided by four; then 200 steps."
    ),
    "transformer again": (
        "As transformer, with other seeds. Magma makes the steps of the matrices in "
        "attention and MLP layers smaller. These arms ask whether a lower rate for "
        "these matrices does the same, and whether the mask of Magma is needed."
    ),
    "ensembles again, full batch": (
        "As ensembles, full batch, with other seeds, and with arms that have as much "
        "noise as LRD 0.03."
    ),
    "ensembles again, fine-tuning": (
        "As ensembles, fine-tuning, with other seeds, and with arms that have as much "
        "noise as LRD 0.03."
    ),
}
SEED = 10_000
METRICS = metrics_of("ensembles")
BLOCKS = (
    *(
        Block("short growth", task, optimizer, GROWTH, first_seed=SEED)
        for task in ("digits", "Fashion")
        for optimizer in ("Adam", "SGD+momentum")
    ),
    *(
        Block("grown transformer", task, "AdamW", GROWN_DECODER, ("bits",), SEED)
        for task in ("source", "text")
    ),
    *(
        Block("transformer again", task, "AdamW", TRANSFORMERS, ("bits",), SEED)
        for task in ("source", "text")
    ),
    *(
        Block(f"ensembles again, {how}", task, "Adam", ENSEMBLE, METRICS, SEED)
        for how in ("full batch", "fine-tuning")
        for task in ("digits", "Fashion")
    ),
)
