import pathlib
import socket
import sys

import pytest

from daemon.notify import notify


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")


def test_a_state_reaches_the_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        assert notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_a_socket_that_is_gone_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    assert not notify("STOPPING=1")


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are of Linux")
def test_abstract_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0hearth-test-notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "@hearth-test-notify")
        assert notify("STATUS=well")
        assert listener.recv(100) == b"STATUS=well"
