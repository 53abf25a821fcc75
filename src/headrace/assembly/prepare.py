"""What must stand before the parts of a project start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from headrace.assembly.database import own_server
from headrace.assembly.models import blueprint_of
from headrace.assembly.platform import Platform
from headrace.core.config import Project

# Imported where they are used: a part loads what it runs and no more, which is most of its start and of its memory.
if TYPE_CHECKING:
    from headrace.warehouse.server import PostgresServer


async def prepare(project: Project, report: Callable[[str], None]) -> PostgresServer | None:
    """What must stand before the parts start: certificates, documents, the database. May take seconds.

    Returns our own database server, which the caller must keep running and stop at last.
    """
    platform = Platform(project)
    await asyncio.to_thread(platform.authority.server_context, [platform.hostname])
    server = own_server(project)
    if server is not None:
        await server.start()
        report(f"warehouse: PostgreSQL on 127.0.0.1:{server.status().port}")
    try:
        for collection, named in (("fields", project.settings.fields), ("sites", project.settings.sites)):
            bodies = {name: msgspec.structs.asdict(config) for name, config in named.items()}
            await platform.docs.put_many(collection, bodies)
        await asyncio.to_thread(_prepare_warehouse, platform)
    except BaseException:
        if server is not None:
            await server.stop()
        raise
    finally:
        await platform.close()
    return server


def _prepare_warehouse(platform: Platform) -> None:
    """Migrations and metadata."""
    settings = platform.settings
    spec = blueprint_of(settings)
    if settings.warehouse.enabled and settings.entities:
        platform.warehouse.prepare()
        if spec is not None and spec.metadata is not None:
            for table, rows in spec.metadata().items():
                platform.warehouse.upsert(table, rows.to_pylist())
