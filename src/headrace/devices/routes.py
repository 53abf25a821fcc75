"""Message routes: which endpoints a message goes to, and what is added to it on the way.

Conditions and enrichments are read once and become closures, so that a mistake is found before any message comes. A condition
sees the values of properties as texts, a body only where it is said to be JSON in a Unicode encoding, and is never an error:
what it cannot find is undefined, and undefined does not match.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import orjson

from headrace.core.config import EnrichmentConfig, RouteConfig
from headrace.core.errors import UserError
from headrace.devices import hub_expression as expression
from headrace.devices.hub_functions import UNDEFINED, walked
from headrace.devices.twins import Twin

Source: TypeAlias = Literal[
    "DeviceMessages", "TwinChangeEvents", "DeviceLifecycleEvents", "DeviceConnectionStateEvents"
]
MESSAGES: Source = "DeviceMessages"
ROUTES_MAX, ENRICHMENTS_MAX = 100, 20
BUILT_IN = "events"
"""IoT Hub's name of the stream that takes what fits no route."""
JSON_TYPE = "application/json"
ENCODINGS = frozenset({"utf-8", "utf-16", "utf-32"})
BODY, TWIN, HUB_NAME = "$body", "$twin", "$iothubname"
SYSTEM = {
    "$messageid": "message-id",
    "$correlationid": "correlation-id",
    "$userid": "user-id",
    "$contenttype": "content-type",
    "$contentencoding": "content-encoding",
    "$enqueuedtime": "iothub-enqueuedtime",
    "$connectiondeviceid": "iothub-connection-device-id",
    "$connectionmoduleid": "iothub-connection-module-id",
    "$dt-dataschema": "dt-dataschema",
    "$dt-subject": "dt-subject",
}
_KEY_LETTERS = frozenset(string.ascii_letters + string.digits + "-_.")


class RouteInvalid(UserError):
    """A route or an enrichment that cannot be; the message names it and, for a condition, the position in it."""

    code = "route.invalid"


class Subject:
    """What a condition looks at: one message or one event of the hub's. `system` holds names as in SYSTEM's values."""

    def __init__(
        self,
        system: Mapping[str, str | None],
        application: Mapping[str, str | None],
        body: bytes,
        twin: Twin | None = None,
    ) -> None:
        self.system = system
        self.application = application
        self._body = body
        self._twin = twin

    @cached_property
    def body(self) -> Any:
        """The body as a JSON value, or UNDEFINED."""
        content = (self.system.get("content-type") or "").partition(";")[0].strip().lower()
        encoding = (self.system.get("content-encoding") or "").strip().lower()
        if content != JSON_TYPE or encoding not in ENCODINGS:
            return UNDEFINED
        try:
            return orjson.loads(self._body if encoding == "utf-8" else self._body.decode(encoding))
        except ValueError:  # no JSON, or none in that encoding
            return UNDEFINED

    @cached_property
    def folded(self) -> Mapping[str, str | None]:
        """Application properties by their names in lower case; of two alike the last."""
        return {name.lower(): value for name, value in self.application.items()}

    @cached_property
    def twin(self) -> Any:
        if self._twin is None:
            return UNDEFINED
        return {
            "tags": self._twin.tags,
            "properties": {"desired": self._twin.desired.values, "reported": self._twin.reported.values},
        }

    @property
    def model_id(self) -> Any:
        return (self._twin.model_id or UNDEFINED) if self._twin is not None else UNDEFINED


class Route(NamedTuple):
    """`fits` None: every message does."""

    name: str
    source: Source
    fits: Callable[[Subject], bool] | None
    endpoints: tuple[str, ...]
    needs_twin: bool


class Enrichment(NamedTuple):
    key: str
    value: Callable[[Subject], str]
    endpoints: frozenset[str]
    needs_twin: bool


class Routing:
    """All routes that are enabled, and the enrichments. Raises RouteInvalid.

    `stream` is where the fallback leads. `problem` says why a source may not lead to an endpoint, empty when it may.
    """

    def __init__(
        self,
        routes: Mapping[str, RouteConfig],
        enrichments: Mapping[str, EnrichmentConfig] | None = None,
        *,
        fallback: bool = True,
        stream: str = "telemetry",
        hub_name: str = "",
        problem: Callable[[Source, str], str] = lambda source, endpoint: "",
    ) -> None:
        enrichments = enrichments or {}
        if len(routes) > ROUTES_MAX or len(enrichments) > ENRICHMENTS_MAX:
            raise RouteInvalid(
                f"{len(routes)} routes and {len(enrichments)} enrichments",
                hint=f"at most {ROUTES_MAX} and {ENRICHMENTS_MAX}",
            )
        self._stream = stream
        self.hub_name = hub_name
        self.fallback = (stream,) if fallback else ()
        made = [self._route(name, config, problem) for name, config in routes.items()]
        self.routes = [route for route, config in zip(made, routes.values(), strict=True) if config.enabled]
        self._enrichments = [self._enrichment(name, config, hub_name) for name, config in enrichments.items()]
        self._by_source: dict[Source, list[Route]] = {}
        for route in self.routes:
            self._by_source.setdefault(route.source, []).append(route)

    @property
    def streams(self) -> frozenset[str]:
        """Every endpoint of an enabled route."""
        return frozenset(endpoint for route in self.routes for endpoint in route.endpoints)

    def of(self, source: Source) -> Sequence[Route]:
        return self._by_source.get(source, ())

    def concerns(self, source: Source) -> bool:
        """Whether anything is to be done for what comes from a source."""
        if source != MESSAGES:
            return bool(self.of(source))
        return bool(self.of(source)) or not self.fallback or bool(self.enriching(self._stream))

    def needs_twin(self, source: Source) -> bool:
        routes = self.of(source)
        ends = {endpoint for route in routes for endpoint in route.endpoints} | set(self.fallback)
        return any(route.needs_twin for route in routes) or any(
            each.needs_twin and each.endpoints & ends for each in self._enrichments
        )

    def endpoints(self, source: Source, subject: Subject) -> list[str]:
        """Where a message goes, each endpoint once; empty when nowhere."""
        found: dict[str, None] = {}
        for route in self.of(source):
            if route.fits is None or route.fits(subject):
                found |= dict.fromkeys(route.endpoints)
        if not found and source == MESSAGES:
            return list(self.fallback)
        return list(found)

    def matching(self, source: Source, subject: Subject) -> list[str]:
        """The names of the routes that a message fits."""
        return [route.name for route in self.of(source) if route.fits is None or route.fits(subject)]

    def enriching(self, endpoint: str) -> list[Enrichment]:
        return [each for each in self._enrichments if endpoint in each.endpoints]

    def _route(self, name: str, config: RouteConfig, problem: Callable[[Source, str], str]) -> Route:
        try:
            node = expression.parse(config.condition)
            always = isinstance(node, expression.Literal) and node.value is True
            fits = None if always else expression.condition(node, _bound)
        except expression.QueryInvalid as exc:
            raise RouteInvalid(
                f"[routes.{name}] condition {config.condition[:200]!r}: {exc.message}",
                hint=exc.hint
                if "SELECT" not in exc.hint
                else "it reads like: $body.temperature > 80 AND level = 'hot'",
                code="route.condition",
            ) from exc
        endpoints = tuple(dict.fromkeys(self._named(endpoint) for endpoint in config.endpoints))
        if not endpoints:
            raise RouteInvalid(f"[routes.{name}] leads nowhere", hint='set endpoints = ["telemetry"]')
        for endpoint in endpoints:
            if said := problem(config.source, endpoint):
                raise RouteInvalid(f"[routes.{name}] {said}", hint="choose another stream", code="route.endpoint")
        needs = any(str(path.parts[0]).lower() in (TWIN, "$dt-dataschema") for path in expression.paths(node))
        return Route(name, config.source, fits, endpoints, needs)

    def _enrichment(self, name: str, config: EnrichmentConfig, hub_name: str) -> Enrichment:
        if not config.key or not _KEY_LETTERS.issuperset(config.key):
            raise RouteInvalid(f"[enrichments.{name}] key {config.key[:80]!r}", hint="letters, digits, - _ and .")
        ends = frozenset(self._named(endpoint) for endpoint in config.endpoints)
        known = self.streams | set(self.fallback)
        if unknown := sorted(ends - known):
            raise RouteInvalid(
                f"[enrichments.{name}] endpoint {unknown[0]!r} is that of no enabled route",
                hint=f"there are: {', '.join(sorted(known))}",
            )
        text = config.value
        if text.lower() == HUB_NAME:
            return Enrichment(config.key, lambda subject: hub_name, ends, False)
        parts = text.split(".")
        section = [part.lower() for part in parts[1:3]]
        if parts[0].lower() == TWIN and (
            section[:1] == ["tags"] or section in (["properties", "desired"], ["properties", "reported"])
        ):
            place = tuple(part.lower() if at < 2 else part for at, part in enumerate(parts[1:]))
            place = place if section[0] == "properties" else ("tags", *parts[2:])
            return Enrichment(config.key, lambda subject: _told(walked(subject.twin, place), text), ends, True)
        return Enrichment(config.key, lambda subject: text, ends, False)

    def _named(self, endpoint: str) -> str:
        return self._stream if endpoint == BUILT_IN else endpoint


def used_endpoints(routes: Iterable[RouteConfig], *, stream: str = "telemetry") -> frozenset[str]:
    """The streams that enabled routes lead to, without looking at their conditions."""
    return frozenset(
        stream if endpoint == BUILT_IN else endpoint
        for route in routes
        if route.enabled
        for endpoint in route.endpoints
    )


def _told(value: Any, otherwise: str) -> str:
    """A twin's value as a property; `otherwise` where there is none."""
    if isinstance(value, str):
        return value
    return otherwise if value is UNDEFINED or value is None else orjson.dumps(value).decode()


def _bound(path: expression.Path) -> expression.Value:
    first, rest = str(path.parts[0]), path.parts[1:]
    name = first.lower()
    if name == BODY:
        return lambda subject: walked(subject.body, rest)
    if name == TWIN:
        if not rest or str(rest[0]).lower() not in ("tags", "properties"):
            raise expression.wrong(
                "$twin has tags and properties", path.position, "$twin.tags.x, $twin.properties.desired.x"
            )
        inner = (str(rest[0]).lower(), *rest[1:])
        return lambda subject: walked(subject.twin, inner)
    if name == "$dt-dataschema" and not rest:
        return lambda subject: subject.model_id
    if name in SYSTEM and not rest:
        system = SYSTEM[name]
        return lambda subject: subject.system.get(system, UNDEFINED)
    if not all(isinstance(part, str) for part in path.parts):
        raise expression.wrong("a property is a text and has no elements", path.position, "only $body and $twin have")
    whole = ".".join(map(str, path.parts)).lower()
    return lambda subject: subject.folded.get(whole, UNDEFINED)
