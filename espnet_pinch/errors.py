"""The exception for mistakes of the user, and error messages of one line."""


class UserError(ValueError):
    """A mistake of the user or of the user's input: settings, files, data, a machine that lacks something.

    Its message is one line: what is wrong, where, and what to do. Programs print that line without a traceback.
    ``espnet_pinch.explain`` knows the other exceptions that get one line, such as ``OSError``. All the rest are
    mistakes of the program and show their traceback.
    """


def one_line(text) -> str:
    """An error, or any text, on one line: runs of white space become a space."""
    return " ".join(str(text).split())
