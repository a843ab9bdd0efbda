"""`python -m mtl_keras train`, `evaluate`, `predict` and `app`."""

import importlib
import sys

from mtl_keras.commands.console import run_command

COMMANDS = ("train", "evaluate", "predict", "app")


def main(command: str | None = None) -> None:
    """Runs a command with the arguments of this process.

    Args:
        command: optional str, one of `COMMANDS`. Defaults to the first argument.
    """
    arguments = sys.argv[1:]
    if command is None:
        command, *arguments = arguments or ["--help"]
        if command not in COMMANDS:
            _explain(command)
        sys.argv[0] = f"python -m mtl_keras {command}"  # in usage and errors
    story = importlib.import_module(f"mtl_keras.commands.{command}")
    run_command(story.main, arguments)


def _explain(command):
    is_question = command in ("-h", "--help")
    usage = f"usage: python -m mtl_keras {{{','.join(COMMANDS)}}} ..."
    print(usage, file=sys.stdout if is_question else sys.stderr)
    if not is_question:
        print(
            f"error: unknown command {command!r}; choose from {', '.join(COMMANDS)}.",
            file=sys.stderr,
        )
    sys.exit(0 if is_question else 2)


if __name__ == "__main__":
    main()
