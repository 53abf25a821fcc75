"""Rules of a script that its tree alone can show: which keys must run through it, and what TIMESTAMP BY may not use.

The keys of PARTITION BY and TIMESTAMP BY … OVER change no result here, since they are grouped by anyway; a script that breaks
their rules would give other results elsewhere, so it is refused. A key counts by its last name: `a.id` and `id` are one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from headrace.sql import tree
from headrace.sql.scope import fail

Keys = tuple[str, ...]
_BROKER = "partitionid"
"""The broker's own partitions: without it in GROUP BY, each partition is aggregated for itself."""


@dataclass(frozen=True)
class _Stream:
    """A stream in FROM or JOIN. `keys` are its PARTITION BY, its own or that of the step it reads."""

    source: tree.Source
    keys: Keys
    over: Keys  # TIMESTAMP BY … OVER, where it is an input


def check_rules(script: tree.Script, references: Collection[str]) -> None:
    """Raises SqlError. `references` are the names that mean reference data."""
    rules = _Rules({name.lower() for name in references})
    for step in script.steps:
        rules.steps[step.name.lower()] = rules.query(step.query)
    for query in script.queries:
        rules.query(query)


class _Rules:
    def __init__(self, references: set[str]) -> None:
        self.references = references
        self.steps: dict[str, Keys] = {}

    def query(self, query: tree.Query) -> Keys:
        """The keys that all branches have."""
        found = {self.select(select) for select in query.selects}
        return found.pop() if len(found) == 1 else ()

    def select(self, select: tree.Select) -> Keys:
        streams = [self.stream(select.source)]
        for join in select.joins:
            if isinstance(join, tree.Apply):
                _check_apply(join, [one.source for one in streams])
                continue
            if join.source.query is None and join.source.name.lower() in self.references:
                continue
            right = self.stream(join.source)
            _check_join(join, streams, right)
            streams.append(right)
        if select.grouped:
            _check_group(select, streams)
        return streams[0].keys

    def stream(self, source: tree.Source) -> _Stream:
        read = source.query
        before = self.query(read) if read is not None else self.steps.get(source.name.lower(), ())
        own = _names(source.partition)
        if own and before and own != before:
            fail(
                source.partition[0].at,
                f"PARTITION BY {', '.join(own)} follows a step that is partitioned by {', '.join(before)}",
                hint="the same key must run through all steps",
            )
        return _Stream(source, own or before, _names(source.over))


def _names(nodes: Sequence[tree.Node]) -> Keys:
    """Lower-case last names of columns; an expression gives an empty name."""
    return tuple(node.parts[-1].lower() if isinstance(node, tree.Name) else "" for node in nodes)


def _used(node: tree.Node) -> set[str]:
    return {part.parts[-1].lower() for part in tree.walk(node) if isinstance(part, tree.Name)}


def _check_group(select: tree.Select, streams: Sequence[_Stream]) -> None:
    """Every key must be a grouping key."""
    grouped = set(_names(select.group))
    for stream in streams:
        for what, keys in (("PARTITION BY", _names(stream.source.partition)), ("OVER", stream.over)):
            for key in keys:
                if key and key not in grouped and key != _BROKER:
                    at = select.group[0].at if select.group else select.windows[0].at
                    fail(at, f"the key {key!r} of {what} is not in GROUP BY", hint=f"add {key} to GROUP BY")


def _check_join(join: tree.Join, before: Sequence[_Stream], right: _Stream) -> None:
    """Joined streams need equal keys and counts, and their keys must be in ON."""
    for left in before:
        if left.keys != right.keys:
            fail(
                join.at,
                f"the JOIN is of streams partitioned by ({', '.join(left.keys)}) and by ({', '.join(right.keys)})",
                hint="give both the same PARTITION BY",
            )
        counts = left.source.partitions, right.source.partitions
        if all(counts) and counts[0] != counts[1]:
            fail(join.at, f"the JOIN is of streams with {counts[0]} and {counts[1]} partitions", hint="make them equal")
    used = _used(join.on)
    for what, keys in (("PARTITION BY", right.keys), ("OVER", right.over)):
        for key in keys:
            if key and key not in used:
                fail(join.at, f"the key {key!r} of {what} is not in ON", hint=f"add AND a.{key} = b.{key} to ON")


def _check_apply(join: tree.Apply, sources: Sequence[tree.Source]) -> None:
    """What APPLY makes comes after time: TIMESTAMP BY cannot use it."""
    for source in sources:
        for part in tree.walk(source.timestamp) if source.timestamp is not None else ():
            if isinstance(part, tree.Name) and len(part.parts) > 1 and part.parts[0].lower() == join.alias.lower():
                fail(
                    part.at,
                    f"{'.'.join(part.parts)!r} is made by APPLY and cannot be used in TIMESTAMP BY",
                    hint="use a field of the event itself",
                )
