"""One handler a page. Theme and time zone come from cookies, so that a page never flashes in the wrong colours."""

from __future__ import annotations

from typing import Any

from litestar import Request, get
from litestar.datastructures import State
from litestar.params import FromQuery
from litestar.response import Redirect, Template


def _page(request: Request[Any, Any, Any], state: State, name: str, title: str, **context: Any) -> Template:
    settings = state.services.settings
    theme = request.cookies.get("headrace_theme", "auto")
    zone = request.cookies.get("headrace_zone", "local")
    shell = {
        "page": name,
        "title": title,
        "project": settings.project.title or settings.project.name,
        "theme": theme if theme in ("light", "dark") else "auto",
        "zone": "utc" if zone == "utc" else "local",
        "web": settings.web,
    }
    return Template(f"{name}.html", context={**shell, **context})


@get("/", include_in_schema=False)
async def live_page(request: Request[Any, Any, Any], state: State) -> Template:
    return _page(request, state, "live", "Live")


@get("/machine", include_in_schema=False)
async def machine_page(request: Request[Any, Any, Any], state: State, id: FromQuery[str] = "") -> Template | Redirect:
    if not id:
        return Redirect("/")
    return _page(request, state, "machine", id, entity=id)


@get("/history", include_in_schema=False)
async def history_page(request: Request[Any, Any, Any], state: State) -> Template:
    return _page(request, state, "history", "History")


@get("/operations", include_in_schema=False)
async def operations_page(request: Request[Any, Any, Any], state: State) -> Template:
    return _page(request, state, "operations", "Ledger & health")


@get("/devices", include_in_schema=False)
async def devices_page(request: Request[Any, Any, Any], state: State) -> Template:
    return _page(request, state, "devices", "Devices", may_change=state.may_change)


@get("/device", include_in_schema=False)
async def device_page(request: Request[Any, Any, Any], state: State, id: FromQuery[str] = "") -> Template | Redirect:
    if not id:
        return Redirect("/devices")
    return _page(request, state, "device", id, device=id, may_change=state.may_change)


@get("/enrolments", include_in_schema=False)
async def enrolments_page(request: Request[Any, Any, Any], state: State) -> Template:
    return _page(request, state, "enrolments", "Enrolments", may_change=state.may_change)


@get("/jobs", include_in_schema=False)
async def jobs_page(request: Request[Any, Any, Any], state: State) -> Template:
    return _page(request, state, "jobs", "Jobs")


@get("/job", include_in_schema=False)
async def job_page(request: Request[Any, Any, Any], state: State, name: FromQuery[str] = "") -> Template | Redirect:
    return _page(request, state, "job", name, job=name) if name else Redirect("/jobs")
