"""A compiled script: the nodes of its graph in the order in which rows pass them.

Statements that read one input in the same way share its node, so a payload is decoded and put in time order once. A node
keeps the text it was made from, so that a rewrite can bind a part of it anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headrace.sql import tree
from headrace.sql.decode import Decoder
from headrace.sql.dialect import Token
from headrace.sql.evaluate import Eval
from headrace.sql.functions.user import UserFunction
from headrace.sql.operators.filter_bank import FilterBank
from headrace.sql.operators.match import MatchPlan
from headrace.sql.operators.select import SelectPlan, Stage
from headrace.sql.operators.shared_projection import SharedProjection
from headrace.sql.operators.stream_join import StreamJoin
from headrace.sql.rewrite import Notes
from headrace.sql.scope import Scope, ScopeSource
from headrace.sql.tree import Node


@dataclass
class PlanNode:
    """A node of the graph. `sources` are positions of earlier nodes; `wants` the fields that later ones read."""

    label: str
    sources: list[int] = field(default_factory=list)
    columns: list[str] | None = None  # names of the result, None where only known at run time
    wants: set[str] = field(default_factory=set)
    whole: bool = False
    asks: list[tuple[int, ScopeSource]] = field(default_factory=list)  # what its expressions read of which node
    shared: frozenset[int] = frozenset()  # expressions over its rows that several readers compute
    bank: FilterBank | None = None  # filters of its readers
    bank_members: tuple[int, ...] = ()  # these readers, by line of the bank
    projections: tuple[SharedProjection, ...] = ()  # of these readers, several at once


@dataclass
class InputNode(PlanNode):
    """An input on a timeline of its own: by arrival, or by what TIMESTAMP BY says."""

    input: str = ""
    timestamp: Eval | None = None
    timestamp_text: str = ""
    declared: tuple[tuple[str, str], ...] = ()  # CREATE TABLE: names and types
    over: list[Eval] = field(default_factory=list)  # TIMESTAMP BY … OVER: the key of each event's own timeline


_NOWHERE = Token("end", "", 0, 0, 0, 0)
_NOTHING = tree.Select(
    _NOWHERE, (), None, tree.Source(_NOWHERE, "", None, "", None, (), ()), (), None, (), (), False, None
)


@dataclass
class SelectNode(PlanNode):
    """One SELECT. `at` is where it stands in the script, `tree` what it says, `scope` what its names mean."""

    select: SelectPlan = field(default_factory=SelectPlan)
    tree: tree.Select = _NOTHING
    scope: Scope = field(default_factory=lambda: Scope([]))
    joins: list[str] = field(default_factory=list)  # its JOINs and APPLYs as EXPLAIN shows them, first one first
    origins: dict[int, int] = field(default_factory=dict)  # source of the FROM clause -> node, for streams
    moved: list[Node] = field(default_factory=list)  # parts of WHERE that are tested earlier
    bank_at: int | None = None  # the node whose filter bank tests its WHERE, or the first part of it
    line_of_bank: int = -1

    @property
    def at(self) -> Token:
        return self.tree.at

    def reads_plainly(self) -> bool:
        """Whether its expressions look at the very rows of its source: no join stands between."""
        return not self.select.joins and set(self.origins.values()) == set(self.sources)


@dataclass
class UnionNode(PlanNode):
    pass


@dataclass
class FromNode(PlanNode):
    """Reference joins and APPLY that stand before a JOIN of streams."""

    stages: list[Stage] = field(default_factory=list)


@dataclass
class JoinNode(PlanNode):
    """A JOIN of streams: the sources so far, and the new one. `filters` are tested before rows of a side are held."""

    join: StreamJoin = field(default_factory=lambda: StreamJoin(False, [], [], [], [], None))
    filters: dict[int, Eval] = field(default_factory=dict)  # port -> condition
    filter_texts: dict[int, str] = field(default_factory=dict)


@dataclass
class MatchNode(PlanNode):
    """MATCH_RECOGNIZE over one source."""

    match: MatchPlan = field(default_factory=lambda: MatchPlan(0, [], [], [], [], [], [], []))


def in_step(nodes: Sequence[PlanNode], at: int) -> int | None:
    """The input whose rows become a node's rows one by one, without waiting; None where something holds rows back."""
    while isinstance(node := nodes[at], SelectNode):
        if node.select.grouped or len(node.sources) != 1:
            return None
        at = node.sources[0]
    return at if isinstance(node, InputNode) else None


@dataclass
class Plan:
    """A script, ready to run: `sql.run.Run(plan, ...)`."""

    text: str
    nodes: list[PlanNode]
    statements: list[tuple[str, int]]  # output and node, in the order of the script
    references: list[str]
    script: tree.Script
    tables: Mapping[str, tuple[tuple[str, str], ...]]  # CREATE TABLE, by lower-case name
    functions: Mapping[str, UserFunction]
    notes: Notes
    rewrites: dict[str, list[str]] = field(default_factory=dict)  # those that changed something, and where

    def with_nodes(self, nodes: Sequence[PlanNode]) -> Plan:
        """The same script with other nodes at the same positions."""
        return dataclasses.replace(self, nodes=list(nodes))

    @property
    def inputs(self) -> list[str]:
        return list(dict.fromkeys(node.input for node in self.nodes if isinstance(node, InputNode)))

    @property
    def outputs(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self.statements))

    @property
    def substreams(self) -> bool:
        """Whether every key has a timeline of its own (TIMESTAMP BY … OVER)."""
        return any(isinstance(node, InputNode) and node.over for node in self.nodes)

    @property
    def shape(self) -> list[str]:
        """What a state of this plan fits to: its nodes and their rewrites."""
        return [f"{type(node).__name__} {node.sources}" for node in self.nodes]

    def readers(self, at: int) -> list[int]:
        """The nodes that read a node."""
        return [reader for reader, node in enumerate(self.nodes) if at in node.sources]

    def keeps_step(self, at: int) -> int | None:
        """The input that a node keeps step with: each of its rows is made from one row of that input, at once."""
        return in_step(self.nodes, at)

    def decoder(self, input: str) -> Decoder:
        """A decoder for the fields that the whole script reads from an input."""
        nodes = [node for node in self.nodes if isinstance(node, InputNode) and node.input == input]
        names = sorted(set().union(*(node.wants for node in nodes)))
        return Decoder(names, whole=any(node.whole for node in nodes))

    def explain(self) -> str:
        """The plan as an indented tree, one per statement: stages, state kept, what runs per row, rewrites."""
        from headrace.sql.explain import explain_plan

        return explain_plan(self)
