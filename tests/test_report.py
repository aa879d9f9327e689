"""`report` and `evaluate --report`: a page that is right, safe to open, and readable by all."""

import argparse
import base64
import io
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pages
import pytest
import timm
import torch
from conftest import NARROW
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from hifuse_timm.__main__ import main
from hifuse_timm.bootstrap import draw_weights
from hifuse_timm.curves import measure_curves
from hifuse_timm.predictions import write_predictions
from hifuse_timm.report import find_mistakes, find_uncertain, read_runs, render_page
from hifuse_timm.text import abbreviate, printable

TAGS = set(
    "html head meta title link style body header main footer section h1 h2 h3 p div dl dt dd table caption thead tbody "
    "tr th td small figure figcaption strong bdi ul li span pre code img svg path text g circle line rect".split()
)


class Page(HTMLParser):
    """A page as a browser reads it: its elements with their attributes, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(html)
        self.text = re.sub(r" ([.,:;])", r"\1", " ".join(" ".join(self.words).split()))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def images(self) -> list[Image.Image]:
        sources = [attrs["src"] for tag, attrs in self.elements if tag == "img"]
        return [Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))) for source in sources]


@pytest.fixture(scope="module")
def run():
    return pages.make_run(pages.predict(["a", "b", "c"]))


def render(*runs) -> Page:
    return Page(render_page(runs, ["report", "run.json"]))


# Curves


@pytest.mark.parametrize("digits", [9, 1])  # with ties, too
def test_curves_and_their_bands_are_scikit_learns(digits):
    p = pages.predict(["a", "b"], images=40)
    scores, positive = p.probs[:, 0].round(decimals=digits), p.targets == 0
    weights = torch.cat(list(draw_weights(40, 60, 0, p.groups)))
    probs = torch.stack([scores, 1 - scores], dim=1)
    roc, precision_recall = measure_curves(probs, p.targets, [weights[:25], weights[25:]], [0], 0.9)[0]

    x, y, _ = roc_curve(positive, scores)
    assert np.allclose(roc.x, x) and np.allclose(roc.y, y)
    rates, precisions = [], []
    for times in weights.numpy():
        drawn = np.repeat(np.arange(40), times.astype(int))
        if positive[drawn].all() or not positive[drawn].any():
            continue
        x, y, _ = roc_curve(positive[drawn], scores[drawn], drop_intermediate=False)
        rates.append([np.interp(at, x, y) if at not in x else y[x == at].max() for at in roc.grid])
        y, x, _ = precision_recall_curve(positive[drawn], scores[drawn])
        precisions.append([y[x == x[x >= at - 1e-9].min()].max() for at in precision_recall.grid])
    for curve, values in ((roc, rates), (precision_recall, precisions)):
        assert np.allclose(np.quantile(values, [0.05, 0.95], axis=0), [curve.lower, curve.upper])
    # the area under the steps is the average precision
    area = (np.diff(precision_recall.x, prepend=0) * precision_recall.y).sum()
    y, x, _ = precision_recall_curve(positive, scores)
    assert area == pytest.approx(-(np.diff(x) * y[:-1]).sum())


def test_class_without_images_or_without_others_has_no_curves():
    p = pages.predict(["a", "b", "c"])
    only = measure_curves(p.probs, torch.zeros_like(p.targets), draw_weights(len(p.files), 5), range(3))
    assert only == [None, None, None]


# What the page says


def test_page_says_what_the_run_found(run):
    text = render(run).text
    result = run.result
    assert "hifuse_tiny on ISIC 2018, test" in text and "90 of 3 classes and 30 groups" in text
    bounds = " - ".join(f"{100 * bound:.2f}" for bound in result["intervals"]["accuracy"])
    wide = np.diff(result["intervals"]["accuracy"]) / np.diff(result["intervals"]["over_images"]["accuracy"])
    value = f"{100 * result['accuracy']:.2f}"
    assert f"accuracy {value} {bounds} {wide[0]:.2f} 82.99 {100 * (result['accuracy'] - 0.8299):+.2f}" in text
    assert "The paper's row is that of HiFuse_Tiny." in text
    counts = [[f"{n} {100 * n / sum(row):.0f}%" if n else "0" for n in row] for row in result["confusion"]]
    assert " ".join(["a b c", *(f"{name} {' '.join(row)}" for name, row in zip("abc", counts, strict=True))]) in text
    auroc, (lower, upper) = result["per_class"]["b"]["auroc"], result["per_class"]["b"]["intervals"]["auroc"]
    assert f"ROC, b AUROC: {auroc:.3f} ({lower:.3f} - {upper:.3f})" in text
    assert f"expected calibration error {result['ece']:.3f}" in text
    assert "fuse no" in text and "batch_size 1 mean 0.5, 0.25 device cpu" in text
    assert "python -m hifuse_timm report run.json" in text


def make_calibration(temperature: float) -> dict:
    """What evaluate writes of a calibration of the classes a, b and c."""
    thresholds = {"b": dict(aim="sensitivity", wanted=0.9, threshold=0.25, threshold_interval=[0.2, 0.3])}
    quality = dict(nll=0.7, ece=0.1, brier=0.3)
    rates = dict(sensitivity=0.88, specificity=0.66, intervals=dict(sensitivity=[0.8, 0.9], specificity=[0.6, 0.7]))
    return dict(
        **dict(temperature=temperature, temperature_interval=[1.2, 1.8], thresholds=thresholds, undecided_below=None),
        measured=dict(before=quality | dict(ece=0.2), after=quality, thresholds={"b": rates}, undecided=None),
    )


def test_calibration_and_subgroups_have_their_tables(run):
    subgroup = dict(images=40, groups=9, accuracy=0.5, balanced_accuracy=0.6, f1=None, auroc=0.7)
    subgroup |= dict(intervals=dict(accuracy=[0.4, 0.6], balanced_accuracy=[0.5, 0.7], f1=None, auroc=None))
    result = run.result | dict(subgroups={"site": {"north": subgroup}}, calibration=make_calibration(1.5))
    page = render(replace(run, result=result, uncalibrated=(run.predictions.probs.log() * 1.5).softmax(1)))
    assert "site images groups accuracy balanced accuracy F1 AUROC north 40 9 50.00 40.00 - 60.00" in page.text
    assert "temperature 1.500 (95% interval 1.200 - 1.800)" in page.text
    assert "b sensitivity 90 0.25 0.2 - 0.3 88.00 80.00 - 90.00 66.00 60.00 - 70.00" in page.text
    assert "after the calibration before it, 0.200" in page.text
    shapes = [attrs["class"] for tag, attrs in page.elements if tag == "circle" and "hollow" in attrs["class"]]
    assert len(shapes) > 3 and "Subgroups" not in render(run).text and "Calibration" not in render(run).text


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(in_train=dict(content=0, patient=0)), "0 of 90 images have the content of one in train 0 of 90"),
        (dict(in_train=dict(content=0, patient=12)), "Warning: 12 of 90 images are of a patient that train has"),
        (dict(in_train={}), "not known: no splits.csv"),
        (dict(split="train", in_train={}), "all: the split is train itself"),
    ],
)
def test_images_that_train_has_are_a_warning(fields, words):
    assert words in render(pages.make_run(pages.predict(["a", "b"]), **fields)).text


def test_mistakes_and_uncertain_images_are_those_of_the_probabilities(run):
    p = run.predictions
    top, predicted = p.probs.max(1)
    wrong = [i for i in range(len(p.files)) if predicted[i] != p.targets[i]]
    wrong.sort(key=lambda i: -top[i])
    assert [example.file for example in find_mistakes(p)] == [p.files[i] for i in wrong[:12]]
    assert [example.file for example in find_uncertain(p)] == [p.files[i] for i in top.argsort()[:12]]
    first = find_mistakes(p)[0]
    i = wrong[0]
    assert (first.target, first.predicted) == (p.classes[p.targets[i]], p.classes[predicted[i]])
    assert (first.prob, first.target_prob) == (top[i], p.probs[i, p.targets[i]])


def test_several_runs_stand_side_by_side(run):
    other = pages.make_run(pages.predict(["c", "a", "b"], seed=3), "other", paper=None)
    page = render(run, other)
    for metric in ("accuracy", "auroc"):
        for each in (run, other):
            assert f"{each.name} {100 * each.result[metric]:.2f}" in page.text
    found = [each.result["per_class"]["b"]["auroc"] for each in (run, other)]
    assert re.search(rf"ROC, b AUROC, run: {found[0]:.3f} \(.*?\) AUROC, other: {found[1]:.3f}", page.text)
    assert sum("band" == attrs.get("class") for _, attrs in page.elements) == 2 * 2 * 3


def test_many_classes_leave_out_the_matrix_and_the_charts_of_those_with_few_images():
    page = render(pages.make_run(pages.predict([f"class {k:02}" for k in range(41)], images=123, per_group=1)))
    assert "41 classes are too many to show here" in page.text and "the 24 with the most images" in page.text
    assert sum(tag == "figure" for tag, _ in page.elements) == 24 * 2 + 1 + 2 * 12


def test_page_repeats_itself_to_the_byte(run):
    again = pages.make_run(pages.predict(["a", "b", "c"]))
    assert render_page([run], ["report"]) == render_page([again], ["report"])


# Safe to open


def test_names_of_strangers_are_text_and_nothing_else():
    run = pages.hostile_run("data:image/png;base64,AAAA")
    html = render_page([run], ["evaluate", *pages.HOSTILE], pages.HOSTILE[0])
    page = Page(html)
    assert {tag for tag, _ in page.elements} <= TAGS
    for tag, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        assert set(attrs) & {"style"} <= ({"style"} if tag == "td" else set()), (tag, attrs)
    for name in pages.HOSTILE:
        assert re.sub(r" ([.,:;])", r"\1", printable(name)) in page.text
    for name in pages.CLASSES:
        assert " ".join(abbreviate(name, 60).split()) in page.text
    assert "49" not in html.partition("</h1>")[0]
    assert html.isprintable() or not set(html) & set("\u202e\u2066\x1b")


def test_page_asks_for_nothing(run):
    html = render_page([run], ["report"])
    page = Page(html)
    assert {attrs[name] for _, attrs in page.elements for name in ("href", "src") if name in attrs} == {"data:,"}
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    assert not re.search(r"url\(|@import|//", style) and "<script" not in html
    policy = next(
        attrs["content"] for _, attrs in page.elements if "content-security" in attrs.get("http-equiv", "").lower()
    )
    assert policy.split("; ")[0] == "default-src 'none'"
    assert "script-src" not in policy and "img-src data:" in policy


# Readable by all


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    """As WCAG 2.2 defines it."""
    lower, upper = sorted(map(luminance, (a, b)))
    return (upper + 0.05) / (lower + 0.05)


def test_colours_have_the_contrast_of_wcag_aa_in_both_schemes(run):
    style = re.search(r"<style>(.*?)</style>", render_page([run], ["report"]), re.DOTALL)[1]
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6});", rules)) for rules in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    assert set(light) == set(dark) and len(light) == 13
    for colors in (light, dark):
        for ground in ("paper", "card"):
            assert min(contrast(colors[name], colors[ground]) for name in ("ink", "muted", "warning")) >= 4.5
        assert min(contrast(color, colors["paper"]) for name, color in colors.items() if "series" in name) >= 3
        # a cell of the matrix is at most 45% accent
        mixed = [
            int(colors["accent"][i : i + 2], 16) * 0.45 + int(colors["paper"][i : i + 2], 16) * 0.55 for i in (1, 3, 5)
        ]
        assert contrast(colors["ink"], "#" + "".join(f"{round(c):02x}" for c in mixed)) >= 4.5


def test_figures_follow_the_scheme_and_say_what_they_are(run):
    page = render(run)
    drawn = [(tag, attrs) for tag, attrs in page.elements if tag in ("path", "text", "g", "circle", "line", "rect")]
    assert len(drawn) > 50 and not any("#" in value for _, attrs in drawn for value in attrs.values())
    for tag, attrs in page.elements:
        if tag == "svg":
            assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-label"])
        if tag == "img":
            assert attrs["alt"]
        if tag == "th":
            assert attrs["scope"] in ("row", "col", "rowgroup")
    assert [tag for tag, _ in page.elements if tag == "h1"] == ["h1"]


# The commands


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset of two classes as prepare writes it; of its four test images, train has the content of one."""
    root = tmp_path_factory.mktemp("data")
    rows = ["file,class,split,group,checksum"]
    for split, name, number in [(s, c, i) for s in ("train", "test") for c in ("a", "b") for i in range(2)]:
        file = root / split / name / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((80, 40), 60).convert("RGB").save(file, comment=b"Jane Doe")
        checksum = "same" if (name, number) == ("a", 0) else f"{split} {name} {number}"
        rows.append(f"{split}/{name}/{number}.jpg,{name},{split},{name if number else file.stem + split},{checksum}")
    (root / "splits.csv").write_text("\n".join(rows) + "\n")
    shared = dict(unit="patient", test=3)
    description = dict(name="own", title="Ours", classes=["a", "b"], shared_with_train=shared)
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("hifuse_tiny", num_classes=2, **NARROW)
    path = tmp_path_factory.mktemp("training") / "last.pth.tar"
    torch.save(dict(state_dict=model.state_dict(), args=argparse.Namespace(model_kwargs=NARROW, img_size=32)), path)
    return path


def evaluate(data, checkpoint, *options) -> int:
    command = ["evaluate", "--model", "hifuse_tiny", "--checkpoint", checkpoint, "--data-dir", data]
    return main([*map(str, command), "--workers", "0", "--resamples", "20", *map(str, options)])


@pytest.fixture(scope="module")
def evaluated(data, checkpoint, tmp_path_factory):
    """The folder into which evaluate wrote result, predictions and page."""
    folder = tmp_path_factory.mktemp("evaluated")
    outputs = ["--json", folder / "run.json", "--predictions", folder / "run.csv", "--report", folder / "page.html"]
    assert evaluate(data, checkpoint, *outputs) == 0
    return folder


def test_evaluate_writes_the_page_with_images_and_heat_maps(evaluated):
    page = Page((evaluated / "page.html").read_text())
    pictures = page.images()
    mistakes = sum(row[1 - k] for k, row in enumerate(json.loads((evaluated / "run.json").read_text())["confusion"]))
    assert len(pictures) == 2 * (mistakes + 4) and {picture.size for picture in pictures} == {(80, 40)}
    assert not any("comment" in picture.info or "exif" in picture.info for picture in pictures)
    for image, heat_map in zip(pictures[::2], pictures[1::2], strict=True):
        assert np.ptp(np.asarray(image.convert("RGB")), axis=2).mean() < 5  # grey, as the images are
        assert np.ptp(np.asarray(heat_map), axis=2).mean() > 20
    assert f"--report {evaluated / 'page.html'}" in page.text


def test_images_of_a_split_that_train_has_are_counted(evaluated):
    assert json.loads((evaluated / "run.json").read_text())["in_train"] == dict(content=1, group=2, patient=3)
    text = Page((evaluated / "page.html").read_text()).text
    assert "Warning: 1 of 4 images have the content of one in train Warning: 2 of 4 images are of a group" in text


def test_images_can_be_left_out_and_their_names_stay(evaluated, data, checkpoint, tmp_path):
    assert evaluate(data, checkpoint, "--report", tmp_path / "page.html", "--no-images") == 0
    page = Page((tmp_path / "page.html").read_text())
    assert not page.images() and "data:image" not in (tmp_path / "page.html").read_text()
    assert "The images are left out (--no-images)." in page.text and "test/a/0.jpg" in page.text
    # and so they are by report, of the files
    files = [str(evaluated / "run.json"), "--predictions", str(evaluated / "run.csv")]
    assert main(["report", *files, "--out", str(tmp_path / "again.html")]) == 0
    again = Page((tmp_path / "again.html").read_text())
    assert not again.images() and "test/a/0.jpg" in again.text
    section = "What was measured(.*)The most confident mistakes"
    assert re.search(section, page.text)[1] == re.search(section, again.text)[1]


def test_page_without_the_extra_says_how_to_get_heat_maps(data, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    assert evaluate(data, checkpoint, "--report", tmp_path / "page.html") == 0
    page = Page((tmp_path / "page.html").read_text())
    assert "There are no heat maps:" in page.text and "pip install 'hifuse-timm[explain] @ git+https://" in page.text
    assert page.images() and "Grad-CAM of the class" not in page.text


def test_no_images_without_a_report_is_refused(data, checkpoint, capsys):
    assert evaluate(data, checkpoint, "--no-images") == 1
    assert "give --report FILE.html" in capsys.readouterr().err


def test_files_that_do_not_belong_together_are_refused(tmp_path, capsys):
    first = pages.make_run(pages.predict(["a", "b"]), "first")
    second = pages.make_run(pages.predict(["a", "b"], seed=1), "second")
    third = pages.make_run(pages.predict(["a", "c"]), "third")
    runs = {run.name: pages.write_run(tmp_path, run) for run in (first, second, third)}
    blind = tmp_path / "blind.csv"
    write_predictions(blind, replace(first.predictions, targets=None))
    alone = tmp_path / "alone.csv"
    write_predictions(alone, replace(first.predictions, groups=None))

    def refuse(results, tables, *words):
        out = tmp_path / "page.html"
        assert main(["report", *map(str, results), "--predictions", *map(str, tables), "--out", str(out)]) == 1
        error = capsys.readouterr().err
        assert all(word in error for word in words) and error.count("\n") == 1 and not out.exists(), error

    (a, a_table), (b, b_table), (c, c_table) = runs.values()
    refuse([a, b], [a_table], "1 given for 2 runs")
    refuse([a], [b_table], str(a), str(b_table), "give the predictions of the run")
    refuse([a], [c_table], "have the classes a, c", "has a, b")
    refuse([a, c], [a_table, c_table], "put runs of the same classes on one page")
    refuse([a], [blind], "no column class")
    refuse([a], [alone], "no column group")
    refuse([a_table], [a_table], "no JSON")
    refuse([a], [a], f"predictions {a} have")


def test_probabilities_before_a_calibration_follow_from_its_temperature(tmp_path):
    before = pages.predict(["a", "b", "c"])
    after = replace(before, probs=(before.probs.log() / 0.4).softmax(1))
    files = pages.write_run(tmp_path, pages.make_run(after, calibration=make_calibration(0.4)))
    (read,) = read_runs(files[:1], files[1:])
    assert np.allclose(read.uncalibrated, before.probs, atol=1e-8)


def test_predictions_that_were_changed_are_refused(evaluated, tmp_path, capsys):
    (tmp_path / "run.csv").write_text((evaluated / "run.csv").read_text().replace("test/", "best/"))
    files = [str(evaluated / "run.json"), "--predictions", str(tmp_path / "run.csv")]
    assert main(["report", *files, "--out", str(tmp_path / "page.html")]) == 1
    assert "were changed since" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["calibration", "subgroups", "origins", "in_train", "conditions", "intervals"])
@pytest.mark.parametrize("value", [None, 5, "x", [], {"a": None}, {"a": {"b": {}}}])
def test_run_of_a_stranger_makes_a_page_or_one_error(name, value, tmp_path, capsys):
    run = pages.make_run(pages.predict(["a", "b"], images=12), **{name: value})
    command = ["report", *pages.write_run(tmp_path, run), "--out", tmp_path / "page.html"]
    command.insert(2, "--predictions")
    code = main(list(map(str, command)))
    error = capsys.readouterr().err
    assert code == 0 or (code == 1 and name in error and error.count("\n") == 1)


def test_runs_of_classes_in_another_order_are_matched_by_name(tmp_path):
    p = pages.predict(["a", "b", "c"])
    turned = replace(p, classes=p.classes[::-1], probs=p.probs.flip(1), targets=2 - p.targets)
    files = [pages.write_run(tmp_path, pages.make_run(*of)) for of in ((p, "one"), (turned, "two"))]
    one, two = read_runs(*zip(*files, strict=True))
    page = render(one, two)
    lines = [attrs["d"] for _, attrs in page.elements if attrs.get("class", "").startswith("line") and "d" in attrs]
    assert len(lines) == 14 and lines[:12:2] == lines[1:12:2]
