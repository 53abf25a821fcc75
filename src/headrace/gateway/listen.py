"""Listening sockets, opened before anything is served, so that a port in use is a clear error and not half a start."""

from __future__ import annotations

import errno
import ipaddress
import socket

from headrace.core.errors import UserError

BACKLOG = 2048


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def open_port(host: str, port: int, *, setting: str) -> socket.socket:
    """A listening TCP socket; port 0 takes any free one. Raises UserError that names `setting` and what to do."""
    host = "127.0.0.1" if host.lower() == "localhost" else host  # one address, and the one that clients try
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as exc:
        raise UserError(
            f"{host!r} is no address of this machine: {exc.strerror}", hint="change [gateway] host", code="gateway.host"
        ) from exc
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as exc:
        listener.close()
        raise _clear(exc, host, port, setting) from exc
    return listener


def _clear(exc: OSError, host: str, port: int, setting: str) -> UserError:
    if exc.errno == errno.EADDRINUSE:
        return UserError(
            f"port {port} on {host} is in use",
            hint=f"stop what uses it, or set [gateway] {setting} to another (0 takes any free one)",
            code="gateway.port_in_use",
        )
    if exc.errno == errno.EACCES:
        return UserError(
            f"port {port} on {host} needs more rights", hint=f"set [gateway] {setting} above 1023", code="gateway.port"
        )
    return UserError(
        f"cannot listen on {host}:{port}: {exc.strerror}", hint="change [gateway] host", code="gateway.host"
    )


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])
