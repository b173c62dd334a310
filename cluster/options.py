"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from baton.cluster.client import Endpoint

DEFAULT_URL = "http://127.0.0.1:8000"

_api_key = click.option(
    "--api-key", default="", envvar="BATON_API_KEY", help="Key to send. Default $BATON_API_KEY."
)


def endpoint_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --url and --api-key, which reach the command as one `endpoint`."""

    @click.option(
        "--url",
        default=DEFAULT_URL,
        show_default=True,
        help="Base URL of a gateway, or of any OpenAI-compatible server.",
    )
    @_api_key
    @functools.wraps(function)
    def wrapped(url: str, api_key: str, **options: Any) -> Any:
        return function(endpoint=Endpoint(url=url, api_key=api_key), **options)

    return wrapped


def endpoints_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `endpoint_options`, for one gateway or several, which reach the command as `endpoints`."""

    @click.option(
        "--url",
        "urls",
        multiple=True,
        default=(DEFAULT_URL,),
        show_default=True,
        help="Base URL of a gateway; again for each other gateway of the cluster.",
    )
    @_api_key
    @functools.wraps(function)
    def wrapped(urls: tuple[str, ...], api_key: str, **options: Any) -> Any:
        found = tuple(Endpoint(url=url, api_key=api_key) for url in dict.fromkeys(urls))
        return function(endpoints=found, **options)

    return wrapped
