"""`headrace hub`: what clients and services need to talk to this hub."""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table

from headrace import assembly
from headrace.assembly.hub_info import hub_info
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.config import Project, load_project

hub = typer.Typer(
    help="The hub: its addresses, policies and keys, what it receives, where it sends it, whom it holds back.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    from headrace.cli import hub_authority, hub_telemetry, hub_traffic

    hub.command("telemetry")(hub_telemetry.telemetry)
    hub_traffic.add_to(hub)
    hub_authority.add_to(hub)
    app.add_typer(hub, name="hub")


@hub.command("info")
def info(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Addresses, CA file, shared access policies with their keys, and connection strings. The output holds secrets.

    With --json the keys are: running, host, mqttPort, httpsPort, plainMqttPort, brokerPort, brokerTlsPort, caFile,
    connectionString, policies {NAME: {primaryKey, secondaryKey, rights, connectionString}}, and provisioning {idScope, host,
    policy, primaryKey, secondaryKey, connectionString}. A port that is off, or not known while the hub is down, is null.

    Example: headrace hub info --json | jq -r .connectionString
    """
    found = run(_gather(load_project(project)))
    if as_json:
        print_json(found)
    else:
        _print(found)


async def _gather(project: Project) -> dict[str, Any]:
    platform = assembly.Platform(project)
    try:
        return await hub_info(platform)
    finally:
        await platform.close()


def _print(found: dict[str, Any]) -> None:
    state = "runs" if found["running"] else "does not run; the ports are those of its settings"
    out.print(f"[bold]{found['host']}[/]  the hub {state}")
    shown = {
        "MQTT over TLS": found["mqttPort"],
        "HTTPS and WebSocket": found["httpsPort"],
        "plain MQTT": found["plainMqttPort"],
        "broker": found["brokerPort"],
        "broker over TLS": found["brokerTlsPort"],
        "CA file": found["caFile"],
        "ID scope": found["provisioning"]["idScope"],
    }
    facts = Table(box=None, pad_edge=False, show_header=False)
    for name, value in shown.items():
        if value is not None:
            facts.add_row(name, str(value))
    out.print(facts)
    table = Table(box=None, pad_edge=False)
    for column in ("policy", "rights", "connection string"):
        table.add_column(column)
    for name, policy in found["policies"].items():
        table.add_row(name, " ".join(policy["rights"]), policy["connectionString"])
    out.print(table)


@hub.command("rotate-key")
def rotate_key(
    policy: str = typer.Argument(metavar="POLICY", help="The policy, as `headrace hub info` shows it."),
    secondary: bool = typer.Option(False, "--secondary", help="The secondary key instead of the primary one."),
    project: ProjectOption = None,
) -> None:
    """Give a policy a new key; tokens signed with the old one are refused from then on.

    Example: headrace hub rotate-key service --secondary
    """

    async def work() -> None:
        platform = assembly.Platform(load_project(project))
        try:
            await platform.policies.ensure()
            await platform.policies.rotate(policy, "secondary" if secondary else "primary")
            out.print(f"{policy}: new {'secondary' if secondary else 'primary'} key", markup=False)
        finally:
            await platform.close()

    run(work())
