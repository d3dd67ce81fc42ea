"""The two ways a command ends early; each message is one line: what was wanted, what came, what to do."""

import re

# Characters that move the cursor, reorder or end a line, or cannot be encoded: C0 and C1 but the line feed, marks of
# direction, separators of lines, and the halves of names that are not UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_URL_QUERY = re.compile(r"""(://[^\s?'"]*\?)[^\s'"]+?(?=[:;,.)]*(?:['"\s]|$))""")
_URL_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s/@]+(?=@)")
_SECRET = re.compile(r"(?i)((?:key|secret|token|signature|credential)[\w-]*=)[^\s&]+")


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
    return _SECRET.sub(r"\1...", text)


def for_terminal(text: str) -> str:
    """`text` as a terminal may show it: control characters as escapes such as \\x1b, URLs `redacted`."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], redacted(text))


def redacted(text: str) -> str:
    """`text` without the passwords and queries of its URLs, which may hold keys: s3://bucket/set?..."""
    return _URL_QUERY.sub(r"\1...", _URL_PASSWORD.sub(r"\1...", text))


def reason(error: OSError) -> str:
    """The message of an OSError, without its number and path."""
    return error.strerror or one_line(error)
