"""Python files of the user's, read and never imported: what to name instead of a file, a module or a function."""

import ast
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.safe_yaml import read_text

MAX_NAMED = 4


def advise(source: str) -> str:
    """Such as "; name a function of it: teacher:load" for a `source` that is a Python file or a module; else nothing.

    Raises:
        OSError: the file cannot be read.
    """
    file = find_file(source)
    if file is None:
        return ""
    folder, module = _module(file)
    named = " or ".join(f"{module}:{function}" for function in _factories(file)[:MAX_NAMED])
    if not named:
        return f"; {file} has no function that takes the device alone"
    return f"; name a function of it: {named}" + (f", in its folder {folder}" if folder else "")


def name_instead(function: object) -> str:
    """What to pass instead of a `function` itself: its name, where another process can import it."""
    module, name = getattr(function, "__module__", "__main__"), getattr(function, "__qualname__", "<")
    if module == "__main__" or "<" in name:
        return "wanted a function's name as text: put it into a file such as flow.py, and pass 'flow:load'"
    return f"wanted a function's name as text: pass '{module}:{name}'"


def find_file(source: str) -> Path | None:
    """The Python file at the path `source`, or of the module so called in the working folder."""
    module = source if "/" in source else source.replace(".", "/")
    files = (Path(source), Path(f"{module}.py"), Path(module, "__init__.py"))
    return next((file for file in files if file.suffix == ".py" and file.is_file()), None)


def _module(file: Path) -> tuple[Path | None, str]:
    """The folder to work in, None for this one, and what the module in `file` is called there."""
    path, here = file.resolve(), Path.cwd().resolve()
    folder = here if path.is_relative_to(here) else path.parent
    parts = path.relative_to(folder).with_suffix("").parts
    return None if folder == here else folder, ".".join(part for part in parts if part != "__init__")


def _factories(file: Path) -> list[str]:
    """The public functions in `file` that can be called with one argument; none if it is not Python."""
    try:
        tree = ast.parse(read_text(file))
    except (SyntaxError, ValueError):
        return []
    return [node.name for node in _functions(tree) if not node.name.startswith("_") and _takes_one(node.args)]


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in tree.body if isinstance(node, ast.FunctionDef))


def _takes_one(arguments: ast.arguments) -> bool:
    positional = arguments.posonlyargs + arguments.args
    num_required = len(positional) - len(arguments.defaults)
    return num_required <= 1 and bool(positional or arguments.vararg) and None not in arguments.kw_defaults
