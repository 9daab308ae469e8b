"""A lattice over an image: patches at its nodes stand for those of all places between them.

What an encoder says of a patch changes slowly with its place. So for an encoder that gives no maps, patches are
encoded at the nodes of a lattice, as far apart as a share of the field of view, and a place has the bilinear mean of
the four nodes round it: the cost follows the tissue, not the places. The lattice lies alike on an image for all places,
so a place has the same features among few others or many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from distributed import Client
from scipy import sparse

from nh2st_scverse.data.cluster import encode_on_cluster
from nh2st_scverse.data.geometry import Geometry, apply_affine
from nh2st_scverse.data.patches import resized, windows_of
from nh2st_scverse.encoders import Encoder
from nh2st_scverse.encoders._base import check_shape

PER_FIELD = 2  # nodes along the side of a field of view
BLOCK = 16  # cells along the side of a block
AT_ONCE = 4096  # places of a block
CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])


@dataclass(frozen=True)
class Block:
    """Some cells of the lattice, and the places in them."""

    places: np.ndarray  # (m,) positions in the geometry of the places
    nodes: np.ndarray  # (k,) positions in the geometry of the nodes
    weights: sparse.csr_array  # (m, k), four in each row

    def between(self, features: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some places at a time and their features (.., dim), of those of the nodes (k, dim)."""
        for start in range(0, len(self.places), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            yield self.places[some], np.asarray(self.weights[some] @ features, dtype=np.float32)


class Nodes:
    """Features of places (n,), positions in a geometry, from those of patches at the nodes of a lattice.

    See :class:`nh2st_scverse.data.sweep.Way`.
    """

    in_workers, draw = False, None  # an encoder has workers of its own for patches

    def __init__(self, geometry: Geometry, encoder: Encoder, places: np.ndarray, *, field_um: float) -> None:
        self.encoder, self.field_um = encoder, field_um
        self.nodes, self.blocks = lay_lattice(geometry, places, field_um=field_um)
        self.windows = [windows_of(self.nodes, one.nodes, field_um, encoder.input_size) for one in self.blocks]

    def see(self, piece: int, window: Callable[[int], np.ndarray]) -> np.ndarray:
        """The patches of a block."""
        return resized(window, len(self.blocks[piece].nodes), self.encoder.input_size)

    def encode(self, piece: int, drawn: np.ndarray) -> np.ndarray:
        """Features of the nodes of a block."""
        return np.asarray(self.encoder(drawn), dtype=np.float32)

    def on_cluster(self, client: Client) -> Iterator[tuple[int, np.ndarray]]:
        """The same of all blocks."""
        return encode_on_cluster(self.nodes, self.encoder, [(one.nodes, self.field_um) for one in self.blocks], client)

    def collect(self, piece: int, found: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The places in a block."""
        check_shape(self.encoder, found, len(self.blocks[piece].nodes))
        return self.blocks[piece].between(found)


def lay_lattice(geometry: Geometry, places: np.ndarray, *, field_um: float) -> tuple[Geometry, list[Block]]:
    """The nodes round places (n,), positions in a geometry, and the blocks in which they are encoded."""
    pitch = field_um / PER_FIELD / geometry.microns_per_pixel  # pixels
    xy = geometry.pixels()[places] / pitch
    cell = np.floor(xy).astype(int)
    share = (xy - cell).astype(np.float32)[:, None]  # (n, 1, 2)
    weights = np.where(CORNERS, share, 1 - share).prod(axis=2)  # (n, 4)
    _, block, sizes = np.unique(cell // BLOCK, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(block.ravel(), kind="stable")
    blocks, nodes, start = [], [np.empty((0, 2), int)], 0
    for some in np.split(order, np.cumsum(sizes)[:-1]) if len(order) else []:
        needed, corners = np.unique((cell[some, None] + CORNERS).reshape(-1, 2), axis=0, return_inverse=True)
        positions = np.arange(start, start + len(needed))
        rows = weights[some].ravel(), corners.ravel(), np.arange(0, corners.size + 1, 4)
        blocks.append(Block(places[some], positions, sparse.csr_array(rows, shape=(len(some), len(needed)))))
        nodes.append(needed)
        start += len(needed)
    back = np.linalg.inv(geometry.levels[0].from_shapes)
    xy_nodes = apply_affine(back, np.concatenate(nodes) * pitch)
    return replace(geometry, coordinates=xy_nodes, instances=np.arange(start)), blocks
