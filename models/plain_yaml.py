"""YAML files that people edit, read within narrow limits: no aliases, no tags, nothing deep and nothing long."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from srsplan.models.errors import InputError

DEEPEST = 20
LONGEST_SCALAR = 20_000
"""Letters of the longest value; numbers of more digits take long to read."""


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml's loader where it is installed; a key that stands twice is refused, not the first one forgotten."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping; ConstructorError where two of its keys are the same."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                told = f"the key {key.value[:80]!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, told, key.start_mark)
            seen.add(str(key.value))
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


def parsed(content: bytes, path: Path, what: str, mend: str) -> Any:
    """Return the document of a plain YAML file; InputError names the file. `what` it is ("plan"), `mend`: the hint."""
    try:
        text = content.decode()
        _check_plain(text, path, what, mend)
        return yaml.load(text, Loader)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8", mend) from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}", mend) from None
    except (ValueError, RecursionError) as error:
        # what looks like a date or a number, and is none
        raise InputError(
            f"{path} holds a value that cannot be read: {' '.join(str(error).split())[:200]}", mend
        ) from None


def _check_plain(text: str, path: Path, what: str, mend: str) -> None:
    """Raise InputError for what makes a small file large, or runs what it names."""
    depth = 0
    for event in yaml.parse(text, Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise InputError(f"{path} has anchors or aliases (& or *), which a {what} never has", mend)
        if getattr(event, "tag", None) is not None:
            raise InputError(f"{path} has tags (!), which a {what} never has", mend)
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_SCALAR:
            raise InputError(f"{path} has a value of {len(event.value):,} letters", mend)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise InputError(f"{path} is nested deeper than {DEEPEST} levels", mend)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
