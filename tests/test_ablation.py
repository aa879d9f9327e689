"""The ablation of Table 3: five networks, each what the paper and its silence make of it, and each a timm model."""

import argparse
import json
import shlex

import numpy as np
import timm
import torch
import torch._dynamo.testing
from conformance import run_on_rows
from conftest import NARROW
from PIL import Image
from pytest import approx, fixture, mark, raises
from test_benchmarks_throughput import shorten_turns
from test_timm import randomize_statistics
from torch import nn

from benchmarks import ablation_training
from benchmarks.__main__ import main
from benchmarks.networks.specs import build, parse_model_kwargs, parse_spec
from benchmarks.networks.table3 import CONFIGURATIONS
from benchmarks.networks.table4 import create_network
from benchmarks.training import runner
from hifuse_timm.__main__ import main as hifuse_timm_main
from hifuse_timm.convert import Architecture

DIMS = (96, 192, 384, 768)
ROWS = {row.slug: parse_model_kwargs(row.arguments) for row in CONFIGURATIONS}
REDUCED = {slug: kwargs for slug, kwargs in ROWS.items() if kwargs}
reduced = mark.parametrize("kwargs", REDUCED.values(), ids=REDUCED)
x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_rows_are_the_papers():
    assert [row.name.removeprefix("+ ") for row in CONFIGURATIONS] == [
        "Local Path",
        "Global Block",
        "Channel&Spatial Attn",
        "IRMLP",
        "Shortcut (HiFuse-Tiny)",
    ]
    gains = [round(b.accuracy - a.accuracy, 2) for a, b in zip(CONFIGURATIONS, CONFIGURATIONS[1:], strict=False)]
    assert gains[0] == 2.47 and CONFIGURATIONS[-1].accuracy == 82.99  # as section 4.4 says
    assert ROWS["local"] == dict(branches="local") and ROWS["shortcut"] == {}
    assert ROWS["global"] == dict(branch_attention=False, irmlp=False, shortcut=False)


def test_each_row_adds_the_parameters_of_its_part():
    counts = {
        slug: sum(p.numel() for p in timm.create_model("hifuse_tiny", device="meta", **kwargs).parameters())
        for slug, kwargs in ROWS.items()
    }
    attention = sum(2 * 49 + 2 + 2 * dim * (dim // 16) for dim in DIMS)
    irmlp = sum(3 * dim * (2 + 9 + 2) + 3 * dim * 12 * dim + 12 * dim * dim + 2 * dim for dim in DIMS)
    conv = sum(3 * dim * dim + dim + 2 * dim for dim in DIMS)
    assert counts["attention"] - counts["global"] == attention
    assert counts["irmlp"] - counts["attention"] == irmlp - conv
    assert counts["shortcut"] == counts["irmlp"] == 54_673_217  # adding needs no weights
    stem = 3 * 16 * DIMS[0] + 3 * DIMS[0]
    downsampling = sum(2 * a + 4 * a * b + b for a, b in zip(DIMS, DIMS[1:], strict=False))
    blocks = sum(2 * (10 * dim + 2 * dim + dim * dim + dim) for dim in DIMS)
    assert counts["local"] == stem + downsampling + blocks + 2 * DIMS[-1] + 7 * DIMS[-1] + 7


def test_whole_network_is_the_default(narrow):
    explicit = narrow(branches="local+global", branch_attention=True, irmlp=True, shortcut=True).state_dict()
    default = narrow().state_dict()
    assert list(explicit) == list(default)
    assert all(torch.equal(explicit[key], value) for key, value in default.items())


@mark.parametrize(
    "kwargs",
    [*REDUCED.values(), dict(branch_attention=False), dict(irmlp=False), dict(branch_attention=False, irmlp=False)],
    ids=str,
)
def test_every_parameter_trains(narrow, kwargs):
    model = narrow(**kwargs, drop_path_rate=0.1).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(x).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    optimizer.step()
    # a bias before a BatchNorm has a gradient that is zero but for rounding
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert [name for name in still if not name.endswith("bias")] == []


@torch.no_grad()
def test_local_path_alone_gives_the_local_maps_of_the_whole_network(narrow):
    whole, alone = narrow(), narrow(branches="local")
    alone.load_state_dict({key: whole.state_dict()[key] for key in alone.state_dict()})
    maps = []
    for stage in whole.stages:
        stage.local_blocks.register_forward_hook(lambda module, inputs, output: maps.append(output))
    whole(x)
    features, found = alone.forward_intermediates(x)
    for ours, expected in zip(found, maps, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    torch.testing.assert_close(alone(x), alone.forward_head(features), rtol=0, atol=0)
    assert alone.feature_info[2]["module"] == "stages.2.local_blocks"
    assert alone.pretrained_cfg["first_conv"] == "local_stem.0"


@torch.no_grad()
def test_without_attention_the_branch_maps_pass_unchanged(narrow):
    plain, attending = narrow(branch_attention=False), narrow()
    for model, unchanged in ((plain, True), (attending, False)):
        seen = []
        fusion = model.stages[1].fusion
        hooks = [fusion.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.extend(inputs[:2]))]
        hooks += [fusion.irmlp.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))]
        model(x)
        local_map, global_map, concatenated = seen
        assert torch.equal(concatenated[:, :64], torch.cat([global_map, local_map], dim=1)) == unchanged


@torch.no_grad()
def test_without_irmlp_a_1x1_convolution_with_batch_norm_fuses(narrow):
    fusion = randomize_statistics(narrow(irmlp=False)).stages[0].fusion
    maps = torch.randn(2, 48, 5, 6)
    conv = nn.Conv2d(48, 16, kernel_size=1)
    conv.weight.copy_(fusion.irmlp.fc.weight[:, :, None, None])
    conv.bias.copy_(fusion.irmlp.fc.bias)
    torch.testing.assert_close(fusion.irmlp(maps), fusion.irmlp.bn(conv(maps)))


@torch.no_grad()
def test_without_shortcut_the_term_u_is_not_added(narrow):
    fusions = [narrow(shortcut=shortcut, drop_path_rate=0.5).stages[2].fusion for shortcut in (True, False)]
    fusions[1].load_state_dict(fusions[0].state_dict())
    local_map, global_map, previous = torch.randn(2, 64, 4, 6), torch.randn(2, 64, 4, 6), torch.randn(2, 32, 8, 12)
    with_u, without_u = (fusion(local_map, global_map, previous) for fusion in fusions)
    torch.testing.assert_close(with_u - without_u, fusions[0].previous_proj(previous))
    # and so stochastic depth, which would zero a whole map, has nothing to act on
    torch.manual_seed(0)
    dropped = fusions[1].train()(
        local_map.repeat(8, 1, 1, 1), global_map.repeat(8, 1, 1, 1), previous.repeat(8, 1, 1, 1)
    )
    assert (dropped.flatten(1).abs().amax(1) > 0).all()


def test_timm_suite_passes_on_the_local_branch_alone():  # on the other rows in make conformance
    assert run_on_rows("ablation_local") == 0


@reduced
@torch.no_grad()
def test_reduced_network_fuses_and_compiles_whole(narrow, kwargs):
    torch._dynamo.reset()
    model = randomize_statistics(narrow(**kwargs, depths=(1, 1, 1, 1)))
    expected = model(x)
    for _ in range(2):  # before and after fuse()
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected, rtol=0, atol=1e-4
        )
        model.fuse()
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.jit.script(model)(x), expected, rtol=0, atol=1e-4)


@reduced
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(narrow, kwargs):
    plain, checkpointed = (narrow(**kwargs, drop_path_rate=0.3).train() for _ in range(2))
    checkpointed.set_grad_checkpointing()
    for model in (plain, checkpointed):
        torch.manual_seed(2)
        model(x).square().mean().backward()
    for (name, expected), found in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)
    for (name, expected), found in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


@mark.parametrize(
    "arguments, words",
    [
        ("branches=global", ["branches is 'global'", "'local' or 'local+global'"]),
        ("shortcut=false", ["shortcut is 'false'", "True or False"]),
        ("branches=local shortcut=True irmlp=True", ["branches is 'local'", "leave irmlp, shortcut out"]),
        ("branches=local global_depths=(1,1,1,1)", ["branches is 'local'", "leave global_depths out"]),
        ("branches=local dense=True", ["branches is 'local'", "leave dense out"]),
        ("irmlp=False dense=True", ["dense is True and irmlp is False"]),
        ("branches=local depths=(2,2,2)", ["depths", "(2, 2, 2)"]),
    ],
)
def test_settings_that_do_not_go_together_are_one_clear_error(arguments, words):
    with raises(ValueError) as error:
        timm.create_model("hifuse_tiny", **NARROW | parse_model_kwargs(arguments.split()))
    assert all(word in str(error.value) for word in words)


def test_arguments_work_as_typed_to_train_py():
    typed = parse_model_kwargs("branches=local shortcut=False depths=(1,1,1) dims=(8,16,24)".split())
    model = timm.create_model("hifuse_tiny", **typed)
    assert len(model.stages) == 3 and model.global_stem is None
    assert model(x).shape == (2, 7)


@reduced
def test_checkpoint_loads_into_its_own_network_and_no_other(narrow, kwargs, tmp_path):
    trained = randomize_statistics(narrow(**kwargs))
    file = tmp_path / "model_best.pth.tar"
    torch.save(dict(state_dict=trained.state_dict()), file)
    loaded = narrow(pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), **kwargs)
    assert torch.equal(loaded(x), trained(x))
    adapted = narrow(pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), in_chans=1, num_classes=3, **kwargs)
    assert adapted(x[:, :1]).shape == (2, 3)
    torch.testing.assert_close(adapted.local_stem[0].weight, trained.local_stem[0].weight.sum(1, keepdim=True))
    if kwargs != dict(shortcut=False):  # which has no weights that could be missing
        with raises(ValueError, match="the model is a HiFuse of .* IRMLP"):
            narrow(pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))


def test_published_network_is_the_one_that_was_trained(tmp_path):
    kwargs = NARROW | dict(shortcut=False)
    trained = timm.create_model("hifuse_tiny", **kwargs).eval()
    file, out = tmp_path / "model_best.pth.tar", tmp_path / "out"
    torch.save(dict(state_dict=trained.state_dict(), args=argparse.Namespace(model_kwargs=kwargs)), file)
    command = ["publish", "--model", "hifuse_tiny", "--checkpoint", file, "--dataset", "isic2018", "--dry-run", out]
    assert hifuse_timm_main([str(word) for word in command]) == 0
    assert torch.equal(timm.create_model(f"local-dir:{out}", pretrained=True).eval()(x), trained(x))


def test_architecture_tells_the_parts_that_have_weights(narrow):
    found = {slug: Architecture.of(narrow(**kwargs).state_dict()) for slug, kwargs in ROWS.items()}
    assert "local branch alone" in str(found["local"])
    assert "no branch attention, no IRMLP" in str(found["global"])
    assert "no IRMLP" in str(found["attention"]) and "no branch attention" not in str(found["attention"])
    assert found["irmlp"] == found["shortcut"]
    assert found["shortcut"].branch_attention and found["shortcut"].irmlp
    assert Architecture.of(narrow().fuse().state_dict()).branch_attention


NARROW_ARGUMENTS = [f"{name}={value}".replace(" ", "") for name, value in (NARROW | dict(depths=(1, 1, 1, 1))).items()]


def test_spec_takes_arguments_of_the_network():
    spec = parse_spec("hifuse_tiny[branches=local,fuse,dims=(16,32),depths=(1,1)]")
    assert spec.fuse and spec.form.kwargs == dict(branches="local", dims=(16, 32), depths=(1, 1))
    assert len(create_network(spec.form, 64).stages) == 2
    with raises(ValueError, match="cannot be built .*nonsense"):
        build(parse_spec("hifuse_tiny[nonsense=1]"), 64)


def test_command_counts_and_measures(tmp_path, monkeypatch, capsys):
    shorten_turns(monkeypatch)
    files = tmp_path / "ablation.json", tmp_path / "ablation.md"
    command = ["ablation", "--model-kwargs", *NARROW_ARGUMENTS, "--image-size", "64", "--rounds", "2"]
    command += ["--batch-size", "1", "2", "--json", str(files[0]), "--markdown", str(files[1])]
    assert main(command) == 0
    printed, data = capsys.readouterr().out, json.loads(files[0].read_text())
    models = [timm.create_model("hifuse_tiny", **NARROW, depths=(1, 1, 1, 1), **kwargs) for kwargs in ROWS.values()]
    params = [sum(p.numel() for p in model.parameters()) for model in models]
    assert [round(1e6 * row["params"]) for row in data["rows"]] == params
    assert all(row["full"] > row["conv_linear"] > 0 for row in data["rows"])
    measured = data["throughput"]["rows"]
    assert [row["group"] for row in measured] == [1] * 5 + [2] * 5
    assert all(row["error"] is None and len(row["samples"]["rates"]) == 2 for row in measured)
    for text in (printed, files[1].read_text()):
        assert "Images/s, batch 2" in text and "54.12" in text and "branch_attention=False irmlp=False" in text
    assert main(["report", str(files[0]), "--out", str(tmp_path)]) is None
    assert files[1].read_text().strip() in (tmp_path / "report.md").read_text()


# What train.py writes, without a network: each row has a metric of its own, best in its second epoch of three. Where
# there is a file `stop`, it ends after one epoch, as after Ctrl-C; where there is a file `fail`, with an error.
TRAIN_SCRIPT = """
import argparse, csv, pathlib, sys, yaml
parser = argparse.ArgumentParser()
for name in "device-modules config model data-dir num-classes output experiment device resume".split():
    parser.add_argument("--" + name)
parser.add_argument("--model-kwargs", nargs="*")
args = parser.parse_args()
folder = pathlib.Path(args.output, args.experiment)
if (folder / "fail").exists():
    sys.exit("no such option")
settings = dict(yaml.safe_load(open(args.config)), eval_metric="top1", model_ema=True)
(folder / "args.yaml").write_text(yaml.safe_dump(settings))
start = int(pathlib.Path(args.resume).read_text()) + 1 if args.resume else 0
with open(folder / "summary.csv", "a") as file:
    file.write("epoch,eval_top1\\n")
    for epoch, metric in list(enumerate((70.0, 90.0, 80.0)))[start:]:
        file.write(f"{epoch},{metric}\\n")
        (folder / f"checkpoint-{epoch}.pth.tar").write_text(" ".join(args.model_kwargs or []))
        (folder / "last.pth.tar").write_text(str(epoch))
        if (folder / "stop").exists() and epoch == 1:
            break
"""


@fixture
def training(tmp_path, monkeypatch):
    """Runs the command on a stand-in for train.py; gives what it returns and the rows that were evaluated."""
    evaluated = []

    def evaluate(settings, checkpoint, use_ema, device):
        evaluated.append((checkpoint.parent.name, checkpoint.name, checkpoint.read_text(), use_ema, settings.split))
        metrics = dict(accuracy=0.9, f1=0.8, precision=0.7, recall=0.6, auroc=0.5)
        return dict(**metrics, intervals=dict(accuracy=[0.85, 0.95]), counts=dict(images=1234))

    monkeypatch.setattr(ablation_training, "evaluate", evaluate)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    for folder in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "recipe.yaml").write_text("epochs: 3\nlr: 0.01\n")
    (tmp_path / "train.py").write_text(TRAIN_SCRIPT)
    command = ["ablation", "--data-dir", "data", "--recipe", "recipe.yaml", "--out", "out", "--device", "cpu"]
    monkeypatch.chdir(tmp_path)

    def run(*options):
        evaluated.clear()
        return main([*command, *options]), list(evaluated)

    return run


def test_commands_train_each_row_with_its_arguments(training, capsys):
    assert training("--model-kwargs", "depths=(1,1,1,1)")[0] == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("python")]
    assert [line[1] == "train.py" for line in lines] == [True, False] * 5
    for line, row in zip(lines[::2], CONFIGURATIONS, strict=True):
        start = line.index("--model-kwargs") + 1
        stop = start + len(row.arguments) + 1
        assert tuple(line[start:stop]) == (*row.arguments, "depths=(1,1,1,1)") and line[stop].startswith("--")
        assert line[line.index("--num-classes") + 1] == "2" and line[line.index("--config") + 1] == "recipe.yaml"
        assert line[line.index("--device-modules") + 1] == "hifuse_timm" and line[-1] == row.slug


def test_run_trains_each_row_once_and_makes_the_papers_table(training, tmp_path, capsys):
    files = tmp_path / "result.json", tmp_path / "result.md"
    options = ["--run", "--train-script", "train.py", "--json", str(files[0]), "--markdown", str(files[1])]
    code, evaluated = training(*options)
    assert code == 0
    assert evaluated == [
        (row.slug, "checkpoint-1.pth.tar", " ".join(row.arguments), True, "val") for row in CONFIGURATIONS
    ]
    printed = capsys.readouterr().out
    assert "90.00 80.00 70.00 60.00 85.00 to 95.00 77.12 54.12 60.03 52.77 2 of 3" in " ".join(printed.split())
    assert "val split, 1,234 images, on which the best epoch was chosen too" in printed
    data = json.loads(files[0].read_text())
    assert data == json.loads((tmp_path / "out/ablation.json").read_text())
    assert data["settings"]["num_classes"] == 2 and data["settings"]["recipe"] == dict(epochs=3, lr=0.01)
    assert [row["best_epoch"] for row in data["rows"]] == [2] * 5
    assert main(["report", str(files[0]), "--out", str(tmp_path)]) is None
    assert files[1].read_text().strip() in (tmp_path / "report.md").read_text()

    (tmp_path / "train.py").unlink()  # nothing is left to train
    assert training(*options) == (0, [])
    assert json.loads(files[0].read_text()) == data
    (tmp_path / "recipe.yaml").write_text("epochs: 3\nlr: 0.02\n")
    assert "trained otherwise: recipe was {'epochs': 3, 'lr': 0.01}" in training(*options)[0]


def test_interrupted_row_goes_on_from_its_last_epoch_and_keeps_its_best(training, tmp_path, capsys):
    options = ["--run", "--train-script", "train.py"]
    stop = tmp_path / "out/global/stop"
    stop.parent.mkdir(parents=True)
    stop.touch()
    code, evaluated = training(*options)
    assert "train.py ended with exit status 0 after 2 epochs" in code and "goes on" in capsys.readouterr().out
    assert [slug for slug, *_ in evaluated] == ["local"]
    stop.rename(tmp_path / "out/global/fail")
    assert "exit status 1" in training(*options)[0] and "no such option" in training(*options)[0]
    (tmp_path / "out/global/fail").unlink()
    code, evaluated = training(*options)
    assert code == 0
    assert [slug for slug, *_ in evaluated] == ["global", "attention", "irmlp", "shortcut"]
    assert evaluated[0][1] == "checkpoint-1.pth.tar"  # of the epochs before the interruption
    epochs = (tmp_path / "out/global/summary.csv").read_text().split()
    assert epochs == "epoch,eval_top1 0,70.0 1,90.0 epoch,eval_top1 2,80.0".split()


@torch.no_grad()
def test_evaluation_is_that_of_the_network_that_was_trained(tmp_path):
    kwargs = NARROW | dict(depths=(1, 1, 1, 1), branch_attention=False, irmlp=False, shortcut=False)
    model = randomize_statistics(timm.create_model("hifuse_tiny", **kwargs, num_classes=2)).eval()
    pixels = np.random.RandomState(0).randint(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    targets = []
    for number, image in enumerate(pixels):
        for split in ("train", "val"):
            folder = tmp_path / split / str(number // 6)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:02}.png")
        targets.append(number // 6)
    predicted = model((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).argmax(1)
    checkpoint = tmp_path / "checkpoint-1.pth.tar"
    args = argparse.Namespace(model_kwargs=kwargs, img_size=32, crop_pct=1.0)
    torch.save(dict(state_dict=model.state_dict(), args=args), checkpoint)
    settings = ablation_training.Settings(str(tmp_path), 2, "val", dict(workers=0), [])
    metrics = ablation_training.evaluate(settings, checkpoint, False, "cpu")
    assert metrics["accuracy"] == approx((predicted == torch.tensor(targets)).double().mean().item(), abs=1e-6)
    assert metrics["counts"]["images"] == 12


@mark.parametrize(
    "options, words",
    [
        ("--data-dir nowhere --recipe recipe.yaml", "data-dir: nowhere has no folder train"),
        ("--recipe nowhere.yaml", "recipe: nowhere.yaml cannot be read"),
        ("--recipe train.py", "recipe: train.py"),
        ("--split test", "split: data has no folder test"),
        ("--run", "train-script: train.py is no file"),
        ("--model-kwargs branches=local irmlp=True", "branches is 'local'"),
        ("--device tpu", "device: 'tpu'"),
    ],
)
def test_what_cannot_be_trained_is_said_before_any_training(training, tmp_path, options, words):
    if options == "--run":
        (tmp_path / "train.py").unlink()
    code, evaluated = training(*options.split())
    assert words in code and not evaluated and not (tmp_path / "out").exists()


def test_training_options_need_a_dataset_and_a_recipe():
    assert "recipe: needs data-dir" in main("ablation --recipe recipe.yaml".split())
    assert "recipe: missing" in main("ablation --data-dir data".split())
