"""Where the time of a training step goes, by part of the network and by op.

    python -m benchmarks.breakdown
    python -m benchmarks.breakdown --variant backbone=small,batch_size=2

Prints Markdown tables and writes all there are as `breakdown.md` and
`breakdown.json`; a measurement replaces that of the same variant. TensorFlow on a
CPU only, whose profiler tells the layer of every op. Takes two minutes or three for a
ResNet-101.

The ops run one after another, each on all cores, so that their times add up to the
step. (As a rule TensorFlow runs two at a time; the time of such a step is given too.)
FLOPs are those of matrix products and convolutions, see `benchmarks.flops`. The
excess of a part is its time less what its FLOPs take at the rate of a large matrix
product: what is spent on moving and rearranging data, and on products that run below
that rate.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import os
import pathlib
import re
import statistics
import tempfile

from benchmarks.flops import count_tensorflow
from benchmarks.processes import Worker
from benchmarks.step_worker import TensorFlowProgram
from benchmarks.tables import make_table, write_results
from benchmarks.variants import Variant, parse_fields

# Parts of the network by the names of their layers; the first that fits.
PARTS = {
    "backbone: batch normalization": r"conv\d_.*bn",
    "backbone: ReLU and shortcuts": r"conv\d_.*(relu|add|out)",
    "backbone: stem": r"conv1_.*|pool1_.*|normalization",
    "backbone: stage 2": r"conv2_.*",
    "backbone: stage 3": r"conv3_.*",
    "backbone: stage 4": r"conv4_.*",
    "backbone: stage 5": r"conv5_.*",
    "pyramid": r"aspp_.*",
    "heads: first layer": r"decoder_resize|\w+_conv1.*",
    "heads: second layer": r"\w+_conv2.*",
    "outputs": r"semantic|instance|depth",
    "other layers": r".*",
}
OPTIMIZER, LOSSES = "optimizer", "losses and the rest"
ADAM = ("fused_adam/", "adam/")  # the scopes of ours and of Keras's own
DIRECTIONS = ("forward", "backward and update")
COLUMNS = (*DIRECTIONS, "flops")
NUM_OPS = 15  # rows of the table of ops


def find_part(op_name, layers):
    """The part of the network that an op belongs to, forward or backward."""
    for scope in op_name.split("/"):
        for layer in (scope, re.sub(r"_\d+$", "", scope)):
            if layer in layers:
                return next(
                    p for p, names in PARTS.items() if re.fullmatch(names, layer)
                )
    return OPTIMIZER if op_name.startswith(ADAM) else LOSSES


def profile(run, count):
    """Seconds of the ops of a call, the mean of `count`: `{(name, type): seconds}`."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

    with tempfile.TemporaryDirectory() as directory:
        tf.profiler.experimental.start(directory)
        for _ in range(count):
            run()
        tf.profiler.experimental.stop()
        (path,) = pathlib.Path(directory).rglob("*.xplane.pb")
        planes = XSpace.FromString(path.read_bytes()).planes
    seconds = collections.Counter()
    for plane in planes:
        for event in itertools.chain(*(line.events for line in plane.lines)):
            name = plane.event_metadata[event.metadata_id].name
            if match := re.fullmatch(r"([^: ]+):(\w+)", name):
                seconds[match.groups()] += event.duration_ps / 1e12 / count
    return seconds


def measure(variant, count):
    """Times and FLOPs of a step by part and by op, the means of `count` steps."""
    fields = dataclasses.asdict(variant)
    with Worker("benchmarks.step_worker", [json.dumps(fields)]) as worker:
        worker.ask("time", kind="train", count=1)
        usual = worker.ask("time", kind="train", count=count)

    os.environ.update(TensorFlowProgram.environment)
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    program = TensorFlowProgram(variant)
    train_step = tf.function(program.trainer.train_step)
    step = train_step.get_concrete_function(program.batch)
    for _ in range(2):
        step(program.batch)
    seconds = profile(lambda: step(program.batch), count)
    flops = count_tensorflow(step.graph)

    layers = {layer.name for layer in program.trainer.network.layers}
    parts = collections.defaultdict(lambda: dict.fromkeys(COLUMNS, 0))
    ops = collections.defaultdict(lambda: dict.fromkeys(DIRECTIONS, 0))
    for (name, kind), duration in seconds.items():
        parts[find_part(name, layers)][find_direction(name)] += duration
        ops[kind][find_direction(name)] += duration
    for name, number in flops.items():
        parts[find_part(name, layers)]["flops"] += number
    matmul_seconds = statistics.median(program.time("matmul", 1) for _ in range(5))
    return {
        "variant": fields,
        "machine": program.describe(),
        "steps": count,
        "usual_step_seconds": usual,
        "matmul_rate": 2 * program.matmul_size**3 / matmul_seconds,
        "parts": parts,
        "ops": ops,
    }


def find_direction(op_name):
    is_later = op_name.startswith(("gradient_tape/", "AddN", *ADAM))
    return DIRECTIONS[is_later]


def format_measurement(title, result):
    """The tables, and a sentence on what there is to gain."""
    rate, machine = result["matmul_rate"], result["machine"]
    total = sum(sum_times(part) for part in result["parts"].values())
    excess = {
        name: sum_times(part) - part["flops"] / rate
        for name, part in result["parts"].items()
    }
    header = ["part", "forward, ms", "backward and update, ms", "share of the step"]
    header += ["GFLOP", "share of matmul rate", "excess, ms"]
    rows = [
        [
            name,
            *(f"{1e3 * part[direction]:.1f}" for direction in DIRECTIONS),
            f"{sum_times(part) / total:.1%}",
            f"{part['flops'] / 1e9:.1f}" if part["flops"] else "",
            f"{part['flops'] / rate / sum_times(part):.0%}" if part["flops"] else "",
            f"{1e3 * excess[name]:.1f}",
        ]
        for name, part in sort_by_time(result["parts"])
    ]
    op_header = ["op", "forward, ms", "backward and update, ms", "share of the step"]
    op_rows = [
        [
            f"`{name}`",
            *(f"{1e3 * op[direction]:.1f}" for direction in DIRECTIONS),
            f"{sum_times(op) / total:.1%}",
        ]
        for name, op in sort_by_time(result["ops"])[:NUM_OPS]
    ]
    products = sum(part["flops"] for part in result["parts"].values()) / rate
    largest = sorted(excess, key=excess.get, reverse=True)[:3]
    versions = ", ".join(f"{n} {v}" for n, v in machine["packages"].items())
    return "\n\n".join(
        [
            f"## {title}",
            f"{machine['cores']} cores of {machine['cpu']}; {versions}; "
            f"{machine['date']}; mean of {result['steps']} steps.",
            make_table(header, rows),
            make_table(op_header, op_rows),
            f"One op after another the step takes {total:.3g} s, as usual "
            f"{result['usual_step_seconds']:.3g} s. At the matmul rate of "
            f"{rate / 1e9:.0f} GFLOP/s its products alone would take {products:.3g} s. "
            "The largest excess: "
            + ", ".join(f"{name} {excess[name]:.2g} s" for name in largest)
            + ".",
        ]
    )


def sum_times(row):
    return sum(row[direction] for direction in DIRECTIONS)


def sort_by_time(rows):
    return sorted(rows.items(), key=lambda item: -sum_times(item[1]))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--variant", type=parse_fields, default={}, metavar="FIELD=VALUE,..."
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results")
    )
    options = parser.parse_args()
    variant = Variant(**options.variant)
    if variant.framework != "tensorflow":
        parser.error("only TensorFlow tells the layer of an op")

    path = options.output / "breakdown.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    title = variant.in_words()
    results[title] = measure(variant, options.steps)
    text = "\n\n".join(itertools.starmap(format_measurement, results.items()))
    write_results(options.output, "breakdown", text, results)
    print(format_measurement(title, results[title]))


if __name__ == "__main__":
    main()
