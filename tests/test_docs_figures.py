"""The figures in the README and the documentation are those of benchmarks/results."""

import json
from pathlib import Path
from statistics import median

import pytest
import timm
import torch
from huggingface_hub import ModelCard

from benchmarks.measure.counting import count
from hifuse_timm.packaged import packaged_weights

ROOT = Path(__file__).parents[1]
MACHINE = ROOT / "benchmarks/results/amd-epyc-zen5-2cores"
CONVNEXT = "convnext_base[conv_mlp,channels_last]"
NETWORKS = {
    "HiFuse-Tiny, fused": "hifuse_tiny[fuse]",
    "ConvNeXt-B": CONVNEXT,
    "Swin-B": "swin_base_patch4_window7_224[fused_attn]",
    "Conformer-B": "conformer-base-p16_3rdparty_in1k",
}


def read_rows(page: str, heading: str) -> dict[str, list[str]]:
    """The rows of the tables under a heading, up to the next of its level or above, by their first cell.

    Of rows that begin alike the first counts.
    """
    level = heading.partition(" ")[0]
    text = (ROOT / page).read_text().split(f"\n{heading}\n")[1]
    rows = {}
    for line in text.splitlines():
        if line.startswith("#") and len(line.partition(" ")[0]) <= len(level):
            break
        if line.startswith("| "):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows.setdefault(name.replace("`", ""), cells)
    return rows


def measure(name: str, batch_size: int, kind: str) -> tuple[list[float], list[float]]:
    """Images a second of a network in two runs, and its ratios to ConvNeXt-B."""
    rates, ratios = [], []
    for run in (1, 2):
        rows = json.loads((MACHINE / f"{kind}-{run}.json").read_text())["rows"]
        rounds = {row["model"]: row["samples"]["rates"] for row in rows if row["batch_size"] == batch_size}
        rates.append(median(rounds[name]))
        ratios.append(median(a / b for a, b in zip(rounds[name], rounds[CONVNEXT], strict=True)))
    return rates, ratios


def show(values: list[float], digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


@pytest.mark.parametrize("label", NETWORKS)
def test_readme_has_the_speed_that_was_measured(label):
    rates, ratios = measure(NETWORKS[label], 8, "inference")
    kept = measure(NETWORKS[label], 8, "inference-kept")[1]
    assert read_rows("README.md", "## Speed")[label] == [show(rates), show(ratios), show(kept)]


@pytest.mark.parametrize("model", ["hifuse_tiny", "hifuse_small", "hifuse_base"])
def test_models_have_the_speed_that_was_measured(model):
    cells = read_rows("README.md", "## Models")[model]
    assert cells[3] == show(measure(f"{model}[fuse]", 8, "inference")[0], digits=1)


@pytest.mark.parametrize("kept, heading", [("", "## As it is"), ("-kept", "## With memory kept")])
def test_docs_have_the_speed_that_was_measured(kept, heading):
    rows = read_rows("docs/speed.md", heading)
    assert {"hifuse_tiny[fuse]", "hifuse_tiny[fuse], compiled"} < set(rows)
    for name, cells in list(rows.items())[2:]:  # behind the header and its line
        model, _, compiled = name.partition(", ")
        small, large = (measure(model, n, ("compiled" if compiled else "inference") + kept) for n in (1, 8))
        assert cells[:4] == [show(small[0]), show(small[1]), show(large[0]), show(large[1])], name


COUNTS = json.loads((ROOT / "benchmarks/results/counts/complexity.json").read_text())["rows"]
OURS = [row for row in COUNTS if row["network"].startswith("HiFuse")]


@pytest.mark.parametrize(
    "row", [row for row in OURS if "reconstructed" not in row["form"]], ids=lambda row: row["model"]
)
def test_models_have_the_counts_that_were_counted(row):
    assert read_rows("README.md", "## Models")[row["model"]][1:3] == [
        f"{row['params']:.1f} M",
        f"{row['conv_linear']:.2f}",
    ]


def test_models_have_the_packaged_network():
    model = timm.create_model(f"local-dir:{packaged_weights()}", pretrained=True).eval()
    counted = count(model, torch.rand(1, *model.pretrained_cfg["input_size"]))
    accuracy = ModelCard.load(packaged_weights() / "README.md").data.eval_results[0]
    _, params, macs, _, figures = read_rows("README.md", "## Models")["a narrow hifuse_tiny"]
    assert (params, macs) == (f"{counted.params / 1e6:.1f} M", f"{counted.conv_linear / 1e9:.2f} at 64")
    assert accuracy.metric_name == "accuracy" and f"[{accuracy.metric_value:.1%} of PneumoniaMNIST]" in figures


@pytest.mark.parametrize("network", ["HiFuse-Tiny", "HiFuse-Small", "HiFuse-Base"])
def test_readme_has_the_counts_that_were_counted(network):
    forms = {row["form"]: row for row in OURS if row["network"] == network}
    designed, reconstructed = forms["as designed"], forms["published count reconstructed"]
    figures = [designed["params"], designed["published_params"], reconstructed["params"]]
    figures += [designed["paper_rule"], designed["published_flops"]]
    assert read_rows("README.md", "## The count")[network] == [f"{figure:.2f}" for figure in figures]


def test_docs_have_the_counts_that_were_counted():
    rows = read_rows("docs/paper.md", "## The count: Table 4")
    for row in OURS:
        params, published, _, conv_linear, full, paper_rule, published_flops, _ = rows[
            f"{row['network']}, {row['form']}"
        ]
        assert (params, conv_linear, full, paper_rule) == tuple(
            f"{row[key]:.2f}" for key in ("params", "conv_linear", "full", "paper_rule")
        )
        assert (published, published_flops) == (f"{row['published_params']:.2f}", f"{row['published_flops']:.2f}")


def test_accuracies_of_covid19ct_are_those_of_the_committed_runs():
    results = ROOT / "benchmarks/results/covid19ct"
    rows = read_rows("docs/paper.md", "## Accuracies: Tables 4 to 6 by one command")
    named = {
        "best": "best epoch on val",
        "best-squash": "best epoch on val, images squashed whole",
        "last": "last epoch",
        "last-squash": "last epoch, images squashed whole",
        "best-on-test": "best on the test images, of the checkpoints kept: optimistic",
    }
    columns = {
        0: "official-112/hifuse_tiny-seed0",
        1: "official-192/hifuse_tiny-seed0",
        2: "paper-112/hifuse_tiny-seed0",
        3: "official-112/convnext_tiny-seed0",
    }
    for column, run in columns.items():
        for weights, name in named.items():
            metrics = json.loads((results / run / f"{weights}.json").read_text())
            low, high = metrics["intervals"]["accuracy"]
            shown = f"{100 * metrics['accuracy']:.2f} ({100 * low:.2f} to {100 * high:.2f})"
            assert rows[name][column] == shown, (run, weights)
    readme = " ".join((ROOT / "README.md").read_text().split())
    for column in (0, 1, 2):
        assert f" {rows['best epoch on val'][column].replace(' (', '% (')}" in readme
