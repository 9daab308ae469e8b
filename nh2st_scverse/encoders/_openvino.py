"""A network compiled for this processor by OpenVINO, where that is installed (the extra ``fast``)."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nh2st_scverse._logging import logger
from nh2st_scverse._threads import n_workers, threads


class Compiled:
    """Images (1, side, side, 3) uint8 to the outputs of a network; as many threads as there are workers may call it.

    Parameters
    ----------
    network
        Images (1, side, side, 3) uint8 to a tensor or a tuple of them.
    side
        Of the images in pixels.
    half
        Compute in 16 bits where the processor can.
    """

    def __init__(self, network: nn.Module, side: int, *, half: bool) -> None:
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        with warnings.catch_warnings(), threads(1):
            warnings.simplefilter("ignore")  # of tracing, which torch will replace
            example = torch.zeros(1, side, side, 3, dtype=torch.uint8)
            # not openvino.convert_model: that tells its makers that it was called
            reader = FrontEndManager().load_by_framework("pytorch")
            decoder = TorchScriptPythonDecoder(network, example_input=example)  # read until it is converted
            model = reader.convert(reader.load(decoder))
        model.reshape(list(example.shape))
        n = n_workers()
        streams = {"NUM_STREAMS": n, "INFERENCE_NUM_THREADS": n, "INFERENCE_PRECISION_HINT": "bf16" if half else "f32"}
        compiled = openvino.Core().compile_model(model, "CPU", streams)
        self.free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(n):
            self.free.put(compiled.create_infer_request())

    def __call__(self, image: np.ndarray) -> list[Tensor]:
        """The outputs, each (1, ...)."""
        request = self.free.get()
        try:
            request.infer([image])
            return [torch.from_numpy(one.data.copy()) for one in request.output_tensors]
        finally:
            self.free.put(request)


def compile_where_installed(network: nn.Module, side: int, *, half: bool) -> Compiled | None:
    """The network compiled; None where OpenVINO is not installed or does not know all of its operators."""
    if find_spec("openvino") is None:
        return None
    try:
        return Compiled(network, side, half=half)
    except Exception as error:  # whatever an operator that it does not know leads to
        logger.info("OpenVINO cannot take this network (%s): torch encodes.", str(error).splitlines()[:1])
        return None
