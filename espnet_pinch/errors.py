"""Whose fault an error is."""


class UserError(ValueError):
    """A mistake of the user, or of what the user has given: settings, files, data, a machine that lacks something.

    Its message is one line: what is wrong, where, and what to do. Programs print that line and no traceback. Every
    other exception but the system's own (``OSError``) is a mistake of the program, and shows its traceback.
    """


def one_line(text) -> str:
    """An error, or any text, on one line: runs of white space become a space."""
    return " ".join(str(text).split())
