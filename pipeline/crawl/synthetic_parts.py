"""The geometry of drawn objects: parts as filled polygons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""float64 (N, 2); x to the right, y down, object units."""


@dataclass(frozen=True, slots=True)
class Part:
    """A filled polygon; parts of one object with the same `paint` share colour and texture."""

    paint: str
    points: Points
    outlined: bool = True


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    """Approximate an ellipse, turned by `turn` degrees clockwise, by 28 points."""
    angle = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    u, v = rx * np.cos(angle), ry * np.sin(angle)
    return np.stack([x + c * u - s * v, y + s * u + c * v], axis=1)


def box(x0: float, y0: float, x1: float, y1: float, inset: float = 0.0) -> Points:
    """Return a rectangle whose upper side is `inset` shorter at either end."""
    return np.array([[x0 + inset, y0], [x1 - inset, y0], [x1, y1], [x0, y1]])


def stroke(path: Points | Sequence[tuple[float, float]], start: float, stop: float) -> Points:
    """Thicken a path into a polygon whose width goes from `start` to `stop`."""
    line = np.asarray(path, dtype=np.float64)
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1])[:, None], 1e-9)
    half = np.linspace(start, stop, len(line))[:, None] / 2
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) * half
    return np.concatenate([line + side, (line - side)[::-1]])


def bend(*controls: tuple[float, float]) -> Points:
    """Sample a quadratic Bezier curve of three control points at 12 points."""
    p0, p1, p2 = np.array(controls)
    t = np.linspace(0, 1, 12)[:, None]
    curve: Points = (1 - t) ** 2 * p0 + 2 * t * (1 - t) * p1 + t**2 * p2
    return curve


def ring(x: float, y: float, radius: float, width: float) -> Points:
    """Return an annulus; its two rims are joined by a seam of no width."""
    outer = ellipse(x, y, radius, radius)
    inner = ellipse(x, y, radius - width, radius - width)
    return np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])
