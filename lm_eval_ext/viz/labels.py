"""Where the names beside the points go, so that they cover neither each other nor the points."""

from __future__ import annotations

from typing import NamedTuple

#: Plotly's positions around a point, the best first, as steps to the right and up.
POSITIONS = {
    "middle right": (1, 0),
    "middle left": (-1, 0),
    "top center": (0, 1),
    "bottom center": (0, -1),
    "top right": (1, 1),
    "top left": (-1, 1),
    "bottom right": (1, -1),
    "bottom left": (-1, -1),
}

_CHARACTER, _HEIGHT, _GAP = 7.0, 15.0, 8.0  # pixels, at 13 px


class Box(NamedTuple):
    """A rectangle in pixels, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Common area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    @property
    def area(self) -> float:
        """Area."""
        return (self.right - self.left) * (self.top - self.bottom)


#: The plotting area for which labels are kept apart: that of a phone. A larger one only gains room.
AREA = Box(0, 0, 280, 330)


def positions(
    points: list[tuple[float, float]],
    texts: list[str],
    ends: dict[str, list[float]],
    lines: list[tuple[tuple[float, float], tuple[float, float]]],
) -> list[str]:
    """Where labels cover least of each other, the points, the axes through zero, and some lines (error bars, arrows).

    Args:
        points, lines: in the units of the axes.
        texts: the labels.
        ends: ranges of `xaxis` and `yaxis`.
    """
    (left, right), (bottom, top) = ends["xaxis"], ends["yaxis"]

    def pixel(x: float, y: float) -> tuple[float, float]:
        return AREA.right * (x - left) / (right - left), AREA.top * (y - bottom) / (top - bottom)

    axes = [((left, 0.0), (right, 0.0)), ((0.0, bottom), (0.0, top))]
    obstacles = [box for line in [*lines, *axes] for box in boxes_along(pixel(*line[0]), pixel(*line[1]))]
    return place([pixel(*point) for point in points], texts, obstacles, AREA)


def place(points: list[tuple[float, float]], texts: list[str], obstacles: list[Box], area: Box) -> list[str]:
    """A position for every label: one after the other, each where it covers least.

    Args:
        points: centres of the symbols, in pixels.
        texts: the labels.
        obstacles: what else should stay visible, such as error bars and arrows; the symbols are added here.
        area: the plotting area, which labels should not leave.
    """
    taken = obstacles + [Box(x - _GAP, y - _GAP, x + _GAP, y + _GAP) for x, y in points]
    chosen = []
    for point, text in zip(points, texts, strict=True):
        boxes = {position: _box(point, text, position) for position in POSITIONS}
        costs = {
            position: sum(box.overlap(other) for other in taken) + 4 * (box.area - box.overlap(area))
            for position, box in boxes.items()
        }
        best = min(costs, key=lambda position: costs[position])
        taken.append(boxes[best])
        chosen.append(best)
    return chosen


def boxes_along(start: tuple[float, float], end: tuple[float, float], n: int = 24) -> list[Box]:
    """A line as a string of small boxes."""
    boxes = []
    for step in range(n + 1):
        x, y = (a + (b - a) * step / n for a, b in zip(start, end, strict=True))
        boxes.append(Box(x - 2, y - 2, x + 2, y + 2))
    return boxes


def _box(point: tuple[float, float], text: str, position: str) -> Box:
    right, up = POSITIONS[position]
    width = _CHARACTER * len(text)
    # Beside a point the label is centred in height, above and below it in width.
    x = point[0] + right * (_GAP if not up else _GAP / 2) + (min(right, 0) if right else -0.5) * width
    y = point[1] + up * _GAP + (min(up, 0) if up else -0.5) * _HEIGHT
    return Box(x, y, x + width, y + _HEIGHT)
