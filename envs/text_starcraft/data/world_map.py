"""The map: sites of bases, the roads between them, and the way from every node to every other.

Sites 0 to 7 lie on the Protoss side and 8 to 15, their mirror images, on the Zerg side, each in the order in which they
are taken. Node 16 is the middle of the map. Distances are in map cells; from main to main it is 150 by road.
"""

import numpy as np

SITES_PER_SIDE = 8
NUM_SITES = 2 * SITES_PER_SIDE
MIDDLE = NUM_SITES
NUM_NODES = NUM_SITES + 1
SIZE = 160.0
_HALF = ((25, 30), (38, 48), (62, 36), (34, 80), (58, 66), (92, 30), (24, 112), (60, 96))
"""Main, natural, third base, and so on."""
_ROADS = ((0, 1), (1, 2), (1, 3), (1, 4), (2, 4), (2, 5), (3, 6), (3, 7), (4, 7), (4, MIDDLE), (7, MIDDLE))


def _nodes() -> np.ndarray:
    half = np.array(_HALF, float)
    return np.concatenate([half, SIZE - half, [[SIZE / 2, SIZE / 2]]])


def _ways() -> tuple[np.ndarray, np.ndarray]:
    """Length of the shortest way (nodes, nodes), and its first step (nodes, nodes), by Floyd and Warshall."""
    length = np.full((NUM_NODES, NUM_NODES), np.inf)
    step = np.tile(np.arange(NUM_NODES), (NUM_NODES, 1))
    np.fill_diagonal(length, 0.0)
    for start, end in _ROADS:
        for a, b in ((start, end), (_mirror(start), _mirror(end))):
            length[a, b] = length[b, a] = np.hypot(*(POSITION[a] - POSITION[b]))
    for via in range(NUM_NODES):
        through = length[:, via : via + 1] + length[via]
        shorter = through < length - 1e-9
        length[shorter] = through[shorter]
        step[shorter] = np.broadcast_to(step[:, via : via + 1], step.shape)[shorter]
    return length, step


def _mirror(node: int) -> int:
    return node if node == MIDDLE else (node + SITES_PER_SIDE) % NUM_SITES


POSITION = _nodes()
DISTANCE, NEXT_NODE = _ways()
