"""Export of a trained network for serving."""

import json
import pathlib
import tempfile

import keras

from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike

# Lists the files of an export, so that no other is ever removed with it.
MANIFEST = "mtl_keras_export.json"


def build_serving_model(network: keras.Model) -> keras.Model:
    """The network as it is served: uint8 in, class probabilities out.

    Args:
        network: a model of `build_network` or `build_small_network`.

    Returns:
        A functional `keras.Model` from images `(batch, H, W, channels)` uint8 to a
        dict of what the network returns, float32, with class probabilities in place
        of the logits: `semantic` `(batch, H, W, num_classes)`, `class` `(batch,
        num_classes)`.
    """
    image = keras.Input(network.input.shape[1:], dtype="uint8", name="image")
    outputs = dict(network(image))
    for task in {"semantic", "class"} & set(outputs):
        outputs[task] = keras.layers.Softmax(dtype="float32", name="probabilities")(
            outputs[task]
        )
    return keras.Model(image, outputs)


def export_saved_model(network: keras.Model, path: PathLike) -> None:
    """Writes a SavedModel that needs neither Keras nor this project to load.

    Its only endpoint takes and returns what `build_serving_model` says, and is
    `tf.saved_model.load(path).serve` as well as the signature `serving_default`.
    The loss weighting is not part of the network, so no sigma is exported.

    Args:
        network: a model of `build_network`.
        path: directory to write; an earlier export is replaced. It appears when it
            is complete.

    Raises:
        UserError: if `path` holds anything but an earlier export, or cannot be
            written.
    """
    import tensorflow as tf

    path = pathlib.Path(path).absolute()
    _check_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name}-", dir=path.parent
        ) as directory:
            new, old = pathlib.Path(directory) / "new", pathlib.Path(directory) / "old"
            build_serving_model(network).export(new, verbose=False)
            files = [*_list_files(new), MANIFEST]
            (new / MANIFEST).write_text(json.dumps({"files": files}), encoding="utf-8")
            _check_replaceable(path)  # again: the export took a while
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except BaseException:
                if old.exists():
                    old.rename(path)
                raise
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be written ({reason}); export to a directory that you may "
            "write to, with room for it."
        ) from error


def _check_replaceable(path):
    """Raises `UserError` if a path is there and no earlier export or empty."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        what = "a link" if path.is_symlink() else "a file"
        raise UserError(f"{path} is {what}, which is not replaced; export elsewhere.")
    if not path.exists() or not any(path.iterdir()):
        return
    versions = [int(child.name) for child in path.iterdir() if child.name.isdecimal()]
    if versions:
        raise UserError(
            f"{path} holds versions of a model, which are not replaced; export to "
            f"{path / str(max(versions) + 1)}."
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        known = set(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is there and no export of this package; remove it or export "
            "elsewhere."
        ) from None
    if others := sorted(set(_list_files(path)) - known):
        raise UserError(
            f"{path} also holds {others[0]}, which is not of the export; move that "
            "file away or export elsewhere."
        )


def _list_files(directory):
    """The files below a directory, as paths from there."""
    return [
        path.relative_to(directory).as_posix()
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    ]
