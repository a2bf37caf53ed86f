"""Checks of command-line options that the examples share."""

import argparse
from pathlib import Path


def check_keep_prob(parser: argparse.ArgumentParser, value: float) -> None:
    if not 0 < value <= 1:
        parser.error(f"--keep-prob must be in (0, 1], got {value}")


def make_folder(parser: argparse.ArgumentParser, path: Path) -> None:
    """Makes the folder for --output now, to fail before an hour of training."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output must be a folder, or one that can be made: {error}")
