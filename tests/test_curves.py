"""The picture and the table of several runs."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
try:
    import curves
    import options
finally:
    del sys.path[0]

CONFIG = {"optimizer": "rmsprop", "learning_rate": 0.001, "keep_prob": 0.5}
CONFIG |= {"unbiased": True, "epochs": 200}


def records_of(accuracies):
    return [
        {"step": number, "seconds": 1.0, "epoch": number, "test_error": 100 - accuracy}
        | {"train_loss": 3 * 0.9**number}
        for number, accuracy in enumerate(accuracies, start=1)
    ]


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """Returns a function: runs, as names and records -> what is printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(options, "SAVED", [])

    def compare(runs):
        for number, (name, records) in enumerate(runs.items()):
            Path(name).mkdir(parents=True)
            config = CONFIG | {"keep_prob": (0.5, 1.0)[number % 2]}
            Path(name, "config.json").write_text(json.dumps(config))
            lines = [json.dumps(record) + "\n" for record in records]
            Path(name, "records.jsonl").write_text("".join(lines))
        monkeypatch.setattr(sys, "argv", ["curves", *runs, "--output", "out"])
        curves.main()
        return capsys.readouterr().out

    return compare


def test_the_table_shows_what_differs_in_80_columns(compare):
    names = ["results/lrd", "results/dense"]
    text = compare(
        {names[0]: records_of([95.0] * 199 + [12.345]), names[1]: records_of([50.0])}
    )
    assert max(map(len, text.splitlines())) <= 80
    # They do not differ in the optimizer.
    assert [line.split() for line in text.splitlines() if line.strip()][-5:-1] == [
        [names[0], "200", "87.66", "2.117e-09"],
        ["keep", "prob", "0.5"],
        [names[1], "1", "50", "2.7"],
        ["keep", "prob", "1.0"],
    ]
    assert [Path("out", "curves.png")] == options.SAVED


def test_many_options_and_long_names_leave_the_numbers_in_80_columns():
    names = ["r" * 100, "b"]
    configs = {name: dict.fromkeys(CONFIG, f"{name[0]} value") for name in names}
    records = {name: records_of([50.0] * 99_999) for name in names}
    console = Console(width=80, file=io.StringIO())
    console.print(curves.make_table(configs, records))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    numbers = [line.split()[-3:] for line in lines if " 99999 " in line]
    assert len(numbers) == 2
    assert all(row[:2] == ["99999", "50"] for row in numbers)
    text = "".join("".join(line.split()[:1]) for line in lines)
    assert names[0] in text  # folded, and whole


def test_runs_of_two_examples_are_refused(compare):
    text = {"step": 1, "seconds": 6.0, "train_bits": 3.0, "validation_bits": 4.0}
    with pytest.raises(SystemExit, match=r"^FOLDER must be the outputs of one example"):
        compare({"a": records_of([50.0]), "b": [text]})


@pytest.mark.parametrize(("seconds", "unit"), [(60, "seconds"), (120, "minutes")])
def test_the_curves_of_a_transformer_are_bits(monkeypatch, seconds, unit):
    records = [
        {"step": n, "seconds": seconds * n, "train_bits": 9 / n, "validation_bits": 4.0}
        for n in (1, 2, 4)
    ]
    left, right = axes_of(monkeypatch, {"a": records})
    assert left.get_xlabel() == f"training time ({unit})"
    times = np.array([1, 2, 4]) * (60 if unit == "seconds" else 2)
    np.testing.assert_allclose(left.lines[0].get_xdata(), times)
    np.testing.assert_allclose(left.lines[0].get_ydata(), [4, 4, 4])
    np.testing.assert_allclose(
        right.lines[0].get_xydata(), [(1, 9), (2, 4.5), (4, 2.25)]
    )


def test_folders_of_odd_names_are_shown_as_they_are(compare, monkeypatch):
    names = ["_a", "[red]b", ":smile:", "c$d$", r"$\no$"]
    text = compare({name: records_of([50.0]) for name in names})  # also draws them
    rows = text.splitlines()
    assert [row.split()[0] for row in rows if row.strip().endswith(" 2.7")] == names
    save, legends = curves.save_picture, []

    def keep(figure, *args, **more):
        legends.extend(figure.legends)
        save(figure, *args, **more)

    monkeypatch.setattr(curves, "save_picture", keep)
    curves.draw({name: records_of([50.0]) for name in names}, Path("a.png"))
    shown = [text.get_text() for text in legends[0].get_texts()]
    assert shown == [" _a", "[red]b", ":smile:", r"c\$d\$", r"\$\no\$"]


def test_a_run_without_a_report_is_told(compare):
    with pytest.raises(SystemExit, match=r"^empty has no report yet$"):
        compare({"empty": []})


def axes_of(monkeypatch, runs):
    """The panels that `draw` saves."""
    figures = []
    monkeypatch.setattr(
        curves, "save_picture", lambda figure, *_, **__: figures.append(figure)
    )
    curves.draw(runs, Path("unused"))
    return figures[0].axes


def test_the_curves_are_test_error_and_train_loss(monkeypatch):
    records = records_of([40.0, 90.0, 95.5])
    left, right = axes_of(monkeypatch, {"a": records, "b": records[:1]})
    np.testing.assert_allclose(left.lines[0].get_xydata(), [(1, 60), (2, 10), (3, 4.5)])
    np.testing.assert_allclose(left.lines[1].get_xydata(), [(1, 60)])
    losses = [record["train_loss"] for record in records]
    np.testing.assert_allclose(right.lines[0].get_ydata(), losses)
    # Wide ranges have a log scale, narrow ones and those that reach 0 have not.
    assert left.get_ylabel() == "test error (%), log scale"
    assert right.get_ylabel() == "train loss"
    left, _ = axes_of(monkeypatch, {"a": records_of([40.0, 100.0])})
    assert left.get_yscale() == "linear"


def test_many_runs_have_lines_of_their_own(monkeypatch):
    runs = {str(number): records_of([50.0]) for number in range(21)}
    left, _ = axes_of(monkeypatch, runs)
    assert len({(line.get_color(), line.get_linestyle()) for line in left.lines}) == 21


def test_a_picture_is_drawn_for_a_run_that_diverged(tmp_path):
    records = records_of([50.0, 10.0, 10.0])
    for record in records[1:]:
        record["train_loss"] = float("nan")
    curves.draw({"a": records}, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1350, 540)
