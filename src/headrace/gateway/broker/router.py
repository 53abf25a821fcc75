"""Who gets a topic: subscriptions in a tree of levels, and a plan for each topic that is published to.

A plan is computed once per topic and kept until any subscription changes, so that the usual message costs one dictionary
look-up instead of a walk through the tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S")  # whose subscriptions these are; only compared and handed back
PLANS_MAX = 100_000
PLANNED_BYTES_MAX = 512
"""Longer topics are looked up each time, so that remembering is bounded in bytes too."""


class Subscription(NamedTuple, Generic[S]):
    owner: S
    filter: bytes  # as the client wrote it, with $share
    group: bytes  # `NAME` of a shared subscription
    levels: tuple[bytes, ...]
    qos: int
    no_local: bool
    as_published: bool
    identifier: int


class Match(NamedTuple, Generic[S]):
    """What one session gets of a topic: one delivery, however many of its subscriptions match."""

    owner: S
    qos: int
    as_published: bool
    identifiers: tuple[int, ...]
    parts: tuple[Subscription[S], ...]
    no_local: bool  # whether any part is: then the publisher itself may get less


class Group(Generic[S]):
    """A shared subscription: its members take turns."""

    __slots__ = ("key", "members", "turn")

    def __init__(self, key: bytes) -> None:
        self.key = key  # NAME/FILTER
        self.members: dict[S, Subscription[S]] = {}
        self.turn = 0

    def in_turn(self) -> list[Subscription[S]]:
        """All members, beginning with whose turn it is; asking moves the turn on."""
        members = list(self.members.values())
        self.turn = (self.turn + 1) % max(1, len(members))
        return members[self.turn :] + members[: self.turn]


class Plan(NamedTuple, Generic[S]):
    matches: tuple[Match[S], ...]
    groups: tuple[Group[S], ...]


class _Node(Generic[S]):
    __slots__ = ("children", "groups", "subscriptions")

    def __init__(self) -> None:
        self.children: dict[bytes, _Node[S]] = {}
        self.subscriptions: dict[S, Subscription[S]] = {}
        self.groups: dict[bytes, Group[S]] = {}

    @property
    def empty(self) -> bool:
        return not self.children and not self.subscriptions and not self.groups


class Router(Generic[S]):
    """The subscriptions of all sessions. `may_receive` (owner, topic) leaves out who must not hear of a topic."""

    def __init__(self, may_receive: Callable[[S, bytes], bool] = lambda owner, topic: True) -> None:
        self._root: _Node[S] = _Node()
        self._plans: dict[bytes, Plan[S]] = {}
        self._may_receive = may_receive
        self.version = 0  # changes with every subscription
        self.count = 0

    def add(self, subscription: Subscription[S]) -> bool:
        """Add or replace; whether it is new."""
        node = self._root
        for level in subscription.levels:
            below = node.children.get(level)
            if below is None:
                below = node.children[level] = _Node()
            node = below
        place = node.subscriptions
        if subscription.group:
            group = node.groups.get(subscription.group)
            if group is None:
                group = node.groups[subscription.group] = Group(group_key(subscription))
            place = group.members
        new = subscription.owner not in place
        place[subscription.owner] = subscription
        self.count += new
        self._changed()
        return new

    def remove(self, subscription: Subscription[S]) -> None:
        path = [self._root]
        for level in subscription.levels:
            below = path[-1].children.get(level)
            if below is None:
                return
            path.append(below)
        node = path[-1]
        if subscription.group:
            group = node.groups.get(subscription.group)
            gone = group.members.pop(subscription.owner, None) if group else None
            if group is not None and not group.members:
                del node.groups[subscription.group]
        else:
            gone = node.subscriptions.pop(subscription.owner, None)
        self.count -= gone is not None
        for depth in range(len(subscription.levels), 0, -1):
            if not path[depth].empty:
                break
            del path[depth - 1].children[subscription.levels[depth - 1]]
        self._changed()

    def group(self, levels: tuple[bytes, ...], name: bytes) -> Group[S] | None:
        node = self._root
        for level in levels:
            below = node.children.get(level)
            if below is None:
                return None
            node = below
        return node.groups.get(name)

    def plan(self, topic: bytes) -> Plan[S]:
        """Who gets `topic` (valid until `version` changes)."""
        known = self._plans.get(topic)
        if known is None:
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            known = self._plan(topic)
            if len(topic) <= PLANNED_BYTES_MAX:
                self._plans[topic] = known
        return known

    def _changed(self) -> None:
        self.version += 1
        if self._plans:
            self._plans.clear()

    def _plan(self, topic: bytes) -> Plan[S]:
        by_owner: dict[S, list[Subscription[S]]] = {}
        groups: list[Group[S]] = []
        for node in self._matching(topic):
            for owner, subscription in node.subscriptions.items():
                by_owner.setdefault(owner, []).append(subscription)
            groups += node.groups.values()
        return Plan(
            tuple(merged(owner, parts) for owner, parts in by_owner.items() if self._may_receive(owner, topic)),
            tuple(groups),
        )

    def _matching(self, topic: bytes) -> list[_Node[S]]:
        """The nodes whose filters match, breadth first: at most all nodes of the tree are looked at, once each."""
        found: list[_Node[S]] = []
        here = [self._root]
        wild = topic[:1] != b"$"
        for level in topic.split(b"/"):
            below: list[_Node[S]] = []
            for node in here:
                children = node.children
                if wild:
                    rest = children.get(b"#")
                    if rest is not None:
                        found.append(rest)
                    any_one = children.get(b"+")
                    if any_one is not None:
                        below.append(any_one)
                exact = children.get(level)
                if exact is not None:
                    below.append(exact)
            here, wild = below, True
            if not here:
                return found
        for node in here:
            found.append(node)
            rest = node.children.get(b"#")  # `a/#` matches `a` too
            if rest is not None:
                found.append(rest)
        return found


def merged(owner: S, parts: list[Subscription[S]]) -> Match[S]:
    """One delivery for all the subscriptions of one session that match."""
    return Match(
        owner,
        max(part.qos for part in parts),
        any(part.as_published for part in parts),
        tuple(part.identifier for part in parts if part.identifier),
        tuple(parts),
        any(part.no_local for part in parts),
    )


def group_key(subscription: Subscription[S]) -> bytes:
    return subscription.group + b"/" + b"/".join(subscription.levels)
