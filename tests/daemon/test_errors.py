import pytest

from backends.failure_codes import FAILURE_CODES
from backends.types import Failed
from daemon import errors
from daemon.errors import FAILURE_CLASSES, STATUSES, DaemonError, error_from_failed


def _family(kind: type[DaemonError]) -> set[type[DaemonError]]:
    return {kind}.union(*(_family(sub) for sub in kind.__subclasses__()))


def test_every_code_of_a_worker_has_a_class() -> None:
    assert FAILURE_CLASSES.keys() == FAILURE_CODES.keys()


def test_every_error_of_the_module_has_its_own_status() -> None:
    own = {kind for kind in _family(DaemonError) if kind.__module__ == errors.__name__}
    assert own - {DaemonError} == STATUSES.keys()


@pytest.mark.parametrize(
    ("code", "status"),
    [("too_long", 400), ("unsupported", 501), ("died", 500), ("cancelled", 499), ("newer", 500)],
)
def test_failures_keep_their_message(code: str, status: int) -> None:
    error = error_from_failed(Failed(request_id="r", code=code, message="why"))
    assert (error.status, error.message, str(error)) == (status, "why", "why")


def test_a_class_of_another_room_has_the_status_of_its_parent() -> None:
    class BadName(errors.Invalid):
        pass

    assert BadName("x").status == 400
