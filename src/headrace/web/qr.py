"""A text as a QR code that an <img> shows."""

from __future__ import annotations

import segno


def qr_image(text: str) -> str:
    """A data: URI of an SVG, black on white with its quiet zone, so that cameras read it on dark pages too."""
    uri: str = segno.make(text, error="m", micro=False).svg_data_uri(scale=4, border=4, dark="#000", light="#fff")
    return uri
