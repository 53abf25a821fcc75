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
    """A CNC machine and the limits its operators watch: degrees Celsius, mm/s, seconds of remaining life."""

    id: str
    factory: str
    name: str
    city: str
    temperature_max: float = 82.0
    vibration_max: float = 6.5
    replace_below_s: float = 60.0
    plan_below_s: float = 180.0


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
    """`factories`, `machines` and `criteria` (requirement, rulFrom, rulBelow, in seconds of remaining life)."""
    first = machines[0]
    criteria = [
        {"requirement": "replace tool", "rulFrom": -1e6, "rulBelow": first.replace_below_s},
        {"requirement": "plan tool change", "rulFrom": first.replace_below_s, "rulBelow": first.plan_below_s},
    ]
    return {
        "factories": pa.Table.from_pylist([msgspec.structs.asdict(site) for site in sites]),
        "machines": pa.Table.from_pylist([msgspec.structs.asdict(machine) for machine in machines]),
        "criteria": pa.Table.from_pylist(criteria),
    }
