"""`python -m headrace.sql.native`: build the compiled parser beside its source. Where that cannot be, says why and ends well."""

from __future__ import annotations

from headrace.sql.native.build import build

found, why = build()
print(f"json parser: {found.name if found else 'none, the plain one is used'} ({why})")
