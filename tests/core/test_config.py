"""Settings: an unknown key names the nearest known one, the environment overrides, secrets do not print."""

from pathlib import Path

import pytest

from headrace.core.config import FILE_NAME, Secret, find_project, load_project, parse
from headrace.core.errors import NotFound, UserError


@pytest.mark.parametrize(
    ("raw", "said", "hint"),
    [
        ({"gatway": {}}, "unknown setting 'gatway'", "gateway"),
        ({"gateway": {"mqtt_prt": 1}}, "unknown setting 'mqtt_prt' in [gateway]", "mqtt_port"),
        ({"jobs": {"a": {"query": "x", "linger": 3}}}, "unknown setting 'linger' in [jobs", "linger_ms"),
    ],
)
def test_an_unknown_setting_names_the_nearest_known_one(raw: dict[str, object], said: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(raw)
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_a_setting_of_the_wrong_type_says_where() -> None:
    with pytest.raises(UserError, match=r"gateway\.mqtt_port"):
        parse({"gateway": {"mqtt_port": "many"}})


def test_the_environment_overrides_the_file() -> None:
    settings = parse({"gateway": {"mqtt_port": 1}}, environ={"HEADRACE_GATEWAY__MQTT_PORT": "2", "HEADRACE_OTHER": "x"})
    assert settings.gateway.mqtt_port == 2


def test_a_secret_prints_as_stars() -> None:
    url = parse({"warehouse": {"url": "postgresql://u:secret@h/d"}}).warehouse.url
    assert "secret" not in f"{url} {url!r}"
    assert url.reveal() == "postgresql://u:secret@h/d"
    assert isinstance(url, Secret)


def test_a_project_is_found_from_a_folder_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE_NAME).write_text('[project]\nname = "p"\n')
    below = tmp_path / "sql"
    below.mkdir()
    monkeypatch.chdir(below)
    monkeypatch.delenv("HEADRACE_PROJECT", raising=False)
    assert find_project() == tmp_path
    assert load_project().settings.project.name == "p"


def test_a_missing_project_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="headrace init"):
        find_project(str(tmp_path))


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("[project\n")
    with pytest.raises(UserError, match="line 1"):
        load_project(str(tmp_path))
