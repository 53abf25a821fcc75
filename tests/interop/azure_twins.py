"""Run by the SDK's own Python: the official client of a device or module with all its handlers set, driven line by line.

Arguments: connection string, CA file, port. Each line of standard input is a JSON array, a command with its arguments; each
line of standard output is a JSON object: the answer to a command, or what the hub sent.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from azure.iot.device import MethodResponse
from azure.iot.device.aio import IoTHubDeviceClient, IoTHubModuleClient
from azure_device import redirect


def tell(kind: str, **what: Any) -> None:
    print(json.dumps({"kind": kind, **what}), flush=True)


async def main(text: str, ca: str, port: int) -> None:
    redirect(port)
    maker = IoTHubModuleClient if "ModuleId=" in text else IoTHubDeviceClient
    client = maker.create_from_connection_string(text, server_verification_cert=ca, connection_retry_interval=1)

    async def method(request: Any) -> None:
        tell("method", name=request.name, payload=request.payload)
        if request.name != "silent":
            answer = MethodResponse.create_from_method_request(request, 207, {"heard": request.payload})
            await client.send_method_response(answer)

    async def patch(desired: Any) -> None:
        tell("patch", patch=desired)

    async def message(got: Any) -> None:
        properties = got.custom_properties
        tell(
            "message",
            body=got.data.decode(),
            id=got.message_id,
            type=got.content_type,
            correlation=got.correlation_id,
            ack=got.ack,
            properties=properties,
        )

    async def state() -> None:
        tell("state", connected=client.connected)

    client.on_connection_state_change = state
    await client.connect()
    client.on_method_request_received = method
    client.on_twin_desired_properties_patch_received = patch
    if maker is IoTHubDeviceClient:
        client.on_message_received = message
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command, *arguments = json.loads(line)
        try:
            if command == "twin":
                tell("twin", twin=await client.get_twin())
            elif command == "report":
                await client.patch_twin_reported_properties(arguments[0])
                tell("reported")
            elif command == "reconnect":
                await client.disconnect()
                await client.connect()
                tell("reconnected")
        except Exception as exc:  # what the SDK says is part of the answer
            tell("error", name=type(exc).__name__)
    await client.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text(), int(sys.argv[3])))
