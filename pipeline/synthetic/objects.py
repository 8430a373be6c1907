"""Ten classes of objects that differ in the arrangement of their parts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""float64 (N, 2); x to the right, y down, object units."""


@dataclass(frozen=True, slots=True)
class Polygon:
    """A filled polygon; parts of an object with the same `paint` share colour and texture."""

    paint: str
    points: Points
    outlined: bool = True


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    """Approximate an ellipse, rotated by `turn` degrees clockwise, by 28 points."""
    angle = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    u, v = rx * np.cos(angle), ry * np.sin(angle)
    return np.stack([x + c * u - s * v, y + s * u + c * v], axis=1)


def box(x0: float, y0: float, x1: float, y1: float, inset: float = 0.0) -> Points:
    """Return a rectangle whose upper side is shorter by `inset` at either end."""
    return np.array([[x0 + inset, y0], [x1 - inset, y0], [x1, y1], [x0, y1]])


def stroke(path: Points | Sequence[tuple[float, float]], start: float, stop: float) -> Points:
    """Thicken a path into a polygon of a width that goes from `start` to `stop`."""
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
    """Return an annulus; its two rims are joined by a seam of zero width."""
    outer = ellipse(x, y, radius, radius)
    inner = ellipse(x, y, radius - width, radius - width)
    return np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])


def draw_object(name: str, rng: Generator) -> list[Polygon]:
    """Build an object of random proportions.

    Returns:
        Parts from back to front; their common bounding box is centred on the origin and its longer
        side is 1.
    """
    parts = _DRAW[name](rng)
    corners = np.concatenate([part.points for part in parts])
    low, high = corners.min(axis=0), corners.max(axis=0)
    centre, side = (low + high) / 2, (high - low).max()
    return [Polygon(p.paint, (p.points - centre) / side, p.outlined) for p in parts]


def _bicycle(rng: Generator) -> list[Polygon]:
    u = rng.uniform
    radius, gap, width = u(0.2, 0.27), u(0.3, 0.36), u(0.025, 0.05)
    rear, front, crank = (-gap, 0.0), (gap, 0.0), (u(-0.06, 0.0), 0.02)
    seat, head = (-u(0.12, 0.18), -u(0.3, 0.4)), (u(0.17, 0.24), -u(0.32, 0.42))
    parts = []
    for x, y in (rear, front):
        parts.append(Polygon("tyre", ring(x, y, radius, u(0.03, 0.06)), False))
        for angle in np.linspace(0, math.pi, rng.integers(1, 5), endpoint=False) + u(0, 1):
            dx, dy = radius * 0.9 * math.cos(angle), radius * 0.9 * math.sin(angle)
            parts.append(Polygon("spoke", stroke([(x - dx, y - dy), (x + dx, y + dy)], 0.01, 0.01)))
        parts.append(Polygon("hub", ellipse(x, y, 0.04, 0.04)))
    bars = [(rear, crank), (rear, seat), (crank, seat), (crank, head), (seat, head), (head, front)]
    parts += [Polygon("frame", stroke(bar, width, width), False) for bar in bars]
    parts.append(Polygon("hub", ellipse(*crank, 0.055, 0.055)))
    parts.append(
        Polygon("seat", ellipse(seat[0], seat[1] - 0.04, u(0.09, 0.13), u(0.03, 0.045), -5))
    )
    tip = (head[0] + u(0.08, 0.16), head[1] - u(-0.05, 0.05))
    grip = bend((head[0] - 0.03, head[1] + 0.02), (head[0], head[1] - u(0.08, 0.16)), tip)
    parts.append(Polygon("grip", stroke(grip, width, width), False))
    return parts


def _bird(rng: Generator) -> list[Polygon]:
    u = rng.uniform
    long, tall, tilt = u(0.26, 0.34), u(0.15, 0.2), u(-30, -8)
    x, y = long * u(0.85, 1.0), -u(0.2, 0.28)
    radius, leg = u(0.1, 0.14), u(0.14, 0.24)
    tail_x, tail_y = -long * 0.8, u(0.05, 0.12)
    spread = u(0.04, 0.09)
    tail = [(tail_x + 0.1, tail_y - 0.06), (tail_x - u(0.2, 0.3), tail_y + 0.06 - spread)]
    tail += [(tail[1][0] + 0.03, tail[1][1] + 2 * spread), (tail_x + 0.1, tail_y + 0.06)]
    parts = [Polygon("tail", np.array(tail))]
    for foot in (-0.05, u(0.03, 0.09)):
        toe = tall + leg
        parts.append(Polygon("leg", stroke([(foot, tall * 0.7), (foot, toe)], 0.025, 0.02), False))
        parts.append(Polygon("leg", stroke([(foot - 0.02, toe), (foot + 0.08, toe)], 0.025, 0.02)))
    parts.append(Polygon("body", ellipse(0, 0, long, tall, tilt)))
    beak = np.array([(x + radius * 0.7, y - 0.05), (x + radius + u(0.08, 0.17), y + 0.01)])
    parts.append(Polygon("beak", np.concatenate([beak, [[x + radius * 0.7, y + 0.05]]])))
    parts.append(Polygon("head", ellipse(x, y, radius, radius)))
    parts.append(Polygon("eye", ellipse(x + radius * 0.3, y - radius * 0.2, 0.026, 0.026)))
    wing_x, wing_y = -u(0.3, 0.42), u(-0.14, 0.06)
    wing = bend((0.14, -0.06), (0.08, tall * 1.1), (wing_x, wing_y))
    parts.append(
        Polygon("wing", np.concatenate([wing, bend((wing_x, wing_y), (0, -0.1), (0.14, -0.06))]))
    )
    return parts


def _car(rng: Generator) -> list[Polygon]:
    u = rng.uniform
    deck, floor, roof = u(-0.04, 0.0), u(0.14, 0.18), -u(0.16, 0.3)
    back, front = -u(0.2, 0.46), u(0.12, 0.24)
    slope_back, slope_front = u(0.02, 0.14), u(0.08, 0.16)
    cabin = [(back, deck), (back + slope_back, roof), (front - slope_front, roof), (front, deck)]
    nose = [(-0.5, deck + 0.02), (0.44, deck), (0.5, deck + u(0.03, 0.1)), (0.5, floor)]
    parts = [Polygon("cabin", np.array(cabin)), Polygon("body", np.array([*nose, (-0.5, floor)]))]
    split = (back + front) / 2 + u(-0.04, 0.04)
    top, sill = roof + 0.035, deck - 0.01
    left = [(back + 0.04, sill), (back + slope_back + 0.03, top), (split - 0.015, top)]
    right = [(split + 0.015, sill), (split + 0.015, top), (front - slope_front - 0.02, top)]
    parts.append(Polygon("window", np.array([*left, (split - 0.015, sill)])))
    parts.append(Polygon("window", np.array([*right, (front - 0.05, sill)])))
    parts.append(Polygon("trim", box(split + 0.02, deck + 0.04, split + 0.09, deck + 0.06)))
    parts.append(Polygon("lamp", ellipse(0.46, deck + 0.06, 0.035, 0.03)))
    parts.append(Polygon("trim", box(-0.54, floor - 0.06, 0.54, floor - 0.02)))
    radius = u(0.095, 0.135)
    for x in (-u(0.26, 0.34), u(0.26, 0.34)):
        parts.append(Polygon("tyre", ellipse(x, floor, radius, radius)))
        parts.append(Polygon("hub", ellipse(x, floor, radius * 0.5, radius * 0.5)))
    return parts


def _chair(rng: Generator) -> list[Polygon]:
    u = rng.uniform
    width, depth, lean = u(0.2, 0.28), u(0.1, 0.2), u(0.0, 0.12)
    rise, leg, thick = u(0.36, 0.52), u(0.3, 0.42), u(0.03, 0.055)
    x_left, x_right = -width - depth / 2, width - depth / 2
    drop = depth * 0.6  # The front edge of the seat lies lower: a view from above.
    back_legs = [(x_left, -drop), (x_right, -drop)]
    front_legs = [(x_left + depth, 0.0), (x_right + depth, 0.0)]
    parts = []
    for x, y in back_legs:
        parts.append(Polygon("leg", stroke([(x, y), (x - 0.02, y + leg)], thick, thick)))
    for x, y in back_legs:
        parts.append(Polygon("post", stroke([(x, y), (x - lean, y - rise)], thick, thick)))
    num_slats = int(rng.integers(1, 5))
    for level in np.linspace(0.25, 1.0, num_slats, endpoint=False):
        t0, t1 = level + 0.05, level + 0.75 / num_slats
        y0, y1 = -drop - rise * t0, -drop - rise * t1
        slat = [(x_left - lean * t0, y0), (x_right - lean * t0, y0)]
        slat += [(x_right - lean * t1, y1), (x_left - lean * t1, y1)]
        parts.append(Polygon("slat", np.array(slat)))
    corners = np.array([back_legs[0], back_legs[1], front_legs[1], front_legs[0]])
    for x, y in front_legs:
        parts.append(Polygon("leg", stroke([(x, y), (x + 0.02, y + leg)], thick, thick)))
    parts.append(Polygon("seat", corners))
    rim = [(front_legs[0][0], 0.0), (front_legs[1][0], 0.0)]
    parts.append(Polygon("rim", stroke(rim, thick * 1.3, thick * 1.3)))
    return parts


def _face(rng: Generator) -> list[Polygon]:
    u = rng.uniform
    wide, tall = u(0.32, 0.42), u(0.4, 0.5)
    line, apart = u(-0.12, -0.02), wide * u(0.38, 0.5)
    eye, mouth, smile = u(0.05, 0.085), u(0.2, 0.28), u(-0.06, 0.12)
    parts = [Polygon("ear", ellipse(s * wide, line + 0.05, u(0.06, 0.1), 0.1)) for s in (-1, 1)]
    parts.append(Polygon("hair", ellipse(0, -0.1, wide * u(1.05, 1.2), tall * u(0.95, 1.05))))
    parts.append(Polygon("skin", ellipse(0, 0.04, wide, tall * 0.95)))
    fringe = bend((-wide * 0.95, -0.16), (u(-0.2, 0.2), u(-0.35, -0.15)), (wide * 0.95, -0.16))
    crown = bend((wide * 0.95, -0.16), (0, -tall * 1.75), (-wide * 0.95, -0.16))
    parts.append(Polygon("hair", np.concatenate([fringe, crown]), False))
    look = u(-0.02, 0.02)
    for x in (-apart, apart):
        parts.append(Polygon("white", ellipse(x, line, eye * 1.2, eye * u(0.7, 1.0))))
        parts.append(Polygon("pupil", ellipse(x + look, line, eye * 0.5, eye * 0.5)))
        brow = bend(
            (x - eye * 1.4, line - 0.1), (x, line - u(0.12, 0.17)), (x + eye * 1.4, line - 0.1)
        )
        parts.append(Polygon("hair", stroke(brow, 0.03, 0.03), False))
    base = line + u(0.16, 0.22)
    nose = [(0.0, line + 0.04), (u(0.04, 0.08), base), (-u(0.04, 0.08), base)]
    parts.append(Polygon("nose", np.array(nose)))
    lip = bend((-u(0.1, 0.18), mouth), (0, mouth + smile), (u(0.1, 0.18), mouth))
    parts.append(Polygon("mouth", stroke(lip, u(0.04, 0.06), 0.04)))
    return parts


def _fish(rng: Generator) -> list[Polygon]:
    u = rng.uniform
    long, tall = u(0.3, 0.38), u(0.14, 0.26)
    tail, fork = u(0.14, 0.24), u(0.0, 0.1)
    x = -long * 0.85
    fin = [(x, -0.03), (x - tail, -u(0.14, 0.24)), (x - tail + fork, 0), (x - tail, u(0.14, 0.24))]
    parts = [Polygon("tail", np.array([*fin, (x, 0.03)]))]
    top = [(-long * 0.6, -tall * 0.6), (-long * u(0.4, 0.7), -tall - u(0.06, 0.16))]
    parts.append(
        Polygon("fin", np.array([*top, (long * 0.2, -tall - 0.03), (long * 0.4, -tall * 0.7)]))
    )
    low = [(-0.02, tall * 0.8), (-u(0.1, 0.2), tall + u(0.06, 0.12)), (long * 0.4, tall * 0.8)]
    parts.append(Polygon("fin", np.array(low)))
    upper = bend((-long, 0), (0, -2 * tall), (long, 0))
    parts.append(
        Polygon("body", np.concatenate([upper, bend((long, 0), (0, 2 * tall), (-long, 0))]))
    )
    for i in range(rng.integers(0, 4)):
        band = -long * 0.5 + i * 0.1
        height = tall * (1 - (band / long) ** 2) * 0.9
        line = bend((band, -height), (band + 0.05, 0), (band, height))
        parts.append(Polygon("band", stroke(line, 0.035, 0.035), False))
    gill = long * u(0.35, 0.45)
    arc = bend((gill, -tall * 0.55), (gill - 0.08, 0), (gill, tall * 0.55))
    parts.append(Polygon("gill", stroke(arc, 0.025, 0.025)))
    side = bend((gill - 0.08, 0.03), (gill - 0.2, u(0.02, 0.1)), (gill - 0.24, u(0.04, 0.14)))
    parts.append(Polygon("fin", stroke(side, 0.03, 0.09)))
    parts.append(Polygon("white", ellipse(long * 0.66, -tall * 0.22, 0.045, 0.045)))
    parts.append(Polygon("pupil", ellipse(long * 0.67, -tall * 0.22, 0.022, 0.022)))
    return parts


def _flower(rng: Generator) -> list[Polygon]:
    u = rng.uniform
    num, core, petal, sway = int(rng.integers(5, 10)), u(0.06, 0.11), u(0.13, 0.19), u(-0.12, 0.12)
    stem = bend((sway, 0.7), (sway * 2, 0.3), (0, 0))
    parts = [Polygon("stem", stroke(stem, u(0.03, 0.05), 0.03), False)]
    for i in range(rng.integers(1, 4)):
        side = (-1) ** i
        foot = stem[3 + i]
        size = u(0.12, 0.17)
        x, y = foot[0] + side * size * 0.85, foot[1] - size * 0.45
        parts.append(Polygon("leaf", ellipse(x, y, size, size * u(0.3, 0.45), -side * u(20, 35))))
    width = min(petal * u(0.5, 0.75), (core + petal * 0.6) * math.pi / num * 1.25)
    phase = u(0, 360)
    for i in range(num):
        turn = phase + 360 * i / num
        x, y = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        reach = core * 0.6 + petal
        parts.append(Polygon(f"petal{i % 2}", ellipse(x * reach, y * reach, petal, width, turn)))
    parts.append(Polygon("core", ellipse(0, 0, core, core)))
    if rng.random() < 0.4:
        parts.append(
            Polygon("pot", box(sway + u(0.13, 0.2), 0.92, sway - u(0.13, 0.2), 0.66, 0.05))
        )
        parts.append(Polygon("pot", box(sway - 0.22, 0.62, sway + 0.22, 0.7)))
    return parts


def _house(rng: Generator) -> list[Polygon]:
    u = rng.uniform
    half, wall, roof = u(0.3, 0.45), u(0.28, 0.45), u(0.18, 0.34)
    eaves, ridge = u(0.03, 0.09), rng.choice([0.0, 0.0, u(0.1, 0.25)])
    x = u(0.08, half - 0.1) * rng.choice([-1, 1])
    chimney = box(x - 0.045, -wall - roof - u(0.0, 0.1), x + 0.045, -wall)
    gable = [(-half - eaves, -wall), (-ridge, -wall - roof), (ridge, -wall - roof)]
    parts = [Polygon("chimney", chimney), Polygon("wall", box(-half, -wall, half, 0))]
    parts.append(Polygon("roof", np.array([*gable, (half + eaves, -wall)])))
    door, width = u(-0.6, 0.6) * half, u(0.05, 0.08)
    height = wall * u(0.5, 0.65)
    parts.append(Polygon("door", box(door - width, -height, door + width, 0)))
    parts.append(Polygon("knob", ellipse(door + width * 0.6, -height * 0.45, 0.014, 0.014)))
    pane, level = u(0.05, 0.075), -wall * u(0.55, 0.65)
    for centre in np.linspace(-half + pane * 1.8, half - pane * 1.8, int(rng.integers(2, 5))):
        if abs(centre - door) > width + pane + 0.01:
            corners = box(centre - pane, level - pane, centre + pane, level + pane)
            parts.append(Polygon("window", corners))
            bar = [(centre, level - pane), (centre, level + pane)]
            parts.append(Polygon("bar", stroke(bar, 0.015, 0.015), False))
    if rng.random() < 0.5:
        parts.append(Polygon("window", ellipse(0, -wall - roof * 0.4, 0.05, 0.05)))
    parts.append(Polygon("step", box(-half - 0.03, 0, half + 0.03, u(0.03, 0.06))))
    return parts


def _sailboat(rng: Generator) -> list[Polygon]:
    u = rng.uniform
    half, deep, mast, x = u(0.32, 0.45), u(0.12, 0.2), u(0.6, 0.8), u(-0.06, 0.1)
    parts = [Polygon("mast", stroke([(x, 0.02), (x, -mast)], 0.035, 0.025))]
    boom, foot = u(0.28, 0.4), -u(0.06, 0.1)
    belly = u(-0.06, 0.03)
    leech = bend((x - boom, foot), (x - boom * 0.5 + belly, -mast * 0.55), (x - 0.02, -mast * 0.96))
    parts.append(Polygon("main", np.concatenate([leech, [[x - 0.02, foot]]])))
    tack = (x + u(0.2, 0.32), foot + u(-0.02, 0.03))
    luff = bend((x + 0.03, -mast * u(0.75, 0.9)), (x + 0.14, -mast * 0.4), tack)
    parts.append(Polygon("jib", np.concatenate([luff, [[x + 0.03, foot]]])))
    parts.append(
        Polygon("boom", stroke([(x + 0.02, foot + 0.02), (x - boom, foot + 0.02)], 0.025, 0.025))
    )
    bow = bend((half + u(0.04, 0.12), -0.03), (half * 0.9, deep), (half * 0.6, deep))
    hull = np.concatenate([[[-half, 0.0]], bow, [[-half * u(0.7, 0.9), deep]]])
    parts.append(Polygon("hull", hull))
    parts.append(Polygon("rail", stroke([(-half, 0.015), (half + 0.03, -0.01)], 0.04, 0.03)))
    for port in np.linspace(-half * 0.6, half * 0.6, int(rng.integers(1, 5))):
        parts.append(Polygon("port", ellipse(port, deep * 0.5, 0.022, 0.022)))
    flag = [(x, -mast), (x + u(0.08, 0.14), -mast + 0.03), (x, -mast + 0.07)]
    parts.append(Polygon("flag", np.array(flag)))
    return parts


def _teapot(rng: Generator) -> list[Polygon]:
    u = rng.uniform
    wide, tall = u(0.24, 0.3), u(0.19, 0.27)
    thick, reach = u(0.035, 0.06), u(0.14, 0.2)
    parts = [Polygon("foot", box(-wide * 0.6, tall * 0.8, wide * 0.6, tall + u(0.03, 0.07)))]
    tip = (wide + u(0.12, 0.2), -tall * u(0.6, 1.0))
    spout = bend((wide * 0.7, tall * 0.35), (wide + 0.12, tall * 0.2), tip)
    parts.append(Polygon("spout", stroke(spout, u(0.13, 0.18), u(0.05, 0.08))))
    x = -wide * 0.8
    arm = bend((x, -tall * 0.55), (x - reach * 2, -tall * u(0.5, 0.9)), (x - 0.03, tall * 0.5))
    parts.append(Polygon("handle", stroke(arm, thick, thick), False))
    parts.append(Polygon("body", ellipse(0, 0, wide, tall)))
    if rng.random() < 0.6:
        parts.append(
            Polygon("band", stroke([(-wide * 0.95, 0.02), (wide * 0.95, 0.02)], 0.05, 0.05))
        )
    dome, rim = u(0.06, 0.14), wide * u(0.5, 0.65)
    lid = bend((-rim, -tall * 0.82), (0, -tall * 0.82 - 2 * dome), (rim, -tall * 0.82))
    parts.append(Polygon("lid", lid))
    parts.append(Polygon("rim", stroke([(-rim, -tall * 0.82), (rim, -tall * 0.82)], 0.035, 0.035)))
    parts.append(
        Polygon("knob", ellipse(0, -tall * 0.82 - dome - 0.03, u(0.03, 0.05), u(0.03, 0.05)))
    )
    return parts


_DRAW: dict[str, Callable[[Generator], list[Polygon]]] = {
    "bicycle": _bicycle,
    "bird": _bird,
    "car": _car,
    "chair": _chair,
    "face": _face,
    "fish": _fish,
    "flower": _flower,
    "house": _house,
    "sailboat": _sailboat,
    "teapot": _teapot,
}

CLASSES = tuple(_DRAW)
"""Names of the objects, in alphabetical order."""
