import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import UserError
from headrace.devices.connection_string import build, parse
from headrace.devices.rules import make_key

KEY = make_key(bytes(range(32)))
IDS = st.text(alphabet="abcXYZ019-:.+%_#*?!(),=@;$'", min_size=1, max_size=30)


@settings(deadline=None)
@given(IDS)
def test_every_device_id_survives(id: str) -> None:
    assert parse(build("hub.local", id, KEY)).device_id == id


def test_the_fields_come_in_any_order() -> None:
    read = parse(f" SharedAccessKey={KEY};GatewayHostName=gw;DeviceId=a;HostName=hub.local:8883; ")
    assert (read.hostname, read.device_id, read.key, read.address) == ("hub.local:8883", "a", KEY, "gw")
    assert parse(str(read)) == read


def test_a_module_is_named_beside_its_device() -> None:
    text = build("hub.local", "a;b", KEY, module_id="m")
    assert (parse(text).device_id, parse(text).module_id) == ("a;b", "m")


def test_without_a_gateway_the_hub_is_dialled() -> None:
    assert parse(build("hub.local", "a", KEY)).address == "hub.local"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "without `=`"),
        (f"HostName=h;DeviceId=a;SharedAccesKey={KEY}", "SharedAccessKey is missing"),
        (f"Hostname=h;DeviceId=a;SharedAccessKey={KEY}", "did you mean 'HostName'"),
        ("HostName=h;DeviceId=a", "SharedAccessKey is missing"),
        (f"HostName=h;HostName=i;DeviceId=a;SharedAccessKey={KEY}", "twice"),
        (f"HostName=h;DeviceId=a b;SharedAccessKey={KEY}", "not allowed"),
        ("HostName=h;DeviceId=a;SharedAccessKey=?", "not base64"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(text)


def test_the_key_is_never_shown() -> None:
    assert KEY not in repr(parse(build("h", "a", KEY)))
    with pytest.raises(UserError) as caught:
        parse(f"DeviceId=a;SharedAccessKey={KEY}")
    assert KEY not in str(caught.value)
