"""What `python -m benchmarks throughput` measures and keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from .config import PRECISIONS, RunnerConfig, parse_device
from .timing import Samples, Spread, ratios


@dataclass
class Settings:
    """What is measured and how; all of it is in the result, so that a measurement can go on.

    Attributes:
        models: Specs, see `benchmarks.networks.specs`.
        baseline: The one of them to which the others are compared.
        batch_sizes: Images a call; 'max' for the largest that fits.
        max_batch_size: Where 'max' begins to halve.
        compile_mode: Mode of torch.compile, its default for None.
    """

    models: list[str]
    baseline: str
    batch_sizes: list[int | str]
    device: str
    image_size: int = 224
    precision: str = "float32"
    mode: str = "inference"
    channels_last: bool = False
    compile: bool = False
    rounds: int = 5
    max_batch_size: int = 8192
    compile_mode: str | None = None

    @classmethod
    def of(
        cls,
        models: list[str],
        baseline: str | None = None,
        batch_sizes: list[int | str] | None = None,
        device: str | None = None,
        **given,
    ) -> Settings:
        """Settings with the defaults of the device.

        Args:
            models: See the attributes.
            baseline: See the attributes; the first of the models by default.
            batch_sizes: See the attributes; 1 and 8 by default, on a GPU 1 and 128.
            device: Name of the device; the GPU by default, if there is one.
            given: Whatever else is not to be as it is by default.

        Raises:
            ValueError: If they cannot be measured here.
        """
        found = parse_device(device)
        batch_sizes = batch_sizes or [1, 8 if found.type == "cpu" else 128]
        settings = cls(models, baseline or models[0], batch_sizes, str(found), **given)
        settings.check()
        return settings

    def check(self) -> None:
        """Hold the settings against this machine, before any work.

        Raises:
            ValueError: If something cannot be measured here, or not at all.
        """
        specs = [self.runner_config(model, 1).parse() for model in self.models]
        if self.compile_mode is not None and not any(spec.compile for spec in specs):
            raise ValueError(f"compile-mode: {self.compile_mode} is for networks that are compiled; add compile")
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"models: {' '.join(self.models)} names a network twice")
        if self.baseline not in self.models:
            raise ValueError(f"baseline: {self.baseline!r} is not measured, expected one of {', '.join(self.models)}")
        on_gpu = parse_device(self.device).type == "cuda"
        if PRECISIONS[self.precision].tf32 and not on_gpu:
            raise ValueError("precision: tf32 is a GPU's, expected another on the CPU")
        if "max" in self.batch_sizes and not on_gpu:
            raise ValueError(
                "batch-size: max is for GPUs, expected numbers: where a CPU's memory runs out the process ends"
            )
        sizes = [("batch-size", size) for size in self.batch_sizes if size != "max"]
        for name, value in (("image-size", self.image_size), ("rounds", self.rounds), *sizes):
            if value < 1:
                raise ValueError(f"{name}: {value} is too few, expected at least 1")

    def runner_config(self, model: str, batch_size: int) -> RunnerConfig:
        """One network with these settings."""
        return RunnerConfig(
            model,
            batch_size,
            self.image_size,
            self.device,
            self.precision,
            self.mode,
            compile=self.compile,
            channels_last=self.channels_last,
            compile_mode=self.compile_mode,
        )


@dataclass
class Row:
    """Measurements of one network at one batch size.

    Attributes:
        model: Its spec.
        group: The batch size asked for, 'max' for the largest that fits.
        batch_size: The batch size that it ran at.
        out_of_memory: Larger ones at which memory ran out.
        macs: Multiply-accumulates of convolutions and linear layers for one image.
        fused_attention: Whether any attention is fused; None for a network without timm's attention.
        samples: Images a second of each round, and seconds of each call at batch size 1.
        peak_memory: Highest memory in bytes.
        excess_memory: What of it exceeds weights, gradients, optimizer state, and the interpreter with its imports.
        error: Why the network was not measured, or not to the end.
    """

    model: str
    group: int | str
    batch_size: int | None = None
    out_of_memory: list[int] = field(default_factory=list)
    macs: float | None = None
    fused_attention: bool | None = None
    samples: Samples = field(default_factory=Samples)
    peak_memory: int | None = None
    excess_memory: int | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """Which of the measurements it is."""
        return f"{self.model}, batch {self.group}"


@dataclass
class Limits:
    """What the device can do, measured in the same rounds as the networks of a batch size."""

    group: int | str
    matmul: Samples = field(default_factory=Samples)
    copy: Samples = field(default_factory=Samples)


@dataclass
class Result:
    """A measurement, finished or not.

    Attributes:
        conditions: Those of each session that measured.
    """

    settings: Settings
    conditions: list[dict] = field(default_factory=list)
    limits: list[Limits] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def to_json(self) -> dict:
        return dict(kind="throughput", **asdict(self))

    @classmethod
    def from_json(cls, data: dict) -> Result:
        return cls(
            Settings(**data["settings"]),
            data["conditions"],
            [Limits(v["group"], Samples(**v["matmul"]), Samples(**v["copy"])) for v in data["limits"]],
            [Row(**{**row, "samples": Samples(**row["samples"])}) for row in data["rows"]],
        )

    def group(self, group: int | str) -> list[Row]:
        """Rows of a batch size."""
        return [row for row in self.rows if row.group == group]

    def ratio(self, row: Row) -> Spread | None:
        """Images a second over the baseline's, round by round."""
        baseline = next(r for r in self.group(row.group) if r.model == self.settings.baseline)
        return Spread.of(ratios(row.samples.rates, baseline.samples.rates))

    def matmul_share(self, row: Row) -> Spread | None:
        """Share of the matrix-product rate that the network's multiply-accumulates reach, round by round.

        A training step computes them three times: forward, and for the gradients of activations and of weights.
        """
        if row.macs is None:
            return None
        operations = 2 * row.macs * (3 if self.settings.mode == "training" else 1)
        matmul = self.limits_of(row.group).matmul.rates
        return Spread.of([operations * ratio for ratio in ratios(row.samples.rates, matmul)])

    def limits_of(self, group: int | str) -> Limits | None:
        """The device's limits as measured with a batch size."""
        return next((limits for limits in self.limits if limits.group == group), None)
