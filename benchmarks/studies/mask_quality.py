"""Tests masks with dieharder, a battery of tests for random number generators.

    python benchmarks/studies/mask_quality.py           # everything: about an hour
    python benchmarks/studies/mask_quality.py --quick   # five small tests: two minutes
    python benchmarks/studies/mask_quality.py --streams rows --tests bitstream runs

It needs the program dieharder (Debian and Ubuntu: apt install dieharder). A whole run
writes benchmarks/results/<device>-mask_quality.json; a partial run only prints.

A stream says which elements are neighbors in the bits that dieharder reads. Each is
drawn with keep_prob 0.5 and 0.1, through the public functions of the library only:

  seeds     the same element for seeds s, s + 1, s + 2, ...
  steps     the same element in successive optimizer steps
  leaves    the same element of successive leaves, 1,000 of them
  rows      down the columns of a matrix with 64, 576, 1,000 and 4,096 columns in turn
  elements  successive elements of one leaf

The controls show what the tests can find:

  pcg64       the generator of NumPy: what fails here is the fault of a test
  two rounds  the draw of the library without the last of its three rounds: it has
              correlations (see draw_designs.py) that dieharder may not see
  one round   the draw with its first round only: must fail somewhere
  weyl        a Weyl sequence without any hashing: must fail nearly everywhere
"""

import argparse
import functools
import itertools
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats  # JAX depends on it

import lrd_optax

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/
import timing
from draw_designs import multiply_xorshift

Masks = Iterator[np.ndarray]

# Draws at a time. Larger blocks are slower: they do not stay in the cache.
BLOCK = 2**24
WIDTHS = (64, 576, 1000, 4096)
LEAVES = 1000
ELEMENTS = 8192  # in the streams "seeds" and "steps"
LEAST_DRAWS = 2**26  # for a count of how many are kept
# No two columns share a seed, nor do two runs of a test: no bit is tested twice. The
# stream "seeds" uses the most seeds, 2**24.5 at keep_prob 0.1.
SEEDS_PER_COLUMN, SEEDS_PER_RUN = 2**28, 2**25
WEAK, FAILED = 0.01, 2e-6  # two-sided, as dieharder means them
AGAIN = 1e-4  # below this a test is run again, on other seeds


def shape(*dimensions: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dimensions, jnp.float32)


def mask_of(seed: jax.Array, tree: Any, keep_prob: float) -> Any:
    """Returns the mask of the first update."""
    dropout = lrd_optax.learning_rate_dropout(keep_prob, key=seed)
    return lrd_optax.sample_mask(dropout, dropout.init(None), tree)


def seeds(keep_prob: float, seed: int) -> Masks:
    def one_seed(seed):
        return mask_of(seed, shape(ELEMENTS), keep_prob)

    draw = jax.jit(jax.vmap(one_seed, out_axes=1))
    count = BLOCK // ELEMENTS
    for first in itertools.count(seed, count):
        yield draw(first + np.arange(count, dtype=np.uint32))


def steps(keep_prob: float, seed: int) -> Masks:
    dropout = lrd_optax.learning_rate_dropout(keep_prob, key=seed)
    ones = jnp.ones(ELEMENTS)

    def step(state, _):
        updates, state = dropout.update(ones, state)
        return state, updates != 0

    @jax.jit
    def many(state):
        return jax.lax.scan(step, state, length=BLOCK // ELEMENTS)

    state = dropout.init(ones)
    while True:
        state, kept = many(state)
        yield kept.T  # not in `many`: XLA would scatter the writes of each mask


def leaves(keep_prob: float, seed: int) -> Masks:
    tree = [shape(BLOCK // LEAVES)] * LEAVES

    @jax.jit
    def draw(seed):
        return jnp.stack(mask_of(seed, tree, keep_prob))

    for number in itertools.count(seed):
        yield draw(np.uint32(number)).T


def rows(keep_prob: float, seed: int) -> Masks:
    def make_draw(width):
        tree = shape(BLOCK // width, width)
        return jax.jit(lambda seed: mask_of(seed, tree, keep_prob).T)

    draws = [make_draw(width) for width in WIDTHS]
    for number, draw in zip(itertools.count(seed), itertools.cycle(draws)):
        yield draw(np.uint32(number))


def elements(keep_prob: float, seed: int) -> Masks:
    draw = jax.jit(lambda seed: mask_of(seed, shape(BLOCK), keep_prob))
    for number in itertools.count(seed):
        yield draw(np.uint32(number))


def pcg64(keep_prob: float, seed: int) -> Masks:
    generator = np.random.PCG64(seed)
    while True:
        words = generator.random_raw(BLOCK // 2).view(np.uint32)
        yield words < np.uint32(keep_prob * 2**32)


def few_rounds(rounds: int, keep_prob: float, seed: int) -> Masks:
    rng = np.random.default_rng(seed)
    index = jnp.arange(BLOCK, dtype=jnp.uint32)
    limit = np.uint32(keep_prob * 2**32)
    draw = jax.jit(lambda words: multiply_xorshift(rounds)(index, *words) < limit)
    while True:
        yield draw(rng.integers(2**32, size=2, dtype=np.uint32))


def weyl(keep_prob: float, seed: int) -> Masks:
    index = np.arange(BLOCK, dtype=np.uint32)
    rng = np.random.default_rng(seed)
    while True:
        start = rng.integers(2**32, dtype=np.uint32)
        words = index * np.uint32(0x9E3779B1) + start
        yield words < np.uint32(keep_prob * 2**32)


OURS: dict[str, Callable[[float, int], Masks]] = {
    "seeds": seeds,
    "steps": steps,
    "leaves": leaves,
    "rows": rows,
    "elements": elements,
}
CONTROLS: dict[str, Callable[[float, int], Masks]] = {
    "pcg64": pcg64,
    "two rounds": functools.partial(few_rounds, 2),
    "one round": functools.partial(few_rounds, 1),
    "weyl": weyl,
}
STREAMS = OURS | CONTROLS
COLUMNS = [(stream, keep_prob) for stream in OURS for keep_prob in (0.5, 0.1)] + [
    ("pcg64", 0.5),
    ("pcg64", 0.1),
    ("two rounds", 0.5),
    ("one round", 0.5),
    ("one round", 0.1),
    ("weyl", 0.5),
]

# The tests that dieharder calls good, with its options. The default of -p is 100 (1,000
# for 201). It is smaller if a test would read more than 120 MB, since reading takes
# most of the time at keep_prob 0.1. For the same reason 17, 205, 207, and 203 at more
# lags are left out.
TESTS = {
    "birthdays": "-d 0",
    "operm5": "-d 1 -p 25",
    "rank_32x32": "-d 2 -p 25",
    "rank_6x8": "-d 3 -p 50",
    "bitstream": "-d 4",
    "count_1s_stream": "-d 8",
    "count_1s_byte": "-d 9 -p 20",
    "parking_lot": "-d 10",
    "2dsphere": "-d 11",
    "3dsphere": "-d 12",
    "squeeze": "-d 13 -p 10",
    "runs": "-d 15",
    "craps": "-d 16 -p 20",
    "sts_monobit": "-d 100",
    "sts_runs": "-d 101",
    "sts_serial": "-d 102",
    "bitdist_2": "-d 200 -n 2 -p 50",
    "bitdist_6": "-d 200 -n 6 -p 20",
    "bitdist_12": "-d 200 -n 12 -p 10",
    "distance_2": "-d 201 -n 2 -p 250",
    "distance_5": "-d 201 -n 5 -p 250",
    "permutations": "-d 202 -n 5 -p 50",
    "lagged_sum_0": "-d 203 -n 0 -p 25",
    "lagged_sum_3": "-d 203 -n 3 -p 10",
    "kstest": "-d 204",
    "dct": "-d 206",
    "filltree2": "-d 208",
    "monobit2": "-d 209",
}
QUICK = ("birthdays", "count_1s_stream", "parking_lot", "2dsphere", "runs")
# What dieharder has to print for each p-value.
FIELDS = ("test_name", "ntuple", "tsamples", "psamples", "pvalues", "assessment")


def fair_bits(mask: np.ndarray, keep_prob: float) -> np.ndarray:
    """Returns bits that are fair and independent if those of the mask are iid."""
    mask = mask.reshape(-1)
    if keep_prob == 0.5:
        return mask
    # Von Neumann's extraction, on pairs of neighbors: 01 is a 0, 10 is a 1, 00 and 11
    # are thrown away. If the entries are iid, 01 and 10 have the same probability
    # p (1 - p), whatever p is, and pairs are independent. So the bits are exactly fair
    # and independent. They cannot show a wrong p (the number kept is tested
    # separately), nor a fault that is only in the pairs thrown away.
    pairs = mask[: mask.size // 2 * 2].view(np.uint16)
    unequal = np.compress((pairs != 0x0000) & (pairs != 0x0101), pairs)
    return unequal.view(bool)[::2]  # the first of each pair


class Source:
    """The masks of one stream as bytes, and how many elements they keep."""

    def __init__(self, stream: str, keep_prob: float, seed: int) -> None:
        self.stream, self.keep_prob, self.seed = stream, keep_prob, seed
        self.masks = STREAMS[stream](keep_prob, seed)
        self.drawn = self.kept = 0

    def block(self) -> bytes:
        """Returns bytes that were never returned before."""
        mask = np.asarray(next(self.masks))
        self.drawn += mask.size
        self.kept += int(np.count_nonzero(mask))
        bits = fair_bits(mask, self.keep_prob)
        return np.packbits(bits[: bits.size // 8 * 8]).tobytes()

    def z(self) -> float:
        """Returns the number kept, in standard deviations from its mean."""
        variance = self.drawn * self.keep_prob * (1 - self.keep_prob)
        return (self.kept - self.drawn * self.keep_prob) / math.sqrt(variance)

    def p_value(self) -> float:
        """Returns the two-sided p-value of the number kept."""
        return math.erfc(abs(self.z()) / math.sqrt(2))


class Result(NamedTuple):
    """One p-value: what dieharder says about it, and what it cost."""

    stream: str
    keep_prob: float
    test: str
    part: int  # number of the p-value in its test, from 1
    test_name: str  # these six are dieharder's
    ntuple: int
    tsamples: int
    psamples: int
    p_value: float
    assessment: str
    megabytes: float  # read by the whole test
    seconds: float
    again: float | None = None  # the p-value from other seeds, if this one is small

    def label(self) -> str:
        return f"{self.test} ({self.part})" if self.part > 1 else self.test

    def calibrated(self) -> float:
        """Returns the p-value that would be uniform for a perfect generator.

        Dieharder compares the sorted p-values of its samples with i / (n + 1), not with
        the steps of their distribution. So few samples look too good: with 10 samples,
        16 % of perfect generators reach 0.99. So the law of the distance is simulated.
        """
        printed = min(max(self.p_value, 5e-9), 1 - 5e-9)  # to eight decimals
        if self.psamples == 1:
            return printed
        distance = scipy.stats.kstwo.isf(printed, self.psamples)
        law = distances(self.psamples)
        beyond = law.size - np.searchsorted(law, distance)
        # Too far out to simulate: the one of dieharder is too large, if anything.
        return printed if beyond < 100 else float(beyond / law.size)

    def two_sided(self) -> float:
        """Returns the two-sided p-value: near 1 is as suspicious as near 0."""
        return 2 * min(self.calibrated(), 1 - self.calibrated())

    def mark(self) -> str:
        return (
            "F" if self.two_sided() < FAILED else "w" if self.two_sided() < WEAK else ""
        )


@functools.cache
def distances(samples: int) -> np.ndarray:
    """Returns sorted draws of the distance of dieharder for uniform p-values."""
    rng, expected = np.random.default_rng(0), np.arange(1, samples + 1) / (samples + 1)
    blocks = [
        np.abs(np.sort(rng.random((1000, samples)), axis=1) - expected).max(axis=1)
        for _ in range(200)
    ]
    return np.sort(np.concatenate(blocks))


def dieharder(test: str, source: Source) -> list[Result]:
    """Runs one test on bytes from `source`, as many as it reads."""
    flags = [word for field in FIELDS for word in ("-D", field)]
    command = ["dieharder", "-g", "200", *TESTS[test].split(), "-c", ",", *flags]
    start, sent = time.perf_counter(), 0
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    ) as process:
        try:
            while True:
                block = source.block()
                for i in range(0, len(block), 2**16):
                    sent += process.stdin.write(block[i : i + 2**16])
        except BrokenPipeError:  # it has read what it needs, and has stopped
            output = process.communicate()[0].decode()
    cost = sent / 1e6, time.perf_counter() - start
    lines = [[word.strip() for word in line.split(",")] for line in output.splitlines()]
    lines = [words for words in lines if len(words) == len(FIELDS)]
    if process.returncode or not lines:
        raise RuntimeError(f"dieharder did not run {test}: {output}")
    return [
        Result(
            *(source.stream, source.keep_prob, test, part, name),
            *(int(ntuple), int(tsamples), int(psamples), float(p_value)),
            *(assessment, *cost),
        )
        for part, (name, ntuple, tsamples, psamples, p_value, assessment) in enumerate(
            lines, 1
        )
    ]


def run_column(
    stream: str, keep_prob: float, repeat: int, tests: list[str]
) -> tuple[Source, list[Result]]:
    """Runs `tests` on a stream, and again on other seeds if a p-value is tiny."""
    first_seed = COLUMNS.index((stream, keep_prob)) * SEEDS_PER_COLUMN
    first_seed += 2 * repeat * SEEDS_PER_RUN
    source = Source(stream, keep_prob, first_seed)
    other = Source(stream, keep_prob, first_seed + SEEDS_PER_RUN)
    results = []
    for test in tests:
        parts = dieharder(test, source)
        small = [2 * min(part.p_value, 1 - part.p_value) < AGAIN for part in parts]
        if stream in OURS and any(small):
            parts = [
                part._replace(again=again.p_value) if is_small else part
                for part, again, is_small in zip(
                    parts, dieharder(test, other), small, strict=True
                )
            ]
        results += parts
    while source.drawn < LEAST_DRAWS:
        source.block()
    return source, results


def ks(results: list[Result], others: list[Result] | None = None) -> float:
    """Returns a p-value: are the p-values uniform, or distributed like `others`?

    If a test has several p-values, which come from the same data, only the last counts.
    """
    samples = [
        list({(r.stream, r.keep_prob, r.test): r.calibrated() for r in group}.values())
        for group in (results, others)
        if group is not None
    ]
    if others is None:
        return float(scipy.stats.kstest(samples[0], "uniform").pvalue)
    return float(scipy.stats.ks_2samp(*samples).pvalue)


def corrected(smallest: float, count: int) -> float:
    """Returns the probability of a p-value this small among `count` (Sidak)."""
    return -math.expm1(count * math.log1p(-smallest)) if smallest < 1 else 1.0


def assess(results: list[Result]) -> dict[str, Any]:
    """Returns what the p-values say together."""
    p_values = [result.two_sided() for result in results]
    return {
        "p_values": len(p_values),
        "smallest": min(p_values),
        "smallest_corrected": corrected(min(p_values), len(p_values)),
        "weak": sum(p_value < WEAK for p_value in p_values),
        "weak_expected": WEAK * len(p_values),
        "failed": sum(p_value < FAILED for p_value in p_values),
        "ks_uniform": ks(results),
    }


def summarize(sources: list[Source], results: list[Result]) -> dict[str, Any]:
    groups = {
        "ours": [r for r in results if r.stream in OURS],
        "ours, 0.5": [r for r in results if r.stream in OURS and r.keep_prob == 0.5],
        "ours, 0.1": [r for r in results if r.stream in OURS and r.keep_prob == 0.1],
    }
    for control in CONTROLS:
        groups[control] = [r for r in results if r.stream == control]
    groups = {name: group for name, group in groups.items() if group}
    summary = {name: assess(group) for name, group in groups.items()}
    if "pcg64" in groups:
        for name in groups.keys() - {"pcg64"}:
            summary[name]["ks_pcg64"] = ks(groups[name], groups["pcg64"])
    kept = [source.p_value() for source in sources if source.stream in OURS]
    if kept:
        summary["kept"] = {
            "p_values": len(kept),
            "smallest": min(kept),
            "smallest_corrected": corrected(min(kept), len(kept)),
            "ks_uniform": float(scipy.stats.kstest(kept, "uniform").pvalue),
        }
    return summary


def formatted(p_value: float) -> str:
    """Returns a p-value in seven characters; near 1, as its distance from 1."""
    if 0.0005 <= p_value <= 0.9995:
        return f"{p_value:.4f}"
    small = min(p_value, 1 - p_value)
    return ("" if p_value < 0.5 else "1-") + (f"{small:.0e}" if small > 0 else "0")


def print_table(sources: list[Source], results: list[Result]) -> None:
    """Prints a row per p-value and a column per stream, then the numbers kept."""
    table: dict[str, dict[tuple[str, float], Result]] = {}
    for result in results:
        row = table.setdefault(result.label(), {})
        row[result.stream, result.keep_prob] = result

    def line(label: str, size: str, cells: Iterable[str]) -> str:
        return f"{label:16}{size:>5}" + "".join(f"{cell:>11}" for cell in cells)

    print(line("", "", (f"{s.stream} " for s in sources)))
    print(line("test", "MB", (f"{s.keep_prob} " for s in sources)) + "  again")
    for label, row in table.items():
        cells, again = [], []
        for source in sources:
            result = row[source.stream, source.keep_prob]
            cells.append(f"{formatted(result.calibrated())}{result.mark():1}")
            if result.again is not None:
                name = f"{source.stream} {source.keep_prob}"
                again.append(f"{name}: {formatted(result.again)}")
        size = f"{row[sources[0].stream, sources[0].keep_prob].megabytes:.0f}"
        print((line(label, size, cells) + "  " + ", ".join(again)).rstrip())
    uniform = [
        ks([r for r in results if (r.stream, r.keep_prob) == (s.stream, s.keep_prob)])
        for s in sources
    ]
    print(line("KS of these", "", (formatted(p_value) + " " for p_value in uniform)))
    print(line("kept, z", "", (f"{s.z():+.2f} " for s in sources)))
    print(line("kept, p", "", (formatted(s.p_value()) + " " for s in sources)))
    print(line("drawn, log2", "", (f"{math.log2(s.drawn):.1f} " for s in sources)))
    print()


def print_summary(summary: dict[str, dict[str, Any]]) -> None:
    """Prints a row per group of streams, and one for the numbers kept."""
    columns = {
        "p_values": "p-values",
        "smallest": "smallest",
        "smallest_corrected": "corrected",
        "weak": "weak",
        "weak_expected": "expected",
        "failed": "FAILED",
        "ks_uniform": "uniform",
        "ks_pcg64": "as pcg64",
    }
    print(f"{'':12}" + "".join(f"{title:>10}" for title in columns.values()))
    for name, group in summary.items():
        cells = []
        for column in columns:
            value = group.get(column, "")
            if column == "weak_expected" and value:
                value = f"{value:.1f}"
            cells.append(formatted(value) if isinstance(value, float) else value)
        print(f"{name:12}" + "".join(f"{cell:>10}" for cell in cells))


LEGEND = """
Tables: p-values, calibrated, since those of dieharder are too often near 1 if it has
few samples. w and F mark those below 0.01 and 2e-6, two-sided. A p-value near 1 is
given as its distance from 1. "again" is the p-value on other seeds, for streams of ours
whose first p-value was below 1e-4, two-sided. "kept" compares the number of elements
kept with keep_prob.

Summary: the smallest p-value (two-sided), the probability of one so small among so many
(Sidak), the number below 0.01 and its expectation, the number below 2e-6, and whether
the p-values are uniform, and distributed like those of pcg64 (Kolmogorov-Smirnov, with
the last p-value of each test, since those of one test are not independent)."""


def version() -> str:
    banner = subprocess.run(["dieharder", "-l"], capture_output=True, text=True).stdout
    found = re.search(r"version (\S+)", banner)
    return found.group(1) if found else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=[*STREAMS])
    parser.add_argument("--tests", nargs="+", choices=TESTS)
    parser.add_argument(
        "--repeat", type=int, choices=range(4), default=0, help="other seeds for all"
    )
    args = parser.parse_args()
    if shutil.which("dieharder") is None:
        raise SystemExit(
            "mask_quality.py needs the program dieharder (Debian, Ubuntu: apt install "
            "dieharder)."
        )
    tests = args.tests or ([*QUICK] if args.quick else [*TESTS])
    start = time.perf_counter()
    sources, results = [], []
    for stream, keep_prob in COLUMNS:
        if stream in args.streams:
            source, parts = run_column(stream, keep_prob, args.repeat, tests)
            sources.append(source)
            results += parts
            elapsed = f"{time.perf_counter() - start:.0f} s"
            print(f"{elapsed:>7}: {stream} {keep_prob}", file=sys.stderr, flush=True)
    summary = summarize(sources, results)
    for group in (OURS, CONTROLS):
        if members := [source for source in sources if source.stream in group]:
            print_table(members, [r for r in results if r.stream in group])
    print_summary(summary)
    print(LEGEND)
    if tests == [*TESTS] and len(sources) == len(COLUMNS) and args.repeat == 0:
        path = timing.write(
            "mask_quality",
            {
                "dieharder": version(),
                "numpy": np.__version__,
                "seconds": round(time.perf_counter() - start),
                "summary": summary,
                "streams": [
                    {
                        "stream": source.stream,
                        "keep_prob": source.keep_prob,
                        "first_seed": source.seed,
                        "drawn": source.drawn,
                        "kept": source.kept,
                        "kept_z": source.z(),
                        "kept_p_value": source.p_value(),
                    }
                    for source in sources
                ],
                "tests": TESTS,
                "results": [
                    result._asdict() | {"calibrated": result.calibrated()}
                    for result in results
                ],
            },
        )
        print("written:", path)


if __name__ == "__main__":
    main()
