"""The five factories, their machines, and when a machine needs what: the blueprint's metadata.

Places are real cities, the company is not. Machines are numbered through the factories in turn, so any number of them is
spread evenly.
"""

from __future__ import annotations

import msgspec
import pyarrow as pa


class Site(msgspec.Struct, frozen=True):
    """A factory."""

    id: str
    name: str
    city: str
    country: str
    latitude: float
    longitude: float


class Machine(msgspec.Struct, frozen=True):
    """A CNC machine."""

    id: str
    factory: str
    name: str
    city: str
    kind: str = "cnc"


class Criterion(msgspec.Struct, frozen=True):
    """When a machine needs what: `requirement` once `field` compares so with `threshold` (the field's unit)."""

    id: str
    requirement: str
    field: str
    comparison: str
    threshold: float


CRITERIA = (
    Criterion("replace-tool", "replace tool", "rul", "<", 60.0),
    Criterion("plan-tool-change", "plan tool change", "rul", "<", 180.0),
    Criterion("check-cooling", "check cooling", "temperature", ">", 82.0),
)
SITES = (
    Site("fac1", "Lyon Precision", "Lyon", "France", 45.76, 4.84),
    Site("fac2", "Monterrey Works", "Monterrey", "Mexico", 25.69, -100.32),
    Site("fac3", "Pune Components", "Pune", "India", 18.52, 73.86),
    Site("fac4", "Busan Tooling", "Busan", "South Korea", 35.18, 129.08),
    Site("fac5", "Ostrava Turning", "Ostrava", "Czechia", 49.82, 18.26),
)


def make_sites(count: int) -> list[Site]:
    """The first `count` factories; beyond the five that have a name they are numbered and lie on the equator."""
    more = (
        Site(f"fac{n}", f"Plant {n}", f"Plant {n}", "", 0.0, float(n % 180)) for n in range(len(SITES) + 1, count + 1)
    )
    return [*SITES, *more][:count]


def make_machines(sites: list[Site], count: int) -> list[Machine]:
    """`count` machines, `fac1-cnc-001` first, dealt out to the factories in turn."""
    return [
        Machine(
            id=f"{(site := sites[index % len(sites)]).id}-cnc-{index // len(sites) + 1:03d}",
            factory=site.id,
            name=f"CNC {index // len(sites) + 1}, {site.city}",
            city=site.city,
        )
        for index in range(count)
    ]


def metadata_tables(sites: list[Site], machines: list[Machine]) -> dict[str, pa.Table]:
    """Rows for the warehouse's metadata tables: `factory`, `machine`, `maintenance_criterion`."""
    factories = [
        {**msgspec.structs.asdict(site), "location": ", ".join(filter(None, (site.city, site.country)))}
        for site in sites
    ]
    return {
        "factory": pa.Table.from_pylist(factories),
        "machine": pa.Table.from_pylist([msgspec.structs.asdict(machine) for machine in machines]),
        "maintenance_criterion": pa.Table.from_pylist([msgspec.structs.asdict(one) for one in CRITERIA]),
    }
