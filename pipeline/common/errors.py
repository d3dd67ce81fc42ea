"""The two ways a command ends early; each message is one line: what was wanted, what came, what to do."""

import re


class BadInput(Exception):
    """The user asked for something that cannot be done; the command exits with 2."""


class WorkFailed(Exception):
    """The work itself failed; finished parts are kept, and the command exits with 1."""


class StoreFailed(WorkFailed):
    """A store could not be read or written; a retry may succeed."""


class Stopped(Exception):
    """A signal asked to stop, and the work done so far was saved; the command exits with 128 + the signal."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, without the keys and signatures of signed URLs."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(?i)((?:key|secret|token|signature|credential)[\w-]*=)[^\s&]+", r"\1...", text)


def reason(error: OSError) -> str:
    """The message of an OSError, without its number and path."""
    return error.strerror or one_line(error)
