"""What a client needs to talk to this project's hub: addresses, CA, policies, connection strings.

While the hub runs its own addresses are told; while it does not, the ports are those of the settings, and unknown (None) where
any free one is taken.
"""

from __future__ import annotations

from typing import Any

from headrace.assembly.platform import Platform
from headrace.core import runstate
from headrace.devices.policies import OWNER, shared_connection_string


async def hub_info(platform: Platform) -> dict[str, Any]:
    """As `headrace hub info --json` prints it; the keys are fixed. Policies are made when there are none yet."""
    gateway, broker = platform.settings.gateway, platform.settings.broker
    states = [state for state in runstate.read_all(platform.project) if state.state == "ready"]
    running = any(state.part.startswith("gateway") for state in states)
    addresses = {name: address for state in states for name, address in state.addresses.items()}

    def port(name: str, setting: int, *, on: bool = True) -> int | None:
        if name in addresses:
            return int(addresses[name].rpartition(":")[2])
        return setting if on and setting > 0 else None

    host = platform.hostname
    https = port("https", gateway.https_port)
    policies = await platform.policies.ensure()
    strings = {policy.name: shared_connection_string(host, https or 443, policy) for policy in policies}
    return {
        "running": running,
        "host": host,
        "mqttPort": port("mqtt", gateway.mqtt_port),
        "httpsPort": https,
        "plainMqttPort": port("mqtt-plain", gateway.plain_mqtt_port),
        "brokerPort": port("broker", broker.port, on=broker.enabled),
        "brokerTlsPort": port("broker-tls", broker.tls_port, on=broker.enabled),
        "caFile": str(platform.authority.ca_path),
        "connectionString": strings[OWNER],
        "policies": {
            policy.name: {
                "primaryKey": policy.primary_key,
                "secondaryKey": policy.secondary_key,
                "rights": list(policy.rights),
                "connectionString": strings[policy.name],
            }
            for policy in policies
        },
        "provisioning": await _provisioning(platform, host, https),
    }


async def _provisioning(platform: Platform, host: str, https: int | None) -> dict[str, Any]:
    """The provisioning service's own, made where there is none yet."""
    found = await platform.provisioning.ensure()
    string = f"SharedAccessKeyName={found.policy};SharedAccessKey={found.primary_key}"
    address = host if https in (None, 443) else f"{host}:{https}"
    return {
        "idScope": found.id_scope,
        "host": host,
        "policy": found.policy,
        "primaryKey": found.primary_key,
        "secondaryKey": found.secondary_key,
        "connectionString": f"HostName={address};{string}",
    }
