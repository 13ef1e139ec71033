"""Errors whose messages are written for the user: one cause, what is allowed, what to do."""


class UserError(Exception):
    """Something that the user can fix.

    The message is one short paragraph: the key, file or package at fault, what is allowed, and what to do.
    Entry points print it without a traceback and exit with code 2.
    """


class MissingPackageError(UserError):
    """An optional package is needed by an explicit choice and is not installed."""


class DataError(UserError):
    """A data set, or one file of it, cannot be used."""


class CorruptClipError(DataError):
    """One clip cannot be decoded. Training skips and counts it, up to ``data.max_corrupt``."""


def first_line(error: BaseException) -> str:
    """The first line of what an error of another package says, or its kind where it says nothing; for messages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
