"""A project's settings: `headrace.toml`, then the environment. Read once at start; everything below is handed values.

A setting `[gateway] mqtt_port` can be overridden by `HEADRACE_GATEWAY__MQTT_PORT`. An unknown key is an error that names
the file, the key and the nearest known one.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from headrace.core.errors import NotFound, UserError, nearest

FILE_NAME = "headrace.toml"


class Secret(str):
    """A text that prints as `***`. Use `reveal()` where it is really needed."""

    def __repr__(self) -> str:
        return "***"

    def __str__(self) -> str:
        return "***"

    def reveal(self) -> str:
        return str.__str__(self)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of headrace.toml."""


class ProjectConfig(Section, frozen=True):
    """[project] What this is."""

    name: str = "headrace"
    title: str = ""
    site: str = "central"
    blueprint: str = ""  # where the project was made from; its simulator drives `headrace simulate`


class LogsConfig(Section, frozen=True):
    """[logs] What processes print."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class GatewayConfig(Section, frozen=True):
    """[gateway] Where devices connect."""

    host: str = "127.0.0.1"
    hostname: str = ""  # the name in connection strings and the certificate; empty: `host`
    mqtt_port: int = 8883  # TLS; 0 takes any free port
    https_port: int = (
        443  # TLS: REST and MQTT over WebSocket; 0 takes any free port, and so does one that cannot be had
    )
    plain_mqtt_port: int = -1  # plain TCP, loopback only; -1 is off, 0 any free port
    commit_interval_ms: float = 5.0  # how long an event may wait for others to share its fsync
    batch_rows_max: int = 5000
    message_bytes_max: int = 262_144
    connections_max: int = 20_000
    events_per_s_max: int = 0  # 0: no limit
    token_leeway_s: int = 300  # clock difference allowed on a token's expiry
    workers: int = 1  # processes that share the ports
    certificate: str = (
        ""  # PEM chain of the server's own certificate, relative to the project; empty: one for development
    )
    certificate_key: str = ""  # its key, PEM without a password
    proxy_protocol: bool = False  # what comes from `proxy_trusted` must begin with a PROXY protocol header, version 2
    proxy_trusted: tuple[str, ...] = ("127.0.0.1/32",)  # networks of load balancers and TLS terminators in front


class HubConfig(Section, frozen=True):
    """[hub] What the hub does with what devices send."""

    name: str = ""  # in twin and life-cycle events and `$iothubname`; empty: the host's name
    fallback: bool = True  # a message that fits no route goes to `telemetry`; false: it is dropped and counted


class RouteConfig(Section, frozen=True):
    """[routes.NAME] Where messages and the hub's own events go. One that fits several routes goes once to each endpoint."""

    endpoints: tuple[str, ...]  # streams; `events` is another name of `telemetry`
    source: Literal["DeviceMessages", "TwinChangeEvents", "DeviceLifecycleEvents", "DeviceConnectionStateEvents"] = (
        "DeviceMessages"
    )
    condition: str = "true"  # IoT Hub's routing language, such as `$body.temperature > 80 AND level = 'hot'`
    enabled: bool = True


class EnrichmentConfig(Section, frozen=True):
    """[enrichments.NAME] An application property that messages get on their way to some endpoints."""

    key: str
    value: str  # a text, or `$iothubname`, `$twin.tags.x`, `$twin.properties.desired.x`, `$twin.properties.reported.x`
    endpoints: tuple[str, ...]


class LimitsConfig(Section, frozen=True):
    """[limits] How much one device and the whole hub may do a second, in each gateway process; 0 is no limit.

    Telemetry above a limit is not refused: acknowledgements come later. The rest is answered with 429, and with when to retry.
    """

    messages_per_s: float = 0.0  # of all devices; [gateway] events_per_s_max when 0
    bytes_per_s: float = 0.0  # topics and bodies
    connects_per_s: float = 0.0
    twin_reads_per_s: float = 0.0
    twin_updates_per_s: float = 0.0
    methods_per_s: float = 0.0
    c2d_sends_per_s: float = 0.0
    registry_per_s: float = 0.0  # operations of services on devices and modules
    queries_per_s: float = 0.0
    device_messages_per_s: float = 0.0  # from here on: of each device, its modules included
    device_bytes_per_s: float = 0.0
    device_connects_per_s: float = 0.0  # 0.1 is one in ten seconds
    device_twin_reads_per_s: float = 0.0
    device_twin_updates_per_s: float = 0.0
    device_methods_per_s: float = 0.0
    device_c2d_sends_per_s: float = 0.0


class LinkedHubConfig(Section, frozen=True):
    """[provisioning.hubs.NAME] Another hub that devices may be assigned to."""

    host: str  # what its devices connect to
    connection_string: Secret = Secret("")  # of its policy `iothubowner`; empty: devices are made there by other means
    ca_file: str = ""  # PEM, absolute: whom to trust besides the system's authorities when calling it
    weight: int = 1  # 1 to 1000, of hashed allocation
    sites: tuple[str, ...] = ()  # that it serves, for allocation by site (geoLatency)
    networks: tuple[str, ...] = ()  # of its devices, such as 10.1.0.0/16; for allocation by site
    allocate: bool = True  # false: only for enrolments that name it


class ProvisioningConfig(Section, frozen=True):
    """[provisioning] Devices that register themselves (DPS). Enrolments call this hub `this`, or by its host name."""

    allocation: Literal["hashed", "geoLatency", "static"] = (
        "hashed"  # where an enrolment names none; geoLatency: by site
    )
    weight: int = 1  # of this hub, as those of linked ones
    sites: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    allocate: bool = True
    answer_at_once: bool = False  # a registration is answered 200 with its end, not 202 with an operation to ask about
    registrations_per_s_max: int = 0  # per gateway process; 0: no limit
    connections_max: int = 5000
    hubs: dict[str, LinkedHubConfig] = {}


class BrokerAclConfig(Section, frozen=True):
    """[[broker.acl]] What users may do. With no rule everybody who comes in may do everything; a deny goes before any permit.

    `%u` and `%c` in a filter stand for the user's name and the client id.
    """

    user: str = "*"  # a pattern: `*` is any characters; `` (empty) is who came without a name
    client: str = "*"  # a pattern for the client id
    publish: tuple[str, ...] = ()  # topic filters
    subscribe: tuple[str, ...] = ()
    deny_publish: tuple[str, ...] = ()
    deny_subscribe: tuple[str, ...] = ()


class BrokerTemplateConfig(Section, frozen=True):
    """[[broker.templates]] Topics whose messages become events. `{name}` stands for one level; the first that fits counts."""

    filter: str  # such as `plant/{site}/{device}/{stream}`; `+` and a last `#` are allowed too
    device: str = "{device}"
    stream: str = "telemetry"
    site: str = ""
    properties: dict[str, str] = {}  # more application properties; names in the filter are properties anyway
    registered: bool = False  # whether the device must be in the registry and enabled


class BrokerConfig(Section, frozen=True):
    """[broker] A general MQTT broker (3.1.1 and 5.0) on its own port, for devices that do not speak IoT Hub's dialect."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = 1883  # plain TCP; 0 takes any free one, and so does a port in use
    tls_port: int = -1  # -1 is off, 0 any free one
    tls_certificate: str = ""  # PEM files, relative to the project
    tls_key: str = ""
    tls_client_ca: str = ""  # who signs client certificates: their common name is then the user
    anonymous: bool = True  # let in who gives no user name; on loopback only
    users: dict[str, Secret] = {}  # name -> hash, made by `headrace broker user add`
    acl: tuple[BrokerAclConfig, ...] = ()
    templates: tuple[BrokerTemplateConfig, ...] = (BrokerTemplateConfig(filter="telemetry/{device}"),)
    packet_bytes_max: int = 2_000_000
    receive_maximum: int = 20  # messages that an MQTT 5 client may have under way; more makes one connection faster
    inflight_max: int = 100  # ... and that the broker has under way to a client
    topic_alias_max: int = 10
    queue_messages_max: int = 10_000  # waiting for one session
    queue_bytes_max: int = 64_000_000
    retained_max: int = 100_000
    retained_bytes_max: int = 256_000_000
    subscriptions_max: int = 1000  # per session
    session_expiry_max_s: int = 2_592_000  # 30 days
    sessions_max: int = 50_000
    connections_max: int = 10_000
    keep_alive_max_s: int = 60  # MQTT 5 clients that ask for more are told this; 0: as they ask
    commit_interval_ms: float = 2.0  # how long a change may wait for others to share its fsync
    system_interval_s: float = 10.0  # how often $SYS topics are renewed; 0 is never


class EventLogConfig(Section, frozen=True):
    """[eventlog] Where streams live, and for how long."""

    backend: Literal["sqlite", "memory"] = "sqlite"
    partitions: int = 4
    retention_h: float = 168.0  # one week
    size_bytes_max: int = 10_000_000_000  # per stream
    deduplicate_s: float = 600.0


class DocStoreConfig(Section, frozen=True):
    """[docstore] The platform's own facts."""

    backend: Literal["sqlite"] = "sqlite"


class LakeConfig(Section, frozen=True):
    """[lake] History in Delta tables."""

    path: str = ""  # empty: inside the project's state folder
    linger_s: float = 2.0  # how long rows gather into one file
    batch_rows_max: int = 100_000
    compact_files: int = 64  # join small files when a table has gained this many


class WarehouseConfig(Section, frozen=True):
    """[warehouse] Entities in PostgreSQL. Without a `url` Headrace runs a server of its own."""

    url: Secret = Secret("")
    linger_s: float = 0.5
    batch_rows_max: int = 20_000
    enabled: bool = True


class WebConfig(Section, frozen=True):
    """[web] The console."""

    host: str = "127.0.0.1"
    port: int = 8800  # 0 takes any free port
    remote_commands: bool = False  # whether a console that other machines reach changes devices and shows keys
    live_rows_per_s_max: int = 200  # per browser, after that points are thinned
    telemetry: str = "telemetry"  # the stream that the fleet page watches
    anomalies: str = "anomalies"  # the streams that machine pages mark and draw, where they exist
    scored: str = "scored"
    aggregates: str = "aggregates"


class StreamConfig(Section, frozen=True):
    """[streams.NAME] A stream that is not as the others."""

    retention_h: float = 0.0  # 0: as [eventlog]
    lake: bool = True
    devices: bool = False  # whether devices may send to it, with the application property `stream`
    description: str = ""


class ReferenceConfig(Section, frozen=True):
    """[jobs.NAME.reference.INPUT] Reference data: a CSV, JSON or Parquet file in the project."""

    path: str


class JobConfig(Section, frozen=True):
    """[jobs.NAME] A stream SQL script that runs for ever."""

    query: str  # a .asaql file in the project
    inputs: dict[str, str] = {}  # input name in the script -> stream; without an entry, the stream of that name
    outputs: dict[str, str] = {}  # output name in the script -> stream; without an entry, the stream of that name
    reference: dict[str, ReferenceConfig] = {}
    late_arrival_s: float = 5.0
    out_of_order_s: float = 0.0
    action: Literal["adjust", "drop"] = "adjust"
    on_error: Literal["stop", "set_aside"] = "set_aside"
    linger_ms: float = 20.0  # micro-batches close on time or size
    batch_rows_max: int = 20_000
    checkpoint_s: float = 2.0
    start: Literal["now", "earliest"] = "earliest"
    enabled: bool = True


class FunctionConfig(Section, frozen=True):
    """[functions.NAME] Python code on a stream, in its own process."""

    handler: str  # `module:name`, found in the project folder or installed
    stream: str
    linger_s: float = 0.2
    batch_rows_max: int = 5000
    retries_max: int = 5
    timeout_s: float = 60.0
    enabled: bool = True


class ModelConfig(Section, frozen=True):
    """[models.NAME] A registered model, callable from SQL as `udf.NAME(...)`."""

    features: tuple[str, ...]  # argument names, in the order of the call
    model: str = ""  # registered name; empty: NAME
    alias: str = "champion"
    algorithm: str = "gradient_boosting"
    task: Literal["regression", "classification"] = "regression"
    target: str = ""
    group: str = ""  # the column whose rows belong together, so that a machine is never in both halves of the split
    training: str = ""  # CSV/Parquet in the project, or `blueprint` for its simulator


class AlertConfig(Section, frozen=True):
    """[alerts.NAME] A rule on a stream. `when` is a condition in SQL over one event's fields."""

    stream: str
    when: str
    key: str = "_entity_id"  # one incident a key at a time
    severity: Literal["info", "warning", "critical"] = "warning"
    title: str = ""  # may name fields: `{machineId} runs hot`
    for_s: float = 0.0  # how long the condition must have held before it opens
    clear_s: float = 60.0  # how long it must have been absent before it resolves
    channels: tuple[str, ...] = ("log",)
    enabled: bool = True


class ChannelConfig(Section, frozen=True):
    """[channels.NAME] Where notifications go: an apprise URL (`json://host/path` is a webhook), or `log://`."""

    url: Secret = Secret("log://")


class EntityConfig(Section, frozen=True):
    """[entities.TABLE] Rows of a stream as rows of a warehouse table."""

    stream: str
    kind: Literal["telemetry", "aggregate"] = "telemetry"
    enabled: bool = True


class FieldConfig(Section, frozen=True):
    """[fields.NAME] What people read beside a number."""

    unit: str = ""
    label: str = ""
    digits: int | None = None  # decimals; None: what the number needs


class SiteConfig(Section, frozen=True):
    """[sites.ID] What people call a place."""

    title: str = ""
    place: str = ""


class Settings(Section, frozen=True):
    """headrace.toml as a whole."""

    project: ProjectConfig = ProjectConfig()
    logs: LogsConfig = LogsConfig()
    gateway: GatewayConfig = GatewayConfig()
    hub: HubConfig = HubConfig()
    routes: dict[str, RouteConfig] = {}
    enrichments: dict[str, EnrichmentConfig] = {}
    limits: LimitsConfig = LimitsConfig()
    provisioning: ProvisioningConfig = ProvisioningConfig()
    broker: BrokerConfig = BrokerConfig()
    eventlog: EventLogConfig = EventLogConfig()
    docstore: DocStoreConfig = DocStoreConfig()
    lake: LakeConfig = LakeConfig()
    warehouse: WarehouseConfig = WarehouseConfig()
    web: WebConfig = WebConfig()
    streams: dict[str, StreamConfig] = {}
    jobs: dict[str, JobConfig] = {}
    functions: dict[str, FunctionConfig] = {}
    models: dict[str, ModelConfig] = {}
    alerts: dict[str, AlertConfig] = {}
    channels: dict[str, ChannelConfig] = {}
    entities: dict[str, EntityConfig] = {}
    fields: dict[str, FieldConfig] = {}
    sites: dict[str, SiteConfig] = {}


class Project(msgspec.Struct, frozen=True):
    """A project: its folder, its settings and where its state lives."""

    folder: Path
    settings: Settings

    @property
    def state(self) -> Path:
        """Everything Headrace writes itself: log, documents, lake, keys. Safe to delete only if the data may go."""
        return self.folder / ".headrace"

    def state_folder(self, name: str) -> Path:
        folder = self.state / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def find_project(given: str | None = None) -> Path:
    """The project folder: what was given, else HEADRACE_PROJECT, else the current folder or one above it."""
    named = given or os.environ.get("HEADRACE_PROJECT", "")
    if named:
        folder = Path(named).resolve()
        if not (folder / FILE_NAME).is_file():
            raise NotFound(f"no {FILE_NAME} in {folder}", hint="make a project with `headrace init DIR`")
        return folder
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE_NAME).is_file():
            return folder
    raise NotFound(
        f"no {FILE_NAME} in {here} or above it", hint="make a project with `headrace init DIR`, or pass --project DIR"
    )


def load_project(given: str | None = None, *, environ: Mapping[str, str] | None = None) -> Project:
    """Read a project's settings. Raises UserError that names the file and the key."""
    folder = find_project(given)
    path = folder / FILE_NAME
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as exc:
        raise UserError(f"{path}: {exc}", hint="fix the TOML at that line", code="config.syntax") from exc
    return Project(folder, parse(raw, source=str(path), environ=os.environ if environ is None else environ))


def parse(raw: dict[str, Any], *, source: str = FILE_NAME, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from a parsed TOML document and environment overrides."""
    merged = _with_environment(raw, environ or {})
    try:
        return msgspec.convert(merged, Settings, strict=False, dec_hook=_decode_secret)
    except msgspec.ValidationError as exc:
        raise UserError(f"{source}: {_say(str(exc))}", hint=_hint(str(exc)), code="config.invalid") from exc


def _decode_secret(kind: type[Any], value: Any) -> Any:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise TypeError(f"cannot make a {kind.__name__} from {type(value).__name__}")


def _with_environment(raw: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    sections = {field.name for field in msgspec.structs.fields(Settings)}
    for name, value in environ.items():
        match = re.fullmatch(r"HEADRACE_([A-Z]+)__([A-Z0-9_]+)", name)
        if match and (section := match[1].lower()) in sections:
            merged.setdefault(section, {})[match[2].lower()] = value
    return merged


_UNKNOWN = re.compile(r"unknown field `(\w+)`(?: - at `\$\.?(.*?)`)?$")


def _say(text: str) -> str:
    match = _UNKNOWN.search(text)
    if not match:
        return text
    return f"unknown setting {match[1]!r}" + (f" in [{match[2]}]" if match[2] else "")


def _hint(text: str) -> str:
    match = _UNKNOWN.search(text)
    if not match:
        return "see `headrace init --help` for a working file"
    known = _fields_at(match[2] or "")
    return nearest(match[1], known) or f"known here: {', '.join(sorted(known))}"


def _fields_at(path: str) -> list[str]:
    """The keys that the section at `path` (as msgspec prints it) knows."""
    kind: Any = Settings
    for part in [part for part in path.replace("[...]", "").split(".") if part]:
        names = {field.name: field.type for field in msgspec.structs.fields(kind)}
        kind = names.get(part, kind)
        if getattr(kind, "__origin__", None) is dict:
            kind = kind.__args__[1]
    return [field.name for field in msgspec.structs.fields(kind)] if hasattr(kind, "__struct_fields__") else []


def silence_mlflow() -> None:
    """Switch off MLflow's usage reports. It reads this from the environment while being imported, so call this before."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
