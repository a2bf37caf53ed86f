"""Records what three public learning-rate finders report on one model and its data.

    pip install torch torch-lr-finder lightning fastai scikit-learn
    python benchmarks/record_lr_finders.py

The finders are torch-lr-finder, Lightning's tuner and fastai's `Learner.lr_find`. Each
has its own smoothing, stopping rule and suggestions, and runs on the CPU in float32.
Each run is repeated in a plain loop, to be sure which batch and rate each update used.
Writes tests/data/lr_finders.json.
"""

import contextlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import lightning
import matplotlib.pyplot as plt
import numpy as np
import records
import torch
from fastai.basics import DataLoaders, Learner, OptimWrapper
from fastai.callback.schedule import minimum, slide, steep, valley
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.tuner.lr_finder import _LRFinder
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch_lr_finder import LRFinder

PATH = Path(__file__).parent.parent / "tests" / "data" / "lr_finders.json"
PACKAGES = ("torch", "torch-lr-finder", "lightning", "fastai", "numpy", "scikit-learn")
IMAGES = 1200
BATCH = 100
HIDDEN = 32
ITERATIONS = 100
FIRST_RATE = 0.1  # in the optimizer before the finder starts, to see if it is restored

Change = Callable[[torch.Tensor, int], torch.Tensor]

OPTIMIZERS: dict[str, tuple[Callable[..., Any], dict[str, Any], float, float]] = {
    "sgd": (torch.optim.SGD, {}, 1e-5, 10.0),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}, 1e-5, 10.0),
    "adam": (torch.optim.Adam, {}, 1e-6, 1.0),
}
FASTAI = {"valley": valley, "steep": steep, "minimum": minimum, "slide": slide}


def change_nothing(loss: torch.Tensor, step: int) -> torch.Tensor:
    return loss


LOSSES: dict[str, Change] = {
    "NaN once, at step 60": lambda loss, step: loss * (math.nan if step == 60 else 1),
    "always 1": lambda loss, step: 0 * loss + 1,
    "rising by 0.01 a step": lambda loss, step: 0 * loss + 1 + 0.01 * step,
    "ten times more each step": lambda loss, step: 0 * loss + 10.0**step,
    "below zero (loss - 10)": lambda loss, step: loss - 10,
}


def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[:IMAGES]
    return (data.data[order] / 16).astype(np.float32), data.target[order]


def loader() -> DataLoader:
    x, y = digits()
    data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    return DataLoader(data, batch_size=BATCH, shuffle=False)


def network() -> nn.Sequential:
    rng = np.random.default_rng(1)
    w1 = rng.standard_normal((64, HIDDEN)) * math.sqrt(2 / 64)
    w2 = rng.standard_normal((HIDDEN, 10)) * math.sqrt(1 / HIDDEN)
    model = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    with torch.no_grad():
        for layer, weights in ((model[0], w1), (model[2], w2)):
            layer.weight.copy_(torch.from_numpy(weights.T))
            layer.bias.zero_()
    return model


class Training:
    """The model and its optimizer. It records the losses and the rates used."""

    def __init__(self, name: str, change: Change = change_nothing) -> None:
        make, options, self.low, self.high = OPTIMIZERS[name]
        self.change = change
        self.model = network()
        self.optimizer = make(self.model.parameters(), lr=FIRST_RATE, **options)
        self.optimizer.register_step_post_hook(self.after_step)
        self.raw_losses: list[float] = []
        self.set_rates: list[float] = []

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(logits, labels)
        loss = self.change(loss, len(self.raw_losses))
        self.raw_losses.append(loss.item())
        return loss

    def after_step(self, optimizer: Any, *_: Any) -> None:
        self.set_rates.append(float(optimizer.param_groups[0]["lr"]))

    def left_behind(self) -> dict[str, Any]:
        """Returns how the model and the optimizer differ from those before the run."""
        pairs = zip(self.model.parameters(), network().parameters(), strict=True)
        state = self.optimizer.state_dict()["state"]
        return {
            "parameters as before": all(torch.equal(a, b) for a, b in pairs),
            "optimizer state empty": all(
                value is None for slots in state.values() for value in slots.values()
            ),
            "rate in the optimizer": self.optimizer.param_groups[0]["lr"],
        }


class Module(lightning.LightningModule):
    def __init__(self, training: Training) -> None:
        super().__init__()
        self.model = training.model
        self.run = training

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.run.loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.run.optimizer


Report = tuple[list[float], list[float], dict[str, Any]]  # rates, losses, suggestions


def suggestion(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the suggested rate, or as text the error raised instead."""
    try:
        rate = function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "none" if rate is None else float(rate)


def steepest(finder: LRFinder) -> float:
    figure, axes = plt.subplots()
    try:
        return finder.plot(ax=axes, suggest_lr=True)[1]
    finally:
        plt.close(figure)


def run_torch_lr_finder(training: Training) -> tuple[LRFinder, Report]:
    finder = LRFinder(training.model, training.optimizer, training.loss)
    finder.range_test(
        loader(), start_lr=training.low, end_lr=training.high, num_iter=ITERATIONS
    )
    suggestions = {"steepest": suggestion(steepest, finder)}
    return finder, (finder.history["lr"], finder.history["loss"], suggestions)


def torch_lr_finder(name: str, change: Change) -> tuple[Training, Report]:
    training = Training(name, change)
    return training, run_torch_lr_finder(training)[1]


def lightning_tuner(name: str, change: Change) -> tuple[Training, Report]:
    training = Training(name, change)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=False,
        )
        finder = Tuner(trainer).lr_find(
            Module(training),
            train_dataloaders=loader(),
            min_lr=training.low,
            max_lr=training.high,
            num_training=ITERATIONS,
            update_attr=False,
        )
    suggestions = {"suggestion": suggestion(finder.suggestion)}
    return training, (finder.results["lr"], finder.results["loss"], suggestions)


def lr_find(learner: Learner, training: Training, function: Any) -> float:
    return learner.lr_find(
        start_lr=training.low,
        end_lr=training.high,
        num_it=ITERATIONS,
        show_plot=False,
        suggest_funcs=function,
    )[0]


def fastai_learner(name: str, change: Change) -> tuple[Training, Report]:
    suggestions = {}
    for rule, function in FASTAI.items():  # one by one, since each can fail
        training = Training(name, change)
        with tempfile.TemporaryDirectory() as folder:
            learner = Learner(
                DataLoaders(loader(), loader()),
                training.model,
                loss_func=training.loss,
                opt_func=OptimWrapper(opt=training.optimizer),
                lr=FIRST_RATE,
                path=folder,
            )
            suggestions[rule] = suggestion(lr_find, learner, training, function)
    losses = [float(loss) for loss in learner.recorder.losses]
    return training, (list(learner.recorder.lrs), losses, suggestions)


FINDERS = {
    "torch-lr-finder": torch_lr_finder,
    "lightning": lightning_tuner,
    "fastai": fastai_learner,
}


def check_by_hand(name: str, training: Training) -> None:
    """Repeats the run: step t uses batch t % 12 and the rate recorded for step t."""
    again = Training(name)
    batches = list(loader())
    for t, rate in enumerate(training.set_rates):
        x, y = batches[t % len(batches)]
        again.optimizer.param_groups[0]["lr"] = rate
        again.optimizer.zero_grad()
        again.loss(again.model(x), y).backward()
        again.optimizer.step()
    np.testing.assert_allclose(again.raw_losses, training.raw_losses, rtol=1e-6)


def record_run(finder: str, name: str) -> dict[str, Any]:
    training, (rates, losses, suggestions) = FINDERS[finder](name, change_nothing)
    check_by_hand(name, training)
    return {
        "range": [training.low, training.high],
        "learning_rates": rates,
        "losses": losses,
        "raw_losses": training.raw_losses,
        "set_rates": training.set_rates,
        "suggestions": suggestions,
        "after": training.left_behind(),
    }


def record_loss(finder: str, change: Change) -> dict[str, Any]:
    training, (_, losses, suggestions) = FINDERS[finder]("sgd", change)
    finite = [loss for loss in losses if math.isfinite(loss)]
    return {
        "updates": len(training.set_rates),
        "losses": len(losses),
        "finite losses": len(finite),
        "first loss": losses[0],
        "last finite loss": finite[-1],
        "suggestions": suggestions,
    }


def suggested(rates: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    """Returns what each rule suggests for a history that no training produced."""
    first = LRFinder(network(), Training("sgd").optimizer, None)
    first.history = {"lr": rates.tolist(), "loss": losses.tolist()}
    second = _LRFinder("exponential", rates[0], rates[-1], len(rates))
    second.results = {"lr": rates.tolist(), "loss": losses.tolist()}
    third = torch.tensor(rates), torch.tensor(losses), len(rates)
    found = {
        "torch-lr-finder steepest": steepest(first),
        "lightning suggestion": second.suggestion(),
    }
    for rule, function in FASTAI.items():
        found[f"fastai {rule}"] = float(function(*third)[0])
    return {name: int(np.abs(rates - rate).argmin()) for name, rate in found.items()}


def record_slopes() -> dict[str, Any]:
    """Returns the index suggested if the loss drops twice, from steps 20 and 80.

    A slope against the index picks the larger drop in both histories. A slope against
    the rate always picks the first drop, one against the log of the rate the second.
    """
    early = np.zeros(100)
    early[20:25], early[80:85] = 0.3, 0.2
    late = np.zeros(100)
    late[20:25], late[80:85] = 0.2, 0.3
    even, even_log = np.linspace(0.1, 10, 100), np.geomspace(1e-5, 10, 100)
    return {
        "rates evenly spaced, drop larger at 20": suggested(even, 5 - early.cumsum()),
        "log rates evenly spaced, drop larger at 80": suggested(
            even_log, 5 - late.cumsum()
        ),
    }


def record_second_run() -> dict[str, Any]:
    training = Training("momentum")
    finder, _ = run_torch_lr_finder(training)
    before = training.left_behind()
    again = suggestion(finder.range_test, loader())
    finder.reset()
    return {
        "torch-lr-finder before reset": before,
        "torch-lr-finder range_test again before reset": again,
        "torch-lr-finder after reset": training.left_behind(),
    }


def record() -> dict[str, Any]:
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "runs": {
            finder: {name: record_run(finder, name) for name in OPTIMIZERS}
            for finder in FINDERS
        },
        "faults": {
            "losses": {
                finder: {
                    name: record_loss(finder, change) for name, change in LOSSES.items()
                }
                for finder in FINDERS
            },
            "slopes": record_slopes(),
            "second run": record_second_run(),
        },
    }


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.CRITICAL)
    bars = io.StringIO()
    with contextlib.redirect_stdout(bars), contextlib.redirect_stderr(bars):
        recorded = record()
    text = records.dumps(records.rounded(recorded, 7), levels=4)
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text + "\n")
    for finder, runs in recorded["runs"].items():
        for name, run in runs.items():
            steps, losses = len(run["set_rates"]), len(run["losses"])
            print(f"{finder}, {name}: {steps} updates, {losses} losses")
            print(f"  {run['suggestions']}")
    print(f"{len(text)} characters: {PATH}")


if __name__ == "__main__":
    main()
