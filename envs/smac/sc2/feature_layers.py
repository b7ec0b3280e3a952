"""Feature layers of the StarCraft II API: the battle as small images, on the screen and on the minimap."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from marl.envs.sc2.protos import load
from marl.envs.smac.maps import SIZE

load()  # before the import that needs what it builds
common: Any = import_module("s2clientprotocol.common_pb2")

DEFAULT_WIDTH = 24.0
"""Width of the camera in map units where the client gives none."""

VISIBLE = 2

UNIT_LAYERS: dict[str, tuple[int, Callable[[Any], float]]] = {
    "player_id": (8, lambda unit: unit.owner),
    "player_relative": (8, lambda unit: unit.alliance),
    "unit_type": (32, lambda unit: unit.unit_type),
    "unit_hit_points": (32, lambda unit: unit.health),
    "unit_hit_points_ratio": (8, lambda unit: 255 * unit.health / unit.health_max),
    "unit_energy": (32, lambda unit: unit.energy),
    "unit_energy_ratio": (8, lambda unit: 255 * unit.energy / max(1.0, unit.energy_max)),
    "unit_shields": (32, lambda unit: unit.shield),
    "unit_shields_ratio": (8, lambda unit: 255 * unit.shield / max(1.0, unit.shield_max)),
}
"""Bits per pixel, and the value of a unit. `alliance` has the numbers of `player_relative`."""

EMPTY_LAYERS = {"creep": 1, "power": 1, "selected": 1}
"""Layers that are always empty."""

MINIMAP_LAYERS = ("player_id", "player_relative", "unit_type")


def draw_layers(setup: Any, camera: Sequence[float], units: Sequence[Any], ground: Any, layers: Any) -> None:
    """Fill an ObservationFeatureLayer from the units of an ObservationRaw and the grids of a StartRaw.

    `setup` is the client's SpatialCameraSetup. The minimap shows the whole map, the screen what is around the `camera`
    (x, y). The first row of an image is the northernmost.
    """
    size, small = setup.resolution, setup.minimap_resolution
    width = setup.width if setup.width > 0 else DEFAULT_WIDTH
    low = camera[0] - width / 2, camera[1] - width * size.y / size.x / 2
    screen = _pixels(size, low, width)
    drawn = _draw(screen, units, ground, layers.renders, tuple(UNIT_LAYERS))
    _put(layers.renders, "unit_density", 8, drawn)
    minimap = _pixels(small, (0.0, 0.0), float(SIZE))
    _draw(minimap, units, ground, layers.minimap_renders, MINIMAP_LAYERS)
    x, y = minimap
    seen = (x >= low[0]) & (x <= low[0] + width) & (y >= low[1]) & (y <= low[1] + width * size.y / size.x)
    _put(layers.minimap_renders, "camera", 1, np.broadcast_to(seen, (small.y, small.x)))


def _pixels(size: Any, low: Sequence[float], width: float) -> tuple[np.ndarray, np.ndarray]:
    """Return map coordinates of pixel centers: x (1, columns) and y (rows, 1)."""
    pitch = width / size.x
    x = low[0] + pitch * (np.arange(size.x) + 0.5)
    y = low[1] + pitch * (np.arange(size.y)[::-1] + 0.5)
    return x[None, :], y[:, None]


def _draw(
    pixels: tuple[np.ndarray, np.ndarray], units: Sequence[Any], ground: Any, target: Any, names: Sequence[str]
) -> np.ndarray:
    """Write ground and unit layers; returns the number of units at every pixel (rows, columns)."""
    x, y = pixels
    inside = (x >= 0) & (x < SIZE) & (y >= 0) & (y < SIZE)
    cell = np.clip(y, 0, SIZE - 1).astype(int), np.clip(x, 0, SIZE - 1).astype(int)
    height = np.frombuffer(ground.terrain_height.data, np.uint8).reshape(SIZE, SIZE)[cell]
    walkable = np.unpackbits(np.frombuffer(ground.pathing_grid.data, np.uint8)).reshape(SIZE, SIZE)[cell]
    _put(target, "height_map", 8, np.where(inside, height, 0))
    _put(target, "visibility_map", 8, np.where(inside, VISIBLE, 0))
    for name in ("pathable", "buildable"):
        if name in target.DESCRIPTOR.fields_by_name:
            _put(target, name, 1, inside & (walkable > 0))
    for name, bits in EMPTY_LAYERS.items():
        if name in target.DESCRIPTOR.fields_by_name:
            _put(target, name, bits, np.zeros_like(inside))
    images = {name: np.zeros(inside.shape) for name in names}
    count = np.zeros(inside.shape)
    for unit in sorted(units, key=lambda unit: unit.is_flying):  # flyers hide what is below
        away = (x - unit.pos.x) ** 2 + (y - unit.pos.y) ** 2
        disc = (away <= unit.radius**2) | (away == away.min())
        disc &= away.min() <= 2.0  # a unit beyond the edge of the image is not on it
        count += disc
        for name, image in images.items():
            image[disc] = UNIT_LAYERS[name][1](unit)
    for name, image in images.items():
        _put(target, name, UNIT_LAYERS[name][0], image)
    return count


def _put(target: Any, name: str, bits: int, values: np.ndarray) -> None:
    """Write values (rows, columns) as an ImageData of 1, 8 or 32 bits per pixel."""
    data = np.packbits(values.astype(bool)) if bits == 1 else values.astype("u1" if bits == 8 else "<i4")
    size = common.Size2DI(x=values.shape[1], y=values.shape[0])
    getattr(target, name).CopyFrom(common.ImageData(bits_per_pixel=bits, size=size, data=data.tobytes()))


def image_data(values: np.ndarray, bits: int) -> Any:
    """Return an ImageData of values (x, y): rows from y = 0 on, the first of eight points in the highest bit."""
    rows = np.packbits(values.T.astype(bool), axis=1) if bits == 1 else values.T.astype(np.uint8)
    size = common.Size2DI(x=values.shape[0], y=values.shape[1])
    return common.ImageData(bits_per_pixel=bits, size=size, data=rows.tobytes())
