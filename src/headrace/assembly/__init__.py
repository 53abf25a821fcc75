"""Settings become stores, engines, services and doors here, and nowhere else.

Every `if backend ==` of Headrace is in this package. `Platform` opens each store on first use.
"""

from headrace.assembly.database import database, own_server, warehouse_url
from headrace.assembly.models import list_models, train_model, untrained
from headrace.assembly.platform import Platform, device_streams
from headrace.assembly.prepare import prepare
from headrace.assembly.processes import parts, run_part
from headrace.assembly.scripts import ScriptContext, compile_file, script_context
from headrace.assembly.status import Status

__all__ = [
    "Platform",
    "ScriptContext",
    "Status",
    "compile_file",
    "database",
    "device_streams",
    "list_models",
    "own_server",
    "parts",
    "prepare",
    "run_part",
    "script_context",
    "train_model",
    "untrained",
    "warehouse_url",
]
