"""The page of the commands, from the command line itself."""

from collections.abc import Iterator
from typing import Any

import typer

from manual.text import code, prose, table
from traflow_pipeline.cli import app
from traflow_pipeline.once import in_words

INTRO = """# Commands

Every command, as `traflow-pipeline COMMAND --help` prints it. `--config NAME` takes a config, flags go over it, and
`--set KEY=VALUE` goes over both; [Configuration](configuration.md) has every key. [Exit codes](exit-codes.md) are
the same for all.
"""


def page() -> str:
    """Every command with its arguments and options."""
    program = typer.main.get_command(app)
    context = typer.Context(program)
    return "\n\n".join([INTRO, *(_section(name, command, context) for name, command in commands(program))])


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """The commands of a group by their whole names, a group's own command before those below it."""
    for name, command in group.commands.items():
        whole = f"{before}{name}"
        yield whole, command
        if hasattr(command, "commands"):
            yield from commands(command, f"{whole} ")


def _section(name: str, command: Any, context: typer.Context) -> str:
    describe = getattr(command, "describe", in_words)
    shown = [describe(parameter) for parameter in command.params if not parameter.hidden]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option" and each.name != "help"]
    usage = " ".join(["traflow-pipeline", name, *map(_usage, arguments), *(["[OPTIONS]"] if options else [])])
    parts = [f"## {name}", prose(command.help), f"```text\n{usage}\n```"]
    if arguments:
        parts.append(table(["argument", "meaning"], [(code(_metavar(each)), each.help or "") for each in arguments]))
    if options:
        rows = [
            (_flags(each), code(each.display_type_rich(context)), code(_default(each)), each.help or "")
            for each in options
        ]
        parts.append(table(["option", "value", "default", "meaning"], rows))
    return "\n\n".join(parts)


def _usage(argument: Any) -> str:
    return _metavar(argument) if argument.required else f"[{_metavar(argument)}]"


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _flags(option: Any) -> str:
    return ", ".join(code(flag) for flag in (*option.opts, *option.secondary_opts))


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if option.is_flag:
        return option.opts[0] if option.default else ""
    is_said = option.show_default and option.default is not None
    return _short(option.default) if is_said and option.default != () else ""


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
