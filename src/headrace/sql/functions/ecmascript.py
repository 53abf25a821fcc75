"""Regular expressions of ECMAScript in Python's: what REGEXMATCH takes.

The two differ in little, but silently: `$` also matches before a final line break in Python, `\\d` and `\\w` take any
script's digits and letters, and named groups are spelled otherwise. What only Python knows is refused, as the other side would.
"""

from __future__ import annotations

import re
from functools import lru_cache

_CLASSES = {"d": "0-9", "w": "A-Za-z0-9_"}
_PYTHON_ONLY = re.compile(r"\(\?(P|#|[aiLmsux-]+[:)]|\(|>)")
_NAMED = re.compile(r"\(\?<([A-Za-z_$][\w$]*)>")
_BACK = re.compile(r"\\k<([A-Za-z_$][\w$]*)>")


@lru_cache(maxsize=512)
def ecmascript(pattern: str) -> re.Pattern[str]:
    """Compiled so that case is ignored and the dot matches a line break. Raises re.error where it is no pattern."""
    out: list[str] = []
    inside = False  # of a set
    at = 0
    while at < len(pattern):
        char, rest = pattern[at], pattern[at:]
        taken = 1
        if char == "\\":
            text, taken = _escape(rest, inside=inside)
        elif inside:
            inside = char != "]"
            text = "\\[" if char == "[" else char
        elif rest.startswith(("[]", "[^]")):  # no character, any character
            text, taken = ("(?!)", 2) if rest.startswith("[]") else (r"[\s\S]", 3)
        elif char == "[":
            inside, text = True, char
            if rest.startswith("[^"):
                text, taken = "[^", 2
        elif char == "(" and (named := _NAMED.match(rest)):
            text, taken = f"(?P<{_name(named[1])}>", len(named[0])
        elif _PYTHON_ONLY.match(rest):
            raise re.error("this group is not of ECMAScript")
        else:
            text = {"$": r"\Z"}.get(char, char)
        out.append(text)
        at += taken
    return re.compile("".join(out), re.IGNORECASE | re.DOTALL)


def _escape(rest: str, *, inside: bool) -> tuple[str, int]:
    """An escape at the start of `rest` in Python's spelling, and how many characters of the pattern it is."""
    code = rest[1:2]
    if code in _CLASSES:
        return (_CLASSES[code] if inside else f"[{_CLASSES[code]}]"), 2
    if code.lower() in _CLASSES and not inside:
        return f"[^{_CLASSES[code.lower()]}]", 2
    if code in ("b", "B") and not inside:
        return f"(?a:\\{code})", 2
    if back := _BACK.match(rest):
        return f"(?P={_name(back[1])})", len(back[0])
    if code == "c" and rest[2:3].isalpha() and rest[2:3].isascii():
        return f"\\x{ord(rest[2]) % 32:02x}", 3
    if code.isalpha() and code.isascii() and code not in "nrtvfsSDWbxu":
        return re.escape(code), 2  # an escape without a meaning stands for its character
    if code == "0" and not rest[2:3].isdigit():
        return "\\x00", 2
    return rest[:2], 2


def _name(name: str) -> str:
    return name.replace("$", "_dollar_")
