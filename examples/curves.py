"""Draws the learning curves of runs, and shows a table of them.

    python examples/curves.py results/lrd results/dense

Each folder is the output of examples/cifar10.py, of a run that may still be going on.
"""

import sys
from pathlib import Path
from typing import Any

import options

if __name__ == "__main__":  # before the imports that take seconds
    options.end_on_ctrl_c()
    options.curves()

import json

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from report import save_picture
from rich import box
from rich.console import Console
from rich.table import Table
from runs import Record, read_records

# Colors of Okabe and Ito. After all of them come dashed lines, and then dotted ones.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]


def draw(runs: dict[str, list[Record]], path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = dict(
        zip(("test error (%)", "train loss"), figure.subplots(1, 2), strict=True)
    )
    for number, (name, records) in enumerate(runs.items()):
        style = {
            "color": COLORS[number % len(COLORS)],
            "linestyle": ["-", "--", ":"][number // len(COLORS) % 3],
            "marker": "." if len(records) < 10 else "",
        }
        epochs = [record["epoch"] for record in records]
        errors = [100 - record["test_accuracy"] for record in records]
        losses = [record["train_loss"] for record in records]
        for panel, values in zip(panels.values(), (errors, losses), strict=True):
            panel.plot(epochs, values, label=name, **style)
    for title, panel in panels.items():
        low, high = panel.dataLim.intervaly
        if 0 < low < high / 3:
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_locator(NullLocator())
            title = f"{title}, log scale"
        panel.set(xlabel="epoch", ylabel=title)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    lines, labels = panel.get_legend_handles_labels()
    place = {"loc": "outside upper center", "frameon": False}
    figure.legend(lines, labels, ncols=min(3, len(runs)), **place)
    save_picture(figure, path, dpi=150)


def make_table(configs: dict[str, Any], runs: dict[str, list[Record]]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("optimizer", no_wrap=True)
    headers = "keep_prob", "rate", "epoch", "train\nloss", "test\naccuracy"
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for name, records in runs.items():
        config, last = configs[name], records[-1]
        table.add_row(
            name,
            config["optimizer"],
            f"{config['keep_prob']:g}{', unbiased' if config['unbiased'] else ''}",
            f"{config['learning_rate']:g}",
            f"{last['epoch']} of {config['epochs']}",
            f"{last['train_loss']:.3g}",
            f"{last['test_accuracy']:.2f} %",
        )
    return table


def main() -> None:
    args = options.curves()
    runs, configs = {}, {}
    for folder in args.folders:
        name = str(folder)
        runs[name] = read_records(folder)
        configs[name] = json.loads((folder / "config.json").read_text())
        if not runs[name]:
            sys.exit(f"{name} has no finished epoch yet")
    Console(highlight=False).print(make_table(configs, runs))
    path = args.output / "curves.png"
    options.save(path, lambda path: draw(runs, path))
    print("Wrote", path)


if __name__ == "__main__":
    main()
