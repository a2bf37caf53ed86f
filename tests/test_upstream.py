"""The reports for Optax in docs/upstream are true, as long as its faults are there."""

import re
from pathlib import Path

import optax
import pytest

REPORTS = sorted((Path(__file__).parents[1] / "docs" / "upstream").glob("*.md"))
HEADINGS = [
    "What happens",
    "What is expected",
    "Reproducer",
    "Versions",
    "Cause",
    "Correction",
    "Test",
]
pytestmark = pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.stem)


@pytest.mark.usefixtures("optax_promotion")
def test_reproducer(report, capsys):
    [code] = re.findall(r"```python\n(.*?)```", report.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 10
    # A comment states what its line prints. The first is the value without jit.
    promised = re.findall(r"^print\(.*\)  # (\S+)$", code, re.MULTILINE)
    assert len(promised) == code.count("print") > 1
    exec(compile(code, report.name, "exec"), {})
    printed = capsys.readouterr().out.split()
    assert printed[0] == promised[0]
    right = [promised[0]] * len(promised)
    if printed == right != promised:
        pytest.skip(f"the fault has been mended in Optax {optax.__version__}")
    assert printed == promised


def test_report_is_complete(report):
    text = report.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert re.findall(r"^\+\+\+ b/(.*)$", text, re.MULTILINE) == [
        "optax/schedules/_schedule.py",
        "optax/schedules/_schedule_test.py",
    ]
