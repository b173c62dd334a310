"""A Baton server as the command line's tools reach it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from baton.protos.errors import BatonError, ConfigError, UnavailableError, error_from_code

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A base URL without a path, and the key to send. Raises ConfigError for anything but
    http(s).
    """

    url: str
    api_key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"--url is {self.url!r}, but must look like http://127.0.0.1:8000", param="url"
            )

    @property
    def base(self) -> str:
        """The URL without a trailing slash and without `/v1`, which people paste along."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}


def get_json(endpoint: Endpoint, path: str) -> Any:
    """GETs a document. Raises UnavailableError, or the error that the server answered with."""
    return _request(endpoint, "GET", path, None)


def post_json(endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> Any:
    """POSTs a document and returns the answer. Raises as `get_json`."""
    return _request(endpoint, "POST", path, body)


def get_text(endpoint: Endpoint, path: str) -> str:
    """GETs a text, such as /metrics. Raises as `get_json`."""
    return _send(endpoint, "GET", path, None).text


def post_for_file(
    endpoint: Endpoint, path: str, body: Mapping[str, Any], timeout_s: float
) -> httpx.Response:
    """POSTs a document, whose answer takes its time and is not one. Raises as `get_json`."""
    return _send(endpoint, "POST", path, body, timeout_s)


def _request(endpoint: Endpoint, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
    answer = _send(endpoint, method, path, body)
    try:
        return answer.json()
    except json.JSONDecodeError as error:
        raise UnavailableError(f"{endpoint.base}{path} did not answer with JSON") from error


def _send(
    endpoint: Endpoint,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    timeout_s: float = TIMEOUT_S,
) -> httpx.Response:
    import httpx

    try:
        answer = httpx.request(
            method, endpoint.base + path, json=body, headers=endpoint.headers, timeout=timeout_s
        )
    except httpx.HTTPError as error:
        raise UnavailableError(f"cannot reach {endpoint.base}: {error}") from error
    if answer.status_code != 200:
        raise server_error(answer.status_code, answer.content, path)
    return answer


def server_error(status: int, content: bytes, what: str) -> BatonError:
    """The error that an OpenAI-style answer stands for, with its status in the message."""
    try:
        problem = json.loads(content)["error"]
        message, code = str(problem["message"]), str(problem.get("code"))
    except (ValueError, KeyError, TypeError):
        message, code = content[:200].decode("utf-8", "replace").strip(), ""
    return error_from_code(code, f"{what} answered {status}: {message or 'without a reason'}")


def model_name(endpoint: Endpoint) -> str:
    """The first model that the server lists. Raises BatonError."""
    document = get_json(endpoint, "/v1/models")
    try:
        return str(document["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise UnavailableError(f"{endpoint.base}/v1/models lists no model") from error


def read_workers(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The workers that the gateway knows, as `/baton/workers` tells. Raises BatonError."""
    document = get_json(endpoint, "/baton/workers")
    workers = document.get("workers") if isinstance(document, dict) else None
    if not isinstance(workers, list):
        raise UnavailableError(f"{endpoint.url} answered /baton/workers, but not as Baton does")
    return workers
