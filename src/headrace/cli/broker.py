"""`headrace broker`: who may use the general MQTT broker.

Users are settings, not data: a hash stands in headrace.toml, so the command prints a line and changes no file.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import orjson
import typer

from headrace.cli.session import JsonOption, err, print_json
from headrace.core.errors import UserError
from headrace.gateway.broker.users import SALT_BYTES, hash_password

HELP = """The general MQTT broker: for devices and programs that do not speak IoT Hub's dialect.

It speaks MQTT 3.1, 3.1.1 and 5.0 on port 1883 of this machine, and lets in everybody who reaches it: on loopback only.
`headrace hub info` tells the port it really has.

Try it:  mosquitto_sub -V 5 -t 'telemetry/#' -v   and   mosquitto_pub -V 5 -q 1 -t telemetry/press-1 -m '{"bar": 4.2}'

What comes to telemetry/DEVICE is an event of that device in the stream `telemetry`; \\[\\[broker.templates]] maps other topics.

To open it to a network: add users, set \\[broker] anonymous = false and host, and \\[\\[broker.acl]] for who may do what."""

broker = typer.Typer(help=HELP, no_args_is_help=True)
user = typer.Typer(help="Users of the broker, with their passwords.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    broker.add_typer(user, name="user")
    app.add_typer(broker, name="broker")


@user.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The user name that clients give.")],
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input instead of asking for it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the line that lets a user in; put it under \\[broker.users] in headrace.toml, and start the broker anew.

    The line holds a scrypt hash, from which the password cannot be read. A user that is there already is replaced by the new line.

    Example: headrace broker user add press-hall
    Example: printf %s "$PASSWORD" | headrace broker user add press-hall --password-stdin
    """
    if not name or not name.isprintable():
        raise UserError(
            "a user name is text of at least one character, without control characters",
            hint="headrace broker user add NAME",
            code="broker.user_name",
        )
    hashed = hash_password(_password(from_stdin=password_stdin), os.urandom(SALT_BYTES))
    if as_json:
        print_json({"name": name, "hash": hashed})
        return
    err.print("under \\[broker.users] in headrace.toml:")
    print(f"{_key(name)} = {orjson.dumps(hashed).decode()}")


def _password(*, from_stdin: bool) -> str:
    if from_stdin:
        password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    else:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    if not password:
        raise UserError("the password is empty", hint="give one, or let users in without names", code="broker.password")
    return str(password)


def _key(name: str) -> str:
    """As a TOML key: bare where it may be, else a basic string, whose escapes are JSON's."""
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else orjson.dumps(name).decode()
