"""Run by the SDK's own Python: azure-iot-device with a certificate over TCP, or over WebSockets.

Argument: JSON {how: tcp|ws, ca (PEM), host, device, mqtt, https, count, connection_string | certificate + key}. The
SDK's ports 8883
and 443 are literals, so getaddrinfo answers with the hub's own; names, SNI and tokens stay as they are.
"""

import asyncio
import json
import socket
import sys
from typing import Any

from azure.iot.device import X509, exceptions
from azure.iot.device.aio import IoTHubDeviceClient


def redirect(ports: dict[int, int]) -> None:
    resolve = socket.getaddrinfo

    def redirected(host: Any, service: Any, *args: Any, **options: Any) -> Any:
        return resolve("127.0.0.1", ports.get(service, service), *args, **options)

    socket.getaddrinfo = redirected


async def main(asked: dict[str, Any]) -> int:
    redirect({8883: asked["mqtt"], 443: asked["https"]})
    options: dict[str, Any] = {
        "server_verification_cert": asked["ca"],
        "websockets": asked["how"] == "ws",
        "connection_retry": False,
    }
    if "certificate" in asked:
        x509 = X509(cert_file=asked["certificate"], key_file=asked["certificate"])
        client = IoTHubDeviceClient.create_from_x509_certificate(
            x509=x509, hostname=asked["host"], device_id=asked["device"], **options
        )
    else:
        client = IoTHubDeviceClient.create_from_connection_string(asked["connection_string"], **options)
    try:
        await client.connect()
    except exceptions.CredentialError:
        print("credential error")
        return 3
    await asyncio.gather(*(client.send_message(f"{asked['how']} {number}") for number in range(asked["count"])))
    await client.disconnect()
    await client.connect()
    await client.send_message("again")
    await client.shutdown()
    print("done")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(json.loads(sys.argv[1]))))
