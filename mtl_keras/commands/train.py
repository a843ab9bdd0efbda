"""Train the three-task network, and export it; or all networks of a table.

    python train.py                                    # rendered streets, minutes
    python train.py --recipe original --data CITYSCAPES    # on a GPU
    python train.py --table A --seeds 3                # see docs/RESULTS.md

The run directory then holds the options, the checkpoints, the history, the figures
and a SavedModel; `python evaluate.py RUN` adds the metric table.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtl_keras.commands.console import start_tensorflow
from mtl_keras.commands.replay import replay
from mtl_keras.errors import BusyError, DivergenceError, UserError
from mtl_keras.experiments.arguments import flag_of, parse_given
from mtl_keras.experiments.kinds import EXPORTS
from mtl_keras.experiments.options import (
    STARTING_OPTIONS,
    SeriesOptions,
    TrainOptions,
    differing_options,
)
from mtl_keras.experiments.recipes import RECIPES
from mtl_keras.experiments.tables import plan_runs

if TYPE_CHECKING:  # what takes seconds to import waits until the options are read
    from mtl_keras.experiments.problems import Problem
    from mtl_keras.serving import ModelFacts
    from mtl_keras.training import MultiTaskTrainer


WHEN_INTERRUPTED = (
    "Training goes on with the same command (a single run: with --resume)."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains a run or those of a table, or replays a step, as the command line says."""
    given = parse_given(SeriesOptions, argv, RECIPES)
    if run := given.pop("replay", None):
        verbose = given.pop("verbose", False)
        for name in given:
            raise UserError(f"{flag_of(name)} is set by the run of --replay.")
        replay(run, verbose)
        return
    planned = plan_runs(argv)
    start_tensorflow(planned[0].verbose)
    if len(planned) == 1:
        train(planned[0])
    else:
        train_all(planned)


def train_all(planned: Sequence[TrainOptions]) -> None:
    """Trains the runs of a table or a sweep, or what is missing of them."""
    import keras

    check_all(planned)
    left_out = []
    for number, options in enumerate(planned, 1):
        print(f"\n{options.output} ({number} of {len(planned)})")
        keras.backend.clear_session()
        try:
            train(options, export=False)
        except (BusyError, DivergenceError) as error:
            print(f"Left out: {error}")
            left_out.append(error)
    if any(isinstance(error, DivergenceError) for error in left_out):
        raise UserError(f"Not all runs were trained. {' '.join(map(str, left_out))}")
    if not left_out:
        print("\nAll runs are complete; evaluate.py compares them.")


def check_all(planned: Sequence[TrainOptions]) -> None:
    """Finds what would end a long series of runs early before it begins."""
    from mtl_keras.experiments import runs, setup
    from mtl_keras.experiments.problems import open_problem

    for options in planned:
        setup.check_options(options)
        runs.check_directory(options)
    tasks = dict.fromkeys(task for options in planned for task in options.tasks)
    problem = open_problem(dataclasses.replace(planned[0], tasks=tuple(tasks)))
    setup.plan_epochs(planned[0], problem.count_frames("train"))
    for split in ("val", problem.reported_split):
        problem.count_frames(split)


def train(options: TrainOptions, export: bool = True) -> None:
    """Trains a run, or what is missing of it."""
    import keras

    from mtl_keras.experiments import evaluation, runs, setup
    from mtl_keras.experiments.problems import open_problem
    from mtl_keras.experiments.reports import REPORT, write_run_report

    setup.check_options(options)
    path = runs.check_directory(options)
    problem = open_problem(options)
    is_row = not export or "/" in options.recipe  # of a table or a sweep
    split = problem.reported_split if is_row else "val"
    is_reported = (path / runs.RESULTS[split]).exists()
    if not export and is_reported and (path / runs.RESULTS["val"]).exists():
        if not (path / REPORT).exists():
            write_run_report(path)
        return
    setup.distribute(options)
    num_frames = problem.count_frames("train")
    problem.count_frames("val")
    epochs, steps_per_epoch = setup.plan_epochs(options, num_frames)
    with runs.claim_directory(options, epochs) as directory:
        keras.utils.set_random_seed(options.seed)
        pretrained = options.pretrained and not any(runs.find_position(directory))
        trainer = setup.build_trainer(
            problem,
            "imagenet" if pretrained else None,
            problem.training_size,
            steps_per_epoch,
        )
        if not runs.is_trained(directory, epochs):
            fit(trainer, problem, directory, epochs, steps_per_epoch)
        draw_history(options, directory)
        if split != "val" and not is_reported:
            runs.restore_last(trainer, directory)
            network = problem.of_whole_frames(trainer.network)
            evaluation.write_reported_result(network, problem, directory)
        runs.write_result(directory)
        write_run_report(directory)
        if export:
            export_best(trainer, problem, directory)


def fit(
    trainer: MultiTaskTrainer,
    problem: Problem,
    directory: pathlib.Path,
    epochs: int,
    steps_per_epoch: int,
) -> None:
    """Trains from the last checkpoint, or from the start, to the last epoch; the first
    signal that asks it to stop is heard after the next step.

    Keras validates after every epoch; the table of a run is computed apart from this,
    for the reason that `experiments.evaluation` gives.
    """
    from mtl_keras.experiments import (
        callbacks,
        environment,
        evaluation,
        fitting,
        interruption,
        runs,
        setup,
    )
    from mtl_keras.experiments.divergence import explain_divergence
    from mtl_keras.experiments.validation import make_validation_batches

    options = problem.options
    evaluation.write_constant_predictor(problem, directory)
    environment.write_environment(directory)
    trainer.compile(
        setup.build_optimizer(options, epochs * steps_per_epoch),
        jit_compile=setup.choose_jit(options),
    )
    runs.drop_unfinished_epochs(directory)
    with interruption.listen() as request, explain_divergence(directory, problem):
        fitting.fit(
            trainer,
            problem.make_training_batches,
            (
                None  # see WholeFrameValidation
                if problem.has_crops
                else make_validation_batches(problem)
            ),
            callbacks.make_callbacks(
                directory, problem, epochs, steps_per_epoch, request
            ),
            runs.find_position(directory),
            epochs,
            steps_per_epoch,
        )


def draw_history(options: TrainOptions, directory: pathlib.Path) -> None:
    """Draws what was logged: losses, noise levels and weights."""
    from mtl_keras.experiments.runs import read_history
    from mtl_keras.figures.curves import plot_losses, plot_weights

    history = read_history(directory)
    figures = directory / "figures"
    figures.mkdir(exist_ok=True)
    plot_losses(history, options.tasks, figures / "losses.png")
    plot_weights(history, options.tasks, figures / "weights.png")


def export_best(
    trainer: MultiTaskTrainer, problem: Problem, directory: pathlib.Path
) -> None:
    """Exports the best checkpoint to the formats that it is not exported to yet."""
    from mtl_keras.experiments import runs
    from mtl_keras.serving import export

    runs.restore_best(trainer, directory)
    network = problem.of_whole_frames(trainer.network)
    for format in problem.options.export:
        path = directory / EXPORTS[format]
        if not path.exists():
            print(f"Exporting the best checkpoint to {path}.")
            export(network, path, format, describe_best(problem, directory))
    print(f"{directory} is complete; now: python evaluate.py {directory}")


def describe_best(problem: Problem, directory: pathlib.Path) -> ModelFacts:
    """What the model card says about the best checkpoint of a run."""
    from mtl_keras.experiments.runs import find_best_scores
    from mtl_keras.serving import ModelFacts

    options = problem.options
    # A path says nothing to others, and may be private.
    ignored = (*STARTING_OPTIONS, "data", "recipe")
    changed = differing_options(TrainOptions(), options, ignored=ignored)
    data = "Cityscapes" if options.data else problem.name
    return ModelFacts(
        label_set=options.label_set if options.dataset == "scenes" else None,
        class_names=problem.class_names,
        training_data=f"the split {options.train_split} of {data}",
        settings={
            "--recipe": options.recipe,
            **{flag: value for flag, (_, value) in changed.items()},
        },
        scores=find_best_scores(directory, options.tasks),
        scored_on=f"the split val of {data}, which chose this checkpoint",
    )
