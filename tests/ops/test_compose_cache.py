"""The cache of the compose stack, with a real Valkey: it knows all its options, and accepts other hosts."""

import contextlib
import socket
import subprocess
import time

import pytest

from presift.cache.embedded import valkey_binary

from .sources import BASE, TLS, config


def command(files, *more):
    name, *options = config(files=files)["services"]["cache"]["command"]
    assert name == "valkey-server"
    return [str(valkey_binary()), *options, *more]


def free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def address_of_this_machine():
    """Not loopback. Skips if it has no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards, contextlib.suppress(OSError):
        towards.connect(("192.0.2.200", 9))  # nothing is sent
        return towards.getsockname()[0]
    pytest.skip("this machine has no address but loopback")


@contextlib.contextmanager
def running(arguments, folder, port):
    process = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not asked("127.0.0.1", port, "PING").startswith("+PONG"):
            assert process.poll() is None and time.monotonic() < deadline, "it did not start"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def asked(host, port, *words):
    """The raw reply to a Redis command; empty if the connection is refused."""
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, port), 5) as connection:
        with contextlib.suppress(OSError):  # the server may close the connection early
            connection.sendall(" ".join(words).encode() + b"\r\n")
        return connection.recv(4096).decode()
    return ""


def test_other_hosts_are_accepted(tmp_path):
    """In protected mode, its default, only loopback is: the health check passes and the orchestrator is refused."""
    port, host = free_port(), address_of_this_machine()
    with running(command((BASE,), "--port", str(port)), tmp_path, port):
        assert asked(host, port, "PING").startswith("+PONG")
        assert "allkeys-lru" in asked(host, port, "CONFIG", "GET", "maxmemory-policy")
    with running(command((BASE,), "--port", str(port), "--protected-mode", "yes"), tmp_path, port):
        assert asked(host, port, "PING").startswith("-DENIED")


def test_certificates_are_read_again(tmp_path):
    """This Valkey is built without TLS, but knows every option of the layer."""
    port = free_port()
    with running(command((BASE, TLS), "--tls-port", "0", "--port", str(port)), tmp_path, port):
        *_, seconds, _ = asked("127.0.0.1", port, "CONFIG", "GET", "tls-auto-reload-interval").split("\r\n")
        assert 0 < int(seconds) <= 86_400
        assert "\r\nno\r\n" in asked("127.0.0.1", port, "CONFIG", "GET", "protected-mode")
