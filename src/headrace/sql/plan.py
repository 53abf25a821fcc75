"""A compiled script: the nodes of its graph in the order in which rows pass them, and how it explains itself.

Statements that read one input in the same way share its node, so a payload is decoded and put in time order once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.sql import tree
from headrace.sql.decode import Decoder
from headrace.sql.evaluate import Eval
from headrace.sql.operators.match import MatchPlan
from headrace.sql.operators.select import SelectPlan, Stage
from headrace.sql.operators.stream_join import StreamJoin


@dataclass
class PlanNode:
    """A node of the graph. `sources` are positions of earlier nodes; `wants` the fields that later ones read."""

    label: str
    sources: list[int] = field(default_factory=list)
    columns: list[str] | None = None  # names of the result, None where only known at run time
    wants: set[str] = field(default_factory=set)
    whole: bool = False


@dataclass
class InputNode(PlanNode):
    """An input on a timeline of its own: by arrival, or by what TIMESTAMP BY says."""

    input: str = ""
    timestamp: Eval | None = None
    timestamp_text: str = ""
    declared: tuple[tuple[str, str], ...] = ()  # CREATE TABLE: names and types
    over: list[Eval] = field(default_factory=list)  # TIMESTAMP BY … OVER: the key of each event's own timeline


@dataclass
class SelectNode(PlanNode):
    select: SelectPlan = field(default_factory=SelectPlan)
    lines: list[str] = field(default_factory=list)  # what EXPLAIN says, outermost stage first
    origins: dict[int, int] = field(default_factory=dict)  # source of the FROM clause -> node, for streams
    expression_wants: dict[int, set[str]] = field(default_factory=dict)
    expression_whole: set[int] = field(default_factory=set)


@dataclass
class UnionNode(PlanNode):
    pass


@dataclass
class FromNode(PlanNode):
    """Reference joins and APPLY that stand before a JOIN of streams."""

    stages: list[Stage] = field(default_factory=list)


@dataclass
class JoinNode(PlanNode):
    """A JOIN of streams: the sources so far, and the new one."""

    join: StreamJoin = field(default_factory=lambda: StreamJoin(False, [], [], [], [], None))


@dataclass
class MatchNode(PlanNode):
    """MATCH_RECOGNIZE over one source."""

    match: MatchPlan = field(default_factory=lambda: MatchPlan(0, [], [], [], [], [], [], []))


class Plan:
    """A script, ready to run: `sql.run.Run(plan, ...)`."""

    def __init__(
        self,
        text: str,
        nodes: list[PlanNode],
        outputs: list[tuple[str, int]],
        references: list[str],
        script: tree.Script,
    ) -> None:
        self.text = text
        self.nodes = nodes
        self.statements = outputs
        self.references = references
        self.script = script
        self.tables: dict[str, tuple[tuple[str, str], ...]] = {}  # CREATE TABLE, by lower-case name
        self.inputs = list(dict.fromkeys(node.input for node in nodes if isinstance(node, InputNode)))
        self.outputs = list(dict.fromkeys(name for name, _ in outputs))

    @property
    def substreams(self) -> bool:
        """Whether every key has a timeline of its own (TIMESTAMP BY … OVER)."""
        return any(isinstance(node, InputNode) and node.over for node in self.nodes)

    def decoder(self, input: str) -> Decoder:
        """A decoder for the fields that the whole script reads from an input."""
        nodes = [node for node in self.nodes if isinstance(node, InputNode) and node.input == input]
        names = sorted(set().union(*(node.wants for node in nodes)))
        return Decoder(names, whole=any(node.whole for node in nodes))

    def explain(self) -> str:
        """The plan as an indented tree, one tree per statement. A step that was shown before is only named."""
        lines: list[str] = []
        shown: set[int] = set()
        for name, at in self.statements:
            lines.append(f"output {name}")
            self._explain(at, 1, shown, lines)
        return "\n".join(lines) + "\n"

    def _explain(self, at: int, depth: int, shown: set[int], lines: list[str]) -> None:
        node = self.nodes[at]
        pad = "  " * depth
        if at in shown:
            lines.append(f"{pad}{node.label} (shared, see above)")
            return
        shown.add(at)
        if isinstance(node, InputNode):
            fields = "all fields" if node.whole else ", ".join(sorted(node.wants)) or "no field"
            lines.append(f"{pad}input {node.input} by {node.timestamp_text or 'arrival time'}: decode {fields}")
            return
        for line in node.lines if isinstance(node, SelectNode) else [node.label]:
            lines.append(pad + line)
            pad += "  "
            depth += 1
        for source in node.sources:
            self._explain(source, depth, shown, lines)
