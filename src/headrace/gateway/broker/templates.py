"""Topic templates: which topics become events, of which device, in which stream, with which properties.

`plant/{site}/{device}` is a filter whose names each take one level. The first template that fits a topic counts; a topic that
none fits is the broker's alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import orjson

from headrace.core.config import BrokerTemplateConfig
from headrace.core.errors import UserError, nearest
from headrace.gateway.streams import PLATFORM_STREAMS
from headrace.wire.mqtt.reasons import PacketRefused
from headrace.wire.mqtt.topics import matches, parse_filter

_NAME = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
DEVICE_CHARS_MAX = 128


class Target(NamedTuple):
    """What a topic's messages become. `properties` are what the topic says, sorted as written."""

    device: str
    stream: str
    site: str | None
    properties: dict[str, str]
    text: str | None  # the JSON of _properties for a message that adds none of its own
    registered: bool
    dynamic: bool  # the stream's name comes from the topic, so it must be open to devices


class Template:
    """Raises UserError for settings that cannot mean anything."""

    def __init__(self, config: BrokerTemplateConfig) -> None:
        self._config = config
        self._names: list[str] = []
        levels = [self._level(level) for level in config.filter.split("/")]
        try:
            self._levels = parse_filter("/".join(levels).encode()).levels
        except PacketRefused as exc:
            raise _bad(config, exc.message, "write it like plant/{site}/{device}") from exc
        if len(set(filter(None, self._names))) != len([name for name in self._names if name]):
            raise _bad(config, "a name stands twice", "give each level its own name")
        for text in (config.device, config.stream, config.site, *config.properties.values()):
            self._check(text)
        if not config.device or not config.stream:
            raise _bad(config, "device and stream must not be empty", "name them, or take them from the topic")
        if config.stream in PLATFORM_STREAMS:
            raise _bad(config, f"Headrace itself writes {config.stream!r}", "choose another stream")

    def _level(self, level: str) -> str:
        named = _NAME.fullmatch(level)
        if not named and ("{" in level or "}" in level):
            raise _bad(self._config, f"level {level!r} mixes a name with text", "a name stands for a whole level")
        self._names.append(named[1] if named else "")
        return "+" if named else level

    def _check(self, text: str) -> None:
        for name in _NAME.findall(text):
            if name not in self._names:
                hint = nearest(name, filter(None, self._names)) or f"it has {sorted(filter(None, self._names))}"
                raise _bad(self._config, f"{{{name}}} is not in the filter", hint)

    def target(self, topic: bytes) -> Target | None:
        """None where the topic does not fit, or gives no possible device name."""
        if not matches(self._levels, topic):
            return None
        config = self._config
        values = {name: value for name, value in zip(self._names, topic.decode().split("/"), strict=False) if name}

        def fill(text: str) -> str:
            return _NAME.sub(lambda found: values[found[1]], text)

        device, stream = fill(config.device), fill(config.stream)
        if not device or not stream or len(device) > DEVICE_CHARS_MAX:
            return None
        spent = {found for text in (config.device, config.stream, config.site) for found in _NAME.findall(text)}
        properties = {name: value for name, value in values.items() if name not in spent}
        properties |= {name: fill(text) for name, text in config.properties.items()}
        return Target(
            device,
            stream,
            fill(config.site) or None,
            properties,
            properties_text(properties, {}),
            config.registered,
            "{" in config.stream,
        )


class Templates:
    def __init__(self, configs: Iterable[BrokerTemplateConfig]) -> None:
        self._templates = [Template(config) for config in configs]

    def target(self, topic: bytes) -> Target | None:
        for template in self._templates:
            found = template.target(topic)
            if found is not None:
                return found
        return None


def properties_text(application: dict[str, str], system: dict[str, str]) -> str | None:
    """The JSON of an event's `_properties`, in the shape that the hub writes."""
    if not application and not system:
        return None
    return orjson.dumps({"system": system, "application": application}).decode()


def _bad(config: BrokerTemplateConfig, what: str, hint: str) -> UserError:
    return UserError(f"[[broker.templates]] {config.filter!r}: {what}", hint=hint, code="broker.template")
