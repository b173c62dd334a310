"""JSON Schema, made to fit: what no backend enforces is rewritten into what one does, or refused.

Rewriting keeps the set of valid documents, or makes it smaller where that cannot be said exactly:
so whatever is generated is valid under the schema as it came.
"""
