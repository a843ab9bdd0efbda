"""Predict pictures: classes, objects and depth, each at the picture's own size.

    python predict.py photo.jpg holiday/ --output answers      # with runs/demo
    python predict.py runs/original street.png --camera 2262.52,0.209313
    python predict.py saved_model "*.png" --only classes,json

The first argument may name the model: a run of train.py, or a SavedModel.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import glob
import itertools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtl_keras.cityscapes import CAMERA, IMAGE_SIZE
from mtl_keras.commands.console import start_tensorflow
from mtl_keras.data.batches import limit_batch
from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import parse_options
from mtl_keras.experiments.kinds import KINDS
from mtl_keras.experiments.options import (
    DEFAULT_MODEL,
    AppOptions,
    PredictOptions,
    TrainOptions,
    check_clustering,
    read_options,
)
from mtl_keras.workers import count_cores

if TYPE_CHECKING:  # what takes seconds to import waits until the options are read
    import numpy as np

    from mtl_keras.serving.answers import Answer, StereoCamera
    from mtl_keras.serving.models import ServedModel
    from mtl_keras.serving.videos import Video

# Files of models that cannot be used here; they stand alone or in a folder.
OTHER_MODELS = (".onnx", ".tflite", ".keras", ".h5", ".pb")
WHEN_INTERRUPTED = "Start again with the pictures that are left, or with --overwrite."


def main(argv: Sequence[str] | None = None) -> None:
    """Predicts the pictures that the command line names."""
    options = parse_options(PredictOptions, argv, positional=("inputs",))
    model_path, names = split_inputs(options.inputs)
    check_clustering(options.method, options.method_options)
    start_tensorflow(options.verbose)
    predict(options, model_path, names)


def split_inputs(inputs: Sequence[str]) -> tuple[pathlib.Path, list[str]]:
    """The model and the pictures that the arguments name."""
    names = list(inputs)
    model = pathlib.Path(DEFAULT_MODEL)
    for name in names:
        check_is_no_other_model(pathlib.Path(name))
    if names and is_model(pathlib.Path(names[0])):
        model = pathlib.Path(names.pop(0))
    elif not is_model(model):
        raise UserError(
            f"There is no model: neither is {names[0] if names else 'an argument'} a "
            f"run or a SavedModel, nor is there a run in {model}; train one with "
            "train.py first."
        )
    elif names and not pathlib.Path(names[0]).exists() and not glob.glob(names[0]):
        raise UserError(
            f"There is no {names[0]}; the first argument is the model, a run of "
            "train.py or a SavedModel, or else a picture, a folder or a pattern."
        )
    if not names:
        raise UserError("There is nothing to predict; name pictures or their folder.")
    return model, names


def check_is_no_other_model(path: pathlib.Path) -> None:
    """Raises `UserError` for a model that is neither a run nor a SavedModel, and for
    the folder of one."""
    files = [path]
    if path.is_dir() and not is_model(path):
        files = [path / "model.onnx", path / "model.tflite"]
    for file in files:
        if file.suffix.lower() in OTHER_MODELS and file.is_file():
            raise UserError(
                f"{file} is a file of a model; only a run of train.py or the folder "
                "of a SavedModel can be used here, so name one of these."
            )


def is_model(path: pathlib.Path) -> bool:
    """Whether a path is a run directory or a SavedModel."""
    return (path / "options.json").is_file() or (path / "saved_model.pb").is_file()


def predict(
    options: PredictOptions, model_path: pathlib.Path, names: Sequence[str]
) -> None:
    """Predicts pictures; exit status 1 if some of them could not be read."""
    from mtl_keras.serving import videos
    from mtl_keras.serving.pictures import (
        describe_passed_over,
        find_pictures,
        name_answers,
    )

    paths = find_pictures(names)
    directory = pathlib.Path(options.output)
    stems = name_answers(paths)
    is_video = {path: path.suffix.lower() in videos.SUFFIXES for path in paths}
    check_output(directory, stems, is_video, options)
    print(f"The model is {model_path}.")
    if note := describe_passed_over(names):
        print(f"{note} Name folders and videos to predict them.", file=sys.stderr)
    model, camera_of = open_model(model_path, options)
    check_tasks(model, options.only)
    directory.mkdir(parents=True, exist_ok=True)
    num_written = 0
    if pictures := [path for path in paths if not is_video[path]]:
        started = time.perf_counter()
        all_stems = {path: stems[path] for path in pictures}
        num_written = predict_all(options, model, camera_of, all_stems)
        rate = num_written / (time.perf_counter() - started)
        left_out = len(pictures) - num_written
        print(
            f"{num_written} {'picture' if num_written == 1 else 'pictures'} predicted "
            f"to {directory}, {rate:.3g} per second"
            + (f"; {left_out} left out." if left_out else ".")
        )
    for path in [path for path in paths if is_video[path]]:
        try:
            predict_video(options, model, camera_of, videos.Video(path), stems[path])
            num_written += 1
        except UserError as error:
            print(f"Left out: {error}", file=sys.stderr)
    if num_written < len(paths):
        sys.exit(1)


def fill_in(options: PredictOptions, model: ServedModel) -> PredictOptions:
    """The options with the batch size that suits the model, if none is given."""
    batch_size = options.batch_size or limit_batch(8, model.image_size)
    return dataclasses.replace(options, batch_size=batch_size)


def predict_all(
    options: PredictOptions,
    model: ServedModel,
    camera_of: Callable[[np.ndarray], StereoCamera | None],
    stems: Mapping[pathlib.Path, str],
) -> int:
    """Reads, predicts and writes, all three at the same time.

    Args:
        options: `PredictOptions`.
        model: `ServedModel`.
        camera_of: as `open_model` returns it.
        stems: the pictures, and what the names of their files begin with.

    Returns:
        The number of pictures that could be read.
    """
    from tqdm import tqdm

    options = fill_in(options, model)
    num_written = 0
    with (
        concurrent.futures.ThreadPoolExecutor(count_cores()) as pool,
        tqdm(total=len(stems), unit="picture", desc="predict") as bar,
    ):
        writing: collections.deque[concurrent.futures.Future] = collections.deque()
        for batch in read_batches(pool, [*stems], options.batch_size):
            for _, problem in batch:
                if isinstance(problem, UserError):
                    bar.write(f"Left out: {problem}", file=sys.stderr)
                    bar.update()
            batch = [item for item in batch if not isinstance(item[1], UserError)]
            num_written += len(batch)
            all_outputs = model.predict([picture for _, picture in batch])
            for (path, picture), outputs in zip(batch, all_outputs):
                job = (picture, outputs, model.label_set, camera_of(picture))
                writing.append(
                    pool.submit(write_answer, options, path, stems[path], *job)
                )
            while len(writing) > 2 * options.batch_size:
                writing.popleft().result()
                bar.update()
        for future in writing:
            future.result()
            bar.update()
    return num_written


def predict_video(
    options: PredictOptions,
    model: ServedModel,
    camera_of: Callable[[np.ndarray], StereoCamera | None],
    video: Video,
    stem: str,
) -> None:
    """Writes a video `stem.mp4` of the pictures to look at, at the rate of the given
    one."""
    from tqdm import tqdm

    options = fill_in(options, model)
    from mtl_keras.serving import videos

    with (
        concurrent.futures.ThreadPoolExecutor(count_cores()) as pool,
        tqdm(total=video.num_frames or None, unit="frame", desc=video.path.name) as bar,
    ):

        def draw_all():
            frames = iter(video)
            while batch := [*itertools.islice(frames, options.batch_size)]:
                all_outputs = model.predict(batch)
                cameras = map(camera_of, batch)
                draw = functools.partial(draw_frame, options, label_set=model.label_set)
                yield from pool.map(draw, batch, all_outputs, cameras)
                bar.update(len(batch))

        target = pathlib.Path(options.output) / f"{stem}.mp4"
        videos.write_video(target, draw_all(), video.rate)
    print(f"{target} is written.")


def draw_frame(
    options: PredictOptions,
    picture: np.ndarray,
    outputs: dict[str, np.ndarray],
    camera: StereoCamera | None,
    label_set: str,
) -> np.ndarray:
    """A frame of the video, `(h, w, 3)` uint8 RGB."""
    from mtl_keras.figures.panel import draw_panel

    found = make_answer_for(options, picture, outputs, label_set, camera)
    return draw_panel(picture, *found[:3], found.objects, True, label_set)


def open_model(
    path: pathlib.Path, options: PredictOptions | AppOptions
) -> tuple[ServedModel, Callable[[np.ndarray], StereoCamera | None]]:
    """The model, and a function from a picture to the camera it was taken with.

    That is `--camera`'s; or, if the model was trained on a tree of Cityscapes, that of
    Cityscapes for pictures of its size; or not known.
    """
    from mtl_keras.experiments import runs, setup
    from mtl_keras.experiments.problems import open_problem
    from mtl_keras.serving import models
    from mtl_keras.serving.answers import StereoCamera

    is_of_cityscapes = False
    if (path / "options.json").is_file():
        trained = read_options(TrainOptions, path / "options.json")
        is_of_cityscapes = bool(trained.data)
        trainer = setup.build_trainer(open_problem(trained))
        runs.restore_best(trainer, path)
        model = models.serve_network(trainer.network, trained.label_set, str(path))
    else:
        model = models.load_saved_model(path)

    def camera_of(picture):
        if options.camera:
            return StereoCamera(*options.camera)
        if is_of_cityscapes and picture.shape[:2] == IMAGE_SIZE:
            return StereoCamera(CAMERA.fx, CAMERA.baseline)
        return None

    return model, camera_of


def check_tasks(model: ServedModel, kinds: Sequence[str]) -> None:
    """Raises `UserError` for kinds of files that the model lacks the tasks for."""
    for kind in kinds:
        for task in KINDS[kind].needs:
            if task not in model.tasks:
                raise UserError(
                    f"--only {kind} needs the task {task}, which {model.source} does "
                    f"not have ({', '.join(model.tasks)})."
                )


def check_output(
    directory: pathlib.Path,
    stems: Mapping[pathlib.Path, str],
    is_video: Mapping[pathlib.Path, bool],
    options: PredictOptions,
) -> None:
    """Raises `UserError` if something would be overwritten without `--overwrite`, if
    answers would be written beside the inputs, or two to one file, or if `--only`
    leaves out the pictures that a video is made of."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is not a directory; choose another --output.")
    kinds = options.only or tuple(KINDS)
    endings = [KINDS[kind].ending for kind in kinds]
    sources: dict[str, pathlib.Path] = {}
    for path, stem in stems.items():
        if is_video[path] and "picture" not in kinds:
            raise UserError(f"{path} becomes a video; --only has to name picture.")
        # The next time they would be taken for inputs.
        if directory.resolve() in (path.parent.resolve(), path.resolve().parent):
            raise UserError(
                f"The input {path} is in {directory}, where answers would mix with "
                "inputs; choose another --output."
            )
        for ending in [".mp4"] if is_video[path] else endings:
            target = directory / f"{stem}{ending}"
            other = sources.setdefault(target.name.lower(), path)
            if other != path:
                raise UserError(
                    f"{other} and {path} would both be written to {target}; predict "
                    "them one by one, each into an --output of its own."
                )
            if target.exists() and not options.overwrite:
                raise UserError(
                    f"{target} exists; choose another --output, or give --overwrite."
                )


def read_batches(
    pool: concurrent.futures.Executor, paths: Sequence[pathlib.Path], batch_size: int
) -> Iterator[list[tuple[pathlib.Path, Any]]]:
    """Batches of paths with their pictures, or with the `UserError` of those that
    cannot be read; the next batch is read meanwhile."""
    from mtl_keras.serving.pictures import read_picture

    def read(path):
        try:
            return path, read_picture(path)
        except UserError as error:
            return path, error

    remaining = iter(paths)

    def submit():
        return [pool.submit(read, p) for p in itertools.islice(remaining, batch_size)]

    current = submit()
    while current:
        following = submit()
        yield [future.result() for future in current]
        current = following


def write_answer(
    options: PredictOptions,
    path: pathlib.Path,
    stem: str,
    picture: np.ndarray,
    outputs: dict[str, np.ndarray],
    label_set: str,
    camera: StereoCamera | None,
) -> None:
    """Turns the outputs for a picture into its files `stem...`, and writes them."""
    from mtl_keras.figures.panel import draw_panel
    from mtl_keras.png import encode_png
    from mtl_keras.serving import answers

    kinds = options.only or tuple(KINDS)
    found = make_answer_for(options, picture, outputs, label_set, camera)
    files = answers.encode_answer(
        found,
        kinds,
        picture=str(path),
        height=picture.shape[0],
        width=picture.shape[1],
        camera=camera and camera._asdict(),
    )
    if "picture" in kinds:
        panel = draw_panel(
            picture,
            found.classes,
            found.instances,
            found.disparity,
            found.objects,
            label_set=label_set,
        )
        files["picture"] = encode_png(panel)
    answers.write_files(
        pathlib.Path(options.output),
        {f"{stem}{KINDS[kind].ending}": files[kind] for kind in files},
    )


def make_answer_for(
    options: PredictOptions,
    picture: np.ndarray,
    outputs: dict[str, np.ndarray],
    label_set: str,
    camera: StereoCamera | None,
) -> Answer:
    """What the outputs say about a picture, as far as its files need it."""
    from mtl_keras.serving import answers

    needed = set().union(*(KINDS[kind].tasks for kind in options.only or KINDS))
    return answers.make_answer(
        {task: values for task, values in outputs.items() if task in needed},
        picture.shape[:2],
        label_set,
        camera,
        method=options.method,
        left_over=options.left_over,
        **options.method_options,
    )
