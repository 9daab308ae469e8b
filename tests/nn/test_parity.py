"""The preset ``paper`` computes what the published modules compute, for generated weights and inputs."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from nh2st_scverse.nn import Config, NH2STNetwork, info_nce

ROOT = Path(__file__).parents[2]
D, E, G, B, K = 512 * 49, 512, 250, 4, 9

# role -> (parameter of the network, shape)
ROLES = {
    "query_projection": ("query_projection", (E, D)),
    "gene_encoder.0": ("gene_encoder.0", (E, G)),
    "gene_encoder.1": ("gene_encoder.1", (E, E)),
    "attention.output": ("attention.output", (E, E)),
    "feed_forward.0": ("attention.feed_forward.1", (E, E)),
    "feed_forward.1": ("attention.feed_forward.4", (E, E)),
    "decoder.0": ("decoder.0", (256, E)),
    "decoder.1": ("decoder.1", (G, 256)),
}
CONVOLUTIONS = {
    "image_hypergraph.0": ("image_hypergraph.first", (1024, D)),
    "image_hypergraph.1": ("image_hypergraph.second", (E, 1024)),
    "expression_hypergraph.0": ("expression_hypergraph.first", (1024, E)),
    "expression_hypergraph.1": ("expression_hypergraph.second", (E, 1024)),
}
NORMS = {
    "attention.norm": "attention.norm",
    "feed_forward.norm": "attention.feed_forward.0",
    "final_norm": "attention.final_norm",
}


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    path = Path(os.environ.get("NH2ST_PARITY", ROOT.parent / "shared" / "parity" / "nh2st_parity.npz"))
    if not path.is_file():
        pytest.skip("the published network's numbers are not here: set NH2ST_PARITY to their file")
    return dict(np.load(path))


def generate(role: str, shape: tuple[int, ...], kind: str, seed: int) -> torch.Tensor:
    x = np.random.RandomState((zlib.crc32(role.encode()) ^ seed) & 0xFFFFFFFF).standard_normal(shape)
    made = {
        "weight": lambda: x / np.sqrt(shape[-1]),
        "bias": lambda: 0.1 * x,
        "gain": lambda: 1 + 0.1 * x,
        "feature": lambda: np.maximum(x, 0),
        "expression": lambda: np.abs(x),
    }[kind]()
    return torch.from_numpy(made.astype(np.float32))


def fill(network: NH2STNetwork, seed: int) -> None:
    state = {}
    for role, (name, shape) in ROLES.items():
        state[f"{name}.weight"] = generate(f"{role}.weight", shape, "weight", seed)
        state[f"{name}.bias"] = generate(f"{role}.bias", shape[:1], "bias", seed)
    for role, (name, shape) in CONVOLUTIONS.items():
        state[f"{name}.linear.weight"] = generate(f"{role}.weight", shape, "weight", seed)
        state[f"{name}.bias"] = generate(f"{role}.bias", shape[:1], "bias", seed)
    for role, name in NORMS.items():
        state[f"{name}.weight"] = generate(f"{role}.weight", (E,), "gain", seed)
        state[f"{name}.bias"] = generate(f"{role}.bias", (E,), "bias", seed)
    state["attention.query.weight"] = generate("attention.query.weight", (E, E), "weight", seed)
    state["attention.key_value.weight"] = generate("attention.key_value.weight", (2 * E, E), "weight", seed)
    network.load_state_dict(state)  # strict: every parameter has a role


def test_paper_network_equals_the_published_one(stored: dict[str, np.ndarray]) -> None:
    seed = int(stored["seed"])
    config = Config.preset("paper")
    network = NH2STNetwork(config, D, G).eval()
    fill(network, seed)

    query = generate("input.query_features", (B, 512, 7, 7), "feature", seed)
    nodes = generate("input.neighbour_features", (B, K, 512, 7, 7), "feature", seed)
    y = generate("input.query_expression", (B, G), "expression", seed)
    nodes_y = generate("input.neighbour_expression", (B, K, G), "expression", seed)
    mask, offsets = torch.ones(B, K, dtype=torch.bool), torch.zeros(B, K, 2)

    with torch.inference_mode():
        # the query is flattened (position, channel), the nodes (channel, position)
        images = network(query.flatten(2).transpose(1, 2).flatten(1), nodes.flatten(2), mask, offsets)
        pairs = network.contrast(images, y, nodes_y, mask)
        terms = network.losses(images, y, nodes_y, mask)

    found = {
        **{name: getattr(images, name) for name in ("p0", "n0", "prediction")},
        **{name: getattr(pairs, name) for name in ("g0", "m0", "p1", "g1", "n1", "m1")},
        "loss_query": terms["query_contrast"],
        "loss_neighbour": terms["neighbour_contrast"],
        "loss_mse": terms["mse"],
        "loss": terms["loss"],
    }
    assert np.array_equal(images.hyperedges.numpy() > 0, stored["incidence"] > 0)
    errors = {k: np.linalg.norm(v.numpy() - stored[k]) / np.linalg.norm(stored[k]) for k, v in found.items()}
    assert max(errors.values()) < 1e-4, errors
    assert info_nce(pairs.p1, pairs.g1) == terms["query_contrast"]  # the published temperature is the default
