"""Every error that Headrace raises on purpose, one sentence each.

Imports nothing of Headrace, so that any module may raise any of them.
"""


class HeadraceError(Exception):
    """Base of all errors that Headrace raises on purpose."""


class ConfigurationError(HeadraceError):
    """Raised when a setting, a model folder or the machine does not allow what was asked."""


class BrokerUnavailableError(HeadraceError):
    """Raised when the Redis server cannot be reached, or is not one that the contract can run on."""


class ContractVersionError(HeadraceError):
    """Raised when a queue is served under a version of the contract that this program does not speak."""


class DecodeError(HeadraceError):
    """Raised when bytes read from Redis or from another process are not what the contract says they are."""


class ModelError(HeadraceError):
    """Raised when a model's files are missing, damaged, or of a family that is not supported."""


class KernelError(HeadraceError):
    """Raised when a GPU kernel does not compile, or is called with what it cannot take."""


class MeasurementError(HeadraceError):
    """Raised when costs cannot be measured, because a step of the measurement fails."""


class DeviceLostError(HeadraceError):
    """Raised when a GPU has failed in a way that only a new process can recover from."""


class UnhealthyError(HeadraceError):
    """Raised when a process that should run on this machine has sent no heartbeat of late."""


class OutOfMemoryError(HeadraceError):
    """Raised when a step's results do not fit into the memory pool."""


class RequestError(HeadraceError):
    """Base of the errors that concern one request; ``request_id`` tells which."""

    def __init__(self, message: str, *, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


class InvalidRequestError(RequestError):
    """Raised when a request breaks a rule of the contract; ``field`` names the culprit."""

    def __init__(self, message: str, *, field: str = "", request_id: str = "") -> None:
        super().__init__(message, request_id=request_id)
        self.field = field


class OverloadedError(RequestError):
    """Raised when the queue's backlog is over its limit: submit again later."""


class UnknownRequestError(RequestError):
    """Raised when no request of that id is known: never submitted, or its result's time to live has ended."""


class CancelledError(RequestError):
    """Raised by ``result`` when the request was cancelled before it ended."""


class ExpiredError(RequestError):
    """Raised by ``result`` when the request's deadline passed before it ended."""


class FailedError(RequestError):
    """Raised when the fleet gave a request up; ``code`` says why (``poison``, ``lost``, ``worker``)."""

    def __init__(self, message: str, *, code: str = "", request_id: str = "") -> None:
        super().__init__(message, request_id=request_id)
        self.code = code


#: A process that ends with this status has said which setting or file is wrong; starting it again would not help.
CONFIGURATION_STATUS = 2


def exit_status(error: HeadraceError) -> int:
    """The status with which a process ends on an error that nobody has handled."""
    lasting = (ConfigurationError, ContractVersionError, ModelError)
    return CONFIGURATION_STATUS if isinstance(error, lasting) else 1
