"""Commands about data sets alone.

    python -m mtl_keras data show CITYSCAPES              # what training sees
    python -m mtl_keras data write-mtan CITYSCAPES DIR    # as arrays of 128x256

Each is a module of its own, with a function `main(argv)`.
"""

import importlib
import sys
from collections.abc import Sequence

from mtl_keras.commands.console import choose_command

SUBCOMMANDS = {"show": "show", "write-mtan": "write_mtan"}  # and their modules


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the subcommand that the command line names."""
    arguments = sys.argv[1:] if argv is None else argv
    name, rest = choose_command("python -m mtl_keras data", SUBCOMMANDS, arguments)
    story = importlib.import_module(f"mtl_keras.commands.{SUBCOMMANDS[name]}")
    story.main(rest)
