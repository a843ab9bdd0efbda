"""Train the three-task network, and export it; or all networks of a table.

    python train.py                                    # rendered streets, minutes
    python train.py --recipe mtl --data CITYSCAPES     # the original, on a GPU
    python train.py --table A --seeds 3                # see docs/RESULTS.md

The run directory then holds the options, the checkpoints, the history, the figures
and a SavedModel; `python evaluate.py RUN` adds the metric table.
"""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from mtl_keras.cli import run_script  # noqa: E402
from mtl_keras.errors import DivergenceError, UserError  # noqa: E402
from mtl_keras.tables import plan_runs  # noqa: E402


def main():
    planned = plan_runs()
    import keras  # after --help has had its chance

    diverged = []
    for number, options in enumerate(planned, 1):
        if len(planned) == 1:
            train(options)
            continue
        print(f"\n{options.output} ({number} of {len(planned)})")
        keras.backend.clear_session()
        try:
            train(options, export=False)
        except DivergenceError as error:
            print(f"Left out: {error}")
            diverged.append(options.output)
    if diverged:
        raise UserError(f"These runs diverged: {', '.join(diverged)}.")


def train(options, export=True):
    """Trains a run, or what is missing of it."""
    import keras

    from mtl_keras import report, runs
    from mtl_keras.export import export_saved_model
    from mtl_keras.problems import open_problem

    runs.check_options(options)
    problem = open_problem(options)
    num_frames = problem.count_frames("train")
    problem.count_frames("val")
    epochs, steps_per_epoch = runs.count_steps(options, num_frames)
    directory = runs.claim_directory(options, epochs)
    if not export and (directory / "result.json").exists():
        return

    keras.utils.set_random_seed(options.seed)
    pretrained = options.pretrained and not runs.finished_epochs(directory)
    trainer = runs.build_trainer(problem, "imagenet" if pretrained else None)
    if not runs.is_trained(directory, epochs):
        predictor = problem.fit_constant_predictor()
        (directory / "constant.json").write_text(json.dumps(vars(predictor)))
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
                callbacks=runs.make_callbacks(directory, options.tasks, num_steps),
                shuffle=False,  # the batches are
                verbose=0,
            )

    runs.write_result(directory)
    history = runs.read_history(directory)
    figures = directory / "figures"
    figures.mkdir(exist_ok=True)
    report.plot_losses(history, options.tasks, figures / "losses.png")
    report.plot_weights(history, options.tasks, figures / "weights.png")
    if export:
        runs.restore_best(trainer, directory)
        if not (directory / "saved_model").exists():
            print("Exporting the best checkpoint.")
            export_saved_model(trainer.network, directory / "saved_model")
        print(f"{directory} is complete; now: python evaluate.py {directory}")


if __name__ == "__main__":
    run_script(main)
