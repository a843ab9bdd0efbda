"""Train the three-task network, and export it; or all networks of a table.

    python train.py                                    # rendered streets, minutes
    python train.py --recipe mtl --data CITYSCAPES     # the original, on a GPU
    python train.py --table A --seeds 3                # see docs/RESULTS.md

The run directory then holds the options, the checkpoints, the history, the figures
and a SavedModel; `python evaluate.py RUN` adds the metric table.
"""

import dataclasses
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from mtl_keras.cli import run_script  # noqa: E402
from mtl_keras.errors import BusyError, DivergenceError, UserError  # noqa: E402
from mtl_keras.tables import plan_runs  # noqa: E402


def main():
    planned = plan_runs()
    if len(planned) == 1:
        train(planned[0])
    else:
        train_all(planned)


def train_all(planned):
    """Trains the runs of a table or a sweep, or what is missing of them."""
    import keras  # after --help has had its chance

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


def check_all(planned):
    """Finds what would end a long series of runs early before it begins."""
    from mtl_keras import runs
    from mtl_keras.problems import open_problem

    for options in planned:
        runs.check_options(options)
        runs.check_directory(options)
    tasks = dict.fromkeys(task for options in planned for task in options.tasks)
    problem = open_problem(dataclasses.replace(planned[0], tasks=tuple(tasks)))
    runs.count_steps(planned[0], problem.count_frames("train"))
    problem.count_frames("val")


def train(options, export=True):
    """Trains a run, or what is missing of it."""
    import keras

    from mtl_keras import report, runs
    from mtl_keras.export import export_saved_model
    from mtl_keras.problems import open_problem

    runs.check_options(options)
    if not export and (runs.check_directory(options) / "result.json").exists():
        return
    problem = open_problem(options)
    num_frames = problem.count_frames("train")
    problem.count_frames("val")
    epochs, steps_per_epoch = runs.count_steps(options, num_frames)
    with runs.claim_directory(options, epochs) as directory:
        keras.utils.set_random_seed(options.seed)
        pretrained = options.pretrained and not runs.finished_epochs(directory)
        trainer = runs.build_trainer(problem, "imagenet" if pretrained else None)
        if not runs.is_trained(directory, epochs):
            runs.write_constant_predictor(problem, directory)
            num_steps = epochs * steps_per_epoch
            trainer.compile(
                runs.build_optimizer(options, num_steps),
                jit_compile=runs.choose_jit(options),
            )
            runs.drop_unfinished_epochs(directory)
            first_epoch = runs.finished_epochs(directory)
            with runs.explain_divergence(directory):
                trainer.fit(
                    problem.make_training_batches(first_epoch * steps_per_epoch),
                    epochs=epochs,
                    initial_epoch=first_epoch,
                    steps_per_epoch=steps_per_epoch,
                    validation_data=problem.make_batches("val", options.batch_size),
                    callbacks=runs.make_callbacks(
                        directory, options.tasks, num_steps, options.schedule
                    ),
                    shuffle=False,  # the batches are
                    verbose=0,
                )

        history = runs.read_history(directory)
        figures = directory / "figures"
        figures.mkdir(exist_ok=True)
        report.plot_losses(history, options.tasks, figures / "losses.png")
        report.plot_weights(history, options.tasks, figures / "weights.png")
        runs.write_result(directory)
        if export:
            runs.restore_best(trainer, directory)
            if not (directory / "saved_model").exists():
                print("Exporting the best checkpoint.")
                export_saved_model(trainer.network, directory / "saved_model")
            print(f"{directory} is complete; now: python evaluate.py {directory}")


if __name__ == "__main__":
    run_script(main)
