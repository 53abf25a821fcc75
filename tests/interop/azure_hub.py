"""Run by the SDK's own Python: the official azure-iot-hub client against a hub. Prints one JSON object of what it saw.

Arguments: what to do, the service's connection string, the port of MQTT. The CA comes in REQUESTS_CA_BUNDLE, as for any
user. Host and port 8883 are literals in the device SDK, so its address is changed in getaddrinfo.
"""

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, MethodResponse
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import (
    CloudToDeviceMethod,
    ExportImportDevice,
    QuerySpecification,
    Twin,
    TwinProperties,
)

KEYS = ("", "")
THUMBPRINTS = ("A" * 40, "B" * 40)


def redirect(port: int) -> None:
    resolve = socket.getaddrinfo

    def redirected(host: Any, service: Any, *args: Any, **options: Any) -> Any:
        return resolve("127.0.0.1", port if service == 8883 else service, *args, **options)

    socket.getaddrinfo = redirected


def failure(call: Any, *arguments: Any, **options: Any) -> str:
    """What the SDK says when the hub refuses."""
    try:
        call(*arguments, **options)
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    return "nothing"


def registry(hub: IoTHubRegistryManager) -> dict[str, Any]:
    made = hub.create_device_with_sas("press", "", "", "enabled")
    got = hub.get_device("press")
    changed = hub.update_device_with_sas(
        "press",
        got.etag,
        got.authentication.symmetric_key.primary_key,
        got.authentication.symmetric_key.secondary_key,
        "disabled",
        status_reason="worn",
    )
    seen = {
        "made": [made.device_id, made.status, len(made.authentication.symmetric_key.primary_key)],
        "same": made.etag == got.etag,
        "changed": [changed.status, changed.status_reason, changed.generation_id == made.generation_id],
        "keys_kept": changed.authentication.symmetric_key.primary_key == made.authentication.symmetric_key.primary_key,
        "twice": failure(hub.create_device_with_sas, "press", "", "", "enabled"),
        "stale": failure(hub.update_device_with_sas, "press", made.etag, "", "", "enabled"),
        "missing": failure(hub.get_device, "nobody"),
        "odd": hub.create_device_with_sas("a+b#c?%25;'$", "", "", "enabled").device_id,
    }
    x509 = hub.create_device_with_x509("cert", *THUMBPRINTS, "enabled")
    authority = hub.create_device_with_certificate_authority("ca", "enabled")
    seen["types"] = [
        x509.authentication.type,
        x509.authentication.x509_thumbprint.primary_thumbprint == THUMBPRINTS[0],
        authority.authentication.type,
    ]
    edge = hub.create_device_with_sas("edge", "", "", "enabled", iot_edge=True)
    leaf = hub.create_device_with_sas("leaf", "", "", "enabled", device_scope=edge.device_scope)
    seen["edge"] = [edge.capabilities.iot_edge, leaf.device_scope == edge.device_scope]
    module = hub.create_module_with_sas("press", "m", "me", "", "")
    module = hub.update_module_with_sas("press", "m", "you", module.etag, "", "")
    seen["module"] = [module.module_id, module.managed_by, [found.module_id for found in hub.get_modules("press")]]
    hub.delete_module("press", "m")
    seen["no_module"] = failure(hub.get_module, "press", "m")
    seen["listed"] = [device.device_id for device in hub.get_devices()]
    seen["some"] = len(hub.get_devices(2))
    entries = [
        ExportImportDevice(id=f"bulk-{number:02}", status="enabled", import_mode="create") for number in range(20)
    ]
    first = hub.bulk_create_or_update_devices(entries)
    second = hub.bulk_create_or_update_devices(entries[:2])
    seen["bulk"] = [first.is_successful, second.is_successful, [error.error_code for error in second.errors]]
    statistics = hub.get_device_registry_statistics()
    seen["statistics"] = [
        statistics.total_device_count,
        statistics.enabled_device_count,
        statistics.disabled_device_count,
    ]
    hub.delete_device("press")
    hub.delete_device("cert", x509.etag)
    seen["gone"] = failure(hub.delete_device, "press")
    return seen


def twins(hub: IoTHubRegistryManager) -> dict[str, Any]:
    for number in range(5):
        hub.create_device_with_sas(f"d{number}", "", "", "enabled")
        hub.update_twin(
            f"d{number}", Twin(tags={"floor": number % 2}, properties=TwinProperties(desired={"rate": number}))
        )
    hub.create_module_with_sas("d0", "m", "", "", "")
    hub.update_module_twin("d0", "m", Twin(tags={"kind": "vision"}))
    first = hub.get_twin("d1")
    second = hub.update_twin("d1", Twin(tags={"floor": None, "name": "one"}), first.etag)
    stale = failure(hub.update_twin, "d1", Twin(tags={"x": 1}), first.etag)
    replaced = hub.replace_twin("d1", Twin(tags={"only": True}, properties=TwinProperties(desired={"a": {"b": 1}})))
    pages, token = [], None
    while True:
        page = hub.query_iot_hub(QuerySpecification(query="SELECT * FROM devices"), token, 2)
        pages.append([twin.device_id for twin in page.items])
        token = page.continuation_token
        if token is None:
            break
    floor = hub.query_iot_hub(QuerySpecification(query="SELECT * FROM devices WHERE tags.floor = 0"), None, 100)
    return {
        "first": [first.tags, first.properties.desired["rate"], first.properties.desired["$version"], first.status],
        "second": [second.tags, second.version - first.version],
        "stale": stale,
        "replaced": [replaced.tags, {k: v for k, v in replaced.properties.desired.items() if k[0] != "$"}],
        "module": [hub.get_module_twin("d0", "m").tags, hub.get_module_twin("d0", "m").module_id],
        "pages": pages,
        "floor": [twin.device_id for twin in floor.items],
        "bad": failure(hub.query_iot_hub, QuerySpecification(query="SELECT * FROM nowhere"), None, 100),
        "missing": failure(hub.get_twin, "nobody"),
    }


def methods(hub: IoTHubRegistryManager, host: str) -> dict[str, Any]:
    device = hub.create_device_with_sas("press", "", "", "enabled")
    module = hub.create_module_with_sas("press", "m", "", "", "")
    head = f"HostName={host};DeviceId=press"
    key, own = device.authentication.symmetric_key.primary_key, module.authentication.symmetric_key.primary_key
    ca = Path(os.environ["REQUESTS_CA_BUNDLE"]).read_text()
    offline = failure(hub.invoke_device_method, "press", CloudToDeviceMethod(method_name="early"))
    client = IoTHubDeviceClient.create_from_connection_string(
        f"{head};SharedAccessKey={key}", server_verification_cert=ca
    )
    part = IoTHubModuleClient.create_from_connection_string(
        f"{head};ModuleId=m;SharedAccessKey={own}", server_verification_cert=ca
    )
    patches: list[Any] = []
    arrived = threading.Event()

    def answering(which: Any, name: str) -> Any:
        def answer(request: Any) -> None:
            said = {"of": name, "method": request.name, "payload": request.payload}
            which.send_method_response(MethodResponse.create_from_method_request(request, 201, said))

        return answer

    def patched(patch: Any) -> None:
        patches.append(patch)
        if "speed" in patch:
            arrived.set()

    try:
        client.connect()
        part.connect()
        client.on_method_request_received = answering(client, "device")
        part.on_method_request_received = answering(part, "module")
        client.on_twin_desired_properties_patch_received = patched
        one = hub.invoke_device_method(
            "press", CloudToDeviceMethod(method_name="a b/c", payload={"x": [1]}, response_timeout_in_seconds=20)
        )
        two = hub.invoke_device_module_method("press", "m", CloudToDeviceMethod(method_name="look", payload=None))
        hub.update_twin("press", Twin(properties=TwinProperties(desired={"speed": 3})))
        pushed = arrived.wait(20)
        client.patch_twin_reported_properties({"temp": 21})
        twin = hub.get_twin("press")
        connected = [hub.get_device("press").connection_state]
        for _ in range(100):  # the gateway writes presence a moment after the connect
            if connected[0] == "Connected":
                break
            time.sleep(0.1)
            connected = [hub.get_device("press").connection_state]
        return {
            "offline": offline,
            "device": [one.status, one.payload],
            "module": [two.status, two.payload],
            "pushed": [pushed, [patch["speed"] for patch in patches if "speed" in patch]],
            "reported": twin.properties.reported["temp"],
            "connected": connected,
            "count": hub.get_service_statistics().connected_device_count,
        }
    finally:
        client.shutdown()
        part.shutdown()


def main(what: str, text: str, port: int) -> None:
    redirect(port)
    hub = IoTHubRegistryManager.from_connection_string(text)
    if what == "refused":
        print(json.dumps({"said": failure(hub.get_device, "press")}))
        return
    work = {"registry": registry, "twins": twins}
    host = text.split(";")[0].partition("=")[2].partition(":")[0]
    print(json.dumps(work[what](hub) if what in work else methods(hub, host)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
