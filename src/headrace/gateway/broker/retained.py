"""Retained messages: the last one of each topic, in a tree of levels, all in memory (the store keeps the copy on disk).

Reading for a filter walks only the branches that it can match, so a subscription to one topic costs no scan of all.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.gateway.broker.message import Message


class _Node:
    __slots__ = ("children", "message")

    def __init__(self) -> None:
        self.children: dict[bytes, _Node] = {}
        self.message: Message | None = None


LEVEL_BYTES = 200
"""About what one level of a topic takes in the tree."""


def cost(message: Message) -> int:
    """Bytes that a message counts for."""
    return message.size_bytes + LEVEL_BYTES * (message.topic.count(b"/") + 1)


class Retained:
    """Bounded by number and bytes; `put` of one too many is refused, never an older one dropped."""

    def __init__(self, *, messages_max: int, bytes_max: int) -> None:
        self._root = _Node()
        self._messages_max, self._bytes_max = messages_max, bytes_max
        self.count = 0
        self.size_bytes = 0

    def put(self, message: Message) -> bool:
        """Keep a message as its topic's last one; False when there is no room."""
        earlier = self.get(message.topic)
        freed = cost(earlier) if earlier else 0
        if self.count + (earlier is None) > self._messages_max:
            return False
        if self.size_bytes - freed + cost(message) > self._bytes_max:
            return False
        node = self._root
        for level in message.topic.split(b"/"):
            below = node.children.get(level)
            if below is None:
                below = node.children[level] = _Node()
            node = below
        node.message = message
        self.count += earlier is None
        self.size_bytes += cost(message) - freed
        return True

    def get(self, topic: bytes) -> Message | None:
        node: _Node | None = self._root
        for level in topic.split(b"/"):
            node = node.children.get(level) if node else None
        return node.message if node else None

    def drop(self, topic: bytes) -> bool:
        """Whether there was one."""
        path, levels = [self._root], topic.split(b"/")
        for level in levels:
            below = path[-1].children.get(level)
            if below is None:
                return False
            path.append(below)
        gone, path[-1].message = path[-1].message, None
        for depth in range(len(levels), 0, -1):
            if path[depth].children or path[depth].message:
                break
            del path[depth - 1].children[levels[depth - 1]]
        if gone is None:
            return False
        self.count -= 1
        self.size_bytes -= cost(gone)
        return True

    def matching(self, levels: tuple[bytes, ...]) -> list[Message]:
        """The messages that a filter matches."""
        here = [self._root]
        for index, level in enumerate(levels):
            if level == b"#":
                found = [node.message for node in here if node.message and index]  # `a/#` matches `a` too
                for node in here:
                    found += [message for below in _below(node, index == 0) for message in _all(below)]
                return found
            if level == b"+":
                here = [below for node in here for below in _below(node, index == 0)]
            else:
                here = [node.children[level] for node in here if level in node.children]
        return [node.message for node in here if node.message]

    def expired(self, now: int) -> list[bytes]:
        """Topics whose message's time is over."""
        return [message.topic for message in _all(self._root) if 0 < message.expires <= now]


def _below(node: _Node, first: bool) -> list[_Node]:
    """A node's children as a wildcard sees them: none that begins with `$` on the first level."""
    return [below for level, below in node.children.items() if not (first and level[:1] == b"$")]


def _all(node: _Node) -> Iterator[Message]:
    stack = [node]
    while stack:
        node = stack.pop()
        if node.message:
            yield node.message
        stack += node.children.values()
