"""The exceptions that the scripts print as a sentence."""


class UserError(ValueError):
    """A mistake the user can mend: the message names the thing and says how."""


class DivergenceError(UserError):
    """The loss of a run is no longer finite."""


class BusyError(UserError):
    """Another process is at work on the same run."""
