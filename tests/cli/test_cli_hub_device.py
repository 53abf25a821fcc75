"""`headrace hub ...` and `headrace device ...` against a hub that runs: what others script against."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.core.config import load_project
from headrace.devices.connection_string import parse
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import Identity, user_name
from headrace.wire.mqtt import codec

TOML = """
[gateway]
mqtt_port = 0
https_port = 0
plain_mqtt_port = 0
[broker]
enabled = false
[routes.hot]
condition = "$body.temperature > 80"
endpoints = ["hot", "events"]
[routes.changes]
source = "TwinChangeEvents"
endpoints = ["twin_changes"]
"""
START_S = 30.0
MAIN = [sys.executable, "-c", "from headrace.cli import main; main()"]


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [*MAIN, *words, "--project", str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def text(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.text(*words, "--json"))

    def lines(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text("hub", "telemetry", *words, "--json").splitlines()]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("hub")
    (folder / "headrace.toml").write_text(TOML)
    made = Project(folder)
    command = [sys.executable, "-m", "headrace", "serve", "gateway", "--project", str(folder)]
    with (folder / "log").open("w") as log:
        hub = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        state = load_project(str(folder)).state / "run" / "gateway.json"
        end = time.monotonic() + START_S
        while '"ready"' not in (state.read_text() if state.exists() else ""):
            assert hub.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)  # for another process
        yield made
    finally:
        hub.terminate()
        hub.wait(30)


def hello_of(string: str, *, ttl_s: int = 600) -> codec.Connect:
    """What a device with this connection string says first."""
    fields = parse(string)
    identity = Identity(fields.device_id)
    token = sas.build(f"{fields.hostname}/{identity.path}", fields.key, expires_s=int(time.time()) + ttl_s)
    return codec.Connect(identity.client_id, user_name(fields.hostname, identity), token.encode(), True, 60, None)


def talked(project: Project, hello: codec.Connect, *bags_and_bodies: tuple[str, bytes]) -> int:
    """Connect and send; the return code of the CONNECT. Messages are acknowledged when it returns."""

    async def work() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(codec.encode_connect(hello))
        code = (await reader.readexactly(4))[3]
        for number, (bag, body) in enumerate(bags_and_bodies, 1):
            topic = f"devices/{hello.client_id}/messages/events/{bag}".encode()
            writer.write(codec.encode_publish(topic, body, packet_id=number))
        await asyncio.wait_for(reader.readexactly(4 * len(bags_and_bodies)), 30)
        writer.close()
        await writer.wait_closed()
        return code

    port = project.json("hub", "info")["plainMqttPort"]
    return asyncio.run(work())


def made(project: Project, id: str) -> str:
    return str(project.json("device", "create", id)["connectionString"])


def test_telemetry_prints_one_object_a_line_with_the_fixed_keys(project: Project) -> None:
    string = made(project, "press-1")
    bag = "%24.ct=application%2Fjson&%24.ce=utf-8&%24.mid=m1&level=hot"
    assert talked(project, hello_of(string), (bag, b'{"temperature": 91}'), ("", b"text"), ("", b"\xff\x00")) == 0
    first, second, third = project.lines("--device", "press-1", "--timeout", "5")
    assert list(first) == [
        "body",
        "bodyEncoding",
        "properties",
        "systemProperties",
        "enqueuedTime",
        "deviceId",
        "moduleId",
        "eventId",
        "stream",
        "partition",
        "offset",
    ]
    assert (first["body"], first["bodyEncoding"]) == ({"temperature": 91}, "json")
    assert first["properties"] == {"level": "hot"}
    said = first["systemProperties"]
    assert (said["message-id"], said["content-type"], said["content-encoding"]) == ("m1", "application/json", "utf-8")
    assert said["iothub-connection-device-id"] == "press-1"
    assert said["iothub-connection-auth-method"] == '{"scope":"device","type":"sas","issuer":"iothub"}'
    assert said["iothub-message-source"] == "Telemetry"
    assert said["iothub-enqueuedtime"] == first["enqueuedTime"]
    assert said["iothub-connection-auth-generation-id"]
    assert (second["body"], third["body"], third["bodyEncoding"]) == ("text", "/wA=", "base64")
    assert [each["body"] for each in project.lines("-d", "press-1", "--last", "2")] == ["text", "/wA="]
    assert [each["body"] for each in project.lines("-d", "press-1", "--stream", "hot")] == [{"temperature": 91}]
    assert len(project.lines("-d", "press-1", "--follow", "--timeout", "0.3")) == 3
    unknown = project.run("hub", "telemetry", "--device", "press-2", "--json")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "did you mean 'press-1'" in unknown.stderr
    assert project.json("ledger")["balanced"]


def test_twin_tags_messages_and_methods_go_through_the_hubs_own_api(project: Project) -> None:
    made(project, "press-3")
    assert json.loads(project.text("device", "tags", "press-3", '{"floor": 3}')) == {"floor": 3}
    changed = project.json("device", "twin", "set", "press-3", '{"interval": 10}')
    assert (changed["properties"]["desired"]["interval"], changed["tags"]) == (10, {"floor": 3})
    assert json.loads(project.text("device", "twin", "get", "press-3"))["version"] == changed["version"]
    assert project.json("device", "send", "press-3", "hello", "--message-id", "x1")["messageId"] == "x1"
    assert project.json("device", "show", "press-3")["cloudToDeviceMessageCount"] == 1
    offline = project.run("device", "invoke", "press-3", "reboot")
    assert offline.returncode == 1
    assert "'press-3' is not connected" in offline.stderr
    told = project.lines("-d", "press-3", "--stream", "twin_changes", "--last", "2", "--timeout", "5")
    assert [each["body"] for each in told] == [
        {"version": 2, "tags": {"floor": 3}},
        {"version": 3, "properties": {"desired": {"interval": 10, "$version": 2}}},
    ]


def test_why_tells_of_unknown_ids_old_tokens_and_old_keys(project: Project) -> None:
    string = made(project, "press-4")
    hello = hello_of(string)
    assert talked(project, hello_of(string, ttl_s=-7200)) == 5
    assert talked(project, hello_of(string.replace("press-4", "press-5"))) == 5
    new = project.json("device", "regenerate-key", "press-4")["connectionString"]
    assert talked(project, hello_of(new)) == 0
    assert talked(project, hello) == 5
    end = time.monotonic() + 10
    while (why := project.json("device", "why", "press-4"))["state"] != "refused" and time.monotonic() < end:
        pass
    assert "signed with another key" in why["sentences"][1]
    assert {each["reason"] for each in why["refusals"]} == {"token_expired", "token_signature"}
    assert [step["connected"] for step in why["history"]] == [True, False]
    stranger = project.json("device", "why", "press-5")
    assert stranger["state"] == "unknown"
    assert "did you mean 'press-" in stranger["summary"].lower()
    assert stranger["advice"] == ["register it: headrace device create press-5"]
    assert project.json("hub", "throttled") == []


def test_modules_have_connection_strings_of_their_own(project: Project) -> None:
    made(project, "press-6")
    string = project.json("device", "module", "create", "press-6", "camera")["connectionString"]
    assert ";ModuleId=camera;" in string
    assert project.json("device", "module", "connection-string", "press-6", "camera")["connectionString"] == string
    assert [each["moduleId"] for each in project.json("device", "module", "list", "press-6")] == ["camera"]
    project.text("device", "module", "delete", "press-6", "camera")
    assert project.json("device", "module", "list", "press-6") == []


def test_routes_can_be_tried_without_sending(project: Project) -> None:
    assert project.json("hub", "route", "test", "--message", '{"temperature": 91}') == {
        "routes": ["hot"],
        "endpoints": ["hot", "telemetry"],
    }
    assert project.json("hub", "route", "test")["routes"] == []
    assert [each["name"] for each in project.json("hub", "route", "list")] == ["hot", "changes"]


def test_an_authority_is_proven_before_it_counts(project: Project, tmp_path: Path) -> None:
    ca = Path(project.json("hub", "info")["caFile"])
    added = project.json("hub", "authority", "add", "plant", str(ca))
    assert not added["verified"]
    refused = project.run("hub", "authority", "verify", "plant", str(ca))
    assert refused.returncode == 1
    assert added["verificationCode"] in refused.stderr
    assert [each["name"] for each in project.json("hub", "authority", "list")] == ["plant"]
    project.text("hub", "authority", "delete", "plant")
    assert project.json("hub", "authority", "list") == []
