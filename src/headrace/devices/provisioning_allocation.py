"""Which of the linked hubs a device is assigned to.

Hashed allocation is rendezvous hashing with weights: a registration always gets the same hub, and a hub that is linked or
unlinked moves no device but those it gains or loses. `geoLatency` means the site here: a device goes to a hub that serves the
site its enrolment (or, where that names none, its own payload) names, else to one whose networks hold its address, the
smallest network first, and to a hashed one where neither says anything.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import Sequence
from typing import NamedTuple

from headrace.core.errors import UserError
from headrace.devices.enrolments import Allocation
from headrace.wire.iothub.provisioning import fold

WEIGHT_MAX = 1000


class NoHub(UserError):
    """An enrolment names no hub that is linked, or none is to be allocated to."""

    code = "provisioning.no_hub"


class LinkedHub(NamedTuple):
    """A hub that devices may be assigned to. `host` is what they connect to; `allocate` False: only where it is named."""

    name: str
    host: str
    weight: int = 1
    sites: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    allocate: bool = True

    def called(self, name: str) -> bool:
        return name.lower() in (self.name.lower(), self.host.lower())


class Asking(NamedTuple):
    """What a device's place is judged by."""

    registration_id: str
    site: str = ""
    address: str = ""


def candidates(hubs: Sequence[LinkedHub], named: Sequence[str]) -> list[LinkedHub]:
    """The hubs an enrolment names, by name or host, or all to be allocated to where it names none. Raises NoHub."""
    found = [hub for hub in hubs if (any(hub.called(name) for name in named) if named else hub.allocate)]
    if found:
        return found
    said = f"none of {', '.join(repr(name) for name in named)} is a linked hub" if named else "no hub takes devices"
    raise NoHub(said, hint=f"linked are: {', '.join(hub.name for hub in hubs)}; see [provisioning.hubs]")


def choose(policy: Allocation, hubs: Sequence[LinkedHub], asking: Asking) -> LinkedHub:
    """One of `hubs` (not empty). Raises NoHub where static allocation has more than one to choose from."""
    if policy == "static" and len(hubs) > 1:
        raise NoHub(f"static allocation among {len(hubs)} hubs", hint="name one in the enrolment's iotHubs")
    if policy == "geoLatency":
        hubs = _near(hubs, asking) or hubs
    return max(hubs, key=lambda hub: _score(hub, asking.registration_id))


def _near(hubs: Sequence[LinkedHub], asking: Asking) -> list[LinkedHub]:
    if asking.site and (serving := [hub for hub in hubs if asking.site in hub.sites]):
        return serving
    try:
        address = ipaddress.ip_address(asking.address)
    except ValueError:
        return []
    prefixes = [
        (max((net.prefixlen for net in map(_network, hub.networks) if address in net), default=-1), hub) for hub in hubs
    ]
    longest = max(prefix for prefix, _ in prefixes)
    return [hub for prefix, hub in prefixes if prefix == longest >= 0]


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Raises UserError where it is none."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as exc:
        raise UserError(
            f"{text[:60]!r} is no network", hint="write 10.1.0.0/16 in [provisioning.hubs]", code="provisioning.network"
        ) from exc


def check(hubs: Sequence[LinkedHub]) -> None:
    """Raises UserError for networks, weights and names that make no sense."""
    for hub in hubs:
        for text in hub.networks:
            _network(text)
        if not 1 <= hub.weight <= WEIGHT_MAX:
            raise UserError(
                f"hub {hub.name!r} has weight {hub.weight}", hint=f"use 1 to {WEIGHT_MAX}", code="provisioning.weight"
            )
    names = [hub.host.lower() for hub in hubs]
    if len(set(names)) < len(names):
        raise UserError("two linked hubs have one host", hint="link each once", code="provisioning.hub_twice")


def _score(hub: LinkedHub, registration_id: str) -> float:
    """Weighted rendezvous hashing: -weight / ln(u), u uniform in (0, 1) from hub and registration (Schindelhauer, 2005)."""
    text = f"{hub.host.lower()}\0{fold(registration_id)}".encode()
    drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return -hub.weight / math.log((drawn + 0.5) / 2**64)
