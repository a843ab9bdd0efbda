"""The exceptions whose message the commands print as one sentence."""


class UserError(ValueError):
    """A mistake that the user can fix; the message names the thing and says how."""


class DivergenceError(UserError):
    """The loss of a run is no longer finite."""


class BusyError(UserError):
    """Another process is working on the same run."""
