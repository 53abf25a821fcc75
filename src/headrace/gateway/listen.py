"""Listening sockets, opened before anything is served.

A port that cannot be had is no reason not to start: a free one is taken and said. Where several processes share the ports
(SO_REUSEPORT) the first of them decides so, and the others are told what it got and take exactly that.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

import structlog

from headrace.core.errors import UserError

BACKLOG = 2048
NEXT_BEST = {443: 8443}
"""Tried before any free port, because it is the one people expect."""

log = structlog.get_logger()


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def open_port(host: str, port: int, *, setting: str, shared: bool = False, exact: bool = False) -> socket.socket:
    """A listening TCP socket; port 0 takes any free one, and so does a port that is in use or not ours to take.

    `shared` lets other processes of this user listen on the same port; then `exact` is for those that come later: they take
    this port or none. Raises UserError (code gateway.host) where `host` is no address of this machine, and for `exact` where
    the port cannot be had.
    """
    if exact:
        return _listener(host, port, setting, shared=shared)
    try:
        if shared and port:
            _listener(
                host, port, setting, shared=False
            ).close()  # a stranger's port must not be shared with them by accident
        return _listener(host, port, setting, shared=shared)
    except UserError as exc:
        if exc.code == "gateway.host":
            raise
        found = _another(host, port, setting, shared=shared)
        log.warning("port.replaced", setting=setting, wanted=port, got=port_of(found), why=exc.message)
        return found


def _another(host: str, port: int, setting: str, *, shared: bool) -> socket.socket:
    for candidate in (NEXT_BEST.get(port, 0), 0):
        try:
            if candidate and shared:
                _listener(host, candidate, setting, shared=False).close()
            return _listener(host, candidate, setting, shared=shared)
        except UserError as exc:
            if exc.code == "gateway.host" or not candidate:
                raise
    raise AssertionError("port 0 is the last candidate")


def _listener(host: str, port: int, setting: str, *, shared: bool) -> socket.socket:
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
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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
