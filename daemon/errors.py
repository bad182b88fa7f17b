"""What the daemon can tell a client went wrong: one class each, all statuses in one table.

The message is what the client reads, word for word; it never carries a traceback or a path that the
client did not send. Rooms raise these; only `daemon/api` turns them into HTTP.
"""

from __future__ import annotations

from backends.types import Failed


class DaemonError(Exception):
    """`message` is for the user. `status` comes from `STATUSES`, through the class."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    @property
    def status(self) -> int:
        for kind in type(self).__mro__:
            if kind in STATUSES:
                return STATUSES[kind]
        return 500


class Invalid(DaemonError):
    """The request cannot be understood or obeyed as it is."""


class TooLong(Invalid):
    """The prompt does not fit the context."""


class Forbidden(DaemonError):
    """Understood, but not for this client."""


class StoreReadOnly(Forbidden):
    """The model store is not ours to change."""


class NotFound(DaemonError):
    """No such model, blob or page."""


class Cancelled(DaemonError):
    """The client went away, or the daemon took the request back. Nobody reads the answer."""

    def __init__(self, message: str = "request canceled") -> None:
        super().__init__(message)


class Internal(DaemonError):
    """A defect, or something of the machine that no client can change."""


class BadOption(Internal):
    """An option of the wrong type. 500 and not 400, because that is what clients know."""


class LoadFailed(DaemonError):
    """A model that cannot be put into memory, or a conversion that failed."""


class DeviceFailed(LoadFailed):
    """A device cannot hold this model, or computed wrong numbers; another device may do."""


class WorkerDied(DaemonError):
    """The worker process ended under a request."""


class NotYet(DaemonError):
    """Known, but not built in this version; the message names the field, route or feature."""


class Busy(DaemonError):
    """The queue is full, or the daemon is stopping."""


class NoSpace(DaemonError):
    """The filesystem has no room for it; both sizes are in the message."""


STATUSES: dict[type[DaemonError], int] = {
    Invalid: 400,
    TooLong: 400,
    Forbidden: 403,
    StoreReadOnly: 403,
    NotFound: 404,
    Cancelled: 499,
    Internal: 500,
    BadOption: 500,
    LoadFailed: 500,
    DeviceFailed: 500,
    WorkerDied: 500,
    NotYet: 501,
    Busy: 503,
    NoSpace: 507,
}

# One class for every code that a worker can send (`backends.failure_codes`).
FAILURE_CLASSES: dict[str, type[DaemonError]] = {
    "invalid": Invalid,
    "too_long": TooLong,
    "unsupported": NotYet,
    "template": Invalid,
    "load": LoadFailed,
    "memory": LoadFailed,
    "device": DeviceFailed,
    "internal": Internal,
    "died": WorkerDied,
    "cancelled": Cancelled,
}


def error_from_failed(failed: Failed) -> DaemonError:
    """The error a worker's `Failed` stands for; unknown codes of a newer worker are internal."""
    return FAILURE_CLASSES.get(failed.code, Internal)(failed.message)
