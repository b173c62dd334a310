"""What a gateway is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from baton.gateway.tenants import TenantConfig, all_tenants, check_tenants
from baton.protos.errors import ConfigError
from baton.router.admission_config import AdmissionConfig

# What a parser's name may be besides a format's.
AUTO = "auto"
NO_PARSER = "none"

_POSITIVE = (
    "max_body_bytes",
    "max_concurrent_requests",
    "max_sequences_per_request",
    "default_timeout_s",
    "max_timeout_s",
    "body_timeout_s",
    "keep_alive_s",
    "tokenizer_threads",
    "completion_max_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """One gateway process: where it listens, which model's text it speaks, and every limit.

    `model_dir` holds tokenizer.json, tokenizer_config.json, config.json and the chat template;
    weights are never read. Port 0 takes a free port (`GatewayServer.http_port` tells which);
    `grpc_port` None serves no gRPC. Neither `api_keys` nor `tenants` means no authentication. Times
    are seconds.
    Raises ConfigError.
    """

    model_dir: str
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = 8001
    # Names that clients may call the model by; the first is reported. Empty: the folder's name.
    served_model_names: tuple[str, ...] = ()
    # Secrets: never shown by repr. Each is a tenant of its own, with no limits.
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    tenants: tuple[TenantConfig, ...] = ()
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    max_body_bytes: int = 8 << 20
    # Requests being served by this gateway, HTTP and gRPC together; beyond it 429 with Retry-After.
    max_concurrent_requests: int = 1024
    # n times the number of prompts.
    max_sequences_per_request: int = 128
    # None: the model's context length.
    max_prompt_tokens: int | None = None
    default_timeout_s: float = 600.0
    # The most that a client may ask for with `x-baton-timeout-s` or gRPC's `timeout_s`.
    max_timeout_s: float = 3600.0
    body_timeout_s: float = 30.0
    keep_alive_s: int = 75
    drain_grace_s: float = 30.0
    tokenizer_threads: int = 2
    # max_tokens where /v1/completions has none, as OpenAI; chat then takes the rest of the context.
    completion_max_tokens: int = 16
    # Formats of calls and thoughts (docs/tools.md): a name, "auto" (by the model's chat template
    # and type) or "none". Plugins: Python files with formats of one's own.
    tool_call_parser: str = AUTO
    reasoning_parser: str = AUTO
    tool_parser_plugins: tuple[str, ...] = ()
    tls_cert_path: str | None = None
    tls_key_path: str | None = None

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, but must be more than 0", param=name
                )
        for name in ("http_port", "grpc_port"):
            port = getattr(self, name)
            if port is not None and not 0 <= port <= 65535:
                raise ConfigError(f"{name} is {port}, but must be in [0, 65535]", param=name)
        if self.max_prompt_tokens is not None and self.max_prompt_tokens <= 0:
            raise ConfigError(
                f"max_prompt_tokens is {self.max_prompt_tokens}, but must be more than 0, or None "
                "for the model's context length",
                param="max_prompt_tokens",
            )
        if self.drain_grace_s < 0:
            raise ConfigError(
                f"drain_grace_s is {self.drain_grace_s}, but must be 0 or more",
                param="drain_grace_s",
            )
        if self.default_timeout_s > self.max_timeout_s:
            raise ConfigError(
                f"default_timeout_s ({self.default_timeout_s}) exceeds max_timeout_s "
                f"({self.max_timeout_s}): lower the first or raise the second",
                param="default_timeout_s",
            )
        if any(not key for key in self.api_keys):
            raise ConfigError("api_keys holds an empty key: remove it", param="api_keys")
        check_tenants(self.tenants, self.api_keys)
        if (self.tls_cert_path is None) != (self.tls_key_path is None):
            raise ConfigError(
                "tls_cert_path and tls_key_path go together: set both or neither",
                param="tls_cert_path",
            )

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every name that a request's `model` may have; the first is the one that is reported."""
        return self.served_model_names or (Path(self.model_dir).resolve().name,)

    @property
    def every_tenant(self) -> list[TenantConfig]:
        """Configured tenants, and those that plain API keys stand for."""
        return all_tenants(self.tenants, self.api_keys)
