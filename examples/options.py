"""The command-line options of the examples, their output folders, and Ctrl-C.

Nothing slow is imported here. So each example reads its options before it imports JAX:
--help and mistakes are answered at once.
"""

import argparse
import contextlib
import io
import math
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The optimizers of digits.py and range_test.py, and the learning rates that did best
# with their dense arms on a held-out quarter of the training set.
RATES = {"sgdm": 0.2, "rmsprop": 0.005, "adam": 0.03, "amsgrad": 0.03, "radam": 0.08}
CIFAR10_RATES = dict.fromkeys(RATES, 1e-3) | {"sgdm": 0.1}  # those of the paper
# The models of transformer.py: layers, features, heads, hidden units of the MLP.
SIZES = {
    "1M": (4, 128, 4, 384),  # 918,656 parameters
    "3M": (4, 256, 4, 640),  # 3,148,032
    "10M": (6, 384, 8, 1024),  # 10,818,432
    "30M": (10, 512, 8, 1280),  # 30,419,456
    "100M": (8, 1024, 16, 2816),  # 103,302,144
    "300M": (24, 1024, 16, 2816),  # 308,855,808
    "1B": (20, 2048, 16, 5632),  # 1,028,737,024
}
MOST_STEPS = 2**31 - 1  # Optax counts them in int32
SEVERAL: dict[str, Any] = {"nargs": "+", "metavar": "X"}
QUICK = "\nA --quick run has too few seeds to decide: leave it out for more."
SAVED: list[Path] = []  # the files that this run has written


def on_ctrl_c(handler: Callable[..., object]) -> None:
    # What a script runs in the background ignores the Ctrl-C that ends the script.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def files_saved() -> str:
    return f"{', '.join(map(str, SAVED)) or 'nothing'} saved"


def end_on_ctrl_c(
    clean_up: Callable[[], object] = lambda: None,
    outcome: Callable[[], str] = files_saved,
) -> None:
    """Makes Ctrl-C end this program with one line, also while it imports JAX."""

    def stop(*_: Any) -> None:
        # An exception would be lost if Python runs a callback of JAX at that moment.
        try:
            clean_up()
            with contextlib.suppress(Exception):
                sys.stdout.flush()  # it may hold a table, which _exit would drop
            text = f"stopped: {outcome()}\n"
            if sys.stderr.isatty():
                text = f"\x1b[?25h\n{text}"  # the progress bar has hidden the cursor
            os.write(2, text.encode())
        finally:  # stderr may be closed, as after `2>&1 | head`
            os._exit(130)

    on_ctrl_c(stop)


def make_folder(
    parser: argparse.ArgumentParser, path: Path, option: str = "--output"
) -> None:
    """Makes the output folder, and a file in it, to fail before an hour of training."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        rule = f"{option} must be a folder that files can be written to"
        parser.error(f"{rule}, got {path} ({error.strerror})")


def save(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file of results. The table is on the screen by then, if that fails."""
    try:
        write(path)
    except OSError as error:
        sys.exit(f"{path} could not be written: {error.strerror}")
    SAVED.append(path)


def lower_rate(keep_prob: float) -> str:
    """Returns the name of the arm that has the mean step of LRD without a mask."""
    return f"dense, {'half the' if keep_prob == 0.5 else f'{keep_prob:g} x'} rate"


def check_keep_prob(parser: argparse.ArgumentParser, value: float) -> None:
    if not 0 < value <= 1:
        parser.error(f"--keep-prob must be above 0 and at most 1, got {value:g}")


def check_seed(parser: argparse.ArgumentParser, value: int) -> None:
    if not 0 <= value < 2**32:
        parser.error(f"--seed must be from 0 to {2**32 - 1}, got {value}")


def learning_rate(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        rate = float(number)
    except ValueError:
        rate = math.nan
    if name not in RATES or not 0 < rate < math.inf:
        names = ", ".join(RATES)
        rule = f"must be OPTIMIZER=RATE, one of {names} and a number above 0"
        raise argparse.ArgumentTypeError(f"{rule}, got {text}")
    return name, rate


def add_keep_prob(parser: argparse.ArgumentParser) -> None:
    text = "probability that LRD keeps an update, default: 0.5"
    parser.add_argument("--keep-prob", type=float, metavar="P", default=0.5, help=text)


def add_output(
    parser: argparse.ArgumentParser, folder: Path, option: str = "--output"
) -> None:
    text = f"folder, default: {folder}"
    parser.add_argument(option, type=Path, metavar="FOLDER", default=folder, help=text)


def digits() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Learning Rate Dropout (LRD) on 1,797 handwritten digits."
    )
    add, names, folder = parser.add_argument, list(RATES), Path("results/digits")
    rates = " ".join(f"{name}={rate:g}" for name, rate in RATES.items())
    choices = f"any of {', '.join(names)}; default: all"
    add("--optimizers", choices=names, default=names, help=choices, **SEVERAL)
    rates = f"OPTIMIZER=RATE, default: {rates}"
    add("--learning-rates", type=learning_rate, default=[], help=rates, **SEVERAL)
    add_keep_prob(parser)
    add("--seeds", type=int, metavar="N", help="default: 16, with --quick 4")
    add("--epochs", type=int, metavar="N", help="default: 30, with --quick 6")
    lower = "leave out the arm 'dense, half the rate' (keep_prob x the rate)"
    add("--no-lower-rate", action="store_true", help=lower)
    add("--quick", action="store_true", help="few seeds and epochs, for a first look")
    add_output(parser, folder)
    args = parser.parse_args()
    check_seeds_and_epochs(parser, args)
    check_keep_prob(parser, args.keep_prob)
    make_folder(parser, args.output)
    return args


def check_seeds_and_epochs(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> None:
    seeds, epochs = (4, 6) if args.quick else (16, 30)
    args.seeds = seeds if args.seeds is None else args.seeds
    args.epochs = epochs if args.epochs is None else args.epochs
    if args.seeds < 2 or args.epochs < 1:
        got = f"{args.seeds} and {args.epochs}"
        parser.error(f"--seeds must be at least 2 and --epochs at least 1, got {got}")


def range_test() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A learning-rate range test on the digits, and training with what "
        "it suggests."
    )
    add, names, folder = parser.add_argument, list(RATES), Path("results/range_test")
    add("--optimizer", choices=names, default="sgdm", help="default: sgdm")
    add_keep_prob(parser)
    add("--seeds", type=int, metavar="N", help="default: 16, with --quick 4")
    add("--epochs", type=int, metavar="N", help="default: 30, with --quick 6")
    add(
        "--steps",
        type=int,
        metavar="N",
        default=100,
        help="in the range test, default: 100",
    )
    add("--quick", action="store_true", help="few seeds and epochs, for a first look")
    add_output(parser, folder)
    args = parser.parse_args()
    check_seeds_and_epochs(parser, args)
    check_keep_prob(parser, args.keep_prob)
    if args.steps < 20:
        parser.error(f"--steps must be at least 20, got {args.steps}")
    make_folder(parser, args.output)
    return args


def grow() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Growing a network: Learning Rate Dropout (LRD) makes copied units "
        "differ."
    )
    add, names, folder = parser.add_argument, ["sgdm", "adam"], Path("results/grow")
    data = "digits, fashion-mnist (of Debian's package dataset-fashion-mnist), or a "
    data += "folder with the four files of MNIST or the like; default: digits"
    add("--data", default="digits", help=data)
    choices = f"any of {', '.join(names)}; default: all"
    add("--optimizers", choices=names, default=names, help=choices, **SEVERAL)
    add_keep_prob(parser)
    add("--seeds", type=int, metavar="N", help="default: 16, with --quick 4")
    add("--quick", action="store_true", help="few seeds and steps, for a first look")
    add_output(parser, folder)
    args = parser.parse_args()
    args.optimizers = list(dict.fromkeys(args.optimizers))
    if args.seeds is None:
        args.seeds = 4 if args.quick else 16
    if args.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {args.seeds}")
    check_keep_prob(parser, args.keep_prob)
    make_folder(parser, args.output)
    return args


def saddle() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Does Learning Rate Dropout (LRD) leave saddles and poor minima, "
        "in two dimensions?"
    )
    add, folder = parser.add_argument, Path("results/saddle")
    add("--runs", type=int, metavar="N", help="per arm, default: 1000, with --quick 50")
    add("--steps", type=int, metavar="N", default=2000, help="per run, default: 2000")
    add_keep_prob(parser)
    add_output(parser, folder)
    add("--quick", action="store_true", help="few runs, for a first look")
    args = parser.parse_args()
    if args.runs is None:
        args.runs = 50 if args.quick else 1000
    if args.runs < 10 or args.steps < 100:
        got = f"{args.runs} and {args.steps}"
        parser.error(f"--runs must be at least 10 and --steps at least 100, got {got}")
    check_keep_prob(parser, args.keep_prob)
    make_folder(parser, args.output)
    return args


def mask_gallery() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draws the picture of docs/masks.md: what each kind of mask keeps "
        "in four steps."
    )
    add, folder = parser.add_argument, Path("results/masks")
    add("--key", type=int, metavar="N", default=0, help="default: 0")
    add_output(parser, folder)
    args = parser.parse_args()
    if not -(2**63) <= args.key < 2**64:
        parser.error(f"--key must fit in 64 bits, got {args.key}")
    make_folder(parser, args.output)
    return args


def schedule_gallery() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draws the pictures of docs/schedules.md and docs/plotting.md."
    )
    add_output(parser, Path("results/schedules"))
    args = parser.parse_args()
    make_folder(parser, args.output)
    return args


def cifar10() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description="Learning Rate Dropout (LRD) on CIFAR-10, as in the paper.",
        # For --coordinator HOST:PORT in one line, so that all of it fits on a screen.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=27),
    )
    add, names = parser.add_argument, list(CIFAR10_RATES)
    text = "file or folder with the images, default: data"
    add("--data", type=Path, metavar="PATH", default=Path("data"), help=text)
    choices = f"{', '.join(names)}; default: sgdm"
    add("--optimizer", choices=names, default="sgdm", metavar="NAME", help=choices)
    text = "default: 0.1 for sgdm, 0.001 for the others"
    add("--learning-rate", type=float, metavar="RATE", help=text)
    add_keep_prob(parser)
    add("--unbiased", action="store_true", help="divide what is kept by --keep-prob")
    add("--epochs", type=int, metavar="N", help="default: 200, with --quick 6")
    text = "number of images, default: 128"
    add("--batch", type=int, metavar="N", default=128, help=text)
    text = "10, 18 or 34 layers; default: 34, with --quick 10"
    add("--depth", type=int, choices=(10, 18, 34), metavar="N", help=text)
    text = "of the first layer, default: 64, with --quick 16"
    add("--width", type=int, metavar="N", help=text)
    add("--bfloat16", action="store_true", help="compute in bfloat16")
    add("--seed", type=int, metavar="N", default=0, help="default: 0")
    add("--quick", action="store_true", help="a small network, a tenth of the images")
    add_run(parser, Path("results/cifar10"), "one epoch")
    args = parser.parse_args()
    check_cifar10(parser, args)
    check_run(parser, args)
    return args


def check_cifar10(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    small = {"epochs": 6, "depth": 10, "width": 16}
    full = {"epochs": 200, "depth": 34, "width": 64}
    for name, value in (small if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.learning_rate is None:
        args.learning_rate = CIFAR10_RATES[args.optimizer]
    check_keep_prob(parser, args.keep_prob)
    if not 0 < args.learning_rate < math.inf:
        rule = "--learning-rate must be a finite number above 0"
        parser.error(f"{rule}, got {args.learning_rate:g}")
    for name in ("epochs", "batch", "width"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    check_seed(parser, args.seed)
    import images  # it imports NumPy and Pillow: quick, but not for every example

    try:
        images.find(args.data)
    except ValueError as error:
        parser.error(f"--data: {error}")


def curves() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draws the learning curves of runs of cifar10.py or "
        "transformer.py, with a table."
    )
    text = "output folder of a run"
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help=text)
    add_output(parser, Path("results/curves"))
    args = parser.parse_args()
    args.folders = list(dict.fromkeys(args.folders))
    for folder in args.folders:
        for name in ("config.json", "records.jsonl"):
            if not (folder / name).is_file():
                rule = "FOLDER must be the output folder of a run"
                parser.error(f"{rule}, got {folder}, which has no {name}")
    make_folder(parser, args.output)
    return args


def last_checkpoint(folder: Path) -> str:
    # Orbax gives a checkpoint this name when it is complete.
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not steps:
        return "nothing saved"
    return f"the same command goes on from step {max(steps)}"


def resume() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Training with Learning Rate Dropout (LRD) that resumes where it "
        "was killed."
    )
    add, folder = parser.add_argument, Path("results/resume")
    add_output(parser, folder, "--directory")
    add(
        "--steps",
        type=int,
        metavar="N",
        default=1000,
        help="number of steps in all, default: 1000",
    )
    add("--save-every", type=int, metavar="N", default=10, help="in steps, default: 10")
    args = parser.parse_args()
    if args.steps < 1 or args.save_every < 1:
        got = f"{args.steps} and {args.save_every}"
        parser.error(f"--steps and --save-every must be at least 1, got {got}")
    make_folder(parser, args.directory, "--directory")
    end_on_ctrl_c(outcome=lambda: last_checkpoint(args.directory))
    return args


def add_processes(parser: argparse.ArgumentParser, alone: str) -> None:
    """Adds the arguments of `jax.distributed.initialize`; without them, `alone`."""
    add = parser.add_argument
    text = "address of process 0, with --process-id"
    add("--coordinator", metavar="HOST:PORT", help=text)
    text = "number of processes, default: 2"
    add("--num-processes", type=int, metavar="N", default=2, help=text)
    text = f"of this process, from 0, default: {alone}"
    add("--process-id", type=int, metavar="I", help=text)


def check_processes(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    number, process_id = args.num_processes, args.process_id
    if (process_id is None) != (args.coordinator is None):
        parser.error("--process-id and --coordinator go together")
    if process_id is not None and not re.fullmatch(r".+:\d+", args.coordinator):
        parser.error(f"--coordinator must be HOST:PORT, got {args.coordinator}")
    if process_id is not None and not 0 <= process_id < number:
        parser.error(f"--process-id must be from 0 to {number - 1}, got {process_id}")


def add_run(parser: argparse.ArgumentParser, folder: Path, every: str) -> None:
    """Adds the options of a run that runs.py keeps in a folder."""
    add_output(parser, folder)
    text = f"steps between checkpoints, default: {every}"
    parser.add_argument("--save-every", type=int, metavar="N", help=text)
    add_processes(parser, "one process alone")
    text = "let JAX find the processes, as on TPUs and Slurm"
    parser.add_argument("--distributed", action="store_true", help=text)


def check_run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Checks the options of add_run, makes the folder, and says what Ctrl-C leaves."""
    if args.save_every is not None and args.save_every < 1:
        parser.error(f"--save-every must be at least 1, got {args.save_every}")
    check_processes(parser, args)
    if args.distributed and args.coordinator:
        parser.error("--distributed finds the --coordinator itself: give one of them")
    make_folder(parser, args.output)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or file that knows fewer letters than a text is no reason to stop.
        sys.stdout.reconfigure(errors="replace")
    end_on_ctrl_c(outcome=lambda: last_checkpoint(args.output / "checkpoints"))


def multi_process() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Learning Rate Dropout (LRD) in several processes, which all draw "
        "the same masks."
    )
    add_processes(parser, "start all")
    text = ".npz file for the parameters and the masks"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    args = parser.parse_args()
    check_processes(parser, args)
    number, process_id = args.num_processes, args.process_id
    if process_id is None and number not in (1, 2, 4):
        parser.error(f"--num-processes must be 1, 2 or 4 on one machine, got {number}")
    if args.out:
        if not args.out.parent.is_dir():
            parser.error(f"--out must be in a folder that exists, got {args.out}")
        make_folder(parser, args.out.parent, "the folder of --out")
    return args


def mesh(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*", text):
        rule = "must be DATA,TENSOR, two numbers of devices such as 2,4"
        raise argparse.ArgumentTypeError(f"{rule}, got {text}")
    data, tensor = map(int, text.split(","))
    return data, tensor


def transformer() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description="A small language model with Learning Rate Dropout (LRD): a "
        "transformer on any text.",
    )
    add, folder = parser.add_argument, Path("results/transformer")
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    number: dict[str, Any] = {"type": float, "metavar": "X"}
    text = "file or folder, default: Python's own library"
    add("--text", type=Path, metavar="PATH", help=text)
    names = f"parameters, one of {', '.join(SIZES)}; default: 1M"
    add("--size", choices=SIZES, metavar="NAME", default="1M", help=names)
    add("--context", **whole, default=128, help="in bytes, default: 128")
    add("--batch", **whole, default=16, help="sequences, default: 16")
    add("--steps", **whole, help="default: 2000, with --quick 100")
    text = "at the peak, default: 0.4 / features"
    add("--learning-rate", **number, help=text)
    text = "largest norm of the gradient, default: 1; 0: no clipping"
    add("--clip", **number, default=1.0, help=text)
    methods = ("dense", "lrd", "skipupdate", "magma")
    names = f"one of {', '.join(methods)}; default: lrd"
    add("--method", choices=methods, metavar="NAME", default="lrd", help=names)
    masks = ("element", "row", "tensor")
    names = f"for LRD, one of {', '.join(masks)}; default: element"
    add("--mask", choices=masks, metavar="NAME", help=names)
    add_keep_prob(parser)
    add("--unbiased", action="store_true", help="LRD with the mean step of dense")
    add("--bfloat16", action="store_true", help="compute the layers in bfloat16")
    add("--remat", action="store_true", help="less memory, a third more work")
    text = "devices for the batch and for matrices; default: all,1"
    add("--mesh", type=mesh, metavar="DATA,TENSOR", help=text)
    text = "start of the samples, default: a new line"
    add("--prompt", metavar="TEXT", default="\n", help=text)
    add("--seed", **whole, default=0, help="default: 0")
    add("--report-every", **whole, help="in steps, default: 20 reports, --quick: 5")
    add("--quick", action="store_true", help="few steps, for a first look")
    add_run(parser, folder, "as often as reports")
    args = parser.parse_args()
    check_transformer(parser, args)
    check_run(parser, args)
    return args


def check_transformer(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> None:
    """Checks the options, and sets those whose defaults depend on others."""
    if args.steps is None:
        args.steps = 100 if args.quick else 2000
    if args.learning_rate is None:
        args.learning_rate = 0.4 / SIZES[args.size][1]
    for name in ("context", "batch", "steps", "report_every"):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = name.replace("_", "-")
            parser.error(f"--{option} must be at least 1, got {value}")
    if args.steps > MOST_STEPS:
        parser.error(f"--steps must be at most {MOST_STEPS}, got {args.steps}")
    args.report_every = args.report_every or max(
        1, args.steps // (5 if args.quick else 20)
    )
    args.save_every = args.report_every if args.save_every is None else args.save_every
    if not 0 < args.learning_rate < math.inf:
        parser.error(f"--learning-rate must be above 0, got {args.learning_rate:g}")
    if not 0 <= args.clip < math.inf:
        parser.error(f"--clip must be at least 0, got {args.clip:g}")
    check_keep_prob(parser, args.keep_prob)
    if args.method != "lrd" and (args.mask or args.unbiased):
        parser.error(f"--mask and --unbiased need --method lrd, got {args.method}")
    if args.method == "dense" and args.keep_prob != 0.5:
        parser.error(
            f"--keep-prob is not used by --method dense, got {args.keep_prob:g}"
        )
    args.mask = args.mask or "element"
    check_seed(parser, args.seed)
    if args.text and not args.text.exists():
        parser.error(f"--text must be a file or a folder, got {args.text}")
    if not args.prompt:
        parser.error("--prompt must have at least one character, got none")
    if args.mesh:
        check_mesh(parser, args)


def check_mesh(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    (data, tensor), (_, _, heads, hidden) = args.mesh, SIZES[args.size]
    if args.batch % data:
        rule = f"--mesh {data},{tensor} needs a --batch that {data} divides"
        parser.error(f"{rule}, got {args.batch}")
    if math.gcd(heads, hidden) % tensor:
        rule = f"--mesh {data},{tensor} needs a --size whose heads {tensor} divides"
        parser.error(f"{rule}, got {args.size} with {heads}")
