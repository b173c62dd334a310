"""The kinds of patch that Kubernetes' clients send, as far as kubectl and Helm send them."""

from __future__ import annotations

import copy
from typing import Any

# What tells the elements of a list apart, by the list's field; elsewhere it is their name.
_MERGE_KEYS = {"ports": "port", "ownerReferences": "uid", "conditions": "type"}


def merged(value: Any, patch: Any) -> Any:
    """RFC 7386, which custom resources get: lists are replaced."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    made = dict(value) if isinstance(value, dict) else {}
    for key, one in patch.items():
        if one is None:
            made.pop(key, None)
        else:
            made[key] = merged(made.get(key), one)
    return made


def strategically_merged(value: Any, patch: Any) -> Any:
    """What built-in kinds get: lists of named things are merged by name; directives (`$patch`,
    `$setElementOrder`, `$retainKeys`, `$deleteFromPrimitiveList`) are followed.
    """
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    if patch.get("$patch") == "replace":
        return {key: one for key, one in patch.items() if key != "$patch"}
    made = dict(value) if isinstance(value, dict) else {}
    for key, one in patch.items():
        field = key.rpartition("/")[2]
        if key.startswith("$deleteFromPrimitiveList/"):
            made[field] = [item for item in made.get(field, []) if item not in one]
        elif key == "$retainKeys":
            made = {name: made[name] for name in one if name in made}
        elif key.startswith("$"):
            continue
        elif one is None:
            made.pop(key, None)
        elif isinstance(one, list) and all(isinstance(item, dict) for item in one):
            made[key] = _merged_list(key, made.get(key) or [], one)
        else:
            made[key] = strategically_merged(made.get(key), one)
    return made


def _merged_list(field: str, old: list[Any], patch: list[Any]) -> list[Any]:
    key = _MERGE_KEYS.get(field, "name")
    if not all(key in item for item in [*old, *patch]):
        return copy.deepcopy(patch)
    found = {item[key]: item for item in old}
    for item in patch:
        if item.get("$patch") == "delete":
            found.pop(item[key], None)
        else:
            found[item[key]] = strategically_merged(found.get(item[key]), item)
    return list(found.values())
