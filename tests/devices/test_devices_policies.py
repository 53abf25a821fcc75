"""Shared access policies."""

import asyncio
import random

import pytest

from headrace.core.clock import ManualClock
from headrace.core.errors import Conflict, NotFound, UserError
from headrace.devices.policies import DEFAULTS, PolicyStore, shared_connection_string
from headrace.devices.queries import DeviceDirectory
from headrace.docstore.contract import DocStore


@pytest.fixture
def policies(docs: DocStore, clock: ManualClock) -> PolicyStore:
    return PolicyStore(docs, clock, random.Random(2).randbytes)


async def test_the_default_policies_are_made_once(policies: PolicyStore) -> None:
    made = await policies.ensure()
    assert {policy.name: policy.rights for policy in made} == DEFAULTS
    assert [policy.name for policy in made] == list(DEFAULTS)
    assert await policies.ensure() == made
    assert len({key for policy in made for key in policy.keys}) == 10


async def test_many_that_start_together_make_one_set(docs: DocStore, clock: ManualClock) -> None:
    stores = [PolicyStore(docs, clock, random.Random(seed).randbytes) for seed in range(4)]
    made = await asyncio.gather(*(store.ensure() for store in stores))
    assert made[0] == made[1] == made[2] == made[3]


async def test_a_rotated_key_replaces_one_and_leaves_the_other(policies: PolicyStore) -> None:
    await policies.ensure()
    before = await policies.get("service")
    after = await policies.rotate("service", "secondary")
    assert after == await policies.get("service")
    assert after.primary_key == before.primary_key
    assert after.secondary_key != before.secondary_key


async def test_own_policies_have_the_rights_they_were_given(policies: PolicyStore) -> None:
    made = await policies.create("dash", ["ServiceConnect", "RegistryRead"])
    assert made.rights == ("RegistryRead", "ServiceConnect")
    with pytest.raises(Conflict):
        await policies.create("dash", ["ServiceConnect"])
    await policies.delete("dash")
    with pytest.raises(NotFound):
        await policies.get("dash")


async def test_wrong_policies_are_refused(policies: PolicyStore) -> None:
    with pytest.raises(UserError, match="no policy name"):
        await policies.create("a b", ["ServiceConnect"])
    with pytest.raises(UserError, match="right"):
        await policies.create("a", [])
    with pytest.raises(UserError, match="rotate"):
        await policies.delete("service")


async def test_an_unknown_policy_is_told_with_the_nearest_name(policies: PolicyStore) -> None:
    await policies.ensure()
    with pytest.raises(NotFound, match="registryRead"):
        await policies.get("registryred")


async def test_keys_show_in_no_repr(policies: PolicyStore) -> None:
    policy = (await policies.ensure())[0]
    assert policy.primary_key not in repr(policy)


async def test_the_directory_follows_policies(docs: DocStore, policies: PolicyStore) -> None:
    directory = DeviceDirectory(docs)
    await directory.open()
    assert directory.policy("service") is None
    await policies.ensure()
    await directory.refresh()
    assert directory.policy("service") == await policies.get("service")
    rotated = await policies.rotate("service", "primary")
    await directory.refresh()
    assert directory.policy("service") == rotated


async def test_a_connection_string_names_a_port_that_is_not_443(policies: PolicyStore) -> None:
    policy = (await policies.ensure())[0]
    tail = f"SharedAccessKeyName=iothubowner;SharedAccessKey={policy.primary_key}"
    assert shared_connection_string("hub", 443, policy) == f"HostName=hub;{tail}"
    assert shared_connection_string("hub", 8443, policy) == f"HostName=hub:8443;{tail}"
