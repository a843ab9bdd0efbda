"""How fast frames are prepared, beside how fast their files merely decode.

    python -m benchmarks.preparation

Rendered streets at 1024x2048, with noise so that the images are as large as those of
Cityscapes, in their four files. `decode`: OpenCV reads the files, on all cores.
`prepare`: `records.prepare_cityscapes` makes records of 128x256 pixels, or of the size
of the source. The runs alternate; each has worker processes of its own, whose start
counts.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

from benchmarks.frame_jobs import decode_frame, make_tree
from benchmarks.tables import format_spread, make_table, write_results
from mtl_keras.data import frames, records
from mtl_keras.experiments.environment import describe
from mtl_keras.workers import WorkerPool

TASKS = ("semantic", "instance", "depth")
SIZES = {"128x256": (128, 256), "source": None}


def decode(root):
    listed = frames.list_frames(root, "train", frames.LABEL_KINDS)
    with WorkerPool(len(listed)) as pool:
        for _ in pool.map(decode_frame, listed):
            pass


def measure(work, count, *arguments):
    started = time.perf_counter()
    work(*arguments)
    return count / (time.perf_counter() - started)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=360)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results")
    )
    arguments = parser.parse_args()
    rates = {"decode": [], **{name: [] for name in SIZES}}
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory) / "tree"
        image_bytes = make_tree(root, arguments.frames)
        for number in range(arguments.rounds):
            rates["decode"].append(measure(decode, arguments.frames, root))
            for name, size in SIZES.items():
                place = pathlib.Path(directory) / f"data-{name}-{number}"
                rates[name].append(
                    measure(
                        records.prepare_cityscapes,
                        arguments.frames,
                        root,
                        size,
                        TASKS,
                        place,
                    )
                )
    rows = []
    for name, found in rates.items():
        shares = [100 * rate / base for rate, base in zip(found, rates["decode"])]
        label = "decode only" if name == "decode" else f"prepare, {name}"
        rows.append(
            [label, format_spread(found, 3), f"{statistics.median(shares):.0f}"]
        )
    table = make_table(["", "frames per second", "% of decoding"], rows)
    machine = describe(())
    text = (
        f"{arguments.frames} frames of 1024x2048, {image_bytes / 2**20:.1f} MiB an "
        f"image, on {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['date']}.\n\n{table}"
    )
    print(text)
    results = {"machine": machine, "image_bytes": image_bytes, "rates": rates}
    write_results(arguments.output, "preparation", text, results)


if __name__ == "__main__":
    main()
