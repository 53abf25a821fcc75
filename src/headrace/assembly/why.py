"""Gathers what is known of a device's connection; devices.why makes sentences of it."""

from __future__ import annotations

from typing import Any

from headrace.assembly.hub_info import hub_info
from headrace.assembly.platform import Platform
from headrace.core.clock import to_iso
from headrace.core.errors import nearest
from headrace.devices.why import Facts, explain
from headrace.gateway.limits_throttled import throttled
from headrace.gateway.presence import COLLECTION as PRESENCE
from headrace.gateway.refusals import ADDRESS_PREFIX
from headrace.gateway.refusals import COLLECTION as REFUSALS

NEAR_MAX = 1000


async def device_why(platform: Platform, id: str) -> dict[str, Any]:
    """As `headrace device why ID --json` prints it: {deviceId, state, summary, sentences, advice, refusals, history,
    throttled}. `id` may be one that nobody registered, or `device/module`."""
    docs = platform.docs
    device, _, module = id.partition("/")
    registered = await platform.device_queries.registered(device)
    known = None if registered is None else registered.device
    if module and await platform.device_queries.module(device, module) is None:
        known = None
    presence, refusal = await docs.get(PRESENCE, id), await docs.get(REFUSALS, id)
    address = "" if presence is None else str(presence.body["address"])
    from_address = await docs.get(REFUSALS, ADDRESS_PREFIX + address) if address else None
    near = ""
    if known is None:
        near = nearest(id, [each.id for each in await platform.device_queries.list(limit=NEAR_MAX)])
    info = await hub_info(platform)
    ports = [f"{info[name]}" for name in ("mqttPort", "httpsPort") if info[name]]
    held = await throttled(docs, device=device)
    facts = Facts(
        id=id,
        now=platform.clock.now(),
        device=known,
        presence=None if presence is None else presence.body,
        refusal=None if refusal is None else refusal.body,
        from_address=None if from_address is None else from_address.body,
        throttled=held,
        near=near,
        hub_running=info["running"],
        host=info["host"],
        ports=f", ports {' and '.join(ports)}" if ports else "",
    )
    found = explain(facts)
    reasons = {} if facts.refusal is None else facts.refusal["reasons"]
    return {
        "deviceId": id,
        "state": found.state,
        "summary": found.summary,
        "sentences": found.sentences,
        "advice": found.advice,
        "refusals": [
            {
                "reason": reason,
                "count": each["count"],
                "first": to_iso(each["first"]),
                "last": to_iso(each["last"]),
                "address": each["address"],
            }
            for reason, each in reasons.items()
        ],
        "history": [
            {"time": to_iso(at), "connected": connected, "reason": reason, "address": where}
            for at, connected, reason, where in (facts.presence or {}).get("history", ())
        ],
        "throttled": [{**each, "since": to_iso(each["since"]), "last": to_iso(each["last"])} for each in held],
    }
