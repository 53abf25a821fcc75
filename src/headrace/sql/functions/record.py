"""Records and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.sql.convert import integer, text, type_name
from headrace.sql.decode import get_field
from headrace.sql.errors import Fault
from headrace.sql.spec import Scalar
from headrace.sql.values import Column, Constant, Struct


def _array(value: Any, name: str) -> list[Any]:
    if type(value) is not list:
        raise Fault(f"{name} needs an array, not {type_name(value)}")
    return value


def _element(value: Any, index: Any) -> Any:
    array, at = _array(value, "GetArrayElement"), integer(index)
    return array[at] if 0 <= at < len(array) else None


def _property(value: Any, name: Any) -> Any:
    if type(value) is not dict:
        raise Fault(f"GetRecordPropertyValue needs a record, not {type_name(value)}")
    return get_field(value, text(name))


def _properties(args: Sequence[Column]) -> Column | None:
    """One field, named once, of records that are kept as columns."""
    records, name = args
    if isinstance(records, Struct) and isinstance(name, Constant) and type(name.value) is str:
        return records.field(name.value)
    return None


ELEMENT = Scalar("getarrayelement", 2, 2, _element, doc="Element by position from 0; outside the array: null.")
LENGTH = Scalar("getarraylength", 1, 1, lambda value: len(_array(value, "GetArrayLength")))
PROPERTY = Scalar("getrecordpropertyvalue", 2, 2, _property, whole=_properties)
