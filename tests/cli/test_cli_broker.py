"""`headrace broker user add`: the line it prints lets the user in."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import pytest

from headrace.core.config import Secret
from headrace.gateway.broker.users import Users


def called(*words: str, typed: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from headrace.cli import main; main()", "broker", *words]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.parametrize("name", ["press-hall", 'a "b" \\ ä.c'])
def test_the_line_is_toml_and_lets_the_user_in(name: str) -> None:
    line = called("user", "add", name, "--password-stdin", typed="open sesame\n").stdout
    ((found, text),) = tomllib.loads(line).items()
    assert found == name
    users = Users({found: Secret(text)}, b"pepper of this test")
    assert users.verify(name, b"open sesame")
    assert not users.verify(name, b"open sesame\n")
    assert "sesame" not in line


def test_two_hashes_of_one_password_differ() -> None:
    texts = [
        json.loads(called("user", "add", "u", "--password-stdin", "--json", typed="p").stdout)["hash"] for _ in range(2)
    ]
    assert texts[0] != texts[1]


def test_an_empty_password_is_refused() -> None:
    assert "broker.password" in called("user", "add", "u", "--password-stdin", typed="\n", code=1).stderr


def test_the_help_says_how_to_try_it() -> None:
    shown = called("--help").stdout
    assert "mosquitto_pub" in shown
    assert "[broker]" in shown
    assert "[[broker.acl]]" in shown
