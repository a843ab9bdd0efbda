"""Damages what the package reads, and looks that each time ends in the right data or
in one sentence.

    python -m benchmarks.fuzz

Every kind of file is written once, small, and then damaged again and again, by a seeded
generator: bits flipped, bytes cut out, put in, repeated or made zero, the end cut off;
numbers and words of JSON exchanged; PNG headers changed with their checksum set right.
A mutation passes if reading ends in a `UserError` of one line, or in data that are
right: those from before, or for formats without a checksum what an independent reader
finds in the damaged file. It also has to end within `SECONDS` and `MEGABYTES` more
memory. Every failure is printed with its kind and seed; the exit status then is 1.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import zipfile
import zlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from mtl_keras.data import arrays, frames  # noqa: E402
from mtl_keras.errors import UserError  # noqa: E402
from mtl_keras.serving.pictures import read_picture  # noqa: E402

SECONDS = 20
MEGABYTES = 1000
SIZE = (32, 64)
LABEL_KINDS = frames.LABEL_KINDS


class WrongData(Exception):
    """What was read is neither what was written nor what the file holds."""


def damage(content: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four of them, or a part, changed."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        start = rng.randrange(len(data))
        end = min(len(data), start + rng.choice((1, 4, 64, 1024)))
        kind = rng.choice(("flip", "flip", "flip", "zero", "cut", "repeat", "end"))
        if kind == "flip":
            data[start] ^= 1 << rng.randrange(8)
        elif kind == "zero":
            data[start:end] = bytes(end - start)
        elif kind == "cut":
            del data[start:end]
        elif kind == "repeat":
            data[end:end] = data[start:end]
        else:
            del data[start:]
    return bytes(data)


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON object with a value exchanged, a key taken away, or damaged bytes."""
    if rng.random() < 0.3:
        return damage(content, rng)
    values = json.loads(content)
    if not isinstance(values, dict) or not values:
        return damage(content, rng)
    key = rng.choice([*values])
    odd = (None, True, -1, 0, 1e308, 10**30, "", "x", [], [1], {}, {"a": 1}, "NaN")
    if rng.random() < 0.2:
        del values[key]
    else:
        values[key] = rng.choice(odd)
    if rng.random() < 0.1:
        values["unknown"] = 1
    return json.dumps(values).encode()


def change_header(content: bytes, rng: random.Random) -> bytes:
    """A PNG with another size, depth or colour type, and the checksum of that."""
    header = bytearray(content[12:29])
    if rng.random() < 0.6:
        side = rng.choice((0, 1, 31, 33, 4000, 100_000, 2**31 - 1))
        place = 4 + 4 * rng.randrange(2)
        header[place : place + 4] = struct.pack(">I", side)
    else:
        header[rng.choice((12, 13, 16))] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16))
    checked = struct.pack(">I", zlib.crc32(header))
    return content[:12] + bytes(header) + checked + content[33:]


def write_tree(root: pathlib.Path) -> None:
    """A tree of two frames with all kinds of labels."""
    from mtl_keras.cityscapes import frame_path

    rng = np.random.default_rng(0)
    for number in range(2):
        name = f"zurich_{number:06d}_000019"
        found = {
            "image": rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8),
            "semantic": rng.choice([0, 7, 26], SIZE).astype(np.uint8),
            "instance": rng.choice([0, 7, 26001], SIZE).astype(np.uint16),
            "disparity": rng.integers(0, 20000, SIZE).astype(np.uint16),
        }
        for kind, array in found.items():
            path = root / frame_path("", "train", name, kind, "zurich")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", array)[1].tobytes())


class Trees:
    """A PNG of a tree; read by `frames`."""

    def __init__(self, place):
        self.root = place / "tree"
        write_tree(self.root)
        self.paths = sorted(self.root.rglob("*.png"))
        self.before = self.read()

    def read(self):
        listed = frames.list_frames(self.root, "train", LABEL_KINDS)
        return {files.frame_id: frames.read_frame(files, None)[0] for files in listed}

    def run(self, rng):
        path = rng.choice(self.paths)
        content = path.read_bytes()
        change = damage if rng.random() < 0.8 else change_header
        path.write_bytes(change(content, rng))
        try:
            compare(self.before, self.read())
        finally:
            path.write_bytes(content)


class Archives(Trees):
    """The archives of a tree; read in place."""

    def __init__(self, place):
        source, root = place / "unpacked", place / "zips"
        write_tree(source)
        root.mkdir()
        for folder in source.iterdir():
            with zipfile.ZipFile(root / f"{folder.name}_trainvaltest.zip", "w") as file:
                for path in sorted(folder.rglob("*.png")):
                    file.write(path, path.relative_to(source))
        self.root, self.paths = root, sorted(root.glob("*.zip"))
        self.before = self.read()

    def run(self, rng):
        path = rng.choice(self.paths)
        content = path.read_bytes()
        path.write_bytes(damage(content, rng))
        try:
            found = self.read()
            # A frame whose name is damaged is another frame.
            compare({k: v for k, v in self.before.items() if k in found}, found)
        finally:
            path.write_bytes(content)


def compare(before, found):
    """Raises `WrongData` where frames of one name differ."""
    for name, frame in before.items():
        for kind, array in frame.items():
            if name not in found or not np.array_equal(array, found[name][kind]):
                raise WrongData(f"{kind} of {name}")


class Arrays:
    """An array of MTAN's folder, which has no checksum: NumPy says what it holds."""

    def __init__(self, place):
        self.root = place / "arrays"
        write_tree(place / "for_arrays")
        (files, *_) = frames.list_frames(place / "for_arrays", "train", LABEL_KINDS)
        arrays.write_arrays(
            self.root / "train", 0, frames.read_frame(files, None)[0], 64
        )

    def run(self, rng):
        folders = {"image": "image", "semantic": "label_7", "disparity": "depth"}
        kind = rng.choice([*folders])
        path = self.root / "train" / folders[kind] / "0.npy"
        content = path.read_bytes()
        path.write_bytes(damage(content, rng))
        try:
            (files,) = arrays.list_arrays(self.root, "train", folders)
            found = arrays.read_arrays(files)[kind]
            held = np.load(path, allow_pickle=False).astype(np.float64)
            scale = {"image": 255, "disparity": 65535}.get(kind)
            held = held.reshape(found.shape)
            if scale and np.abs(np.clip(held, 0, 1) * scale - found).max() > 0.5001:
                raise WrongData(str(path))
        finally:
            path.write_bytes(content)


class Pictures:
    """A picture that predict.py reads."""

    def __init__(self, place):
        place.mkdir(parents=True, exist_ok=True)
        self.path = place / "picture.png"
        image = np.random.default_rng(1).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
        cv2.imwrite(str(self.path), image)
        self.before = image[..., ::-1]

    def run(self, rng):
        content = self.path.read_bytes()
        is_header = rng.random() < 0.2
        self.path.write_bytes((change_header if is_header else damage)(content, rng))
        try:
            found = read_picture(self.path)
            if not is_header and not np.array_equal(found, self.before):
                raise WrongData(str(self.path))
        finally:
            self.path.write_bytes(content)


class Arguments:
    """Command lines of train.py."""

    VALUES = (
        *("0", "1", "-1", "1e400", "nan", "", "x", "99999999999999999999", "semantic"),
        *(
            "semantic=1,depth=2",
            "128x256",
            "100000x100000",
            "0x0",
            "1,0",
            ",",
            "=",
            "é",
        ),
        *("depth,depth", "A/all", "demo", "/dev/null", "{x}", "auto", "True", "0.5"),
    )

    def __init__(self, place):
        import dataclasses

        from mtl_keras.experiments.options import SeriesOptions

        self.names = [field.name for field in dataclasses.fields(SeriesOptions)]

    def run(self, rng):
        from mtl_keras.experiments.arguments import flag_of
        from mtl_keras.experiments.setup import check_options
        from mtl_keras.experiments.tables import plan_runs

        argv = []
        for _ in range(rng.randint(1, 3)):
            argv.append(flag_of(rng.choice(self.names)))
            if rng.random() < 0.9:
                argv.append(rng.choice(self.VALUES))
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                planned = plan_runs(argv)
        except SystemExit as error:
            last = said.getvalue().strip().splitlines()[-1]
            if error.code != 2 or "error:" not in last:
                raise WrongData(f"{argv} ends with {error.code}: {last}") from error
            raise UserError(last) from error
        for options in planned[:2]:
            check_options(options)


class RunFiles:
    """The small files of a trained run."""

    def __init__(self, place):
        from mtl_keras.commands import train
        from mtl_keras.experiments.options import TrainOptions
        from mtl_keras.experiments.problems import open_problem

        settings = {"dataset": "digits", "tasks": ("class", "reconstruction")}
        likelihoods = {"class": "softmax", "reconstruction": "gaussian"}
        self.options = TrainOptions(
            output=str(place / "run"),
            train_frames=32,
            batch_size=8,
            epochs=2,
            likelihoods=likelihoods,
            export=(),
            **settings,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            with contextlib.redirect_stderr(io.StringIO()):
                train.train(self.options, export=False)
        self.directory = place / "run"
        self.problem = open_problem(self.options)
        self.names = ["options.json", "history.csv", "epochs.csv", "result.json"]
        self.names += ["constant.json", "constant_result.json", "environment.json"]
        self.content = {n: (self.directory / n).read_bytes() for n in self.names}

    def run(self, rng):
        name = rng.choice(self.names)
        path, content = self.directory / name, self.content[name]
        change = damage_json if name.endswith(".json") else damage
        path.write_bytes(change(content, rng))
        try:
            self.read()
        finally:
            path.write_bytes(content)

    def read(self):
        from mtl_keras.experiments import comparison, evaluation, reports, runs, setup
        from mtl_keras.experiments.options import TrainOptions, read_options
        from mtl_keras.tasks import METRICS

        options = read_options(TrainOptions, self.directory / "options.json")
        setup.check_options(options)
        runs.check_directory(self.options)
        with contextlib.redirect_stderr(io.StringIO()):
            reports.write_run_report(self.directory)
        predictor = evaluation.load_constant_predictor(self.problem, self.directory)
        batch = next(iter(self.problem.make_batches("val", 2)))
        evaluation.ConstantBaseline(self.problem.make_metrics(), predictor).update(
            evaluation.Batch([], *batch)
        )
        comparison.read_scores([self.directory], METRICS)
        runs.read_result(self.directory / "constant_result.json")
        runs.find_best_scores(self.directory, options.tasks)


class CheckpointFiles(RunFiles):
    """The checkpoints of a trained run."""

    def __init__(self, place):
        from mtl_keras.experiments import setup

        super().__init__(place / "checkpointed")
        self.trainer = setup.build_trainer(self.problem)

    def run(self, rng):
        from mtl_keras.experiments import checkpoints, runs

        folder = self.directory / "checkpoints"
        paths = [folder / checkpoints.BEST, folder / checkpoints.BEST_CHECKSUMS]
        paths += sorted((folder / "last").iterdir())
        path = rng.choice(paths)
        content = path.read_bytes()
        changed = damage(content, rng)
        path.write_bytes(changed)
        try:
            if path.parent == folder:
                runs.restore_best(self.trainer, self.directory)
                if path.name == checkpoints.BEST and changed != content:
                    raise WrongData(f"{path} is damaged and taken for whole")
            elif changed != content:
                fault = checkpoints.find_damage(folder / "last")
                if not fault and json_of(path, changed) != json_of(path, content):
                    raise WrongData(f"{path} is damaged and taken for whole")
                if fault:
                    raise UserError(fault)
        finally:
            path.write_bytes(content)


def json_of(path, content):
    """What a file says: JSON as its values, whatever the spaces."""
    if path.suffix == ".json":
        with contextlib.suppress(ValueError):
            return json.loads(content)
    return content


class Records:
    """Records and what tfds keeps beside them: made again when they are damaged."""

    def __init__(self, place):
        self.place = place / "records"
        self.before = self.read()
        self.paths = sorted(p for p in self.place.rglob("*") if p.is_file())
        self.paths = [p for p in self.paths if p.name != "lock"]

    def read(self):
        from mtl_keras.data import pipelines, records

        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            builder = records.prepare_streets(SIZE, {"train": 2}, data_dir=self.place)
            tasks = ("semantic", "instance", "depth")
            batches = pipelines.make_dataset(builder, "train", tasks, "train_ids", 2)
            ((images, targets, masks),) = batches
        return {"0": {"image": images, **targets}, "1": masks}

    def run(self, rng):
        path = rng.choice(self.paths)
        content = path.read_bytes()
        path.write_bytes(damage(content, rng))
        try:
            compare(self.before, self.read())
        finally:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


class Steps:
    """The batch of a step that was kept for `train.py --replay`."""

    def __init__(self, place):
        from mtl_keras.experiments import divergence

        place.mkdir(parents=True)
        self.path = place / divergence.BATCH
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (2, *SIZE, 3), np.uint8)
        parts = {"depth": rng.random((2, *SIZE, 1))}, {"depth": np.ones((2, *SIZE))}
        divergence.write_batch(self.path, 3, ["one", "two"], (image, *parts))
        self.before = divergence.read_batch(self.path)

    def run(self, rng):
        from mtl_keras.experiments import divergence

        content = self.path.read_bytes()
        self.path.write_bytes(damage(content, rng))
        try:
            step, frames, (image, targets, masks) = divergence.read_batch(self.path)
            if (step, frames) != self.before[:2]:
                raise WrongData(f"step {step}, frames {frames}")
            found = {"image": {"image": image}, "target": targets, "mask": masks}
            first, *others = self.before[2]
            parts = dict(zip(("image", "target", "mask"), ({"image": first}, *others)))
            compare(parts, found)
        finally:
            self.path.write_bytes(content)


KINDS = {  # with the share of the mutations
    Trees: 6,
    Archives: 4,
    Arrays: 3,
    Pictures: 4,
    Arguments: 8,
    RunFiles: 6,
    CheckpointFiles: 3,
    Records: 2,
    Steps: 1,
}


def fuzz(num_mutations, seed, place, kinds=KINDS):
    """Returns the outcomes, `{(kind, outcome): count}`, and the failures as text."""
    outcomes, failures = collections.Counter(), []
    shares = sum(kinds.values())
    for kind, share in kinds.items():
        target = kind(place / kind.__name__)
        count = -(-num_mutations * share // shares)
        for number in range(seed, seed + count):
            outcome = _try(target, random.Random(f"{kind.__name__} {number}"))
            outcomes[kind.__name__, outcome.partition(":")[0]] += 1
            if not outcome.startswith(("right", "refused")):
                failures.append(f"{kind.__name__}, seed {number}: {outcome}")
        shutil.rmtree(place / kind.__name__, ignore_errors=True)
    return outcomes, failures


def _try(target, rng):
    def too_long(*_):
        raise TimeoutError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        target.run(rng)
        outcome = "right"
    except UserError as error:
        is_one = str(error).strip() and "Traceback" not in str(error)
        outcome = "refused" if is_one else f"no sentence: {error}"
    except TimeoutError:
        outcome = f"too long: {time.perf_counter() - started:.0f} s"
    except Exception as error:
        outcome = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return f"too large: {grown:.0f} MB" if grown > MEGABYTES else outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--mutations", type=int, default=520)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[k.__name__ for k in KINDS])
    options = parser.parse_args()
    kinds = {k: share for k, share in KINDS.items() if k.__name__ in options.only}
    with tempfile.TemporaryDirectory() as place:
        outcomes, failures = fuzz(
            options.mutations, options.seed, pathlib.Path(place), kinds
        )
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:16} {outcome:12} {count}")
    total = sum(outcomes.values())
    print(f"{total} mutations, {len(failures)} failures")
    print("\n".join(failures))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
