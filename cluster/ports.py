"""Whether the ports that a gateway is configured with can be had."""

from __future__ import annotations

import socket
from typing import Final

from baton.gateway.config import GatewayConfig
from baton.protos.errors import ConfigError

# How each is chosen, for who reads that it is taken.
_CHOSEN_BY: Final = {"http_port": "--port, or make serve PORT=...", "grpc_port": "--grpc-port"}


def check_ports(gateway: GatewayConfig) -> None:
    """Raises ConfigError when a fixed port of the gateway is taken on this machine."""
    for name, port in (("http_port", gateway.http_port), ("grpc_port", gateway.grpc_port)):
        if not port:
            continue
        family = socket.AF_INET6 if ":" in gateway.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((gateway.host, port))
            except OSError as error:
                raise ConfigError(
                    f"gateway.{name} {port} cannot be bound on {gateway.host}: {error.strerror}; "
                    f"choose another, or 0 for any free one ({_CHOSEN_BY[name]})",
                    param=f"gateway.{name}",
                ) from error
