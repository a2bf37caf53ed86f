"""Draws the learning curves of runs, and shows a table of them.

    python examples/curves.py results/text-lrd results/text-dense

Each folder is the output of examples/cifar10.py, or each of examples/transformer.py. A
run may still be going on.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

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

# Colors of Okabe and Ito. With three kinds of lines they make 21 styles.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]


class Panel(NamedTuple):
    x: str  # names in the records
    y: str
    xlabel: str
    ylabel: str


PANELS = {
    "cifar10.py": [
        Panel("epoch", "test_error", "epoch", "test error (%)"),
        Panel("epoch", "train_loss", "epoch", "train loss"),
    ],
    "transformer.py": [
        Panel(
            "seconds",
            "validation_bits",
            "training time",
            "bits per byte, held-out text",
        ),
        Panel("step", "train_bits", "step", "bits per byte, training text"),
    ],
}


def example_of(records: list[Record]) -> str:
    return "transformer.py" if "train_bits" in records[0] else "cifar10.py"


def draw(runs: dict[str, list[Record]], path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = PANELS[example_of(next(iter(runs.values())))]
    longest = max(records[-1]["seconds"] for records in runs.values())
    for panel, axes in zip(panels, figure.subplots(1, 2), strict=True):
        xlabel, divisor = panel.xlabel, 1
        if panel.x == "seconds":
            unit, divisor = ("minutes", 60) if longest > 300 else ("seconds", 1)
            xlabel = f"{xlabel} ({unit})"
        for number, (name, records) in enumerate(runs.items()):
            style = {
                "color": COLORS[number % len(COLORS)],
                # Two equal runs can both be seen.
                "linestyle": ["-", "--", ":"][number % 3],
                "marker": "." if len(records) < 10 else "",
            }
            x = [record[panel.x] / divisor for record in records]
            y = [record[panel.y] for record in records]
            # A dollar begins a formula, and _ what the legend leaves out.
            label = name.replace("$", r"\$")
            axes.plot(x, y, label=f" {label}" if label[0] == "_" else label, **style)
        ylabel = panel.ylabel
        low, high = axes.dataLim.intervaly
        if 0 < low < high / 3:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
            ylabel = f"{ylabel}, log scale"
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if panel.x != "seconds":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    lines, labels = axes.get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside upper center", "frameon": False}
    figure.legend(lines, labels, ncols=min(3, len(runs)), **place)
    save_picture(figure, path, dpi=150)


def make_table(configs: dict[str, Any], runs: dict[str, list[Record]]) -> Table:
    """Returns what the runs differ in, and where each of them has come to."""
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    names = dict.fromkeys(name for config in configs.values() for name in config)
    for name in ("checksum_of_images", "checksum_of_text"):  # of no use to a reader
        names.pop(name, None)
    texts = {
        name: [str(config.get(name, "")) for config in configs.values()]
        for name in names
    }
    differing = [name for name in names if len(set(texts[name])) > 1]
    panels = PANELS[example_of(next(iter(runs.values())))]
    shown = [panel.y for panel in panels]
    for header in ("step", *shown):
        # Where the space is short, the first column is folded.
        table.add_column(header.replace("_", "\n"), justify="right", no_wrap=True)
    for number, (name, records) in enumerate(runs.items()):
        last = records[-1]
        options = [f"{key.replace('_', ' ')} {texts[key][number]}" for key in differing]
        values = [f"{last[key]:.4g}" for key in shown]
        # Below the name, since a column for each option may not fit.
        run = f"{name}\n{', '.join(options)}".rstrip("\n")
        table.add_row(run, str(last["step"]), *values)
    return table


def main() -> None:
    args = options.curves()
    runs, configs = {}, {}
    for folder in args.folders:
        name = str(folder)
        runs[name] = read_records(folder)
        configs[name] = json.loads((folder / "config.json").read_text())
        if not runs[name]:
            sys.exit(f"{name} has no report yet")
    if len({example_of(records) for records in runs.values()}) > 1:
        sys.exit("FOLDER must be the outputs of one example, got those of two")
    # Folders are shown as they are called, also [red] and :smile:.
    Console(highlight=False, markup=False, emoji=False).print(make_table(configs, runs))
    path = args.output / "curves.png"
    options.save(path, lambda path: draw(runs, path))
    print("Wrote", path)


if __name__ == "__main__":
    main()
