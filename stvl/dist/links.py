"""JSON lines over TCP between the processes of a program: how they find each other and notice who is gone."""

from __future__ import annotations

import errno
import json
import select
import socket
import threading
import time
from typing import Any

#: Longest line that is read; a greeting has a few hundred bytes.
MAX_LINE = 1 << 20
#: Seconds that one send may take.
_SEND_TIMEOUT = 10.0

Message = dict[str, Any]


class Closed(Exception):
    """The other end is gone, or does not speak JSON lines."""


class Link:
    """One connection: whole messages in and out, and when the other end was last heard.

    Args:
        sock: a connected socket; the link owns it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.heard = time.monotonic()
        self._sock, self._lock, self._rest = sock, threading.Lock(), b""
        sock.settimeout(_SEND_TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """For selectors."""
        return self._sock.fileno()

    def send(self, message: Message) -> None:
        """Write one message.

        Raises:
            Closed: the other end is gone, or took nothing for 10 seconds.
        """
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        try:
            with self._lock:
                self._sock.sendall(data)
        except OSError as problem:
            raise Closed(str(problem)) from problem

    def read(self) -> list[Message]:
        """The messages that one receive completes; call it when the socket is readable.

        Raises:
            Closed: end of stream, an error, or something that is no message.
        """
        try:
            data = self._sock.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError as problem:
            raise Closed(str(problem)) from problem
        if not data:
            raise Closed("end of stream")
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise Closed("a line without an end")
        try:
            found = [json.loads(line) for line in lines]
        except ValueError as problem:
            raise Closed("no JSON") from problem
        if not all(isinstance(message, dict) for message in found):
            raise Closed("no message")
        return found

    def wait(self, seconds: float) -> list[Message]:
        """The next messages, or none after `seconds`.

        Raises:
            Closed: as `read`.
        """
        ready = select.poll()
        ready.register(self._sock, select.POLLIN)
        return self.read() if ready.poll(1000 * seconds) else []

    def close(self) -> None:
        """Close the connection; twice does nothing."""
        self._sock.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: on this machine only where `host` is a name of it, else on every address.

    Raises:
        OSError: the port is taken.
    """
    if host in ("localhost", "127.0.0.1"):
        return socket.create_server(("127.0.0.1", port), backlog=1024)
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
        except OSError as problem:
            if problem.errno == errno.EADDRINUSE:  # IPv4 would say the same
                raise
    return socket.create_server(("", port), backlog=1024)


def connect(host: str, port: int, deadline: float) -> Link | None:
    """Connect to a listener that may not be up yet; None when `deadline` (`time.monotonic`) has passed."""
    pause = 0.1
    while (left := deadline - time.monotonic()) > 0:
        try:
            sock = socket.create_connection((host, port), timeout=min(left, 5.0))
        except OSError:
            time.sleep(min(pause, left))
            pause = min(1.5 * pause, 2.0)
            continue
        # Where nobody listens on a port of the range for outgoing connections, TCP may connect a socket to itself.
        if sock.getsockname() == sock.getpeername():
            sock.close()
            continue
        return Link(sock)
    return None
