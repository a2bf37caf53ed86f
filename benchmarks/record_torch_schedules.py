"""Records values of PyTorch's schedulers, for tests/test_schedules.py to compare with.

    pip install -e ".[torch]"
    python benchmarks/record_torch_schedules.py

Each scheduler is stepped one update at a time, on the CPU in float64, as in a training
loop. Writes tests/data/torch_schedules.json.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import records
import torch
from torch.optim import lr_scheduler

PATH = Path(__file__).parent.parent / "tests" / "data" / "torch_schedules.json"
CYCLE = {"base_lr": 0.01, "max_lr": 0.3, "cycle_momentum": False}
SCHEDULERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "triangular": (lr_scheduler.CyclicLR, {**CYCLE, "step_size_up": 7}),
    "triangular2": (
        lr_scheduler.CyclicLR,
        {**CYCLE, "step_size_up": 7, "mode": "triangular2"},
    ),
    "exp_range": (
        lr_scheduler.CyclicLR,
        {**CYCLE, "step_size_up": 7, "mode": "exp_range", "gamma": 0.98},
    ),
    "uneven cycle": (
        lr_scheduler.CyclicLR,
        {**CYCLE, "step_size_up": 5, "step_size_down": 11},
    ),
    "restarts": (
        lr_scheduler.CosineAnnealingWarmRestarts,
        {"T_0": 10, "eta_min": 0.001},
    ),
    "restarts, 2": (
        lr_scheduler.CosineAnnealingWarmRestarts,
        {"T_0": 5, "T_mult": 2, "eta_min": 0.001},
    ),
    "restarts, 3": (
        lr_scheduler.CosineAnnealingWarmRestarts,
        {"T_0": 1, "T_mult": 3, "eta_min": 0.001},
    ),
    "step": (lr_scheduler.StepLR, {"step_size": 10, "gamma": 0.7}),
    "polynomial 1": (lr_scheduler.PolynomialLR, {"total_iters": 37, "power": 1.0}),
    "polynomial 2.5": (lr_scheduler.PolynomialLR, {"total_iters": 37, "power": 2.5}),
}
STEPS = 130


def values(make: Callable[..., Any], options: dict[str, Any]) -> list[float]:
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.3)
    scheduler = make(optimizer, **options)
    rates = []
    for _ in range(STEPS):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def main() -> None:
    recorded = {
        name: {
            "scheduler": make.__name__,
            "options": options,
            "values": values(make, options),
        }
        for name, (make, options) in SCHEDULERS.items()
    }
    PATH.parent.mkdir(exist_ok=True)
    text = records.dumps({"torch": torch.__version__, "recorded": recorded})
    PATH.write_text(text + "\n")
    print(
        f"torch {torch.__version__}: {len(recorded)} schedulers, {STEPS} steps: {PATH}"
    )


if __name__ == "__main__":
    main()
