"""`headrace hub authority`: whose certificates devices may show instead of a key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from headrace import assembly
from headrace.assembly import Platform
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.clock import to_iso
from headrace.core.config import load_project
from headrace.core.errors import UserError
from headrace.devices.certificates import AuthorityQueries, CertificateAuthority

T = TypeVar("T")
authority = typer.Typer(help="Certificate authorities that vouch for devices.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="What you call it.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A certificate, PEM.")]


def add_to(hub: typer.Typer) -> None:
    hub.add_typer(authority, name="authority")


@authority.command("add")
def add(
    name: Name,
    file: File,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="It is yours: let it vouch at once, without proof of possession.")
    ] = False,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register an authority's certificate. It vouches for nobody until it is verified, unless it is --trusted.

    Prints the verification code: sign a certificate with that common name by the authority's key, then `verify` it.

    Example: headrace hub authority add plant-ca ca.pem
    """
    pem = _pem(file)
    made = _with(project, lambda platform: platform.authorities.add(name, pem, trusted=trusted))
    if as_json:
        print_json(_shown(made))
    elif made.verified:
        out.print(f"{name}: trusted; devices with authentication certificateAuthority may show its certificates")
    else:
        out.print(f"{name}: not verified yet. Sign a certificate for the common name", markup=False)
        print(made.code)
        out.print(f"then: headrace hub authority verify {name} THAT.pem", markup=False)


@authority.command("verify")
def verify(name: Name, file: File, project: ProjectOption = None) -> None:
    """Prove that you hold an authority's key, by a certificate it signed for the verification code.

    Example: headrace hub authority verify plant-ca proof.pem
    """
    pem = _pem(file)
    _with(project, lambda platform: platform.authorities.verify(name, pem))
    out.print(f"{name}: verified", markup=False)


@authority.command("list")
def list_authorities(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """All authorities, with what is still to be proven.

    Example: headrace hub authority list
    """
    found = _with(project, lambda platform: AuthorityQueries(platform.docs).list())
    if as_json:
        print_json([_shown(each) for each in found])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "verified", "until", "thumbprint", "subject", "code"):
        table.add_column(column)
    for each in found:
        code = "" if each.verified else each.code
        until = to_iso(each.not_after * 10_000_000)[:10]
        table.add_row(each.name, "yes" if each.verified else "no", until, each.thumbprint, each.subject, code)
    out.print(table)


@authority.command("delete")
def delete(name: Name, project: ProjectOption = None) -> None:
    """Forget an authority: devices it vouched for are refused when they connect again.

    Example: headrace hub authority delete plant-ca
    """
    _with(project, lambda platform: platform.authorities.delete(name))
    out.print(f"{name}: deleted", markup=False)


def _with(project: str | None, work: Callable[[Platform], Awaitable[T]]) -> T:
    async def all_of_it() -> T:
        platform = assembly.Platform(load_project(project))
        try:
            return await work(platform)
        finally:
            await platform.close()

    return run(all_of_it())


def _pem(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(f"{file} cannot be read as PEM", hint="give a certificate file", code="authority.file") from exc


def _shown(found: CertificateAuthority) -> dict[str, Any]:
    return {
        "name": found.name,
        "verified": found.verified,
        "verificationCode": found.code,
        "subject": found.subject,
        "thumbprint": found.thumbprint,
        "notAfter": to_iso(found.not_after * 10_000_000),
    }
