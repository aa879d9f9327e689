"""Networks in the files that `export` writes: what such a file says of its network, and running it on the CPU.

| file | run by | what it may do |
| --- | --- | --- |
| `.onnx` | ONNX Runtime | compute; weights outside the file are refused |
| `.xml` with its `.bin` | OpenVINO | compute |
| `.pt2` | `torch.export.load` | anything: that unpickles and evaluates what the file holds, so it needs `trust_pt2` |

Needs the extra `export`.
"""

import functools
import hashlib
import json
import sys
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from .errors import first_line, require
from .fields import CHECKSUM, COUNT, OBJECT, TEXT, between, check_fields, is_number, or_null
from .text import abbreviate

__all__ = [
    "ENDINGS",
    "METADATA",
    "METADATA_OF_BIN",
    "PRECISIONS_OF_FORMATS",
    "ExportedModel",
    "Metadata",
    "get_openvino_core",
    "is_exported",
    "read_exported",
    "require_quietly",
]

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}

# ONNX Runtime has no convolutions in bfloat16 on CPUs, PyTorch no int8 that torch.export.save keeps for other machines.
PRECISIONS_OF_FORMATS = {
    "onnx": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
    "pt2": ("float32", "bfloat16"),
}

METADATA = "hifuse_timm"  # the key of the metadata in ONNX, OpenVINO's rt_info and, with .json, pt2's extra files
METADATA_OF_BIN = "hifuse_timm_bin"  # in the rt_info of an .xml: the SHA-256 of the .bin that goes with it

_LARGEST_SIDE = 1 << 14  # pixels
_MOST_COMPILED = 2  # numbers of images for which OpenVINO keeps a network: of whole batches and of the last one


def _is_list_of(is_item: Callable, length: int | None = None) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, list) and length in (None, len(value)) and bool(value) and all(map(is_item, value))
    )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and is_number(value) and 0 < value <= _LARGEST_SIDE


_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_NUMBERS = _is_list_of(lambda value: is_number(value) and abs(value) < 1e6)
_FIELDS = {
    "architecture": TEXT,
    "num_classes": COUNT,
    "classes": or_null(("a list of different names", lambda v: _is_list_of(TEXT[1])(v) and len(set(v)) == len(v))),
    "image_mode": TEXT,
    "transform": {
        "input_size": ("channels, height and width", _is_list_of(_is_size, 3)),
        "interpolation": (f"one of {', '.join(_INTERPOLATIONS)}", lambda v: v in _INTERPOLATIONS),
        "mean": ("a list of numbers", _NUMBERS),
        "std": ("a list of numbers over 0", lambda v: _NUMBERS(v) and min(v) > 0),
        "crop_pct": between(0.01, 100),
        "crop_mode": ("center, squash or border", lambda v: v in ("center", "squash", "border")),
    },
    "format": (f"one of {', '.join(ENDINGS)}", lambda v: isinstance(v, str) and v in ENDINGS),
    "precision": TEXT,
    "dynamic_batch": ("true or false", lambda v: isinstance(v, bool)),
    "weights": CHECKSUM,
    "versions": OBJECT,
}


@dataclass(frozen=True)
class Metadata:
    """What an exported file says of its network.

    Attributes:
        architecture: Name of the architecture in timm.
        num_classes: Number of outputs.
        classes: Names of the classes in the order of the outputs; None where nothing named them.
        image_mode: Mode in which images reach the transform, as Pillow names it.
        transform: Settings of the transform, as timm names them.
        format: Kind of the file, of `ENDINGS`.
        precision: What the network computes in, of `PRECISIONS_OF_FORMATS`.
        dynamic_batch: Whether it takes any number of images at once; otherwise one.
        weights: SHA-256 of the weights that it was made of, as `hifuse_timm.checkpoint.checksum_weights` has it.
        versions: Versions of the libraries that made the file.
    """

    architecture: str
    num_classes: int
    classes: list[str] | None
    image_mode: str
    transform: dict
    format: str
    precision: str
    dynamic_batch: bool
    weights: str
    versions: dict[str, str]

    def to_json(self) -> str:
        """The metadata as a line of ASCII, which every format keeps as it is."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, path: Path) -> "Metadata":
        """Read what `to_json` wrote.

        Raises:
            ValueError: If it is anything else.
        """
        what = f"the metadata in {path}"
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{what} are no JSON: {first_line(e)}") from e
        if not isinstance(content, dict):
            raise ValueError(f"{what} are a {type(content).__name__}, expected an object as export writes it")
        check_fields(content, _FIELDS, what, "export writes")
        transform = {name: content["transform"][name] for name in _FIELDS["transform"]}
        metadata = cls(**{name: content[name] for name in _FIELDS} | dict(transform=transform))
        channels = transform["input_size"][0]
        faults = {
            f"classes are {len(metadata.classes or ())}, num_classes is {metadata.num_classes}": (
                metadata.classes is not None and len(metadata.classes) != metadata.num_classes
            ),
            f"mean and std are not of {channels} channels": not (
                len(transform["mean"]) == len(transform["std"]) == channels
            ),
            f"format is {metadata.format}": ENDINGS[metadata.format] != path.suffix,
            f"precision is {abbreviate(metadata.precision, 40)}": (
                metadata.precision not in PRECISIONS_OF_FORMATS[metadata.format]
            ),
        }
        for fault, is_there in faults.items():
            if is_there:
                raise ValueError(f"{what} do not fit together: {fault}")
        return metadata


class ExportedModel(nn.Module):
    """A network in a file, which is run on the CPU in the place of one of PyTorch.

    Its state dict has the file's SHA-256 in the place of weights.

    Args:
        path: The file.
        metadata: What it says of its network.
        compute: Makes logits, (N, num_classes), of images, (N, *input_size), both float32 on the CPU.
        checksum: SHA-256 of the file.
    """

    def __init__(
        self, path: Path, metadata: Metadata, compute: Callable[[torch.Tensor], torch.Tensor], checksum: bytes
    ):
        super().__init__()
        self.path = path
        self.metadata = metadata
        self.num_classes = metadata.num_classes
        self.pretrained_cfg = dict(architecture=metadata.architecture)
        self.compute = compute
        self.register_buffer("file_checksum", torch.tensor(list(checksum), dtype=torch.uint8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images; of a file that takes one image at once, one after the other.

        Raises:
            ValueError: If the file does not compute logits as its metadata say.
        """
        batches = [images] if self.metadata.dynamic_batch else images.split(1)
        try:
            logits = torch.cat([self.compute(batch.contiguous()) for batch in batches])
        except Exception as e:  # each runtime has errors of its own
            raise ValueError(f"{self.path} cannot be run: {abbreviate(first_line(e), 300)}") from e
        expected = (len(images), self.num_classes)
        if tuple(logits.shape) != expected or logits.dtype != torch.float32:
            raise ValueError(
                f"{self.path} gives {logits.dtype} of shape {tuple(logits.shape)}, expected torch.float32 of {expected}"
            )
        return logits


def is_exported(path: str | Path | None) -> bool:
    """Whether a file is one of `export`, by its ending."""
    return path is not None and Path(path).suffix in ENDINGS.values()


def read_exported(path: str | Path, trust_pt2: bool = False) -> ExportedModel:
    """Read a file that `export` wrote, to be run with as many threads as PyTorch has.

    Args:
        path: The file, by its ending of ONNX, OpenVINO, whose .bin lies beside the .xml, or pt2.
        trust_pt2: Whether to read a .pt2, which can run any code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, not of `export`, or a .pt2 without `trust_pt2`.
        RuntimeError: If a library is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"exported file {path} does not exist or is not a file")
    if path.suffix == ".pt2" and not trust_pt2:
        raise ValueError(
            f"{path} can run any code: PyTorch unpickles and evaluates what a .pt2 holds. If you made it, or trust who "
            "did, give trust_pt2 (--trust-pt2); ONNX and OpenVINO need no trust"
        )
    return {".onnx": _read_onnx, ".xml": _read_openvino, ".pt2": _read_pt2}[path.suffix](path)


def require_quietly(name: str, extra: str) -> ModuleType:
    """Import a module that an extra brings, without what OpenVINO and nncf would send to their makers on its use.

    Raises:
        RuntimeError: If it cannot be imported; names the extra.
    """
    telemetry = "openvino_telemetry"  # which both take for optional
    imported = sys.modules.get(telemetry)
    sys.modules[telemetry] = None
    try:
        return require(name, extra)
    finally:
        del sys.modules[telemetry]
        if imported is not None:
            sys.modules[telemetry] = imported


@contextmanager
def _reading(path: Path):
    """What a library says of a file that it cannot read, as one error."""
    try:
        yield
    except Exception as e:
        raise ValueError(f"{path} is damaged or cannot be read: {abbreviate(first_line(e), 300)}") from e


def _read_onnx(path: Path) -> ExportedModel:
    onnx, onnxruntime = require("onnx", "export"), require("onnxruntime", "export")
    content = path.read_bytes()
    with _reading(path):
        model = onnx.ModelProto.FromString(content)
    if _has_external_data(model, onnx.TensorProto):
        raise ValueError(f"{path} has weights in other files, whose names it chooses: expected all in the file itself")
    metadata = Metadata.from_json(_find(path, {p.key: p.value for p in model.metadata_props}), path)
    del model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is an exception too
    with _reading(path):  # from memory, so that there is no folder to find other files in
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (name,) = [value.name for value in session.get_inputs()]

    def compute(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy(force=True)})[0])

    return ExportedModel(path, metadata, compute, hashlib.sha256(content).digest())


def _has_external_data(message, tensor_type: type) -> bool:
    """Whether a protobuf message has a tensor, at any depth, that lies in another file."""
    if isinstance(message, tensor_type):
        return message.data_location == tensor_type.EXTERNAL or bool(message.external_data)
    for field, value in message.ListFields():
        if field.message_type is not None:
            values = value if hasattr(value, "__len__") else [value]
            if any(_has_external_data(inner, tensor_type) for inner in values):
                return True
    return False


@functools.cache
def get_openvino_core():
    """The one openvino.Core of the process, which stays to its end.

    Raises:
        RuntimeError: OpenVINO is not installed.
    """
    core = require_quietly("openvino", "export").Core()
    # Where a CPU has AMX, the plugin of every core puts a stack for signals in the place of the one it finds, and that
    # one back when it goes. Of several that go in another order than they came, the last puts back the stack of one
    # that is gone, and the next Ctrl-C is a segmentation fault. So there is one, before nncf has its own.
    core.get_property("CPU", "FULL_DEVICE_NAME")
    return core


def _read_openvino(path: Path) -> ExportedModel:
    core = get_openvino_core()
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}, the weights of {path}, does not exist or is not a file")
    content, weights_content = path.read_bytes(), weights.read_bytes()
    if not content.startswith(b"<?xml"):  # OpenVINO goes by the content, and would read ONNX with its other files too
        raise ValueError(f"{path} is no XML: expected a file that export wrote")
    with _reading(path):
        model = core.read_model(content, weights_content)
        found = {key: value.astype(str) for key, value in model.get_rt_info().items() if key.startswith(METADATA)}
    metadata = Metadata.from_json(_find(path, found), path)
    if found.get(METADATA_OF_BIN) != hashlib.sha256(weights_content).hexdigest():
        raise ValueError(f"{weights} is not the one that was written with {path}: copy both again")
    hints = {
        # else the CPU's own choice; what int8 leaves in floating point has no use for more than bfloat16 either
        "INFERENCE_PRECISION_HINT": "f32" if metadata.precision == "float32" else "bf16",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = {}

    def compute(images: torch.Tensor) -> torch.Tensor:
        number = len(images)
        if number not in compiled:  # for one number of images at a time, copies between layouts are left out
            if len(compiled) == _MOST_COMPILED:
                del compiled[next(iter(compiled))]
            if metadata.dynamic_batch:
                model.reshape([number, *images.shape[1:]])
            compiled[number] = core.compile_model(model, "CPU", hints)
        return torch.from_numpy(compiled[number](images.numpy(force=True))[0].copy())

    with _reading(path):
        compute(torch.zeros(1, *metadata.transform["input_size"]))
    return ExportedModel(path, metadata, compute, hashlib.sha256(content).digest())


def _read_pt2(path: Path) -> ExportedModel:
    with _reading(path), zipfile.ZipFile(path) as archive:  # first, as torch.export logs a traceback of what it lacks
        names = [name for name in archive.namelist() if name.endswith(f"/{METADATA}.json")]
        found = {Path(name).stem: archive.read(name).decode() for name in names}
    metadata = Metadata.from_json(_find(path, found), path)
    with _reading(path):
        network = torch.export.load(path).module()
    checksum = hashlib.sha256(path.read_bytes()).digest()
    return ExportedModel(path, metadata, lambda images: network(images.cpu()), checksum)


def _find(path: Path, found: dict[str, str]) -> str:
    """The text of the metadata among all that a file says of itself."""
    if METADATA not in found:
        raise ValueError(f"{path} has no metadata of hifuse_timm: expected a file that export wrote")
    return found[METADATA]
