"""The two ways a command ends early; each message is one line: what was wanted, what came, what to do."""

import re


class BadInput(Exception):
    """The user asked for something that cannot be done; the command exits with 2."""


class WorkFailed(Exception):
    """The work itself failed; what was finished before is kept, and the command exits with 1."""


class StoreFailed(WorkFailed):
    """A store could not be read or written; the same work may succeed when it is tried again."""


class Stopped(Exception):
    """A signal asked to stop, and the work done so far was saved; the command exits with 128 + the signal."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def one_line(error: BaseException) -> str:
    """What an exception says, on one line, without keys or signatures of a signed URL."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(?i)((?:key|secret|token|signature|credential)[\w-]*=)[^\s&]+", r"\1...", text)


def reason(error: OSError) -> str:
    """What an OSError says, without its number and path."""
    return error.strerror or one_line(error)
