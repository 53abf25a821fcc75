"""`/devices` and `/devices/{id}/modules`: the identity registry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from headrace.core.errors import HeadraceError
from headrace.devices.hub_view import View
from headrace.devices.model import RegisteredModule
from headrace.docstore.contract import ANY
from headrace.gateway.rest.errors import INVALID, Denied, kind_of, told
from headrace.gateway.rest.exchange import Answer, Request, answer_json, converted
from headrace.gateway.rest.services import HubServices
from headrace.gateway.rest.shapes import DeviceJson, Imported, ModuleJson, device_json, module_json
from headrace.wire.iothub.topics import Identity

BULK_MAX = 100
PAGE_MAX = 1000


class Identities:
    def __init__(self, services: HubServices) -> None:
        self._services = services
        self._modes: dict[str, Callable[[Imported], Awaitable[None]]] = {
            "create": self._create,
            "update": lambda entry: self._update(entry, ANY),
            "updateifmatchetag": lambda entry: self._update(entry, _etag(entry.e_tag)),
            "delete": lambda entry: self._delete(entry, ANY),
            "deleteifmatchetag": lambda entry: self._delete(entry, _etag(entry.e_tag)),
            "createorupdate": lambda entry: self._create_or_update(entry, ANY),
            "createorupdateifmatchetag": lambda entry: self._create_or_update(entry, _etag(entry.e_tag)),
            "updatetwin": lambda entry: self._update_twin(entry, None),
            "updatetwinifmatchetag": lambda entry: self._update_twin(entry, _etag(entry.twin_e_tag)),
        }

    async def put_device(self, request: Request, id: str) -> Answer:
        """Creates without If-Match, changes with it."""
        draft = (await request.struct(DeviceJson)).draft(id)
        if request.if_match is None:
            made = await self._services.commands.register(draft)
        else:
            made = await self._services.commands.replace(draft, if_match=request.if_match)
        return _answer(await self._services.views.one(made.device, etag=made.etag))

    async def get_device(self, request: Request, id: str) -> Answer:
        return _answer(await self._services.view(id))

    async def delete_device(self, request: Request, id: str) -> Answer:
        await self._services.commands.delete(id, if_match=request.if_match)
        return Answer(204)

    async def list_devices(self, request: Request) -> Answer:
        """Up to `top` devices by id."""
        top = request.number("top", (request.query.get("top") or [None])[0], default=PAGE_MAX)
        if top < 1:
            raise Denied(INVALID, f"top is {top}", hint=f"use 1 to {PAGE_MAX}")
        views = await self._services.views.devices(limit=min(top, PAGE_MAX))
        return answer_json([device_json(view) for view in views])

    async def put_module(self, request: Request, device: str, id: str) -> Answer:
        draft = (await request.struct(ModuleJson)).draft(device, id)
        if request.if_match is None:
            return await self._module(await self._services.commands.create_module(draft), status=201)
        return await self._module(await self._services.commands.replace_module(draft, if_match=request.if_match))

    async def get_module(self, request: Request, device: str, id: str) -> Answer:
        return _answer(await self._services.view(device, id))

    async def delete_module(self, request: Request, device: str, id: str) -> Answer:
        await self._services.view(device)
        await self._services.commands.delete_module(device, id, if_match=request.if_match)
        return Answer(204)

    async def list_modules(self, request: Request, device: str) -> Answer:
        owner = (await self._services.view(device)).device
        found = await self._services.queries.modules(device)
        return answer_json(
            [module_json(await self._services.views.one(owner, one.module, etag=one.etag)) for one in found]
        )

    async def bulk(self, request: Request) -> Answer:
        """Each entry by itself, in order; 400 with all that failed when any did."""
        entries = await request.json()
        if not isinstance(entries, list) or len(entries) > BULK_MAX:
            raise Denied(INVALID, "a bulk request takes a list of devices", hint=f"send at most {BULK_MAX}")
        errors: list[dict[str, Any]] = []
        for entry in entries:
            try:
                await self._import(entry)
            except HeadraceError as exc:
                errors.append(_failure(entry, exc))
        found = {"isSuccessful": not errors, "errors": errors, "warnings": []}
        return answer_json(found, status=400 if errors else 200)

    async def count_devices(self, request: Request) -> Answer:
        total, disabled = await self._services.queries.count(), await self._services.queries.count_disabled()
        return answer_json(
            {"totalDeviceCount": total, "enabledDeviceCount": total - disabled, "disabledDeviceCount": disabled}
        )

    async def count_connected(self, request: Request) -> Answer:
        return answer_json({"connectedDeviceCount": await self._services.views.connected()})

    async def _module(self, found: RegisteredModule, *, status: int = 200) -> Answer:
        owner = await self._services.queries.get(found.module.device)
        return _answer(await self._services.views.one(owner, found.module, etag=found.etag), status=status)

    async def _import(self, entry: Any) -> None:
        given = converted(entry, Imported)
        mode = self._modes.get((given.import_mode or "createOrUpdate").lower())
        if mode is None:
            raise Denied(INVALID, f"import mode {str(given.import_mode)[:40]!r}", hint="use create, update, delete, …")
        await mode(given)

    async def _create(self, entry: Imported) -> None:
        if entry.module_id is not None:
            await self._services.commands.create_module(entry.module_draft(entry.module_id))
        else:
            await self._services.commands.register(entry.draft(entry.id))
        if entry.twin:
            await self._services.twins.replace(Identity(entry.id, entry.module_id), entry.twin)

    async def _update(self, entry: Imported, if_match: str) -> None:
        if entry.module_id is not None:
            await self._services.commands.replace_module(entry.module_draft(entry.module_id), if_match=if_match)
        else:
            await self._services.commands.replace(entry.draft(entry.id), if_match=if_match)

    async def _create_or_update(self, entry: Imported, if_match: str) -> None:
        try:
            await self._create(entry)
        except HeadraceError as exc:
            if exc.code not in ("device.exists", "module.exists"):
                raise
            await self._update(entry, if_match)

    async def _delete(self, entry: Imported, if_match: str) -> None:
        if entry.module_id is not None:
            await self._services.commands.delete_module(entry.id, entry.module_id, if_match=if_match)
        else:
            await self._services.commands.delete(entry.id, if_match=if_match)

    async def _update_twin(self, entry: Imported, if_match: str | None) -> None:
        await self._services.view(entry.id, entry.module_id)
        await self._services.twins.update(Identity(entry.id, entry.module_id), entry.twin, if_match=if_match)


def _answer(view: View, *, status: int = 200) -> Answer:
    """A device or a module, with its etag in a header too."""
    body = device_json(view) if view.module is None else module_json(view)
    return answer_json(body, status=status, headers={"etag": f'"{view.etag}"'})


def _etag(text: str | None) -> str:
    """Raises Denied (400) where a mode needs an etag and there is none."""
    if not text:
        raise Denied(INVALID, "this import mode needs an etag", hint="send eTag (twinETag for twins)")
    return text.strip('"')


def _failure(entry: Any, exc: HeadraceError) -> dict[str, Any]:
    known = entry if isinstance(entry, dict) else {}
    return {
        "deviceId": known.get("id"),
        "moduleId": known.get("moduleId"),
        "operation": known.get("importMode"),
        "errorCode": kind_of(exc).name,
        "errorStatus": told(exc),
    }
