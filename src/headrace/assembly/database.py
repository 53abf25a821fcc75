"""Our own PostgreSQL server, where the project names no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from headrace.core.clock import SystemClock
from headrace.core.config import Project

# Imported where they are used: a part loads what it runs and no more, which is most of its start and of its memory.
if TYPE_CHECKING:
    from headrace.warehouse.server import PostgresServer


def own_server(project: Project) -> PostgresServer | None:
    """The PostgreSQL server that Headrace runs for this project; None where it uses another or no warehouse at all."""
    from headrace.warehouse.server import PostgresServer

    config = project.settings.warehouse
    if not config.enabled or not project.settings.entities or config.url:
        return None
    return PostgresServer(project.state_folder("warehouse"), SystemClock())


@asynccontextmanager
async def database(project: Project) -> AsyncIterator[None]:
    """Our own PostgreSQL, started for the time of one command where the project is down."""
    server = own_server(project)
    if server is None or server.status().running:
        yield
        return
    await server.start()
    try:
        yield
    finally:
        await server.stop()


def warehouse_url(project: Project) -> str:
    """The configured PostgreSQL, else our own server's address. Raises Unavailable where that was never started."""
    server = own_server(project)
    return server.url if server is not None else project.settings.warehouse.url.reveal()
