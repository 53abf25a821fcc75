"""Run by the SDK's own Python: azure-iot-device registers a device, then connects to the hub it was assigned to and sends.

Argument: JSON {ca (PEM), host, scope, registration, mqtt, https, ws, key | certificate, payload}. Prints what the registration
said as one JSON line. The SDK's ports 8883 and 443 are literals, so getaddrinfo answers with the hub's own.
"""

import asyncio
import json
import socket
import sys
from typing import Any

from azure.iot.device import X509, exceptions
from azure.iot.device.aio import IoTHubDeviceClient, ProvisioningDeviceClient


def redirect(ports: dict[int, int]) -> None:
    resolve = socket.getaddrinfo

    def redirected(host: Any, service: Any, *args: Any, **options: Any) -> Any:
        return resolve("127.0.0.1", ports.get(service, service), *args, **options)

    socket.getaddrinfo = redirected


async def main(asked: dict[str, Any]) -> int:
    redirect({8883: asked["mqtt"], 443: asked["https"]})
    trust = {"server_verification_cert": asked["ca"], "websockets": asked["ws"]}
    common = {"provisioning_host": asked["host"], "registration_id": asked["registration"], "id_scope": asked["scope"]}
    x509 = X509(cert_file=asked["certificate"], key_file=asked["certificate"]) if "certificate" in asked else None
    if x509 is not None:
        client = ProvisioningDeviceClient.create_from_x509_certificate(x509=x509, **common, **trust)
    else:
        client = ProvisioningDeviceClient.create_from_symmetric_key(symmetric_key=asked["key"], **common, **trust)
    client.provisioning_payload = asked["payload"]
    try:
        result = await client.register()
    except exceptions.CredentialError:
        print("credential error")
        return 3
    state = result.registration_state
    print(
        json.dumps(
            {
                "status": result.status,
                "hub": state.assigned_hub,
                "device": state.device_id,
                "substatus": state.sub_status,
                "payload": state.response_payload,
            }
        )
    )
    options = {"hostname": state.assigned_hub, "device_id": state.device_id, "connection_retry": False, **trust}
    if x509 is not None:
        device = IoTHubDeviceClient.create_from_x509_certificate(x509=x509, **options)
    else:
        device = IoTHubDeviceClient.create_from_symmetric_key(symmetric_key=asked["key"], **options)
    await device.connect()
    await device.send_message(f"from {state.device_id}")
    twin = await device.get_twin()
    print(json.dumps(twin["desired"]))
    await device.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(json.loads(sys.argv[1]))))
