"""Reading a study file: YAML without its traps.

The safe loader alone, and stricter than it: duplicate keys, tags that build objects, recursive aliases and documents
that unfold to something huge are refused, each with the line it stands on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import yaml

from prismlab.errors import SpecError

MAX_BYTES = 4 * 2**20
"""Largest study file, in bytes; the largest shipped one has some ten thousand."""
MAX_DEPTH = 32
"""Deepest nesting of mappings and lists."""
MAX_ALIASES = 256
"""Most uses of ``*anchor`` in one file."""
MAX_NODES = 100_000
"""Most values, before and after every alias is unfolded: what validation would have to visit."""

_YAML = "tag:yaml.org,2002:"
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map", "merge", "value", "timestamp")
"""Tags that plain YAML gives its values by itself."""
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*|0[xX][0-9a-fA-F_]+)$")
"""Whole numbers that mean what they look like. YAML 1.1 reads 010 as 8 and 1:30 as 90."""


class _Refused(Exception):
    """Something that YAML allows and a study file does not."""

    def __init__(self, what: str, mark: yaml.Mark | None) -> None:
        super().__init__(what)
        self.what = what
        self.line = None if mark is None else mark.line + 1


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with caps; nodes are composed and checked before any value is built."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._aliases = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = cast(Any, super()).peek_event()
        if isinstance(event, yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > MAX_ALIASES:
                raise _Refused(f"more than {MAX_ALIASES} aliases; write the values out", event.start_mark)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _Refused(f"more than {MAX_NODES} values", event.start_mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Refused(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused("a key is a list or a mapping; allowed: plain text", key.start_mark)
            text = str(key.value)
            if text in seen:
                raise _Refused(f"duplicate key {text!r} (first on line {seen[text]}); keep one", key.start_mark)
            seen[text] = key.start_mark.line + 1
        return node


def _unfolded(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """Number of values below ``node`` with every alias unfolded."""
    if id(node) in above:
        raise _Refused("an alias that contains itself", node.start_mark)
    if id(node) in sizes:
        return sizes[id(node)]
    above.add(id(node))
    size = 1
    if isinstance(node, yaml.MappingNode):
        size += sum(_unfolded(key, sizes, above) + _unfolded(value, sizes, above) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_unfolded(item, sizes, above) for item in node.value)
    above.discard(id(node))
    sizes[id(node)] = size
    if size > MAX_NODES:
        raise _Refused(f"aliases unfold to more than {MAX_NODES} values", node.start_mark)
    return size


def _check_scalar(node: yaml.ScalarNode) -> None:
    text = str(node.value)
    if node.tag == _YAML + "int" and not _DECIMAL.match(text):
        raise _Refused(f"{text} would be read as a number in another base; write it in decimals", node.start_mark)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _Refused("half of a surrogate pair, which is no character; write the character itself", node.start_mark)


def _check_tags(node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen:
        return
    seen.add(id(node))
    if node.tag.removeprefix(_YAML) not in _PLAIN:
        shown = node.tag.replace(_YAML, "!!")
        raise _Refused(f"the tag {shown} is refused; allowed: plain YAML, no tags that build objects", node.start_mark)
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _check_tags(key, seen)
            _check_tags(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_tags(item, seen)


def _build(text: str) -> Any:
    loader = _Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        if node is None:
            return None
        _unfolded(node, {}, set())
        _check_tags(node, set())
        return cast(Any, loader).construct_document(node)
    finally:
        loader.dispose()  # pyright: ignore[reportUnknownMemberType]


def read_document(path: Path) -> dict[str, Any]:
    """The mapping at the top level of a YAML file.

    Raises:
        SpecError: no such file, too large, not YAML, or something a study file may not hold; one line that names the
            file and the line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{path}: {path.stat().st_size} bytes; a study file holds at most {MAX_BYTES}")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}; 'prism new FILE' writes a starter") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    try:
        document = _build(text)
    except _Refused as error:
        raise SpecError(f"{path}:{error.line}: {error.what}") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        what = error.problem or error.context or ""
        spaces = "; indent with spaces, YAML takes no tabs" if "'\\t'" in what else ""
        raise SpecError(f"{path}{line}: not YAML: {what}{spaces}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        what = "empty" if document is None else f"a {type(document).__name__}"
        raise SpecError(f"{path}: the file is {what}, not a mapping; 'prism new FILE' writes a starter")
    return document  # pyright: ignore[reportUnknownVariableType]
