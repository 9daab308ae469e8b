"""The projection of the features to the inputs of the network."""

from __future__ import annotations

import pytest
import torch

from nh2st_scverse.nn.projection import Projection, principal_components


def test_blocks_have_equal_total_variance_in_every_field_of_view() -> None:
    torch.manual_seed(0)
    features = torch.randn(400, 2 * 12) * torch.rand(24) * 9  # two fields of view, each of 10 features and 2 of another
    projection = Projection(24, 24)
    projection.fit(features, (10, 2))
    seen = (projection.matrix**2).sum(dim=1) * features.var(dim=0)  # of each feature, in all components together
    assert seen.tolist() == pytest.approx([float(seen[0] * (1 if i % 12 < 10 else 5)) for i in range(24)], rel=1e-3)
    assert float(projection(features).std()) == pytest.approx(1, abs=1e-3)


def test_one_block_is_no_block() -> None:
    torch.manual_seed(0)
    features = torch.randn(40, 6)
    for blocks in ((6,), (0,), (2,)):
        assert all(map(torch.equal, principal_components(features, 3), principal_components(features, 3, blocks)))


def test_blocks_do_not_depend_on_the_way_the_components_are_found() -> None:
    torch.manual_seed(0)
    features = torch.randn(30, 20)
    few, many = (principal_components(x, 5, (16, 4))[1].abs() for x in (features[:20], features[:20].repeat(2, 1)))
    assert torch.allclose(few / few.norm(), many / many.norm(), atol=1e-3)
