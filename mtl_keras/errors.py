"""The one exception that the scripts print as a sentence."""


class UserError(ValueError):
    """A mistake the user can mend: the message names the thing and says how."""
