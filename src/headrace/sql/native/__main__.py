"""`python -m headrace.sql.native`: build the compiled parser beside its source. Where that cannot be, says why and ends well."""

from __future__ import annotations

from headrace.sql.native.build import report

print(report())
