"""Errors as answers: what happened, what to do, and a code that never changes. Pages get a page, programs get JSON."""

from __future__ import annotations

from typing import Any

import structlog
from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException
from litestar.response import Template

from headrace.core.errors import Conflict, DataError, HeadraceError, NotFound, Unavailable

log = structlog.get_logger()


def status_of(error: HeadraceError) -> int:
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, Conflict):
        return 409
    if isinstance(error, DataError):
        return 422
    return 503 if isinstance(error, Unavailable) else 400


def from_ours(request: Request[Any, Any, Any], error: HeadraceError) -> Response[Any]:
    return _answer(request, status_of(error), error.message, error.hint, error.code)


def from_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    detail = error.detail
    if error.extra:
        parts = [f"{item.get('key', '')}: {item.get('message', '')}" for item in error.extra if isinstance(item, dict)]
        detail = "; ".join(parts) or detail
    hint = "see /schema for the calls there are" if error.status_code in (400, 404, 405) else ""
    return _answer(request, error.status_code, detail, hint, f"web.http_{error.status_code}")


def from_bug(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log.error("request.failed", path=request.url.path, method=request.method, exc_info=error)
    return _answer(request, 500, "the console made a mistake", "the log of part `web` has the details", "web.internal")


def _answer(request: Request[Any, Any, Any], status: int, message: str, hint: str, code: str) -> Response[Any]:
    if request.url.path.startswith(("/api/", "/schema", "/static/")) or "text/html" not in request.headers.get(
        "accept", ""
    ):
        return Response(
            {"error": {"code": code, "message": message, "hint": hint}}, status_code=status, media_type=MediaType.JSON
        )
    context = {"status": status, "message": message, "hint": hint, "code": code}
    return Template("problem.html", context=context, status_code=status, media_type=MediaType.HTML)
