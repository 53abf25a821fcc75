"""Geospatial functions over GeoJSON records or WKT text. Coordinates are [longitude, latitude], in degrees.

Distances are geodesics on WGS 84 by Vincenty's inverse formula (Survey Review 23, 1975). It does not converge near
antipodes; every path there crosses the great circle 90° from its start, so the distance is then the least sum of two legs
over that circle. Containment and crossing are judged in the plane of the coordinates; a point on a border is not within.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

from headrace.sql.convert import number, shown
from headrace.sql.errors import Fault
from headrace.sql.spec import Scalar

_MAJOR = 6_378_137.0
_FLATTENING = 1 / 298.257223563
_MINOR = _MAJOR * (1 - _FLATTENING)
_GOLDEN = (math.sqrt(5) - 1) / 2

Point = tuple[float, float]  # longitude, latitude
Segment = tuple[Point, Point]


# -- geometries


def _point(value: Any) -> Point:
    if isinstance(value, list) and len(value) >= 2 and all(type(part) in (int, float) for part in value[:2]):
        longitude, latitude = float(value[0]), float(value[1])
        if abs(latitude) <= 90 and math.isfinite(longitude):
            return longitude, latitude
    raise Fault(f"{shown(value)} is no position [longitude, latitude]")


def _geometry(value: Any) -> tuple[str, list[Point]]:
    """The kind (point, linestring, polygon) and the positions; a polygon's ring is closed."""
    if type(value) is str:
        return _from_wkt(value)
    if type(value) is not dict:
        raise Fault(f"{shown(value)} is no geometry: expected a GeoJSON record or WKT text")
    kind, coordinates = value.get("type"), value.get("coordinates")
    if kind == "Point":
        return "point", [_point(coordinates)]
    if kind == "LineString" and isinstance(coordinates, list) and len(coordinates) >= 2:
        return "linestring", [_point(part) for part in coordinates]
    if kind == "Polygon" and isinstance(coordinates, list) and len(coordinates) == 1 and type(coordinates[0]) is list:
        return "polygon", _ring([_point(part) for part in coordinates[0]])
    raise Fault(f"{shown(value)} is no Point, LineString or Polygon (without holes)")


_WKT = re.compile(r"\s*(POINT|LINESTRING|POLYGON)\s*\((.*)\)\s*", re.IGNORECASE | re.DOTALL)


def _from_wkt(text: str) -> tuple[str, list[Point]]:
    found = _WKT.fullmatch(text)
    if found is None:
        raise Fault(f"{shown(text)} is no WKT of a POINT, LINESTRING or POLYGON")
    kind, inner = found[1].lower(), found[2].strip()
    if kind == "polygon":
        if not (inner.startswith("(") and inner.endswith(")")) or "(" in inner[1:]:
            raise Fault(f"{shown(text)} is no POLYGON with one ring")
        inner = inner[1:-1]
    try:
        points = [_point([float(part) for part in pair.split()]) for pair in inner.split(",")]
    except ValueError as exc:
        raise Fault(f"{shown(text)} has a coordinate that is no number") from exc
    if kind == "point" and len(points) != 1:
        raise Fault(f"{shown(text)} is no single point")
    if kind == "linestring" and len(points) < 2:
        raise Fault(f"{shown(text)} is a line of fewer than 2 points")
    return kind, _ring(points) if kind == "polygon" else points


def _ring(points: list[Point]) -> list[Point]:
    if points[0] != points[-1]:
        points = [*points, points[0]]
    if len(set(points)) < 3:
        raise Fault("a polygon needs at least 3 points")
    return points


def _expect(value: Any, *kinds: str) -> list[Point]:
    kind, points = _geometry(value)
    if kind not in kinds:
        raise Fault(f"expected a {' or '.join(kinds)}, not a {kind}")
    return points


def _create_point(latitude: Any, longitude: Any) -> dict[str, Any]:
    position = [float(number(longitude)), float(number(latitude))]
    _point(position)
    return {"type": "Point", "coordinates": position}


def _create_line(*points: Any) -> dict[str, Any]:
    return {"type": "LineString", "coordinates": [list(_expect(point, "point")[0]) for point in points]}


def _create_polygon(*points: Any) -> dict[str, Any]:
    ring = _ring([_expect(point, "point")[0] for point in points])
    return {"type": "Polygon", "coordinates": [[list(point) for point in ring]]}


# -- distance


def geodesic(start: Point, end: Point) -> float:
    """Metres between two positions on WGS 84."""
    if start == end:
        return 0.0
    found = _vincenty(start, end)
    return _around(start, end) if found is None else found


def _vincenty(start: Point, end: Point) -> float | None:
    """The inverse formula, or None where it does not converge."""
    reduced = [math.atan((1 - _FLATTENING) * math.tan(math.radians(point[1]))) for point in (start, end)]
    (sin1, cos1), (sin2, cos2) = ((math.sin(angle), math.cos(angle)) for angle in reduced)
    apart = math.radians((end[0] - start[0] + 180) % 360 - 180)
    lam = apart
    for _ in range(200):
        sin_lam, cos_lam = math.sin(lam), math.cos(lam)
        sin_sigma = math.hypot(cos2 * sin_lam, cos1 * sin2 - sin1 * cos2 * cos_lam)
        if sin_sigma == 0:
            return 0.0 if cos_lam > 0 else None
        cos_sigma = sin1 * sin2 + cos1 * cos2 * cos_lam
        sigma = math.atan2(sin_sigma, cos_sigma)
        sin_alpha = cos1 * cos2 * sin_lam / sin_sigma
        cos_sq = 1 - sin_alpha * sin_alpha
        middle = cos_sigma - 2 * sin1 * sin2 / cos_sq if cos_sq > 1e-15 else 0.0
        c = _FLATTENING / 16 * cos_sq * (4 + _FLATTENING * (4 - 3 * cos_sq))
        before = lam
        lam = apart + (1 - c) * _FLATTENING * sin_alpha * (
            sigma + c * sin_sigma * (middle + c * cos_sigma * (2 * middle * middle - 1))
        )
        if abs(lam) > math.pi:
            return None
        if abs(lam - before) < 1e-12:
            return _length(cos_sq, sigma, sin_sigma, cos_sigma, middle)
    return None


def _length(cos_sq: float, sigma: float, sin_sigma: float, cos_sigma: float, middle: float) -> float:
    u_sq = cos_sq * (_MAJOR**2 - _MINOR**2) / _MINOR**2
    a = 1 + u_sq / 16384 * (4096 + u_sq * (-768 + u_sq * (320 - 175 * u_sq)))
    b = u_sq / 1024 * (256 + u_sq * (-128 + u_sq * (74 - 47 * u_sq)))
    inner = cos_sigma * (2 * middle**2 - 1)
    inner -= b / 6 * middle * (4 * sin_sigma**2 - 3) * (4 * middle**2 - 3)
    return _MINOR * a * (sigma - b * sin_sigma * (middle + b / 4 * inner))


def _around(start: Point, end: Point) -> float:
    """Nearly antipodal positions: the least detour over the points 90° away, found by golden section."""

    def detour(azimuth: float) -> float:
        latitude = math.radians(start[1])
        sine = math.cos(latitude) * math.cos(azimuth)
        east = math.atan2(math.sin(azimuth) * math.cos(latitude), -math.sin(latitude) * sine)
        over = (start[0] + math.degrees(east), math.degrees(math.asin(max(-1.0, min(1.0, sine)))))
        return (_vincenty(start, over) or 0.0) + (_vincenty(over, end) or 0.0)

    steps = 64
    best = min(range(steps), key=lambda step: detour(2 * math.pi * step / steps))
    low, high = (2 * math.pi * (best + side) / steps for side in (-1, 1))
    while high - low > 1e-9:
        first, second = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if detour(first) <= detour(second):
            high = second
        else:
            low = first
    return detour((low + high) / 2)


def _distance(left: Any, right: Any) -> float:
    (kind, first), (other, second) = _geometry(left), _geometry(right)
    if "polygon" in (kind, other):
        return 0.0
    if kind != "point" or other != "point":
        raise Fault("ST_DISTANCE needs two points, or a polygon")
    return geodesic(first[0], second[0])


# -- the plane


def _edges(points: list[Point]) -> list[Segment]:
    return list(itertools.pairwise(points))


def _turn(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _on(point: Point, edge: Segment) -> bool:
    (x1, y1), (x2, y2) = edge
    return (
        _turn(*edge, point) == 0 and min(x1, x2) <= point[0] <= max(x1, x2) and min(y1, y2) <= point[1] <= max(y1, y2)
    )


def _side(point: Point, ring: list[Point]) -> int:
    """1 inside, -1 outside, 0 on the border. A clockwise ring means the rest of the globe."""
    edges = _edges(ring)
    if any(_on(point, edge) for edge in edges):
        return 0
    x, y = point
    inside = False
    for (x1, y1), (x2, y2) in edges:
        if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
            inside = not inside
    clockwise = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in edges) < 0
    return 1 if inside != clockwise else -1


def _touch(first: Segment, second: Segment) -> bool:
    """Whether two segments share a point."""
    d1, d2 = _turn(*second, first[0]), _turn(*second, first[1])
    d3, d4 = _turn(*first, second[0]), _turn(*first, second[1])
    if ((d1 > 0) != (d2 > 0)) and ((d3 > 0) != (d4 > 0)) and 0 not in (d1, d2, d3, d4):
        return True
    return _on(first[0], second) or _on(first[1], second) or _on(second[0], first) or _on(second[1], first)


def _pieces(path: list[Point], ring: list[Point]) -> list[int]:
    """The sides of the ring on which the parts of a path lie that its border cuts it into."""
    found: list[int] = []
    for a, b in _edges(path):
        cuts = {0.0, 1.0}
        for c, d in _edges(ring):
            cross = (b[0] - a[0]) * (d[1] - c[1]) - (b[1] - a[1]) * (d[0] - c[0])
            if cross:
                cuts.add(((c[0] - a[0]) * (d[1] - c[1]) - (c[1] - a[1]) * (d[0] - c[0])) / cross)
            else:
                size = (b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2
                if size:
                    cuts |= {((p[0] - a[0]) * (b[0] - a[0]) + (p[1] - a[1]) * (b[1] - a[1])) / size for p in (c, d)}
        kept = sorted(cut for cut in cuts if 0 <= cut <= 1)
        for low, high in itertools.pairwise(kept):
            if high - low > 1e-12:
                at = (low + high) / 2
                found.append(_side((a[0] + at * (b[0] - a[0]), a[1] + at * (b[1] - a[1])), ring))
    return found


def _within(geometry: Any, polygon: Any) -> int:
    kind, points = _geometry(geometry)
    ring = _expect(polygon, "polygon")
    if kind == "point":
        return int(_side(points[0], ring) > 0)
    sides = _pieces(points, ring)
    if kind == "linestring":
        return int(-1 not in sides and 1 in sides)
    return int(-1 not in sides and 1 not in _pieces(ring, points))


def _overlaps(left: Any, right: Any) -> int:
    """Neither holds the other, and their insides meet."""
    first, second = _expect(left, "polygon"), _expect(right, "polygon")
    ours, theirs = _pieces(first, second), _pieces(second, first)
    return int(-1 in ours and -1 in theirs and (1 in ours or 1 in theirs))


def _intersects(left: Any, right: Any) -> int:
    (kind, first), (other, second) = _geometry(left), _geometry(right)
    if "point" in (kind, other):
        raise Fault("ST_INTERSECTS needs lines or polygons, not points")
    if any(_touch(one, two) for one in _edges(first) for two in _edges(second)):
        return 1
    inside = (other == "polygon" and _side(first[0], second) > 0) or (kind == "polygon" and _side(second[0], first) > 0)
    return int(inside)


CREATE_POINT = Scalar("createpoint", 2, 2, _create_point, doc="A GeoJSON point from latitude and longitude.")
CREATE_LINE = Scalar("createlinestring", 2, -1, _create_line, doc="A GeoJSON line through points.")
CREATE_POLYGON = Scalar("createpolygon", 3, -1, _create_polygon, doc="A GeoJSON polygon from its corners, closed.")
DISTANCE = Scalar("st_distance", 2, 2, _distance, doc="Metres between two points; 0 for polygons.")
WITHIN = Scalar("st_within", 2, 2, _within, doc="1 where the geometry lies within the polygon, else 0.")
OVERLAPS = Scalar("st_overlaps", 2, 2, _overlaps, doc="1 where two polygons overlap and none holds the other, else 0.")
INTERSECTS = Scalar("st_intersects", 2, 2, _intersects, doc="1 where two lines meet, else 0.")
