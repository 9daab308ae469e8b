"""What drives a training: an encoder that is trained too, several processes, accumulated gradients, compiled code."""

from __future__ import annotations

import shutil
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from spatialdata import SpatialData
from torch import nn

import nh2st_scverse as nh
from nh2st_scverse.nn import Config
from nh2st_scverse.train import task
from nh2st_scverse.train.progress import progress_bar


class Pixels(nn.Module):
    """Images (n, 3, 16, 16) to features (n, 12): a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 8, stride=8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).flatten(1)


class Conv:
    """An encoder of one's own that can be trained."""

    name, input_size, dim, weights_hash = "conv", 16, 12, "none"

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = Pixels()

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.network(torch.from_numpy(patches).permute(0, 3, 1, 2) / 255).numpy()

    def trunk(self) -> nn.Module:
        trunk = Pixels()
        trunk.load_state_dict(self.network.state_dict())
        return trunk


def tune(sdata: SpatialData, small: dict[str, Any], **settings: Any) -> nh.NH2ST:
    given = {"encoder": Conv(), "n_genes": 8, "max_epochs": 4, "n_members": 1, "progress": False, **small}
    return nh.tl.train(sdata, fine_tune=True, **given | settings)


def predicted(sdata: SpatialData, model: nh.NH2ST) -> np.ndarray:
    nh.tl.predict_expression(sdata, model=model, progress=False)
    return sdata["table"].layers["nh2st"][:, sdata["table"].var["nh2st"].to_numpy()]


def test_any_encoder_with_a_trunk_is_trained(sdata: SpatialData, small: dict[str, Any], tmp_path: Path) -> None:
    sdata["table"].obsm.pop("nh2st_features", None)  # of another test
    model = tune(sdata, small)
    start = Conv().network.conv.weight
    trained = model.members[0].trunk.conv.weight
    assert not torch.equal(start, trained)
    assert (trained - start).abs().max() < 0.1  # at a lower rate than the rest
    assert torch.equal(tune(sdata, small, encoder_lr=0.0).members[0].trunk.conv.weight, start)
    assert model.members[0].projection is not None  # onto the components of the features it started from
    assert "nh2st_features" not in sdata["table"].obsm  # they change

    folder = model.save(tmp_path / "tuned")
    with pytest.raises(ValueError, match=r"The model trained encoder 'conv': pass it to NH2ST\.load as encoder="):
        nh.NH2ST.load(folder)
    with pytest.raises(ValueError, match="trained encoder 'conv', found encoder='resnet18'"):
        nh.NH2ST.load(folder, encoder="resnet18")
    loaded = nh.NH2ST.load(folder, encoder=Conv())
    assert np.array_equal(predicted(sdata, model), predicted(sdata, loaded))


def test_the_default_encoder_is_trained(sdata: SpatialData, small: dict[str, Any], tmp_path: Path) -> None:
    encoder = nh.encoders.EfficientNetLite0()
    encoder.input_size = 32  # px: quick
    model = tune(sdata, small, encoder=encoder, max_epochs=1, trainer_kwargs={"limit_train_batches": 2})
    stem = model.members[0].trunk.network.conv_stem.weight
    assert not torch.equal(stem, encoder.frozen.network.conv_stem.weight)
    loaded = nh.NH2ST.load(model.save(tmp_path / "tuned"))
    assert np.array_equal(predicted(sdata, model), predicted(sdata, loaded))


def test_an_encoder_without_a_trunk_is_refused(sdata: SpatialData, small: dict[str, Any], encoder: Any) -> None:
    with pytest.raises(TypeError, match=r"encoder that can be trained, found 'colours' without trunk\(\)\. Available"):
        tune(sdata, small, encoder=encoder)


@pytest.mark.parametrize("fine_tune", [False, True])
def test_accumulated_gradients_follow_the_schedule(sdata: SpatialData, small: dict[str, Any], fine_tune: bool) -> None:
    rates: list[float] = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        def on_fit_end(self, trainer: L.Trainer, *_: Any) -> None:
            rates.append(trainer.global_step)

    options = {"accumulate_grad_batches": 2, "callbacks": [Look()]}
    nh.tl.train(
        sdata, encoder=Conv(), fine_tune=fine_tune, n_genes=8, n_members=1, max_epochs=5, batch_size=16, progress=False,
        trainer_kwargs=options, **small,
    )  # fmt: skip
    *rates, steps = rates
    assert steps == -(-len(rates) // 5 // 2) * 5
    assert max(rates) == pytest.approx(Config().lr)
    assert rates[-1] < 0.1 * max(rates)  # the cycle comes to its end


def test_sixteen_bits_are_used_where_the_device_has_them(
    sdata: SpatialData, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype] = set()
    forward = Pixels.forward

    def look(self: Pixels, images: torch.Tensor) -> torch.Tensor:
        found = forward(self, images)
        if self.training:
            seen.add(found.dtype)
        return found

    monkeypatch.setattr(Pixels, "forward", look)
    monkeypatch.setattr(task, "has_bfloat16", lambda device: True)
    model = tune(sdata, small, max_epochs=1)
    assert seen == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.members[0].parameters())
    seen.clear()
    tune(sdata, small, max_epochs=1, half=False)
    monkeypatch.setattr(task, "has_bfloat16", lambda device: False)
    tune(sdata, small, max_epochs=1)
    assert seen == {torch.float32}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler on a CPU")
def test_compiled_code_gives_the_same_model(
    sdata: SpatialData, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that torch.compile makes of the modules, but for the C++ of it, which takes minutes."""
    graphs = partialmethod(nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(nn.Module, "compile", graphs)
    settings = {"max_epochs": 1, "dropout": 0.0, "input_dropout": 0.0, "augment": False, "half": False}
    plain, fast = tune(sdata, small, **settings), tune(sdata, small, compile=True, **settings)
    assert np.allclose(plain.history["loss"], fast.history["loss"], rtol=1e-3)
    assert np.allclose(predicted(sdata, plain), predicted(sdata, fast), atol=1e-2)


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
import nh2st_scverse as nh
from lightning.pytorch.utilities import rank_zero_only

class Quarters:
    name, input_size, dim, weights_hash = "quarters", 16, 12, "none"
    def __call__(self, patches):
        return (patches / 255).reshape(len(patches), 2, 8, 2, 8, 3).mean(axis=(2, 4)).reshape(len(patches), -1)

sdata = nh.datasets.synthetic(width_um=1200, n_sections=2)
model = nh.tl.train(
    sdata, encoder=Quarters(), n_genes=8, max_epochs=6, batch_size=16, embedding=16, hidden=16, bottleneck=16, heads=2,
    dropout=0.0, input_dropout=0.0, checkpoint_dir={folder!r} + "/checkpoints", device="cpu",
    trainer_kwargs={options!r},
)
if rank_zero_only.rank == 0:
    model.save({folder!r} + "/model")
"""


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    """Two processes take a batch each for a step: the same as one that accumulates two batches."""

    def script(name: str, options: dict[str, Any]) -> str:
        (tmp_path / name).mkdir()
        root = str(Path(nh.__file__).parents[1])
        return SCRIPT.format(root=root, folder=str(tmp_path / name), options=options)

    monkeypatch.setattr(sys, "path", sys.path.copy())
    exec(script("one", {"accumulate_grad_batches": 2}), {})
    done = start(script("two", {"devices": 2, "strategy": "ddp"}), tmp_path / "two")  # it starts the second one
    done.join(300)
    said = (tmp_path / "two" / "said").read_bytes().decode()  # as text, each "\r" of a bar would begin a line
    assert done.exitcode == 0, said
    one, two = (nh.NH2ST.load(tmp_path / name / "model") for name in ("one", "two"))
    assert len(one.history) == len(two.history) == 12
    assert np.allclose(one.history.select_dtypes(float), two.history.select_dtypes(float), rtol=1e-3, atol=1e-3)
    for first, second in zip(one.members, two.members, strict=True):
        others = second.state_dict()
        for name, weight in first.state_dict().items():
            assert torch.allclose(weight, others[name], rtol=1e-2, atol=1e-3), name
    ended = [line for line in said.split("\n") if "12/12" in line]  # a bar writes over itself in its line
    assert len(ended) == 1  # one bar, not one for each process


def test_processes_that_cannot_share_the_data_are_refused(sdata: SpatialData, small: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected strategy='ddp' in a script, or 'ddp_notebook' in a notebook"):
        tune(sdata, small, trainer_kwargs={"strategy": "ddp_spawn", "devices": 2})


def test_progress_is_one_line_with_the_terms_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"mse": 0.5, "pearson": 0.4, "query_contrast": 2.0, "loss": 2.9, "validation_pearson": 0.123}
    with progress_bar("training", True) as on_epoch:
        for epoch in range(3):
            on_epoch(row | {"epoch": float(epoch)}, 10, 0, 2)
        on_epoch(row | {"epoch": 0.0}, 10, 1, 2)  # the first member stopped early
    said = capsys.readouterr().err
    last = said.split("\r")[-1]
    assert "4/13" in last
    assert "member 2/2, mse 0.50, 1 - pearson 0.40, query 2.00, held-out r 0.123" in last
    assert said.count("\n") == 1
