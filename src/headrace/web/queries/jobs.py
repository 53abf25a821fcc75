"""Jobs: how each stands, and one of them with its plan and what every operator did."""

from __future__ import annotations

from typing import Any

from litestar import get
from litestar.datastructures import State
from litestar.params import FromPath

from headrace.core.errors import NotFound, nearest
from headrace.docstore.contract import DocStore
from headrace.jobs.model import DETAILS, STATUS

_PAGE = 1000


async def of_collection(docs: DocStore, collection: str) -> list[dict[str, Any]]:
    """The bodies of a collection."""
    found: list[dict[str, Any]] = []
    after = ""
    while page := await docs.query(collection, after=after, limit=_PAGE):
        found += [document.body for document in page]
        after = page[-1].id
    return found


async def all_jobs(docs: DocStore) -> list[dict[str, Any]]:
    return [body for body in await of_collection(docs, STATUS) if body.get("part") == "job"]


@get("/api/jobs", summary="Jobs: state, rows, lag, delay", tags=["operations"])
async def jobs(state: State) -> list[dict[str, Any]]:
    return sorted(await all_jobs(state.services.docs), key=lambda job: str(job["name"]))


@get("/api/jobs/{name:str}", summary="One job, with its plan and operators", tags=["operations"])
async def job(state: State, name: FromPath[str]) -> dict[str, Any]:
    docs = state.services.docs
    status = await docs.get(STATUS, f"job:{name}")
    if status is None:
        known = [str(one["name"]) for one in await all_jobs(docs)]
        raise NotFound(f"no job {name!r}", hint=nearest(name, known) or "see /api/jobs", code="job.unknown")
    details = await docs.get(DETAILS, name)
    return {**status.body, "details": details.body if details is not None else None}
