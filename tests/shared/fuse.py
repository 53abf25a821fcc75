"""Things that crash when told to: a call that never comes back, as `kill -9` would have it."""

from __future__ import annotations

import inspect
from typing import Any


class Killed(BaseException):
    """The process ended here, as `kill -9` would end it."""


class Fuse:
    """Burns at the `at`-th call that goes through it, before or after the call has its effect."""

    def __init__(self, at: int, after: bool = False) -> None:
        self.left, self.after = at, after

    def wrap(self, thing: Any, *names: str) -> Any:
        return _Fused(thing, names, self)

    def burns(self) -> bool:
        self.left -= 1
        return self.left == -1


class _Fused:
    def __init__(self, thing: Any, names: tuple[str, ...], fuse: Fuse) -> None:
        self._thing, self._names, self._fuse = thing, names, fuse

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._thing, name)
        if name not in self._names:
            return call

        def before() -> bool:
            burns = self._fuse.burns()
            if burns and not self._fuse.after:
                raise Killed(name)
            return burns

        def blocking(*args: Any, **options: Any) -> Any:
            burns = before()
            try:
                return call(*args, **options)
            finally:
                if burns:
                    raise Killed(name)

        async def awaiting(*args: Any, **options: Any) -> Any:
            burns = before()
            try:
                return await call(*args, **options)
            finally:
                if burns:
                    raise Killed(name)

        return awaiting if inspect.iscoroutinefunction(call) else blocking
