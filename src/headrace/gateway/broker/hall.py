"""What all connections of a broker share: the exchange, the store, the event log, and the one flush at a turn's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import structlog

from headrace.core.clock import Clock
from headrace.core.config import BrokerConfig
from headrace.core.identity import EventIds, message_event_id
from headrace.core.observe.metrics import Metrics
from headrace.gateway.broker.admission import Admission
from headrace.gateway.broker.exchange import Exchange
from headrace.gateway.broker.ingest import BrokerIngest, Extra, Piece
from headrace.gateway.broker.link import BrokerLink
from headrace.gateway.broker.message import Message
from headrace.gateway.broker.session import Session
from headrace.gateway.broker.store import Store
from headrace.gateway.broker.templates import Target, Templates, properties_text
from headrace.gateway.broker.users import Rights
from headrace.gateway.refusals import Refusals
from headrace.wire.mqtt.packets5 import Connect
from headrace.wire.mqtt.properties5 import MAXIMUM_PACKET_SIZE, RECEIVE_MAXIMUM, TOPIC_ALIAS_MAXIMUM, Properties
from headrace.wire.mqtt.reasons import NAMES, SHUTTING_DOWN, TAKEN_OVER

SYSTEM = b"$SYS/"

log = structlog.get_logger()


class Hall:
    """What all connections of a broker share."""

    def __init__(
        self,
        config: BrokerConfig,
        *,
        exchange: Exchange,
        store: Store,
        ingest: BrokerIngest,
        admission: Admission,
        templates: Templates,
        clock: Clock,
        ids: EventIds,
        metrics: Metrics,
        registered: Callable[[str], bool],
    ) -> None:
        self.config = config
        self.exchange = exchange
        self.store = store
        self.ingest = ingest
        self.admission = admission
        self.clock = clock
        self.ids = ids
        self.links: set[BrokerLink] = set()
        self.messages_in = 0
        self.is_registered = registered
        self.target: Callable[[bytes], Target | None] = templates.target
        self.told: Properties = {TOPIC_ALIAS_MAXIMUM: config.topic_alias_max} if config.topic_alias_max else {}
        self.told[MAXIMUM_PACKET_SIZE] = config.packet_bytes_max
        if config.receive_maximum < 0xFFFF:
            self.told[RECEIVE_MAXIMUM] = config.receive_maximum
        self._dirty: list[BrokerLink] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusals = Refusals(metrics, clock)
        self._connects = metrics.counter("broker_connects_total", "Clients let in")
        self._closed = metrics.counter("broker_closed_total", "Connections that the broker closed", ("reason",))
        metrics.gauge("broker_connections", "Open connections").set_function(lambda: len(self.links))
        exchange.on_will = self._will
        ingest.on_full.append(self._hold_all)
        ingest.on_room.append(self._resume_all)

    def protocol(self) -> BrokerLink:
        """For loop.create_server."""
        return BrokerLink(self)

    def enter(self, link: BrokerLink, connect: Connect, user: str) -> tuple[Session, bool] | int:
        """Begin or resume a session; whoever else was connected by the same client id is told and closed."""
        earlier = self.exchange.sessions.get(link.client_id)
        if earlier is not None and earlier.user == user and isinstance(earlier.link, BrokerLink):
            earlier.link.disconnect(TAKEN_OVER)
        assert link.rights is not None
        begun = self.exchange.begin(connect, link.client_id, user, link.rights)
        if not isinstance(begun, int):
            self._connects.inc()
            log.debug("client.connected", client=link.client_id, address=link.address, version=link.version)
        return begun

    def left(self, link: BrokerLink, session: Session, *, with_will: bool) -> None:
        self.exchange.leave(session, with_will=with_will)
        log.debug("client.left", client=link.client_id, address=link.address, reason=link.reason)

    def may_publish(self, rights: Rights, topic: bytes) -> bool:
        return not topic.startswith(SYSTEM) and rights.may_publish(topic)

    def new_client_id(self) -> str:
        return f"auto-{self.ids.take()}"

    def event_id(self, device: str, mark: str) -> str:
        return message_event_id(device, None, f"broker\0{mark}")

    def mark(self, link: BrokerLink) -> None:
        """Have `link` flush at the end of this turn of the event loop."""
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._flush)
        self._dirty.append(link)

    def note(self, link: BrokerLink, reason: str) -> None:
        self._closed.labels(reason).inc()

    def refused(self, link: BrokerLink, reason: int, detail: str) -> None:
        self._refusals.note(
            f"broker_{NAMES.get(reason, reason)}", detail=detail, device=link.client_id[:128], address=link.address
        )

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Own a connection's task until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Tell everybody that the broker stops; wills are not sent, for the clients did nothing wrong."""
        for link in list(self.links):
            link.disconnect(SHUTTING_DOWN, with_will=False)
        for _ in range(20):
            if not self.links:
                break
            await asyncio.sleep(0.02)  # transports are flushing
        for link in list(self.links):
            link.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def publish(self, message: Message) -> None:
        """A message of the broker's own: a will, a $SYS topic."""
        self.exchange.route(message, self.exchange.router.plan(message.topic), None)

    def _will(self, session: Session, will: Message) -> None:
        if will.retain:
            self.exchange.keep(will)
        target = self.target(will.topic)
        if target is not None and (not target.registered or self.is_registered(target.device)):
            text = properties_text({**target.properties, "mqtt-will": "true"}, {})
            self.ingest.add(Piece([target], [will.payload], [Extra(text)], None))
        self.publish(will)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for link in dirty:
            link.flush()

    def _hold_all(self) -> None:
        log.warning("broker.paused", pending=self.ingest.pending_rows, connections=len(self.links))
        for link in self.links:
            link.hold("ingest")

    def _resume_all(self) -> None:
        log.info("broker.resumed", pending=self.ingest.pending_rows)
        for link in list(self.links):
            link.go_on("ingest")
