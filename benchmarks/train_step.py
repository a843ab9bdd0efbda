"""Times the training step and the forward pass of the networks.

    python -m benchmarks.train_step --preset decoder precision twin
    python -m benchmarks.train_step --variants decoder=direct decoder=resize_conv \\
        --set backbone=small,batch_size=2

Prints Markdown tables and writes all there are, with all times, as `train_step.md`
and `train_step.json`, after every round. A comparison replaces the one of the same
name; with `--resume`, those that are there and finished are left out.

Variants are compared with the first of them. Each runs in a process of its own; they
take turns, round after round, and a process whose turn it is not is stopped. Ratios
are taken round by round; tables show medians and, in brackets, quartiles. A pass is
what `fit` does with a batch in memory: forward, backward, Adam and the learned
weighting, no metrics; or the forward pass in inference mode.

FLOPs are those of matrix products and convolutions in the traced program, counted by
`benchmarks.flops`, one multiply-add as two. The matmul rate is that of the product of
two large squares, in the same process, framework and precision, in the same round.
In bfloat16 the interpolation, the outputs and the losses are still float32. Peak
memory is that of the GPU, or without one of the process, after two training steps.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import statistics
import sys
import time

from benchmarks.processes import Worker, WorkerDied
from benchmarks.step_worker import PROGRAMS
from benchmarks.tables import format_spread, make_table, write_results
from benchmarks.variants import Variant, parse_fields, split_fields

PASSES = {"train": "training step", "forward": "forward"}
KINDS = (*PASSES, "matmul")

# By name, comparisons: the fields of `Variant` that their variants share, and those
# in which they differ, the reference first.
DECODERS = ("decoder=direct", "decoder=resize_conv")
PRECISIONS = ("precision=float32", "precision=bfloat16")
PRESETS = {
    "decoder": [("batch_size=1", DECODERS)],
    "precision": [("", PRECISIONS)],
    "twin": [(p, ("framework=torch", "framework=tensorflow")) for p in PRECISIONS],
    "backend": [("", ("framework=tensorflow", "framework=jax"))],
    "jit": [("", ("jit=no", "jit=yes"))],
    "architecture": [
        (p, ("architecture=mtl", "architecture=kendall")) for p in PRECISIONS
    ],
    "batch": [("", [f"batch_size={size}" for size in (1, 4, 8)])],
    "gpu": [
        (
            f"precision=bfloat16,batch_size={size}",
            [
                "framework=jax,decoder=direct",
                "framework=jax,decoder=resize_conv",
                "framework=torch,decoder=resize_conv",
            ],
        )
        for size in (8, 16, 32, 64)
    ],
}
ROUNDS = {"decoder": 3}  # a direct step takes half a minute on two cores


class Entrant:
    """A variant in a comparison: its process, and in `row` what is known of it."""

    def __init__(self, variant):
        self.row = {
            "variant": dataclasses.asdict(variant),
            "seconds": {kind: [] for kind in KINDS},
            "flops": None,
            "peak_memory_bytes": None,
            "first_step_seconds": None,
            "machine": None,
            "error": None,
        }
        self.counts = {}
        self.start = time.perf_counter()
        self.worker = Worker(
            "benchmarks.step_worker",
            [json.dumps(self.row["variant"])],
            PROGRAMS[variant.framework].environment,
        )

    def ask(self, question, **arguments):
        """The answer of the process; `None` once it has died."""
        if self.row["error"] is None:
            try:
                return self.worker.ask(question, **arguments)
            except WorkerDied as death:
                self.row["error"] = str(death)
                print(death.log, file=sys.stderr, flush=True)
        return None

    def prepare(self, turn_seconds):
        """Takes the first step, compiles the rest, and finds out how many passes
        fill a turn."""
        for kind in KINDS:
            self.ask("time", kind=kind, count=1)
            if kind == "train":
                self.row["first_step_seconds"] = time.perf_counter() - self.start
            seconds = self.ask("time", kind=kind, count=1)
            if seconds:
                self.counts[kind] = max(1, math.ceil(turn_seconds / seconds))
            if kind == "train":
                self.row["peak_memory_bytes"] = self.ask("measure_peak_memory")
        self.row["flops"] = self.ask("count_flops")
        self.row["machine"] = self.ask("describe")

    def take_turn(self, kind):
        seconds = self.ask("time", kind=kind, count=self.counts.get(kind))
        if seconds is not None:
            self.row["seconds"][kind].append(seconds)


def compare(variants, rounds, turn_seconds):
    """Measures variants in turns; yields their rows after every round."""
    with contextlib.ExitStack() as stack:
        entrants = []
        for variant in variants:
            entrants.append(Entrant(variant))
            stack.enter_context(entrants[-1].worker)
            entrants[-1].prepare(turn_seconds)
            report("prepared", entrants[-1].row)
        for number in range(1, rounds + 1):
            for kind in KINDS:
                for entrant in entrants:
                    entrant.take_turn(kind)
            for entrant in entrants:
                report(f"round {number} of {rounds}", entrant.row)
            yield [entrant.row for entrant in entrants]


def report(stage, row):
    """Prints a line of progress."""
    result = ", ".join(
        f"{kind} {seconds[-1]:.3g} s"
        for kind, seconds in row["seconds"].items()
        if seconds
    )
    result = result or f"first step after {row['first_step_seconds']:.1f} s"
    name = Variant(**row["variant"]).in_words()
    print(f"{stage}: {name}: {row['error'] or result}", file=sys.stderr, flush=True)


def format_preset(name, comparisons):
    parts = [format_comparison(*comparison) for comparison in comparisons.items()]
    return "\n\n".join([f"## {name}", *parts])


def format_comparison(title, rows):
    header = [
        "variant",
        "pass",
        "s per image",
        "images/s",
        "times as fast",
        "GFLOP per image",
        "share of matmul rate",
        "peak memory, GiB",
        "first step after, s",
    ]
    variants = [Variant(**row["variant"]) for row in rows]
    _, differing = split_fields(variants)
    cells, errors = [], []
    for variant, row in zip(variants, rows):
        label = variant.in_words(differing)
        for kind, name in PASSES.items():
            cells.append([label, name, *format_pass(row, rows[0], kind)])
        if row["error"]:
            errors.append(f"{label}: {row['error']}")
    table = make_table(header, cells, text_columns=2)
    return "\n\n".join([f"{title}. {name_machine(rows)}.", table, *errors])


def format_pass(row, reference, kind):
    """The cells after the names; dashes for what was not measured."""
    batch_size = row["variant"]["batch_size"]
    seconds = [s / batch_size for s in row["seconds"][kind]]
    if not seconds:
        return ["–"] * 7
    reference_size = reference["variant"]["batch_size"]
    others = [s / reference_size for s in reference["seconds"][kind]]
    ratios = [other / own for other, own in zip(others, seconds)]
    flops = row["flops"][kind] / batch_size
    rates = [row["flops"]["matmul"] / s for s in row["seconds"]["matmul"]]
    shares = [flops / own / rate for own, rate in zip(seconds, rates)]
    is_step = kind == "train"
    return [
        format_spread(seconds),
        f"{1 / statistics.median(seconds):.3g}",
        "1" if row is reference else format_spread(ratios) if ratios else "–",
        f"{flops / 1e9:.4g}",
        f"{statistics.median(shares):.0%}" if shares else "–",
        f"{row['peak_memory_bytes'] / 2**30:.2f}" if is_step else "",
        f"{row['first_step_seconds']:.1f}" if is_step else "",
    ]


def name_machine(rows):
    """In words, what a comparison ran on, and when."""
    machines = [row["machine"] for row in rows if row["machine"]]
    if not machines:
        return "Nothing could be measured"
    first, packages = machines[0], {}
    for machine in machines:
        packages |= machine["packages"]
    device = first["device"]
    if device == "CPU":
        device = f"{first['cores']} cores of {first['cpu']}"
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    rounds = max(len(row["seconds"]["matmul"]) for row in rows)
    return f"{device}; {versions}; {first['date']}; {rounds} rounds"


def list_comparisons(options):
    """Pairs of the name of a preset and the variants of a comparison.

    Raises:
        argparse.ArgumentTypeError: for a field that does not exist.
    """
    presets = {name: PRESETS[name] for name in options.preset}
    if options.variants:
        presets["custom"] = [("", options.variants)]
    overrides = parse_fields(options.set)
    return [
        (
            name,
            [
                Variant(**{**parse_fields(f"{common},{fields}"), **overrides})
                for fields in differing
            ],
        )
        for name, comparisons in presets.items()
        for common, differing in comparisons
    ]


def is_finished(rows, variants, rounds):
    """Whether these rows are of these variants and hold this many rounds."""
    return [Variant(**row["variant"]) for row in rows] == variants and all(
        len(row["seconds"]["matmul"]) >= rounds for row in rows
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    fields = "FIELD=VALUE,..."
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=[])
    parser.add_argument(
        "--variants", nargs="+", metavar=fields, help="a comparison named 'custom'"
    )
    parser.add_argument(
        "--set", default="", metavar=fields, help="fields that all variants share"
    )
    parser.add_argument("--rounds", type=int, help="5 by default, for decoder 3")
    parser.add_argument(
        "--turn-seconds", type=float, default=2.0, help="the least a turn takes"
    )
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results")
    )
    options = parser.parse_args()
    try:
        comparisons = list_comparisons(options)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    if not comparisons:
        parser.error("choose a --preset or give --variants")

    path = options.output / "train_step.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, variants in comparisons:
        agreeing, _ = split_fields(variants)
        title = variants[0].in_words(agreeing)
        rounds = options.rounds or ROUNDS.get(name, 5)
        stored = results.setdefault(name, {})
        if not (
            options.resume
            and title in stored
            and is_finished(stored[title], variants, rounds)
        ):
            for rows in compare(variants, rounds, options.turn_seconds):
                stored[title] = rows
                text = "\n\n".join(itertools.starmap(format_preset, results.items()))
                write_results(options.output, "train_step", text, results)
        print(format_comparison(title, stored[title]), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
