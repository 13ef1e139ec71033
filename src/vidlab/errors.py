"""Errors that are meant to be read by the person who started the run."""


class UserError(Exception):
    """Something the person at the keyboard can mend.

    The message is one short paragraph: the key, file or package at fault, what is allowed, and what to do.
    Entry points print it without a traceback and exit with code 2.
    """


class MissingPackageError(UserError):
    """An optional package is needed by an explicit choice and is not installed."""


class DataError(UserError):
    """A data set, or one file of it, cannot be used."""


class CorruptClipError(DataError):
    """One clip cannot be decoded. Training skips and counts it, up to ``data.max_corrupt``."""
