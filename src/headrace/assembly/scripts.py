"""What a script may call and join, for commands that check it without running anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.core.config import Project
from headrace.core.errors import UserError

# Imported where they are used: a part loads what it runs and no more, which is most of its start and of its memory.
if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.sql.functions.user import UserFunction
    from headrace.sql.plan import Plan


@dataclass(frozen=True)
class ScriptContext:
    """What a script may call and join."""

    functions: Mapping[str, UserFunction] = field(default_factory=dict)
    references: tuple[str, ...] = ()


def script_context(project: Project, file: Path) -> ScriptContext:
    """The context of a script of a project: the one of the job that runs it, else all references of all jobs.

    Models are known by name only: checking a script neither needs nor loads a trained one.
    """
    from headrace.sql.functions.user import UserFunction

    def untrained(columns: Sequence[pa.Array]) -> pa.Array:
        raise UserError("a script that is only checked was run")

    jobs = project.settings.jobs
    own = [job for job in jobs.values() if (project.folder / job.query).resolve() == file.resolve()]
    references = {name for job in own or jobs.values() for name in job.reference}
    functions = {f"udf.{name}": UserFunction(f"udf.{name}", untrained) for name in project.settings.models}
    return ScriptContext(functions, tuple(sorted(references)))


def compile_file(text: str, context: ScriptContext) -> Plan:
    from headrace.sql.compile import compile_script

    return compile_script(text, functions=context.functions, references=context.references)
