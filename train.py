"""Train the three-task network, and export it.

    python train.py                                    # rendered streets, minutes
    python train.py --recipe mtl --data CITYSCAPES     # the original, on a GPU

The run directory then holds the options, the checkpoints, the history, the figures
and a SavedModel; `python evaluate.py RUN` adds the metric table.
"""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from mtl_keras.cli import TrainOptions, parse_options, run_script  # noqa: E402
from mtl_keras.recipes import RECIPES  # noqa: E402


def main():
    options = parse_options(TrainOptions, recipes=RECIPES)
    import keras  # after --help has had its chance

    from mtl_keras import data, datasets, report, runs
    from mtl_keras.export import export_saved_model
    from mtl_keras.metrics import ConstantPredictor

    runs.check_options(options)
    builder = datasets.prepare(options.data, options.image_size, options.tasks)
    for split in ("train", "val"):
        datasets.check_split(builder, split)
    num_frames = builder.info.splits["train"].num_examples
    epochs, steps_per_epoch = runs.count_steps(options, num_frames)
    directory = runs.claim_directory(options, epochs)

    keras.utils.set_random_seed(options.seed)
    pretrained = options.pretrained and not runs.finished_epochs(directory)
    trainer = runs.build_trainer(options, "imagenet" if pretrained else None)
    encoding = (options.tasks, options.label_set, options.batch_size)
    validation = data.make_dataset(builder, "val", *encoding)

    if not runs.is_trained(directory, epochs):
        predictor = ConstantPredictor.fit(
            data.make_dataset(builder, "train", *encoding), options.label_set
        )
        (directory / "constant.json").write_text(json.dumps(vars(predictor)))
        num_steps = epochs * steps_per_epoch
        trainer.compile(
            runs.build_optimizer(options, num_steps),
            jit_compile=runs.choose_jit(options),
        )
        runs.drop_unfinished_epochs(directory)
        first_epoch = runs.finished_epochs(directory)
        batches = data.make_training_dataset(
            builder,
            *encoding,
            seed=options.seed,
            first_step=first_epoch * steps_per_epoch,
            flip=options.flip,
        )
        with runs.explain_divergence(directory):
            trainer.fit(
                batches,
                epochs=epochs,
                initial_epoch=first_epoch,
                steps_per_epoch=steps_per_epoch,
                validation_data=validation,
                callbacks=runs.make_callbacks(directory, options.tasks, num_steps),
                shuffle=False,  # the batches are
                verbose=0,
            )

    runs.restore_best(trainer, directory)
    if not (directory / "saved_model").exists():
        print("Exporting the best checkpoint.")
        export_saved_model(trainer.network, directory / "saved_model")
    figures = directory / "figures"
    figures.mkdir(exist_ok=True)
    history = runs.read_history(directory)
    report.plot_losses(history, options.tasks, figures / "losses.png")
    report.plot_weights(history, options.tasks, figures / "weights.png")
    print(f"{directory} is complete; now: python evaluate.py {directory}")


if __name__ == "__main__":
    run_script(main)
