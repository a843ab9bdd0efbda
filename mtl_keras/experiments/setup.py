"""From the options of a run to its trainer, optimizer and steps."""

import math

import keras
import numpy as np

from mtl_keras.data.arrays import is_array_folder
from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import flag_of
from mtl_keras.experiments.options import (
    EvaluateOptions,
    TrainOptions,
    check_clustering,
)
from mtl_keras.experiments.problems import Problem
from mtl_keras.experiments.recipes import DATASETS
from mtl_keras.experiments.schedules import build_schedule
from mtl_keras.hints import Size
from mtl_keras.optimizers import FusedAdam
from mtl_keras.serving.formats import check_format
from mtl_keras.tasks import tasks_of
from mtl_keras.training import MultiTaskTrainer
from mtl_keras.weighting import FixedWeighting, UncertaintyWeighting
from mtl_keras.weightings import (
    DynamicWeightAverage,
    GeometricMean,
    LogSum,
    RandomWeighting,
    SoftOptimalWeighting,
)


def distribute(options: TrainOptions) -> None:
    """Shares every batch among the devices of this machine, if `--strategy` says so.

    JAX computes as if there were one device: sums over a batch, those of batch
    normalization included, are over all of it. Must come before the network is built.

    Raises:
        UserError: on other backends, and for batches that cannot be shared evenly.
    """
    if options.strategy == "none":
        keras.distribution.set_distribution(None)
        return
    if keras.backend.backend() != "jax":
        raise UserError(
            "--strategy mirrored needs JAX (KERAS_BACKEND=jax): on TensorFlow, batch "
            "normalization would see the share of one device alone, and other numbers "
            "would come out than on one device."
        )
    devices = keras.distribution.list_devices()
    if options.batch_size % len(devices):
        raise UserError(
            f"--batch-size {options.batch_size} cannot be shared evenly by the "
            f"{len(devices)} devices of this machine; choose a multiple of "
            f"{len(devices)}."
        )
    print(f"--strategy mirrored: {len(devices)} devices share every batch.")
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    )


def check_options(options: TrainOptions) -> None:
    """Raises `UserError` for options that contradict one another."""
    for task in options.tasks:
        if task not in tasks_of(DATASETS[options.dataset]):
            raise UserError(
                f"--dataset {options.dataset} has the tasks "
                f"{', '.join(tasks_of(DATASETS[options.dataset]))}; --tasks names "
                f"{task}."
            )
    if options.data and options.dataset != "scenes":
        raise UserError(
            f"--data names a Cityscapes tree, which --dataset {options.dataset} does "
            "not read; leave one of them out."
        )
    _check_data(options)
    if "instance" in options.tasks and options.label_set == "categories":
        raise UserError(
            "--label-set categories does not tell the classes of objects apart, which "
            "objects are found in; leave out the task instance, or choose --label-set "
            "train_ids."
        )
    if options.architecture == "kendall" and options.decoder == "direct":
        raise UserError(
            "--decoder direct is a form of the mtl architecture, not of kendall."
        )
    for format in options.export:
        check_format(format)
    build_weighting(options)


def _check_data(options):
    """Raises `UserError` for options that the data of a run have no use for."""
    defaults = type(options)()
    for name in ("records", "train_split", "skip_bad"):
        if getattr(options, name) != getattr(defaults, name) and not options.data:
            raise UserError(
                f"{flag_of(name)} is about frames of Cityscapes; name them with --data."
            )
    if is_array_folder(options.data):
        for name in ("records", "train_split", "skip_bad"):
            if getattr(options, name) != getattr(defaults, name):
                raise UserError(
                    f"{flag_of(name)} is about frames of Cityscapes, and --data names "
                    "MTAN's arrays; leave it out."
                )
    for name in ("crop", "scales", "jitter"):
        changed = getattr(options, name) != getattr(defaults, name)
        if changed and options.dataset != "scenes":
            raise UserError(
                f"{flag_of(name)} is about street scenes, and --dataset is "
                f"{options.dataset}; leave it out."
            )


def check_evaluation(options: EvaluateOptions, trained: TrainOptions) -> None:
    """Raises `UserError` for `EvaluateOptions` that a run has nothing for."""
    if options.data and trained.dataset != "scenes":
        raise UserError(
            f"--data names a Cityscapes tree, but {options.run} is a run on "
            f"{trained.dataset}; leave it out."
        )
    if is_array_folder(options.data) and trained.records != "resized":
        raise UserError(
            f"{options.run} was trained with --records source, and --data names MTAN's "
            "arrays, which have no other size; evaluate it on a Cityscapes tree."
        )
    if options.report != type(options)().report:
        raise UserError("--report is where --compare writes; add --compare RUN RUN.")
    for name in ("instances", "predictions", "submission"):
        if getattr(options, name) and trained.dataset != "scenes":
            raise UserError(
                f"--{name} is about street scenes; {options.run} is a run on "
                f"{trained.dataset}."
            )
    made = options.submission and "instance" in trained.tasks  # objects
    for name in ("object_classes", "method", "method_options", "left_over"):
        if getattr(options, name) != getattr(type(options)(), name):
            if not options.instances and (name == "object_classes" or not made):
                raise UserError(
                    f"--{name.replace('_', '-')} is about objects; add --instances."
                )
    if options.submission and trained.label_set == "categories":
        raise UserError(
            "--submission needs the classes of the benchmark, and the run was trained "
            "with --label-set categories."
        )
    if options.submission and is_array_folder(options.data or trained.data):
        raise UserError(
            "--submission needs the names of the frames, which MTAN's arrays do not "
            "have; name a Cityscapes tree with --data."
        )
    if options.submission and "semantic" not in trained.tasks:
        raise UserError(
            "--submission needs the task semantic, which the run was not trained for."
        )
    if options.instances:
        _check_objects(trained.tasks, options.object_classes)
    if options.instances or options.submission:
        check_clustering(options.method, options.method_options)


def _check_objects(tasks, object_classes):
    """Raises `UserError` if these tasks do not yield objects."""
    if "instance" not in tasks:
        raise UserError(
            "--instances needs the task instance, which the run was not trained for; "
            "train one with --tasks semantic,instance."
        )
    if "semantic" not in tasks and object_classes == "predicted":
        raise UserError(
            "--instances needs the task semantic, which the run was not trained for; "
            "look for objects in the true classes with --object-classes true."
        )


def plan_epochs(options: TrainOptions, num_frames: int) -> tuple[int, int]:
    """The number of epochs, that is of validations, and of training steps per epoch.

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


def build_trainer(
    problem: Problem,
    weights: str | None = None,
    image_size: Size | None = None,
    steps_per_epoch: int = 1,
) -> MultiTaskTrainer:
    """Network, losses and weighting of a run, under its dtype policy.

    Args:
        problem: what `open_problem` returned.
        weights: initial weights of the network, see `build_network`.
        image_size: `(height, width)` of the network. Defaults to that of whole frames.
        steps_per_epoch: int, of the training, if there is one.
    """
    options = problem.options
    keras.config.set_dtype_policy(options.precision)
    return MultiTaskTrainer(
        problem.build_network(weights, image_size),
        problem.make_losses(),
        build_weighting(options, steps_per_epoch),
        problem.make_metrics(),
        options.sigma_learning_rate_factor,
    )


def build_weighting(
    options: TrainOptions, steps_per_epoch: int = 1
) -> keras.layers.Layer:
    """The weighting of a run, a layer of `mtl_keras.weighting` or of
    `mtl_keras.weightings`.

    Args:
        options: `TrainOptions`.
        steps_per_epoch: int, training steps between two validations.

    Raises:
        UserError: if weights, priorities or likelihoods do not fit the tasks, or
            belong to another weighting.
    """
    if options.priorities and options.weighting != "learned":
        raise UserError("--priorities needs --weighting learned.")
    if options.temperature and options.weighting not in ("dwa", "uw-so"):
        raise UserError("--temperature needs --weighting dwa or uw-so.")
    for task in options.priorities:
        if task not in options.tasks:
            raise UserError(
                f"--priorities names {task}, but the tasks are "
                f"{', '.join(options.tasks)}."
            )
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
    if options.weighting != "learned":
        return _build_other_weighting(options, steps_per_epoch)
    missing = [task for task in options.tasks if task not in options.likelihoods]
    if missing:
        raise UserError(f"--likelihoods names no likelihood for {missing[0]}.")
    low, high = options.initial_variance
    rng = np.random.default_rng(options.seed)
    variance = rng.uniform(low, high, len(options.tasks))
    return UncertaintyWeighting(
        {task: options.likelihoods[task] for task in options.tasks},
        {task: float(np.log(v)) for task, v in zip(options.tasks, variance)},
        priorities=options.priorities,
    )


def _build_other_weighting(options, steps_per_epoch):
    tasks = options.tasks
    temperature = {"temperature": options.temperature} if options.temperature else {}
    if options.weighting == "dwa":
        return DynamicWeightAverage(tasks, steps_per_epoch, **temperature)
    if options.weighting == "rlw":
        return RandomWeighting(tasks, options.seed)
    if options.weighting == "uw-so":
        return SoftOptimalWeighting(tasks, **temperature)
    return {"gls": GeometricMean, "log-sum": LogSum}[options.weighting](tasks)


def build_optimizer(
    options: TrainOptions, num_steps: int
) -> keras.optimizers.Optimizer:
    """The optimizer of a run, with its learning rate schedule, except for that of
    `"plateau"`, which is a callback."""
    rate = build_schedule(options.schedule, options.learning_rate, num_steps)
    decay = options.weight_decay or None
    if options.optimizer == "sgd":
        return keras.optimizers.SGD(rate, 0.9, nesterov=True, weight_decay=decay)
    return FusedAdam(rate, weight_decay=decay)


def choose_jit(options: TrainOptions) -> bool:
    """Whether to compile with XLA; says so if it was left to us."""
    if options.jit != "auto":
        return options.jit == "on"
    device = keras.distribution.list_devices()[0].split(":")[0]
    # What JAX does not compile it runs operation by operation.
    use_jit = device != "cpu" or keras.backend.backend() == "jax"
    state = "on" if use_jit else "off"
    print(f"--jit auto: XLA {state}, this machine trains on {device}.")
    return use_jit
