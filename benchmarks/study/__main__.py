"""Runs the study of `plan.md`, and writes docs/study.md from its results.

    python -m benchmarks.study                      # hours; goes on where it stopped
    python -m benchmarks.study --quick              # all of it in miniature
    python -m benchmarks.study --only "copied units" "good start"
    python -m benchmarks.study --text FILE --cifar10 ARCHIVE
    python -m benchmarks.study --explore            # what is beyond the plan

Each finished cell (one arm of one block) is a line in benchmarks/results/study.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks import records

ROOT = Path(__file__).parents[2]
# At level 1 programs run as fast, and compile in two thirds of the time.
LEVEL = 0 if "--quick" in sys.argv else 1
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + f" --xla_backend_optimization_level={LEVEL}"
)


def parse_options() -> argparse.Namespace:
    from examples.fashion_mnist import DEBIAN

    from . import exploration, plan

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description="Runs the study of benchmarks/study/plan.md.",
    )
    add = parser.add_argument
    planned = (*plan.REGIMES, "theory")
    text = (
        f"any of: {'; '.join(planned)}. With --explore: {'; '.join(exploration.TEXTS)}"
    )
    add("--only", nargs="+", metavar="REGIME", help=text.replace("%", "%%"))
    add("--quick", action="store_true", help="all of it in miniature, as a check")
    add("--plan", action="store_true", help="print the blocks of the plan, and stop")
    add("--explore", action="store_true", help="run what is beyond the plan instead")
    add("--report", action="store_true", help="write the report only, train nothing")
    add("--text", type=Path, metavar="FILE", help="the text of the task 'text'")
    add("--cifar10", type=Path, metavar="ARCHIVE", help="tar of train/CLASS/*.jpg")
    add(
        "--fashion-mnist",
        type=Path,
        metavar="FOLDER",
        default=DEBIAN,
        help="default: %(default)s, of Debian's dataset-fashion-mnist",
    )
    add("--output", type=Path, metavar="FOLDER", help="for the raw results")
    add("--jobs", type=int, default=2, help="regimes at once, default: %(default)s")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    known = tuple(exploration.TEXTS) if options.explore else planned
    for name in options.only or []:
        if name not in known:
            parser.error(f"--only must be any of {'; '.join(known)}; got {name}")
    for file in (options.text, options.cifar10):
        if file is not None and not file.is_file():
            parser.error(f"{file} is not a file")
    return options


def sources(options: argparse.Namespace) -> dict[str, Any]:
    """Reads the data that is there; a task without its data is left out."""
    from . import data

    readers: dict[str, Callable[[], Any]] = {"digits": data.digits}
    readers["source"] = data.source
    missing = {}
    if options.fashion_mnist.is_dir():
        readers["Fashion"] = lambda: data.fashion_mnist(options.fashion_mnist)
    else:
        missing["Fashion"] = f"{options.fashion_mnist} is no folder"
    if options.text:
        readers["text"] = lambda: data.text(options.text)
    else:
        missing["text"] = "--text names no file"
    if options.cifar10:
        readers["CIFAR-10"] = lambda: data.cifar10(options.cifar10)
    else:
        missing["CIFAR-10"] = "--cifar10 names no archive"
    if not options.quick:
        for task, reason in missing.items():
            print(f"{task} is left out: {reason}", file=sys.stderr)
    return readers


class Results:
    """The cells of one regime: read at the start, and appended one by one."""

    def __init__(self, folder: Path, regime: str, machine: dict[str, str]):
        folder.mkdir(parents=True, exist_ok=True)
        name = regime.replace(" %", "").replace(",", "").replace(" ", "_")
        self.file = folder / f"{name}.jsonl"
        self.machine = machine
        self.records = []
        if self.file.exists():
            self.records = records.read_lines(self.file)
            text = self.file.read_text()
            if not text.endswith("\n"):  # take away a last line that was cut off
                self.file.write_text(text[: text.rfind("\n") + 1])

    def add(self, record: dict[str, Any]) -> None:
        record = record | self.machine
        with self.file.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        self.records.append(record)

    def find(
        self, block: str, arm: str | None, seeds: str | None = "test"
    ) -> dict[str, Any] | None:
        """Returns the record of a cell, or without an arm that of the speed."""
        key = block, arm, seeds if arm else None
        for record in self.records:
            if key == tuple(map(record.get, ("block", "arm", "seeds"))):
                return record
        return None


def machine() -> dict[str, str]:
    """Says where a cell was measured: commit, processor, version of JAX."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    if git("status", "--porcelain", "--", "lrd_optax", "benchmarks/study"):
        commit += " and changes"
    processor = f"{os.cpu_count()} cores of {records.processor()}"
    return {"commit": commit, "processor": processor, "jax": version("jax")}


def chosen_blocks(options: argparse.Namespace, tasks: dict[str, Any]) -> list[Any]:
    from . import exploration, plan

    blocks = [
        block
        for block in (exploration if options.explore else plan).BLOCKS
        if block.task in tasks and (not options.only or block.regime in options.only)
    ]
    if options.quick:  # one block per regime, most of them with one optimizer
        first = {block.regime: block.task for block in reversed(blocks)}
        adam = [b for b in blocks if b.optimizer in ("Adam", "AdamW")]
        last = {b.regime: b for b in adam if b.task == first[b.regime]}
        blocks = [shortened(block) for block in last.values()]
    return blocks


def shortened(block: Any) -> Any:
    """Keeps few kinds of programs, since each takes some seconds to compile."""
    families = {"plain", "LRD"}
    if block.regime == "good start":
        families |= {"LRD unbiased", "dropout", "noise", "scaled"}
    arms = [arm for arm in block.arms if arm.family in families]
    return block._replace(arms=tuple(arms))


def run_block(block, setup, results: Results, scale, advance) -> None:
    """`advance` takes a text and how many cells are done; it may raise to stop."""
    from . import cells, claims, plan

    for arm in block.arms:
        advance(f"{block.name}: {arm.name}", 0)
        if results.find(block.name, arm.name) is None:
            dense = results.find(block.name, "dense") or {}
            results.add(cells.run_cell(setup, block, arm, dense.get("rate"), scale))
        advance(f"{block.name}: {arm.name}", 1)
    for arm in claims.to_replicate(block, results.records):
        advance(f"{block.name}: {arm.name}, again", 0)
        rate = results.find(block.name, arm.name)["rate"]
        results.add(cells.replicate(setup, block, arm, rate, scale))
    # Once in each regime and task, since it takes a program of its own.
    if scale == cells.QUICK:
        is_timed = block.regime == "good start"
    else:  # not the blocks of the exploration
        same = [b.optimizer for b in plan.BLOCKS if b[:2] == block[:2]]
        is_timed = same[:1] == [block.optimizer]
    if is_timed and results.find(block.name, None) is None:
        results.add(cells.time_alone(setup, block, scale))


def run(options: argparse.Namespace, folder: Path) -> None:
    """Runs as many regimes at once as there are jobs, each in a thread.

    One program of these small networks keeps little more than one core busy.
    """
    from . import cells, tasks, theory

    readers = {name: functools.cache(read) for name, read in sources(options).items()}
    blocks = chosen_blocks(options, readers)
    scale = cells.QUICK if options.quick else cells.Scale()
    here, stopped = machine(), threading.Event()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )

    def run_regime(regime: str) -> None:
        results = Results(folder, regime, here)
        for block in blocks:
            if block.regime == regime:
                source = readers[block.task]()
                setup = tasks.build(regime, block.task, source, options.quick)
                run_block(block, setup, results, scale, advance)

    def advance(text: str, cells: int) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        bar.update(task, advance=cells, description=f"{text[:50]:50}")

    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=sum(len(block.arms) for block in blocks))
        with ThreadPoolExecutor(options.jobs) as pool:
            regimes = dict.fromkeys(block.regime for block in blocks)
            futures = [pool.submit(run_regime, regime) for regime in regimes]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                stopped.set()  # after the cells at hand
                pool.shutdown(cancel_futures=True)
                raise
    if not options.explore and "theory" in (options.only or ["theory"]):
        results = Results(folder, "theory", here)
        if not results.records:
            for record in theory.run(options.quick):
                results.add(record)


def main() -> None:
    options = parse_options()
    from . import plan

    if options.plan:
        print(plan.describe(), f"\n\n{plan.COMPARISONS:,} comparisons")
        return
    quick = ROOT / "results" / "study"
    folder = options.output or (
        quick if options.quick else ROOT / "benchmarks" / "results" / "study"
    )
    try:
        if not options.report:
            run(options, folder)
    except KeyboardInterrupt:
        print(f"\nStopped. What is finished is in {folder}; the same command goes on.")
        return
    from . import report

    docs = quick if options.quick else ROOT / "docs"
    page, picture = docs / "study.md", docs / "images" / "study.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    report.write(folder, page, picture)
    print(f"Wrote {page} and {picture}")


if __name__ == "__main__":
    main()
