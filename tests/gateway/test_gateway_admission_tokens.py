"""Tokens of modules, of shared policies and of services."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from gateway_parts import KEY, OTHER_KEY, Devices, device

from headrace.core.clock import TICKS_PER_S, ManualClock
from headrace.devices.model import Module
from headrace.devices.policies import DEFAULTS, Policy
from headrace.gateway.admission import NO_KEY, Admission, Refused
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import Identity

MODULE_KEY = base64.b64encode(b"m" * 32).decode()
POLICY_KEY = base64.b64encode(b"p" * 32).decode()


class Door:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.devices = Devices(
            [
                device("a"),
                device("off", status="disabled"),
                device("cert", authentication="selfSigned", primary_key="", secondary_key=""),
                device("none", authentication="none", primary_key="", secondary_key=""),
            ]
        )
        for id in ("a", "off"):
            self.devices.modules[f"{id}/m"] = Module(
                device=id, id="m", primary_key=MODULE_KEY, secondary_key=OTHER_KEY, generation_id="g2", created=0
            )
        self.devices.policies = {
            name: Policy(name=name, primary_key=POLICY_KEY, secondary_key=OTHER_KEY, rights=rights)
            for name, rights in DEFAULTS.items()
        }
        self.admission = Admission({"hub"}, self.devices, self.clock, leeway_s=300)

    def token(self, resource: str, key: str, policy: str | None = None, ttl_s: int = 60) -> str:
        return sas.build(resource, key, expires_s=self.clock.now() // TICKS_PER_S + ttl_s, policy=policy)

    def refused(self, identity: Identity, text: str) -> str:
        with pytest.raises(Refused) as caught:
            self.admission.token(identity, text)
        return caught.value.reason

    def service(self, text: str, path: str = "devices/a", right: Any = "RegistryRead") -> str:
        with pytest.raises(Refused) as caught:
            self.admission.service(text, path, right)
        return caught.value.reason


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.mark.parametrize("key", [MODULE_KEY, OTHER_KEY])
def test_a_module_comes_in_with_its_own_keys(door: Door, key: str) -> None:
    admitted = door.admission.token(Identity("a", "m"), door.token("hub/devices/a/modules/m", key))
    assert admitted.module is not None
    assert (admitted.device.id, admitted.module.id, admitted.generation_id) == ("a", "m", "g2")
    assert '"scope":"module"' in admitted.method


def test_a_devices_key_opens_no_module_and_a_modules_key_no_device(door: Door) -> None:
    resource = "hub/devices/a/modules/m"
    assert door.refused(Identity("a", "m"), door.token(resource, KEY)) == "token_signature"
    assert door.refused(Identity("a"), door.token("hub/devices/a", MODULE_KEY)) == "token_signature"
    assert door.refused(Identity("a"), door.token(resource, KEY)) == "token_resource"


def test_a_module_of_a_disabled_device_stays_out(door: Door) -> None:
    token = door.token("hub/devices/off/modules/m", MODULE_KEY)
    assert door.refused(Identity("off", "m"), token) == "disabled_device"


def test_a_module_that_is_none_stays_out(door: Door) -> None:
    for key in (KEY, MODULE_KEY, NO_KEY):
        assert door.refused(Identity("a", "x"), door.token("hub/devices/a/modules/x", key)) == "unknown_module"


@pytest.mark.parametrize("resource", ["hub", "hub/devices", "hub/devices/a"])
def test_a_policy_that_may_connect_devices_connects_one(door: Door, resource: str) -> None:
    admitted = door.admission.token(Identity("a"), door.token(resource, POLICY_KEY, "device"))
    assert '"scope":"hub"' in admitted.method


def test_a_policy_connects_no_device_that_is_disabled_unknown_or_elsewhere(door: Door) -> None:
    assert door.refused(Identity("off"), door.token("hub", POLICY_KEY, "device")) == "disabled_device"
    assert door.refused(Identity("x"), door.token("hub", POLICY_KEY, "device")) == "unknown_device"
    assert door.refused(Identity("a"), door.token("hub/devices/b", POLICY_KEY, "device")) == "token_resource"
    assert door.refused(Identity("a"), door.token("hub", POLICY_KEY, "service")) == "right"
    assert door.refused(Identity("a"), door.token("hub", NO_KEY, "nobody")) == "unknown_policy"
    assert door.refused(Identity("a"), door.token("hub", KEY, "device")) == "token_signature"


@pytest.mark.parametrize("id", ["cert", "none"])
@pytest.mark.parametrize("key", ["", NO_KEY, KEY])
def test_a_device_without_keys_comes_in_with_no_key_at_all(door: Door, id: str, key: str) -> None:
    assert door.refused(Identity(id), door.token(f"hub/devices/{id}", key)) == "no_key"


def test_a_device_with_a_certificate_is_no_policys(door: Door) -> None:
    assert door.refused(Identity("cert"), door.token("hub", POLICY_KEY, "device")) == "no_key"


def test_a_service_needs_the_right_and_the_key(door: Door) -> None:
    token = door.token("hub", POLICY_KEY, "registryRead")
    assert door.admission.service(token, "devices/a", "RegistryRead").name == "registryRead"
    assert door.service(token, right="RegistryWrite") == "right"
    assert door.service(door.token("hub", KEY, "registryRead")) == "token_signature"
    assert door.service(door.token("hub", KEY)) == "unknown_policy"
    assert door.service(door.token("hub", NO_KEY, "x")) == "unknown_policy"
    assert door.service(door.token("other", POLICY_KEY, "registryRead")) == "token_resource"
    assert door.service(door.token("hub", POLICY_KEY, "registryRead", -301)) == "token_expired"
    assert door.service("nonsense") == "token_malformed"


def test_the_hosts_port_and_case_do_not_matter(door: Door) -> None:
    token = door.token("HUB:8443", POLICY_KEY, "iothubowner")
    assert door.admission.service(token, "devices/a", "RegistryWrite").name == "iothubowner"
