"""A run in a folder: what is restored, recorded, refused, and saved when it stops."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
try:
    import runs
finally:
    del sys.path[0]


def make_state():
    return {"x": jnp.arange(3.0), "sum": jnp.zeros(())}


@jax.jit
def move(state, step):
    x = jnp.sin(state["x"] + step)
    return {"x": x, "sum": state["sum"] + x.sum()}


def report(state, step):
    return state | {"sum": jnp.zeros(())}, {"loss": float(state["sum"]), "text": "hi"}


def train(folder, *, train_step=move, draw=lambda records: None, **config):
    plan = runs.Plan(folder, config, steps=10, report_every=4, save_every=3)
    return runs.train(plan, make_state(), train_step, report, draw)


def fails_at(number):
    """Returns a step that raises an error in the place of step `number`."""

    def train_step(state, step):
        if step == number:
            raise RuntimeError("killed")
        return move(state, step)

    return train_step


def numbers_of(records):
    return [(record["step"], record["loss"]) for record in records]


@pytest.mark.parametrize("killed_at", [1, 3, 5, 6, 9, 10])
def test_a_killed_run_ends_as_one_left_alone(tmp_path, killed_at):
    whole, records = train(tmp_path / "whole")
    assert numbers_of(records)[-1][0] == 10
    folder = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="killed"):
        train(folder, train_step=fails_at(killed_at))
    state, resumed = train(folder)
    assert jax.tree.all(jax.tree.map(np.array_equal, state, whole))
    assert numbers_of(resumed) == numbers_of(records)
    assert runs.read_records(folder) == resumed


def test_it_goes_on_from_the_newest_checkpoint(tmp_path, capsys):
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, train_step=fails_at(9))
    capsys.readouterr()
    steps = []
    train(tmp_path, train_step=lambda state, step: steps.append(step) or state)
    assert steps == [7, 8, 9, 10]
    assert capsys.readouterr().out.startswith("resumed at step 6\nstep 8 of 10: loss ")


def test_a_finished_run_trains_no_more(tmp_path):
    state, records = train(tmp_path)
    again, same = train(tmp_path, train_step=fails_at(11))
    assert jax.tree.all(jax.tree.map(np.array_equal, state, again))
    assert same == records


def test_the_seconds_go_on(tmp_path):
    _, records = train(tmp_path)
    for name in ("seconds", "ms_per_step"):
        assert all(record[name] >= 0 for record in records)
    part, path = records[0], tmp_path / "records.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == records
    assert part["text"] == "hi"
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)


def test_what_a_kill_cut_off_or_no_checkpoint_has_is_dropped(tmp_path):
    lines = [json.dumps({"step": step}) + "\n" for step in (4, 8, 12)]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(lines) + '{"step": 1')
    assert runs.read_records(tmp_path) == [{"step": 4}, {"step": 8}, {"step": 12}]
    assert runs.read_records(tmp_path, 8) == [{"step": 4}, {"step": 8}]
    assert path.read_text() == "".join(lines[:2])


def test_what_is_no_number_is_null_in_the_file(tmp_path):
    """JSON has no NaN and no infinity, at which many readers stop."""
    plan = runs.Plan(tmp_path, {}, steps=2, report_every=1, save_every=1)
    for step, loss in enumerate((math.nan, math.inf), start=1):
        runs.write_record(plan, {"step": step, "seconds": 1.0, "train_loss": loss})

    def refuse(name):
        raise ValueError(name)

    for _ in range(2):  # also after the file was written anew
        lines = (tmp_path / "records.jsonl").read_text().splitlines()
        for number, line in enumerate(lines, start=1):
            record = json.loads(line, parse_constant=refuse)
            assert record == {"step": number, "seconds": 1.0, "train_loss": None}
        records = runs.read_records(tmp_path, 2)
        assert [record["step"] for record in records] == [1, 2]
        assert all(math.isnan(record["train_loss"]) for record in records)


def test_a_folder_holds_one_run(tmp_path):
    train(tmp_path, seed=0, rates=[0.1])
    train(tmp_path, rates=[0.1], seed=0)
    with pytest.raises(SystemExit, match=r"a run with seed 0, got seed 1: choose ano"):
        train(tmp_path, seed=1, rates=[0.1])
    with pytest.raises(SystemExit, match=r"with rates \[0\.1\], got rates None: ch"):
        train(tmp_path, seed=0)
    with pytest.raises(SystemExit, match=r"with seed 0, rates \[0\.1\], got seed 1, r"):
        train(tmp_path, seed=1)


def test_a_folder_of_another_example_is_refused(tmp_path):
    train(tmp_path, example="a.py", seed=0)
    with pytest.raises(
        SystemExit, match=r"a run with example a\.py, got example b\.py:"
    ):
        train(tmp_path, example="b.py", rates=[0.1])


def test_checkpoints_of_an_unknown_run_are_refused(tmp_path):
    """As when a folder was deleted while its run went on, and saved once more."""
    train(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(SystemExit, match="has checkpoints of an unknown run, without"):
        train(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_another_process_needs_the_same_options_and_folder(tmp_path, monkeypatch):
    """It looks when the first process has written the configuration."""

    def check(write, *, other=False):
        """`other` is whether the other process has a problem."""

        def gather(wrong):
            return np.array([other, wrong])

        monkeypatch.setattr(runs.multihost_utils, "sync_global_devices", write)
        monkeypatch.setattr(runs.multihost_utils, "process_allgather", gather)
        runs.check_config(runs.Plan(tmp_path, {"seed": 1}, 1, 1, 1))

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SystemExit, match="must be on a disk that all processes share"):
        check(lambda name: None)
    path = tmp_path / "config.json"
    with pytest.raises(SystemExit, match="holds a run with seed 0, got seed 1: choose"):
        check(lambda name: path.write_text('{"seed": 0}'))
    check(lambda name: path.write_text('{"seed": 1}'))
    with pytest.raises(SystemExit, match="stopped: another process cannot use its op"):
        check(lambda name: None, other=True)


def test_the_others_are_told_that_the_folder_is_in_use(tmp_path, monkeypatch):
    """Or they would wait for the first process, which has ended."""
    told = []

    def gather(wrong):
        told.append(bool(wrong))
        return np.array([wrong, False])

    def second(state, step):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "process_count", lambda: 2)
            patch.setattr(runs.multihost_utils, "sync_global_devices", lambda _: None)
            patch.setattr(runs.multihost_utils, "process_allgather", gather)
            with pytest.raises(SystemExit, match="holds a run that is going on: choo"):
                train(tmp_path, seed=step)  # nor is its configuration written
        return move(state, step)

    train(tmp_path, train_step=second)
    assert told == [True] * 10
    assert json.loads((tmp_path / "config.json").read_text()) == {}


def test_a_folder_has_one_run_at_a_time(tmp_path):
    def second(state, step):
        if step == 5:
            with pytest.raises(
                SystemExit, match="holds a run that is going on: choose"
            ):
                train(tmp_path)
            train(tmp_path / "other")
        return move(state, step)

    _, records = train(tmp_path, train_step=second)
    assert runs.read_records(tmp_path) == records
    train(tmp_path)  # the lock has ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_of_the_step(tmp_path, number):
    whole, records = train(tmp_path / "whole")
    drawn = []

    def interrupted(state, step):
        if step == 5:
            signal.raise_signal(number)
        return move(state, step)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", train_step=interrupted, draw=drawn.append)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert (tmp_path / "run" / "checkpoints" / "5").is_dir()
    assert numbers_of(drawn[0]) == numbers_of(records)[:1]
    state, resumed = train(tmp_path / "run")
    assert jax.tree.all(jax.tree.map(np.array_equal, state, whole))
    assert numbers_of(resumed) == numbers_of(records)


def test_sigterm_also_stops_what_ignores_ctrl_c(tmp_path):
    def interrupted(state, step):
        signal.raise_signal(signal.SIGTERM)
        return move(state, step)

    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit, match="stopped: the same command goes on from"):
            train(tmp_path, train_step=interrupted)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, old)
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_a_second_signal_stops_at_once(tmp_path):
    def impatient(state, step):
        signal.raise_signal(signal.SIGINT)
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return move(state, step)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, train_step=impatient)
    assert not list((tmp_path / "checkpoints").iterdir())


class Ended(Exception):
    """In the place of the end of the process."""


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_ends_at_once_what_ignores_ctrl_c(tmp_path, monkeypatch, processes):
    """The second signal, or the first to one of several processes."""
    sent = []

    def end(*_):
        raise Ended

    def interrupted(state, step):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "process_count", lambda: processes)
            for _ in range(3 - processes):
                sent.append(step)
                signal.raise_signal(signal.SIGTERM)
        return move(state, step)

    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    old_term = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Ended):
            train(tmp_path, train_step=interrupted)
    finally:
        signal.signal(signal.SIGINT, old)
        signal.signal(signal.SIGTERM, old_term)
    assert sent == [1] * (3 - processes)
    assert not list((tmp_path / "checkpoints").iterdir())


def run_code(code, stdout=subprocess.PIPE):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(EXAMPLES)}
    command = [sys.executable, "-c", code]
    streams = {"stdout": stdout, "stderr": subprocess.PIPE}
    return subprocess.run(command, env=environment, text=True, **streams)


@pytest.mark.slow
def test_processes_that_are_not_found_are_one_line():
    """In a program of its own, in which JAX has made no array."""
    args = "argparse.Namespace(distributed=True, coordinator=None)"
    done = run_code(f"import argparse, runs; runs.start_processes({args})")
    start = "--distributed must be used where JAX finds the other processes, got: "
    assert done.returncode == 1
    assert done.stderr.startswith(start)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [(12345.678, "12346"), (9999.9, "10000"), (0.1, "0.1"), (1e-9, "1e-09")],
)
def test_a_record_is_shown_with_the_time_left(tmp_path, capsys, value, expected):
    plan = runs.Plan(tmp_path, {}, steps=11, report_every=1, save_every=1)
    record = {"step": 1, "seconds": 2.0, "ms_per_step": value, "train_loss": 0.5}
    runs.write_record(plan, record | {"sample": "a\nb"})
    left = "0:02:03" if value > 12_000 else "0:01:40" if value > 1 else "0:00:00"
    numbers = f"train loss 0.5, {expected} ms per step, left: {left}"
    assert (
        capsys.readouterr().out == f"step 1 of 11: {numbers}\nsample:\n    a\n    b\n"
    )


@pytest.mark.slow
def test_a_run_that_nothing_reads_ends_with_one_line(tmp_path):
    code = f"""import pathlib, runs
plan = runs.Plan(pathlib.Path({str(tmp_path)!r}), {{}}, 9, 2, 1)
import jax.numpy as jnp
step = lambda state, step: {{"x": state["x"] + 1}}
runs.train(plan, {{"x": jnp.zeros(2)}}, step, lambda state, step: (state, {{}}))"""
    reader, writer = os.pipe()
    os.close(reader)
    done = run_code(code, stdout=writer)
    os.close(writer)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("stopped, since nothing reads the output: the same command")
    assert "Error" not in done.stderr
    assert (tmp_path / "checkpoints" / "1").is_dir()
