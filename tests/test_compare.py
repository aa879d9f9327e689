"""`compare`: differences between networks are paired, and their tests those of the published examples."""

import json

import numpy as np
import pytest
import torch

from hifuse_timm.__main__ import main
from hifuse_timm.compare import COMPARED, compare_metrics, delong_test, holm, mcnemar_exact
from hifuse_timm.metrics import compute_metrics
from hifuse_timm.predictions import Predictions, write_predictions

# 113 patients with an aneurysmal subarachnoid haemorrhage (Turck et al., Intensive Care Med 2010), the example of the
# R package pROC: outcome (1 is poor), grade of the WFNS, and 100 times the concentrations of S100beta and NDKA.
OUTCOME = (
    "00001101001011001011101000000000100110110000000001100010001010011101101111000110100000010000000000001111110001000"
)
WFNS = (
    "11113254125255125225211112121134214541425511241125521251222151125214524414121421232421451154221113125225552445111"
)
S100B = """13 14 10 4 13 10 47 16 18 10 12 10 44 71 4 8 49 4 7 33 9 9 7 11 7 17 7 11 13 19 5 16 41 14 34 35 48 9 96
    25 50 46 16 7 43 45 11 8 9 86 52 8 6 13 207 10 14 15 7 6 77 5 9 30 3 9 4 23 70 9 27 71 8 26 8 16 9 13 10 8 11 33 11
    28 7 10 32 22 7 5 24 38 10 15 8 14 10 7 4 19 56 14 58 32 82 74 15 47 17 44 15 50 48"""
NDKA = """301 854 809 1042 1740 1275 600 1320 1554 601 1596 1786 518 890 1341 2075 1160 1611 3237 5482 3241 4994 4034
    947 629 1253 654 630 8030 1280 980 981 985 1821 503 1404 2193 802 742 838 659 963 1312 796 1434 4143 763 706 1259
    1356 387 944 766 1298 41919 2719 2227 995 2122 1173 1040 5883 639 1109 1222 1367 1721 2263 1290 970 2157 823 7257
    1554
    1051 1060 1457 519 963 461 2148 1730 1271 944 1107 1946 1083 537 1197 775 983 1055 2849 853 1257 1290 4683 1168 1267
    901 957 3406 1172 1426 4761 1167 2458 1033 1387 1589 2243 679 1345"""
PATIENTS = dict(
    wfns=torch.tensor(list(map(int, WFNS))),
    s100b=torch.tensor(list(map(int, S100B.split()))) / 100,
    ndka=torch.tensor(list(map(int, NDKA.split()))) / 100,
)
IS_POOR = torch.tensor([outcome == "1" for outcome in OUTCOME])


@pytest.mark.parametrize(
    "first, second, z, p, interval",
    [
        ("wfns", "s100b", 2.20898359144091, 0.0271757822291882, (0.0104061769564846, 0.174214419249478)),
        ("wfns", "ndka", 2.79777591868904, 0.00514557970691098, (0.0634011709339876, 0.3600405634833566)),
        ("ndka", "s100b", -1.39077002573558, 0.164295175223054, (-0.2876917446341914, 0.0488706064228094)),
    ],
)
def test_delong_is_that_of_the_published_example(first, second, z, p, interval):
    """The values are those that pROC's own tests expect of roc.test."""
    tested = delong_test(PATIENTS[first], PATIENTS[second], IS_POOR)
    assert (tested.z, tested.p, *tested.interval) == pytest.approx((z, p, *interval), rel=1e-9)


def test_delong_of_equal_rankings_finds_nothing_and_of_perfect_ones_says_so():
    tested = delong_test(PATIENTS["wfns"], 2.0 * PATIENTS["wfns"], IS_POOR)
    assert (tested.difference, tested.z, tested.p) == (0, 0, 1)
    assert delong_test(IS_POOR.double(), -IS_POOR.double(), IS_POOR) is None
    assert delong_test(PATIENTS["wfns"], PATIENTS["ndka"], torch.arange(113) == 3) is None


def test_mcnemar_is_that_of_the_published_example():
    """Airway reactivity before and after a transplantation, in Fagerland et al., BMC Med Res Methodol 13:91 (2013)."""
    assert mcnemar_exact(1, 7) == mcnemar_exact(7, 1) == pytest.approx(0.0703125)
    assert mcnemar_exact(0, 0) == 1


def test_holm_steps_down_and_leaves_out_what_is_undefined():
    """The values are those of p.adjust in R."""
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.04, None, 0.01]) == [pytest.approx(0.04), None, pytest.approx(0.02)]
    assert holm([0.9, 0.6]) == [1, 1]


def make(num_images=60, num_classes=3, right=1.0, seed=0, truth_seed=7):
    """Random probabilities that tell the more of the classes the more `right` is, and the classes."""
    targets = torch.randint(num_classes, (num_images,), generator=torch.Generator().manual_seed(truth_seed))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, num_classes, generator=generator, dtype=torch.float64)
    return (logits + right * torch.nn.functional.one_hot(targets, num_classes)).softmax(1), targets


@pytest.mark.parametrize("grouped", [False, True])
def test_differences_are_those_of_a_plain_paired_bootstrap(grouped):
    (first, targets), (second, _) = make(), make(right=1.5, seed=1)
    owners = torch.randint(20, (60,), generator=torch.Generator().manual_seed(3)).tolist() if grouped else range(60)
    groups = list(dict.fromkeys(owners))
    of_first, of_second = compare_metrics(
        [first, second], targets, list(map(str, owners)) if grouped else None, resamples=50, seed=4
    )
    drawn = torch.randint(len(groups), (50, len(groups)), generator=torch.Generator().manual_seed(4))
    images = [[i for g in row for i in range(60) if owners[i] == groups[g]] for row in drawn.tolist()]
    found = [[compute_metrics(p[row], targets[row])[0] for p in (first, second)] for row in images]
    expected = [compute_metrics(p, targets)[0] for p in (first, second)]
    for name in COMPARED:
        assert of_second["metrics"][name]["value"] == pytest.approx(expected[1][name], abs=1e-6)
        difference = of_second["differences"][name]
        assert difference["value"] == pytest.approx(expected[1][name] - expected[0][name], abs=2e-6)
        differences = np.percentile([b[name] - a[name] for a, b in found], [2.5, 97.5])
        assert difference["interval"] == pytest.approx(differences, abs=2e-6)
    assert "differences" not in of_first


def test_networks_that_agree_where_they_err_differ_by_less_than_their_intervals_say():
    probs, targets = make(num_images=400)
    nearly = probs.clone()
    nearly[:8] = torch.nn.functional.one_hot(targets[:8], 3)
    first, second = compare_metrics([probs, nearly], targets, resamples=300)
    lower, upper = second["differences"]["accuracy"]["interval"]
    assert 0 <= lower < upper < 0.03
    low, high = first["metrics"]["accuracy"]["interval"]
    assert high - low > 0.08


# The command


@pytest.fixture
def tables(tmp_path):
    """Three tables: of evaluate with groups, of evaluate with other columns, of predict with more folders in front."""
    (first, targets), (second, _), (third, _) = make(), make(right=2.0, seed=1), make(right=0.5, seed=2)
    files = [f"test/c/{i}.png" for i in range(60)]
    groups = [f"patient {i // 3}" for i in range(60)]
    write_predictions(tmp_path / "a.csv", Predictions(files, ["x", "y", "z"], first, targets, groups))
    other = Predictions(files[::-1], ["z", "x", "y"], second.flip(0)[:, [2, 0, 1]], (targets.flip(0) + 1) % 3)
    write_predictions(tmp_path / "b.csv", other)
    write_predictions(tmp_path / "c.csv", Predictions([f"/data/{file}" for file in files], ["x", "y", "z"], third))
    return tmp_path, (first, second, third), targets, groups


def run(folder, names, *options) -> int:
    return main(["compare", *(str(folder / name) for name in names), "--resamples", "100", *map(str, options)])


def test_command_compares_all_with_the_first(tables, tmp_path, capsys):
    folder, probs, targets, groups = tables
    assert (
        run(folder, ["a.csv", "b.csv", "c.csv"], "--json", tmp_path / "out.json", "--markdown", tmp_path / "t.md") == 0
    )
    result = json.loads((tmp_path / "out.json").read_text())
    expected = compare_metrics(probs, targets, groups, resamples=100)
    for found, of_network in zip(result["networks"], expected, strict=True):
        for part in ("metrics", "differences"):
            for name, values in of_network.get(part, {}).items():
                assert found[part][name]["value"] == pytest.approx(values["value"], abs=2e-6)
                assert found[part][name]["interval"] == pytest.approx(values["interval"], abs=2e-6)
    assert result["intervals"] == dict(level=0.95, unit="groups", resamples=100, seed=0, groups=20)

    right = [p.argmax(1) == targets for p in probs]
    for network, of_network in zip(result["networks"][1:], right[1:], strict=True):
        counts = ((right[0] & ~of_network).sum().item(), (of_network & ~right[0]).sum().item())
        assert (network["mcnemar"]["only_first"], network["mcnemar"]["only_this"]) == counts
        assert network["mcnemar"]["p"] == pytest.approx(mcnemar_exact(*counts)) and network["delong"] is None
    p = [network["mcnemar"]["p"] for network in result["networks"][1:]]
    assert [network["mcnemar"]["p_holm"] for network in result["networks"][1:]] == holm(p)

    printed = capsys.readouterr().out
    assert "3 networks on 60 images, 3 classes" in printed and "over 20 groups" in printed
    assert "p-values tend to be too small" in printed and "DeLong's z" not in printed
    markdown = (tmp_path / "t.md").read_text()
    value = 100 * result["networks"][1]["differences"]["f1"]["value"]
    assert f" | {value:+.2f} | " in markdown and "| --- |" in markdown
    assert run(folder, ["a.csv", "b.csv", "c.csv"], "--json", tmp_path / "again.json") == 0
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "out.json").read_bytes()


def test_two_classes_have_delongs_test(tmp_path, capsys):
    for i, (name, scores) in enumerate(PATIENTS.items()):
        scores = (scores - scores.min()) / (scores.max() - scores.min())
        probs = torch.stack([1 - scores, scores], dim=1).double()
        files = [f"{i}.png" for i in range(113)]
        table = Predictions(files, ["good", "poor"], probs, IS_POOR.long() if i == 0 else None)
        write_predictions(tmp_path / f"{name}.csv", table)
    assert run(tmp_path, ["s100b.csv", "wfns.csv", "ndka.csv"], "--json", tmp_path / "out.json") == 0
    _, wfns, ndka = json.loads((tmp_path / "out.json").read_text())["networks"]
    assert (wfns["delong"]["z"], wfns["delong"]["p"]) == pytest.approx((2.20898359144091, 0.0271757822291882))
    assert (wfns["delong"]["p_holm"], ndka["delong"]["p_holm"]) == pytest.approx(
        (0.0543515644583764, 0.164295175223054)
    )
    assert wfns["delong"]["difference"] == pytest.approx(wfns["differences"]["auroc"]["value"], abs=1e-6)
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith(str(tmp_path)[:5]) and "+2.21" in line)
    assert line.split()[-3:] == ["+2.21", "0.0272", "0.0544"] and "over images" in printed
    assert "too small" not in printed


@pytest.mark.parametrize("resample, unit", [("groups", "groups"), ("images", "images")])
def test_what_is_resampled_may_be_chosen(resample, unit, tables, tmp_path, capsys):
    folder, _, _, _ = tables
    assert run(folder, ["a.csv", "b.csv"], "--resample", resample, "--json", tmp_path / "out.json") == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["intervals"]["unit"] == unit
    assert "p-values tend to be too small" in capsys.readouterr().out  # whatever is drawn


@pytest.mark.parametrize(
    "names, options, words",
    [
        (["a.csv"], [], "predictions: 1 given, expected two or more"),
        (["a.csv", "none.csv"], [], "none.csv"),
        (["c.csv", "c.csv"], [], "has the true classes: expected a column class in one, as evaluate writes it"),
        (["b.csv", "c.csv"], ["--resample", "groups"], "resample groups: none of "),
        (["a.csv", "b.csv"], ["--resamples", "0"], "resamples 0 is too small: expected 1 or more"),
        (["a.csv", "other.csv"], [], "other.csv has the classes z, w, y, "),
        (["a.csv", "less.csv"], [], "less.csv has 59 images, "),
        (["a.csv", "b.csv"], ["--json", "none/out.json"], "none, to write out.json in, does not exist"),
    ],
)
def test_tables_that_do_not_go_together_are_one_error(names, options, words, tables, capsys):
    folder, _, _, _ = tables
    text = (folder / "b.csv").read_text()
    (folder / "less.csv").write_text(text[: text.rindex("test/")])
    (folder / "other.csv").write_text(text.replace("p_x", "p_w").replace(",x", ",w"))
    assert run(folder, names, *options) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert words in captured.err and captured.out == ""
