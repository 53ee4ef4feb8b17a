"""The errors that the package raises for its users."""


class SettingError(ValueError):
    """A setting breaks a rule; the message names the setting, the rule, the value and the fix.

    On the command line it becomes exit code 2.
    """


class DamagedError(SettingError):
    """A file of a run differs from what was saved."""


class RunError(RuntimeError):
    """A run cannot go on; the message says why, and from where it can be resumed.

    On the command line it becomes exit code 1.
    """


class NonFiniteError(RunError):
    """A number in training is not finite."""
