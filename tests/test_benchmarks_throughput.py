"""Throughput and scaling, on small networks and a clock that only moves when told to."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from timm.layers import use_fused_attn
from torch.cuda._utils import _get_device_index
from tqdm import tqdm

from benchmarks import scaling, throughput
from benchmarks.__main__ import main
from benchmarks.measure import memory, session, timing
from benchmarks.measure.config import RunnerConfig, make_runner, parse_device
from benchmarks.measure.environment import conditions
from benchmarks.measure.memory import Memory
from benchmarks.measure.result import Result, Settings
from benchmarks.measure.runner import prepare_device
from benchmarks.measure.session import Session, find_largest_batch
from benchmarks.measure.timing import Probe, Spread, percentile, read_clock
from benchmarks.networks.specs import build, parse_spec
from hifuse_timm.files import write_json

MODELS = ["test_vit", "test_convnext", "test_byobnet"]
SECONDS = dict(zip(MODELS, [0.25, 0.5, 1.0], strict=True))


def make_settings(**kwargs):
    defaults = dict(models=MODELS, baseline="test_convnext", batch_sizes=[4], device="cpu", image_size=96)
    defaults |= dict(precision="float32", mode="training", channels_last=False, compile=False, rounds=4)
    return Settings(**(defaults | kwargs))


class Machine:
    """Networks whose steps take known times on a clock of their own, on a machine that gets slower."""

    def __init__(self, fail=None):
        self.now, self.slowdown, self.fail = 0.0, 1.0, fail or (lambda machine, model: None)
        self.turns, self.built = [], []

    def make_runner(self, config):
        self.built.append(config)

        def step():
            if not self.turns or self.turns[-1] != config.spec:
                self.turns.append(config.spec)
            self.fail(self, config.spec)
            self.now += SECONDS[config.spec] * self.slowdown
            self.slowdown *= 1.001

        runner = Probe(step, config.batch_size)
        runner.fused_attention = None
        return runner

    def make_probes(self, device, dtype):
        def step():
            self.now += 0.5
            self.turns.append("probe")

        return Probe(step, 1e9), Probe(step, 1e6)

    def session(self, result, save=lambda: None):
        return Session(
            result,
            save,
            tqdm(disable=True),
            self.make_runner,
            lambda: self.now,
            self.make_probes,
            lambda config, runner: Memory(2000, 1000),
        )


def rounds_of(turns):
    """The networks' turns in each round, which begins with the probes; warm-up is left out."""
    starts = [i for i, turn in enumerate(turns) if turn == "probe" and turns[i - 1 : i] != ["probe"]]
    return [[t for t in turns[a:b] if t != "probe"] for a, b in zip(starts, [*starts[1:], None], strict=True)]


def test_networks_take_turns_and_ratios_hold_on_a_machine_that_slows_down():
    machine, result = Machine(), Result(make_settings())
    machine.session(result).run()
    assert [sorted(turns) for turns in rounds_of(machine.turns)] == [sorted(MODELS)] * 4
    assert len({turns[0] for turns in rounds_of(machine.turns)}) == 3  # each begins once in a while
    for row in result.rows:
        assert row.batch_size == 4 and row.error is None and row.peak_memory == 2000
        assert len(row.samples.rates) == 4
        assert row.samples.rates[0] > row.samples.rates[-1]
        assert result.ratio(row).median == pytest.approx(0.5 / SECONDS[row.model], rel=0.02)
    ratio, rates = result.ratio(result.rows[0]), Spread.of(result.rows[0].samples.rates)
    assert ratio.high / ratio.low < rates.high / rates.low  # taken round by round, it follows no drift
    limits = result.limits_of(4)
    assert limits.matmul.rates == pytest.approx([2e9] * 4) and limits.copy.rates == pytest.approx([2e6] * 4)
    row = result.rows[1]
    shares = [6 * row.macs * rate / 2e9 for rate in row.samples.rates]  # a training step is three forward passes
    assert result.matmul_share(row).median == pytest.approx(percentile(shares, 50))


def test_inference_gets_latencies_at_batch_size_1_call_by_call():
    machine, result = Machine(), Result(make_settings(mode="inference", batch_sizes=[4, 1], rounds=2))
    machine.session(result).run()
    assert [limits.group for limits in result.limits] == [4, 1]
    assert not any(row.samples.call_seconds for row in result.group(4))
    for row in result.group(1):
        assert [len(calls) for calls in row.samples.call_seconds] == [20, 20]
        assert row.samples.call_seconds[0][0] == pytest.approx(SECONDS[row.model], rel=0.2)


def test_percentiles_are_told_where_enough_calls_were_timed():
    result = Result(make_settings(mode="inference", batch_sizes=[1], rounds=1))
    Machine().session(result).run()
    result.rows[0].samples.call_seconds = [[i / 1e3 for i in range(1, 101)]]
    result.rows[1].samples.call_seconds = [[i / 1e3 for i in range(1, 100)]]
    table = throughput.format_result(result, markdown=True).split("\n\n")[1].split("\n")
    header, _, first, second, _ = ([cell.strip() for cell in line.split("|")[4:7]] for line in table)
    assert header == ["p50 (ms)", "p90 (ms)", "p99 (ms)"]
    assert first == ["50.5", "90.1", "99.0"]
    assert second == ["50.0", "89.2", ""]


@pytest.mark.parametrize("when", ["warm-up", "round 3 of 4"])
def test_a_network_that_fails_becomes_a_row_and_the_others_go_on(when):
    def fail(machine, model):
        rates = result.rows[0].samples.rates
        if model == "test_vit" and (when == "warm-up" or len(rates) == 2):
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    machine, result = Machine(fail), Result(make_settings())
    machine.session(result).run()
    failed, *others = result.rows
    assert failed.error == f"{when}: OutOfMemoryError: CUDA out of memory."
    assert len(failed.samples.rates) == (0 if when == "warm-up" else 2)
    assert all(len(row.samples.rates) == 4 and row.error is None for row in others)
    assert f"test_vit failed in {failed.error}" in throughput.format_result(result)


def test_largest_batch_is_found_by_halving():
    tried = []

    def make_runner(size, fits=100):
        def step():
            tried.append(size)
            if size > fits:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        return Probe(step, size)

    runner, too_large = find_largest_batch(make_runner, 512)
    assert runner.amount == 64 and tried == [512, 256, 128, 64, 64] and too_large == [512, 256, 128]
    with pytest.raises(torch.OutOfMemoryError):
        find_largest_batch(lambda size: make_runner(size, fits=0), 512)


def test_max_runs_each_network_at_its_own_batch_size():
    def fail(machine, model):
        if machine.built[-1].batch_size > (16 if model == "test_vit" else 32):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    machine, settings = Machine(fail), make_settings(max_batch_size=64)
    settings.batch_sizes = ["max"]  # refused on the CPU, where the process would end
    result = Result(settings)
    machine.session(result).run()
    assert [row.batch_size for row in result.rows] == [16, 32, 32]
    text = throughput.format_result(result)
    assert "test_vit, batch 16" in text and "test_vit ran out of memory at batch 64, 32\n" in text


def test_the_largest_batch_leaves_a_gpu_room_for_the_other_networks(monkeypatch):
    shares = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share))
    with session._part_of_memory(torch.device("cuda")):
        assert shares == [0.75]
    assert shares == [0.75, 1.0]


def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "result.json"

    def interrupt(machine, model):
        if model == "test_convnext" and len(result.rows[1].samples.rates) == 2:
            raise KeyboardInterrupt

    machine, result = Machine(interrupt), Result(make_settings())
    with pytest.raises(KeyboardInterrupt):
        machine.session(result, lambda: write_json(path, result.to_json())).run()
    kept = Result.from_json(json.loads(path.read_text()))
    assert list(tmp_path.iterdir()) == [path]
    finished = [row.samples.rates[:2] for row in kept.rows]
    assert [len(row.samples.rates) for row in kept.rows] != [2, 2, 2]  # others had their third turn
    assert throughput.format_result(kept)

    machine = Machine()
    machine.session(kept).run()
    assert [len(row.samples.rates) for row in kept.rows] == [4, 4, 4]
    assert [row.samples.rates[:2] for row in kept.rows] == finished
    assert len(rounds_of(machine.turns)) == 2  # the third anew, and the fourth
    built = len(machine.built)
    kept.rows[0].peak_memory = None
    machine.session(kept).run()
    assert kept.rows[0].peak_memory == 2000
    assert len(machine.built) == built  # no turns are left to take


@pytest.fixture
def no_memory(monkeypatch):
    """No processes of their own for memory, which import everything anew."""
    monkeypatch.setattr(memory, "measure_in_child", lambda config: Memory(2 * 10**9, 10**9))


def shorten_turns(monkeypatch):
    """Have warm-ups and turns end after a few calls, and probes be small."""
    for name in ("WARMUP_SECONDS", "TURN_SECONDS"):
        monkeypatch.setattr(timing, name, 0.0)
    monkeypatch.setattr(timing, "MATRIX_SIZES", dict(cpu=8))
    monkeypatch.setattr(timing, "COPIED_NUMBERS", 8)


def test_command_is_recorded_with_the_variables_that_change_what_it_measures(monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmarks", "throughput", "--models", "a[b,c]"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1 2")
    monkeypatch.setenv("HF_HUB_TOKEN", "secret")
    command = conditions(torch.device("cpu"))["command"]
    assert command.endswith("MALLOC_TRIM_THRESHOLD_='1 2' python -m benchmarks throughput --models 'a[b,c]'")
    assert "secret" not in command


def test_command_measures_writes_and_resumes(tmp_path, monkeypatch, capsys, no_memory):
    shorten_turns(monkeypatch)
    path = tmp_path / "result.json"
    models = ["test_vit[no_fused_attn]", "test_convnext[conv_mlp,channels_last]"]
    options = ["--batch-size", "2", "--rounds", "2", "--image-size", "96", "--precision", "bfloat16"]
    assert main(["throughput", "--models", *models, *options, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "Batch size 2, inference, bfloat16, 96 pixels:" in printed and "Ratio to test_vit[no_fused_attn]" in printed
    data = json.loads(path.read_text())
    assert data["kind"] == "throughput" and data["settings"]["models"] == models
    (conditions,) = data["conditions"]
    assert conditions["torch"] == torch.__version__ and conditions["threads"] == torch.get_num_threads()
    assert {"device", "cores", "timm", "hifuse_timm", "date", "command"} <= set(conditions)
    assert conditions["tf32"] is conditions["gpu_before"] is conditions["gpu_after"] is None
    assert [(row["model"], row["group"]) for row in data["rows"]] == [
        (m, g) for g in (2, 1) for m in models
    ]  # 1 for the latency
    assert data["rows"][0]["fused_attention"] is False and data["rows"][1]["fused_attention"] is None
    assert all(row["error"] is None and len(row["samples"]["rates"]) == 2 for row in data["rows"])

    assert "leave out rounds" in main(["throughput", "--resume", str(path), "--rounds", "3"])
    assert main(["throughput", "--resume", str(path)]) == 0
    assert json.loads(path.read_text())["rows"] == data["rows"]
    conditions["torch"] = "1.0"
    path.write_text(json.dumps(data))
    assert "torch was 1.0 and is" in main(["throughput", "--resume", str(path)])
    path.write_text("{}")
    assert "is no result of throughput" in main(["throughput", "--resume", str(path)])


def test_ctrl_c_ends_with_what_there_is(tmp_path, monkeypatch, capsys):
    def run(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "measure", run)
    assert main(["scaling", "--models", "test_vit"]) == 130
    assert "Interrupted." in capsys.readouterr().out

    monkeypatch.setattr(Session, "run", run)
    path = tmp_path / "result.json"
    assert main(["throughput", "--models", "test_vit", "--json", str(path)]) == 130
    assert f"--resume {path} goes on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--models test_vit nonet", "'nonet' is no network"),
        ("--models test_vit[fast]", "'fast' in 'test_vit[fast]' is no option, expected one of fuse, compile"),
        ("--models test_vit[no_fuse]", "'no_fuse' in"),
        ("--models test_vit test_vit", "names a network twice"),
        ("--models test_vit --baseline test_convnext", "baseline: 'test_convnext' is not measured"),
        ("--models test_vit --precision tf32 --device cpu", "precision: tf32 is a GPU's"),
        ("--models test_vit --batch-size max --device cpu", "batch-size: max is for GPUs"),
        ("--models test_vit --device tpu", "device: 'tpu' is not known"),
        ("--models test_vit --device cuda:99", "device: 'cuda:99' is not there"),
        ("--models test_vit --rounds 0", "rounds: 0 is too few"),
        ("--models test_vit --batch-size 0", "batch-size: 0 is too few"),
        ("--models test_vit --compile-mode reduce-overhead", "compile-mode: reduce-overhead is for networks that"),
        ("--models test_vit --json nowhere/result.json", "nowhere, to write result.json in, does not exist"),
    ],
)
def test_bad_arguments_end_before_any_work(options, message):
    assert message in main(["throughput", *options.split()])


def test_specs_build_what_they_say():
    assert parse_spec("test_vit[compile]", channels_last=True).channels_last
    spec = parse_spec("test_vit[no_channels_last]", compile=True, channels_last=True)
    assert spec.compile and not spec.channels_last
    before = use_fused_attn(), use_fused_attn(experimental=True)
    for option, fused in (("fused_attn", True), ("no_fused_attn", False)):
        config = RunnerConfig(f"test_vit[{option}]", 1, 160, "cpu", "float32", "inference")
        assert make_runner(config).fused_attention is fused
    assert (use_fused_attn(), use_fused_attn(experimental=True)) == before
    assert build(parse_spec("test_vit[grad_checkpointing]"), 160).grad_checkpointing
    with pytest.raises(ValueError, match="nothing that folds"):
        build(parse_spec("test_convnext[fuse]"), 160)
    with pytest.raises(ValueError, match=r"test_vit\[conv_mlp\] cannot be built"):
        build(parse_spec("test_vit[conv_mlp]"), 160)


def test_folding_keeps_what_a_network_computes():
    models = []
    for spec in ("repvgg_a0", "repvgg_a0[fuse]"):
        torch.manual_seed(0)
        models.append(build(parse_spec(spec), 64))
    plain, folded = models
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), plain(images), rtol=1e-3, atol=1e-4)
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_step_trains(precision):
    runner = make_runner(RunnerConfig("test_vit", 2, 96, "cpu", precision, "training"))
    before = [p.detach().clone() for p in runner.model.parameters()]
    assert runner.images.std() > 0.5  # random, never zeros
    runner.keep_gradients = True
    runner.step()
    assert all(p.dtype == torch.float32 for p in runner.model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(runner.model.parameters(), before, strict=True))
    weights = sum(p.nbytes for p in runner.model.parameters())
    steps = 4 * len(before)  # AdamW counts its steps for each parameter
    assert runner.state_bytes() == 3 * weights + steps  # gradients and two moments
    with pytest.raises(ValueError, match="cannot train"):
        make_runner(RunnerConfig("repvgg_a0[fuse]", 2, 96, "cpu", precision, "training"))


@pytest.mark.skipif(not memory._STATUS.exists(), reason="needs /proc")
def test_memory_of_a_process_of_its_own():
    small, large = (
        memory.measure_in_child(RunnerConfig("test_convnext", batch, 160, "cpu", "float32", "inference"))
        for batch in (1, 64)
    )
    images = 63 * 3 * 160 * 160 * 4
    assert large.excess - small.excess > images / 2  # activations grow with the batch
    assert small.peak > small.excess >= 0
    with pytest.raises(RuntimeError, match="nonet"):
        memory.measure_in_child(RunnerConfig("nonet", 1, 160, "cpu", "float32", "inference"))


def test_memory_on_a_gpu_comes_from_its_allocator(monkeypatch):
    runner = SimpleNamespace(step=lambda: None, keep_gradients=False, weight_bytes=lambda: 10, state_bytes=lambda: 30)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1000)  # of it, 960 belong to other networks
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1500)
    assert memory.measure_on_cuda(runner) == Memory(peak=540, excess=500)
    config = RunnerConfig("test_vit", 1, 96, "cuda", "float32", "inference")
    assert memory.peak_memory(config, runner) == Memory(peak=540, excess=500)
    graphs = replace(config, compile=True, compile_mode="reduce-overhead")
    assert memory.peak_memory(graphs, runner) is None  # they hold memory between calls, so that no call shows it


@pytest.mark.parametrize(
    ("precision", "weights", "computed"),
    [
        ("float32", torch.float32, torch.float32),
        ("bfloat16", torch.bfloat16, torch.bfloat16),
        ("amp_bfloat16", torch.float32, torch.bfloat16),
        ("amp", torch.float32, torch.float16),
    ],
)
def test_precision_is_that_of_weights_or_of_autocast(precision, weights, computed):
    runner = make_runner(RunnerConfig("test_vit", 2, 96, "cpu", precision, "inference"))
    assert runner.images.dtype == runner.model.head.weight.dtype == weights
    assert runner.forward()[0].dtype == computed


def test_compile_mode_reaches_the_compiler(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "compile", lambda model, **kwargs: given.append(kwargs) or model)
    for compile in (True, False):
        config = RunnerConfig("test_vit", 2, 96, "cpu", "float32", "inference", compile, compile_mode="reduce-overhead")
        make_runner(config)
    assert given == [dict(dynamic=False, mode="reduce-overhead")]


def test_a_gpu_is_made_the_current_one_by_its_index(monkeypatch):
    made_current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: made_current.append(_get_device_index(device)))
    for name in ("cuda", "cuda:1"):
        prepare_device(parse_device(name))
    assert made_current == [0, 1]


def test_conditions_say_how_a_gpu_is(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    monkeypatch.setenv("PATH", str(tmp_path))
    device = torch.device("cuda")
    assert conditions(device, tf32=True)["gpu_before"] is None  # without nvidia-smi
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\n[ "$1" = --id=GPU-12-34 ] && echo "1980 MHz, 2619 MHz, 99.50 W, 700.00 W, 41"\n')
    smi.chmod(0o755)
    here = conditions(device, tf32=True)
    assert here["tf32"] == "on" and here["gpu_before"] == "SM 1980 MHz, memory 2619 MHz, 99.50 W of 700.00 W, 41 °C"
    assert conditions(device, tf32=False)["tf32"] == "off" and conditions(device)["tf32"] is None


def test_gpu_is_waited_for_before_the_clock_is_read(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append("wait"))
    Probe(lambda: waits.append("step"), 1).time(2, read_clock)
    assert waits == ["wait", "step", "step", "wait"]


def test_fitted_exponent_and_its_error():
    pixels = [112**2, 224**2, 448**2, 672**2]
    law = scaling.PowerLaw.fit(pixels, [3 * p**1.5 for p in pixels])
    assert law.exponent == pytest.approx(1.5) and law.error == pytest.approx(0, abs=1e-9)
    assert law(1000) == pytest.approx(3 * 1000**1.5)
    noisy = scaling.PowerLaw.fit(pixels, [p * factor for p, factor in zip(pixels, (1.1, 0.9, 1.1, 0.9), strict=True)])
    assert 0 < noisy.error < 0.2
    assert scaling.PowerLaw.fit(pixels[:2], [1, 2]) is None


def test_scaling_command(tmp_path, monkeypatch, capsys):
    shorten_turns(monkeypatch)
    monkeypatch.setattr(scaling, "peak_memory", lambda config: Memory(10**9, config.img_size**2 * 100))
    path = tmp_path / "scaling.json"
    command = f"scaling --models test_convnext test_vit --sizes 64 96 128 --rounds 2 --json {path}"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    assert "1.000 ± 0.000" in printed  # the memory
    data = json.loads(path.read_text())
    points = [scaling.Point.from_json(point) for point in data["points"]]
    assert [asdict(point) for point in points] == data["points"]
    assert all(point.error is None and len(point.samples.rates) == 2 for point in points)
    vit = scaling.fit([point for point in points if point.model == "test_vit"], "macs")
    assert 1 < vit.exponent < 2
    assert "sizes: 0 is too few" in main(["scaling", "--sizes", "0"])
