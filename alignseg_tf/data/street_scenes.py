"""The embedded data set: drawn street scenes with exact labels, nothing to download.

A scene is a small world in metres, seen by a camera in a car. x is to the right of the middle of
the road, y is up from the ground, z is ahead of the camera. `compose` places the things (buildings,
trees, cars, pedestrians, lamp posts, signs, bins), and the `draw_*` functions, one for each kind of
thing, paint them from the farthest to the nearest. Light comes from a sun with a time of day; it
shades every face, casts shadows on the ground, and fades into the haze with the distance.

Labels are exact because there is one drawing: the canvas is an RGBA picture whose fourth channel
is the class id, so that each polygon writes its colour and its class to the same pixels. The canvas
is twice the size asked for. The picture is its mean over 2 x 2 pixels, the label the class that
most of the four have; in a tie the larger id wins, which favours the thin classes.

A scene depends on its index and the seed only, so the same scene can be drawn at any size.
"""

import functools
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from alignseg_tf.files import has_keys, write_bytes
from alignseg_tf.fingerprints import listed, named_fingerprints

CLASSES: tuple[str, ...] = (
    "sky", "building", "tree", "road", "sidewalk", "pole", "sign", "car", "pedestrian",
)  # fmt: skip
PALETTE: tuple[tuple[int, int, int], ...] = (
    (70, 130, 180), (86, 86, 92), (107, 142, 35), (128, 64, 128), (244, 35, 232),
    (255, 255, 255), (250, 215, 0), (0, 20, 190), (220, 20, 60),
)  # fmt: skip
VOID = 255
SKY, BUILDING, TREE, ROAD, SIDEWALK, POLE, SIGN, CAR, PEDESTRIAN = range(len(CLASSES))

VAL_START = 1_000_000  # the index of the first validation scene: apart from all training scenes
KINDS = ("images", "labels")  # the folders that write_folder makes
EDITION = 1  # of the drawing; folders that another edition wrote are drawn anew
SCALE = 2  # canvas pixels per picture pixel
NEAR = 1.2  # metres; nothing is drawn nearer than this
FAR = 95.0  # where the street ends
BEND_END = 70.0

Colour = tuple[float, float, float]
Point = tuple[float, float, float]
# How much a class's brightness varies from pixel to pixel, and in patches; void comes last.
GRAIN = np.array([0.0, 0.05, 0.17, 0.04, 0.04, 0.04, 0.02, 0.025, 0.05, 0.02], np.float32)
PATCH = np.array([0.0, 0.055, 0.13, 0.035, 0.045, 0.04, 0.03, 0.04, 0.05, 0.02], np.float32)


class Light(NamedTuple):
    """A time of day. The sky's colours are 0..255; sun and ambient multiply a surface's colour."""

    zenith: Colour
    horizon: Colour
    sun: Colour
    ambient: Colour
    elevation: float  # of the sun, in degrees
    lit: float  # the share of windows and lamps that are lit


LIGHTS = (
    Light((64, 122, 200), (188, 214, 234), (0.72, 0.68, 0.60), (0.50, 0.55, 0.63), 52, 0.0),
    Light((104, 152, 206), (248, 226, 196), (0.82, 0.66, 0.46), (0.45, 0.49, 0.57), 32, 0.03),
    Light((92, 98, 158), (255, 172, 106), (0.95, 0.55, 0.28), (0.42, 0.40, 0.48), 22, 0.15),
    Light((158, 166, 176), (208, 211, 213), (0.16, 0.16, 0.16), (0.68, 0.70, 0.72), 60, 0.08),
    Light((34, 44, 92), (206, 128, 118), (0.06, 0.04, 0.05), (0.33, 0.35, 0.49), 30, 0.5),
)
WALLS: tuple[Colour, ...] = (
    (176, 104, 78), (150, 86, 70), (206, 184, 148), (196, 190, 180), (142, 144, 148),
    (112, 114, 120), (214, 168, 112), (168, 176, 184), (222, 212, 196), (128, 140, 128),
)  # fmt: skip
PAINTS: tuple[Colour, ...] = (
    (176, 32, 36), (36, 70, 132), (228, 228, 226), (32, 34, 38), (128, 132, 138), (92, 96, 102),
    (196, 198, 202), (34, 92, 70), (226, 170, 40), (84, 128, 168),
)  # fmt: skip
LEAVES: tuple[Colour, ...] = (
    (72, 112, 48), (96, 128, 56), (58, 98, 62), (120, 138, 60), (84, 120, 40), (206, 140, 50),
    (188, 88, 48), (222, 168, 182),
)  # fmt: skip
CLOTHES: tuple[Colour, ...] = (
    (40, 44, 56), (60, 84, 140), (180, 60, 50), (120, 116, 108), (214, 206, 190), (70, 96, 70),
    (206, 160, 60), (120, 70, 110), (44, 110, 130),
)  # fmt: skip
SKIN: tuple[Colour, ...] = ((236, 196, 166), (198, 146, 112), (140, 94, 68), (96, 64, 48))
# Cars from the side, rear to front: (z, y) in metres and what the edge that starts there is.
CARS = (
    ((-2.1, 0.3, "rear"), (-2.15, 0.92, "body"), (-1.6, 0.98, "glass"), (-0.95, 1.42, "body"),
     (0.35, 1.42, "glass"), (1.05, 0.96, "body"), (2.0, 0.84, "front"), (2.15, 0.3, "under")),
    ((-1.8, 0.3, "rear"), (-1.9, 0.92, "glass"), (-1.55, 1.48, "body"), (0.3, 1.5, "glass"),
     (1.0, 0.98, "body"), (1.75, 0.86, "front"), (1.85, 0.3, "under")),
    ((-2.3, 0.35, "rear"), (-2.35, 1.15, "glass"), (-2.25, 2.0, "body"), (1.1, 2.05, "glass"),
     (1.8, 1.15, "body"), (2.35, 1.0, "front"), (2.4, 0.35, "under")),
)  # fmt: skip


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    r, g, b_ = (p + (q - p) * share for p, q in zip(a, b, strict=True))
    return (r, g, b_)


def _rgb(colour: Colour) -> np.ndarray:
    return np.array(colour, np.float32)


WHITE, RED, BLUE, INK = (240, 240, 238), (206, 34, 38), (30, 84, 176), (20, 20, 20)
# Traffic signs: plates (radius, corners, colour), then bars (x0, y0, x1, y1, thickness, colour).
SIGNS: tuple[tuple[tuple, tuple], ...] = (
    (((0.42, 16, RED), (0.31, 16, WHITE)),
     ((-0.1, -0.14, -0.1, 0.14, 0.09, INK), (0.1, -0.14, 0.1, 0.14, 0.09, INK))),
    (((0.52, 3, RED), (0.31, 3, WHITE)), ((0, -0.08, 0, 0.14, 0.07, INK),)),
    (((0.44, 8, WHITE), (0.39, 8, RED)), ((-0.25, 0, 0.25, 0, 0.13, WHITE),)),
    (((0.55, 4, BLUE),),
     ((-0.08, -0.25, -0.08, 0.25, 0.09, WHITE), (-0.06, 0.1, 0.16, 0.1, 0.24, WHITE))),
    ((), ((-0.7, 0, 0.75, 0, 0.6, BLUE), (-0.5, 0.08, 0.5, 0.08, 0.08, WHITE))),
    ((), ((-0.6, 0, 0.6, 0, 0.5, (236, 196, 40)), (-0.4, 0, 0.4, 0, 0.09, INK))),
    (((0.42, 16, BLUE),), ((-0.2, 0, 0.2, 0, 0.1, WHITE), (0.12, 0.1, 0.2, 0, 0.1, WHITE))),
)  # fmt: skip


class Painter:
    """A canvas, the camera that maps metres to it, and the light that falls on what is painted."""

    def __init__(self, rng: np.random.Generator, pixel_rng: np.random.Generator, h: int, w: int):
        self.rng, self.pixel_rng = rng, pixel_rng
        self.height, self.width = h * SCALE, w * SCALE
        self.focal = 0.8 * min(self.width, 4 / 3 * self.height)
        self.horizon = self.height * rng.uniform(0.40, 0.50)
        self.centre = self.width * rng.uniform(0.42, 0.58)
        self.eye_x, self.eye_y = rng.uniform(-0.4, 2.2), rng.uniform(1.5, 2.3)
        self.bend = rng.normal(0, 0.0025)  # sideways shift is bend * z**2, then straight
        self.light = LIGHTS[rng.choice(len(LIGHTS), p=(0.27, 0.22, 0.2, 0.19, 0.12))]
        azimuth, elevation = rng.uniform(0, math.tau), math.radians(self.light.elevation)
        self.sun = (
            math.cos(azimuth) * math.cos(elevation),
            math.sin(elevation),
            math.sin(azimuth) * math.cos(elevation),
        )
        self.haze = rng.choice((0.004, 0.008, 0.022), p=(0.45, 0.4, 0.15)) * rng.uniform(0.7, 1.3)
        self.haze_colour = _mix(self.light.horizon, (190, 194, 200), 0.25 * (1 - self.light.lit))
        self.canvas(Image.new("RGBA", (self.width, self.height)))

    def canvas(self, image: Image.Image) -> None:
        """Goes on with this RGBA picture, whose alpha is the class."""
        self.image, self.pen = image, ImageDraw.Draw(image)

    def pick(self, options: tuple[Colour, ...], spread: float = 10) -> Colour:
        """One of the colours, slightly changed."""
        base = options[int(self.rng.integers(len(options)))]
        r, g, b = np.maximum(base + self.rng.normal(0, spread, 3), 0).tolist()
        return (r, g, b)

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Where a point of the world, in metres, lies on the canvas, in pixels."""
        z = max(z, NEAR)
        return (
            self.centre + self.focal * ((x - self.eye_x) / z + self.bend * min(z, BEND_END)),
            self.horizon + self.focal * (self.eye_y - y) / z,
        )

    def shade(self, colour: Colour, normal: Point, z: float, glow: float = 0) -> tuple[int, ...]:
        """The colour of a lit surface as it is seen from z >= 0 metres away."""
        dot = normal[0] * self.sun[0] + normal[1] * self.sun[1] + normal[2] * self.sun[2]
        facing, clear = max(0.0, dot), math.exp(-self.haze * z)
        (r, g, b), (ar, ag, ab), (sr, sg, sb) = colour, self.light.ambient, self.light.sun
        far_r, far_g, far_b = self.haze_colour
        red = r * max(glow, ar + sr * facing) * clear + far_r * (1 - clear)
        green = g * max(glow, ag + sg * facing) * clear + far_g * (1 - clear)
        blue = b * max(glow, ab + sb * facing) * clear + far_b * (1 - clear)
        return (min(255, int(red)), min(255, int(green)), min(255, int(blue)))

    def face(
        self, points: list[Point], colour: Colour, label: int, normal: Point, glow: float = 0
    ) -> None:
        """Paints a flat polygon of the world: its colour and its class with one stroke."""
        ink = (*self.shade(colour, normal, max(points[0][2], NEAR), glow), label)
        self.pen.polygon([self.project(*point) for point in points], fill=ink)

    def faces(
        self, points: np.ndarray, colours: list[Colour], label: int, normal: Point,
        glows: list[float] | None = None,
    ) -> None:  # fmt: skip
        """Paints many polygons of as many corners, `(polygons, corners, 3)`, in their order."""
        z = np.maximum(points[..., 2], NEAR)
        bend = self.bend * np.minimum(z, BEND_END)
        u = self.centre + self.focal * ((points[..., 0] - self.eye_x) / z + bend)
        v = self.horizon + self.focal * (self.eye_y - points[..., 1]) / z
        rings, depths = np.stack([u, v], -1).reshape(len(points), -1).tolist(), z.mean(1).tolist()
        for ring, colour, depth, glow in zip(
            rings, colours, depths, glows or [0.0] * len(rings), strict=True
        ):
            self.pen.polygon(ring, fill=(*self.shade(colour, normal, depth, glow), label))

    def limb(
        self, a: Point, b: Point, thick: float, colour: Colour, label: int, glow: float = 0
    ) -> None:
        """Paints a bar from a to b that is `thick` metres wide, at least a pixel of the picture."""
        width = max(SCALE, round(thick * self.focal / max(a[2], NEAR)))
        ink = (*self.shade(colour, (-0.5, 0.3, -0.8), a[2], glow), label)
        self.pen.line([self.project(*a), self.project(*b)], fill=ink, width=width)

    def disc(self, at: Point, radius: float, colour: Colour, label: int, sides: int = 16) -> None:
        """Paints a regular polygon that faces the camera."""
        turn = math.pi / sides
        ring = [
            (
                at[0] + radius * math.sin(turn * (2 * k + 1)),
                at[1] - radius * math.cos(turn * (2 * k + 1)),
                at[2],
            )
            for k in range(sides)
        ]
        self.face(ring, colour, label, (0, 0.3, -0.9))

    def noise(self, height: int, width: int, *octaves: tuple[float, float]) -> np.ndarray:
        """Smooth noise, the sum of octaves (patches in a height of the canvas, spread)."""
        coarse = (-(-width // 4), -(-height // 4))
        total = np.zeros(coarse[::-1], np.float32)
        for cells, spread in octaves:
            shape = (2 + int(cells * height / self.height), 2 + int(cells * width / self.height))
            grid = Image.fromarray(spread * self.pixel_rng.standard_normal(shape, np.float32))
            total += np.asarray(grid.resize(coarse, Image.Resampling.BICUBIC))
        fine = Image.fromarray(total).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(fine)


@dataclass(frozen=True)
class Thing:
    """Something that stands on the street; footprint is (x0, x1, z0, z1) and casts the shadow."""

    z: float  # the depth of its far side: things are painted in falling order
    draw: functools.partial[None]  # of a draw function, short of the painter
    footprint: tuple[float, float, float, float]
    height: float


@dataclass(frozen=True)
class Street:
    """The ground plan: half the road's width, where the sidewalk ends, and the crossing street."""

    kerb: float
    wall: float
    crossing: float  # z at which a crossing street begins; beyond FAR means none
    crossing_width: float
    things: list[Thing]


def compose(painter: Painter) -> Street:
    """Decides what stands where."""
    rng = painter.rng
    parking = rng.random() < 0.7
    kerb = rng.uniform(4.6, 5.8) if parking else rng.uniform(3.2, 4.4)
    wall = kerb + rng.uniform(2.4, 4.2)
    crossing = rng.uniform(14, 40) if rng.random() < 0.5 else 10 * FAR
    width = rng.uniform(7, 10)
    things: list[Thing] = []

    def add(
        draw: Callable[..., None], x: float, z: float, half: float, tall: float, **how: object
    ) -> None:
        around = (x - half, x + half, z - half, z + half)
        things.append(Thing(z + half, functools.partial(draw, x=x, z=z, **how), around, tall))

    def add_car(x: float, z: float, turn: float) -> None:
        long, wide = (2.05, 0.9) if abs(math.cos(turn)) > 0.7 else (0.9, 2.05)
        around, paint = (x - wide, x + wide), functools.partial(draw_car, x=x, z=z, turn=turn)
        things.append(Thing(z + 0.9, paint, (*around, z - long, z + long), 1.4))

    def free(z: float, margin: float = 1.5) -> bool:
        return not crossing - margin < z < crossing + width + margin

    for side in (-1, 1):
        park = rng.random() < 0.16
        z = rng.uniform(1, 5)
        low = rng.uniform(5, 10)
        while z < FAR:
            end = z + rng.uniform(8, 17)
            if z < crossing < end:
                end = crossing
            if crossing <= z < crossing + width:
                z = crossing + width + 1.5
                continue
            tall = low + rng.gamma(1.6, 3.0)
            if end - z > 3 and not park and rng.random() < 0.9:
                block = functools.partial(
                    draw_building, side=side, wall=wall, z0=z, z1=end, tall=tall
                )
                x0, x1 = sorted((side * wall, side * (wall + 12)))
                things.append(Thing(end, block, (x0, x1, z, end), tall))
            elif end - z > 2:
                for at in np.arange(z, end, 1.9):
                    add(draw_tree, side * (wall + 0.6), at, 0.8, 1.6, kind="hedge")
                    if park or rng.random() < 0.4:
                        add(draw_tree, side * (wall + rng.uniform(2, 9)), at, 1.5, 7, kind="round")
            z = end + (rng.uniform(2, 4) if rng.random() < 0.15 else 0)

        kind = ("round", "round", "cone", "poplar")[int(rng.integers(4))]
        if rng.random() < 0.75:
            for z in np.arange(rng.uniform(6, 14), 80, rng.uniform(9, 17)):
                if free(z) and rng.random() < 0.8:
                    add(draw_tree, side * (kerb + rng.uniform(0.9, 1.4)), z, 1.2, 5.5, kind=kind)
        for z in np.arange(rng.uniform(7, 22), 90, rng.uniform(14, 22)):
            if free(z):
                add(draw_lamp, side * (kerb + 0.35), z, 0.07, 6.5, side=side)
        for z in rng.uniform(7, 45, rng.integers(2, 5)):
            if free(z, 0.5):
                add(draw_sign, side * (kerb + rng.uniform(0.3, 0.7)), z, 0.06, 2.6)
        if crossing < FAR:
            add(draw_traffic_light, side * (kerb + 0.4), crossing - 0.8, 0.07, 3.4)
        for z in rng.uniform(6.5, 34, rng.integers(2, 7)):
            x = side * rng.uniform(kerb + 0.8, wall - 0.5)
            for _ in range(2 if rng.random() < 0.3 else 1):
                add(draw_pedestrian, x, z, 0.25, 1.7)
                x += 0.6
        if rng.random() < 0.6:
            z = rng.uniform(7, 18)
            add(draw_bin, side * (kerb + rng.uniform(0.5, 0.8)), z, 0.3, 0.9)
        z = rng.uniform(6.5, 14)
        while parking and z < 70:
            if free(z, 5) and rng.random() < 0.62:
                turn = 0 if side > 0 or rng.random() < 0.2 else math.pi
                x = side * (kerb - 1.05)
                add_car(x, z, turn + rng.normal(0, 0.02))
            z += rng.uniform(5.4, 8)
    lane = (kerb - 2.1 if parking else kerb) / 2
    for side, count in ((1, rng.integers(0, 3)), (-1, rng.integers(0, 4))):
        z = rng.uniform(11, 24) if side > 0 else rng.uniform(8, 20)
        for _ in range(int(count)):
            if free(z, 2):
                turn = (0 if side > 0 else math.pi) + rng.normal(0, 0.03)
                add_car(side * lane, z, turn)
            z += rng.uniform(8, 25)
    if crossing < FAR:
        for _ in range(int(rng.integers(0, 3))):
            x, turn = rng.uniform(-kerb, kerb), math.copysign(math.pi / 2, rng.normal())
            if rng.random() < 0.4:
                add_car(2 * x, crossing + width / 2 - turn, turn)
            else:
                add(draw_pedestrian, x, crossing - rng.uniform(1.8, 3.2), 0.25, 1.7)
    elif rng.random() < 0.35:
        add(draw_pedestrian, rng.uniform(-kerb, kerb), rng.uniform(12, 28), 0.25, 1.7)
    return Street(kerb, wall, crossing, width, things)


def draw_sky(painter: Painter) -> Image.Image:
    """A gradient with clouds and the sun's glow."""
    rng, light = painter.rng, painter.light
    h, w = painter.height // 4, painter.width // 4  # a quarter of the canvas: the sky is smooth
    horizon, zenith = _rgb(light.horizon), _rgb(light.zenith)
    up = np.clip(1 - 4 * np.arange(h, dtype=np.float32) / painter.horizon, 0, 1)[:, None, None]
    sky = horizon + (zenith - horizon) * up ** rng.uniform(0.5, 1.0) + np.zeros((h, w, 1))
    cloud = painter.noise(4 * h, 4 * w, (7, 1.0), (16, 0.5), (36, 0.3))[::4, ::4]
    cover = np.clip((cloud - rng.uniform(-0.6, 1.4)) * 0.7, 0, 1)[..., None] * 0.75
    lit = 0.35 * horizon + 0.65 * 235 * np.minimum(1, _rgb(light.ambient) + _rgb(light.sun))
    sky += (lit - 16 * cover - sky) * cover
    if painter.sun[2] > 0.2:  # the sun is ahead: brighten the sky around it
        x = painter.centre + painter.focal * painter.sun[0] / painter.sun[2]
        y = painter.horizon - painter.focal * painter.sun[1] / painter.sun[2] * 0.5
        rows, columns = np.ogrid[:h, :w]
        far = np.hypot(rows - y / 4, columns - x / 4) / (0.22 * h)
        sky += 190 * _rgb(light.sun) * np.exp(-far)[..., None]
    picture = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    return picture.resize((painter.width, painter.height), Image.Resampling.BICUBIC)


def draw_shadows(painter: Painter, things: list[Thing]) -> np.ndarray:
    """The share of sunlight, 0..1, that reaches each canvas pixel of the ground."""
    mask = Image.new("L", painter.image.size, 255)
    pen = ImageDraw.Draw(mask)
    reach = min(1.0, max(painter.light.sun) * 3)  # under a covered sky only what is close is dark
    dx, dz = (-reach * painter.sun[i] / max(painter.sun[1], 0.35) for i in (0, 2))
    for thing in things:
        x0, x1, z0, z1 = thing.footprint
        if z0 > 55:
            continue
        base = [(x0, z0), (x1, z0), (x1, z1), (x0, z1)]
        tip = [(x + dx * thing.height, z + dz * thing.height) for x, z in base]
        wide = thing.draw.func is draw_building  # the rest is swept along one diagonal
        pairs = ((0, 1), (1, 2), (2, 3), (3, 0)) if wide else ((0, 2) if dx * dz < 0 else (1, 3),)
        for patch in (base, tip, *([base[i], base[k], tip[k], tip[i]] for i, k in pairs)):
            if max(z for _, z in patch) > NEAR:
                pen.polygon([painter.project(x, 0, max(z, 2.5)) for x, z in patch], fill=0)
    return np.asarray(mask.filter(ImageFilter.BoxBlur(painter.height / 300)), np.float32) / 255


def draw_ground(painter: Painter, street: Street) -> None:
    """Road with markings, kerbs and paved sidewalks, first in plain colours, then lit."""
    rng, kerb, far = painter.rng, street.kerb, 4 * FAR
    top = int(painter.horizon) + 1

    def strip(x0: float, x1: float, z0: float, z1: float, ink: Colour, label: int = ROAD) -> None:
        near, pieces = max(z0, NEAR), 1 if z1 - z0 < 8 else 24
        steps = [near * (max(z1, near) / near) ** (k / pieces) for k in range(pieces + 1)]
        ring = [painter.project(x0, 0, z) for z in steps]
        ring += [painter.project(x1, 0, z) for z in reversed(steps)]
        painter.pen.polygon(ring, fill=(*(min(255, max(0, int(c))) for c in ink), label))

    grey, warm = rng.uniform(84, 132), rng.uniform(-7, 7)
    asphalt = (grey + warm, grey, grey - warm + rng.uniform(0, 6))
    paving = painter.pick(((168, 162, 154), (140, 138, 140), (184, 166, 148)), 6)
    below = (0, top, painter.width, painter.height)
    painter.pen.rectangle(below, fill=(*(int(c) for c in paving), SIDEWALK))
    size, dark, rim = rng.uniform(0.6, 1.1), _mix(paving, (0, 0, 0), 0.18), rng.uniform(170, 215)
    for side in (-1, 1):
        for z in np.arange(2, 22, size).tolist():
            strip(side * kerb, side * (kerb + 9), z, z + 0.05, dark, SIDEWALK)
        for x in np.arange(kerb, street.wall, size).tolist():
            strip(side * x, side * (x + 0.05), 1, 24, dark, SIDEWALK)
        strip(side * kerb, side * (kerb + 0.2), 1, far, (rim, rim, rim - 6), SIDEWALK)
    strip(-kerb, kerb, 0, far, asphalt)
    if street.crossing < FAR:
        strip(-60, 60, street.crossing, street.crossing + street.crossing_width, asphalt)
    for side in (-1, 1):  # the gutter, and lanes worn by wheels
        strip(side * kerb, side * (kerb - 0.18), 1, street.crossing, _mix(asphalt, (0, 0, 0), 0.3))
        for x in (kerb * 0.25, kerb * 0.6):
            strip(side * x, side * (x + 0.5), 1, far, _mix(asphalt, (0, 0, 0), 0.06))
    for _ in range(int(rng.integers(0, 4))):  # patches of newer asphalt
        x, z, wide, long = rng.uniform((-4, 4, 0.8, 1), (3, 25, 2.4, 7)).tolist()
        strip(max(x, -kerb), min(x + wide, kerb), z, z + long, _mix(asphalt, (20, 20, 24), 0.2))
    white, double = _mix(asphalt, (236, 234, 226), rng.uniform(0.6, 0.95)), rng.random() < 0.3
    lanes, stop = rng.random() < 0.6, street.crossing - 4.6
    for z in np.arange(1, 90, 3 if double else 6).tolist():
        if stop - 3 < z < street.crossing + street.crossing_width + 3:
            continue
        for x in (-0.2, 0.08) if double else (-0.08,):
            strip(x, x + (0.12 if double else 0.16), z, z + 3, white)
        for side in (-1, 1) if lanes else ():
            strip(side * (kerb - 2.2), side * (kerb - 2.1), z, z + 1.5, white)
    if street.crossing < FAR:
        strip(0, kerb, stop, stop + 0.4, white)
        for x in np.arange(-kerb + 0.3, kerb - 0.5, 1.1).tolist():
            strip(x, x + 0.55, street.crossing - 3.6, street.crossing - 1.2, white)

    light_ground(painter, top, draw_shadows(painter, street.things)[top:, :, None])


def light_ground(painter: Painter, top: int, sunlight: np.ndarray) -> None:
    """Gives the rows from `top` on their gravel, light, shadow and haze; labels stay."""
    rows = np.arange(top, painter.height, dtype=np.float32)[:, None]
    z = painter.focal * painter.eye_y / np.maximum(rows + 0.5 - painter.horizon, 0.25)
    columns = np.arange(painter.width, dtype=np.float32)[None]
    x = ((columns - painter.centre) / painter.focal - painter.bend * np.minimum(z, BEND_END)) * z
    gravel = painter.pixel_rng.standard_normal((64, 64), np.float32) * 0.06
    worn = gravel[(x * 16).astype(np.int32) & 63, (z * 9).astype(np.int32) & 63]
    sun = _rgb(painter.light.sun) * (painter.sun[1] * 1.25)
    light = sunlight * sun + (0.62 + 0.38 * sunlight) * _rgb(painter.light.ambient)
    clear = np.exp(-painter.haze * z)
    light *= ((1 + worn / (1 + (z / 14) ** 2)) * clear)[..., None]
    pixels = np.asarray(painter.image).copy()
    light *= pixels[top:, :, :3]
    light += _rgb(painter.haze_colour) * (1 - clear)[..., None]
    pixels[top:, :, :3] = np.clip(light, 0, 255)
    painter.canvas(Image.fromarray(pixels))


def draw_skyline(painter: Painter) -> None:
    """What closes the view: a ridge of trees and pale towers behind the street."""
    rng = painter.rng
    if rng.random() < 0.7:
        x = -200.0
        while x < 200:
            wide, tall = rng.uniform(10, 26), rng.uniform(8, 30) + rng.gamma(1, 6)
            z = rng.uniform(130, 170)
            colour = painter.pick(WALLS)
            box: list[Point] = [(x, 0, z), (x + wide, 0, z), (x + wide, tall, z), (x, tall, z)]
            painter.face(box, colour, BUILDING, (0, 0, -1))
            x += wide * rng.uniform(0.6, 1.3)
    green, z = painter.pick(LEAVES[:5]), 125.0
    steps = np.linspace(-160, 160, 60)
    tops = 4 + 2.5 * np.sin(steps * rng.uniform(0.02, 0.08)) + rng.uniform(0, 2.2, 60)
    ridge = [(float(x), float(y), z) for x, y in zip(steps, tops, strict=True)]
    painter.face([(-160.0, 0.0, z), *ridge, (160.0, 0.0, z)], green, TREE, (0, 0.5, -0.6))


def draw_building(
    painter: Painter, side: int, wall: float, z0: float, z1: float, tall: float
) -> None:
    """A block of flats: the wall along the street, the gable towards the camera, the roof."""
    rng, x = painter.rng, side * wall
    colour = painter.pick(WALLS)
    trim = _mix(colour, (240, 236, 226), rng.uniform(0.2, 0.7))
    storey, shop = rng.uniform(2.7, 3.4), rng.random() < 0.45
    bay, wide, high = rng.uniform(1.9, 3.4), rng.uniform(0.4, 0.68), rng.uniform(0.45, 0.65)
    if rng.random() < 0.5:  # a roof that leans back from the street
        tiles = painter.pick(((132, 72, 58), (86, 88, 98), (110, 100, 92)))
        ridge, back = tall + rng.uniform(1.2, 2.6), x + side * 1.8
        gable: list[Point] = [(x, tall, z0), (back, ridge, z0)]
        gable += [(x + side * 12, ridge, z0), (x + side * 12, tall, z0)]
        roof = [*gable[:2], (back, ridge, z1), (x, tall, z1)]
        painter.face(gable, colour, BUILDING, (0, 0, -1))
        painter.face(roof, tiles, BUILDING, (-side * 0.8, 0.6, 0))
    for length, normal, (dx, dz) in (
        (12.0, (0.0, 0.0, -1.0), (side, 0)),
        (z1 - z0, (-side * 1.0, 0.0, 0.0), (0, 1)),
    ):
        panels = [  # (s0, y0, s1, y1, colour, glow), s along the wall
            (s, 0.0, min(s + 4.0, length), tall, colour, 0.0) for s in np.arange(0, length, 4.0)
        ]
        panels.append((0, tall - 0.35, length, tall, trim, 0))
        panels.append((0, 0, length, 0.5, _mix(colour, (60, 60, 60), 0.4), 0))
        columns, floors = max(1, int(length / bay)), max(1, int(tall / storey))
        pitch, tone = length / columns, rng.uniform(0, 0.4, (floors, columns)).tolist()
        for floor in range(floors):
            y, lit = floor * storey + 0.8, rng.random(columns) < painter.light.lit
            if floor and z0 < 60:
                panels.append((0, y - 0.85, length, y - 0.7, trim, 0))
            if floor == 0 and shop and normal[2] == 0:
                panels += _shop_front(painter, length, storey)
                continue
            for column in range(columns):
                s = (column + 0.5 - wide / 2) * pitch
                size = (s + wide * pitch, y + high * storey)
                if z0 < 35:
                    frame = (s - 0.1, y - 0.12, size[0] + 0.1, size[1] + 0.1)
                    panels.append((*frame, trim, 0))
                glass = _mix((38, 46, 58), painter.light.horizon, tone[floor][column])
                glow = 0.75 + 0.6 * tone[floor][column] if lit[column] else 0
                panels.append((s, y, *size, (255, 206, 120) if glow else glass, glow))
        box = np.array([panel[:4] for panel in panels])
        along, up = box[:, [0, 2, 2, 0]], box[:, [1, 1, 3, 3]]
        corners = np.stack([x + dx * along, up, z0 + dz * along], -1)
        colours, glows = [panel[4] for panel in panels], [panel[5] for panel in panels]
        painter.faces(corners, colours, BUILDING, normal, glows)


def _shop_front(painter: Painter, length: float, storey: float) -> list[tuple]:
    """Panels of glass, a striped awning and a board; all of it is building, the board too."""
    cloth, glow = painter.pick(PAINTS), 0.9 * (painter.rng.random() < painter.light.lit * 1.5)
    glass = (236, 200, 140) if glow else (52, 60, 70)
    panels: list[tuple] = [(0.4, 0.5, length - 0.4, storey * 0.72, glass, glow)]
    for k, s in enumerate(np.arange(0.2, length - 0.2, 0.7)):
        end, colour = min(s + 0.7, length), cloth if k % 2 else (232, 228, 218)
        panels.append((s, storey * 0.68, end, storey * 0.84, colour, 0))
        if k % 3 == 0:
            panels.append((s, 0.5, s + 0.14, storey * 0.68, (60, 54, 50), 0))
    board = _mix(cloth, (30, 30, 34), 0.5)
    panels.append((0.2, storey * 0.86, length - 0.2, storey, board, 0))
    return panels


def draw_tree(painter: Painter, x: float, z: float, kind: str) -> None:
    """A trunk and a crown of leafy clumps, lighter at the top and on the sunny side."""
    rng = painter.rng
    leaf = painter.pick(LEAVES[:5] if kind in ("cone", "hedge") else LEAVES, 8)
    tall = {"round": 6.2, "cone": 6.5, "poplar": 8.5, "hedge": 1.6}[kind] * rng.uniform(0.8, 1.25)
    crown_x, crown_y = {
        "round": (2.0, 1.9), "cone": (1.5, 2.6), "poplar": (1.0, 3.2), "hedge": (1.1, 0.75),
    }[kind]  # fmt: skip
    middle = tall - crown_y
    if kind != "hedge":
        lean = rng.normal(0, 0.12)
        painter.limb((x, 0, z), (x + lean, middle, z), 0.3, (88, 70, 56), TREE)
    count = (8 if kind == "hedge" else 34) if z < 30 else (3 if kind == "hedge" else 11)
    dots = rng.normal(size=(count, 2))
    dots *= (rng.random((count, 1)) ** 0.5) / np.linalg.norm(dots, axis=1, keepdims=True)
    dot_x, dot_y = dots[np.argsort(dots[:, 1])].T  # from the bottom of the crown to its top
    narrow = 0.55 - 0.5 * dot_y if kind == "cone" else np.ones(count)
    light = 0.76 + 0.26 * dot_y + 0.24 * dot_x * painter.sun[0] + rng.normal(0, 0.07, count)
    size = (crown_x * crown_x * crown_y) ** (1 / 3) * (0.5 + 0.5 * narrow)
    size *= rng.uniform(0.26, 0.46, count) * (1 if z < 30 else 1.3)
    radius = size[:, None] * rng.uniform(0.6, 1.15, (count, 9))
    turns = np.linspace(0, math.tau, 9, endpoint=False)
    u = (x + dot_x * crown_x * narrow)[:, None] + radius * np.cos(turns)
    v = np.maximum(0.2, middle + dot_y * crown_y)[:, None] + radius * np.sin(turns)
    inks = [(leaf[0] * k, leaf[1] * k, leaf[2] * k) for k in light.tolist()]
    painter.faces(np.stack([u, v, np.full_like(u, z)], -1), inks, TREE, (0, 0.8, -0.3))


def draw_lamp(painter: Painter, x: float, z: float, side: int) -> None:
    """A lamp post with an arm over the road."""
    metal, tall = painter.pick(((96, 100, 104), (62, 66, 70), (140, 142, 144))), 6.6
    painter.limb((x, 0, z), (x, 0.7, z), 0.15, metal, POLE)
    painter.limb((x, 0, z), (x, tall, z), 0.1, metal, POLE)
    painter.limb((x, tall, z), (x - side * 1.3, tall + 0.25, z), 0.07, metal, POLE)
    on = painter.light.lit > 0.1
    head = (255, 232, 180) if on else (200, 202, 200)
    a, b = (x - side * 1.1, tall + 0.2, z), (x - side * 1.75, tall + 0.25, z)
    painter.limb(a, b, 0.16, head, POLE, glow=1.3 if on else 0)


def draw_sign(painter: Painter, x: float, z: float) -> None:
    """A traffic sign on a thin post."""
    tall = float(painter.rng.uniform(2.2, 2.9))
    painter.limb((x, 0, z), (x, tall + 0.3, z), 0.075, (132, 136, 140), POLE)
    plates, bars = SIGNS[int(painter.rng.integers(len(SIGNS)))]
    for radius, sides, colour in plates:
        painter.disc((x, tall, z), radius, colour, SIGN, sides)
    for x0, y0, x1, y1, thick, colour in bars:
        painter.limb((x + x0, tall + y0, z), (x + x1, tall + y1, z), thick, colour, SIGN)


def draw_traffic_light(painter: Painter, x: float, z: float) -> None:
    """Three lights in a box on a post; the box is a sign."""
    painter.limb((x, 0, z), (x, 3.5, z), 0.1, (84, 88, 90), POLE)
    box: list[Point] = [(x - 0.2, 2.6, z), (x + 0.2, 2.6, z), (x + 0.2, 3.6, z), (x - 0.2, 3.6, z)]
    painter.face(box, (36, 38, 40), SIGN, (0, 0.3, -0.9))
    on = int(painter.rng.integers(3))
    for k, colour in enumerate(((60, 220, 110), (255, 190, 50), (255, 60, 48))):
        y, glow = 2.78 + 0.32 * k, 1.2 if k == on else 0.25
        painter.limb((x - 0.11, y, z), (x + 0.11, y, z), 0.2, colour, SIGN, glow)


def draw_car(painter: Painter, x: float, z: float, turn: float) -> None:
    """An outline extruded to the car's width; the faces that look at the camera are painted."""
    rng, paint = painter.rng, painter.pick(PAINTS, 6)
    outline = CARS[int(rng.choice(len(CARS), p=(0.45, 0.38, 0.17)))]
    half, cos, sin = 0.88, math.cos(turn), math.sin(turn)
    glass = _mix((30, 36, 44), painter.light.horizon, 0.25)
    roof = max(y for _, y, _ in outline)

    def place(u: float, y: float, w: float) -> Point:
        u *= 1 - 0.2 * max(0.0, (y - 0.95) / (roof - 0.95))  # narrower towards the roof
        return (x + u * cos + w * sin, y, z + w * cos - u * sin)

    def towards(points: list[Point]) -> bool:
        ring = [painter.project(*point) for point in points]
        pairs = zip(ring, ring[1:] + ring[:1], strict=True)
        return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs) > 0

    for wheel in (-1.3, 1.3):  # the tyres as seen from the ends
        for u in (-half + 0.1, half - 0.1):
            painter.limb(place(u, 0.0, wheel), place(u, 0.5, wheel), 0.2, (22, 22, 24), CAR)
    faces = []
    for (w0, y0, kind), (w1, y1, _) in zip(outline, outline[1:] + outline[:1], strict=True):
        quad = [place(-half, y0, w0), place(-half, y1, w1)]
        quad += [place(half, y1, w1), place(half, y0, w0)]
        slope = math.hypot(w1 - w0, y1 - y0)
        ahead, up = -(y1 - y0) / slope, (w1 - w0) / slope
        faces.append((quad, kind, (ahead * sin, up, ahead * cos), 0.0))
    for u in (-half, half):
        quad = [place(u, y, w) for w, y, _ in (outline if u < 0 else outline[::-1])][::-1]
        out = math.copysign(1, u)
        faces.append((quad, "side", (out * cos, 0.0, -out * sin), u))
    faces.sort(key=lambda face: -sum(point[2] for point in face[0]) / len(face[0]))
    night = painter.light.lit > 0.1
    for quad, kind, normal, u in faces:
        if kind == "under" or not towards(quad):
            continue
        painter.face(quad, glass if kind == "glass" else paint, CAR, normal)
        if kind in ("rear", "front"):
            w = outline[0][0] - 0.06 if kind == "rear" else outline[-1][0] + 0.02
            lamp = (210, 24, 26) if kind == "rear" else (255, 246, 214)
            for mid in (-0.72, 0.72):
                a, b = place(mid - 0.13, 0.74, w), place(mid + 0.13, 0.74, w)
                painter.limb(a, b, 0.16, lamp, CAR, glow=1.2 if night else 0)
            painter.limb(place(-0.25, 0.55, w), place(0.25, 0.55, w), 0.13, (220, 220, 208), CAR)
            painter.limb(place(-half, 0.36, w), place(half, 0.36, w), 0.12, (40, 42, 44), CAR)
        elif kind == "side":
            _car_side(painter, outline, place, u, normal, glass)


def _car_side(
    painter: Painter, outline: tuple, place: Callable, u: float, normal: Point, glass: Colour
) -> None:
    """Windows with a pillar between them, and two wheels."""
    cabin = [(w, y) for w, y, _ in outline if y > 0.9]
    low, high = min(y for _, y in cabin) + 0.06, max(y for _, y in cabin) - 0.09
    tops = [w for w, y in cabin if y > high]
    rear, front = min(tops), max(tops)
    for a, b, lean in ((rear + 0.08, -0.25, -0.3), (-0.12, front - 0.05, 0.45)):
        a0, b0 = (a + lean, b) if lean < 0 else (a, b + lean)
        window = [place(u, low, a0), place(u, high, a), place(u, high, b), place(u, low, b0)]
        painter.face(window, glass, CAR, normal)
    for w in (-1.3, 1.3):
        for radius, colour in ((0.36, (20, 20, 22)), (0.2, (150, 152, 156))):
            turns = [k * math.tau / 12 for k in range(12)]
            rim = [place(u, 0.34 + radius * math.sin(t), w + radius * math.cos(t)) for t in turns]
            painter.face(rim, colour, CAR, normal)


def draw_pedestrian(painter: Painter, x: float, z: float) -> None:
    """A walker: legs and arms in stride, a coat, a head, sometimes a bag."""
    rng, s = painter.rng, float(painter.rng.uniform(0.88, 1.08))
    coat, trousers = painter.pick(CLOTHES), painter.pick(CLOTHES[:4])
    skin, hair = painter.pick(SKIN, 5), painter.pick(((40, 30, 26), (110, 76, 44), (200, 190, 180)))
    step, way = rng.uniform(0.08, 0.32), rng.choice((-1, 1))

    def bar(a: tuple, b: tuple, thick: float, colour: Colour) -> None:
        start, end = (x + a[0] * s, a[1] * s, z), (x + b[0] * s, b[1] * s, z)
        painter.limb(start, end, thick * s, colour, PEDESTRIAN)

    bar((0, 1.36), (-0.22 - step * 0.4, 0.86), 0.11, _mix(coat, (0, 0, 0), 0.25))
    for foot, dark in ((-step, 0.3), (step, 0.0)):
        colour, knee = _mix(trousers, (0, 0, 0), dark), (foot * 0.6 + 0.05 * way, 0.45)
        bar((0, 0.86), knee, 0.17, colour)
        bar(knee, (foot, 0.04), 0.13, colour)
        bar((foot - 0.03, 0.04), (foot + 0.14 * way, 0.04), 0.09, (30, 28, 28))
    hem = 0.62 if rng.random() < 0.35 else 0.8
    torso = [(-0.17, hem), (0.17, hem), (0.22, 1.38), (0.1, 1.47), (-0.1, 1.47), (-0.22, 1.38)]
    points: list[Point] = [(x + u * s, y * s, z) for u, y in torso]
    painter.face(points, coat, PEDESTRIAN, (-0.4, 0.4, -0.8))
    bar((0.17, 1.36), (0.22 + step * 0.5, 0.9), 0.11, _mix(coat, (255, 255, 255), 0.12))
    if rng.random() < 0.4:
        bar((0.26, 0.95), (0.26, 0.7), 0.26, painter.pick(CLOTHES))
    painter.disc((x, 1.6 * s, z), 0.135 * s, hair, PEDESTRIAN, 10)
    painter.disc((x + 0.03 * way, 1.57 * s, z), 0.105 * s, skin, PEDESTRIAN, 10)


def draw_bin(painter: Painter, x: float, z: float) -> None:
    """A litter bin: none of the classes, so it is void."""
    body: list[Point] = [(x - 0.28, 0, z), (x + 0.28, 0, z), (x + 0.33, 0.9, z), (x - 0.33, 0.9, z)]
    painter.face(body, painter.pick(((50, 84, 62), (70, 72, 76), (150, 84, 40))), VOID, (0, 0, -1))
    painter.limb((x - 0.36, 0.92, z), (x + 0.36, 0.92, z), 0.1, (44, 46, 48), VOID)


def draw_bonnet(painter: Painter) -> None:
    """The front of the car that carries the camera: void."""
    rng, w, h = painter.rng, painter.width, painter.height
    tall, paint = h * rng.uniform(0.035, 0.075), painter.pick(PAINTS, 4)
    for k in range(6):  # from the rim to the bottom, reflecting less and less of the sky
        colour = _mix(painter.light.horizon, paint, min(1.0, 0.45 + 0.15 * k))
        ink = (*painter.shade(colour, (0, 1, 0), 0), VOID)
        x0, x1, y = -0.12 * w, 1.12 * w, h - tall * (1 - 0.13 * k)
        painter.pen.ellipse([x0, y, x1, y + 0.5 * h], fill=ink)


def expose(painter: Painter) -> np.ndarray:
    """What the camera does: surface grain, haze of bright lights, vignette, blur, sensor noise."""
    rng, noise = painter.rng, painter.pixel_rng
    h, w = painter.height, painter.width
    canvas = np.asarray(painter.image)
    kind = np.minimum(canvas[..., 3], len(CLASSES))
    grain = noise.standard_normal((h, w), np.float32) * GRAIN.take(kind) + 1
    grain += painter.noise(h, w, (14, 1.0), (45, 0.8)) * PATCH.take(kind)
    surface = canvas[..., :3] * grain[..., None]
    surface = np.clip(surface, 0, 255, out=surface).astype(np.uint8)
    rgb = np.asarray(Image.fromarray(surface).reduce(SCALE), np.float32)
    h, w = rgb.shape[:2]
    rows, columns = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)[None]
    gradient = 1 + rng.normal(0, 0.06) * rows + rng.normal(0, 0.06) * columns
    vignette = (1.04 - 0.16 * (rows**2 + columns**2)) * gradient
    gain = (122 / rgb.mean()) ** (0.7 - 0.5 * painter.light.lit) * rng.uniform(0.9, 1.1)
    rgb = rgb * (vignette[..., None] * gain * rng.normal(1, 0.03, 3)).astype(np.float32)
    picture = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    bright = Image.fromarray((np.clip(rgb - 190, 0, 65) * 1.6).astype(np.uint8))
    halo = bright.reduce(4).filter(ImageFilter.GaussianBlur(h / 180)).resize((w, h))
    soft = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.6) * h / 192))
    rgb = np.asarray(soft, np.float32) + 0.6 * np.asarray(halo, np.float32)
    rgb += noise.standard_normal(rgb.shape, np.float32) * np.float32(rng.uniform(2, 6))
    return np.clip(rgb, 0, 255).astype(np.uint8)


def _majority(label: np.ndarray) -> np.ndarray:
    """The commonest class in each SCALE x SCALE block; the larger id in a tie."""
    blocks = np.stack([label[i::SCALE, j::SCALE] for i in range(SCALE) for j in range(SCALE)])
    ids = np.array([VOID, *range(len(CLASSES) - 1, -1, -1)], np.uint8)
    votes = np.stack([(blocks == k).sum(0, dtype=np.uint8) for k in ids])
    return ids[votes.argmax(0)]


def draw_scene(
    index: int, seed: int = 0, size: tuple[int, int] = (192, 256)
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one street scene, the same one each time.

    Args:
        index: Which scene, 0 or more.
        seed: Another seed gives another set of scenes.
        size: Height and width in pixels, 64 or more each.

    Returns:
        The picture, uint8 RGB of shape `(height, width, 3)`, and the label, uint8 of shape
        `(height, width)` with the ids of `CLASSES`, or `VOID`.

    Example:
        >>> image, label = draw_scene(3)
        >>> image.shape, label.shape
        ((192, 256, 3), (192, 256))
    """
    height, width = size
    if min(height, width) < 64:
        raise ValueError(f"`size` must be (height, width) of 64 or more. Received: {size}")
    if index < 0 or seed < 0:
        raise ValueError(f"`index` and `seed` must be 0 or more. Received: {index}, {seed}")
    # What depends on the number of pixels has its own generator, so that the plan does not.
    plan, pixels = (np.random.default_rng([seed, index, k]) for k in range(2))
    painter = Painter(plan, pixels, height, width)
    street = compose(painter)
    sky = draw_sky(painter)
    sky.putalpha(SKY)
    painter.canvas(sky)
    draw_ground(painter, street)
    draw_skyline(painter)
    for thing in sorted(street.things, key=lambda thing: -thing.z):
        thing.draw(painter)
    if plan.random() < 0.7:
        draw_bonnet(painter)
    return expose(painter), _majority(np.asarray(painter.image)[..., 3])


def write_folder(
    root: str | Path,
    train: int = 200,
    val: int = 40,
    seed: int = 0,
    size: tuple[int, int] = (192, 256),
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes scenes as a folder of PNG files, or keeps the folder that is already there.

    The folder holds `images/{train,val}/scene_00000.png`, `labels/{train,val}/scene_00000.png`
    (the grey value is the class id) and `classes.json` with `classes`, `palette` and `void`.
    `street_scenes.json` records the arguments and the fingerprints of the files; a complete folder
    with the same ones is kept as it is, one with other arguments is drawn anew, and one in which
    files were changed is refused. Each file appears under its name when it is whole.

    Args:
        root: The folder; made where it is missing.
        train: Number of training scenes.
        val: Number of validation scenes; none of them is a training scene, whatever `train` is.
        seed: As in `draw_scene`.
        size: Height and width in pixels.
        progress: Called with (scenes written, scenes in all) after each.

    Returns:
        The folder.
    """
    if not (0 <= train <= VAL_START and val >= 0):
        raise ValueError(
            f"`train` must be 0 to {VAL_START} and `val` 0 or more. Received: {train}, {val}"
        )
    root = Path(root)
    record = {"edition": EDITION, "train": train, "val": val, "seed": seed, "size": list(size)}
    scenes = [("train", k, k) for k in range(train)]
    scenes += [("val", k, VAL_START + k) for k in range(val)]
    files = {f"{kind}/{split}/scene_{k:05d}.png" for split, k, _ in scenes for kind in KINDS}
    recorded = root / "street_scenes.json"
    folders = [root / kind / split for kind in KINDS for split in ("train", "val")]
    there = {
        path.relative_to(root).as_posix()
        for folder in folders
        for path in folder.glob("scene_[0-9][0-9][0-9][0-9][0-9].png")
    }
    if has_keys(recorded, "edition", "complete"):
        former = json.loads(recorded.read_text())
        drawn = former.pop("files", None)
        _check_unchanged(root, drawn or {})
        done = former == {**record, "complete": True} and drawn is not None
        if done and there == files and (root / "classes.json").exists():
            return root
    elif any((root / name).exists() for name in (*KINDS, "classes.json", recorded.name)):
        raise ValueError(
            f"`root` must be a new folder or one that write_folder wrote. Received: {root}"
        )
    root.mkdir(parents=True, exist_ok=True)
    write_bytes(recorded, json.dumps({**record, "complete": False}).encode())
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for name in there - files:
        (root / name).unlink()
    for count, (split, k, index) in enumerate(scenes, 1):
        for kind, pixels in zip(KINDS, draw_scene(index, seed, size), strict=True):
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            write_bytes(root / kind / split / f"scene_{k:05d}.png", png.getvalue())
        if progress is not None:
            progress(count, len(scenes))
    names = {"classes": CLASSES, "palette": PALETTE, "void": VOID}
    write_bytes(root / "classes.json", json.dumps(names, indent=1).encode())
    whole = named_fingerprints([root / name for name in files], root)
    write_bytes(recorded, json.dumps({**record, "complete": True, "files": whole}).encode())
    return root


def _check_unchanged(root: Path, drawn: dict[str, str]) -> None:
    """Refuse a folder with files that were changed since they were drawn."""
    there = named_fingerprints([root / name for name in drawn if (root / name).exists()], root)
    if changed := [name for name in there if there[name] != drawn[name]]:
        raise ValueError(
            f"{root}: {len(changed)} files were changed since they were drawn: {listed(changed)}. "
            "Remove them to draw them again, or move the folder to keep it"
        )
