"""What is said of a file that cannot be read or written."""

import errno

from jaxbooth.errors import printable


def describe_disk_error(error: OSError) -> str:
    """Returns a sentence that says what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The disk is full; free some space, and try again."
    name = printable(str(error.filename)) if error.filename else "A file"
    return f"{name} cannot be used ({error.strerror or 'the system refused it'}); check its folder and its permissions."
