"""`POST /devices/query`: IoT Hub's query language, a page at a time."""

from __future__ import annotations

from headrace.devices.hub_query import ROWS_DEFAULT, ROWS_MAX
from headrace.gateway.rest.errors import INVALID, Denied
from headrace.gateway.rest.exchange import Answer, Request, answer_json
from headrace.gateway.rest.services import HubServices

CONTINUATION, PAGE_SIZE, ITEM_TYPE = "x-ms-continuation", "x-ms-max-item-count", "x-ms-item-type"


class Queries:
    def __init__(self, services: HubServices) -> None:
        self._services = services

    async def run(self, request: Request) -> Answer:
        asked = await request.json()
        if not isinstance(asked, dict) or not isinstance(asked.get("query"), str):
            raise Denied(INVALID, "query is missing", hint='send {"query": "SELECT * FROM devices"}')
        size = request.number(PAGE_SIZE, request.headers.get(PAGE_SIZE), default=ROWS_DEFAULT)
        if size < 1:
            size = ROWS_MAX  # -1 is how some clients say that they do not mind
        page = await self._services.hub_queries.run(
            asked["query"], rows_max=size, continuation=request.headers.get(CONTINUATION, "")
        )
        headers: dict[str, str] = {ITEM_TYPE: page.item_type}
        if page.continuation:
            headers[CONTINUATION] = page.continuation
        return answer_json(page.rows, headers=headers)
