"""A training run in a folder. If it is killed, it goes on bit for bit.

The folder holds `config.json`, with what was asked for; `records.jsonl`, with one line
of JSON per report; and `checkpoints`. The same command goes on where the run ended.
While it runs, it has a lock on the file `lock`, so that no second one writes there.
"""

import contextlib
import datetime
import json
import math
import os
import signal
import statistics
import sys
import textwrap
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import options
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from report import progress_bar

try:
    import fcntl
except ImportError:  # on Windows: there nothing keeps a second run out
    fcntl = None  # type: ignore[assignment]

State = Any  # a tree of arrays: all that decides the next step, but for its number
Record = dict[str, Any]  # the numbers of one report


class Plan(NamedTuple):
    folder: Path
    config: dict[str, Any]  # all that decides the result, as JSON
    steps: int
    report_every: int  # steps
    save_every: int  # steps


def start_processes(args: Namespace) -> None:
    """Joins the other processes of this run. Call it before anything makes an array."""
    if args.distributed:
        try:
            jax.distributed.initialize()
        except ValueError as error:  # JAX found no cluster
            rule = "--distributed must be used where JAX finds the other processes"
            sys.exit(f"{rule}, got: {error}")
    elif args.coordinator:
        jax.distributed.initialize(
            args.coordinator, args.num_processes, args.process_id
        )


def is_first_process() -> bool:
    """Returns whether this process writes files and prints."""
    return jax.process_index() == 0


def in_words(mesh: jax.sharding.Mesh) -> str:
    return f"{mesh.size} device(s) ({jax.devices()[0].device_kind})"


def train(
    plan: Plan,
    state: State,
    train_step: Callable[[State, int], State],
    report: Callable[[State, int], tuple[State, Record]],
    draw: Callable[[list[Record]], None] = lambda records: None,
) -> tuple[State, list[Record]]:
    """Trains from the newest checkpoint in the folder, or from `state`, to the end.

    `train_step(state, step)` returns the state after step number `step`, from 1 on.
    `report(state, step)` returns the state, in which it may set sums to 0, and what is
    to be recorded. To these numbers are added "step", "seconds" (the time of all steps,
    without reports, checkpoints and compiling) and "ms_per_step" (the median since the
    last report). `draw` gets the records when the run ends or is stopped.

    If there is a checkpoint, the arrays of `state` are deleted before it is read, so
    that there are never two models in memory.
    """
    keep = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
    folder = (plan.folder / "checkpoints").absolute()
    with (
        end_without_reader(),
        claim_folder(plan),
        stop_on_signals() as stop,
        ocp.CheckpointManager(folder, options=keep) as manager,
        progress_bar() as bar,
    ):
        state, start, seconds = restore(manager, state)
        records, times = read_records(plan.folder, start), []
        text = "compiling" if start < plan.steps else "trained"
        if start == plan.steps and is_first_process():
            print(f"{plan.folder} is finished: it has all {start} steps", flush=True)
        task = bar.add_task(text, total=plan.steps, completed=start)
        for step in range(start + 1, plan.steps + 1):
            began = time.perf_counter()
            # Without waiting, the steps would be far behind the bar and the clock.
            state = jax.block_until_ready(train_step(state, step))
            if step > start + 1:  # the first one has compiled
                times.append(time.perf_counter() - began)
                seconds += times[-1]
            bar.update(task, description="training", advance=1)
            if step % plan.report_every == 0 or step == plan.steps:
                state, numbers = report(state, step)
                records.append(clock(step, seconds, times) | numbers)
                write_record(plan, records[-1])
                times = []
            if step % plan.save_every == 0 or step == plan.steps or stop.is_set():
                save(manager, step, state, seconds)
            if stop.is_set():
                break
        if is_first_process() and records:
            draw(records)
    return state, records


def clock(step: int, seconds: float, times: list[float]) -> Record:
    record: Record = {"step": step, "seconds": round(seconds, 3)}
    if times:
        record["ms_per_step"] = round(1e3 * statistics.median(times), 3)
    return record


@contextlib.contextmanager
def claim_folder(plan: Plan) -> Iterator[None]:
    """Holds the folder, in which there may be no other run, neither now nor before."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    with (plan.folder / "lock").open("a") as file:
        problem = ""
        if fcntl and is_first_process():
            try:  # the lock ends with the process, however that ends
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                rule = "holds a run that is going on: choose another --output"
                problem = f"{plan.folder} {rule}"
            except OSError:
                pass  # a file system without locks
        check_config(plan, problem)
        yield


def check_config(plan: Plan, problem: str = "") -> None:
    """Writes the configuration into the folder, or compares it with what is there.

    If there is a problem, here or in another process, then all processes end. If only
    one did, the others would wait for it.
    """
    path, config = plan.folder / "config.json", json.loads(json.dumps(plan.config))
    is_new = not path.exists() and not (plan.folder / "checkpoints").exists()
    if is_first_process() and not problem and is_new:
        replace(path, json.dumps(config, indent=1) + "\n")
    if jax.process_count() > 1:  # the others compare theirs with that of the first
        multihost_utils.sync_global_devices("config")
    problem = problem or problem_of(path, config)
    if jax.process_count() > 1:
        is_wrong = multihost_utils.process_allgather(np.array(problem != ""))
        if is_wrong.any() and not problem:
            problem = "stopped: another process cannot use its options or its folder"
    if problem:
        sys.exit(problem)


def problem_of(path: Path, config: dict[str, Any]) -> str:
    """Returns in words why this is not the run of the folder, or nothing."""
    if not path.exists() and (path.parent / "checkpoints").exists():
        rule = "has checkpoints of an unknown run, without its config.json"
        return f"{path.parent} {rule}: choose another --output"
    if not path.exists():
        return f"{path.parent} must be on a disk that all processes share"
    old = json.loads(path.read_text())
    names = dict.fromkeys([*old, *config])
    changed = [name for name in names if old.get(name) != config.get(name)]
    if "example" in changed:  # then they differ in all
        changed = ["example"]
    had, got = (
        ", ".join(f"{name.replace('_', ' ')} {part.get(name)}" for name in changed)
        for part in (old, config)
    )
    rule = "choose another --output, or the same options"
    return f"{path.parent} holds a run with {had}, got {got}: {rule}" if changed else ""


def restore(manager: ocp.CheckpointManager, state: State) -> tuple[State, int, float]:
    """Returns the state of the newest checkpoint, its step, and the seconds so far."""
    step = manager.latest_step()
    if step is None:
        return state, 0, 0.0
    # These have the shapes, dtypes and shardings to restore to.
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    items = {
        "state": ocp.args.StandardRestore(wanted),
        "clock": ocp.args.JsonRestore(),
    }
    restored = manager.restore(step, args=ocp.args.Composite(**items))
    if is_first_process():
        print("resumed at step", step, flush=True)
    return restored["state"], step, restored["clock"]["seconds"]


def save(
    manager: ocp.CheckpointManager, step: int, state: State, seconds: float
) -> None:
    # Orbax copies the arrays before it returns, so that the next step may reuse them.
    items = {
        "state": ocp.args.StandardSave(state),
        "clock": ocp.args.JsonSave({"seconds": seconds}),
    }
    manager.save(step, args=ocp.args.Composite(**items))


def read_records(folder: Path, step: int | None = None) -> list[Record]:
    """Returns the records of a run. Those after `step` are dropped from the file."""
    path, records = folder / "records.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the line that a kill has cut off
            break
        records.append(
            {name: math.nan if x is None else x for name, x in record.items()}
        )
    if step is not None:
        records = [record for record in records if record["step"] <= step]
        if is_first_process():
            replace(path, "".join(map(line_of, records)))
    return records


def line_of(record: Record) -> str:
    """Returns a line of JSON, which knows no NaN and no infinity: they are null."""
    known = {
        name: None if isinstance(x, float) and not math.isfinite(x) else x
        for name, x in record.items()
    }
    return json.dumps(known, allow_nan=False) + "\n"


def write_record(plan: Plan, record: Record) -> None:
    if not is_first_process():
        return
    with (plan.folder / "records.jsonl").open("a") as file:
        file.write(line_of(record))
    step, texts, numbers = record["step"], [], []
    for name, value in record.items():
        if isinstance(value, str):
            texts.append(f"{name}:\n{textwrap.indent(value, '    ')}")
        elif name not in ("step", "seconds", "ms_per_step"):
            numbers.append(f"{name.replace('_', ' ')} {value:.4g}")
    if ms := record.get("ms_per_step"):
        left = datetime.timedelta(seconds=round(ms / 1e3 * (plan.steps - step)))
        # 12346 ms, not 1.235e+04 ms.
        digits = ".0f" if ms > 9999 else ".4g"
        numbers += [f"{ms:{digits}} ms per step", f"left: {left}"]
    print(f"step {step} of {plan.steps}: {', '.join(numbers)}", *texts, sep="\n")
    sys.stdout.flush()


def replace(path: Path, text: str) -> None:
    """Writes a whole file or nothing, also if the process is killed meanwhile."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


@contextlib.contextmanager
def end_without_reader() -> Iterator[None]:
    """Ends with one line if nothing reads what is printed, as after `| head`."""
    try:
        yield
    except BrokenPipeError:
        # Python would try once more to write there when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        rule = "the same command goes on from the last checkpoint"
        sys.exit(f"stopped, since nothing reads the output: {rule}")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Makes Ctrl-C, and the SIGTERM of job schedulers, set the event that it gives.

    So a run ends after a step, with a checkpoint. The second signal ends it at once.
    Several processes would not stop after the same step: the first one ends them, and
    they go on from their last checkpoint.
    """
    stop, end_now = threading.Event(), signal.getsignal(signal.SIGINT)
    old = signal.getsignal(signal.SIGTERM)

    def on_signal(*_: Any) -> None:
        if stop.is_set() or jax.process_count() > 1:
            signal.signal(signal.SIGINT, end_now)
            signal.raise_signal(signal.SIGINT)
            # What a script runs in the background ignores that, but not SIGTERM.
            signal.signal(signal.SIGTERM, old)
            signal.raise_signal(signal.SIGTERM)
        # Not print(): a signal can come while something is printed.
        os.write(2, b"\nstopping after this step (Ctrl-C again: at once)\n")
        stop.set()

    options.on_ctrl_c(on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, end_now)
        signal.signal(signal.SIGTERM, old)
    if stop.is_set():
        signal.raise_signal(signal.SIGINT)
        # It returns here if Ctrl-C is ignored.
        sys.exit("stopped: the same command goes on from the last checkpoint")
