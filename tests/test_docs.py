"""The code of the docs runs, their links lead somewhere, their figures are measured."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import lrd_optax

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The build of the site runs the notebooks.
PAGES = [
    *sorted([*ROOT.glob("*.md"), *ROOT.glob("examples/*.md")]),
    *sorted(set((ROOT / "docs").rglob("*.md")) - set((ROOT / "docs").glob("_*/**/*"))),
]


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_code(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a block may save a picture
    names = {}  # the blocks of a file build on one another
    for block in re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL):
        exec(compile(block, file.name, "exec"), names)


def test_code_is_found():
    assert sum("```python" in file.read_text() for file in FILES) >= 2


def without_code(file):
    return re.sub(r"^```.*?^```", "", file.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(file):
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(file), re.MULTILINE)
    shown = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in shown}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links(file):
    """Each leads to a file, and to a heading if it names one."""
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_code(file)):
        name, _, anchor = link.partition("#")
        target = file.parent / name if name else file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_links_are_found():
    links = [re.findall(r"\]\((?!http)\S*#\S*\)", file.read_text()) for file in PAGES]
    assert sum(map(len, links)) > 20


def prose(name):
    """The text of a page on one line, wherever it is wrapped."""
    return " ".join((ROOT / name).read_text().split())


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def table(name, *headers):
    """The rows of the one table of a page that has these headers, each a dict."""
    found, columns = [], None
    for line in (ROOT / name).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            columns = None
        elif columns:
            found[-1].append(dict(zip(columns, cells, strict=True)))
        elif set(headers) <= set(cells):
            columns = cells
            found.append([])
    [[_, *rows]] = found  # the first is the line below the headers
    assert rows
    return rows


def of_optimizers(rows):
    """Digits by optimizer, which the file of results names as its option does."""
    names = {"sgd+momentum": "sgdm"}
    named = {row.pop("optimizer").lower(): row for row in rows}
    return {names.get(name, name): row for name, row in named.items()}


def test_tables_of_the_digits():
    digits = result("cpu-digits.json")
    accuracies: dict[str, dict[str, str]] = {}
    for r in digits["results"]:
        cell = f"{r['accuracy_percent'][-1]:.2f} ± {r['accuracy_half_width'][-1]:.2f}"
        accuracies.setdefault(r["optimizer"], {})[r["arm"]] = cell
    page = "docs/choosing.md"
    assert of_optimizers(table(page, "optimizer", "LRD, unbiased")) == accuracies
    differences: dict[str, dict[str, str]] = {}
    for d in digits["differences"]:
        cell = f"{d['points']:+.2f} ± {d['half_width']:.2f}"
        differences.setdefault(d["optimizer"], {})[f"{d['arm']} - {d['minus']}"] = cell
    assert of_optimizers(table(page, "optimizer", "LRD - dense")) == differences


def costs(file):
    rows = [row for row in result(file)["rows"] if row["variant"] == "ours 0.5"]
    return {(row["tree"], row["dtype"], row["optimizer"]): row for row in rows}


EPYC = costs("cpu-step_cost.json")
XEON = costs("cpu_xeon-step_cost.json")


def test_table_of_costs():
    rows = table("docs/cost.md", "model", "compile Adam")
    for row in rows:
        model, dtype = row.pop("model").replace(" of 10 M", "").split(", ")
        for column, cell in row.items():
            key = model, dtype, column.removeprefix("compile ")
            kind = "compile_ratio" if column.startswith("compile") else "ratio"
            digits = 1 if column.startswith("compile") else 2
            pair = [f"{costs[key][kind]:.{digits}f}" for costs in (EPYC, XEON)]
            assert cell == ", ".join(pair), key
    assert 4 * len(rows) == len(EPYC) == len(XEON)


def test_costs_in_the_readme():
    for row in table("README.md", "AMD EPYC", "Intel Xeon"):
        [title, *_] = row.values()
        model, optimizer = title.replace(" with ", "+").split(", ")
        key = model, "float32", optimizer
        assert row["AMD EPYC"] == f"{EPYC[key]['ratio']:.2f}"
        assert row["Intel Xeon"] == f"{XEON[key]['ratio']:.2f}"
    files = EPYC, XEON, costs("cpu_xeon-step_cost_jax_0.12.json")
    slowest = max(c[key]["ratio"] for c in files for key in c if key[2] == "SGD")
    text = prose("README.md") + prose("docs/when_to_use.md")
    found = re.findall(r"plain SGD [^.]*?up to ([\d.]+\d)", text)
    assert found == [f"{slowest:.1f}"] * 2


def test_table_of_full_size():
    rows = result("cpu_xeon-full_size.json")["rows"]
    page, cells, memory, dense = "docs/full_size.md", [], [], rows[0]
    for r in rows:
        model = {"model and optimizer": r["model"]}
        if r["variant"] == "dense":
            dense = r
            megabytes = {
                "parameters, MB": f"{r['parameter_bytes'] / 1e6:.1f}",
                "state, MB": f"{r['state_bytes'] / 1e6:.1f}",
                "temporary, MB": f"{r['temporary_bytes'] / 1e6:,.0f}",
            }
            memory.append(model | {"parameters": f"{r['parameters']:,}"} | megabytes)
        more = {
            f"{name}, more bytes": str(r[f"{name}_bytes"] - dense[f"{name}_bytes"])
            for name in ("state", "temporary")
        }
        quartiles = f"({r['low']:.3f} to {r['high']:.3f})"
        clock = {
            "ms per step": f"{r['milliseconds']:,.0f}",
            "ratio (quartiles)": f"{r['ratio']:.3f} {quartiles}",
        }
        compiling = {"compile, s": f"{r['compile_seconds']:.1f}"}
        cells.append(model | {"method": r["variant"]} | clock | more | compiling)
    assert table(page, "method", "ms per step") == cells
    assert table(page, "parameters, MB") == memory


def test_table_of_a_billion_parameters():
    cells = []
    for target in ("v5e", "v5p"):
        rows = result(f"{target}-transformer_1B.json")["rows"]
        dense = rows[0]
        for r in rows:
            cell = {"TPU": target, "method": r["method"], "kernels": str(r["kernels"])}
            cell["cycles"] = f"{r['cycles'] / dense['cycles']:.3f}"
            cell["collectives"] = str(r["collectives"])
            cell["bytes above dense"] = f"{r['temporaries'] - dense['temporaries']:,}"
            cells.append(cell | {"peak": f"{r['peak'] / 1e9:.2f} GB"})
    assert table("docs/full_size.md", "TPU", "cycles") == cells


def test_table_of_rates_on_cifar10():
    accuracy: dict[tuple[str, float], list[float]] = {}
    for r in result("cpu_xeon-cifar10_rates.json")["rows"]:
        accuracy.setdefault((r["arm"], r["rate"]), []).append(r["test_accuracy"])

    def interval(values, sign=""):
        half = stats.t.interval(0.95, len(values) - 1, 0, stats.sem(values))[1]
        return f"{np.mean(values):{sign}.2f} ± {half:.2f}"

    rows = table("docs/full_size.md", "learning rate", "LRD - dense")
    assert len(rows) == len(accuracy) / 2
    for row in rows:
        rate = float(row["learning rate"])
        dense, dropped = (np.array(accuracy[arm, rate]) for arm in ("dense", "LRD"))
        assert row["dense"] == interval(dense)
        assert row["LRD"] == interval(dropped)
        assert row["LRD - dense"] == interval(dropped - dense, "+")
        half = accuracy.get(("dense", rate / 2))
        text = "" if half is None else interval(dropped - np.array(half), "+")
        assert row["LRD - dense at half the rate"] == text


def test_table_of_runs_on_text():
    rows = table("docs/full_size.md", "bits per byte, training text")
    folder = ROOT / "benchmarks" / "results" / "cpu_xeon-transformer_1M"
    for row, name in zip(rows, ("lrd", "dense", "half"), strict=True):
        last = json.loads((folder / f"{name}.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 1000
        for part, key in (("held-out", "validation"), ("training", "train")):
            assert row[f"bits per byte, {part} text"] == f"{last[f'{key}_bits']:.3f}"


def test_table_of_the_range_test():
    rows = table("docs/range_test.md", "learning rate", "accuracy")
    measured = result("cpu-range_test.json")["results"]
    for number, (row, r) in enumerate(zip(rows, measured, strict=True)):
        gain = f"{r['minus_dense_peak']:+.2f} ± {r['minus_dense_peak_half_width']:.2f}"
        assert list(row.values()) == [
            f"{r['kind']}, {r['schedule']}",
            r["rate"],
            f"{r['accuracy_percent'][-1]:.2f} ± {r['accuracy_half_width'][-1]:.2f}",
            gain if number else "",
        ]


def test_rates_that_move_with_dropout():
    """Each "from 0.03 to 0.06" is a suggestion for dense and that for LRD."""
    text = prose("docs/range_test.md").partition("## On the digits")[2]
    text = text.partition("| learning rate |")[0]
    found = re.findall(r"(?:from|and) ([\d.]+) to ([\d.]+\d)", text)
    suggestions = result("cpu-range_test.json")["suggestions"]
    pairs = list(zip(*(kind.values() for kind in suggestions.values()), strict=True))
    assert len(found) >= len(pairs)
    for pair in found:
        rates = pytest.approx([float(rate) for rate in pair], rel=0.02)
        assert any(list(measured) == rates for measured in pairs), pair


def test_table_of_finders():
    cells = {}
    for r in result("cpu-lr_finders.json")["results"]:
        rates = f"{r['median']:.2g}, {r['scatter_decades']:.2f}"
        losses = f"{r['test_loss_median']:.2f}, {r['test_loss_worst']:.2f}"
        cells[r["rule"].replace(",", ":"), r["optimizer"]] = f"{rates}; {losses}"
    first = "median rate, scatter; test loss, worst"
    rows = table("docs/range_test.md", first)
    assert cells == {
        (row[first], name): row[name] for row in rows for name in row if name != first
    }


def study_blocks():
    rows = table("docs/study.md", "block", "best LRD - dense")
    return {row["block"]: row for row in rows}


def test_table_of_the_guide():
    """Each row has the figures of the row of the study that it names."""
    blocks = study_blocks()
    for row in table("docs/when_to_use.md", "row of the study"):
        of_study = blocks[row.pop("row of the study")]
        for column, cell in row.items():
            value, _, word = cell.partition(", ")
            assert of_study[column].startswith(f"{value} "), row
            assert (word == "clear") == ("**clear" in of_study[column]), row


def does_it_help():
    begin, end = "## Does it help?", "[When to use it]"
    text = prose("README.md")
    return text[text.index(begin) : text.index(end)]


def test_figures_of_the_guide_stand_in_the_study():
    """Each difference that is quoted from the study is one that its command wrote."""
    study = prose("docs/study.md")
    figures = re.findall(r"[+-][\d.]+ ± [\d.]+\d", prose("docs/when_to_use.md"))
    assert len(figures) > 20
    assert not [figure for figure in figures if figure not in study]


def test_figures_of_the_readme_are_those_of_the_row_it_names():
    quoted = [part for part in does_it_help().split(". ") if "±" in part]
    assert quoted
    for sentence in quoted:
        [figure] = re.findall(r"[+-][\d.]+ ± [\d.]+\d", sentence)
        named = [
            row
            for block, row in study_blocks().items()
            if all(word in sentence for word in block.split(", "))
        ]
        assert any(row["best LRD - dense"].startswith(f"{figure} ") for row in named)


def test_counts_of_the_readme():
    """Its whole numbers count blocks of the study."""
    blocks = study_blocks()
    symmetric = [b for b in blocks if re.match("copied|equal weights|near a saddle", b)]
    others = [b for b in blocks if not re.match("ensembles|transformer", b)]
    ordinary = [b for b in others if b not in symmetric]

    def better(names, column):
        return sum("**clear gain** twice" in blocks[name][column] for name in names)

    stable = re.findall(r"<b>(stable rates, [^<:]*)", prose("docs/study.md"))
    trainings = {block.partition(":")[0] for block in [*blocks, *stable]}
    wins = better(symmetric, "best LRD - dense")
    text = re.sub(r"[+-][\d.]+ ± [\d.]+\d", "", does_it_help())
    assert f" {wins} of {len(symmetric)} " in text
    rivals = "best LRD - best remedy"
    ahead = [b for b in symmetric if "**clear loss**" in blocks[b][rivals]]
    lost = [
        blocks[b][rivals] for b in ordinary if "**clear loss**" in blocks[b][rivals]
    ]
    assert all("- dropout" in cell for cell in lost)
    expected = [len(trainings), wins, len(symmetric)]
    expected += [len(symmetric) - len(ahead), len(ahead), len(ordinary)]
    expected += [better(ordinary, "best LRD - dense"), len(lost)]
    assert [*map(int, re.findall(r"\d+", text))] == expected  # in the order of the text
    # It says "none" of this.
    assert not any("clear loss" in blocks[b]["best LRD - dense"] for b in symmetric)


def test_tables_of_schedules():
    """Each row has calls, which run; each table a picture; each schedule a row."""
    text = (ROOT / "docs" / "schedules.md").read_text()
    public = {name for name in dir(lrd_optax.schedules) if not name.startswith("_")}
    names = {name: getattr(lrd_optax.schedules, name) for name in public}
    names |= {"optax": optax, "lrd_optax": lrd_optax, "schedules": lrd_optax.schedules}
    called: set[str] = set()
    for part in re.split(r"^#+ ", text, flags=re.MULTILINE):
        _, header, table = part.partition("| schedule | use | formula | call |\n")
        if not header:
            continue
        rows = re.findall(r"^\| .+ \| .+ \| (.+) \|$", table, re.MULTILINE)
        assert len(rows) > 1
        assert re.search(r"^!\[.+\]\(images/schedules/\w+\.png\)$", table, re.MULTILINE)
        for cell in rows:
            calls = re.findall(r"`(.*?)`", cell)
            assert calls, cell
            for call in calls:
                made = eval(call, dict(names))
                if callable(made):
                    assert jnp.all(jnp.isfinite(jnp.asarray(made(jnp.arange(101)))))
                else:
                    assert isinstance(made, optax.GradientTransformation)
                    jax.eval_shape(made.init, jnp.ones(3))
                called |= set(re.findall(r"\w+", call))
    assert public
    assert not public - called


def test_pictures_of_schedules_are_shown():
    shown = "".join(file.read_text() for file in FILES)
    pictures = (ROOT / "docs" / "images" / "schedules").glob("*.png")
    assert not [path for path in pictures if f"schedules/{path.name})" not in shown]
