"""The colours that text is written in can be read: WCAG 2 AA, in light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import headrace.web

SHEET = (Path(headrace.web.__file__).parent / "static" / "css" / "tokens.css").read_text()
PAIRS = [
    *((text, ground) for text in ("text", "muted") for ground in ("page", "surface", "surface-2", "accent-soft")),
    *((text, ground) for text in ("text", "muted") for ground in ("warning-soft", "critical-soft")),
    *((text, "surface") for text in ("accent", "warning", "critical", "anomaly")),
    ("accent", "page"),
    ("on-accent", "accent"),
    ("warning", "warning-soft"),
    ("critical", "critical-soft"),
]


def colours(selector: str) -> dict[str, str]:
    """The colours that a rule sets, as six hexadecimal digits by name."""
    body = SHEET.partition(selector + " {")[2].partition("}")[0]
    return dict(re.findall(r"--([\w-]+): #([0-9a-f]{6})", body))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[index : index + 2], 16) / 255 for index in (0, 2, 4)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("selector", [":root", ':root[data-theme="dark"]'])
def test_text_stands_out_from_its_ground(selector: str) -> None:
    known = colours(selector)
    weak = {}
    for text, ground in PAIRS:
        low, high = sorted((luminance(known[text]), luminance(known[ground])))
        if (contrast := (high + 0.05) / (low + 0.05)) < 4.5:
            weak[text, ground] = round(contrast, 2)
    assert weak == {}


def test_dark_is_the_same_whether_the_system_or_a_person_chose_it() -> None:
    assert colours(':root:not([data-theme="light"])') == colours(':root[data-theme="dark"]')
