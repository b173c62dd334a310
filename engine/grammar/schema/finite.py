"""Whether a schema has any finite document: a recursion without a base has none."""

from __future__ import annotations

from typing import Any

from baton.engine.grammar.schema.document import (
    Schema,
    SchemaDocument,
    listed,
    mapped,
    type_names,
)


def has_finite_document(schema: Schema) -> bool:
    """False only if it is sure: every document would go on for ever.

    The least solution of "what it needs has a document", as for the symbols of a grammar.
    """
    document = SchemaDocument(schema)
    search = _Search(document)
    while not search.has_document(schema):
        if not search.learned():
            return False
    return True


class _Search:
    def __init__(self, document: SchemaDocument) -> None:
        self._document = document
        # References known to have documents; those asked for in this round.
        self._known: set[str] = set()
        self._asked: set[str] = set()

    def learned(self) -> bool:
        """Whether another round may find more: new references were met, or found to have some."""
        before = len(self._known) + len(self._asked)
        for reference in sorted(self._asked - self._known):
            target = self._document.resolve(reference)
            if target is None or self.has_document(target):
                self._known.add(reference)
        return len(self._known) + len(self._asked) > before

    def has_document(self, schema: Schema) -> bool:
        self._document.visit()
        if not isinstance(schema, dict):
            return schema is not False
        reference = schema.get("$ref")
        if isinstance(reference, str):
            self._asked.add(reference)
            if reference not in self._known:
                return False
            if self._document.ref_stands_alone:
                return True
        if not all(self.has_document(part) for part in listed(schema.get("allOf"))):
            return False
        for key in ("anyOf", "oneOf"):
            branches = listed(schema.get(key))
            if branches and not any(self.has_document(branch) for branch in branches):
                return False
        if "const" in schema or listed(schema.get("enum")):
            return True
        kinds = type_names(schema.get("type"))
        return any(self._has_document_of(kind, schema) for kind in kinds)

    def _has_document_of(self, kind: str, schema: dict[str, Any]) -> bool:
        if kind == "object":
            properties = mapped(schema.get("properties"))
            needed = [
                properties.get(name, True)
                for name in listed(schema.get("required"))
                if isinstance(name, str)
            ]
            return all(self.has_document(part) for part in needed)
        if kind == "array" and isinstance(schema.get("items"), dict):
            least = schema.get("minItems")
            if isinstance(least, int) and least > len(listed(schema.get("prefixItems"))):
                return self.has_document(schema["items"])
        return True
