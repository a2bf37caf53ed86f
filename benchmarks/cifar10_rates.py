"""A small ResNet on a tenth of CIFAR-10: dense and LRD at several learning rates.

    python benchmarks/cifar10_rates.py --data FOLDER    # 20 minutes on 2 CPU cores

It trains what `examples/cifar10.py --quick` trains, with SGD with momentum. The runs of
one seed share the first weights, the batches, the crops and the flips, so differences
are paired by seed. All rates are shown, and none is chosen: LRD at a rate has the mean
step of dense at half of it, and is compared with dense at both. Runs are kept in
results/cifar10_rates, and a second start goes on with them. The numbers go to
benchmarks/results/<device>-cifar10_rates.json.
"""

import argparse
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timing
from scipy import stats

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import cifar10
import options

ARMS = {"dense": 1.0, "LRD": 0.5}  # the keep_prob of each
SETTINGS = {"optimizer": "sgdm", "unbiased": False, "epochs": 6, "batch": 128}
SETTINGS |= {"depth": 10, "width": 16, "bfloat16": False, "quick": True}
FOLDER = Path("results/cifar10_rates")


def interval(values: Any) -> tuple[float, float]:
    """Returns mean and half width of the 95 % interval (Student t) over the seeds."""
    number = len(values)
    error = np.std(values, ddof=1) / math.sqrt(number)
    return float(np.mean(values)), float(stats.t.ppf(0.975, number - 1) * error)


def show(accuracy: dict[tuple[str, float], list[float]], rates: list[float]) -> None:
    """Prints the mean of each arm at each rate, and the paired differences."""
    print(f"{'rate':>6}{'dense':>16}{'LRD':>16}{'LRD - dense':>17}{'- at half':>17}")
    for rate in rates:
        cells = [accuracy["dense", rate], accuracy["LRD", rate]]
        cells.append(np.subtract(cells[1], cells[0]))
        if ("dense", rate / 2) in accuracy:
            cells.append(np.subtract(cells[1], accuracy["dense", rate / 2]))
        texts = []
        for number, cell in enumerate(cells):
            mean, half = interval(cell)
            texts.append(f"{mean:{'+' if number > 1 else ''}.2f} ± {half:.2f}")
        print(
            f"{rate:6g}" + "".join(f"{t:>{16 + (i > 1)}}" for i, t in enumerate(texts))
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="PATH", required=True, help="see images.py")
    rates = [0.05, 0.1, 0.2]
    add("--rates", type=float, nargs="+", metavar="RATE", default=rates)
    add("--seeds", type=int, metavar="N", default=3, help="default: 3")
    args = parser.parse_args()
    if args.seeds < 2:  # one seed has no interval
        parser.error(f"--seeds must be at least 2, got {args.seeds}")
    options.end_on_ctrl_c(outcome=lambda: "the same command goes on")
    settings = argparse.Namespace(**SETTINGS, data=args.data, save_every=None)
    data = cifar10.load(settings)
    mesh = cifar10.make_mesh(settings.batch)
    rows, accuracy = [], {}
    runs = list(itertools.product(range(args.seeds), args.rates, ARMS.items()))
    for number, (seed, rate, (arm, keep_prob)) in enumerate(runs):
        print(f"{arm} at {rate:g}, seed {seed}: {number + 1} of {len(runs)}")
        output = FOLDER / f"{arm}-{rate:g}-{seed}"
        chosen = {"learning_rate": rate, "keep_prob": keep_prob, "seed": seed}
        run = argparse.Namespace(**vars(settings), **chosen, output=output)
        last = cifar10.train(run, data, mesh)[1][-1]
        found = {"train_loss": last["train_loss"]}
        found["test_accuracy"] = 100 - last["test_error"]
        rows.append({"arm": arm, "rate": rate, "seed": seed} | found)
        accuracy.setdefault((arm, rate), []).append(found["test_accuracy"])
    show(accuracy, args.rates)
    config = SETTINGS | {"data": data.source, "train_images": len(data.train_images)}
    print("written:", timing.write("cifar10_rates", {"config": config, "rows": rows}))


if __name__ == "__main__":
    main()
