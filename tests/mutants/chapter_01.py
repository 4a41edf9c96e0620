import math

import numpy as np


def to_film(xy, rows, cols, size, half=0.5, padding=True, swapped=False, tall=False):
    scale = size / (rows if tall else max(rows, cols))
    if swapped:
        rows, cols = cols, rows
    left, top = (size - round(cols * scale)) // 2, (size - round(rows * scale)) // 2
    return (np.asarray(xy) - np.array([left, top]) * padding + half) / scale - half


WRONG = {
    "to_film": {
        "forgets the half pixel": lambda *given: to_film(*given, half=0),
        "forgets the padding": lambda *given: to_film(*given, padding=False),
        "pads the longer side": lambda *given: to_film(*given, swapped=True),
        "believes that all films are tall": lambda *given: to_film(*given, tall=True),
        "takes the half away before the padding is off": lambda xy, rows, cols, size: (
            to_film(xy, rows, cols, size, half=0) - 0.5
        ),
        "shrinks once more": lambda xy, rows, cols, size: np.asarray(xy) * size / max(rows, cols),
    },
    "distance_mm": {
        "one pitch for both": lambda a, b, row_mm, col_mm: math.dist(a, b) * row_mm,
        "the other pitch for both": lambda a, b, row_mm, col_mm: math.dist(a, b) * col_mm,
        "pitches exchanged": lambda a, b, row_mm, col_mm: math.hypot((a[0] - b[0]) * row_mm, (a[1] - b[1]) * col_mm),
        "forgets the root": lambda a, b, row_mm, col_mm: ((a[0] - b[0]) * col_mm) ** 2 + ((a[1] - b[1]) * row_mm) ** 2,
        "round the corner": lambda a, b, row_mm, col_mm: abs(a[0] - b[0]) * col_mm + abs(a[1] - b[1]) * row_mm,
        "the mean pitch": lambda a, b, row_mm, col_mm: math.dist(a, b) * (row_mm + col_mm) / 2,
    },
}


def by_loops(xy, rows, cols, size):
    longer = max(rows, cols)
    found = []
    for value, side in zip(xy, (cols, rows), strict=True):
        padding = (size - round(side * size / longer)) // 2
        found.append((value - padding + 0.5) * longer / size - 0.5)
    return found


RIGHT = {
    "to_film": {"a loop, as a list": by_loops},
    "distance_mm": {
        "a norm": lambda a, b, row_mm, col_mm: np.linalg.norm((np.array(a) - np.array(b)) * [col_mm, row_mm])
    },
}
