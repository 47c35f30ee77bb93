"""Draw street scenes with exact labels.

Lengths are in metres: x right of the middle of the road, y up, z ahead of the camera. `compose`
places the things, the `draw_*` functions paint them from far to near. The RGBA canvas has twice
the image size; its fourth channel is the class, so a polygon writes colour and class to the same
pixels. The image is the mean over 2x2 pixels, the label their most frequent class.
"""

import json
import math
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

from alignseg_tf.data.datasets.street_scenes import CLASSES, PALETTE, VOID
from alignseg_tf.data.datasets.written_once import FolderWrittenOnce
from alignseg_tf.data.listing import expect
from alignseg_tf.system.files import atomic_path, write_text
from alignseg_tf.system.fingerprints import file_fingerprint
from alignseg_tf.system.progress import progress_bar

SKY, BUILDING, TREE, ROAD, SIDEWALK, POLE, SIGN, CAR, PEDESTRIAN = range(len(CLASSES))
VAL_START = 1_000_000  # index of the first validation scene
EDITION = 2  # of the drawing; write_folder draws the scenes of another edition anew
SCALE = 2  # canvas pixels per image pixel
NEAR, FAR, BEND_END = 1.2, 95.0, 70.0  # metres: nearest depth, end of the street and of its bend
CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
# Brightness noise of a class, from pixel to pixel and in patches; void comes last.
GRAIN = np.array([0.0, 0.05, 0.16, 0.04, 0.04, 0.04, 0.02, 0.03, 0.05, 0.02], np.float32)
# Times of day: colours of zenith, horizon (0..255), sun, ambient light (factors), the sun's
# elevation in degrees, the share of windows that are lit, the share of scenes.
LIGHTS = np.array([
    (64, 122, 200, 188, 214, 234, 0.72, 0.68, 0.60, 0.50, 0.55, 0.63, 52, 0.0, 0.27),
    (104, 152, 206, 248, 226, 196, 0.82, 0.66, 0.46, 0.45, 0.49, 0.57, 32, 0.03, 0.22),
    (92, 98, 158, 255, 172, 106, 0.95, 0.55, 0.28, 0.42, 0.40, 0.48, 22, 0.15, 0.20),
    (158, 166, 176, 208, 211, 213, 0.16, 0.16, 0.16, 0.68, 0.70, 0.72, 60, 0.08, 0.19),
    (34, 44, 92, 206, 128, 118, 0.06, 0.04, 0.05, 0.33, 0.35, 0.49, 30, 0.5, 0.12),
])  # fmt: skip
COLOURS = {
    "wall": "b0684e 965646 ceb894 c4beb4 8e9094 707278 d6a870 a8b0b8 ded4c4 808c80",
    "car": "b02024 244684 e4e4e2 202226 808486 5c6066 c4c6ca 225c46 e2aa28 5480a8",
    "evergreen": "487030 608038 3a623e 788a3c 547828",
    "leaves": "487030 608038 3a623e 788a3c 547828 ce8c32 bc5830 dea8b6",
    "clothes": "282c38 3c548c b43c32 78746c d6cebe 466046 cea03c 78466e 2c6e82",
    "skin": "ecc4a6 c69270 8c5e44 604030",
    "metal": "606468 3e4246 84888c",
}
WHITE, RED, BLUE, YELLOW = (240, 240, 238), (206, 34, 38), (30, 84, 176), (236, 196, 40)
INK, GREEN, AMBER, WARM = (20, 20, 20), (60, 220, 110), (255, 190, 50), (255, 232, 180)
# Half the width and length, and the height.
BOXES = {
    "car": (0.9, 2.05, 1.4), "pedestrian": (0.25, 0.25, 1.7), "lamp": (0.05, 0.05, 6.6),
    "sign": (0.04, 0.04, 2.5), "light": (0.05, 0.05, 3.3), "bin": (0.3, 0.3, 0.9),
    "hedge": (0.8, 0.8, 1.6), "round": (1.3, 1.3, 6.2), "cone": (1, 1, 6.5), "poplar": (0.6, 1, 8),
}  # fmt: skip
# On the kerb: classes of a post and of the plates at its top, colours of the post, sets of plates.
# A plate: corners, x and y of its centre, half width and height, colour.
POSTS: dict[str, tuple] = {
    "lamp": (POLE, POLE, "metal", [[(4, 0.7, 0.1, 0.7, 0, INK), (4, 1.4, 0.1, 0.3, 0.08, WARM)]]),
    "light": (POLE, SIGN, "metal", [
        [(4, 0, 0, 0.2, 0.5, INK), (8, 0, y, 0.11, 0.11, colour)]
        for y, colour in ((0.32, RED), (0, AMBER), (-0.32, GREEN))
    ]),
    "bonnet": (VOID, VOID, "car", [[(4, 0, -1, 1, 0.5, INK)]]),
    "bin": (VOID, VOID, "car", [[(4, 0, 0, 0.36, 0.05, INK)]]),
    "sign": (POLE, SIGN, "metal", [
        [(16, 0, 0, 0.42, 0.42, RED), (16, 0, 0, 0.31, 0.31, WHITE), (4, 0, 0, 0.1, 0.14, INK)],
        [(3, 0, 0, 0.45, 0.52, RED), (3, 0, 0, 0.27, 0.31, WHITE)],
        [(8, 0, 0, 0.41, 0.41, RED), (4, 0, 0, 0.25, 0.065, WHITE)],
        [(4, 0, 0, 0.39, 0.39, BLUE), (4, 0, 0.05, 0.12, 0.2, WHITE)],
        [(4, 0, 0, 0.72, 0.3, BLUE), (4, 0, 0.08, 0.5, 0.04, WHITE)],
        [(4, 0, 0, 0.6, 0.25, YELLOW), (4, 0, 0, 0.4, 0.045, INK)],
    ]),
}  # fmt: skip
# Cars from the side, (y, z) where rear, boot, rear window, roof, windscreen, bonnet, front, end.
CARS = 0.01 * np.array([
    [(30, -210), (92, -215), (98, -160), (142, -95), (142, 35), (96, 105), (84, 200), (30, 215)],
    [(30, -180), (90, -190), (92, -188), (148, -155), (150, 30), (98, 100), (86, 175), (30, 185)],
    [(35, -230), (90, -233), (95, -234), (200, -225), (205, 110), (95, 175), (85, 235), (35, 240)],
])  # fmt: skip
# A box on the street and what fills it: half its width and length; a car at turn 0 drives ahead.
Thing = namedtuple("Thing", "kind x z wide long tall turn", defaults=[0.0])


def _mix(a: ArrayLike, b: ArrayLike, share: ArrayLike) -> np.ndarray:
    return np.asarray(a) + np.subtract(b, a) * share


class Painter:
    """The plan of a street, the light on it, the camera that sees it, and the canvas."""

    def __init__(self, index: int, seed: int, height: int, width: int):
        # A second generator for what depends on the number of pixels keeps the plan the same.
        self.rng, self.pixel_rng = (np.random.default_rng([seed, index, k]) for k in range(2))
        rng, self.height, self.width = self.rng, height * SCALE, width * SCALE
        self.image = Image.new("RGBA", (self.width, self.height))
        self.pen = ImageDraw.Draw(self.image)
        self.focal = 0.8 * min(self.width, 4 / 3 * self.height)
        self.centre = self.width * rng.uniform(0.42, 0.58)
        self.horizon = self.height * rng.uniform(0.40, 0.50)
        self.eye_x, self.eye_y = rng.uniform(-0.4, 2.2), rng.uniform(1.5, 2.3)
        self.bend = rng.normal(0, 0.0025)  # sideways shift is bend * z**2, then straight
        light = LIGHTS[rng.choice(len(LIGHTS), p=LIGHTS[:, -1])].astype(np.float32)
        self.zenith, self.low_sky, self.sunlight, self.ambient = light[:12].reshape(4, 3)
        turn, up, self.lit = rng.uniform(0, math.tau), math.radians(light[12]), float(light[13])
        sun = [math.cos(turn) * math.cos(up), math.sin(up), math.sin(turn) * math.cos(up)]
        self.sun = np.array(sun, np.float32)
        self.night = 1.1 * (self.lit > 0.1)  # the glow of lamps and signs
        self.haze = (0.004, 0.008, 0.022)[rng.choice(3, p=(0.45, 0.4, 0.15))] * rng.uniform(
            0.7, 1.3
        )
        self.haze_colour = _mix(
            self.low_sky, np.array([190, 194, 200], np.float32), 0.25 * (1 - self.lit)
        )
        self.parking = rng.random() < 0.7
        self.kerb = rng.uniform(3.2, 4.3) + 1.4 * self.parking  # half the width of the road
        self.wall = self.kerb + rng.uniform(2.4, 4.2)  # where the sidewalk ends
        self.crossing = rng.uniform(14, 40) if rng.random() < 0.5 else math.inf
        self.crossing_end = self.crossing + rng.uniform(7, 10)

    def pick(self, kind: str) -> np.ndarray:
        """Return one of the colours, slightly changed."""
        colours = bytes.fromhex(COLOURS[kind])
        k = 3 * self.rng.integers(len(colours) // 3)
        return np.maximum(list(colours[k : k + 3]) + self.rng.normal(0, 8, 3), 0)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Map points in metres [..., 3] to canvas pixels [..., 2]."""
        x, y, z = points[..., 0], points[..., 1], np.maximum(points[..., 2], NEAR)
        u = (x - self.eye_x) / z + self.bend * np.minimum(z, BEND_END)
        return self.focal * np.stack([u, (self.eye_y - y) / z], -1) + (self.centre, self.horizon)

    def paint(
        self, points: np.ndarray, colours: ArrayLike, label: int, up: ArrayLike, glow: ArrayLike = 0
    ) -> None:
        """Paint polygons [N, corners, 3] with the normal `up`, colour and class at once."""
        clear = np.exp(-self.haze * np.maximum(points[..., 2].mean(1), NEAR))[:, None]
        light = self.ambient + self.sunlight * np.maximum(np.dot(up, self.sun), 0)[..., None]
        inks = _mix(self.haze_colour, colours * np.maximum(light, glow), clear)
        inks = np.minimum(inks, 255).astype(int).tolist()
        rings = self.project(points).reshape(len(points), -1).tolist()
        for ring, ink in zip(rings, inks, strict=True):
            self.pen.polygon(ring, fill=(*ink, label))

    def plates(self, at: Sequence, rows: Sequence, label: int, size: ArrayLike = 1) -> None:
        """Paint plates that face the camera, at least one image pixel wide; see POSTS."""
        table = np.array([(*row[:5], sum(row[6:])) for row in rows])
        corners, x, y, wide, high, lean = table.T[..., None]
        turns = math.pi / corners * (2 * np.minimum(np.arange(24), corners - 1) + 1)
        u, v = np.sin(turns), -np.cos(turns)
        u, v = u / u.max(1, keepdims=True), v / v.max(1, keepdims=True)
        u = x + u * np.maximum(wide, 0.5 * SCALE * at[2] / self.focal) + v * lean
        points = np.stack([u, y + high * v, 0 * u], -1) * size + at
        glows = [[self.night * (label == SIGN or row[5] is WARM)] for row in rows]
        self.paint(points, [row[5] for row in rows], label, (0, 0.3, -0.9), glows)

    def noise(self, cells: int) -> np.ndarray:
        """Return smooth noise with this number of patches in the height, at a quarter canvas."""
        shape = (cells + 2, cells * self.width // self.height + 2)
        grid = Image.fromarray(self.pixel_rng.standard_normal(shape, np.float32))
        return np.asarray(
            grid.resize((self.width // 4, self.height // 4), Image.Resampling.BICUBIC)
        )


def compose(painter: Painter) -> list[Thing]:
    """Decide what stands where."""
    rng, kerb, wall, crossing = painter.rng, painter.kerb, painter.wall, painter.crossing
    things: list[Thing] = []

    def add(kind: str, x: float, z: float, turn: float = 0) -> None:
        wide, long, tall = BOXES[kind]
        things.append(Thing(kind, x, z, wide, long, tall * rng.uniform(0.85, 1.1), turn))

    for side in (-1, 1):
        # Kind, share of streets; z from, to, by; share kept; metres from the kerb, their spread.
        for kind, share, near, far, least, most, kept, gap, spread in (
            (rng.choice(("round", "cone", "poplar")), 0.75, 0, 80, 9, 17, 0.8, 0.9, 0.5),
            ("lamp", 1, 0, 90, 14, 22, 1, 0.35, 0),
            ("sign", 1, 2, 45, 5, 18, 1, 0.3, 0.4),
            ("pedestrian", 1, 5, 34, 0.5, 9, 1, 0.8, wall - kerb - 1.3),
            ("bin", 0.7, 4, 18, 3, 28, 1, 0.5, 0.3),
            ("car", painter.parking, 2, 70, 5.4, 8, 0.62, -1.05, 0),
            ("car", 1, 4, 70, 5, 40, 0.7, -kerb / 2 - painter.parking, 0),
        ):
            row = near + np.cumsum(rng.uniform(least, most, 20))
            for at in row[row < far] if rng.random() < share else ():
                if rng.random() < kept and not crossing - 3 < at < painter.crossing_end + 3:
                    add(kind, side * (kerb + gap + spread * rng.random()), at, math.pi * (side < 0))
        park, z, low = rng.random() < 0.16, rng.uniform(1, 5), rng.uniform(5, 10)
        while z < FAR:
            end = min(z + rng.uniform(8, 17), crossing if z < crossing else math.inf)
            if end - z > 3 and not park and rng.random() < 0.9:
                block = (side * (wall + 6), (z + end) / 2, 6, (end - z) / 2)
                things.append(Thing("building", *block, low + rng.gamma(1.6, 3.0)))
            else:
                for at in np.arange(z, end, 2.4):
                    add("hedge", side * (wall + 0.6), at)
                    if park or rng.random() < 0.4:
                        add("round", side * (wall + rng.uniform(2, 9)), at)
            z = painter.crossing_end + 1.5 if end == crossing else end + 3 * (rng.random() < 0.15)
        if crossing < FAR:
            add("light", side * (kerb + 0.4), crossing - 0.8)
            add("pedestrian", rng.uniform(-2, 2) * kerb, crossing - 2.5)
            add("car", rng.uniform(-3, 3) * kerb, crossing + 4 - 1.7 * side, side * math.pi / 2)
    if rng.random() < 0.7:  # the bonnet of the car that carries the camera
        ray, bottom = NEAR / painter.focal, painter.height - painter.horizon
        tall = painter.eye_y - ray * bottom + rng.uniform(0.04, 0.09)
        things.append(Thing("bonnet", painter.eye_x, NEAR, 0.7 * ray * painter.width, 0, tall))
    return things


def draw_sky(painter: Painter) -> None:
    """Paint clouds, the sun's glow, and what closes the view: pale towers, a ridge of trees."""
    rng, h, w = painter.rng, painter.height // 4, painter.width // 4  # smooth, so a quarter
    rows, columns = np.ogrid[:h, :w]
    up = np.clip(1 - 4 * rows / painter.horizon, 0, 1)[..., None]
    sky = _mix(painter.low_sky, painter.zenith, up ** rng.uniform(0.5, 1.0))
    cover = sum(painter.noise(k) * (7 / k) ** 0.75 for k in (7, 16, 36))
    cover = np.clip((cover - rng.uniform(-0.6, 1.4)) * 0.53, 0, 0.75)[..., None]
    cloud = 0.35 * painter.low_sky + 153 * np.minimum(1, painter.ambient + painter.sunlight)
    sky = _mix(sky, cloud - 16 * cover, cover)
    if painter.sun[2] > 0.2:  # the sun is ahead
        x, y = painter.focal / 4 * painter.sun[:2] / painter.sun[2]
        far = np.hypot(rows - painter.horizon / 4 + y / 2, columns - painter.centre / 4 - x)
        sky += 190 * painter.sunlight * np.exp(-far / (0.22 * h))[..., None]
    image = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8)).resize(painter.image.size)
    image.putalpha(SKY)
    painter.image.paste(image)
    far = ((150, 4, 14, 16, "wall", BUILDING), (125, 12, 17, 7, "evergreen", TREE))
    for z, corners, wide, high, colours, label in far:
        sizes = rng.uniform(0.4, 1.4, (20, 2)) * (wide, high)
        plates = [(corners, 16 * k - 152, 0, *sizes[k], painter.pick(colours)) for k in range(20)]
        painter.plates((0, 0, z), plates, label)


def sunlight(painter: Painter, things: list[Thing]) -> np.ndarray:
    """Return the share of sunlight, 0..1, on the ground; short shadows under a covered sky."""
    mask = Image.new("L", painter.image.size, 255)
    fall = -painter.sun * (1, 0, 1) * min(1, 3 * max(painter.sunlight)) / max(painter.sun[1], 0.35)
    base = [[(t.x + a * t.wide, 0, t.z + b * t.long) for a, b in CORNERS.tolist()] for t in things]
    near, tip = np.array(base), base + np.array([[thing.tall * fall] for thing in things])
    sides = np.stack([near, np.roll(near, 1, 1), np.roll(tip, 1, 1), tip], 2).reshape(-1, 4, 3)
    rings = np.maximum(np.concatenate([near, tip, sides]), (-math.inf, 0, 2.5))
    for ring in painter.project(rings).reshape(-1, 8).tolist():
        ImageDraw.Draw(mask).polygon(ring, fill=0)
    return np.asarray(mask.filter(ImageFilter.BoxBlur(painter.height / 300)), np.float32) / 255


def draw_ground(painter: Painter, things: list[Thing]) -> None:
    """Paint the road with its markings and the sidewalks, lit, in shadow, and in haze."""
    rng, kerb, crossing, top = painter.rng, painter.kerb, painter.crossing, int(painter.horizon) + 1
    rows, columns = (k.astype(np.float32) for k in np.ogrid[top : painter.height, : painter.width])
    z = painter.focal * painter.eye_y / np.maximum(rows + 0.5 - painter.horizon, 0.25)
    x = (columns + 0.5 - painter.centre) / painter.focal - painter.bend * np.minimum(z, BEND_END)
    x = x * z + painter.eye_x
    beside, slab = np.abs(x), rng.uniform(0.6, 1.1)
    line = np.abs(beside - 0.14) < 0.06 if rng.random() < 0.3 else (beside < 0.08) & (z % 6 < 3)
    line |= (np.abs(beside - kerb + 2.15) < 0.05) & (z % 6 < 1.5) & (rng.random() < 0.6)
    line &= (z < 90) & ((z < crossing - 6) | (z > painter.crossing_end + 3))
    line |= (x > 0) & (beside < kerb) & (np.abs(z - crossing + 4.4) < 0.2)
    line |= (np.abs(z - crossing + 2.4) < 1.2) & (beside < kerb - 0.3) & (x % 1.1 < 0.55)
    cross = (z > crossing) & (z < painter.crossing_end)
    gutter, joint = (np.abs(beside - kerb + 0.1) < 0.1) & ~cross, np.minimum(x % slab, z % slab)
    asphalt = rng.uniform(84, 132) + rng.uniform(-7, 7) * np.array([1, 0, -1])
    paving, white = rng.uniform(140, 180) + np.array([6, 0, -8]), _mix(asphalt, WHITE, 0.8)
    colours = np.array(
        [white, 0.7 * asphalt, asphalt, 1.2 * paving, 0.82 * paving, paving], np.float32
    )
    masks = (line, gutter, (beside < kerb) | cross, beside < kerb + 0.2, (joint < 0.05) & (z < 24))
    kind = np.select(masks, range(5), 5)
    gravel = painter.pixel_rng.standard_normal((64, 64), np.float32) * 0.06
    rough = 1 + gravel[(x * 16).astype(int) & 63, (z * 9).astype(int) & 63] / (1 + (z / 14) ** 2)
    lit, clear = sunlight(painter, things)[top:, :, None], np.exp(-painter.haze * z)[..., None]
    light = lit * painter.sunlight * painter.sun[1] * 1.25 + (0.62 + 0.38 * lit) * painter.ambient
    ground = _mix(painter.haze_colour, colours[kind] * light * rough[..., None], clear)
    pixels = np.dstack([np.clip(ground, 0, 255), np.where(kind < 3, ROAD, SIDEWALK)])
    painter.image.paste(Image.fromarray(pixels.astype(np.uint8)), (0, top))


def draw_building(painter: Painter, thing: Thing) -> None:
    """Paint a block of flats: the gable towards the camera and the wall along the street."""
    rng, side, tall, deep = painter.rng, math.copysign(1, thing.x), thing.tall, 2 * thing.long
    corner, colour = (thing.x - side * thing.wide, 0, thing.z - thing.long), painter.pick("wall")
    cloth, trim = painter.pick("car"), _mix(colour, WHITE, rng.uniform(0.2, 0.7))
    storey, shop, bay = rng.uniform(2.7, 3.4), rng.random() < 0.45, rng.uniform(1.9, 3.4)
    wide, high = rng.uniform(0.4, 0.68) * bay, rng.uniform(0.45, 0.65) * storey
    for length, up, along in ((12, (0, 0, -1), (side, 0, 0)), (deep, (-side, 0, 0), (0, 0, 1))):
        # Panels: s from and to along the wall, y from and to, colour, glow.
        rows: list = [(s, min(s + 4, length), 0, tall, colour, 0) for s in np.arange(0, length, 4)]
        rows += [(0, length, 0, 0.5, 0.7 * colour, 0), (0, length, tall - 0.35, tall, trim, 0)]
        for y in storey * np.arange(1 if shop else 0, int(tall / storey)) + 0.8:
            rows.append((0, length, y - 0.85, y - 0.7, trim, 0))
            for s in np.arange((length % bay + bay - wide) / 2, length - wide, bay):
                tone, lit = rng.uniform(0, 0.4), rng.random() < painter.lit
                glass = (255, 206, 120) if lit else _mix((38, 46, 58), painter.low_sky, tone)
                rows.append((s - 0.1, s + wide + 0.1, y - 0.12, y + high + 0.1, trim, 0))
                rows.append((s, s + wide, y, y + high, glass, lit * (0.75 + 0.6 * tone)))
        if shop:  # glass, and an awning
            rows.append((0.4, length - 0.4, 0.5, storey * 0.7, (84, 80, 70), 2 * painter.night))
            rows.append((0.2, length - 0.2, storey * 0.68, storey, cloth, 0))
        panels = np.array([row[:4] for row in rows])
        s, y = panels[:, [0, 1, 1, 0], None], panels[:, [2, 2, 3, 3], None]
        inks, glows = [row[4] for row in rows], [row[5:] for row in rows]
        painter.paint(s * along + y * (0, 1, 0) + corner, inks, BUILDING, up, glows)


def draw_tree(painter: Painter, thing: Thing) -> None:
    """Paint a trunk and a crown of leafy clumps, lighter at the top and on the sunny side."""
    rng, at, far, hedge = painter.rng, (thing.x, 0, thing.z), thing.z > 30, thing.kind == "hedge"
    tall, wide, high = thing.tall, 1.55 * thing.wide, 0.35 * thing.tall
    if not hedge:
        trunk = (4, 0, tall / 3, 0.15, tall / 3, (88, 70, 56), rng.normal(0, 0.06))
        painter.plates(at, [trunk], TREE)
    count = (11 if far else 34) // (4 if hedge else 1)
    turns, out = rng.uniform(0, math.tau, count), rng.random(count) ** 0.5
    up = np.sort(out * np.sin(turns))  # from the bottom of the crown to its top
    out *= np.cos(turns) * (0.55 - 0.5 * up if thing.kind == "cone" else 1)
    light = 0.76 + 0.26 * up + 0.24 * out * painter.sun[0] + rng.normal(0, 0.07, count)
    size = (wide * wide * high) ** (1 / 3) * rng.uniform(0.26, 0.46, count) * (1.3 if far else 1)
    radius = size[:, None] * rng.uniform(0.6, 1.15, (count, 9))
    x = (out * wide)[:, None] + radius * np.cos(0.7 * np.arange(9))
    y = np.maximum(0.2, tall - high + up * high)[:, None] + radius * np.sin(0.7 * np.arange(9))
    leaf = painter.pick("evergreen" if hedge or thing.kind == "cone" else "leaves")
    painter.paint(np.stack([x, y, 0 * x], -1) + at, leaf * light[:, None], TREE, (0, 0.8, -0.3))


def draw_post(painter: Painter, thing: Thing) -> None:
    """Paint a lamp, sign, traffic light, bin or the bonnet: a post with plates at its top."""
    post, label, colours, kinds = POSTS[thing.kind]
    corners, half = 24 if thing.kind == "bonnet" else 4, thing.tall / 2
    rows = [(corners, 0, half, thing.wide, half, painter.pick(colours))]
    painter.plates((thing.x, 0, thing.z), rows, post)
    rows, towards = kinds[painter.rng.integers(len(kinds))], (-math.copysign(1, thing.x), 1, 1)
    painter.plates((thing.x, thing.tall, thing.z), rows, label, towards)


def draw_car(painter: Painter, thing: Thing) -> None:
    """Paint an outline extruded to the car's width, with windows, wheels, lamps and a plate."""
    outline, colour = CARS[painter.rng.choice(3, p=(0.45, 0.38, 0.17))], painter.pick("car")
    glass = _mix((30, 36, 44), painter.low_sky, 0.25)
    faces: list[tuple] = []  # corners (u, y, w) with w ahead, colour, glow
    for k in range(7):
        y, w = outline[[k, k + 1, k + 1, k]].T
        ring = np.stack([(-0.88, -0.88, 0.88, 0.88), y, w], -1)
        faces.append((ring, glass if k in (2, 4) else colour, 0))
    middle, turns = outline[2:6].mean(0), np.linspace(0, math.tau, 12, endpoint=False)
    window = middle + (outline[2:6] - middle) * (0.7, 0.84)
    shapes = [
        (outline, colour),
        (window, glass),
        (np.add(CORNERS * (0.2, 0.06), (1.18, -0.2)), colour),
    ]
    for radius, grey in ((0.36, 20), (0.2, 150)):
        wheel = (0.34, 0) + radius * np.stack([np.sin(turns), -np.cos(turns)], -1)
        shapes += [(np.add(wheel, (0, w)), np.full(3, grey)) for w in (-1.3, 1.3)]
    for side in (-1, 1):
        faces += [(np.insert(ring[::side], 0, 0.88 * side, 1), ink, 0) for ring, ink in shapes]
        end, lamp = (outline[7, 1] + 0.02, WARM) if side > 0 else (outline[1, 1] - 0.02, RED)
        for u, y, wide, high, ink, glow in (
            (0.7, 0.15, 0.13, 0.2, INK, 0),
            (0, 0.36, 0.88, 0.06, INK, 0),
            (0, 0.55, 0.25, 0.07, WHITE, 0),
            (0.72, 0.74, 0.14, 0.08, lamp, painter.night),
        ):
            box = np.insert(CORNERS[::side] * (wide, high) + (0, y), 2, end, 1)
            faces += [(np.add(box, (shift, 0, 0)), ink, glow) for shift in (-u, u)]
    cos, sin, roof = math.cos(thing.turn), math.sin(thing.turn), outline[:, 0].max()
    rings = [ring[np.minimum(np.arange(12), len(ring) - 1)] for ring, _, _ in faces]
    u, y, w = np.moveaxis(np.array(rings), -1, 0)
    u = u * (1 - 0.2 * np.clip((y - 0.95) / (roof - 0.95), 0, 1))  # narrower towards the roof
    points = np.stack([thing.x + u * cos + w * sin, y, thing.z + w * cos - u * sin], -1)
    here = painter.project(points)
    ahead = np.roll(here, -1, 1)
    seen = (here[..., 0] * ahead[..., 1] - ahead[..., 0] * here[..., 1]).sum(1) > 0  # outsides
    up = np.cross(points, np.roll(points, -1, 1)).sum(1)
    up, colours = up / np.linalg.norm(up, axis=1, keepdims=True), np.array([f[1] for f in faces])
    glows = np.array([f[2:] for f in faces])
    painter.paint(points[seen], colours[seen], CAR, up[seen], glows[seen])


def draw_pedestrian(painter: Painter, thing: Thing) -> None:
    """Paint a walker in stride."""
    rng, coat, legs = painter.rng, painter.pick("clothes"), painter.pick("clothes") * 0.7
    step, hem, skin = rng.uniform(0.08, 0.32), rng.choice((0.62, 0.8)), painter.pick("skin")
    rows = (
        (4, -0.25, 1.12, 0.055, 0.25, 0.75 * coat, step / 4),
        (4, -step / 2, 0.44, 0.075, 0.44, 0.7 * legs, step / 2),
        (4, step / 2, 0.44, 0.075, 0.44, legs, -step / 2),
        (8, 0, (hem + 1.48) / 2, 0.2, (1.48 - hem) / 2, coat),
        (4, 0.22, 1.12, 0.055, 0.25, _mix(coat, WHITE, 0.12), -step / 4),
        (10, 0, 1.6, 0.135, 0.135, 0.4 * skin),
        (10, 0.03, 1.57, 0.1, 0.1, skin),
    )
    size = thing.tall / 1.7 * np.array([rng.choice((-1, 1)), 1, 1])
    painter.plates((thing.x, 0, thing.z), rows, PEDESTRIAN, size)


def expose(painter: Painter) -> np.ndarray:
    """Apply what the camera does: surface grain, halos, vignette, blur, sensor noise."""
    rng, noise, canvas = painter.rng, painter.pixel_rng, np.asarray(painter.image)
    kind = np.minimum(canvas[..., 3], len(CLASSES))
    patches = Image.fromarray(painter.noise(14) + np.float32(0.8) * painter.noise(45))
    grain = np.asarray(patches.resize(painter.image.size, Image.Resampling.BILINEAR))
    grain = 1 + GRAIN[kind] * (grain + noise.standard_normal(kind.shape, np.float32))
    surface = np.clip(canvas[..., :3] * grain[..., None], 0, 255).astype(np.uint8)
    rgb = np.array(Image.fromarray(surface).reduce(SCALE), np.float32)
    h, w = rgb.shape[:2]
    y, x = np.linspace(-1, 1, h)[:, None, None], np.linspace(-1, 1, w)[:, None]
    vignette = 1.04 - 0.16 * (y**2 + x**2) + rng.normal(0, 0.06) * y + rng.normal(0, 0.06) * x
    gain = (122 / rgb.mean()) ** (0.7 - 0.5 * painter.lit) * rng.uniform(0.9, 1.1)
    rgb *= vignette * gain * rng.normal(1, 0.03, 3)
    bright = Image.fromarray((np.clip(rgb - 190, 0, 65) * 1.6).astype(np.uint8)).reduce(4)
    halo = bright.filter(ImageFilter.GaussianBlur(h / 180)).resize((w, h))
    image = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    soft = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.6) * h / 192))
    rgb = np.asarray(soft) + 0.6 * np.asarray(halo, np.float32)
    rgb += noise.standard_normal(rgb.shape, np.float32) * rng.uniform(2, 6)
    return np.clip(rgb, 0, 255).astype(np.uint8)


def _majority(label: np.ndarray) -> np.ndarray:
    """Return the commonest class in each SCALE x SCALE block; the larger id in a tie."""
    blocks = np.stack([label[i::SCALE, j::SCALE] for i in range(SCALE) for j in range(SCALE)])
    ids = np.array([VOID, *range(len(CLASSES) - 1, -1, -1)], np.uint8)
    return ids[np.stack([(blocks == k).sum(0, dtype=np.uint8) for k in ids]).argmax(0)]


def draw_scene(
    index: int, seed: int = 0, size: tuple[int, int] = (192, 256)
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street scene, the same one for the same index and seed, at any size.

    Args:
        index: number of the scene, 0 or more.
        seed: seed of the set of scenes, 0 or more.
        size: height and width in pixels, 64 or more each.

    Returns:
        The image, uint8 RGB, and its label, uint8 ids of `CLASSES` or `VOID`.
    """
    fits = min(size) >= 64 and min(index, seed) >= 0
    expect(fits, "draw_scene", "size >= 64, index and seed >= 0", (size, index, seed))
    painter = Painter(index, seed, *size)
    things = compose(painter)
    draw_sky(painter)
    draw_ground(painter, things)
    draw = {"building": draw_building, "car": draw_car, "pedestrian": draw_pedestrian}
    draw |= dict.fromkeys(POSTS, draw_post)
    # A building is as far as its far side: what stands along its wall is painted after it.
    for thing in sorted(things, key=lambda t: -t.z - t.long * (t.kind == "building")):
        draw.get(thing.kind, draw_tree)(painter, thing)
    return expose(painter), _majority(np.asarray(painter.image)[..., 3])


def write_folder(
    root: str | Path,
    train: int = 200,
    val: int = 40,
    seed: int = 0,
    size: tuple[int, int] = (192, 256),
) -> Path:
    """Write scenes as a folder of PNG files, or keep a complete one.

    The folder holds `images/{train,val}/scene_00000.png`, `labels/{train,val}/scene_00000.png`
    (class ids), `classes.json`, and `street_scenes.json` with the arguments and fingerprints. A
    complete folder with the same arguments is kept, one with other arguments is drawn again.

    Raises:
        DataError: files were changed since they were drawn, other files are there, or an argument
            is out of range.
    """
    fits = 0 <= train <= VAL_START and val >= 0
    expect(fits, "write_folder", f"train 0 to {VAL_START} and val >= 0", (train, val))
    root = Path(root)
    source = {"edition": EDITION, "train": train, "val": val, "seed": seed, "size": list(size)}
    scenes = {f"train/scene_{k:05d}.png": k for k in range(train)}
    scenes |= {f"val/scene_{k:05d}.png": VAL_START + k for k in range(val)}
    kinds, classes = ("images", "labels"), root / "classes.json"
    files = {root / kind / name for kind in kinds for name in scenes}
    there = {path for kind in kinds for path in root.glob(f"{kind}/*/scene_{'[0-9]' * 5}.png")}
    folder = FolderWrittenOnce(root, "street_scenes.json", source, file_fingerprint)
    if folder.is_complete() and there == files and classes.exists():
        return root
    with folder.writing() as written:
        for path in there - files:
            path.unlink()
        for name, index in progress_bar(scenes.items(), "drawing", unit="scene"):
            for kind, pixels in zip(kinds, draw_scene(index, seed, size), strict=True):
                with atomic_path(root / kind / name) as temporary:
                    Image.fromarray(pixels).save(temporary)
                written.append(f"{kind}/{name}")
        names = {"classes": CLASSES, "palette": PALETTE, "void": VOID}
        write_text(classes, json.dumps(names, indent=1))
    return root
