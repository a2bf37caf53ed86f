"""The intervals of the study, and the page that is made from its records."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))
try:
    from benchmarks.study import claims, exploration, intervals, plan, report
finally:
    del sys.path[0]

SEEDS = 42
BLOCKS = {block.name: block for block in plan.BLOCKS}
ARMS = {arm.name: arm for block in plan.BLOCKS for arm in block.arms}
UNITS, FASHION_UNITS = "copied units, digits, Adam", "copied units, Fashion, Adam"


def pairs(shift=0.0, seeds=SEEDS, key=0):
    """Makes arms that share a large part of what a seed does to them."""
    rng = np.random.default_rng(key)
    shared = rng.normal(90, 5, seeds)
    first, second = shared + rng.normal(0, 0.3, (2, seeds))
    return first + shift, second


# Intervals.


def is_likely(misses, number, rate):
    return stats.binomtest(misses, number, rate).pvalue > 1e-3


def test_coverage():
    """Both intervals miss zero as often as they should, and narrower ones too often."""
    number = 1000
    samples = np.random.default_rng(1).normal(size=(number, SEEDS))
    found = [intervals.compare(sample, 0 * sample, True, 20) for sample in samples]
    mean, low, high, wide_low, wide_high = np.transpose(found)

    def misses(low, high):
        return int(((low > 0) | (high < 0)).sum())

    # A percentile interval uses the deviation of n, and normal quantiles: with 42 seeds
    # it misses in 6.0 % of the cases.
    scale = math.sqrt((SEEDS - 1) / SEEDS)
    plain = 2 * stats.t.sf(1.96 * scale, SEEDS - 1)
    assert plain < 0.06
    assert is_likely(misses(low, high), number, plain)
    half_as_wide = misses((low + mean) / 2, (high + mean) / 2)
    assert not is_likely(half_as_wide, number, plain)
    assert is_likely(misses(wide_low, wide_high), number, 0.05 / 20)
    three_quarters = 0.75 * np.stack([wide_low - mean, wide_high - mean]) + mean
    assert not is_likely(misses(*three_quarters), number, 0.05 / 20)


@pytest.mark.parametrize("seeds", [4, 14, 42])
def test_intervals_agree_with_formulas(seeds):
    first, second = pairs(0.1, seeds)
    found = intervals.compare(first, second)
    differences = first - second
    assert found.mean == pytest.approx(differences.mean())
    error = stats.sem(differences)  # divides by n - 1
    quantile = stats.t.isf(0.05 / plan.COMPARISONS / 2, seeds - 1)
    # 10,000 resamples give a deviation within about 0.7 %.
    assert found.wide_high - found.mean == pytest.approx(quantile * error, rel=0.03)
    assert found.mean - found.wide_low == pytest.approx(found.half)
    if seeds == SEEDS:
        normal = 1.96 * error * math.sqrt((seeds - 1) / seeds)
        assert found.high - found.mean == pytest.approx(normal, rel=0.1)
        assert found.mean - found.low == pytest.approx(normal, rel=0.1)


def test_resamples_are_a_bootstrap():
    counts = intervals.shares(14) * 14
    assert counts.shape == (10_000, 14)
    np.testing.assert_allclose(counts.sum(1), 14)
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    np.testing.assert_allclose(counts.var(), 13 / 14, rtol=0.02)


def test_pairing():
    """Arms that vary together are compared more sharply than if the seeds are mixed."""
    first, second = pairs(0.5)
    assert intervals.compare(first, second).half < 0.5
    mixed = np.random.default_rng(0).permutation(second)
    assert intervals.compare(first, mixed).half > 2


def test_words():
    base = pairs()[1]
    noise = np.resize([-1.0, 1.0], SEEDS)

    def word(shift, higher_is_better=True):
        found = intervals.compare(base + shift + noise, base, higher_is_better)
        return intervals.word(found)

    assert [word(0), word(0.1), word(0.5), word(2)] == [
        "tie",
        "tie",
        "hint of gain",
        "clear gain",
    ]
    assert [word(-0.5), word(-2)] == ["hint of loss", "clear loss"]
    assert [word(0.5, False), word(-2, False)] == ["hint of loss", "clear gain"]
    # Without any scatter, all differences are one number.
    assert intervals.word(intervals.compare(base, base)) == "tie"
    assert intervals.word(intervals.compare(base + 1, base)) == "clear gain"


def test_wrong_shapes():
    for shapes in [(3, 4), ((3, 2), (3, 2)), (1, 1)]:
        with pytest.raises(ValueError, match="no pairs of seeds"):
            intervals.compare(*map(np.zeros, shapes))


# Records and the page.


def cell(block, arm, gain=0.0, *, key=0, seeds="test", rate=0.03, **metrics):
    """Makes a record in which an arm is better than dense by `gain`, or by metric."""
    block, rng = BLOCKS[block], np.random.default_rng((key, *f"{arm} {seeds}".encode()))
    untuned = rate is None or ARMS[arm].dense_rate
    shared = np.random.default_rng((key, 99)).normal(0, 5, SEEDS)
    names = {*block.metrics, "mean training loss", "over-fitting"}
    gains = dict.fromkeys(names, gain) | {
        k.replace("_", " "): metrics[k] for k in metrics
    }
    signs = {name: 1 if name in ("accuracy", "octaves") else -1 for name in names}
    results = {
        name: (
            50 + shared + signs[name] * gains[name] + rng.normal(0, 0.3, SEEDS)
        ).tolist()
        for name in sorted(names)
    }
    return {
        "block": block.name,
        "arm": arm,
        "seeds": seeds,
        "rate": rate,
        "rates": [0.01, 0.03, 0.1],
        "validation": None if untuned else gain,
        "results": results,
        "seconds": 36.0,
        "commit": "0561340",
        "processor": "two cores",
        "jax": "0.10.2",
    }


def twice(*args, **kwargs):
    return [cell(*args, seeds=s, **kwargs) for s in ("test", "replication")]


def page_of(records, tmp_path):
    (tmp_path / "some.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records)
    )
    page, picture = tmp_path / "study.md", tmp_path / "study.png"
    report.write(tmp_path, page, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    return page.read_text()


def rows_of(page, name):
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if "|" in line]
    return [row for row in rows if row[0].startswith(name)]


def test_page(tmp_path):
    block = BLOCKS[UNITS]
    gains = {"LRD 0.5": 2.0, "LRD 0.9": 0.0, "dropout 0.5": -3.0, "LRD 0.1": 0.2}
    absent = "LRD 0.7"
    records = [
        record
        for arm in block.arms
        if arm.name != absent
        for record in twice(UNITS, arm.name, gains.get(arm.name, 0.0))
    ]
    records[0]["rate"] = 0.1  # dense
    records.append({"block": UNITS, "speed": {"runs": 42, "together": 1, "alone": 5}})
    theory = {"theory": "A law.", "cases": "p = 0.5", "expected": 1.0, "measured": 1.2}
    records.append(theory | {"error": 0.05})
    records.append(theory | {"measured": 1.0, "error": 0.0})
    explored = exploration.BLOCKS[0]
    for arm in ("dense", "LRD 0.1, first 3 steps"):
        other = {"block": explored.name, "arm": arm}
        records += [record | other for record in twice(UNITS, "dense")]
    page = page_of(records, tmp_path)

    planned = sum(len(block.arms) for block in plan.BLOCKS)
    assert f"{len(block.arms) - 1} of {planned:,} cells are done" in page
    text = page.replace("\n", " ")
    assert "the call was 5.0 times as fast as one by one" in text
    hours = f"{36 * 2 * (len(block.arms) - 1) / 3600:.1f} hours"
    assert f"{len(block.arms) - 1} cells were trained again" in text
    for part in (hours, "two cores", "0.10.2", "0561340"):
        assert part in text, part
    names = [arm.name for arm in block.arms]
    counts, tables = page.split("## Every arm")
    assert ["LRD 0.5", "0.3", "1, 0, 0"] in rows_of(counts, "LRD 0.5")
    assert ["dropout 0.5", "0.3", "0, 0, 1"] in rows_of(counts, "dropout 0.5")
    rows = reversed(rows_of(tables, ""))  # the first of a name stays
    found = {row[0]: row for row in rows}
    assert set(names) <= set(found)
    assert found["dense"][1] == "0.1 (end)"
    assert found["LRD 0.5"][1] == "0.03"
    assert float(found["LRD 0.5"][3].split()[0]) == pytest.approx(2, abs=0.3)
    assert found["LRD 0.5"][3].endswith(" **clear gain**")
    assert found["LRD 0.5"][4].endswith(" **clear gain**")  # with other seeds
    assert found["dropout 0.5"][3].endswith(" **clear loss**")
    assert "clear" not in found["LRD 0.9"][3]
    assert found[absent][1] == "not run yet"
    assert "copied units, digits, SGD+momentum: not run yet." in page
    (best,) = rows_of(page, "best LRD - best remedy (LRD 0.5")
    assert best[3].endswith("**clear gain**")
    summary = rows_of(page, UNITS)[0]
    assert summary[2].endswith("**clear gain** twice (LRD 0.5)")
    assert rows_of(page, "A law.")[0][2:] == ["1", "1.2", "0.05", "+4.0"]
    assert "Of 2 rows, 1 differ" in text
    beyond = page[page.index("## Exploration") :]
    assert exploration.TEXTS[explored.regime][:50] in beyond
    assert rows_of(beyond, "LRD 0.1, first 3 steps")[0][1] == "0.03"
    assert not rows_of(page[: page.index("## Exploration")], "LRD 0.1, first 3")
    long = [line for line in page.splitlines() if len(line) > 100]
    assert all(line.startswith(("|", "<details>", "![")) for line in long), long


def test_cut_line_is_ignored(tmp_path):
    lines = [json.dumps(cell(UNITS, arm)) for arm in ("dense", "LRD 0.5")]
    (tmp_path / "a.jsonl").write_text(lines[0] + "\n" + lines[1][:200])
    assert [record["arm"] for record in report.read(tmp_path)] == ["dense"]
    (tmp_path / "a.jsonl").write_text(lines[0][:200] + "\n" + lines[1] + "\n")
    with pytest.raises(json.JSONDecodeError):  # in the middle nothing is cut off
        report.read(tmp_path)


def test_nothing_has_run(tmp_path):
    page = page_of([], tmp_path)
    assert "**State: 0 of" in page
    verdicts = [row[3] for row in rows_of(page, "") if len(row) == 4]
    assert verdicts.count("**not run yet**") == len(claims.CLAIMS)


@pytest.mark.parametrize("metric", ["accuracy", "bits", "octaves", "NLL"])
def test_above_zero_is_better(metric):
    """In `cell` a gain is a higher accuracy, but a lower loss."""
    block = next(block for block in plan.BLOCKS if metric in block.metrics)
    records = [cell(block.name, "dense"), cell(block.name, "LRD 0.5", 2.0)]
    found = report.Study(records).compare(block, metric, "LRD 0.5", "dense")
    assert found.mean == pytest.approx(2, abs=0.3)


def test_best_is_chosen_on_validation_data():
    dropout = cell(UNITS, "dropout 0.1", 1.0)
    lrd = [cell(UNITS, "LRD 0.1", 3.0), cell(UNITS, "LRD 0.3", 1.0)]
    lrd[0]["validation"], lrd[1]["validation"] = 1.0, 2.0
    untuned = cell(UNITS, "LRD 0.5, dense's rate", 9.0)
    scratch = cell(UNITS, "from scratch", 9.0)
    study = report.Study([*lrd, dropout, cell(UNITS, "dense"), untuned, scratch])
    (row,) = report.summary_rows(study, (BLOCKS[UNITS],))
    assert (row["best LRD"], row["best remedy"]) == ("LRD 0.3", "dropout 0.1")
    assert row["best LRD", "dense"].mean == pytest.approx(1, abs=0.3)
    assert row["best LRD", "best remedy"].mean == pytest.approx(0, abs=0.3)


def test_an_ensemble_beats_one_network_without_a_claim():
    """Both tasks are clear twice, beside dense and beside the best remedy."""
    records = []
    for task in ("digits", "Fashion"):
        name = f"ensembles, full batch, {task}, Adam"
        for arm, gain in {"dense": 0.0, "dropout 0.1": 1.0, "LRD 0.1": 4.0}.items():
            records += twice(name, arm, gain)
    table, wins = report.questions_table(report.Study(records))
    assert "best LRD over dense" not in wins
    assert (
        "- best LRD over best remedy in ensembles, full batch (accuracy): "
        "Fashion (LRD 0.1); digits (LRD 0.1)"
    ) in wins
    assert "| best LRD - dense | 0 | 0 |" in table
    assert "| best LRD - best remedy | 6 | 0 |" in table


def test_missing_numbers():
    """Of runs that diverged only what is not the main metric may be missing."""
    records = [cell(UNITS, "dense"), cell(UNITS, "LRD 0.5", 2.0)]
    for record in records:
        record["results"]["over-fitting"][0] = None
    study, block = report.Study(records), BLOCKS[UNITS]
    assert study.compare(block, "over-fitting", "LRD 0.5", "dense").mean > 1
    records[0]["results"]["accuracy"][0] = None
    with pytest.raises(ValueError, match="accuracy is missing"):
        study.compare(block, "accuracy", "LRD 0.5", "dense")


# Verdicts.


SADDLE_CLAIM = next(claim for claim in claims.CLAIMS if "saddle" in claim.text)


def verdict(lrd, remedy, tasks=("digits", "Fashion"), again=True):
    """Judges data in which an arm with LRD and a remedy gain that much over dense."""
    make = twice if again else lambda *args, **kwargs: [cell(*args, **kwargs)]
    records = []
    for task in tasks:
        name = f"copied units, {task}, Adam"
        for arm, gain in {"dense": 0.0, "LRD 0.5": lrd, "dropout 0.1": remedy}.items():
            records += make(name, arm, gain, key=len(task))
    return claims.judge(report.Study(records), SADDLE_CLAIM)[0]


def test_verdicts():
    assert verdict(3, 1) == "seen"
    assert verdict(3, 3) == "only beside dense"
    assert verdict(3, 5) == "only beside dense"
    assert verdict(0, 0) == "not seen"
    assert verdict(-3, 0) == "not seen"
    assert verdict(3, 1, tasks=("digits",)) == "not seen"
    assert verdict(3, 1, again=False) == "not seen"
    assert verdict(0, 0, tasks=()) == "not run yet"


def test_more_losses_than_gains():
    """Two clear gains are not enough where LRD is clearly worse in three blocks."""
    gains = dict.fromkeys((UNITS, FASHION_UNITS), 3.0)
    regimes = "copied layers", "copied experts", "equal weights"
    others = [f"{regime}, digits, Adam" for regime in regimes]
    for losses, expected in (([], "seen"), (others, "not seen")):
        values = gains | dict.fromkeys(losses, -3.0)
        records = [
            record
            for name, gain in values.items()
            for arm in ("dense", "LRD 0.5")
            for record in twice(name, arm, gain * (arm == "LRD 0.5"))
        ]
        # Dense is the best remedy here, so that both sides are the same.
        found, (beside_dense, _) = claims.judge(report.Study(records), SADDLE_CLAIM)
        assert found == expected
        assert beside_dense["clear gain"] == 2
        assert beside_dense["clear loss"] == len(losses)


def test_claim_on_speed_has_its_own_metric_and_rival():
    """LRD at the rate of dense learns faster than both, and is less accurate."""
    claim = claims.CLAIMS[0]
    assert "faster" in claim.text
    assert "good start" in claim.regimes
    assert not set(claim.regimes) & {"copied units", "near a saddle", "stable rates"}
    for gain, expected in ((3.0, "seen"), (-3.0, "not seen")):
        records = []
        for task in ("digits", "Fashion"):
            name = f"good start, {task}, Adam"
            records += twice(name, "dense")
            records += twice(name, "dense, half the rate")
            arm = "LRD 0.5, dense's rate"
            records += twice(name, arm, 0, mean_training_loss=gain, accuracy=-gain)
        assert claims.judge(report.Study(records), claim)[0] == expected


def test_wins_are_named_if_clear_on_two_tasks(tmp_path):
    def page(tasks):
        records = []
        for task in tasks:
            for arm, gain in {"dense": 0, "dropout 0.1": 1, "LRD 0.5": 3}.items():
                records += twice(f"copied units, {task}, Adam", arm, gain)
        table, wins = report.questions_table(report.Study(records))
        assert rows_of(table, "best LRD - best remedy")[0][1] == str(len(tasks))
        return wins

    assert page(["digits"]) == ""
    where = "in copied units (accuracy): Fashion (LRD 0.5); digits (LRD 0.5)"
    assert page(["digits", "Fashion"]) == (
        f"- best LRD over dense {where}\n- best LRD over best remedy {where}"
    )


def test_arms_to_replicate():
    """Both arms of a clear comparison, until they have been trained again."""
    block = BLOCKS[UNITS]
    gains = {"dense": 0, "LRD 0.5": 3, "LRD 0.9": 0, "dropout 0.1": 1}
    records = [cell(UNITS, arm, gain) for arm, gain in gains.items()]
    names = [arm.name for arm in claims.to_replicate(block, records)]
    assert names == ["dense", "LRD 0.5", "dropout 0.1"]
    records.append(cell(UNITS, "dense", seeds="replication"))
    names = [arm.name for arm in claims.to_replicate(block, records)]
    assert names == ["LRD 0.5", "dropout 0.1"]
    assert claims.to_replicate(block, [cell(UNITS, arm) for arm in gains]) == []
