"""Writes docs/study.md and its picture; all figures and verdicts are computed."""

import itertools
import statistics
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from . import exploration, picture, plan
from .claims import CLAIMS, NAMES, PAIRS, SADDLES, judge
from .intervals import NOT_RUN, Comparison, Record, Study, read, values_of, word
from .plan import Block

DIGITS = {"accuracy": 2, "octaves": 2, "calibration error": 2}  # 3 for others
MACHINE = {"Processor": "processor", "JAX": "jax", "Commit": "commit"}


def paragraph(text: str) -> str:
    wrapper = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(" ".join(text.split())) + "\n"


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def difference(comparison: Comparison | None, metric: str) -> str:
    if comparison is None:
        return "-"
    digits = DIGITS.get(metric, 3)
    text = f"{comparison.mean:+.{digits}f} ± {comparison.half:.{digits}f}"
    found = word(comparison)
    if found == "tie":
        return text
    return f"{text} **{found}**" if found.startswith("clear") else f"{text} {found}"


def summary_rows(
    study: Study, blocks: tuple[Block, ...] = plan.BLOCKS
) -> list[dict[Any, Any]]:
    """Returns for each block and metric the comparisons that matter most."""
    rows = []
    for block in blocks:
        for metric in block.metrics:
            row: dict[Any, Any] = {"block": block, "metric": metric, "dense": None}
            if cell := study.find(block, "dense"):
                row["dense"] = float(values_of(cell, metric).mean())
            for name in plan.BEST:
                row[name] = study.arm(block, name)
            for first, second in PAIRS:
                row[first, second] = study.compare(block, metric, first, second)
            rows.append(row)
    return rows


def state(study: Study) -> str:
    names = {block.name for block in plan.BLOCKS}  # not those of the exploration
    cells = [cell for key, cell in study.cells.items() if key[0] in names]
    count = Counter(cell["seeds"] for cell in cells)
    planned = sum(len(block.arms) for block in plan.BLOCKS)
    hours = sum(cell["seconds"] for cell in cells) / 3600
    named = {
        name: "; ".join(sorted({r[key] for r in study.records if key in r}))
        for name, key in MACHINE.items()
    }
    parts = [
        f"**State: {count['test']:,} of {planned:,} cells are done.**",
        "(A cell is one way of training in one block.)",
        f"{count['replication']:,} cells were trained again with other seeds.",
        f"Together they took {hours:.1f} hours, two of them at a time.",
        *(f"{key}: {text or 'none yet'}." for key, text in named.items()),
    ]
    speeds = [record["speed"] for record in study.records if "speed" in record]
    if speeds:
        gains = [speed["alone"] / speed["together"] for speed in speeds]
        parts.append(
            "Many runs are trained in one call, so that an arm is compiled once. Per "
            f"run, the call was {statistics.median(gains):.1f} times as fast as one by "
            f"one (median of {len(gains)} blocks, the time to compile left out)."
        )
    return paragraph(" ".join(parts))


def counts_text(count: Counter[str]) -> str:
    blocks = sum(count.values())
    if not blocks:
        return NOT_RUN
    gains, losses = count["clear gain"], count["clear loss"]
    text = f"better in {gains} of {blocks} blocks, worse in {losses}"
    unsure = count["gain, not confirmed"]
    return text + (f" (gains not confirmed: {unsure})" if unsure else "")


def claims_table(study: Study) -> str:
    rows = []
    for claim in CLAIMS:
        verdict, counts = judge(study, claim)
        cells = [
            f"{claim.first} - {other}: {counts_text(count)}"
            for other, count in zip(("dense", claim.rival), counts, strict=True)
        ]
        rows.append([claim.text, *cells, f"**{verdict}**"])
    return table(["claim", "beside dense", "beside the rival", "verdict"], rows)


OUTCOMES = (
    *("clear gain", "gain, not confirmed", "hint of gain"),
    *("tie", "hint of loss", "clear loss"),
)


def questions_table(study: Study) -> tuple[str, str]:
    """Returns how often each outcome was seen, and the wins that may be claimed."""
    rows, wins = [], []
    for first, second in PAIRS:
        found = [
            (block, metric, study.outcome(block, metric, first, second))
            for block in plan.BLOCKS
            for metric in block.metrics
            if second != "dense" or not block.is_ensemble
        ]
        count = Counter(outcome for _, _, outcome in found)
        rows.append([f"{first} - {second}", *(count[name] for name in OUTCOMES)])
        gains: dict[tuple[str, str], dict[str, str]] = {}
        for block, metric, outcome in found:
            if outcome == "clear gain":
                tasks = gains.setdefault((block.regime, metric), {})
                arm = study.arm(block, first)
                tasks[block.task] = "" if arm == first else f" ({arm})"
        wins += [
            f"- {first} over {second} in {regime} ({metric}): "
            + "; ".join(task + arm for task, arm in sorted(tasks.items()))
            for (regime, metric), tasks in gains.items()
            if len(tasks) > 1
        ]
    wins = [textwrap.fill(win, 100, subsequent_indent="  ") for win in wins]
    return table(["difference", *OUTCOMES], rows), "\n".join(wins)


def arms_table(study: Study) -> str:
    """Returns for each arm its tuned rate, and how often it beats dense."""
    blocks = [b for b in plan.BLOCKS if b.metrics in (("accuracy",), ("bits",))]
    names = dict.fromkeys(arm.name for block in blocks for arm in block.arms)
    del names["dense"]
    groups = [
        [block for block in blocks if (block.regime in SADDLES) == symmetric]
        for symmetric in (True, False)
    ]
    rows = []
    for name in names:
        ratios = [
            cell["rate"] / dense["rate"]
            for block in blocks
            if (cell := study.find(block, name))
            and (dense := study.find(block, "dense"))
        ]
        row = [name, f"{statistics.median(ratios):.2g}" if ratios else NOT_RUN]
        for group in groups:
            found = [study.compare(b, b.metrics[0], name, "dense") for b in group]
            count = Counter(word(comparison) for comparison in found if comparison)
            gains, losses = count["clear gain"], count["clear loss"]
            between = count.total() - gains - losses
            row.append(f"{gains}, {between}, {losses}" if count else "")
        rows.append(row)
    head = ["arm", "rate / dense's rate", "symmetric starts", "other regimes"]
    return table(head, rows)


def summary_table(study: Study) -> str:
    rows = []
    for row in summary_rows(study):
        block, metric = row["block"], row["metric"]
        name = block.name + (f": {metric}" if len(block.metrics) > 1 else "")
        if not study.has(block):
            rows.append([name, NOT_RUN, "", "", "", ""])
            continue
        if block.metrics == ("octaves",):  # has no best arms to compare
            continue
        level = row["dense"]
        cells = [NOT_RUN if level is None else f"{level:.{DIGITS.get(metric, 3)}f}"]
        for pair in PAIRS:
            text = difference(row[pair], metric)
            if study.outcome(block, metric, *pair) == "clear gain":
                text += " twice"
            who = [row[name] for name in pair if name in plan.BEST]
            cells.append(f"{text} ({' - '.join(who)})" if who and row[pair] else text)
        rows.append([name, *cells])
    heads = [f"{first} - {second}" for first, second in PAIRS]
    return table(["block", "dense", *heads], rows)


def level_and_rate(cell: Record, metric: str) -> list[str]:
    rate = cell.get("rate")
    text = "-" if rate is None else f"{rate:.3g}"
    rates = cell.get("rates") or []
    if cell.get("validation") is not None and rate in (rates[:1] + rates[-1:]):
        text += " (end)"
    return [text, f"{values_of(cell, metric).mean():.{DIGITS.get(metric, 3)}f}"]


def block_table(study: Study, block: Block, metric: str) -> str:
    """Returns a table with all arms of a block, under one line on what it shows."""
    rows, found = [], []
    for arm in block.arms:
        cell = study.find(block, arm.name)
        if cell is None:
            rows.append([arm.name, NOT_RUN, "", "", ""])
            continue
        cells = ["", ""]
        if arm.name != "dense":
            cells, comparison = pair_cells(study, block, metric, arm.name, "dense")
            found += [(comparison, arm.name)] if comparison else []
        rows.append([arm.name, *level_and_rate(cell, metric), *cells])
    for first, second in plan.comparisons(block):
        if second != "dense":
            cells, _ = pair_cells(study, block, metric, first, second)
            who = [study.arm(block, name) or NOT_RUN for name in (first, second)]
            text = f" ({' - '.join(who)})" if first in plan.BEST else ""
            rows.append([f"{first} - {second}{text}", "", "", *cells])
    header = ["arm", "rate", NAMES[metric], "gain over dense", "other seeds"]
    title = f"<b>{block.name}: {metric}</b>. {line_on(found, metric)}"
    body = table(header, rows)
    return f"<details><summary>{title}</summary>\n\n{body}\n</details>\n"


def pair_cells(
    study: Study, block: Block, metric: str, first: str, second: str
) -> tuple[list[str], Comparison | None]:
    comparison = study.compare(block, metric, first, second)
    again = study.compare(block, metric, first, second, "replication")
    cells = [difference(comparison, metric), difference(again, metric) if again else ""]
    return cells, comparison


def line_on(found: list[tuple[Comparison, str]], metric: str) -> str:
    if not found:
        return "Nothing to compare yet."
    count = Counter(word(comparison) for comparison, _ in found)
    top, name = max(found)
    mean = f"{top.mean:+.{DIGITS.get(metric, 3)}f}"
    gains, losses = count["clear gain"], count["clear loss"]
    return (
        f"Of {len(found)} arms beside dense, {gains} show a clear gain and {losses} a "
        f"clear loss. The largest mean difference is {mean} ({name}, {word(top)})."
    )


def regime_texts() -> dict[str, str]:
    """Reads in plan.md what is trained in each regime."""
    lines = Path(plan.__file__).with_suffix(".md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    texts = {row[0]: row[1] for row in rows if len(row) == 2}
    for regime in plan.REGIMES:
        for name, text in list(texts.items()):
            words = name.replace(",", "").split()
            if set(regime.split()) <= set(words):  # "100 samples": "100, 300 samples"
                texts.setdefault(regime, text)
    return texts


def section(study: Study, regime: str, text: str, blocks: list[Block]) -> str:
    parts = [
        f"### {regime}\n",
        paragraph(text[:1].upper() + text[1:].rstrip(".") + "."),
    ]
    for block in blocks:
        if not study.has(block):
            parts.append(f"{block.name}: {NOT_RUN}.\n")
            continue
        parts += [block_table(study, block, metric) for metric in block.metrics]
    return "\n".join(parts)


def regime_sections(study: Study) -> str:
    texts = regime_texts()
    return "\n".join(
        section(study, regime, texts.get(regime, ""), list(blocks))
        for regime, blocks in itertools.groupby(plan.BLOCKS, lambda block: block.regime)
    )


def explored_sections(study: Study) -> str:
    return "\n".join(
        section(study, name, text, [b for b in exploration.BLOCKS if b.regime == name])
        for name, text in exploration.TEXTS.items()
    )


def theory_table(study: Study) -> str:
    rows = []
    for record in study.records:
        if "theory" in record:
            expected, measured = record["expected"], record["measured"]
            off, error = measured - expected, record["error"]
            away = f"{off / error:+.1f}" if error else ("0" if off == 0 else "no error")
            numbers = f"{expected:.5g}", f"{measured:.5g}", f"{error:.1g}", away
            rows.append([record["theory"], record["cases"], *numbers])
    head = [
        "statement",
        "case",
        "expected",
        "measured",
        "standard error",
        "errors away",
    ]
    return table(head, rows) if rows else f"{NOT_RUN.capitalize()}.\n"


def theory_line(study: Study) -> str:
    found = [record for record in study.records if "theory" in record]
    off = [abs(r["measured"] - r["expected"]) > 3 * r["error"] for r in found]
    return paragraph(
        "Each row is a simulation with the library. The last column says by how many "
        "standard errors the measured value differs from the expected one. Of "
        f"{len(found)} rows, {sum(off)} differ by more than three."
    )


def fill_page(study: Study, image: Path) -> str:
    template = Path(__file__).with_name("page.md").read_text()
    questions, wins = questions_table(study)
    return template.format(
        comparisons=plan.COMPARISONS,
        state=state(study),
        claims=claims_table(study),
        questions=questions,
        wins=wins or "- none",
        picture=image.name,
        arms=arms_table(study),
        summary=summary_table(study),
        sections=regime_sections(study),
        theory_line=theory_line(study),
        theory=theory_table(study),
        exploration=explored_sections(study),
    )


def write(folder: Path, page: Path, image: Path) -> None:
    """Reads the records in `folder`, and writes the page and its picture."""
    study = Study(read(folder))
    page.write_text(fill_page(study, image))
    picture.draw(study, image)
