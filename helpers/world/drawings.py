"""The drawings of the pocket world: twelve everyday things, in five colours or in pencil.

colour, coverage = icon("cup", "red")     # arrays for blending onto a picture
"""

import functools

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 52, 48),
    "blue": (48, 92, 210),
    "green": (46, 150, 66),
    "yellow": (238, 190, 36),
    "purple": (140, 66, 186),
}
PENCIL = (60, 60, 70)
PAPER = np.array((0.96, 0.95, 0.91))  # the tray, each channel from 0 to 1
ICON = 28  # pixels: the width and height of a drawing

# Each drawing is a list of (shape, coordinates in a 28 x 28 box, tone).
# Tones: "fill" the thing's colour, "dark" and "light" shades of it, "ink" the outline.
ICONS = {
    "plate": [
        ("ellipse", (1, 1, 27, 27), "fill"),
        ("ellipse", (5, 5, 23, 23), "light"),
        ("ellipse", (7, 7, 21, 21), "fill"),
    ],
    "bed": [
        ("rectangle", (1, 5, 5, 25), "dark"),
        ("rectangle", (23, 13, 27, 25), "dark"),
        ("rectangle", (5, 14, 23, 21), "fill"),
        ("rectangle", (6, 9, 14, 14), "light"),
    ],
    "boat": [
        ("polygon", (1, 18, 27, 18, 22, 26, 6, 26), "fill"),
        ("rectangle", (12, 1, 13, 18), "ink"),
        ("polygon", (14, 2, 25, 16, 14, 16), "light"),
        ("polygon", (11, 5, 11, 16, 3, 16), "light"),
    ],
    "house": [
        ("rectangle", (5, 13, 23, 27), "fill"),
        ("polygon", (1, 14, 14, 1, 27, 14), "dark"),
        ("rectangle", (11, 18, 16, 27), "light"),
        ("rectangle", (18, 16, 21, 19), "light"),
    ],
    "fork": [
        ("rectangle", (7, 1, 9, 10), "ink"),
        ("rectangle", (13, 1, 15, 10), "ink"),
        ("rectangle", (19, 1, 21, 10), "ink"),
        ("rectangle", (7, 10, 21, 13), "ink"),
        ("rectangle", (12, 13, 16, 27), "ink"),
    ],
    "lamp": [
        ("polygon", (9, 1, 19, 1, 25, 14, 3, 14), "fill"),
        ("rectangle", (13, 14, 15, 23), "ink"),
        ("ellipse", (6, 22, 22, 27), "ink"),
    ],
    "fish": [
        ("polygon", (17, 14, 27, 5, 27, 23), "fill"),
        ("ellipse", (1, 6, 21, 22), "fill"),
        ("ellipse", (5, 10, 8, 13), "ink"),
    ],
    "tree": [
        ("rectangle", (12, 18, 16, 27), "ink"),
        ("ellipse", (3, 8, 17, 20), "fill"),
        ("ellipse", (11, 8, 25, 20), "fill"),
        ("ellipse", (7, 1, 21, 14), "fill"),
    ],
    "ball": [
        ("ellipse", (3, 3, 25, 25), "fill"),
        ("pieslice", (3, 3, 25, 25, 20, 80), "light"),
        ("pieslice", (3, 3, 25, 25, 140, 200), "light"),
        ("pieslice", (3, 3, 25, 25, 260, 320), "light"),
    ],
    "cup": [
        ("ellipse", (15, 9, 27, 21), "ink"),
        ("ellipse", (18, 12, 24, 18), "paper"),
        ("polygon", (2, 6, 21, 6, 18, 26, 5, 26), "fill"),
        ("ellipse", (2, 3, 21, 9), "light"),
    ],
    "book": [
        ("rectangle", (4, 2, 24, 26), "fill"),
        ("rectangle", (4, 2, 8, 26), "dark"),
        ("rectangle", (11, 6, 21, 11), "light"),
        ("rectangle", (8, 22, 24, 25), "light"),
    ],
    "umbrella": [
        ("pieslice", (1, 1, 27, 27, 180, 360), "fill"),
        ("pieslice", (9, 1, 19, 27, 180, 360), "light"),
        ("rectangle", (13, 13, 15, 25), "ink"),
        ("arc", (13, 20, 21, 27, 0, 180), "ink"),
    ],
}


@functools.cache
def icon(noun: str, colour: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Colour (28, 28, 3) and coverage (28, 28, 1) of a drawing, both from 0 to 1, antialiased.

    `noun`: one of ICONS. `colour`: one of COLOURS, or None for pencil. Raises KeyError for others.
    """
    scale = 8
    base = np.array(COLOURS[colour] if colour else PENCIL)
    tones = {
        "fill": base if colour else (base + 255) // 2,
        "dark": base * 2 // 3,
        "light": (base + 3 * 255) // 4,
        "ink": base // 3 if colour else base,
        "paper": (PAPER * 255).astype(int),
    }
    tile = Image.new("RGBA", (ICON * scale, ICON * scale))
    pen = ImageDraw.Draw(tile)
    outline = (*(int(v) for v in tones["ink"]), 255)
    for shape, numbers, tone in ICONS[noun]:
        box, angles = numbers, ()
        if shape in ("pieslice", "arc"):
            box, angles = numbers[:4], numbers[4:]
        box = tuple(v * scale for v in box)
        fill = (*(int(v) for v in tones[tone]), 255)
        if shape == "arc":
            pen.arc(box, *angles, fill=fill, width=2 * scale)
        else:
            getattr(pen, shape)(box, *angles, fill=fill, outline=outline, width=scale)
    small = np.asarray(tile.resize((ICON, ICON), Image.Resampling.BOX)) / 255
    return small[..., :3], small[..., 3:]
