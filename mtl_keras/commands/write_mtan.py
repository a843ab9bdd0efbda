"""Write a data set as the arrays that MTAN's protocol takes."""

from collections.abc import Sequence

from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import parse_options
from mtl_keras.experiments.options import WriteMtanOptions


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the folder that the command line names."""
    parse_options(WriteMtanOptions, argv, positional=("source", "directory"))
    raise UserError("data write-mtan does not write anything yet.")
