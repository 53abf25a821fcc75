"""kill -9 under load: is every acknowledged event in the lake and in the warehouse exactly once?

A short run is a test (test_kill.py); a long one is this command. Victims are any process of the project, PostgreSQL's
postmaster, the supervisor alone, and all of them at once.

    .venv/bin/python tests/sim/chaos.py --kills 20 --rate 1000 --connections 100 --seconds 240
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from whole_project import POSTGRES, WholeProject, exactly_once

ALL, SUPERVISOR = "all", "supervisor"
FIRST_S = 3.0
"""Something must have been acknowledged before the first kill."""


def run(
    folder: Path,
    victims: Sequence[str],
    *,
    rate: int,
    connections: int,
    seconds: float,
    rng: random.Random,
    keep: bool = False,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> dict[str, Any]:
    """Load for `seconds`, kill `victims` one after another at random moments, let all drain, judge.

    A killed supervisor takes its parts along; somebody, here we, has to start the project again.
    """
    project = WholeProject(folder / "plant")
    acknowledged = folder / "acknowledged"
    with project.running(keep=keep):
        devices = project.register(connections)
        generator = project.generator(devices, acknowledged, rate=rate, connections=connections, seconds=seconds)
        try:
            while not (acknowledged.exists() and acknowledged.stat().st_size):
                if generator.poll() is not None:
                    raise RuntimeError("the generator ended before anything was acknowledged")
                time.sleep(0.1)
            began = time.monotonic()
            moments = sorted(rng.uniform(FIRST_S, max(FIRST_S, seconds - 5)) for _ in victims)
            found: list[str] = []
            for moment, victim in zip(moments, victims, strict=True):
                time.sleep(max(0.0, began + moment - time.monotonic()))
                killed = project.kill(victim)
                found += [victim] if killed else []
                say(f"{time.monotonic() - began:6.1f} s  kill -9 {victim:<20} {len(killed)} processes")
                if victim in (ALL, SUPERVISOR):
                    project.up()
                    say(f"{time.monotonic() - began:6.1f} s  up again")
            if SUPERVISOR not in project.parts():
                raise RuntimeError("the supervisor is not there any more")
            output, _ = generator.communicate(timeout=seconds + 300)
        finally:
            generator.kill()
            generator.wait(10)
        say("judging")
        sent = json.loads(output.splitlines()[-1])
        told = {name: sent[name] for name in ("sent", "resent", "reconnects", "unacknowledged", "max_ms")}
        return {"kills": dict(Counter(found)), **told, **project.judge(acknowledged)}


def random_victims(count: int, parts: Sequence[str], rng: random.Random) -> list[str]:
    """Every part once, as far as `count` goes, then any; one in ten is everything at once."""
    shuffled = rng.sample(parts, len(parts))
    victims = [*shuffled, *rng.choices([*parts, ALL], k=max(0, count - len(parts)))][:count]
    for at in range(9, count, 10):
        victims[at] = ALL
    return victims


PARTS = (
    "gateway",
    "jobs",
    "alerts",
    "web",
    "function:lake",
    "function:entities",
    POSTGRES,
    SUPERVISOR,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=int, default=1000, help="messages a second")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2), "big"))
    parser.add_argument("--dir", type=Path, help="keep everything here; default: a temporary folder")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = options.dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        victims = random_victims(options.kills, PARTS, rng)
        load = {"rate": options.rate, "connections": options.connections, "seconds": options.seconds}
        result = run(folder, victims, rng=rng, keep=options.dir is not None, **load)
    print(json.dumps({"seed": options.seed, "exactly_once": exactly_once(result), **result}, indent=2))
    return 0 if exactly_once(result) else 1


if __name__ == "__main__":
    sys.exit(main())
