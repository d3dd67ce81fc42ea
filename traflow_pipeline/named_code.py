"""The factories that a run's configuration names: code, imported only if this user has named it.

A run's folder may be somebody else's: its run.yaml is not this user's word, a config or --set is.
"""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from pipeline.common import plugins
from pipeline.common.errors import BadInput
from pipeline.storage.store import is_url
from pipeline.teachers.loading import ENTRY_POINTS, named_factories

KEYS = (("generate", "teacher"), ("train", "teacher"), ("evaluate", "teacher"), ("evaluate", "features"))


def factories(sections: Mapping[str, Any]) -> dict[str, list[str]]:
    """By "stage.key", the values that name a "module:factory" among other values of the key."""
    found = {f"{stage}.{key}": _values(sections.get(stage), key) for stage, key in KEYS}
    return {key: values for key, values in found.items() if any(map(_is_factory, values))}


def name_again(sections: Mapping[str, Any]) -> list[str]:
    """The flags with which a job names the factories in `sections`: its machine does not know what the user named."""
    return [word for key, values in factories(sections).items() for word in ("--set", f"{key}={','.join(values)}")]


def remember(sections: Mapping[str, Any]) -> None:
    """Note that the user has named the factories in `sections`."""
    for values in factories(sections).values():
        for source in filter(_is_factory, values):
            plugins.remember(source, named_factories(), ENTRY_POINTS)


def require_named(location: str, sections: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises `BadInput` if `sections`, read from `location`, name factories that neither `asked` nor the user did."""
    again = factories(asked)
    for key, values in factories(sections).items():
        unknown = [
            source
            for source in filter(_is_factory, values)
            if not plugins.is_remembered(source, named_factories(), ENTRY_POINTS)
        ]
        if unknown and key not in again:
            remedy = f"--set {quote(f'{key}=' + ','.join(values))}"
            distrust = plugins.distrust(unknown[0], named_factories(), ENTRY_POINTS, remedy)
            raise BadInput(f"{location} names {unknown[0]!r} as {key}{distrust}")


def _values(section: object, key: str) -> list[str]:
    value = section.get(key) if isinstance(section, Mapping) else None
    values = value.split(",") if isinstance(value, str) else value
    return list(map(str, values)) if isinstance(values, list | tuple) else []


def _is_factory(source: str) -> bool:
    return ":" in source and not is_url(source) and not Path(source).exists()
