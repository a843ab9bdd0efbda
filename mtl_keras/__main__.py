"""`python -m mtl_keras train`, `evaluate`, `predict`, `app` and `data`."""

import importlib
import sys

from mtl_keras.commands.console import choose_command, run_command

COMMANDS = ("train", "evaluate", "predict", "app", "data")


def main(command: str | None = None) -> None:
    """Runs a command with the arguments of this process.

    Args:
        command: optional str, one of `COMMANDS`. Defaults to the first argument.
    """
    arguments = sys.argv[1:]
    if command is None:
        command, arguments = choose_command("python -m mtl_keras", COMMANDS, arguments)
    story = importlib.import_module(f"mtl_keras.commands.{command}")
    run_command(story.main, arguments)


if __name__ == "__main__":
    main()
