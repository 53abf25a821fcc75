"""What the console needs of the hub beside the documents: where its service API is, and why a device is not connected."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from headrace.assembly.hub_info import hub_info
from headrace.assembly.platform import Platform
from headrace.core.errors import Unavailable

if TYPE_CHECKING:
    from headrace.web.hub import HubAddress

FACTS = ("running", "host", "mqttPort", "httpsPort", "plainMqttPort", "brokerPort", "brokerTlsPort", "caFile")


class ConsoleHub:
    """All calls may raise Unavailable."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Trusts the project's own authority, and those of the machine for a hub that has a certificate of theirs."""
        context = ssl.create_default_context()
        context.load_verify_locations(self._platform.authority.ca_path)
        return context

    async def address(self) -> HubAddress:
        """Raises Unavailable (`hub.down`) while the hub does not run."""
        from headrace.web.hub import HubAddress

        found = await hub_info(self._platform)
        if not found["running"] or found["httpsPort"] is None:
            raise Unavailable(
                "the hub does not run, so devices cannot be changed or asked now",
                hint="start it with `headrace up`, or see why part `gateway` is down",
                code="hub.down",
            )
        listening = self._platform.settings.gateway.host
        dial = "127.0.0.1" if listening in ("", "0.0.0.0", "localhost") else "::1" if listening == "::" else listening
        policies = {
            name: (name, str(found["policies"][name]["primaryKey"])) for name in ("service", "registryReadWrite")
        }
        if found["provisioning"]["primaryKey"]:
            provisioning = found["provisioning"]
            policies["provisioning"] = (str(provisioning["policy"]), str(provisioning["primaryKey"]))
        return HubAddress(
            host=found["host"],
            dial=f"[{dial}]" if ":" in dial else dial,
            port=int(found["httpsPort"]),
            tls=self._tls,
            policies=policies,
        )

    async def facts(self) -> Mapping[str, Any]:
        """Addresses without keys, and the ID scope."""
        found = await hub_info(self._platform)
        return {**{name: found[name] for name in FACTS}, "idScope": found["provisioning"]["idScope"]}

    async def why(self, device: str) -> Mapping[str, Any]:
        from headrace.assembly.why import device_why

        found = await device_why(self._platform, device)
        return {name: found[name] for name in ("state", "sentences", "advice", "throttled")}
