"""The shortest example runs, learns, and stays short."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "minimal.py"


@pytest.mark.slow
def test_it_runs_and_learns():
    # conftest.py has set the environment in which JAX compiles for tests.
    run = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    accuracies = re.findall(r"^epoch \d+: test accuracy ([\d.]+)%$", run.stdout, re.M)
    assert len(accuracies) == 10
    assert float(accuracies[-1]) > 95


def test_it_has_at_most_40_lines():
    assert len(SCRIPT.read_text().splitlines()) <= 40
