"""Why a device is not connected, or what disturbs it: facts that several parts noted, as sentences for people.

Pure: who asks gathers the facts. What happened last counts: a refusal after the last connection explains more than how that
connection ended. An id that was never registered has refusals all the same, for who knocks is remembered by the name it gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from headrace.core.clock import TICKS_PER_S, to_iso
from headrace.devices.model import Device

State: TypeAlias = Literal["connected", "unstable", "refused", "disabled", "disconnected", "never_seen", "unknown"]
FLAPPING_S = 600.0
FLAPPING_COUNT = 3
RECENT_S = 3600.0
SKEW_S = 60.0

ENDED: dict[str, str] = {
    "disconnected": "the device said goodbye itself",
    "closed_by_device": "the device closed the connection without saying goodbye",
    "connection_lost": "the connection broke: network, power, or the device stopped",
    "keep_alive": "nothing was heard for one and a half times its keep-alive, so the hub closed",
    "connect_timeout": "it opened a connection and never said who it is",
    "taken_over": "another client connected with the same id, which closes the older connection",
    "token_expired": "its token ran out while it was connected",
    "device_disabled": "it was disabled",
    "device_deleted": "it was deleted from the registry",
    "module_deleted": "the module was deleted from the registry",
    "gateway_stopped": "the hub was stopped",
    "gateway_restarted": "the hub was restarted, maybe after a crash",
    "forbidden_topic": "it published to a topic that is not its own",
    "too_large": "it sent a message above the size limit",
    "malformed": "it sent what is not MQTT",
}
ADVICE: dict[str, str] = {
    "unknown_device": "register it: headrace device create {id}",
    "unknown_module": "register the module: headrace device module create {device} MODULE",
    "token_signature": "it signs with a key that is not its own; give it the one of: headrace device connection-string {id}",
    "token_expired": "its tokens are too old when they come: set the device's clock (NTP), or renew the token it was given",
    "token_resource": "its token is for another device or hub: compare host and id in its connection string",
    "token_malformed": "its password is no shared access signature: check how it builds the token",
    "no_key": "it is registered with a certificate, and came with a token: use the certificate, or change its authentication",
    "needs_token": "it is registered with keys, and came with a certificate: use its connection string",
    "thumbprint": "register the thumbprint of the certificate that it shows, or give it the registered certificate",
    "certificate_unknown_ca": "register and verify the authority: headrace hub authority add NAME FILE",
    "certificate_name": "the certificate's common name must be the device's id",
    "certificate_unfit": "issue it a new certificate: this one is expired, not valid yet, or made for something else",
    "disabled_device": "enable it: headrace device enable {id}",
    "host": "it asks for a hub of another name: its connection string must say HostName={host}, or set [gateway] hostname",
    "identity_mismatch": "its MQTT client id and the id in its user name differ: both must be the device's id",
    "user_name": "its MQTT user name must be {{host}}/{{id}}/?api-version=2021-04-12",
    "client_id": "its MQTT client id is empty: it must be the device's id",
    "will": "its last will must be on its own telemetry topic, with QoS 0 or 1",
    "connections_max": "the hub is full: raise [gateway] connections_max, or add workers",
    "throttled": "it connects too often: let it wait longer between tries, or raise the limit in [limits]",
    "taken_over": "two clients use this id: give each its own device, or stop one of them",
    "keep_alive": "look at its network, or raise its keep-alive",
    "too_large": "send smaller messages, or raise [gateway] message_bytes_max",
    "forbidden_topic": "publish to devices/{id}/messages/events/",
    "forbidden_filter": "it may subscribe to its own topics only",
    "tls": "its TLS handshake fails: it must trust the hub's CA file (headrace hub info) and speak TLS 1.2 or newer",
}
LASTING = frozenset({"taken_over", "throttled"})
"""Refusals that disturb a device which is connected."""


class Facts(NamedTuple):
    """What is known of an id. Bodies are documents of the collections of those names; times are ticks."""

    id: str
    now: int
    device: Device | None
    presence: Mapping[str, Any] | None = None
    refusal: Mapping[str, Any] | None = None
    from_address: Mapping[str, Any] | None = None  # refusals of its address where no id was said: TLS
    throttled: Sequence[Mapping[str, Any]] = ()
    near: str = ""  # `did you mean ...`
    hub_running: bool = True
    host: str = ""
    ports: str = ""


class Diagnosis(NamedTuple):
    state: State
    sentences: list[str]
    advice: list[str]

    @property
    def summary(self) -> str:
        return self.sentences[0]


def explain(facts: Facts) -> Diagnosis:
    """What happened last, why it is not connected, what to do; the most important sentence first."""
    said: list[str] = []
    advice: list[str] = []
    state = _state(facts)
    if not facts.hub_running:
        said.append("The hub is not running, so nobody is connected; what follows is from before.")
        advice.append("headrace up --detach")
    said += _standing(facts, state)
    refusal = _newer_refusal(facts)
    if refusal is not None:
        said.append(_refused(facts, refusal))
        advice += _advised(facts, str(refusal["reason"]))
    elif state == "unknown":
        said.append("Nobody was refused under this id lately.")
        advice.append(f"headrace device create {facts.id}")
    said += _skew(refusal) + _flapping(facts, advice) + _limited(facts, advice)
    if state in ("disconnected", "never_seen") and refusal is None:
        said += _address_trouble(facts, advice)
        if not advice:
            where = f" at {facts.host}{facts.ports}" if facts.host else ""
            advice.append(f"nothing was refused: check that the device runs and reaches the hub{where}")
    return Diagnosis(state, said, list(dict.fromkeys(advice)))


def _state(facts: Facts) -> State:
    if facts.presence is not None and facts.presence["connected"] and facts.hub_running:
        return "unstable" if _takeovers(facts) >= FLAPPING_COUNT else "connected"
    if facts.device is None:
        return "unknown"
    if not facts.device.enabled:
        return "disabled"
    if _newer_refusal(facts) is not None:
        return "refused"
    return "never_seen" if facts.presence is None else "disconnected"


def _standing(facts: Facts, state: State) -> list[str]:
    id, presence = facts.id, facts.presence
    said: list[str] = []
    if state == "unknown":
        near = f" {facts.near[0].upper()}{facts.near[1:]}" if facts.near else ""
        said.append(f"There is no device {id!r} in the registry.{near}")
    elif state == "disabled" and facts.device is not None:
        because = f": {facts.device.status_reason}" if facts.device.status_reason else ""
        said.append(f"{id!r} is disabled{because}, so it is not let in.")
    if presence is None:
        if state != "unknown":
            said.append(f"{id!r} has never been connected.")
    elif state in ("connected", "unstable"):
        word = "but not steadily, " if state == "unstable" else ""
        said.append(f"{id!r} is connected, {word}since {_ago(facts, presence['since'])}, from {presence['address']}.")
    else:
        reason = str(presence["reason"])
        how = ENDED.get(reason, reason.replace("_", " ") or "it is not known how")
        said.append(f"Its last connection, from {presence['address']}, ended {_ago(facts, presence['since'])}: {how}.")
    return said


def _newer_refusal(facts: Facts) -> Mapping[str, Any] | None:
    """The last refusal, where it says something about now."""
    refusal, presence = facts.refusal, facts.presence
    if refusal is None:
        return None
    if presence is None or facts.device is None:
        return refusal
    if presence["connected"] and facts.hub_running:
        return refusal if refusal["reason"] in LASTING and _age_s(facts, refusal["at"]) < RECENT_S else None
    # what ended the connection is noted with it, a moment before
    return refusal if refusal["at"] >= presence["since"] - TICKS_PER_S else None


def _refused(facts: Facts, refusal: Mapping[str, Any]) -> str:
    reason = str(refusal["reason"])
    times = int(refusal["reasons"].get(reason, {}).get("count", 1))
    often = f" (this reason {times:,} times so far)" if times > 1 else ""
    where = f" from {refusal['address']}" if refusal["address"] else ""
    detail = str(refusal["detail"]).rstrip(".") or reason
    return f"Refused{where} {_ago(facts, refusal['at'])}{often}: {detail}."


def _advised(facts: Facts, reason: str) -> list[str]:
    text = ADVICE.get(reason, "")
    if not text:
        hint = str(facts.refusal["hint"]) if facts.refusal is not None else ""
        return [hint] if hint else []
    device = facts.id.partition("/")[0]
    return [text.format(id=facts.id, device=device, host=facts.host)]


def _skew(refusal: Mapping[str, Any] | None) -> list[str]:
    """An expired token says how far behind the device's clock may be."""
    if refusal is None or refusal["reason"] != "token_expired":
        return []
    late = [word for word in str(refusal["detail"]).split() if word.isdigit()]
    if not late or int(late[0]) < SKEW_S:
        return []
    return [
        f"A fresh token that came {_span(int(late[0]))} too late means a clock at least that far behind; "
        "a token made once by hand just needs a new one."
    ]


def _takeovers(facts: Facts) -> int:
    known = (facts.refusal or {}).get("reasons", {}).get("taken_over")
    if known is None or _age_s(facts, known["last"]) > FLAPPING_S:
        return 0
    return int(known["count"])


def _flapping(facts: Facts, advice: list[str]) -> list[str]:
    count = _takeovers(facts)
    if count < FLAPPING_COUNT:
        return []
    advice.append(ADVICE["taken_over"])
    steps = (facts.presence or {}).get("history", ())
    addresses = sorted({str(step[3]) for step in steps if step[3]})
    where = f" They come from {' and '.join(addresses)}." if len(addresses) > 1 else ""
    return [f"Two clients take this id from each other: that happened {count:,} times.{where}"]


def _limited(facts: Facts, advice: list[str]) -> list[str]:
    said = []
    for each in facts.throttled:
        if _age_s(facts, each["last"]) < RECENT_S:
            said.append(
                f"It is held back by [limits] {each['limit']}: {each['count']:,} times since {to_iso(each['since'])[:19]}Z, "
                f"for {each['waited_s']:.3g} s at the most, the last time {_ago(facts, each['last'])}."
            )
            advice.append(f"let it send less, or raise [limits] {each['limit']}")
    return said


def _address_trouble(facts: Facts, advice: list[str]) -> list[str]:
    found = facts.from_address
    if found is None or _age_s(facts, found["at"]) > RECENT_S:
        return []
    advice += _advised(facts._replace(refusal=found), str(found["reason"]))
    return [
        f"From its address {found['address']} somebody was refused {_ago(facts, found['at'])} before saying a name: "
        f"{str(found['detail']).rstrip('.')}."
    ]


def _age_s(facts: Facts, ticks: int) -> float:
    return max(0.0, (facts.now - ticks) / TICKS_PER_S)


def _ago(facts: Facts, ticks: int) -> str:
    return f"{_span(_age_s(facts, ticks))} ago"


def _span(seconds: float) -> str:
    for size, name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'s' if count > 1 else ''}"
    return f"{int(seconds)} seconds"
