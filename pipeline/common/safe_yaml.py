"""Read YAML that others wrote: plain data, in bounded time and memory."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import reason

MAX_BYTES = 2**16  # our largest file has 7 kB; PyYAML reads some 100 kB a second
MAX_DEPTH = 50
MAX_EXPANDED = 2**19  # characters and values, counted as often as aliases repeat them
MAX_DIGITS = 64  # PyYAML reads hexadecimal numbers of any length, Python prints no more than 4300 decimal digits


def read_yaml(path: Path) -> Any:
    """The content of the YAML file at `path`.

    Raises:
        ValueError: it cannot be read, or is not YAML; the message names the file.
    """
    try:
        return parse_yaml(read_text(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({reason(error)})") from error
    except ValueError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error


def read_text(path: Path) -> bytes:
    """The bytes of the file at `path`; of one that `parse_yaml` finds too large, only the beginning.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def parse_yaml(text: str | bytes) -> Any:
    """The content of the YAML document `text`: dictionaries, lists and scalars; None if it is empty.

    Raises:
        ValueError: one line that says why it cannot be read. Refused are Python objects, a key given twice, and a
            document that is too large or too deep, by itself or by its aliases.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"wanted at most {MAX_BYTES} bytes")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with the bounds above."""

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self._depth = 0

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            size, depth = _extent(node, {})
            if depth > MAX_DEPTH:
                raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
            if size > MAX_EXPANDED:
                raise yaml.YAMLError("its aliases repeat too much")
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        counts = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for (_, key), count in counts.items() if count > 1]:
            raise yaml.YAMLError(f"the key {twice[0][:MAX_DIGITS]!r} stands twice in a mapping,{node.start_mark}")
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MAX_DIGITS:
                raise ValueError("too long")
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # of a scalar and an explicit tag, such as !!int x
            value = node.value[:MAX_DIGITS] if isinstance(node, yaml.ScalarNode) else ""
            raise yaml.YAMLError(f"{value!r} is no {node.tag.rpartition(':')[2]},{node.start_mark}") from error


def _extent(node: yaml.Node, known: dict[yaml.Node, tuple[int, int]]) -> tuple[int, int]:
    """The size and the depth of the tree under `node` once its aliases are expanded; a loop is infinitely deep."""
    if node not in known:
        known[node] = (0, MAX_DEPTH + 1)  # until it is known: an alias inside itself
        parts = [_extent(child, known) for child in _children(node)]
        characters = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        known[node] = (1 + characters + sum(size for size, _ in parts), 1 + max((d for _, d in parts), default=0))
    return known[node]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
