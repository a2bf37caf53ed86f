"""The examples from the outside: options, output folders, Ctrl-C, tables, arms."""

import argparse
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import lrd_optax

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
try:
    import digits
    import grow
    import options
    import range_test
    import saddle
finally:
    del sys.path[0]

# Wrong options of each example, and what is said about them. jax.py is a file.
NO_FOLDER = "must be a folder that files can be written to, got jax.py (File exists)"
WRONG = [
    ("digits", "--keep-prob 2", "--keep-prob must be above 0 and at most 1, got 2"),
    ("digits", "--seeds 1", "--seeds must be at least 2 and --epochs at least 1, got"),
    ("digits", "--epochs 0", "--epochs at least 1, got 16 and 0"),
    ("digits", "--learning-rates adam=0", "must be OPTIMIZER=RATE, one of sgdm, rms"),
    ("digits", "--learning-rates adam=inf", "and a number above 0, got adam=inf"),
    ("digits", "--learning-rates sgd=1", "and a number above 0, got sgd=1"),
    ("digits", "--output jax.py", f"--output {NO_FOLDER}"),
    ("grow", "--keep-prob nan", "--keep-prob must be above 0 and at most 1, got nan"),
    ("grow", "--seeds 1", "--seeds must be at least 2, got 1"),
    ("grow", "--output jax.py", f"--output {NO_FOLDER}"),
    ("range_test", "--steps 19", "--steps must be at least 20, got 19"),
    ("range_test", "--keep-prob 0", "--keep-prob must be above 0 and at most 1, got 0"),
    ("range_test", "--seeds 1", "--seeds must be at least 2 and --epochs at least 1"),
    ("range_test", "--output jax.py", f"--output {NO_FOLDER}"),
    ("saddle", "--runs 9", "--runs must be at least 10 and --steps at least 100, got"),
    ("saddle", "--steps 99", "--steps at least 100, got 1000 and 99"),
    ("saddle", "--keep-prob 0", "--keep-prob must be above 0 and at most 1, got 0"),
    ("saddle", "--output jax.py", f"--output {NO_FOLDER}"),
    ("mask_gallery", "--key one", "argument --key: invalid int value: 'one'"),
    ("mask_gallery", f"--key {2**64}", f"--key must fit in 64 bits, got {2**64}"),
    ("mask_gallery", f"--key {-(2**63) - 1}", "--key must fit in 64 bits, got -9223"),
    ("mask_gallery", "--output jax.py", f"--output {NO_FOLDER}"),
    ("schedule_gallery", "--output", "argument --output: expected one argument"),
    ("schedule_gallery", "--output jax.py", f"--output {NO_FOLDER}"),
    ("resume", "--steps 0", "--steps and --save-every must be at least 1, got 0 and"),
    ("resume", "--save-every 0", "must be at least 1, got 1000 and 0"),
    ("resume", "--directory jax.py", f"--directory {NO_FOLDER}"),
    ("cifar10", "--keep-prob 0", "--keep-prob must be above 0 and at most 1, got 0"),
    ("cifar10", "--learning-rate 0", "must be a finite number above 0, got 0"),
    ("cifar10", "--learning-rate inf", "must be a finite number above 0, got inf"),
    ("cifar10", "--epochs 0", "--epochs must be at least 1, got 0"),
    ("cifar10", "--batch 0", "--batch must be at least 1, got 0"),
    ("cifar10", "--width 0", "--width must be at least 1, got 0"),
    ("cifar10", "--depth 50", "argument --depth: invalid choice: 50"),
    ("cifar10", "--optimizer sgd", "argument --optimizer: invalid choice: 'sgd'"),
    ("cifar10", "--seed -1", "--seed must be from 0 to 4294967295, got -1"),
    ("cifar10", f"--seed {2**32}", "--seed must be from 0 to 4294967295, got 4294"),
    ("cifar10", "--data no", "no does not exist: get cifar-10-python.tar.gz from"),
    ("cifar10", "--save-every 0", "--save-every must be at least 1, got 0"),
    ("cifar10", "--process-id 0", "--process-id and --coordinator go together"),
    ("cifar10", "--output jax.py", f"--output {NO_FOLDER}"),
    ("curves", ".", "FOLDER must be the output folder of a run, got ., which has no c"),
    ("curves", "--output x", "the following arguments are required: FOLDER"),
    ("curves", "data --output jax.py", f"--output {NO_FOLDER}"),
    ("multi_process", "--num-processes 3", "must be 1, 2 or 4 on one machine, got 3"),
    ("multi_process", "--process-id 0", "--process-id and --coordinator go together"),
    ("multi_process", "--coordinator h:1", "--process-id and --coordinator go togeth"),
    ("multi_process", "--process-id 0 --coordinator h", "must be HOST:PORT, got h"),
    ("multi_process", "--process-id 2 --coordinator h:1", "must be from 0 to 1, got 2"),
    ("multi_process", "--out no/x", "--out must be in a folder that exists, got no/x"),
    ("transformer", "--steps 0", "--steps must be at least 1, got 0"),
    ("transformer", f"--steps {2**31}", "--steps must be at most 2147483647, got 21"),
    ("transformer", "--batch 0", "--batch must be at least 1, got 0"),
    ("transformer", "--context -1", "--context must be at least 1, got -1"),
    ("transformer", "--report-every 0", "--report-every must be at least 1, got 0"),
    ("transformer", "--save-every 0", "--save-every must be at least 1, got 0"),
    ("transformer", "--learning-rate nan", "--learning-rate must be above 0, got nan"),
    ("transformer", "--clip -1", "--clip must be at least 0, got -1"),
    ("transformer", "--keep-prob 2", "--keep-prob must be above 0 and at most 1, got"),
    ("transformer", "--seed -1", f"--seed must be from 0 to {2**32 - 1}, got -1"),
    ("transformer", "--text no", "--text must be a file or a folder, got no"),
    ("transformer", "--prompt=", "--prompt must have at least one character, got none"),
    ("transformer", "--method magma --unbiased", "need --method lrd, got magma"),
    ("transformer", "--method dense --mask row", "need --method lrd, got dense"),
    ("transformer", "--mesh 2x4", "two numbers of devices such as 2,4, got 2x4"),
    ("transformer", "--mesh 0,1", "two numbers of devices such as 2,4, got 0,1"),
    ("transformer", "--mesh 3,1", "--mesh 3,1 needs a --batch that 3 divides, got 16"),
    ("transformer", "--mesh 1,8", "a --size whose heads 8 divides, got 1M with 4"),
    ("transformer", "--size 2M", "invalid choice: '2M' (choose from"),
    ("transformer", "--output jax.py", f"--output {NO_FOLDER}"),
]
NAMES = tuple(dict.fromkeys(name for name, _, _ in WRONG))
NEEDED = {"curves": ["data"]}  # what has no default
LINES = dict.fromkeys(NAMES, 24) | {"transformer": 36}  # the longest --help


@pytest.fixture
def start(tmp_path):
    """Returns a function that runs an example where `import jax` runs that text."""

    def start(name, *words, jax):
        (tmp_path / "jax.py").write_text(jax)
        # It looks like images of cifar10.py, and like the output folder of a run.
        (tmp_path / "data" / "train").mkdir(parents=True, exist_ok=True)
        for file in "config.json", "records.jsonl":
            (tmp_path / "data" / file).touch()
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
    assert len(lines) <= LINES[name]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c_during_the_imports_ends_with_one_line(start, name):
    interrupt = "import signal; signal.raise_signal(signal.SIGINT)"
    result = start(name, *NEEDED.get(name, []), jax=interrupt)
    assert result.returncode == 130
    assert result.stderr == "stopped: nothing saved\n"


def test_ctrl_c_tells_where_resume_goes_on(start, tmp_path):
    for name in "3", "20", "25.orbax-checkpoint-tmp":
        (tmp_path / "results" / "resume" / name).mkdir(parents=True)
    result = start("resume", jax="import signal; signal.raise_signal(signal.SIGINT)")
    assert result.returncode == 130
    assert result.stderr == "stopped: the same command goes on from step 20\n"


def test_a_text_may_have_letters_that_stdout_has_not(start, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = start("transformer", jax="print('a\\xe9'); raise SystemExit")
    assert (result.returncode, result.stdout, result.stderr) == (0, "a?\n", "")


def run_code(code, folder):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES), "PYTHONUNBUFFERED": ""},
        cwd=folder,
        capture_output=True,
        text=True,
    )


NO_READER = "ends = os.pipe(); os.dup2(ends[1], 2); [os.close(end) for end in ends]"


@pytest.mark.parametrize(
    ("before", "clean_up", "expected"),
    [
        ("", "", (130, "table\n", "stopped: a.json, b.png saved\n")),
        ("", "lambda: print('clean')", (130, "table\nclean\n", "stopped: a.json, b.p")),
        ("", "lambda: 1 / 0", (130, "", "")),
        (NO_READER, "", (130, "table\n", "")),
        ("sys.stderr = None", "", (130, "table\n", "")),
        ("sys.stdout = None", "", (130, "", "stopped: a.json, b.png saved\n")),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)", "", (0, "table\nended\n", "")),
    ],
)
def test_ctrl_c_always_ends_what_does_not_ignore_it(
    tmp_path, before, clean_up, expected
):
    code = f"""import options, os, pathlib, signal, sys
{before}
options.end_on_ctrl_c({clean_up})
for name in "a.json", "b.png":
    options.save(pathlib.Path(name), pathlib.Path.touch)
print("table")
signal.raise_signal(signal.SIGINT)
print("ended")"""
    result = run_code(code, tmp_path)
    status, out, error = expected
    assert (result.returncode, result.stdout) == (status, out)
    assert result.stderr.startswith(error)
    assert len(result.stderr.splitlines()) == bool(error)


@pytest.mark.parametrize("moment", ["subprocess.Popen", "time.sleep"])
def test_ctrl_c_stops_all_processes(tmp_path, moment):
    """It comes when the second process is to be started, or when both are running."""
    code = f"""import signal, sys, unittest.mock
names = "jax jax.numpy jax.experimental jax.sharding numpy optax sklearn.datasets"
for name in [*names.split(), "lrd_optax"]:
    sys.modules[name] = unittest.mock.MagicMock()
import multi_process, options, subprocess, time
options.end_on_ctrl_c()
original, calls = {moment}, []
def interrupted(*args, **kwargs):
    calls.append(args)
    if len(calls) == 2:
        signal.raise_signal(signal.SIGINT)
    return original(*args, **kwargs)
{moment} = interrupted
sys.argv = ["-c", "import time; time.sleep(5); print('was not stopped')"]
multi_process.start_processes(2)"""
    result = run_code(code, tmp_path)  # it waits until no process has its output
    assert result.returncode == 130
    assert (result.stdout, result.stderr) == ("", "stopped: nothing saved\n")


# The numbers that decide the work, and the least values that are allowed.
FULL, QUICK = {"seeds": 16, "epochs": 30}, {"seeds": 4, "epochs": 6}
ACCEPTED = [
    ("digits", "", FULL | {"optimizers": list(options.RATES), "keep_prob": 0.5}),
    ("digits", "--quick", QUICK),
    ("digits", "--quick --seeds 2", QUICK | {"seeds": 2}),
    ("digits", "--keep-prob 1 --epochs 1", FULL | {"keep_prob": 1, "epochs": 1}),
    ("range_test", "", FULL | {"optimizer": "sgdm", "keep_prob": 0.5, "steps": 100}),
    ("range_test", "--quick --steps 20", QUICK | {"steps": 20}),
    ("grow", "", {"seeds": 16, "keep_prob": 0.5, "optimizers": ["sgdm", "adam"]}),
    ("grow", "--quick --optimizers adam adam", {"seeds": 4, "optimizers": ["adam"]}),
    ("saddle", "", {"runs": 1000, "steps": 2000, "keep_prob": 0.5}),
    ("saddle", "--quick --steps 100", {"runs": 50, "steps": 100}),
    ("saddle", "--runs 10", {"runs": 10}),
    ("mask_gallery", f"--key {2**64 - 1}", {"key": 2**64 - 1}),
    ("mask_gallery", f"--key {-(2**63)}", {"key": -(2**63)}),
    (
        "cifar10",
        "--data .",
        {"optimizer": "sgdm", "learning_rate": 0.1, "keep_prob": 0.5, "epochs": 200}
        | {"batch": 128, "depth": 34, "width": 64, "seed": 0, "save_every": None},
    ),
    ("cifar10", "--data . --quick", {"epochs": 6, "depth": 10, "width": 16}),
    (
        "cifar10",
        "--data . --quick --epochs 1 --depth 18 --width 1 --batch 1 --seed 4294967295",
        {"epochs": 1, "depth": 18, "width": 1, "batch": 1, "seed": 2**32 - 1},
    ),
    ("cifar10", "--data . --optimizer radam", {"learning_rate": 0.001}),
    ("cifar10", "--data . --learning-rate 0.3", {"learning_rate": 0.3}),
    ("multi_process", "", {"num_processes": 2, "process_id": None}),
    ("transformer", "", {"steps": 2000, "report_every": 100, "save_every": 100}),
    ("transformer", "--quick", {"steps": 100, "report_every": 20, "size": "1M"}),
    ("transformer", "--steps 1", {"steps": 1, "report_every": 1, "mask": "element"}),
    (
        "transformer",
        "--size 1B --mesh 2,8",
        {"mesh": (2, 8), "learning_rate": 0.4 / 2048},
    ),
]


@pytest.mark.parametrize(("name", "words", "expected"), ACCEPTED)
def test_options_decide_the_work(monkeypatch, tmp_path, name, words, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    Path("train").mkdir()  # it looks like images of cifar10.py
    monkeypatch.setattr(sys, "argv", [name, *words.split()])
    assert vars(getattr(options, name)()).items() >= expected.items()


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
    monkeypatch.setattr(sys, "argv", ["", "--out", str(tmp_path / "x.npz")])
    with pytest.raises(SystemExit):
        options.multi_process()
    message = message.replace("--output", "the folder of --out")
    assert message in capsys.readouterr().err


def test_a_failure_to_write_is_one_line():
    message = "table.json could not be written: Read-only file system"
    with pytest.raises(SystemExit, match=message):
        options.save(Path("table.json"), refuse)
    assert options.SAVED == []


# The arms and the tables, without training.


def in_80_columns(*tables):
    """Returns what a terminal of 80 columns shows; nothing may be cut or wrapped."""
    narrow, wide = (Console(width=n, file=io.StringIO()) for n in (80, 200))
    for console in narrow, wide:
        for table in tables:
            console.print(table)
    text = narrow.file.getvalue()
    strip = [s.rstrip() for s in text.splitlines()]
    assert strip == [s.rstrip() for s in wide.file.getvalue().splitlines()]
    return text


@pytest.mark.parametrize(
    ("keep_prob", "expected"),
    [(0.5, "dense, half the rate"), (0.3, "dense, 0.3 x rate")],
)
def test_one_name_for_the_arm_with_the_mean_step_of_lrd(keep_prob, expected):
    arms = digits.make_arms(["adam", "adam"], {"adam": 0.03}, keep_prob, True)
    names = ["dense", expected, "LRD", "LRD, unbiased"]
    assert [arm.name for arm in arms] == names  # an optimizer named twice counts once
    rates = [0.03, 0.03 * keep_prob, 0.03, 0.03 / keep_prob]
    assert [arm.rate for arm in arms] == rates
    assert [arm.has_lrd for arm in arms] == [False, False, True, True]
    assert saddle.make_arms(keep_prob) == ("dense", expected, "noise", "LRD")
    fewer = digits.make_arms(["adam"], {"adam": 0.03}, keep_prob, False)
    assert [arm.name for arm in fewer] == ["dense", "LRD", "LRD, unbiased"]


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("name", options.RATES)
def test_the_unbiased_arm_is_the_recommended_recipe_bit_for_bit(name):
    """LRD at the rate / keep_prob is unbiased=True at the rate."""
    rate, keep_prob, key = options.RATES[name], 0.5, jax.random.key(3)
    arm = digits.make_arms([name], options.RATES, keep_prob, True)[-1]
    assert arm.name == "LRD, unbiased"
    dropout = lrd_optax.learning_rate_dropout(
        keep_prob=keep_prob, key=key, unbiased=True
    )
    ours = digits.make_optimizer(arm, jnp.float32(arm.rate), keep_prob, key)
    theirs = optax.chain(digits.OPTIMIZERS[name](jnp.float32(rate)), dropout)
    random = np.random.default_rng(0)
    gradients = random.normal(size=(12, 50, 3)).astype(np.float32)

    @jax.jit
    def train(tx_state, params):
        def step(carry, gradient):
            for tx, (params, state) in zip((ours, theirs), carry, strict=True):
                updates, state = tx.update(gradient, state, params)
                yield optax.apply_updates(params, updates), state

        return jax.lax.scan(
            lambda carry, g: (tuple(step(carry, g)), None), tx_state, gradients
        )[0]

    params = jnp.ones((50, 3))
    start = tuple((params, tx.init(params)) for tx in (ours, theirs))
    (first, _), (second, _) = train(start, params)
    assert (first != params).all()
    np.testing.assert_array_equal(first, second)


def digits_results(keep_prob, gain=0.0):
    """Results of all optimizers, in which LRD gains that much over dense."""
    arms = digits.make_arms(list(options.RATES), options.RATES, keep_prob, True)
    curves = []
    for arm in arms:
        accuracy = 95 + np.random.default_rng(0).normal(size=(30, 16))
        curves.append(digits.Curves(accuracy + gain * arm.has_lrd, accuracy, 123.456))
    return digits.summarize(arms, curves), digits.compare(arms, curves, keep_prob)


@pytest.mark.parametrize("keep_prob", [0.5, 0.125])
def test_tables_of_digits_fit(keep_prob):
    results, differences = digits_results(keep_prob)
    tables = digits.make_table(results), digits.make_difference_table(differences)
    text = in_80_columns(*tables)
    assert "LRD, unbiased" in text
    lower = options.lower_rate(keep_prob)
    assert f"minus {lower}" in text
    assert "control" not in text


def test_differences_and_verdict_of_digits():
    _, differences = digits_results(0.5, gain=1.0)
    lower = "dense, half the rate"
    pairs = [("LRD", "dense"), ("LRD", lower), ("LRD, unbiased", "dense")]
    assert [(d.arm, d.minus) for d in differences[:3]] == pairs
    np.testing.assert_allclose([d.points for d in differences], 1)
    names = " and ".join(options.RATES)
    assert digits.verdict(differences).startswith(
        f"LRD is better than dense with {names}; LRD is better than {lower} with "
        f"{names}; LRD, unbiased is better than dense with {names}: 15 of 15 intervals "
        "of differences exclude 0 (chance alone gives about 0.75)."
    )
    _, differences = digits_results(0.5, gain=-1.0)
    assert digits.verdict(differences).startswith("LRD is worse than dense with sgdm")
    equal = [d._replace(points=0.1, half_width=0.2) for d in differences]
    assert digits.verdict(equal).startswith(
        "No arm is clearly better or worse: 0 of 15 intervals"
    )


SUGGESTION = range_test.Suggestion(0.0123, 0.00123, 0.005, 0.006, 0.007)


def range_test_results(gain):
    """Results in which "LRD, fixed, peak" gains that much over "dense, fixed, peak"."""
    arms, suggestions = [], {"dense": SUGGESTION, "LRD": SUGGESTION}
    for kind in suggestions:
        arms += range_test.make_arms("sgdm", kind, SUGGESTION, 360, 0.5)
    accuracies = []
    for number, _ in enumerate(arms):
        accuracy = 95 + np.random.default_rng(number % 5).normal(size=(16, 30))
        accuracies.append(accuracy + gain * (number == 5))
    return arms, range_test.summarize(arms, accuracies, suggestions)


def test_arms_of_the_range_test_have_the_recommended_rates():
    arms, _ = range_test_results(0)
    assert (arms[0].kind, arms[0].schedule) == ("dense", "fixed, peak")
    for kind, tuned in (("dense", 0.2), ("LRD", 0.4)):
        rates = {arm.schedule: arm.rate for arm in arms if arm.kind == kind}
        cyclical = range_test.Arm(kind, "cyclical", rates.pop("cyclical"))
        assert rates == {
            "fixed, peak": 0.0123,
            "fixed, steepest": 0.005,
            "fixed, mean of cycle": pytest.approx((0.00123 + 0.0123) / 2),
            "fixed, tuned": tuned,
        }
        curve = range_test.rates_of(cyclical, 360)
        assert curve.shape == (360,)
        top = np.flatnonzero(np.isclose(curve, 0.0123)).tolist()
        bottom = np.flatnonzero(np.isclose(curve, 0.00123)).tolist()
        assert (bottom, top) == ([0, 120, 240], [60, 180, 300])  # three cycles
    np.testing.assert_array_equal(range_test.rates_of(arms[0], 5), np.float32(0.0123))


def made_range_test(still_falls=False):
    """The result of a test of two seeds: the loss falls fastest at a rate of 0.01."""
    rates = np.geomspace(1e-4, 1, 101)
    losses = 0.5 + 1.5 / (1 + (rates / 0.01) ** 2) + (not still_falls) * rates**4
    if still_falls:
        losses -= np.linspace(0, 0.3, 101)
    losses = np.stack([losses, losses])
    valid = np.full(losses.shape, True)
    rates = np.broadcast_to(rates, losses.shape)
    return lrd_optax.RangeTestResult(rates, losses, losses, valid)


def test_suggestions_are_named_for_their_methods():
    result = made_range_test()
    found = range_test.suggest(result)
    assert (found.base, found.peak) == lrd_optax.suggest_cycle(result)
    assert found.base < found.peak
    for method in ("steepest", "valley", "min_over_10"):
        rate = lrd_optax.suggest_learning_rate(result, method)
        assert getattr(found, method) == rate
    assert len(set(found)) == 5


def test_table_and_verdict_of_the_range_test():
    _, results = range_test_results(1.0)
    assert "0.0012 to 0.012" in in_80_columns(range_test.make_table(results))
    assert '"LRD, fixed, peak" is clearly better; ' in range_test.verdict(results)
    _, results = range_test_results(-1.0)
    worse = '"dense, cyclical" and "LRD, fixed, peak" and "LRD, cyclical" are clearly '
    assert f"{worse}worse; 6 of 9 arms" in range_test.verdict(results)
    equal = [r._replace(minus_dense_peak_half_width=9.0) for r in results]
    assert range_test.verdict(equal) == (
        'Beside "dense, fixed, peak", which is recommended to begin with, 9 of 9 arms '
        "cannot be told apart from it."
    )


def test_table_of_grow_fits():
    rows = [
        grow.Result(
            *("sgdm", arm.name, arm.kind, 0.003, [0, *grow.COUNTED, 950]),
            *([99.999] * 5, [2.345] * 5, [2.3456] * 5, [32.0] * 5),
            *((-12.345, 2.345), (-12.345, 2.345)),
        )
        for arm in (grow.Arm(grow.NARROW, "narrow"), *grow.ARMS)
    ]
    text = in_80_columns(grow.make_table(rows))
    assert "LRD throughout" in text


def test_tables_of_saddle_fit():
    escapes = saddle.Escapes(99.6, 99.1, 99.9, 1234, 1111, 1500)  # the widest cells
    arms = saddle.make_arms(0.5)
    results = {
        (problem, name, arm): escapes
        for problem in saddle.PROBLEMS
        for name in saddle.OPTIMIZERS
        for arm in arms
    }
    for problem in saddle.PROBLEMS:
        text = in_80_columns(saddle.make_table(problem, results, 2000, 0.5))
        assert text.count("1234 [1111, 1500] =") == 9
        assert text.count("1234 [1111, 1500]") == text.count("99.6% [99.1, 99.9]") == 12
        assert "half the rate" in text


# main() of the examples that train, without training.


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Returns a function: example, options -> what is printed in one line, the JSON."""

    def run(example, words):
        name = example.__name__
        monkeypatch.setattr(sys, "argv", [name, *words.split(), "--output", "out"])
        monkeypatch.setattr(options, "SAVED", [])
        monkeypatch.chdir(tmp_path)
        if "--quick" in words:  # drawing takes most of the time
            monkeypatch.setattr(example, "draw", lambda *args: args[-1].write_text("x"))
        example.main()
        written = [Path("out", f"{name}.{end}") for end in ("json", "png")]
        assert written == options.SAVED
        assert all(path.stat().st_size for path in written)
        text = " ".join(capsys.readouterr().out.split())
        assert (options.QUICK.strip() in text) == ("--quick" in words)
        return text, json.loads(written[0].read_text())

    return run


def noisy(*shape):
    return 95 + np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize(
    ("words", "rates", "config"),
    [
        (
            "--quick",
            {"dense": 0.03, "dense, half the rate": 0.015, "LRD": 0.03}
            | {"LRD, unbiased": 0.06},
            {"seeds": 4, "epochs": 6, "keep_prob": 0.5},
        ),
        (
            "--learning-rates adam=0.25 --keep-prob 0.2 --no-lower-rate --seeds 3",
            {"dense": 0.25, "LRD": 0.25, "LRD, unbiased": 1.25},
            {"seeds": 3, "epochs": 30, "keep_prob": 0.2},
        ),
    ],
)
def test_digits_trains_what_is_asked_for(run, monkeypatch, words, rates, config):
    def train(arms, **got):
        assert {arm.name: arm.rate for arm in arms} == rates
        assert got == config
        shape = config["epochs"], config["seeds"]
        return [digits.Curves(noisy(*shape), noisy(*shape), 1.0) for _ in arms]

    monkeypatch.setattr(digits, "train", train)
    text, report = run(digits, f"--optimizers adam {words}")
    assert [(r["arm"], r["rate"]) for r in report["results"]] == list(rates.items())
    accuracy = noisy(config["epochs"], config["seeds"])[-1].mean()
    for arm, rate in rates.items():
        assert f"adam {arm} {rate:.3g} {accuracy:.2f} ± " in text
    count = len(rates) - 1
    assert text.count("+0.00 ± 0.00") == len(report["differences"]) == count
    assert f"0 of {count} intervals" in text
    assert ("has the mean step of LRD." in text) == (len(rates) == 4)


@pytest.mark.parametrize(("words", "steps"), [("", 950), ("--quick", 240)])
def test_grow_trains_what_is_asked_for(run, monkeypatch, words, steps):
    def train_all(data, task, names, seeds, keep_prob):
        assert data.train_x.shape == (1200, 64)
        assert task.wide_steps == steps
        assert (names, seeds, keep_prob) == (["adam"], 3, 0.2)
        points = grow.make_points(steps)
        arms = (grow.Arm(grow.NARROW, "narrow"), *grow.ARMS)
        curves = grow.Curves(*(noisy(len(points), seeds) for _ in range(3)))
        return [("adam", arm, points, curves) for arm in arms]

    monkeypatch.setattr(grow, "train_all", train_all)
    words += " --optimizers adam --keep-prob 0.2 --seeds 3"
    text, report = run(grow, words)
    assert report["config"]["keep_prob"] == 0.2
    assert [r["arm"] for r in report["results"][1:]] == [arm.name for arm in grow.ARMS]
    for arm in grow.ARMS:
        assert f"{arm.name} {getattr(grow.DIGITS['adam'], arm.kind):g} 9" in text
    gain = "cannot be told apart from {} (+0.00 ± 0.00 points)"
    assert (
        f"With adam, LRD for 10 steps {gain.format('dense copies')}, noise of the best "
        f"size (0.0001) {gain.format('LRD')}, and training from scratch "
        f"{gain.format('LRD')}."
    ) in text


def test_verdict_of_grow_tells_better_from_worse():
    def result(arm, minus_dense, minus_short):
        empty = [[]] * 3
        return grow.Result(
            *("sgdm", arm, "", 0.1, [1], [95.0], *empty, minus_dense, minus_short)
        )

    results = [
        result("LRD, 10 steps", (2.0, 1.0), (0.0, 0.0)),
        result("noise 0.1", (0.0, 0.0), (-2.0, 1.0)),
        result("from scratch", (0.0, 0.0), (10.55, 48.95)),
    ]
    assert grow.verdict(results) == (
        "With sgdm, LRD for 10 steps does better than dense copies (+2.00 ± 1.00 "
        "points), noise of the best size (0.1) does worse than LRD (-2.00 ± 1.00 "
        "points), and training from scratch cannot be told apart from LRD (+10.55 ± "
        "48.95 points)."
    )


@pytest.mark.parametrize(("words", "runs"), [("--runs 12", 12), ("--quick", 50)])
def test_saddle_runs_what_is_asked_for(run, monkeypatch, words, runs):
    def measure(**config):
        assert config == {"runs": runs, "steps": 300, "keep_prob": 0.2}
        keys = [
            (problem, name, arm)
            for problem in dict.fromkeys((*saddle.PROBLEMS, *saddle.SWEEP))
            for name in saddle.OPTIMIZERS
            for arm in saddle.make_arms(0.2)
        ]
        escapes = saddle.Escapes(99.6, 99.1, 99.9, 123, 111, 150)
        paths = np.zeros((saddle.SHOWN, 300, 2), np.float32)
        return dict.fromkeys(keys, escapes), dict.fromkeys(keys, paths)

    monkeypatch.setattr(saddle, "measure", measure)
    text, report = run(saddle, f"{words} --steps 300 --keep-prob 0.2")
    assert f"{runs} runs per arm, of 300 steps" in text
    for problem in saddle.PROBLEMS:
        assert problem.name in text
    assert text.count("123 [111, 150] =") == 9 * len(saddle.PROBLEMS)
    assert "dense, 0.2 x rate" in {row["arm"] for row in report["results"]}


@pytest.mark.parametrize(("words", "epochs"), [("--epochs 2", 2), ("--quick", 6)])
def test_range_test_trains_what_is_asked_for(run, monkeypatch, words, epochs):
    kinds = []

    def test_range(task, orders, name, kind, keep_prob, steps):
        assert orders.shape == (3, 4, 12, 100)  # batches for 40 steps, and one more
        assert (name, keep_prob, steps) == ("adam", 0.2, 40)
        kinds.append(kind)
        return made_range_test()

    def make_training(task, orders, name, kind, keep_prob):
        assert (name, keep_prob) == ("adam", 0.2)
        assert orders.shape == (3, epochs, 12, 100)
        kinds.append(kind)
        return lambda rates: noisy(3, len(rates) // 12)

    for function in (test_range, make_training):
        monkeypatch.setattr(range_test, function.__name__, function)
    monkeypatch.setattr(range_test, "setup", lambda seeds: None)
    words += " --optimizer adam --keep-prob 0.2 --seeds 3 --steps 40"
    text, report = run(range_test, words)
    assert kinds == ["dense", "LRD"] * 2
    assert len(report["results"]) == 10
    assert "LRD fixed, tuned 0.15 9" in text  # 0.03 / 0.2
    assert f"after {epochs} epochs" in text
    assert "9 of 9 arms cannot be told apart" in text


def test_a_curve_without_an_answer_ends_the_range_test(run, monkeypatch):
    result = made_range_test(still_falls=True)
    monkeypatch.setattr(range_test, "setup", lambda seeds: None)
    monkeypatch.setattr(range_test, "test_range", lambda *args: result)
    message = (
        "range test, dense: the loss still falls at the last learning rate; try other "
        "--steps, --seeds or --keep-prob"
    )
    with pytest.raises(SystemExit, match=f"^{message}$"):
        run(range_test, "")
