"""Shows how far an example is, and writes its results as JSON and as pictures."""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure
from PIL import Image  # Matplotlib depends on it
from rich import progress
from rich.console import Console

PACKAGES = ("jax", "jaxlib", "optax", "flax", "scikit-learn")


def progress_bar() -> progress.Progress:
    # On stderr, so that stdout can go to a file and hold the tables alone.
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=12),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left:"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        # Else lines for a file would go to the terminal, above the bar.
        redirect_stdout=sys.stdout.isatty(),
        speed_estimate_period=600,  # seconds: a step can take some
    )


def processor() -> str:
    """Returns the name of the processor, since rounding differs between them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_report(
    config: dict[str, Any], results: list[dict[str, Any]], path: Path, **more: Any
) -> None:
    """Writes JSON with one line per item, and one line per result."""
    report = {
        "config": config,
        "versions": {name: version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        **more,
        "results": results,
    }
    # JSON has neither NaN (a run that diverged) nor infinity (a run that did not
    # escape): both become null.
    report = json.loads(json.dumps(report), parse_constant=lambda _: None)
    texts = {name: json.dumps(item) for name, item in report.items()}
    rows = ",\n  ".join(map(json.dumps, report["results"]))
    texts["results"] = f"[\n  {rows}\n ]"
    lines = ",\n ".join(f"{json.dumps(name)}: {text}" for name, text in texts.items())
    path.write_text(f"{{\n {lines}\n}}\n")


def save_picture(figure: Figure, path: Path, dpi: int) -> None:
    """Saves a PNG of 256 colors, which looks the same in a third of the bytes."""
    figure.savefig(path, dpi=dpi)
    picture = Image.open(path).convert("RGB")
    # The usual method, the median cut, spoils the colors of thin lines. This method
    # does not, but it tints light gray unless k-means follows it.
    picture = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1)
    picture.save(path, optimize=True)
