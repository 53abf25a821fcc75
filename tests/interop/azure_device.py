"""Run by the SDK's own Python: the official azure-iot-device client sends messages to a hub.

Arguments: connection string, CA file, port, messages. Host and port 8883 are literals in the SDK, so the address that it
dials is changed below it, in getaddrinfo; name checks, user name and token stay as they are.
"""

import asyncio
import socket
import sys
from pathlib import Path
from typing import Any

from azure.iot.device import Message, exceptions
from azure.iot.device.aio import IoTHubDeviceClient


def redirect(port: int) -> None:
    resolve = socket.getaddrinfo

    def redirected(host: Any, service: Any, *args: Any, **options: Any) -> Any:
        return resolve("127.0.0.1", port if service == 8883 else service, *args, **options)

    socket.getaddrinfo = redirected


async def main(text: str, ca: str, port: int, count: int) -> int:
    """`ca` is PEM text."""
    redirect(port)
    client = IoTHubDeviceClient.create_from_connection_string(text, server_verification_cert=ca, connection_retry=False)
    try:
        await client.connect()
    except exceptions.CredentialError:
        print("credential error")
        return 3
    messages = []
    for number in range(count):
        message = Message(f'{{"temperature": {number}}}', message_id=f"id/{number}+ä")
        message.content_type = "application/json"
        message.content_encoding = "utf-8"
        message.custom_properties["type"] = "reading"
        message.custom_properties["a key"] = f"v&={number}"
        messages.append(message)
    await asyncio.gather(*(client.send_message(message) for message in messages))

    async def answer(request: Any) -> None:
        """Never called here: to be set makes the SDK subscribe, and wait for the SUBACK."""

    client.on_method_request_received = answer
    await client.disconnect()
    await client.connect()
    await client.send_message("again")
    await client.shutdown()
    print("done")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text(), int(sys.argv[3]), int(sys.argv[4]))))
