"""Bytes of a body to a checked model, with errors that a client can act on."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from baton.protos.errors import InvalidRequestError

Body = TypeVar("Body", bound=BaseModel)

_SHOWN_CHARS = 80


def parse_body(model: type[Body], raw: bytes) -> Body:
    """Raises InvalidRequestError that names the field, its value and what would work."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _explain(model, error) from error


def checked(model: type[Body], value: Any, where: str) -> Body:
    """The same of a value that is in Python already; `where` goes before the names of fields."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = _explain(model, error)
        param = f"{where}.{found.param}" if found.param else where
        raise InvalidRequestError(f"{where}: {found.message}", param=param) from error


def _explain(model: type[BaseModel], error: ValidationError) -> InvalidRequestError:
    first: Any = error.errors(include_url=False, include_context=False)[0]
    kind, path = first["type"], first["loc"]
    if kind == "json_invalid":
        return InvalidRequestError(
            f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}",
            code="invalid_json",
        )
    param = ".".join(str(part) for part in path) or None
    if kind == "extra_forbidden":
        return _unknown_field(model, str(param), path)
    if kind == "missing":
        return InvalidRequestError(
            f"{param} is missing: it is required", param=param, code="missing_required_parameter"
        )
    if param is None:
        return InvalidRequestError("the body must be a JSON object")
    reason = first["msg"].removeprefix("Value error, ")
    shown = _shown(first["input"])
    return InvalidRequestError(f"{param} is {shown}: {reason}", param=param)


def _unknown_field(
    model: type[BaseModel], param: str, path: tuple[object, ...]
) -> InvalidRequestError:
    close = difflib.get_close_matches(str(path[-1]), model.model_fields) if len(path) == 1 else []
    hint = f"did you mean {close[0]}?" if close else "leave it out"
    return InvalidRequestError(
        f"{param[:_SHOWN_CHARS]} is not a field of this endpoint: {hint}",
        param=param[:_SHOWN_CHARS],
        code="unknown_parameter",
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
