"""The two ways a command ends early; each message is one line: what was wanted, what came, what to do."""


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
