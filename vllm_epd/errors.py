# SPDX-License-Identifier: Apache-2.0
"""The one exception tree of the project.

EPDError
├── ConfigError              what the user asked for cannot be done as asked
│   └── RoleConflictError    a flag contradicts the role
├── PluginError              vLLM is not the one this package knows, or a change to it failed
├── KernelError              an operation on tensors was given what it cannot take, or could not run
├── TransferError            bytes could not be moved
│   ├── PeerError            the other side is gone, foreign or incompatible
│   ├── EmbeddingLostError   the producer no longer holds the embedding
│   ├── PoolError            an item does not fit the pool
│   ├── DamagedError         other bytes have arrived than were sent
│   └── StuckReadError       a read was given up, and its bytes may still come
└── RequestError             one request cannot be served; carries its HTTP status
    ├── BadRequestError      400: the client must change the request
    ├── NoInstanceError      503: no instance for a stage
    └── UpstreamError        an instance answered with an error, or not at all
"""


class EPDError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(EPDError):
    """A configuration that cannot be honoured."""


class RoleConflictError(ConfigError):
    """A flag of the user's contradicts what the role needs."""

    def __init__(self, role: str, flag: str, why: str) -> None:
        super().__init__(f"--epd-role {role} contradicts {flag}: {why}")
        self.role = role
        self.flag = flag


class PluginError(EPDError):
    """A change to vLLM could not be made."""


class KernelError(EPDError):
    """An operation of `vllm_epd.ops` was given what it cannot take, or its kernel could not run."""


class TransferError(EPDError):
    """Bytes could not be moved between two processes."""


class PeerError(TransferError):
    """The peer is gone, foreign or of another fingerprint."""


class EmbeddingLostError(TransferError):
    """The producer does not hold the embedding any more."""


class PoolError(TransferError):
    """An item does not fit the pool."""


class DamagedError(TransferError):
    """Other bytes have arrived than were sent."""


class StuckReadError(TransferError):
    """A read was given up and does not end; where it lands is not to be used again."""


class RequestError(EPDError):
    """One request cannot be served.

    Attributes:
        status: HTTP status of the answer.
        error_type: the `type` of an OpenAI error object.
        param: the request field at fault, if there is one.
        retry_after_s: seconds after which another try makes sense, if known.
    """

    status = 500
    error_type = "InternalServerError"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after_s = retry_after_s


class BadRequestError(RequestError):
    """The client must change the request."""

    status = 400
    error_type = "BadRequestError"


class NoInstanceError(RequestError):
    """No instance serves a stage that the request needs."""

    status = 503
    error_type = "ServiceUnavailableError"


class UpstreamError(RequestError):
    """An instance answered with an error, or not at all.

    Attributes:
        stage: the stage that failed, for example `encode`.
        body: the instance's own error body, passed on unchanged when there is one.
    """

    error_type = "UpstreamError"

    def __init__(self, message: str, *, stage: str, status: int = 502, body: bytes | None = None) -> None:
        super().__init__(message)
        self.stage = stage
        self.status = status
        self.body = body
