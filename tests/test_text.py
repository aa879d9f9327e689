"""Words from outside are shown as they are: in a line of text, in pictures and in Markdown."""

import argparse
import csv
import json
import os
import re

import numpy as np
import pytest
import timm
import torch
from conftest import NARROW
from PIL import Image

from hifuse_timm.__main__ import main
from hifuse_timm.bootstrap import draw_weights
from hifuse_timm.curves import measure_curves
from hifuse_timm.errors import shorten
from hifuse_timm.evaluate.plots import draw_confusion, draw_precision_recall, draw_reliability, draw_roc
from hifuse_timm.files import save_figure
from hifuse_timm.prepare import prepare
from hifuse_timm.tables import format_markdown
from hifuse_timm.text import abbreviate, escape_markdown, printable

# Names of classes and files as they come: mathtext, Markdown, controls, what is not UTF-8, and what has no end.
NAMES = [
    "$x_1$",
    r"$\frac{1",
    "a_b^c $",
    r"back\slash",
    "two\nlines",
    "long " * 100,
    "قولون",
    "😀",
    "\udcff\x1b[31m",
    "scan\u202egnp.exe",
    "| `code` <b> [a](b) %s {x}",
]


def test_printable_text_is_one_line_of_utf_8_and_else_the_same():
    for name in NAMES:
        shown = printable(name)
        shown.encode()
        assert len(shown.splitlines()) == 1 and shown.isprintable()
    assert printable("two\nlines\x1b[31m\udcff\u2028") == r"two\nlines\x1b[31m\udcff\u2028"
    for name in ("$x_1$", "قولون", "😀", "é, ö", r"back\slash"):
        assert printable(name) == name


def test_abbreviated_text_keeps_its_ends():
    assert abbreviate("ISIC_0024306.jpg", 16) == "ISIC_0024306.jpg"
    assert abbreviate("0123456789" * 9, 11) == "0123…456789"
    assert len(abbreviate("\x00" * 99, 20)) == 20


def test_markdown_has_no_markup_left():
    assert escape_markdown("balanced_accuracy") == "balanced_accuracy"
    assert escape_markdown("a|b\n<b>_x_ [c](d) `e` *f* $g$ ~h~ &amp; \\") == (
        r"a\|b\\n\<b\>\_x\_ \[c\](d) \`e\` \*f\* \$g\$ \~h\~ \&amp; \\"
    )


@pytest.fixture
def draw():
    """Draws each kind of picture with these names and this title."""
    generator = torch.Generator().manual_seed(0)
    count = len(NAMES)
    targets = torch.randint(count, (200,), generator=generator)
    probs = torch.randn(200, count, generator=generator).double().softmax(1)
    curves = measure_curves(probs, targets, draw_weights(200, 9), range(count))
    return {
        "confusion": lambda names, title: draw_confusion(torch.ones(count, count, dtype=torch.long), names, title),
        "roc": lambda names, title: draw_roc(curves, names, [0.5] * count, title),
        "precision-recall": lambda names, title: draw_precision_recall(curves, names, [0.5] * count, title),
        "reliability": lambda names, title: draw_reliability(probs, targets, 0.1, title),
    }


def written_in(path) -> list[str]:
    """The texts of an SVG, which holds them as text."""
    from xml.etree import ElementTree

    return [
        "".join(element.itertext()).strip()
        for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.filterwarnings("ignore:Glyph")  # of characters that the font lacks
@pytest.mark.parametrize("kind", ["confusion", "roc", "precision-recall", "reliability"])
def test_plots_have_names_as_they_are(kind, draw, tmp_path):
    import matplotlib

    title = "$m$ on $\\bad{ \n" + "t" * 200
    with matplotlib.rc_context({"svg.fonttype": "none", "text.usetex": True}):
        save_figure(draw[kind](NAMES, title), tmp_path / "plot.svg")
    found = written_in(tmp_path / "plot.svg")
    assert any(text.startswith(r"$m$ on $\bad{ \ntt") and len(text) < 100 for text in found)
    if kind != "reliability":
        for name in NAMES:
            shown = abbreviate(name, 24).strip()
            assert any(text.startswith(shown) for text in found), shown
    save_figure(draw[kind](NAMES, title), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert min(image.size) > 500


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("hifuse_tiny", num_classes=len(NAMES), **NARROW)
    args = argparse.Namespace(model_kwargs=NARROW, img_size=32, num_classes=len(NAMES))
    path = tmp_path_factory.mktemp("training") / "last.pth.tar"
    torch.save(dict(arch="hifuse_tiny", state_dict=model.state_dict(), args=args), path)
    return path


def test_explain_draws_every_name_as_it_is(checkpoint, tmp_path, capsys):
    import matplotlib

    folder = tmp_path / "images"
    folder.mkdir()
    files = ["$x_1$.png", r"$\frac{1.png", "new\nline.png", os.fsdecode(b"\xff\xfe.png"), "قولون.png"]
    for name in files:
        Image.new("RGB", (40, 30), "red").save(folder / name)
    (folder / "no\nimage \udcff.png").touch()
    (tmp_path / "dataset.json").write_text(json.dumps(dict(classes=NAMES)))
    command = ["explain", folder, "--model", "hifuse_tiny", "--checkpoint", checkpoint, "--data-dir", tmp_path]
    command += ["--device", "cpu", "--class", "0", "--out", tmp_path / "out.svg"]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        assert main(list(map(str, command))) == 0
    found = written_in(tmp_path / "out.svg")
    assert {printable(name) for name in files} <= set(found)
    assert any(text.startswith(("$x_1$ ", "map of $x_1$ ")) for text in found)
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    assert [r"no\nimage \udcff.png" in line for line in skipped] == [True]


def test_evaluate_writes_names_that_are_not_utf_8(checkpoint, tmp_path, capsys):
    names = sorted(name for name in NAMES if len(name) < 99)
    names.append(os.fsdecode(b"z\xe4h"))
    for name in names:
        folder = tmp_path / "data" / "test" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.full((9, 9), 7 * len(name), np.uint8)).save(folder / os.fsdecode(b"\xff.png"))
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(dict(classes=names)))
    command = ["evaluate", "--model", "hifuse_tiny", "--checkpoint", checkpoint, "--data-dir", tmp_path / "data"]
    command += ["--workers", "0", "--resamples", "5", "--device", "cpu", "--json", tmp_path / "run.json"]
    command += ["--predictions", tmp_path / "predictions.csv", "--plots", tmp_path / "plots"]
    assert main(list(map(str, command))) == 0
    assert r"z\udce4h" in capsys.readouterr().out
    result = json.loads((tmp_path / "run.json").read_bytes().decode())
    assert list(result["per_class"]) == names  # to the byte, as os.fsencode has them
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_bytes().decode().splitlines()))
    assert {row["file"] for row in rows if row["class"] == r"z\udce4h"} == {r"test/z\udce4h/\udcff.png"}


def test_prepare_writes_names_that_others_can_read(tmp_path):
    from miniatures import write_kvasir

    source = write_kvasir(tmp_path / "source", zipped=False)
    path = next((source / "kvasir-dataset" / "polyps").iterdir())
    path.rename(path.with_name(os.fsdecode(b"p\xff.jpg")))
    for folder in prepare("kvasir", source, tmp_path / "out", allow_incomplete=True):
        rows = list(csv.DictReader((folder / "splits.csv").read_bytes().decode().splitlines()))
        assert all((folder / row["file"]).is_file() for row in rows)
        assert [row["file"].split("/")[-1] for row in rows if "udc" in row["file"]] == [r"p\udcff.jpg"]


def test_words_from_outside_are_no_markup_in_the_card():
    rows = [(name, 0.5) for name in (*NAMES, "# a\n\n# heading", "![a](b)", "<script>")]
    lines = format_markdown(["metric", "value"], rows).splitlines()
    assert len(lines) == 2 + len(rows)
    for line in lines:
        assert len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) == 4  # two cells between three bars
        assert not re.search(r"(?<!\\)(?:\\\\)*[<\[`]", line)


def test_names_in_errors_are_cut_in_the_middle():
    assert shorten(["ab", "c" * 10_000, *"defg"], 3) == f"ab, {'c' * 74}…{'c' * 75}, d and 3 more"
