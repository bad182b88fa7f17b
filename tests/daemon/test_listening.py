import pathlib
import socket

import pytest

from daemon.listening import ListenError, bind_socket
from tests.daemon.api.serving import loopback_config

HOME = pathlib.Path("/nowhere")


def test_a_taken_port_is_named() -> None:
    with bind_socket(loopback_config(HOME)) as first:
        port = first.getsockname()[1]
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}.*in use.*HEARTH_HOST"):
            bind_socket(loopback_config(HOME, port=port))


def test_a_name_that_does_not_exist_is_named() -> None:
    with pytest.raises(ListenError, match=r"no-such-host\.invalid"):
        bind_socket(loopback_config(HOME, host="no-such-host.invalid"))


def test_localhost_is_ipv4() -> None:
    with bind_socket(loopback_config(HOME, host="localhost")) as listener:
        assert listener.family == socket.AF_INET


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_every_interface_in_ipv6_takes_ipv4_too() -> None:
    try:
        listener = bind_socket(loopback_config(HOME, host="::"))
    except ListenError:
        pytest.skip("no IPv6 address here")
    with (
        listener,
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=5) as client,
    ):
        assert client.getpeername()[1] == listener.getsockname()[1]
