"""The two ways a command ends early; the command line turns each into one sentence and an exit code."""


class UserError(Exception):
    """The input cannot be used as it is. The message names the file, key or flag and what to do. Exit code 2."""


class RunFailure(Exception):
    """The input was fine, but the work failed (non-finite loss, full disk). Exit code 1."""
