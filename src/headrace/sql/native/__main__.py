"""`python -m headrace.sql.native`: build all compiled kernels beside their sources. Where that cannot be, says why, ends well."""

from __future__ import annotations

from headrace.core.native import report

print(report())
