"""The one error tree. Each class fixes its HTTP status, its gRPC code and whether a retry can help.

BatonError                     500 INTERNAL
├── InvalidRequestError        400 INVALID_ARGUMENT     a field is wrong; `param` names it
│   ├── ContextLengthError     400 INVALID_ARGUMENT     prompt + max_tokens are too long
│   ├── GrammarError           400 INVALID_ARGUMENT     a grammar or schema that cannot be enforced
│   ├── AdapterError           400 INVALID_ARGUMENT     an adapter's folder; names tensor and value
│   └── UnprocessableError     422 INVALID_ARGUMENT     its parts contradict each other
├── AuthenticationError        401 UNAUTHENTICATED
├── PermissionError_           403 PERMISSION_DENIED
├── NotFoundError              404 NOT_FOUND            unknown model or route
│   └── AdapterNotFoundError   404 NOT_FOUND            an adapter that is not loaded
├── PayloadTooLargeError       413 RESOURCE_EXHAUSTED
├── OverloadedError            429 RESOURCE_EXHAUSTED   retryable, carries `retry_after_s`
├── CancelledError             499 CANCELLED            the client went away or asked for it
├── UnavailableError           503 UNAVAILABLE          retryable
│   └── WorkerLostError        503 UNAVAILABLE          its worker is gone
│       └── WorkerLeavingError 503 UNAVAILABLE          about to be: its KV can still be had
├── DeadlineError              504 DEADLINE_EXCEEDED    retryable
├── ConfigError                500 FAILED_PRECONDITION  refused at start; names the field
│   └── ModelLoadError         500 FAILED_PRECONDITION  a model folder; names the tensor
└── TransferError              500 INTERNAL             KV did not move; the owner recomputes
    ├── LayoutMismatchError    500 FAILED_PRECONDITION  two workers' KV layouts cannot be mapped
    ├── PeerLostError          503 UNAVAILABLE          final for that (peer, incarnation)
    └── StaleEpochError        500 ABORTED              a write names an epoch that is over
"""

from __future__ import annotations

from typing import ClassVar


class BatonError(Exception):
    """Root of the tree. `param` names the offending field; `code` is a stable word for machines."""

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False
    error_type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code


class InvalidRequestError(BatonError):
    http_status = 400
    grpc_code = "INVALID_ARGUMENT"
    error_type = "invalid_request_error"
    default_code = "invalid_value"


class ContextLengthError(InvalidRequestError):
    default_code = "context_length_exceeded"


class GrammarError(InvalidRequestError):
    """`reason` is for counting, and stays where it was raised: `invalid` (it cannot be read),
    `unsupported` (no backend enforces all of it), `too_complex` (beyond a limit), `unmatchable` (no
    output matches it, or none that ends).
    """

    default_code = "invalid_grammar"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        reason: str = "invalid",
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.reason = reason


class AdapterError(InvalidRequestError):
    default_code = "invalid_adapter"


class UnprocessableError(InvalidRequestError):
    http_status = 422
    default_code = "unprocessable"


class AuthenticationError(BatonError):
    http_status = 401
    grpc_code = "UNAUTHENTICATED"
    error_type = "authentication_error"
    default_code = "invalid_api_key"


class PermissionError_(BatonError):
    http_status = 403
    grpc_code = "PERMISSION_DENIED"
    error_type = "permission_error"
    default_code = "permission_denied"


class NotFoundError(BatonError):
    http_status = 404
    grpc_code = "NOT_FOUND"
    error_type = "invalid_request_error"
    default_code = "not_found"


class AdapterNotFoundError(NotFoundError):
    default_code = "adapter_not_found"


class PayloadTooLargeError(BatonError):
    http_status = 413
    grpc_code = "RESOURCE_EXHAUSTED"
    error_type = "invalid_request_error"
    default_code = "payload_too_large"


class OverloadedError(BatonError):
    """Refused to keep the queue bounded. `retry_after_s` is an honest estimate, in seconds."""

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"
    retryable = True
    error_type = "rate_limit_error"
    default_code = "overloaded"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float = 1.0,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after_s = retry_after_s


class CancelledError(BatonError):
    http_status = 499
    grpc_code = "CANCELLED"
    error_type = "cancelled"
    default_code = "cancelled"


class UnavailableError(BatonError):
    http_status = 503
    grpc_code = "UNAVAILABLE"
    retryable = True
    error_type = "service_unavailable"
    default_code = "unavailable"


class WorkerLostError(UnavailableError):
    default_code = "worker_lost"


class WorkerLeavingError(WorkerLostError):
    default_code = "worker_leaving"


class DeadlineError(BatonError):
    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"
    retryable = True
    error_type = "timeout_error"
    default_code = "deadline_exceeded"


class ConfigError(BatonError):
    grpc_code = "FAILED_PRECONDITION"
    error_type = "configuration_error"
    default_code = "invalid_configuration"


class ModelLoadError(ConfigError):
    default_code = "model_load_failed"


class TransferError(BatonError):
    error_type = "transfer_error"
    default_code = "transfer_failed"


class LayoutMismatchError(TransferError):
    grpc_code = "FAILED_PRECONDITION"
    default_code = "layout_mismatch"


class PeerLostError(TransferError):
    http_status = 503
    grpc_code = "UNAVAILABLE"
    retryable = True
    default_code = "peer_lost"


class StaleEpochError(TransferError):
    grpc_code = "ABORTED"
    default_code = "stale_epoch"


def error_classes() -> dict[str, type[BatonError]]:
    """Every class of the tree by its default code, to rebuild errors that crossed a process."""
    found: dict[str, type[BatonError]] = {}
    pending: list[type[BatonError]] = [BatonError]
    while pending:
        cls = pending.pop()
        found[cls.default_code] = cls
        pending.extend(cls.__subclasses__())
    return found


def error_from_code(code: str, message: str, *, param: str | None = None) -> BatonError:
    """Rebuilds an error that another process sent; an unknown code becomes a BatonError."""
    cls = error_classes().get(code, BatonError)
    return cls(message, param=param)
