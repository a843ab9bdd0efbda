"""The exceptions whose message the commands print as one sentence."""


class UserError(ValueError):
    """A mistake that the user can fix; the message names the thing and says how."""


class DivergenceError(UserError):
    """The loss of a run is no longer finite."""


class BusyError(UserError):
    """Another process is working on the same run."""


class StoppedError(KeyboardInterrupt):
    """A training was asked to stop, and what it has done is kept.

    Attributes:
        status: int, the exit status of the process.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
