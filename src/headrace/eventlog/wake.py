"""Waking readers in other processes: a file per stream that writers open and close, and readers watch with inotify.

Opening for writing and closing again is an event to the kernel but changes nothing on disk, so a wake-up costs no write.
Where inotify cannot be had, readers look every 50 ms instead.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger()

POLL_S = 0.05
_IN_CLOSE_WRITE = 0x8
_EVENT = struct.Struct("iIII")


class Wakes:
    """Who waits for which stream of a folder. `touch` may be called from any thread, the rest from one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._names: dict[int, str] = {}  # watch -> stream
        self._turns: dict[str, int] = {}  # how often each watched stream has been touched
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    def touch(self, stream: str) -> None:
        """Tell every process that `stream` has grown. Call it after the commit."""
        try:
            os.close(os.open(self._folder / stream, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        except OSError as exc:  # what was stored is stored; readers find it when their wait ends
            log.warning("eventlog.wake_failed", stream=stream, error=str(exc))

    @property
    def watching(self) -> bool:
        """Whether the kernel tells us of touches (else we look now and then)."""
        return self._fd >= 0

    def turn(self, stream: str) -> int:
        """A number that changes with every touch. Take it before looking, wait with it after.

        A touch that is over by now is already counted, so who was told of an append finds what it stored.
        """
        self._attach()
        if self.watching:
            self._drain()
        if stream not in self._turns:
            self._turns[stream] = 0
            self._watch(stream)
        return self._turns[stream]

    async def changed(self, stream: str, turn: int, wait_s: float) -> bool:
        """Wait until `stream` may have grown since `turn` was taken. False when `wait_s` passed without."""
        if self._turns[stream] != turn:
            return True
        if not self.watching:
            await asyncio.sleep(min(wait_s, POLL_S))
            return wait_s > POLL_S
        waiter = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(stream, set())
        waiting.add(waiter)
        try:
            async with asyncio.timeout(wait_s):
                await waiter
        except TimeoutError:
            return False
        finally:
            waiting.discard(waiter)
        return True

    def close(self) -> None:
        """Let go of the descriptor and wake whoever waits."""
        self._wake(list(self._turns))
        if self._fd < 0:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1

    def _attach(self) -> None:
        """Have the running loop read our inotify descriptor."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None:
            self._waiting.clear()  # they waited in a loop that is gone
            self.close()
            self._names.clear()
            self._turns.clear()
        self._loop = loop
        try:
            self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if self._fd >= 0:
                loop.add_reader(self._fd, self._drain)
        except (AttributeError, NotImplementedError):
            self.close()
        if self._fd < 0:
            log.warning("eventlog.polling", folder=str(self._folder), every_s=POLL_S)

    def _watch(self, stream: str) -> None:
        if self._fd < 0:
            return
        if not (self._folder / stream).exists():  # only a file that exists can be watched
            self.touch(stream)
        watch = self._libc.inotify_add_watch(self._fd, os.fsencode(self._folder / stream), _IN_CLOSE_WRITE)
        if watch < 0:
            log.warning("eventlog.polling", folder=str(self._folder), every_s=POLL_S, errno=ctypes.get_errno())
            self.close()
            return
        self._names[watch] = stream

    def _drain(self) -> None:
        touched: set[str] = set()
        with suppress(BlockingIOError):
            data = os.read(self._fd, 65_536)
            at = 0
            while at < len(data):
                watch, _, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                if watch in self._names:
                    touched.add(self._names[watch])
                elif watch < 0:  # the kernel's queue overflowed: any stream may have grown
                    touched.update(self._turns)
        self._wake(touched)

    def _wake(self, streams: set[str] | list[str]) -> None:
        for stream in streams:
            self._turns[stream] += 1
            for waiter in self._waiting.get(stream, ()):
                if not waiter.done():
                    waiter.set_result(None)
