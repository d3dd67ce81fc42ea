"""Numbers of things, in words."""


def counted(number: float, noun: str) -> str:
    """ "1 trajectory", "16,384 trajectories", "120.9 evaluations"."""
    text = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{text} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """ "trajectories", "batches", "states"."""
    if noun.endswith("y"):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch")) else f"{noun}s"
