"""The writers of the formats: a network of PyTorch into a file, by torch.export, torch.onnx, OpenVINO and nncf."""

import copy
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import nn

from ..errors import first_line
from ..exported import METADATA, METADATA_OF_BIN, Metadata, get_openvino_core, require_quietly
from ..files import sha256
from ..hifuse import HiFuse
from ..loading import Trained
from ..text import abbreviate
from .comparison import draw_images, read_images
from .tokens import on_tokens

__all__ = ["LIBRARIES", "WRITERS"]

# What writes each format, and runs it. OpenVINO reads the network as ONNX.
LIBRARIES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "pt2": (),
}

_LARGEST_ONNX = 2**31 - 2**24  # bytes of weights: protobuf ends at 2 GiB, with the graph


class _InBfloat16(nn.Module):
    """A network in bfloat16 that takes and gives float32."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.to(torch.bfloat16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.to(torch.bfloat16)).float()


@contextmanager
def _converting(metadata: Metadata) -> Iterator[None]:
    """What a library says of a network that it cannot convert, as one error; what it prints goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as e:  # each converter has errors of its own
        raise ValueError(
            f"{metadata.architecture} cannot be exported to {metadata.format} in {metadata.precision}: "
            f"{abbreviate(first_line(e), 300)}"
        ) from e


def _trace(network: nn.Module, trained: Trained, dynamic_batch: bool) -> torch.export.ExportedProgram:
    images = draw_images(trained, 2 if dynamic_batch else 1)  # of a batch of 1 the number would be fixed
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None
    program = torch.export.export(network, (images,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _write_pt2(trained: Trained, metadata: Metadata, calibration: None, path: Path) -> None:
    network = trained.model
    with _converting(metadata):
        if metadata.precision == "bfloat16":
            network = _InBfloat16(copy.deepcopy(network))
        program = _trace(network, trained, metadata.dynamic_batch)
    torch.export.save(program, path, extra_files={f"{METADATA}.json": metadata.to_json()})


def _write_onnx(trained: Trained, metadata: Metadata, calibration: list[str] | None, path: Path) -> None:
    model = _to_onnx(trained, metadata)
    if calibration is not None:
        with _converting(metadata):
            name = model.graph.input[0].name
            model = _quantize(model, trained, calibration, lambda images: {name: images})
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, metadata.to_json()
    path.write_bytes(model.SerializeToString())


def _write_openvino(trained: Trained, metadata: Metadata, calibration: list[str] | None, path: Path) -> None:
    openvino = require_quietly("openvino", "export")
    content = _to_onnx(trained, metadata).SerializeToString()
    with _converting(metadata):
        model = get_openvino_core().read_model(content)
        if calibration is not None:
            # OpenVINO computes depthwise convolutions of tokens in bfloat16 either way: nncf, which quantizes what they
            # take channel by channel, takes the tokens for the channels. Without that it computes less
            left_out = ["GroupConvolution"] if isinstance(trained.model, HiFuse) else []
            model = _quantize(model, trained, calibration, lambda images: images, left_out)
    openvino.save_model(model, path, compress_to_fp16=False)
    model.set_rt_info(metadata.to_json(), METADATA)
    model.set_rt_info(sha256(path.with_suffix(".bin")), METADATA_OF_BIN)
    openvino.save_model(model, path, compress_to_fp16=False)  # the same .bin again, beside an .xml that knows it


def _to_onnx(trained: Trained, metadata: Metadata):
    """The network as an onnx.ModelProto that makes `logits` of `images`."""
    size = sum(tensor.nbytes for tensor in trained.model.state_dict().values())
    if size > _LARGEST_ONNX:
        raise ValueError(
            f"{metadata.architecture} has {size:,} bytes of weights, and ONNX, by which OpenVINO takes them too, ends "
            "at 2 GiB: give format pt2"
        )
    with _converting(metadata):
        network = on_tokens(trained.model, trained.data_config["input_size"][1:])
        program = _trace(network, trained, metadata.dynamic_batch)
        names = dict(input_names=["images"], output_names=["logits"])
        return torch.onnx.export(program, dynamo=True, verbose=False, **names).model_proto


def _quantize(model, trained: Trained, calibration: list[str], to_inputs: Callable, left_out: Sequence[str] = ()):
    """A network of ONNX or OpenVINO in int8, but for ops of these types, calibrated on these image files."""
    nncf = require_quietly("nncf", "int8")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # set_log_level would reach handlers that others put there
    images = nncf.Dataset(calibration, lambda file: to_inputs(read_images(trained, [file]).numpy()))
    # behind a LayerNorm channels have ranges of their own, as in transformers, whatever else the network is
    has_norms = any(isinstance(module, nn.LayerNorm) for module in trained.model.modules())
    model_type = nncf.ModelType.TRANSFORMER if has_norms else None
    ignored = nncf.IgnoredScope(types=list(left_out), validate=False)
    return nncf.quantize(model, images, subset_size=len(calibration), model_type=model_type, ignored_scope=ignored)


WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "pt2": _write_pt2}
