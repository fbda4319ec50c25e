"""The error types that end in one line: wrong input from outside, and results that are no numbers."""


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what is wrong, where, and what would be right.

    The command line turns it into exit code 2 without a traceback; anything else that escapes is our fault (code 1).
    """


class NotFiniteError(RuntimeError):
    """A model's result is NaN or infinite, so nothing can be chosen or measured. The message is one line.

    The command line turns it into exit code 1 without a traceback.
    """
