"""Run directories: what is in one, and the trainer that belongs to it.

options.json     the options of train.py
checkpoints/     best.weights.h5, and last/ to go on from
result.json      the scores after the last step; diverged.txt if there are none
history.csv      losses, metrics, sigmas and weights by epoch
tensorboard/     the same for TensorBoard
constant.json    the constant predictor of the training split, and its scores
lock             held by the process that trains
figures/  saved_model/  metrics.json  table.md
"""

import contextlib
import csv
import fcntl
import json
import math
import pathlib
import shutil

import h5py
import keras
import numpy as np

from mtl_keras.cli import (
    TrainOptions,
    differing_options,
    read_options,
    write_options,
)
from mtl_keras.errors import BusyError, DivergenceError, UserError
from mtl_keras.metrics import SplitScore
from mtl_keras.optimizers import Adam
from mtl_keras.recipes import DATASETS
from mtl_keras.report import ProgressReport
from mtl_keras.training import MultiTaskTrainer
from mtl_keras.weighting import FixedWeighting, UncertaintyWeighting

# Oxford, cityscapestask/train.py: PyTorch's defaults, but for a patience of 5 and a
# threshold of 1e-3. PyTorch acts one validation later than Keras at equal patience, and
# its threshold is a share of the best loss, which is none for a total that may be
# negative: here it is absolute.
PLATEAU = {"factor": 0.1, "patience": 6, "min_delta": 1e-3}


def check_options(options):
    """Raises `UserError` for options that contradict one another."""
    for task in options.tasks:
        if task not in DATASETS[options.dataset]:
            raise UserError(
                f"--dataset {options.dataset} has the tasks "
                f"{', '.join(DATASETS[options.dataset])}; --tasks names {task}."
            )
    if options.data and options.dataset != "scenes":
        raise UserError(
            f"--data names a Cityscapes tree, which --dataset {options.dataset} does "
            "not read; leave one of them out."
        )
    if options.architecture == "kendall" and options.decoder == "direct":
        raise UserError(
            "--decoder direct is a form of the mtl architecture, not of kendall."
        )
    build_weighting(options)


def check_evaluation(options, trained):
    """Raises `UserError` for `EvaluateOptions` that a run has nothing for."""
    for name in ("instances", "predictions"):
        if getattr(options, name) and trained.dataset != "scenes":
            raise UserError(
                f"--{name} is about street scenes; {options.run} is a run on "
                f"{trained.dataset}."
            )
    for name in ("mask", "method", "left_over"):
        if getattr(options, name) != getattr(type(options)(), name):
            if not options.instances:
                raise UserError(
                    f"--{name.replace('_', '-')} is about objects; add --instances."
                )


def check_directory(options):
    """The run directory, which need not exist yet.

    Raises:
        UserError: if it holds a run with other options, or something else.
    """
    directory = pathlib.Path(options.output or f"runs/{options.recipe}")
    path = directory / "options.json"
    if path.exists():
        found = read_options(TrainOptions, path)
        differing = differing_options(found, options, ignored=("output", "resume"))
        if differing:
            changes = ", ".join(
                f"{flag} {old} there and {new} here"
                for flag, (old, new) in differing.items()
            )
            raise UserError(
                f"{directory} holds a run with other options ({changes}); choose "
                "another --output or remove that directory."
            )
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(
            f"{directory} exists and is no run of train.py; choose another --output."
        )
    return directory


@contextlib.contextmanager
def claim_directory(options, epochs):
    """Makes the run directory, or finds out whether to go on in it, and keeps other
    processes out of it.

    Args:
        options: `TrainOptions`.
        epochs: int. The epochs that the options ask for.

    Yields:
        The directory as a `pathlib.Path`.

    Raises:
        UserError: for an unfinished run that was not asked to be resumed, or as
            `check_directory` does.
        BusyError: if another process trains this run.
    """
    directory = check_directory(options)
    str(directory).encode()  # fails here, not after an epoch; TensorFlow wants UTF-8
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "options.json").exists():
            write_options(options, directory / "options.json")
        lock = open(directory / "lock", "w")
    except OSError as error:
        raise UserError(
            f"{directory} cannot be written ({error}); choose another --output."
        ) from error
    with lock:  # the end of the process, however it ends, lets go of it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"{directory} is being trained by another process; wait for it, or "
                "choose another --output."
            ) from error
        _repair_last_checkpoint(directory)
        is_begun = (directory / "checkpoints").exists()
        if is_begun and not (options.resume or is_trained(directory, epochs)):
            raise UserError(
                f"{directory} holds an unfinished run; go on with --resume, choose "
                "another --output or remove that directory."
            )
        yield directory


def _repair_last_checkpoint(directory):
    """Goes back an epoch if a crash damaged the last checkpoint."""
    last = directory / "checkpoints" / "last"
    weights, metadata = last / "latest.weights.h5", last / "training_metadata.json"
    if not metadata.exists():  # not even the first epoch was finished
        weights.unlink(missing_ok=True)
    elif not _is_readable(weights, metadata):
        backups = [path.with_name(path.name + ".bkp") for path in (weights, metadata)]
        if not _is_readable(*backups):
            raise UserError(
                f"{weights} is damaged and so is its backup; remove {directory} and "
                "train again."
            )
        print(f"{weights} is damaged; going on from the epoch before.")
        for backup, path in zip(backups, (weights, metadata)):
            shutil.copy(backup, path)


def _is_readable(weights, metadata):
    try:
        json.loads(metadata.read_text(encoding="utf-8"))["epoch"]
        h5py.File(weights).close()
    except (OSError, ValueError, KeyError):
        return False
    return True


def count_steps(options, num_frames):
    """Epochs, that is validations, and training steps an epoch.

    Epochs are of equal length: of `epoch_steps`, or of a pass over the frames, or a
    little shorter, so that they add up to `steps` or to `epochs` passes.

    Args:
        options: `TrainOptions`.
        num_frames: int. Frames in the training split.

    Raises:
        UserError: if there are fewer frames than asked for, or than a batch has.
    """
    if options.train_frames > num_frames:
        raise UserError(
            f"--train-frames asks for {options.train_frames} frames, but the training "
            f"split has {num_frames}."
        )
    batches = (options.train_frames or num_frames) // options.batch_size
    if batches == 0:
        raise UserError(
            f"There are {options.train_frames or num_frames} frames to train on, fewer "
            f"than a batch of {options.batch_size}; use a smaller --batch-size."
        )
    steps = options.steps or options.epochs * batches
    epochs = math.ceil(steps / (options.epoch_steps or batches))
    return epochs, math.ceil(steps / epochs)


def build_trainer(problem, weights=None):
    """Network, losses and weighting of a run, under its dtype policy.

    Args:
        problem: what `open_problem` returned.
        weights: initial weights of the network, see `build_network`.
    """
    options = problem.options
    keras.config.set_dtype_policy(options.precision)
    return MultiTaskTrainer(
        problem.build_network(weights),
        problem.make_losses(),
        build_weighting(options),
        problem.make_metrics(),
        options.sigma_learning_rate_factor,
    )


def build_weighting(options):
    """The `UncertaintyWeighting` or `FixedWeighting` of a run.

    Raises:
        UserError: if the weights or likelihoods do not fit the tasks.
    """
    if options.weighting == "fixed":
        equal = dict.fromkeys(options.tasks, 1.0 / len(options.tasks))
        weights = options.task_weights or equal
        if set(weights) != set(options.tasks):
            raise UserError(
                f"--task-weights gives weights for {', '.join(weights)}, but the "
                f"tasks are {', '.join(options.tasks)}."
            )
        if not any(weights.values()):
            raise UserError("--task-weights switches every task off.")
        return FixedWeighting(weights)
    if options.task_weights:
        raise UserError("--task-weights needs --weighting fixed.")
    missing = [task for task in options.tasks if task not in options.likelihoods]
    if missing:
        raise UserError(f"--likelihoods names no likelihood for {missing[0]}.")
    variance = np.random.default_rng(options.seed).uniform(
        *options.initial_variance, len(options.tasks)
    )
    return UncertaintyWeighting(
        {task: options.likelihoods[task] for task in options.tasks},
        {task: float(np.log(v)) for task, v in zip(options.tasks, variance)},
    )


def build_optimizer(options, num_steps):
    """The optimizer of a run, with its learning rate schedule, except for that of
    `"plateau"`, which is a callback."""
    rate = options.learning_rate
    if options.schedule == "poly":
        rate = keras.optimizers.schedules.PolynomialDecay(rate, num_steps, 0.0, 0.9)
    elif options.schedule == "cosine":
        # Rising first: at full rate, Adam's first steps kill units of the heads.
        warmup = num_steps // 10
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, num_steps - warmup, warmup_target=rate, warmup_steps=warmup
        )
    decay = options.weight_decay or None
    if options.optimizer == "sgd":
        return keras.optimizers.SGD(rate, 0.9, nesterov=True, weight_decay=decay)
    return Adam(rate, weight_decay=decay)


def choose_jit(options):
    """Whether to compile with XLA; says so if it was left to us."""
    if options.jit != "auto":
        return options.jit == "on"
    device = keras.distribution.list_devices()[0].split(":")[0]
    use_jit = device != "cpu"
    state = "on" if use_jit else "off"
    print(f"--jit auto: XLA {state}, this machine trains on {device}.")
    return use_jit


class ResumablePlateau(keras.callbacks.ReduceLROnPlateau):
    """Keras's `ReduceLROnPlateau` on the validation loss, which starts where an
    interrupted training left it.

    Keras forgets how long the loss has not fallen. That follows from the losses so
    far, so this callback goes through them again.

    Args:
        losses: list of float. The validation losses of the finished epochs.
        **kwargs: passed on to `keras.callbacks.ReduceLROnPlateau`.
    """

    def __init__(self, losses, **kwargs):
        super().__init__(monitor="val_loss", mode="min", **kwargs)
        self.losses = losses

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        for epoch, loss in enumerate(self.losses):
            self.on_epoch_end(epoch, {"val_loss": loss})


def make_callbacks(directory, tasks, num_steps, schedule="constant"):
    """Checkpoints, logs and progress of a run, all resumable, and the schedule
    `"plateau"`.

    The learning rate of an epoch is then in `history.csv`, too.
    """
    monitor, mode = best_metric(tasks)
    history = directory / "history.csv"
    plateau = []
    if schedule == "plateau":
        losses = [row["val_loss"] for row in read_history(directory)]
        plateau = [ResumablePlateau(losses, **PLATEAU)]
    return [
        keras.callbacks.TerminateOnNaN(raise_error=True),
        ProgressReport(num_steps),
        *plateau,  # before what logs and saves the learning rate
        keras.callbacks.ModelCheckpoint(
            directory / "checkpoints" / "best.weights.h5",
            monitor=monitor,
            mode=mode,
            save_best_only=True,
            save_weights_only=True,
            initial_value_threshold=_best_so_far(history, monitor, mode),
        ),
        keras.callbacks.CSVLogger(history, append=True),
        keras.callbacks.TensorBoard(directory / "tensorboard", write_graph=False),
        # The last one: what it marks as done has been logged and saved.
        keras.callbacks.BackupAndRestore(
            directory / "checkpoints" / "last",
            double_checkpoint=True,
            delete_checkpoint=False,
        ),
    ]


@contextlib.contextmanager
def explain_divergence(directory):
    """Turns the end of a run whose loss is no longer finite into a
    `DivergenceError`."""
    try:
        yield
    except RuntimeError as error:
        if "NaN or Inf loss" not in str(error):
            raise
        message = (
            f"The loss of {directory} became infinite or NaN after epoch "
            f"{finished_epochs(directory)}; train again with a lower "
            "--learning-rate, in another --output. The checkpoints before that are "
            "kept."
        )
        (directory / "diverged.txt").write_text(
            message + "\n", encoding="utf-8", errors="surrogateescape"
        )
        raise DivergenceError(message) from error


def best_metric(tasks):
    """What the best checkpoint is best at, and whether `max` or `min` is better."""
    for task, metric in {"semantic": "miou", "class": "accuracy"}.items():
        if task in tasks:
            return f"val_{task}/{metric}", "max"
    return f"val_{tasks[0]}/mean_abs", "min"


def finished_epochs(directory):
    """Number of epochs that the last checkpoint holds."""
    path = directory / "checkpoints" / "last" / "training_metadata.json"
    return json.loads(path.read_text(encoding="utf-8"))["epoch"] if path.exists() else 0


def drop_unfinished_epochs(directory):
    """Forgets what was logged after the last checkpoint was written."""
    path = directory / "history.csv"
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        kept = finished_epochs(directory)
        path.write_bytes(b"".join(lines[: kept + 1]) if kept else b"")


def read_history(directory):
    """Rows of `history.csv`, `{column: float}`; empty if there is none yet."""
    path = pathlib.Path(directory) / "history.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {key: float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def write_result(directory):
    """Keeps the last scores on the validation split, what came of the run, and no
    second copy of the last checkpoint, which no crash can damage any more."""
    *_, last = read_history(directory)
    scores = {
        key.removeprefix("val_"): value
        for key, value in last.items()
        if key.startswith("val_")
    }
    unfinished = directory / "result.json.part"
    unfinished.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(directory / "result.json")  # whole, whenever it is there
    (directory / "diverged.txt").unlink(missing_ok=True)
    for path in (directory / "checkpoints" / "last").glob("*.bkp"):
        path.unlink()


def write_constant_predictor(problem, directory):
    """Keeps the constant predictor of the training split, and what it scores on the
    validation split."""
    predictor = problem.fit_constant_predictor()
    (directory / "constant.json").write_text(
        json.dumps(vars(predictor)), encoding="utf-8"
    )
    score = SplitScore(problem.make_metrics())
    for _, targets, masks in problem.make_batches("val", problem.options.batch_size):
        score.update(targets, predictor.predict(targets), masks)
    path = directory / "constant_result.json"
    path.write_text(json.dumps(score.results(), indent=2) + "\n", encoding="utf-8")


def is_trained(directory, epochs):
    """Whether the training of a run is complete."""
    return finished_epochs(directory) >= epochs


def restore_best(trainer, directory):
    """Loads the best checkpoint of a run.

    Raises:
        UserError: if there is none or it does not fit the options.
    """
    path = pathlib.Path(directory) / "checkpoints" / "best.weights.h5"
    if not path.exists():
        raise UserError(f"{path} is missing; train the run with train.py first.")
    load_checkpoint(trainer, path)


def load_checkpoint(trainer, path):
    """Loads weights, or raises `UserError` if they do not fit the trainer."""
    try:
        trainer.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path} does not fit the options in {path.parents[1] / 'options.json'} "
            f"({reason}); train the run again in another directory."
        ) from error


def predict_batch(network, images, batch_size):
    """Predicts a batch by task; a last, smaller one is filled up to `batch_size` and
    cut again, since the network would be traced anew for its size."""
    filled = np.resize(images, (batch_size, *images.shape[1:]))
    predictions = network.predict_on_batch(filled)
    return {task: maps[: len(images)] for task, maps in predictions.items()}


def load_constant_predictor(problem, directory):
    """The constant predictor that training left in the run directory."""
    path = pathlib.Path(directory) / "constant.json"
    if not path.exists():
        raise UserError(f"{path} is missing; train the run with train.py first.")
    return problem.load_constant_predictor(json.loads(path.read_text(encoding="utf-8")))


def _best_so_far(history, monitor, mode):
    values = [row[monitor] for row in read_history(history.parent) if monitor in row]
    if not values:
        return None
    return max(values) if mode == "max" else min(values)
