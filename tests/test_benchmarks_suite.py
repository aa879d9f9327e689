"""The suite: what is measured in which order, what is kept when it ends early, and its page and tables."""

import csv
import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_benchmarks_throughput import Machine, no_memory, shorten_turns  # noqa: F401
from torch.cuda._utils import _get_device_index

pytest.importorskip("matplotlib")

from benchmarks import complexity, figures, scaling, suite, suite_cells, throughput, timm_results  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.measure import session  # noqa: E402
from benchmarks.measure.counting import Count  # noqa: E402
from benchmarks.measure.memory import Memory  # noqa: E402
from benchmarks.measure.result import Limits, Result, Row, Settings  # noqa: E402
from benchmarks.measure.session import Session  # noqa: E402
from benchmarks.measure.timing import Samples  # noqa: E402
from benchmarks.suite_page import check_rig  # noqa: E402

# first lines of results/benchmark-infer-amp-nchw-pt291-cu130-5090.csv and -train-amp-nchw-pt112-cu113-rtx3090.csv
TIMM_INFER = (
    "model,infer_img_size,infer_samples_per_sec,infer_step_time,infer_batch_size,param_count,infer_gmacs,infer_macts"
)
TIMM_TRAIN = "model,train_samples_per_sec,train_step_time,train_batch_size,train_img_size,param_count"
SWIN, CONVNEXT = "swin_base_patch4_window7_224", "convnext_base"


def run_here(arguments, seconds):
    """Run a cell in this process."""
    code = main(arguments)
    return ("failed", str(code)) if code else ("done", None)


def states(folder):
    return {name: entry["state"] for name, entry in json.loads((folder / "suite.json").read_text())["progress"].items()}


class Gpu(Machine):
    """A GPU that is not there: steps take known times an image, and batches above 128 of a network do not fit."""

    seconds = {CONVNEXT: 1e-3, SWIN: 1.6e-3, "hifuse_tiny": 0.8e-3}

    def make_runner(self, config):
        self.built.append(config)
        self.tf32 = torch.backends.cuda.matmul.allow_tf32

        def step():
            if config.batch_size > 128 and config.spec == SWIN:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            self.now += self.seconds.get(config.spec, 1e-3) * config.batch_size

        runner = session.Probe(step, config.batch_size)
        runner.fused_attention = None
        return runner

    def session(self, result, save, progress):
        def measure_memory(config, runner):
            assert runner is not None  # the network that took its turns: to compile it again takes long
            return Memory(2000, 1000)

        return Session(result, save, progress, self.make_runner, lambda: self.now, self.make_probes, measure_memory)


@pytest.fixture
def gpu(monkeypatch):
    """Have this process see a GPU, and run the cells of a suite in it."""
    machine = Gpu()
    for name, answer in dict(
        is_available=True,
        device_count=1,
        get_device_name="NVIDIA GeForce RTX 4090",
        get_device_properties=SimpleNamespace(uuid="1"),
        empty_cache=None,
    ).items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer: answer)
    # these take no GPU without an index
    monkeypatch.setattr(torch.cuda, "set_device", _get_device_index)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: _get_device_index(device))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("PATH", os.devnull)  # without nvidia-smi
    counted = Count(88_590_000, 15e9, 15.38e9, Counter(a=15 * 10**9), activations=28_750_000)
    for module in (complexity, scaling):
        monkeypatch.setattr(module, "count_form", lambda form, img_size: counted)
    monkeypatch.setattr(session, "count_form", lambda form, img_size: pytest.fail("counted by complexity already"))
    monkeypatch.setattr(throughput, "Session", machine.session)
    monkeypatch.setattr(scaling, "make_runner", lambda config: (_ for _ in ()).throw(RuntimeError("no such GPU")))
    monkeypatch.setattr(suite_cells, "find_spec", lambda name: None)
    monkeypatch.setattr(suite, "execute", run_here)
    monkeypatch.setattr(session, "release_memory", lambda: None)  # half a second each time, as a picture takes one
    monkeypatch.setattr(figures, "place_labels", lambda ax, points: None)
    monkeypatch.setattr(figures, "save", lambda figure, path: path.with_suffix(".svg").touch())
    yield machine
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def test_a_gpu_is_measured_in_all_ways_and_what_tells_most_comes_first(gpu, tmp_path, monkeypatch, capsys):
    order, modes, tf32 = [], {}, {}

    def execute(arguments, seconds):
        order.append(Path(arguments[-1]).stem)
        ended = run_here(arguments, seconds)
        if arguments[0] == "throughput":
            config = gpu.built[-1]
            modes[order[-1]], tf32[order[-1]] = (config.compile, config.compile_mode), gpu.tf32
        return ended

    monkeypatch.setattr(suite, "execute", execute)
    assert main(["suite", "--out", str(tmp_path / "out"), "--rounds", "2"]) == 0
    out = tmp_path / "out"
    assert order[:3] == ["complexity", "inference-amp-eager-max", "inference-bfloat16-compiled-max"]
    assert order.index("scaling") < order.index("inference-amp-compiled-max")
    others = [name.removesuffix("-others") for name in order if name.endswith("-others")]
    assert sorted([*others, *others, "complexity", "scaling"]) == sorted(n.removesuffix("-others") for n in order)
    assert all(order.index(name) < order.index(f"{name}-others") for name in others)
    assert order.index("inference-float32-eager-1-others") < order.index("inference-amp-compiled-max")
    assert len(set(order)) == len(order) == len(states(out)) and set(states(out).values()) == {"done"}
    ways = {
        f"inference-{p}-{c}-{b}"
        for p in ("float32", "tf32", "bfloat16", "amp")
        for c in ("eager", "compiled")
        for b in (1, "max")
    }
    assert ways < set(order)
    assert modes["inference-amp-compiled-1"] == (True, "reduce-overhead")
    assert modes["inference-amp-compiled-max"] == (True, None) and modes["inference-amp-eager-1"] == (False, None)
    assert {name for name, on in tf32.items() if on} == {name for name in order if "tf32" in name}

    result = Result.from_json(json.loads((out / "inference-amp-eager-max.json").read_text()))
    sizes = {row.model: (row.batch_size, row.out_of_memory) for row in result.rows}
    assert sizes == {"hifuse_tiny": (256, []), CONVNEXT: (256, []), SWIN: (128, [256])}
    assert all(row.macs == 15e9 and row.peak_memory == 2000 for row in result.rows)

    page, printed = (out / "report.md").read_text(), capsys.readouterr().out
    for text in (page, printed):
        assert "Swin-B over ConvNeXt-B, inference, amp, 224 pixels: 0.62" in text and "That is near it." in text
        assert "conformer-base-p16_3rdparty_in1k needs mmpretrain" in text
        assert "hifuse_tiny[fuse] is folded for inference and does not train" in text
        assert "Not measured" not in text
    assert "1250.0 (1.25)" in page and "128 to 256" in page and "(inference-amp-eager-max.svg)" in page
    assert f"{SWIN} ran out of memory at batch 256" in page

    torch_version = "".join(filter(str.isdigit, torch.__version__.partition("+")[0]))
    table = out / f"benchmark-infer-amp-nchw-pt{torch_version}-cu130-rtx4090.csv"
    assert table.read_text().splitlines()[0] == TIMM_INFER
    rows = list(csv.DictReader(table.open()))
    assert [row["model"] for row in rows][0] == "hifuse_tiny" and rows[-1]["model"] == SWIN
    assert len({row["model"] for row in rows}) == len(rows) == 6
    assert list(rows[-1].values()) == [SWIN, "224", "625.0", "204.8", "128", "88.59", "15.38", "28.75"]
    assert rows[[row["model"] for row in rows].index("hifuse_tiny[fuse]")]["param_count"] == ""  # that of another form
    train = out / f"benchmark-train-amp_bf16-nchw-pt{torch_version}-cu130-rtx4090-dynamo.csv"
    assert train.read_text().splitlines()[0] == TIMM_TRAIN
    assert (out / f"benchmark-infer-tf32-nchw-pt{torch_version}-cu130-rtx4090-dynamo-bs1.csv").exists()


def test_a_budget_that_ends_leaves_a_page_and_resume_goes_on(gpu, tmp_path, monkeypatch, capsys):
    clock, order = SimpleNamespace(now=0.0), []

    def execute(arguments, seconds):
        order.append(Path(arguments[-1]).stem)
        clock.now += min(seconds, 100)
        if seconds < 100:
            return "begun", None
        return run_here(arguments, seconds)

    monkeypatch.setattr(suite, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(suite, "execute", execute)
    options = ["suite", "--out", str(tmp_path)]
    assert main([*options, "--models", CONVNEXT, SWIN, "--rounds", "1", "--budget", "4m"]) == 0
    assert order == ["complexity", "inference-amp-eager-max", "inference-bfloat16-compiled-max"]
    assert list(states(tmp_path).values()) == ["done", "done", "begun"]
    printed = capsys.readouterr().out
    assert "Swin-B over ConvNeXt-B" in printed and "--resume goes on" in printed
    for text in (printed, (tmp_path / "report.md").read_text()):
        assert "- inference-bfloat16-compiled-max: interrupted after 40 s" in text
        assert "- inference-bfloat16-eager-max: not begun" in text

    assert main([*options, "--resume", "--budget", "1h"]) == 0
    assert order[3] == "inference-bfloat16-compiled-max" and set(states(tmp_path).values()) == {"done"}
    assert sorted(order[3:]) == sorted(set(order) - {"complexity", "inference-amp-eager-max"})
    assert len(json.loads((tmp_path / "suite.json").read_text())["conditions"]) == 2
    assert "Not all is measured" not in capsys.readouterr().out


def test_a_cell_that_dies_is_recorded_and_the_rest_goes_on(gpu, tmp_path, monkeypatch):
    order, broken = [], True

    def execute(arguments, seconds):
        order.append(Path(arguments[-1]).stem)
        if broken and order[-1] == "inference-amp-eager-max":
            return "failed", "ended by SIGSEGV"
        return run_here(arguments, seconds)

    monkeypatch.setattr(suite, "execute", execute)
    assert main(["suite", "--out", str(tmp_path), "--models", CONVNEXT, "--rounds", "1"]) == 1
    assert Counter(states(tmp_path).values()) == dict(failed=1, done=len(order) - 1)
    assert (
        "inference-amp-eager-max: its process failed after 0 s: ended by SIGSEGV"
        in (tmp_path / "report.md").read_text()
    )

    del order[:]
    broken = False
    assert main(["suite", "--out", str(tmp_path), "--resume"]) == 0
    assert order == ["inference-amp-eager-max"] and set(states(tmp_path).values()) == {"done"}


def test_what_failed_waits_behind_what_was_not_begun(gpu, tmp_path):
    cells, _ = suite_cells.plan(suite_cells.Suite([CONVNEXT], "cuda"))
    order = []

    def execute(arguments, seconds):
        order.append(Path(arguments[-1]).stem)
        return "done", None

    begun = suite_cells.Suite([CONVNEXT], "cuda", progress={cells[1].name: suite_cells.Progress("failed", 1, "why")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "execute", execute)
        suite.measure(begun, cells[:4], tmp_path, None)
    assert order == [cells[i].name for i in (0, 2, 3, 1)]


def test_an_interrupt_keeps_what_there_is_and_writes_the_page(gpu, tmp_path, monkeypatch):
    def execute(arguments, seconds):
        if Path(arguments[-1]).stem == "inference-bfloat16-compiled-max":
            raise KeyboardInterrupt
        return run_here(arguments, seconds)

    monkeypatch.setattr(suite, "execute", execute)
    assert main(["suite", "--out", str(tmp_path), "--models", CONVNEXT, "--rounds", "1"]) == 130
    assert list(states(tmp_path).values()) == ["done", "done", "begun"]
    assert "inference-bfloat16-compiled-max: interrupted" in (tmp_path / "report.md").read_text()


def test_it_runs_to_its_end_on_a_cpu(tmp_path, monkeypatch, no_memory):  # noqa: F811
    shorten_turns(monkeypatch)
    monkeypatch.setattr(session, "release_memory", lambda: None)
    monkeypatch.setattr(scaling, "SIZES", [64, 96])
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **kwargs: compiled.append(kwargs["mode"]) or model)
    monkeypatch.setattr(suite, "execute", run_here)
    monkeypatch.setattr(scaling, "peak_memory", lambda config: None)
    models = ["test_vit", "test_convnext"]
    options = ["--device", "cpu", "--image-size", "96", "--rounds", "1"]
    assert main(["suite", "--out", str(tmp_path), "--models", *models, *options]) == 0
    names = list(states(tmp_path))
    assert set(states(tmp_path).values()) == {"done"} and not any("tf32" in n or "-amp-" in n for n in names)
    assert names.index("scaling") < min(i for i, name in enumerate(names) if "compiled" in name)
    assert set(compiled) == {None}
    for name in ("inference-float32-eager-8", "inference-bfloat16-compiled-1", "training-amp_bfloat16-eager-8"):
        rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        assert [row["model"] for row in rows] == models and all(row["error"] is None for row in rows)
    page = (tmp_path / "report.md").read_text()
    assert "TF32, float16 and CUDA graphs (compile mode reduce-overhead) are a GPU's" in page
    assert "| inference, bfloat16, 96 pixels, compiled" in page and "Swin-B over ConvNeXt-B" not in page
    assert len(list(tmp_path.glob("benchmark-infer-*.csv"))) == 8 and len(list(tmp_path.glob("*-train-*.csv"))) == 2


def write_program(folder, text):
    """Have `python -m benchmarks` in a folder be this program."""
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks/__init__.py").touch()
    (folder / "benchmarks/__main__.py").write_text(text)


def test_a_process_that_is_killed_is_named_by_its_signal(tmp_path, monkeypatch):
    write_program(tmp_path, "import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.chdir(tmp_path)
    assert suite.execute(["complexity"], None) == ("failed", "ended by SIGKILL")


def test_a_process_that_fails_is_named_by_its_last_words(tmp_path, monkeypatch):
    write_program(tmp_path, "import sys\nsys.exit(f'first\\nno such {sys.argv[1]}')\n")
    monkeypatch.chdir(tmp_path)
    assert suite.execute(["network"], None) == ("failed", "no such network")


def test_a_process_is_interrupted_when_its_time_ends_so_that_it_can_keep_what_it_has(tmp_path, monkeypatch):
    program = "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    open('kept', 'w').close()\n"
    write_program(tmp_path, program)
    monkeypatch.chdir(tmp_path)
    assert suite.execute(["throughput"], 2) == ("begun", None)
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--out old", "out: old has a suite already; add --resume"),
        ("--out new --resume", "resume: new/suite.json is no suite that was begun"),
        ("--out old --resume --rounds 3", "resume: old has its own settings; leave out rounds"),
        ("--out new --models nonet", "'nonet' is no network"),
        ("--out new --models test_vit --rounds 0", "rounds: 0 is too few"),
        ("--out new --device cuda:99", "device: 'cuda:99' is not there"),
        ("--out new --models conformer-base-p16_3rdparty_in1k", "models: none of them can be measured here"),
    ],
)
def test_bad_arguments_end_before_any_work(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite_cells, "find_spec", lambda name: None)
    Path("old").mkdir()
    suite_cells.Suite(["test_vit"], "cpu").save(Path("old"))
    assert message in main(["suite", *options.split()])
    assert not Path("new").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("9m", 540), ("1.5h", 5400), ("9", None), ("m", None)])
def test_budget_has_a_unit(text, seconds, capsys):
    if seconds is None:
        with pytest.raises(SystemExit):
            main(["suite", "--out", "x", "--budget", text])
        assert f"{text!r} is no time, expected a number with s, m or h" in capsys.readouterr().err
    else:
        assert suite._parse_time(text) == seconds


def make_result(swin, **settings):
    """A result in which Swin-B reaches some rate and ConvNeXt-B 100."""
    defaults = dict(batch_sizes=["max"], device="cuda", precision="amp")
    result = Result(Settings([CONVNEXT, SWIN], CONVNEXT, **(defaults | settings)), limits=[Limits("max")])
    for model, rate in ((CONVNEXT, 100.0), (SWIN, swin)):
        result.rows.append(Row(model, "max", 256, samples=Samples([rate] * 3)))
    return result


@pytest.mark.parametrize(
    ("swin", "settings", "verdict"),
    [
        (65.0, {}, "near"),
        (54.0, {}, "near"),
        (45.0, {}, "FAR"),
        (85.0, {}, "FAR"),
        (85.0, dict(compile=True), "near"),
        (60.0, dict(compile=True), "FAR"),
        (60.0, dict(compile=True, precision="bfloat16"), "FAR"),
        (60.0, dict(precision="float32"), None),
        (60.0, dict(image_size=384), None),
        (60.0, dict(mode="training"), None),
    ],
)
def test_a_rig_that_is_far_from_what_timm_published_is_told(swin, settings, verdict):
    lines = check_rig([[make_result(swin, **settings)]])
    assert len(lines) == (verdict is not None)
    assert all(f"That is {verdict}" in line for line in lines)


def test_a_network_of_several_results_is_taken_from_the_first():
    first, second = make_result(60.0), make_result(70.0)
    first.rows[0].samples.rates = []
    rows = timm_results.make_rows([first, second], {CONVNEXT: dict(params=88.591, full=15.38, activations=28.75)})
    assert [(row["model"], row["infer_samples_per_sec"]) for row in rows] == [(CONVNEXT, 100.0), (SWIN, 60.0)]
    assert [rows[0][column] for column in ("param_count", "infer_gmacs", "infer_macts")] == [88.59, 15.38, 28.75]


def test_files_are_named_as_timm_names_them():
    def name(device, cuda, **settings):
        result = make_result(60.0, **settings)
        result.conditions = [dict(device=device, cuda=cuda, torch="2.9.1+cu130")]
        return timm_results.file_name(result)

    assert (
        name("NVIDIA GeForce RTX 3090", "13.0", compile=True)
        == "benchmark-infer-amp-nchw-pt291-cu130-rtx3090-dynamo.csv"
    )
    assert name("NVIDIA H100", "12.8", precision="bfloat16", channels_last=True, batch_sizes=[1]) == (
        "benchmark-infer-bf16-nhwc-pt291-cu128-h100-bs1.csv"
    )
    assert name("../../a CPU", None, mode="training", precision="amp_bfloat16") == (
        "benchmark-train-amp_bf16-nchw-pt291-cpu-a_cpu.csv"
    )
