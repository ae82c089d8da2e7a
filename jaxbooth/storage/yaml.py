"""YAML files of a user: plain values, of limited size, without duplicate keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jaxbooth.errors import UserError, short_repr
from jaxbooth.storage.text import MAX_REASON, read_text

MAX_YAML_BYTES = 2**18
MAX_VALUES = 10_000  # of a configuration in which every alias is written out
MAX_DEPTH = 20  # of values within values
TIMESTAMP = "tag:yaml.org,2002:timestamp"


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but dates stay text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file of keys and values; an empty file has none.

    Raises:
        UserError: see `load_document`, or it is no mapping.
    """
    _, content = load_document(path, MAX_YAML_BYTES, MAX_VALUES)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}.")
    return content


def read_yaml_list(path: Path, max_bytes: int, max_values: int) -> list[tuple[int, Any]]:
    """Reads the entries of a YAML file that is a list, each with the line that it starts in; an empty file has none.

    Raises:
        UserError: see `load_document`, or it is no list.
    """
    node, content = load_document(path, max_bytes, max_values)
    if content is None:
        return []
    if not isinstance(node, yaml.SequenceNode) or not isinstance(content, list):
        raise UserError(f"{path}: expected a list, found {type(content).__name__}; begin each entry with a dash.")
    return [(child.start_mark.line + 1, value) for child, value in zip(node.value, content, strict=True)]


def load_document(path: Path, max_bytes: int, max_values: int) -> tuple[yaml.Node | None, Any]:
    """Reads a YAML file: its node, which knows the lines, and its content; both are None if it is empty.

    Raises:
        UserError: it cannot be read as text, is no YAML, is nested too deeply, has a key twice, or holds more than
            `max_values` values once its aliases are written out.
    """
    loader = None
    try:
        loader = Loader(read_text(path, max_bytes))
        node = loader.get_single_node()
        check_size(node, path, max_values)
        check_keys(node, path)
        return node, None if node is None else loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; a configuration has sections of keys and values.") from None
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{path} is not valid YAML: {problem_of(error)}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0][:MAX_REASON]}.") from None
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError):  # of values that do not fit their tag
        raise UserError(
            f"{path} holds a number of thousands of digits, or a value that does not fit its tag."
        ) from None
    finally:
        if loader:
            loader.dispose()


def problem_of(error: yaml.MarkedYAMLError) -> str:
    """Returns what is wrong and where, in one line."""
    line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
    return f"{(error.problem or error.context or 'it cannot be parsed')[:MAX_REASON]}{line}"


def children(node: yaml.Node) -> list[yaml.Node]:
    """Returns the nodes directly within a node."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def check_size(node: yaml.Node | None, path: Path, max_values: int) -> None:
    """Refuses aliases that contain themselves or multiply: a small file could fill the memory.

    Raises:
        UserError: there are more than `max_values` values, or they lie deeper than MAX_DEPTH.
    """
    sizes: dict[int, int] = {}

    def size(part: yaml.Node, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise UserError(f"{path} is nested too deeply; a configuration has sections of keys and values.")
        if id(part) not in sizes:
            sizes[id(part)] = 1 + sum(size(child, depth + 1) for child in children(part))
        return sizes[id(part)]

    if node is not None and size(node, 0) > max_values:
        raise UserError(f"{path} holds more than {max_values:,} values (aliases written out); remove some.")


def check_keys(node: yaml.Node | None, path: Path) -> None:
    """Refuses a key that occurs twice in one mapping; YAML readers would use one of the two values.

    Raises:
        UserError: the message names the key and both lines.
    """
    for mapping in mappings(node):
        lines: dict[str, int] = {}
        for key, _ in mapping.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                raise UserError(
                    f"{path}: the key {short_repr(key.value)} stands in line {lines[key.value]} and again in line "
                    f"{line}; remove one."
                )
            lines[key.value] = line


def mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """Yields the mappings within a node, each once."""
    waiting, seen = [node] if node is not None else [], set()
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen.add(id(part))
            waiting += children(part)
            if isinstance(part, yaml.MappingNode):
                yield part
