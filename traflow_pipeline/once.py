"""A command of the command line: an option is given once, and "~" is the home folder wherever it stands.

Of an option given twice click silently takes the last, and nan is in every range. A shell leaves "~" alone in
--out=~/samples.
"""

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from pipeline.common.errors import BadInput
from pipeline.common.plural import parse_count

KINDS = {int: "a whole number", float: "a finite number"}
WORDS = {int: "INTEGER", float: "NUMBER", bool: "", Path: "PATH"}  # of types, in a help
MAX_SHOWN = 2**31  # a larger bound is none that anybody meets


class Group(TyperGroup):
    """The program, or a command with commands of its own."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, with types in words."""
        TyperGroup.format_help(_with_params(self, ctx, map(in_words, self.params)), ctx, formatter)


class Once(TyperCommand):
    """A command each of whose options is given once, unless it may be repeated."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, of options as `describe` shows them."""
        TyperCommand.format_help(_with_params(self, ctx, map(self.describe, self.params)), ctx, formatter)

    def describe(self, option: Any) -> Any:
        """A copy of `option` for the help."""
        return in_words(option)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        texts, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for parameter, count in Counter(given).items():
            if count > 1 and parameter.param_type_name == "option" and not parameter.multiple:
                raise BadInput(f"{parameter.opts[-1]}: wanted it once, got it {count} times")
        try:
            rest: list[str] = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            raise _explained(error, texts) from error
        for parameter in self.params:
            if texts.get(parameter.name) == "" and _is_path(parameter):
                raise BadInput(f"{parameter.opts[-1]}: wanted a path that is not empty")
            if isinstance(value := ctx.params.get(parameter.name or ""), float) and not math.isfinite(value):
                raise BadInput(_wanted(parameter, texts))
        try:
            ctx.params.update({name: _expand(value) for name, value in ctx.params.items()})
        except RuntimeError as error:  # no such user
            raise BadInput(f"wanted a path; {error}") from error
        return rest


def as_count(text: Any) -> Any:
    """The number that "4k" or "1M" is, as the `parser` of an option of 1 or more."""
    try:
        count = parse_count(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if count == 0:
        raise typer.BadParameter("wanted 1 or more")
    return count


def _is_path(parameter: Any) -> bool:
    return parameter.type_descriptor.annotation is Path


def _with_params(command: Any, ctx: Any, params: Iterable[Any]) -> Any:
    shown = copy.copy(command)
    shown.params = list(params)
    shown.get_help_option(ctx).metavar = ""
    return shown


def in_words(option: Any) -> Any:
    """A copy of `option` that shows its type as a word and its bounds; an argument's name, in capitals, says enough."""
    shown = copy.copy(option)
    if option.param_type_name == "argument":
        shown.metavar = option.metavar or option.name.upper()
    word = WORDS.get(option.type_descriptor.annotation, "TEXT") + _bounds(option)
    shown.min = shown.max = None
    shown.display_type_rich = lambda ctx: "" if option.param_type_name == "argument" else option.metavar or word
    return shown


def _bounds(option: Any) -> str:
    low, high = option.min, option.max
    return (f" >= {low}" if low is not None else "") + (f", <= {high}" if high is not None and high < MAX_SHOWN else "")


def _explained(error: Any, texts: Mapping[str, Any]) -> Exception:
    """For a value that is not the number that is wanted, what was wanted and what came; other errors as they are."""
    is_of_number = error.param is not None and error.param.type_descriptor.annotation in KINDS
    return BadInput(_wanted(error.param, texts)) if is_of_number and error.param.name in texts else error


def _wanted(parameter: Any, texts: Mapping[str, Any]) -> str:
    low, high = parameter.min, parameter.max
    is_bounded = high is not None and high < MAX_SHOWN
    within = "" if low is None else f" from {low} to {high}" if is_bounded else f" of {low} or more"
    kind = KINDS[parameter.type_descriptor.annotation]
    return f"{parameter.opts[-1]}: wanted {kind}{within}, got {texts[parameter.name]}"


def _expand(value: Any) -> Any:
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(Path(value).expanduser())
    return value
