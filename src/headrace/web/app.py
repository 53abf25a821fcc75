"""The console as one ASGI application: API, pages, static files and the live feed behind them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from litestar import Litestar, Router
from litestar.config.compression import CompressionConfig
from litestar.datastructures import CacheControlHeader, State
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.static_files import create_static_files_router
from litestar.template.config import TemplateConfig

from headrace import __version__
from headrace.core.errors import HeadraceError
from headrace.web import problems, rights, security
from headrace.web.commands import devices as device_commands
from headrace.web.commands import enrolments as enrolment_commands
from headrace.web.commands.alerts import acknowledge
from headrace.web.fleet import Fleet
from headrace.web.fleet_room import FleetRoom
from headrace.web.hub import Hub
from headrace.web.live import LiveHub
from headrace.web.pages import handlers as pages
from headrace.web.queries import devices, enrolments, fleet, history, jobs, live, operations
from headrace.web.registry import RegistryIndex
from headrace.web.services import WebServices
from headrace.web.shared import Shared
from headrace.web.status import known_streams
from headrace.web.threads import Threads

log = structlog.get_logger()

HERE = Path(__file__).parent
HANDLERS = [
    pages.live_page,
    pages.machine_page,
    pages.history_page,
    pages.operations_page,
    pages.jobs_page,
    pages.job_page,
    pages.devices_page,
    pages.device_page,
    pages.enrolments_page,
    fleet.fleet,
    fleet.device,
    fleet.alerts,
    fleet.labels,
    history.history,
    history.query,
    live.live,
    live.live_fleet,
    operations.ledger,
    operations.status,
    operations.streams,
    operations.set_aside,
    operations.health,
    operations.metrics,
    jobs.jobs,
    jobs.job,
    acknowledge,
    devices.hub,
    devices.devices,
    devices.query,
    devices.device,
    devices.messages,
    devices.module_twin,
    devices.keys,
    device_commands.create_device,
    device_commands.set_status,
    device_commands.rotate_key,
    device_commands.delete_device,
    device_commands.set_twin,
    device_commands.invoke_method,
    device_commands.send_message,
    device_commands.purge_messages,
    device_commands.create_module,
    device_commands.delete_module,
    enrolments.enrolments,
    enrolments.registrations,
    enrolments.enrolment_keys,
    enrolments.derive,
    enrolment_commands.create_enrolment,
    enrolment_commands.enable_enrolment,
    enrolment_commands.delete_enrolment,
]
"""Every call there is."""


def create_app(services: WebServices, *, linger_s: float = 0.05, tick_s: float = 1.0) -> Litestar:
    """The console over what it is handed. The live feed runs between the application's start-up and shutdown.

    `linger_s` is how long a feed rests between reads, `tick_s` how often the fleet is brought up to date.
    """
    web = services.settings.web
    known = known_streams(services.settings)
    board = Fleet()
    hub = LiveHub(
        services.log,
        board,
        clock=services.clock,
        metrics=services.metrics,
        fleet_stream=web.telemetry,
        known=known,
        unthinned=(web.anomalies,),
        linger_s=linger_s,
        rows_per_s_max=web.live_rows_per_s_max,
    )
    room = FleetRoom(board, services.incidents, clock=services.clock, tick_s=tick_s)
    hub_api = Hub(services.hub, services.clock)

    @asynccontextmanager
    async def alive(_: Litestar) -> AsyncIterator[None]:
        await _list_registered(services, board)
        try:
            async with hub.running(), room.running():
                yield
        finally:
            await hub_api.close()

    state = State(
        {
            "services": services,
            "fleet": board,
            "hub": hub,
            "room": room,
            "threads": Threads(),
            "ledger": Shared(services.ledger_report, services.clock, age_s=5.0),
            "status": Shared(services.status, services.clock, age_s=1.0),
            "known_streams": known,
            "hub_api": hub_api,
            "registry": RegistryIndex(services.docs),
            "may_change": rights.may_change(web),
        }
    )
    return Litestar(
        route_handlers=[*HANDLERS, _static()],
        state=state,
        logging_config=None,  # logs are set up by whoever runs us
        lifespan=[alive],
        before_request=security.Gate(loopback_only=security.is_loopback(web.host)),
        before_send=[security.add_headers],
        exception_handlers={
            HeadraceError: problems.from_ours,
            HTTPException: problems.from_http,
            Exception: problems.from_bug,
        },
        template_config=TemplateConfig(directory=HERE / "pages" / "templates", engine=JinjaTemplateEngine),
        compression_config=CompressionConfig(backend="gzip", gzip_compress_level=3, exclude=["^/api/live"]),
        openapi_config=OpenAPIConfig(
            title="Headrace console", version=__version__, path="/schema", render_plugins=[JsonRenderPlugin(path="/")]
        ),
    )


def _static() -> Router:
    """Our files and uPlot. Browsers ask each time whether a file changed, so a new version is seen at once."""
    return create_static_files_router(
        path="/static",
        directories=[HERE / "static"],
        cache_control=CacheControlHeader(no_cache=True),
    )


async def _list_registered(services: WebServices, board: Fleet) -> None:
    """What registered devices report on but was not heard of lately is on the page too, as quiet."""
    after = ""
    while found := await services.docs.query("devices", after=after, limit=1000):
        for document in found:
            board.add(str(document.body.get("entity_id") or document.id), str(document.body.get("site") or ""))
        after = found[-1].id


def warn_if_open(host: str, *, may_change: bool = False) -> None:
    """Nobody signs in yet: say so loudly where others can reach the console."""
    if security.is_loopback(host):
        return
    log.warning("console.open_to_network", host=host, hint="anyone who reaches this port sees all data; use 127.0.0.1")
    more = ", change and delete devices and read their keys" if may_change else ""
    print(
        f"warning: the console listens on {host} and asks nobody to sign in: everyone who can reach this port can read "
        f'all data, acknowledge alerts{more}. Set [web] host = "127.0.0.1" unless the network is trusted.',
        file=sys.stderr,
    )
