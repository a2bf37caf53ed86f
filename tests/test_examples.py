"""The examples from the outside: options, output folders, Ctrl-C, tables, arms."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
try:
    import options
finally:
    del sys.path[0]

# Wrong options of each example, and what is said about them.
WRONG = [
    ("digits", "--keep-prob 2", "--keep-prob must be above 0 and at most 1, got 2"),
    ("digits", "--seeds 1", "--seeds must be at least 2 and --epochs at least 1, got"),
    ("digits", "--learning-rates adam=0", "must be OPTIMIZER=RATE, one of sgdm, rms"),
    ("grow", "--keep-prob nan", "--keep-prob must be above 0 and at most 1, got nan"),
    ("grow", "--seeds 1", "--seeds must be at least 2, got 1"),
    ("range_test", "--steps 19", "--steps must be at least 20, got 19"),
    ("range_test", "--keep-prob 0", "--keep-prob must be above 0 and at most 1, got 0"),
    ("saddle", "--runs 9", "--runs must be at least 10 and --steps at least 100, got"),
    ("mask_gallery", "--key one", "argument --key: invalid int value: 'one'"),
    ("resume", "--steps 0", "--steps and --save-every must be at least 1, got 0 and"),
    ("multi_process", "--num-processes 3", "must be 1, 2 or 4 on one machine, got 3"),
]
NAMES = tuple(dict.fromkeys(name for name, _, _ in WRONG))


@pytest.fixture
def start(tmp_path):
    """Returns a function that runs an example where `import jax` runs that text."""

    def start(name, *words, jax):
        (tmp_path / "jax.py").write_text(jax)
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "80"}
        command = [sys.executable, EXAMPLES / f"{name}.py", *words]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    return start


NO_JAX = "raise ImportError('JAX was imported')"


@pytest.mark.parametrize(("name", "words", "message"), WRONG)
def test_wrong_options_are_refused_before_jax_is_imported(start, name, words, message):
    result = start(name, *words.split(), jax=NO_JAX)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_help_needs_no_jax_and_fits_on_a_screen(start, name):
    result = start(name, "--help", jax=NO_JAX)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c_during_the_imports_ends_with_one_line(start, name):
    result = start(name, jax="import signal; signal.raise_signal(signal.SIGINT)")
    assert result.returncode == 130
    assert result.stderr == "stopped: nothing saved\n"


def test_ctrl_c_tells_what_was_saved(tmp_path):
    code = """import options, pathlib, signal
options.end_on_ctrl_c()
for name in ("table.json", "picture.png"):
    options.save(pathlib.Path(name), pathlib.Path.touch)
signal.raise_signal(signal.SIGINT)"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 130
    assert result.stderr == "stopped: table.json, picture.png saved\n"


def refuse(*args, **kwargs):
    raise OSError(30, "Read-only file system")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch, capsys):
    parser = argparse.ArgumentParser()
    options.make_folder(parser, tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []  # nothing is left there
    rule = "--output must be a folder that files can be written to, got"
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        options.make_folder(parser, tmp_path / "file")
    assert f"{rule} {tmp_path / 'file'} (File exists)" in capsys.readouterr().err
    # As root any folder but that of a read-only file system can be written.
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(SystemExit):
        options.make_folder(parser, tmp_path)
    message = f"{rule} {tmp_path} (Read-only file system)"
    assert message in capsys.readouterr().err


def test_a_failure_to_write_is_one_line():
    message = "table.json could not be written: Read-only file system"
    with pytest.raises(SystemExit, match=message):
        options.save(Path("table.json"), refuse)
    assert options.SAVED == []
