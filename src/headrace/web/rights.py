"""Who may change devices and read keys. Nobody signs in yet, so a console that others reach only shows."""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection
from litestar.exceptions import PermissionDeniedException
from litestar.handlers.base import BaseRouteHandler

from headrace.core.config import WebConfig
from headrace.web.security import is_loopback


def may_change(web: WebConfig) -> bool:
    return is_loopback(web.host) or web.remote_commands


def owner_only(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """A guard. Raises PermissionDenied (403)."""
    if not connection.app.state.may_change:
        raise PermissionDeniedException(
            "nobody signs in here, so a console that others reach changes no device and shows no key; "
            'set [web] host = "127.0.0.1", or remote_commands = true where the network is trusted'
        )
