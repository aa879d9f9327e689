"""The paper's Tables 4 to 6 by one command: trained by train.py, evaluated, compared, and made again from the CSVs."""

import argparse
import csv
import json
import math
import shlex
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from conformance import ROOT
from conftest import NARROW
from PIL import Image
from train_like_timm import TRAIN_PY, parse_with_train_py

from benchmarks.__main__ import main
from benchmarks.networks import peers
from benchmarks.study import cost, published
from benchmarks.study.page import format_page, format_summary_page
from benchmarks.study.recording import hide_folders
from benchmarks.study.results import RunResult, find_studies, load_result, load_results
from benchmarks.study.statistics import compare, estimate
from benchmarks.training import history, runner
from benchmarks.training.history import EpochClock, History
from hifuse_timm import predictions
from hifuse_timm.bootstrap import bootstrap_intervals
from hifuse_timm.predictions import Predictions, read_predictions, write_predictions

CLASSES = ["CT_COVID", "CT_NonCOVID"]
HIFUSE = "hifuse_tiny[dims=(16,32,64,128),num_heads=(1,2,4,8),depths=(1,1,1,1)]"
CONVNEXT = "convnext_tiny[dims=(8,16,24,32),depths=(1,1,1,1)]"
KWARGS = {HIFUSE: NARROW | dict(depths=(1, 1, 1, 1)), CONVNEXT: dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))}
EPOCHS = 3
METRICS = (50.0, 80.0, 60.0)  # on val, after each epoch: the second is the best
RECIPE = dict(epochs=EPOCHS, img_size=32, crop_pct=1.0, mean=[0.5] * 3, std=[0.5] * 3, workers=0)

# What train.py writes, without a training: the weights of each epoch are those that lie in a folder of the model and
# the seed. Where there is a file `stop`, it ends after two epochs, as after Ctrl-C.
TRAIN_SCRIPT = f"""
import argparse, csv, pathlib, shutil, yaml
parser = argparse.ArgumentParser()
for name in "config model data-dir num-classes output experiment device resume seed".split():
    parser.add_argument("--" + name)
for name in "model-kwargs device-modules workers epochs img-size drop-path crop-pct mean std".split():
    parser.add_argument("--" + name, nargs="*")
args = parser.parse_args()
folder = pathlib.Path(args.output, args.experiment)
folder.mkdir(parents=True, exist_ok=True)
print("reads", pathlib.Path(args.data_dir).absolute() / "train" / "x.png")
kwargs = dict(pair.split("=") for pair in args.model_kwargs or [])
kwargs = {{name: [int(part) for part in value.strip("()").split(",")] for name, value in kwargs.items()}}
own = dict(model=args.model, model_kwargs=kwargs, seed=int(args.seed), num_classes=int(args.num_classes))
own |= dict(eval_metric="top1", model_ema=False, data_dir=str(pathlib.Path(args.data_dir).absolute()))
(folder / "args.yaml").write_text(yaml.safe_dump(yaml.safe_load(open(args.config)) | own))
start = 0
if args.resume:
    start = int((folder / "epoch").read_text()) + 1
with open(folder / "summary.csv", "a") as file:
    file.write("epoch,train_loss,eval_loss,eval_top1\\n")
    for epoch in range(start, {EPOCHS}):
        file.write(f"{{epoch}},{{1 - epoch / 10}},{{1 - epoch / 20}},{{{METRICS}[epoch]}}\\n")
        weights = pathlib.Path("weights", f"{{args.model}}-{{args.seed}}-{{epoch}}.pth.tar")
        for name in (f"checkpoint-{{epoch}}.pth.tar", "last.pth.tar"):
            shutil.copy(weights, folder / name)
        (folder / "epoch").write_text(str(epoch))
        if (folder / "stop").exists() and epoch == 1:
            break
"""


def write_dataset(root: Path) -> None:
    """COVID19-CT in name: wide images, of which the test images of two numbers are of one patient."""
    rng = np.random.RandomState(0)
    rows, counts = [], {}
    for split, count in (("train", 6), ("val", 4), ("test", 24)):
        counts[split] = dict.fromkeys(CLASSES, count // 2)
        for number in range(count):
            label = CLASSES[number % 2]
            file = root / split / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.randint(0, 256, (32, 64, 3), dtype=np.uint8)).save(file)
            rows.append([f"{split}/{label}/{number}.png", split, f"{label}/{number}", f"patient {number // 4}"])
    with (root / "splits.csv").open("w", newline="") as f:
        csv.writer(f).writerows([["file", "split", "group", "subject"], *rows])
    facts = dict(name="covid19ct", title="COVID19-CT", classes=CLASSES, split="paper", seed=0, counts=counts)
    shared = dict(shared_with_train=dict(unit="patient", val=4, test=8))
    (root / "dataset.json").write_text(json.dumps(facts | shared))


def write_weights(folder: Path) -> None:
    """Checkpoints as train.py writes them, of networks whose weights are random."""
    folder.mkdir()
    for spec, seeds in ((HIFUSE, (0, 1)), (CONVNEXT, (0,))):
        name = spec.partition("[")[0]
        for seed in seeds:
            for epoch in range(EPOCHS):
                torch.manual_seed(100 * seed + epoch)
                model = timm.create_model(name, num_classes=2, **KWARGS[spec])
                state_dict = model.state_dict()
                state_dict["head.fc.weight"].normal_(std=0.2)
                args = argparse.Namespace(model=name, model_kwargs=KWARGS[spec], num_classes=2, **RECIPE)
                content = dict(state_dict=state_dict, args=args, epoch=epoch)
                torch.save(content, folder / f"{name}-{seed}-{epoch}.pth.tar")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a dataset, a recipe, weights, and a stand-in for train.py that lays them out."""
    root = tmp_path_factory.mktemp("place")
    write_dataset(root / "data")
    write_weights(root / "weights")
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (root / "train.py").write_text(TRAIN_SCRIPT)
    return root


@pytest.fixture
def command(place, monkeypatch):
    """Runs the command in that folder, with a study of its own where it is given one."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)

    def run(*options, out="study", models=(HIFUSE, CONVNEXT)):
        known = ["--data-dir", "data", "--models", *models, "--recipe", "recipe.yaml", "--out", out, "--device", "cpu"]
        return main(["accuracy", *map(str, [*known, *options])])

    return run


@pytest.fixture
def study(place, command):
    """The folder of a study of two networks, of which the first has two seeds; tests leave it as they find it."""
    if not (place / "study").exists():
        assert command("--seeds", 0, 1, "--run", models=[HIFUSE]) == 0
        assert command("--run", models=[CONVNEXT]) == 0
    return place / "study"


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folder_name(spec: str, seed: int) -> str:
    dims = "dims-16-32-64-128-num_heads-1-2-4-8" if spec == HIFUSE else "dims-8-16-24-32"
    return f"{spec.partition('[')[0]}-{dims}-depths-1-1-1-1-seed{seed}"


# The commands


def test_commands_train_each_network_with_each_seed(command, place, capsys):
    models = [HIFUSE, "swin_tiny_patch4_window7_224", "conformer_base_p16"]
    assert command("--seeds", 3, 4, "--set", "img_size=112", models=models, out="new") == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("python")]
    values = [
        {o: line[line.index(o) + 1] for o in ("--model", "--seed", "--num-classes", "--config")} for line in lines
    ]
    assert [(v["--model"], v["--seed"]) for v in values] == [
        (name, seed)
        for name in ("hifuse_tiny", "swin_tiny_patch4_window7_224", "conformer_base_p16")
        for seed in ("3", "4")
    ]
    assert all(v["--num-classes"] == "2" and v["--config"] == "new/recipe.yaml" for v in values)
    assert "dims=(16,32,64,128)" in lines[0] and lines[0][-1] == folder_name(HIFUSE, 3)
    assert (
        lines[2][lines[2].index("--model-kwargs") + 1] == "img_size=112"
    )  # which train.py does not say to the network
    assert "benchmarks.networks.peers" in lines[4] and "benchmarks.networks.peers" not in lines[0]
    assert not (place / "new").exists()


def test_network_without_stochastic_depth_is_not_asked_for_it(command, place):
    options = ["--set", "drop_path=0.0", "--seeds", 9, "--run"]
    assert "ended with exit status 1" in command(*options, out="vgg", models=["vgg11", CONVNEXT])  # it has no weights
    without, whole = (
        yaml.safe_load((place / "vgg" / f"recipe{end}.yaml").read_text()) for end in ("-no-drop-path", "")
    )
    assert whole == RECIPE | dict(drop_path=0.0) and without == RECIPE
    args = yaml.safe_load((place / "vgg-checkpoints" / "vgg11-seed9" / "args.yaml").read_text())
    assert "drop_path" not in args


def test_arguments_of_all_networks_are_added_to_each(command, capsys):
    assert (
        command("--model-kwargs", "depths=(1,1,2,1)", models=["hifuse_tiny[dims=(48,96,96,96)]", "convnext_tiny"]) == 0
    )
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("python")]
    assert [line[line.index("--model-kwargs") + 1 : line.index("--data-dir")] for line in lines] == [
        ["dims=(48,96,96,96)", "depths=(1,1,2,1)"],
        ["depths=(1,1,2,1)"],
    ]


def test_cost_is_that_of_epochs_trained_before_or_of_steps_measured_here(study, command, monkeypatch, capsys):
    monkeypatch.setattr(cost, "measure_image", lambda recorder, run: (0.5, 32))
    assert command("--seeds", 0, 1, 2, "--dry-run", models=[HIFUSE, "resnet18"]) == 0
    printed = capsys.readouterr().out
    known = [
        float(row["seconds"]) for seed in (0, 1) for row in read_csv(study / folder_name(HIFUSE, seed) / "epochs.csv")
    ]
    assert f"3 epochs x {statistics.median(known):.1f} s, the median of 6 epochs that were trained before" in printed
    assert "resnet18: 9 epochs x 6 images x 0.5000 s, measured here in 3 steps of 32 images" in printed
    assert f"In all {(9 * 6 * 0.5 + 3 * statistics.median(known)) / 60:.1f} minutes" in printed


def test_steps_are_measured_on_the_network_that_trains(place, monkeypatch):
    from benchmarks.study.recording import Recorder
    from benchmarks.study.run import Run
    from benchmarks.study.study import Study

    monkeypatch.chdir(place)
    made = Study.read("data", "recipe.yaml", dict(batch_size=4, amp=True, amp_dtype="bfloat16"))
    seen = []
    forward = timm.create_model("convnext_tiny").__class__.forward
    monkeypatch.setattr(timm.models.ConvNeXt, "forward", lambda self, x: seen.append(x.shape) or forward(self, x))
    seconds, batch_size = cost.measure_image(Recorder(made, "data", Path("o"), Path("c"), "t", "cpu"), Run(CONVNEXT, 0))
    assert seconds > 0 and batch_size == 4 and set(seen) == {(4, 3, 32, 32)}


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


# What is kept of a run


def test_run_keeps_all_but_images_weights_and_places_of_the_machine(study, place):
    files = read_files(study)
    run = folder_name(HIFUSE, 1)
    choices = ("best", "last", "best-squash", "last-squash", "best-on-test")
    expected = {f"{run}/{name}.{ending}" for name in choices for ending in ("json", "csv")}
    expected |= {f"{run}/{name}" for name in ("args.yaml", "summary.csv", "epochs.csv", "train.log", "run.json")}
    assert expected | {f"{run}/checkpoints.csv"} == {file for file in files if file.startswith(run)}
    pictures = {"accuracy.svg", "learning-curves.svg"}
    assert {file for file in files if "/" not in file} == pictures | {"README.md", "recipe.yaml", "study.json"}
    for file, content in files.items():
        assert str(place).encode() not in content and str(Path.home()).encode() + b"/" not in content, file
    assert yaml.safe_load(files["recipe.yaml"]) == RECIPE
    assert files[f"{run}/train.log"].decode().startswith("reads DATA_DIR/train/x.png")
    record = json.loads(files[f"{run}/run.json"])
    assert (record["model"], record["seed"], record["epochs"], record["metric"]) == (HIFUSE, 1, EPOCHS, "top1")
    model = timm.create_model("hifuse_tiny", num_classes=2, **KWARGS[HIFUSE])
    assert record["params"] == sum(parameter.numel() for parameter in model.parameters())
    [session] = record["sessions"]
    assert session["first_epoch"] == 0 and session["torch"] == record["evaluated"]["torch"] == torch.__version__
    assert len(session["train_script_sha256"]) == 64 and "accuracy" in read_files(study)["study.json"].decode()


@torch.no_grad()
def test_weights_are_those_of_the_best_the_last_and_the_epoch_best_on_test(study, place):
    epochs, targets, images = {}, torch.tensor([number % 2 for number in range(24)]), {"": [], "-squash": []}
    for number in range(24):
        image = Image.open(place / "data" / "test" / CLASSES[number % 2] / f"{number}.png")
        images[""].append(image.crop((16, 0, 48, 32)))
        images["-squash"].append(image.resize((32, 32), Image.Resampling.BILINEAR))
    for epoch in range(EPOCHS):
        model = timm.create_model("hifuse_tiny", num_classes=2, **KWARGS[HIFUSE]).eval()
        content = torch.load(place / "weights" / f"hifuse_tiny-0-{epoch}.pth.tar", weights_only=False)
        model.load_state_dict(content["state_dict"])
        for crop, of_crop in images.items():
            batch = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1 for image in of_crop])
            epochs[epoch, crop] = model(batch).softmax(1)
    right = [(epochs[epoch, ""].argmax(1) == targets).double().mean().item() for epoch in range(EPOCHS)]
    folder = study / folder_name(HIFUSE, 0)
    rows = read_csv(folder / "checkpoints.csv")
    assert [(int(row["epoch"]), float(row["val_top1"])) for row in rows] == list(enumerate(METRICS))
    assert [float(row["test_accuracy"]) for row in rows] == pytest.approx(right, abs=1e-6)
    assert len(set(right)) > 1  # else no epoch would be the best
    chosen = dict(best=1, last=2)
    chosen["best-on-test"] = right.index(max(right))
    assert json.loads((folder / "run.json").read_text())["chosen"] == chosen
    for name, epoch in [*chosen.items(), ("best-squash", 1), ("last-squash", 2)]:
        found = read_predictions(folder / f"{name}.csv")
        numbers = [int(Path(file).stem) for file in found.files]
        crop = "-squash" if name.endswith("squash") else ""
        torch.testing.assert_close(found.probs.float(), epochs[epoch, crop][numbers], atol=0.02, rtol=0)
        assert found.groups == [f"patient {number // 4}" for number in numbers]
    assert not torch.allclose(epochs[1, ""], epochs[1, "-squash"], atol=0.05)


def test_finished_run_is_not_repeated(study, place, command, capsys):
    before = read_files(study)
    script = place / "train.py"
    script.rename(place / "elsewhere.py")
    try:
        assert command("--seeds", 0, 1, "--run", models=[HIFUSE]) == 0
    finally:
        (place / "elsewhere.py").rename(script)
    assert read_files(study) == before


def test_interrupted_run_goes_on_from_its_last_epoch(place, command):
    out, name = place / "interrupted", folder_name(CONVNEXT, 0)
    stop = place / "interrupted-checkpoints" / name / "stop"
    stop.parent.mkdir(parents=True)
    stop.touch()
    assert "train.py ended with exit status 0 after 2 epochs" in command("--run", out=out, models=[CONVNEXT])
    assert not (out / name / "run.json").exists()
    stop.unlink()
    assert command("--run", out=out, models=[CONVNEXT]) == 0
    record = json.loads((out / name / "run.json").read_text())
    assert [session["first_epoch"] for session in record["sessions"]] == [0, 2]
    assert record["chosen"]["best"] == 1 and record["epochs"] == 3
    assert [int(row["epoch"]) for row in read_csv(out / name / "epochs.csv")] == [0, 1, 2]
    assert "this command" in (out / "README.md").read_text()


def test_run_that_was_started_by_hand_is_taken_over(study, place, command):
    name = folder_name(CONVNEXT, 0)
    theirs = place / "by-hand" / name
    shutil.copytree(place / "study-checkpoints" / name, theirs)
    (theirs / "sessions.json").unlink()
    (theirs / "epochs.csv").write_text("epoch,seconds\n0,30\n1,20.5\n2,21.5\n")
    options = ["--run", "--train-script", "nowhere.py", "--checkpoints", "by-hand"]
    before = read_files(theirs)
    assert command(*options, out="adopted", models=[CONVNEXT]) == 0
    assert read_files(theirs) == before
    page = (place / "adopted/README.md").read_text()
    assert "21.5 |" in page and "hand, in part or all" in page and "this command" not in page
    for file in ("best.csv", "last.csv", "best-on-test.csv"):
        assert (place / "adopted" / name / file).read_bytes() == (study / name / file).read_bytes()


def test_hours_count_the_epochs_between_validations():
    history = SimpleNamespace(rows=lambda: [dict(epoch="3"), dict(epoch="7"), dict(epoch="9")])
    seconds = {3: 1800.0, 7: 900.0, 9: 450.0}
    assert RunResult(None, history, seconds, {}, {}).hours == (4 * 1800 + 4 * 900 + 2 * 450) / 3600
    assert RunResult(None, history, {3: 1800.0, 9: 450.0}, {}, {}).hours is None


def test_folder_of_another_training_is_refused(place, command):
    name = folder_name(CONVNEXT, 0)
    theirs = place / "others" / name
    theirs.mkdir(parents=True)
    other = RECIPE | dict(model="convnext_tiny", model_kwargs={}, num_classes=2, seed=0, img_size=64)
    (theirs / "args.yaml").write_text(yaml.safe_dump(other))
    message = command("--run", "--checkpoints", "others", out="none", models=[CONVNEXT])
    assert "img_size was 64 and is 32" in message and "model_kwargs was {} and is {'dims'" in message
    assert not (place / "none").exists() and [path.name for path in theirs.iterdir()] == ["args.yaml"]


# The tables


def test_tables_have_means_spreads_intervals_and_the_papers_rows(study):
    text = (study / "README.md").read_text()
    of_seeds = [read_predictions(study / folder_name(HIFUSE, seed) / "best.csv") for seed in (0, 1)]
    accuracies = [(p.probs.argmax(1) == p.targets).double().mean().item() for p in of_seeds]
    found = estimate(of_seeds)["accuracy"]
    assert found.values == pytest.approx(accuracies, abs=1e-6)
    cell = f"{100 * statistics.mean(accuracies):.2f} ± {100 * statistics.stdev(accuracies):.2f} ("
    assert f"| 0 1 | {cell}" in squeeze(text)
    [alone] = [read_predictions(study / folder_name(CONVNEXT, 0) / "last.csv")]
    bounds = bootstrap_intervals(alone.probs, alone.targets, alone.groups)[0]["accuracy"]  # those of evaluate
    assert estimate([alone])["accuracy"].interval == bounds and estimate([alone])["accuracy"].spread is None
    mean = 100 * (alone.probs.argmax(1) == alone.targets).double().mean().item()
    assert f"{mean:.2f} ({100 * bounds[0]:.2f} to {100 * bounds[1]:.2f})" in text
    assert "8 of 24" in text and "over 6 groups of images" in text
    assert "in the paper" not in text and "Table 5, best epoch on val" in text  # none of narrow networks


def squeeze(text: str) -> str:
    return " ".join(text.split())


def test_interval_of_several_seeds_is_that_of_their_mean():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(2, (200,), generator=generator)
    of_seeds = [draw(targets, accuracy, generator) for accuracy in (0.6, 0.8)]
    found = estimate(of_seeds)["accuracy"]
    right = torch.stack([p.probs.argmax(1) == targets for p in of_seeds]).double().mean(0)
    error = 1.96 * right.std().item() / math.sqrt(200)
    assert found.interval == pytest.approx([found.mean - error, found.mean + error], abs=0.012)


def draw(targets: torch.Tensor, accuracy: float, generator: torch.Generator) -> Predictions:
    right = torch.rand(len(targets), generator=generator, dtype=torch.float64) < accuracy
    probs = torch.nn.functional.one_hot(torch.where(right, targets, 1 - targets), 2).double() * 0.5 + 0.25
    return Predictions([str(i) for i in range(len(targets))], ["a", "b"], probs, targets)


def test_networks_are_compared_on_the_same_images():
    targets = torch.zeros(40, dtype=torch.long)
    ours, theirs = (torch.arange(40) < limit for limit in (30, 22))

    def predict(right: torch.Tensor) -> Predictions:
        probs = torch.where(right, 0.9, 0.1).double()
        return Predictions([str(i) for i in range(40)], ["a", "b"], torch.stack([probs, 1 - probs], 1), targets)

    found = compare([predict(ours)], [predict(theirs)])
    assert found.difference == pytest.approx(8 / 40) and (found.better, found.worse) == (8, 0)
    assert found.p_value == pytest.approx(2 * 0.5**8)
    error = 1.96 * math.sqrt(0.2 * 0.8 / 40)
    assert found.interval == pytest.approx([0.2 - error, 0.2 + error], abs=0.03)
    same = compare([predict(ours)], [predict(ours)])
    assert (same.difference, same.interval, same.p_value) == (0, [0, 0], 1)


def test_row_of_the_paper_stands_under_its_network(study, place):
    folder = place / "named"
    shutil.copytree(study, folder)
    for path in [folder / "study.json", *folder.glob("hifuse*/run.json")]:
        path.write_text(path.read_text().replace(HIFUSE, "hifuse_tiny"))
    text = squeeze(format_page(load_result(folder)))
    assert "The paper's are of 224x224 pixels." in text
    assert "| HiFuse_Tiny, Table 5 | | 74.73 | 74.67 | 74.65 | 74.73 | |" in text
    assert published.find_row("conformer_base_p16", "isic2018").metrics["accuracy"] == 82.66
    assert published.find_row("t2t_vit_t_24", "kvasir").metrics["recall"] == 76.91
    assert published.find_row("hifuse_tiny[dims=(1,2)]", "covid19ct") is None


def test_published_rows_of_medmnist_stand_under_ours(study, place):
    folder = place / "pneumonia"
    shutil.copytree(study, folder)
    path = folder / "study.json"
    path.write_text(path.read_text().replace('"covid19ct"', '"pneumoniamnist"'))
    text = squeeze(format_page(load_result(folder)))
    assert "| ResNet-50 (224), MedMNIST v2 | | 88.40 | | | | 96.20 |" in text and "Table 5" not in text


# From the files alone


@pytest.fixture
def committed(study, tmp_path):
    """A copy of the study in a folder of studies, with nothing else: no dataset, no weights, no train.py."""
    shutil.copytree(study, tmp_path / "results" / "study")
    return tmp_path / "results"


def test_all_is_made_again_from_the_files_of_a_study(study, committed, monkeypatch, capsys):
    monkeypatch.chdir(committed)
    before = read_files(study)
    for name in ("README.md", "accuracy.svg", "learning-curves.svg"):
        (committed / "study" / name).unlink()
    assert main(["accuracy", "--from", str(committed)]) == 0
    after = read_files(committed / "study")
    assert after == before
    printed = squeeze(capsys.readouterr().out)
    summary = squeeze((committed / "summary.md").read_text())
    assert "paper split of seed 0" in summary and "8 of 24" in summary and "(study/README.md)" in summary
    assert "Table 5, best epoch on val" in printed and "paper split of seed 0" in printed


def test_figures_are_those_of_the_predictions(committed):
    before = format_page(load_result(committed / "study"))
    path = committed / "study" / folder_name(CONVNEXT, 0) / "last.csv"
    found = read_predictions(path)
    write_predictions(path, predictions.replace(found, probs=found.probs.flip(1)))
    after = format_page(load_result(committed / "study"))
    assert [a == b for a, b in zip(before.splitlines(), after.splitlines(), strict=True)].count(False) >= 3


STUDIES = sorted(path.parent for path in (ROOT / "benchmarks" / "results").rglob("study.json"))


@pytest.mark.parametrize("folder", [None, *STUDIES], ids=lambda path: path.name if path else "made here")
def test_committed_figures_are_those_of_the_predictions_beside_them(folder, study):
    folder = folder or study
    result = load_result(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == format_page(result)
    for runs in result.runs.values():
        for run in runs:
            for name, found in run.predictions.items():
                evaluated = json.loads((run.history.folder / f"{name}.json").read_text(encoding="utf-8"))
                accuracy = (found.probs.argmax(1) == found.targets).double().mean().item()
                assert evaluated["accuracy"] == pytest.approx(accuracy, abs=1e-6)
                auroc = estimate([found])["auroc"].mean  # the CSV's nine digits tie what was as good as tied
                assert evaluated["auroc"] == pytest.approx(auroc, abs=0.005)
            assert run.record.chosen["best"] == run.history.best_epoch()
            assert run.record.chosen.get("best-on-test", max(run.kept)) in run.kept


def test_committed_summaries_are_those_of_the_studies_beside_them(committed):
    assert main(["accuracy", "--from", str(committed)]) == 0
    for page in [committed / "summary.md", *(ROOT / "benchmarks" / "results").rglob("summary.md")]:
        assert page.read_text(encoding="utf-8") == format_summary_page(load_results(page.parent)), page


def test_runs_of_other_images_are_refused(committed):
    path = committed / "study" / folder_name(CONVNEXT, 0) / "last.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="24 images, .*last.csv has 23: expected predictions of the same images"):
        load_result(committed / "study")


# Epochs and their seconds


def test_seconds_are_taken_while_epochs_end(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(history.time, "monotonic", lambda: now[0])
    summary = tmp_path / "summary.csv"

    def write(*epochs):
        summary.write_text("epoch,eval_top1\n" + "".join(f"{epoch},50.0\n" for epoch in epochs))

    clock = EpochClock(History(tmp_path))
    for seconds, epochs in ((10, [0]), (3, [0]), (4, [0, 1]), (8, [0, 1, 2, 3])):
        now[0] += seconds
        write(*epochs)
        clock.update()
    assert History(tmp_path).seconds() == {0: 10, 1: 7, 2: 4, 3: 4}
    now[0] += 1000  # of a pause, before the next session
    clock = EpochClock(History(tmp_path))
    write(0, 1, 2)  # which train.py cuts down to what it goes on from
    clock.update()
    now[0] += 20
    write(0, 1, 2, 7)  # it validates every few epochs from now on
    clock.update()
    assert History(tmp_path).seconds() == {0: 10, 1: 7, 2: 4, 3: 4, 7: 4}


def test_places_of_the_machine_are_left_out(tmp_path):
    known = dict(DATA_DIR=tmp_path / "data", CHECKPOINTS=tmp_path / "data-2")
    text = f"{tmp_path}/data/train/a.png {tmp_path}/data-2/x '/usr/lib/python3/site.py' 3/4 https://a.org/b/c [ 0/14 ]"
    expected = "DATA_DIR/train/a.png CHECKPOINTS/x 'site.py' 3/4 https://a.org/b/c [ 0/14 ]"
    assert hide_folders(text, known) == expected


# Networks of mmpretrain


def test_conformer_and_t2t_train_as_models_of_timm():
    pytest.importorskip("mmpretrain")
    torch.manual_seed(0)
    x, targets = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    for name, kwargs in (("conformer_base_p16", {}), ("t2t_vit_t_24", dict(img_size=64))):
        model = timm.create_model(name, num_classes=3, in_chans=3, drop_rate=0.0, drop_path_rate=0.0, **kwargs).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        loss = torch.nn.functional.cross_entropy(model(x), targets)
        loss.backward()
        assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
        optimizer.step()
        with torch.no_grad():
            assert torch.nn.functional.cross_entropy(model(x), targets) < loss
            outputs = model.eval().model(x)
            summed = sum(outputs) if name.startswith("conformer") else outputs
            torch.testing.assert_close(model(x), summed)
    # what was asked for one network is not kept for the next
    counted = sum(p.numel() for p in peers.create_mmpretrain(peers.T2T_VIT).parameters())
    assert counted == pytest.approx(64.00e6, rel=0.001)


# What cannot be done is said before any training


@pytest.mark.parametrize(
    "options, words",
    [
        ("--set img_size", "set: 'img_size' is no setting, expected NAME=VALUE"),
        ("--set imgsize=32 --run", "has no setting imgsize; near it: img_size"),
        ("--recipe nowhere.yaml", "recipe: nowhere.yaml cannot be read"),
        ("--data-dir nowhere", "data-dir: nowhere has no folder train"),
        ("--run --train-script nowhere.py", "train-script: nowhere.py is no file"),
        ("--models hifuse_tiny[fuse]", "models: hifuse_tiny[fuse] asks for fuse"),
        ("--models resnet18 resnet18", "has a network twice"),
        ("--models hifuse_tiny[nonsense=1]", "cannot be built"),
        ("--models conformer-base-p16_3rdparty_in1k", "timm does not know: conformer_base_p16"),
        ("--models no_such_net", "'no_such_net' is no network of Table 4"),
        ("--device tpu", "device: 'tpu'"),
        ("--from study", "from: reads what was trained"),
    ],
)
def test_what_cannot_be_trained_is_said_before_any_training(command, place, options, words):
    message = command(*options.split(), out="wrong")
    assert isinstance(message, str) and words in message and "\n" not in message
    assert not (place / "wrong").exists()


def test_study_of_something_else_is_not_mixed_with_this_one(study, command):
    before = read_files(study)
    message = command("--set", "img_size=64", "--run", models=[CONVNEXT])
    assert "out: study holds a study of something else: img_size was 32 and is 64" in message
    assert read_files(study) == before


def test_folder_without_a_study_and_dataset_without_a_recipe_are_said(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    assert "from: " in main(["accuracy", "--from", str(tmp_path)]) and "holds no study" in main(
        ["accuracy", "--from", str(tmp_path)]
    )
    shutil.copytree(place / "data", tmp_path / "own")
    path = tmp_path / "own" / "dataset.json"
    path.write_text(path.read_text().replace('"covid19ct"', '"own"'))
    command = ["accuracy", "--data-dir", str(tmp_path / "own"), "--models", "resnet18", "--out", str(tmp_path / "out")]
    assert "recipe: missing, and own has none of its own: expected one of isic2018" in main(command)
    assert "data-dir, models, out: missing" in main(["accuracy"])
    assert find_studies(place / "study") == [place / "study"]


# With train.py itself, whose path HIFUSE_TIMM_TRAIN_PY gives

needs_train_py = pytest.mark.skipif(TRAIN_PY is None, reason="HIFUSE_TIMM_TRAIN_PY gives no train.py")


@needs_train_py
def test_train_py_knows_all_settings_of_the_benchmarks_recipes():
    unknown = vars(parse_with_train_py())
    for recipe in (ROOT / "benchmarks").glob("*.yaml"):
        assert set(yaml.safe_load(recipe.read_text())) <= set(unknown), recipe


@needs_train_py
def test_train_py_trains_a_run_of_a_study(place, monkeypatch):
    monkeypatch.chdir(place)
    command = ["accuracy", "--data-dir", "data", "--models", HIFUSE, "--set", "img_size=32", "epochs=2", "workers=0"]
    command += ["batch_size=4", "--out", "real", "--run", "--train-script", TRAIN_PY, "--device", "cpu"]
    assert main(command) == 0
    result = load_result(place / "real")
    [run] = result.runs[HIFUSE]
    assert run.record.epochs == 2 and len(run.kept) == 2 and set(run.seconds) == {0, 1}
    assert "img_size 32, epochs 2" in (place / "real" / "README.md").read_text()
