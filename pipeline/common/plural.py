"""Numbers of things, in words."""

from decimal import Decimal, InvalidOperation


def counted(number: float, noun: str) -> str:
    """ "1 trajectory", "16,384 trajectories", "120.9 evaluations"."""
    text = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{text} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """ "trajectories", "batches", "states"."""
    if noun.endswith("y"):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch")) else f"{noun}s"


def parse_count(value: object) -> object:
    """ "4096", "16k" or "1M" (thousands, millions) as an integer; a value that is no text is returned unchanged.

    Raises:
        ValueError: the text is not a count.
    """
    if not isinstance(value, str):
        return value
    text = value.strip().replace("_", "").replace(",", "")
    factor = {"k": 10**3, "m": 10**6}.get(text[-1:].lower(), 1)
    try:
        count = Decimal(text[:-1] if factor > 1 else text) * factor
        if 0 <= count < 2**63 and count == int(count):
            return int(count)
    except InvalidOperation:
        pass
    raise ValueError("wanted a count such as 4096, 16k or 1M")
