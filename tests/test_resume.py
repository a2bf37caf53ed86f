"""A run that is killed, and then stopped, ends like one that was left alone."""

import random
import runpy
import signal
import sys
import time
from pathlib import Path

import compilation
import orbax.checkpoint as ocp
import pytest

pytestmark = pytest.mark.slow

PATH = Path(__file__).parent.parent / "examples" / "resume.py"
sys.path.insert(0, str(PATH.parent))
try:
    EXAMPLE = runpy.run_path(str(PATH))
finally:
    del sys.path[0]


def training(directory):
    options = ["--directory", directory, "--steps", "60", "--save-every", "5"]
    return compilation.running([sys.executable, "-W", "error", PATH, *options])


def kill_somewhere(directory, moments):
    """Returns the step at which the run began."""
    with training(directory) as process:
        begin = process.stdout.readline()
        # The second save starts when the first is complete: every run gets further.
        for _ in range(moments.randint(2, 3)):
            assert process.stdout.readline().startswith("step")
        time.sleep(moments.uniform(0, 0.1))  # from one save to the next it is 0.1 s
        process.kill()
        assert process.wait() == -signal.SIGKILL  # it had not ended by itself
    return int(begin.split()[-1])


def interrupt(directory):
    """Presses Ctrl-C; returns the step at which the run began, and the last saved."""
    with training(directory) as process:
        begin, first = process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)
        lines, error = process.communicate()
        assert process.returncode == 130
    last = int(f"{first}{lines}".splitlines()[-1].split()[1].strip(","))
    message = f"stopped: the same command goes on from step {last}"
    assert error.splitlines()[-1] == message
    return int(begin.split()[-1]), last


def finish(process):
    """Returns the first line, and those with the accuracy and the digests."""
    lines = process.communicate()[0].splitlines()
    assert process.returncode == 0
    assert "sha256 of the optimizer state" in lines[-1]
    return lines[0], lines[-3:]


def test_killed_runs_end_alike(tmp_path):
    with training(tmp_path / "left_alone") as process:
        _, expected = finish(process)
    assert kill_somewhere(tmp_path / "killed", random.Random(0)) == 0
    begin, saved = interrupt(tmp_path / "killed")
    with training(tmp_path / "killed") as process:
        first, result = finish(process)
    assert first == f"resumed at step {saved}"
    assert 0 < begin < saved  # both went on where the one before had come to
    assert result == expected


class ForgetsTheKey(ocp.CheckpointManager):
    """Restores all but the state of LRD, which begins anew."""

    def restore(self, step, args):
        state, fresh = super().restore(step, args=args), EXAMPLE["initial_state"]()
        state["opt_state"] = (state["opt_state"][0], fresh["opt_state"][1])
        return state


@pytest.mark.usefixtures("optax_promotion")
def test_a_key_that_is_not_restored_is_seen(tmp_path, capsys):
    def last_lines(directory, steps, manager=ocp.CheckpointManager):
        with manager(tmp_path / directory) as opened:
            EXAMPLE["train"](opened, steps, save_every=3)
        return capsys.readouterr().out.splitlines()[-3:]

    expected = last_lines("left_alone", 6)
    for directory in "resumed", "forgetful":
        last_lines(directory, 3)
    assert last_lines("resumed", 6) == expected
    forgetful = last_lines("forgetful", 6, ForgetsTheKey)
    assert all(a != b for a, b in zip(forgetful[1:], expected[1:], strict=True))
