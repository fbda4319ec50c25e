"""The one error type for wrong input: model folders, checkpoints, settings and texts that come from outside."""


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what is wrong, where, and what would be right.

    The command line turns it into exit code 2 without a traceback; anything else that escapes is our fault (code 1).
    """
