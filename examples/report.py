"""How the examples write down what they found."""

import json
from pathlib import Path
from typing import Any


def write_report(report: dict[str, Any], path: Path) -> None:
    """Writes JSON with one item a line, and one line for each of the results."""
    # JSON knows neither the NaN of a run that diverged nor the inf of one that never
    # arrived: both become null.
    report = json.loads(json.dumps(report), parse_constant=lambda _: None)
    texts = {name: json.dumps(item) for name, item in report.items()}
    rows = ",\n  ".join(map(json.dumps, report["results"]))
    texts["results"] = f"[\n  {rows}\n ]"
    lines = ",\n ".join(f"{json.dumps(name)}: {text}" for name, text in texts.items())
    path.write_text(f"{{\n {lines}\n}}\n")
