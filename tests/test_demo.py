"""What demo answers is what predict writes, and nothing of a file or its name gets anywhere else.

The page itself, which Gradio serves, is driven in a browser by tests/browser_demo.py.
"""

import base64
import csv
import re
import sys
import tempfile
from pathlib import Path

import miniatures
import numpy as np
import pytest
import timm
import torch
from conftest import NARROW
from dicoms import write_dicom
from timm.models import save_for_hf

from hifuse_timm.__main__ import main
from hifuse_timm.demo import Answerer, decode_files
from hifuse_timm.packaged import packaged_calibration
from hifuse_timm.predictions import Predictions, write_predictions

CLASSES = ["normal", "<b>pneumonia</b>"]


@pytest.fixture
def network(narrow, tmp_path):
    """Name of a narrow network of two classes, as published."""
    folder = tmp_path / "network"
    save_for_hf(narrow(num_classes=2), folder, model_config=dict(label_names=CLASSES), model_args=NARROW)
    return f"local-dir:{folder}"


@pytest.fixture
def images(tmp_path):
    """A picture and a DICOM file."""
    picture, dicom = tmp_path / "stripes.png", tmp_path / "chest.dcm"
    miniatures.paint(0, 2, (90, 60), "RGB", np.random.default_rng(0)).save(picture)
    write_dicom(dicom, np.arange(4096, dtype=np.uint16).reshape(64, 64))
    return [picture, dicom]


@pytest.fixture
def calibration(tmp_path):
    """What calibrate makes of overconfident predictions: thresholds, and a bound that random networks stay under."""
    rng = np.random.default_rng(0)
    targets = torch.from_numpy(rng.integers(0, 2, 200))
    logits = 6 * torch.eye(2, dtype=torch.float64)[targets] + 6 * torch.from_numpy(rng.normal(size=(200, 2)))
    table, path = tmp_path / "val.csv", tmp_path / "calibration.json"
    write_predictions(table, Predictions([f"{i}.png" for i in range(200)], CLASSES, logits.softmax(1), targets))
    options = ["--youden", CLASSES[1], "--undecided-share", "0.2", "--resamples", "20"]
    assert main(["calibrate", "--predictions", str(table), "--out", str(path), *options]) == 0
    return path


@pytest.fixture
def serve(monkeypatch):
    """Runs demo up to where the page would be served, and gives what was to be served, and where."""

    def serve(*options: object) -> tuple[Answerer, str, list[Path], str, str, int]:
        found = []
        monkeypatch.setattr("hifuse_timm.demo.load_gradio", lambda: None)
        monkeypatch.setattr("hifuse_timm.demo.make_page", lambda *page: found.extend(page))
        monkeypatch.setattr("hifuse_timm.demo.launch", lambda page, host, port: found.extend([host, port]))
        assert main(["demo", *map(str, options)]) == 0
        return tuple(found)

    return serve


def predict(network: str, images: list[Path], out: Path, *options: object) -> list[dict]:
    command = ["predict", *images, "--model", network, "--pretrained", "--csv", out, "--workers", 0, *options]
    assert main([*map(str, command)]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_folder(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_answers_are_those_of_predict(serve, network, images, calibration, tmp_path):
    for i, options in enumerate(([], ["--calibration", calibration])):
        answerer = serve("--model", network, "--pretrained", *options)[0]
        for image, row in zip(images, predict(network, images, tmp_path / f"{i}.csv", *options), strict=True):
            answer = answerer.answer(image.name, image.read_bytes())
            assert answer.fault is None and answer.probs[0][0] == row["predicted"]
            for name, prob in answer.probs:
                assert prob == pytest.approx(float(row[f"p_{name}"]), abs=1e-6)
            assert bool(answer.decisions) == bool(options)
            if options:
                positive, undecided = answer.decisions
                assert positive.startswith(f"{CLASSES[1]}: ")
                assert ("positive, " in positive) == (row[f"positive_{CLASSES[1]}"] == "1")
                assert undecided.startswith("undecided: ") and row["decision"] == "undecided"


def test_page_is_for_this_machine_alone(serve, network):
    *_, host, port = serve("--model", network, "--pretrained", "--port", "7999")
    assert (host, port) == ("127.0.0.1", 7999)


def test_every_layer_on_offer_has_a_heat_map(serve, network, images):
    answerer = serve("--model", network, "--pretrained")[0]
    assert answerer.layers[0] == "stage4.fused" and len(answerer.layers) == 12
    answer = answerer.answer("stripes.png", images[0].read_bytes(), answerer.layers)
    assert [layer for layer, _, reason in answer.heat_maps if reason is None] == list(answerer.layers)
    pictures = [picture for _, picture, _ in answer.heat_maps]
    assert len({*pictures, answer.picture}) == 13

    (_, picture, reason), *_ = answerer.answer("stripes.png", images[0].read_bytes(), ["stage9"]).heat_maps
    assert picture is None and "'stage9' is not one of" in reason


def test_bad_file_is_one_message_and_the_others_are_answered_for(serve, network, images):
    answerer = serve("--model", network, "--pretrained")[0]
    files = [("<i>bad.png", b"no picture"), ("empty.png", b""), ("stripes.png", images[0].read_bytes())]
    html = answerer.answer_html(files)
    assert html.count('role="alert"') == 2 and html.count("<table>") == 1
    assert "&lt;i&gt;bad.png is no image that is read here" in html
    assert "<i>" not in html and "<b>" not in html and tempfile.gettempdir() not in html
    assert "&lt;b&gt;pneumonia&lt;/b&gt;" in html


def test_network_whose_outputs_are_not_finite_is_a_message(serve, network, images):
    answerer = serve("--model", network, "--pretrained")[0]
    torch.nn.init.constant_(answerer.network.model.head.fc.bias, torch.nan)
    assert "not finite" in answerer.answer("stripes.png", images[0].read_bytes(), answerer.layers[:1]).fault


def test_nothing_is_kept_and_no_name_leads_anywhere(serve, network, images, tmp_path, monkeypatch):
    answerer = serve("--model", network, "--pretrained")[0]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = read_folder(tmp_path)
    for name in ("../../stripes.png", str(tmp_path / "stripes.png"), "stripes\0.png"):
        for content in (images[1].read_bytes(), b"no picture"):
            answerer.answer(name, content, answerer.layers[:1])
    assert read_folder(tmp_path) == before


def test_of_many_classes_the_most_probable_are_shown(narrow, serve, images, tmp_path):
    folder = tmp_path / "many"
    names = [f"class {k}" for k in range(12)]
    save_for_hf(narrow(num_classes=12), folder, model_config=dict(label_names=names), model_args=NARROW)
    answerer = serve("--model", f"local-dir:{folder}", "--pretrained")[0]
    answer = answerer.answer("stripes.png", images[0].read_bytes())
    shown = re.findall(r'<th scope="row">(.*?)</th>', answerer.answer_html([("stripes.png", images[0].read_bytes())]))
    assert shown == [name for name, _ in answer.probs[:10]]


def test_no_probability_is_rounded_to_certainty(serve, network, images):
    answerer = serve("--model", network, "--pretrained")[0]
    for bias, shown in ((9, ["&gt; 99.9%", "&lt; 0.1%"]), (1000, ["100.0%", "0.0%"]), (2, ["98.2%", "1.8%"])):
        torch.nn.init.zeros_(answerer.network.model.head.fc.weight)
        answerer.network.model.head.fc.bias.data = torch.tensor([-bias, bias]).float()
        html = answerer.answer_html([("stripes.png", images[0].read_bytes())])
        assert re.findall(r"<td.*?>(.*?)</td>", html) == shown


def test_frame_of_a_dicom_file_is_named(serve, network, tmp_path):
    path = write_dicom(tmp_path / "frames.dcm", np.arange(3 * 4096, dtype=np.uint16).reshape(3, 64, 64), frames=3)
    answerer = serve("--model", network, "--pretrained")[0]
    assert "frames.dcm, frame 2 of 3" in answerer.answer_html([("frames.dcm", path.read_bytes())])


def test_files_are_taken_as_the_page_sends_them_alone():
    assert decode_files([["a.png", base64.b64encode(b"\0\1").decode()], ["b", ""]]) == [("a.png", b"\0\1"), ("b", b"")]
    for bad in (None, 3, [3], [["a.png"]], [["a.png", "?"]], [[3, ""]], [["a.png", "é"]], {"ab": "AA=="}, [["a", 3]]):
        with pytest.raises(ValueError, match="files are not as the page sends them"):
            decode_files(bad)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--pretrained"], "pretrained given, but no model: give --model NAME"),
        (["--model", "hifuse_tiny"], "no weights given for hifuse_tiny: give --checkpoint FILE or --pretrained"),
    ],
)
def test_half_a_network_is_refused(options, message, capsys):
    assert main(["demo", *options]) == 1
    assert message in capsys.readouterr().err


def test_missing_gradio_names_the_extra(network, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--model", network, "--pretrained"]) == 1
    assert "pip install 'hifuse-timm[demo] @ git+https://" in capsys.readouterr().err


def test_without_a_model_the_packaged_one_answers_for_its_images(serve):
    answerer, title, examples, credit, *_ = serve()
    assert title == "A small HiFuse for chest X-rays" and len(examples) == 8
    assert all(words in credit for words in ("PneumoniaMNIST", "Kermany et al.", "Yang et al.", "CC BY 4.0"))
    answers = [answerer.answer(path.name, path.read_bytes()) for path in examples]
    right = [path.name.startswith(answer.probs[0][0]) for path, answer in zip(examples, answers, strict=True)]
    assert sum(right) >= 7
    assert answerer.calibration.path == packaged_calibration()
    assert not any(answer.decisions for answer in answers)


def test_exported_network_answers_without_heat_maps(serve, network, images, tmp_path):
    file = tmp_path / "network.onnx"
    assert main(["export", "--model", network, "--pretrained", "--format", "onnx", "--out", str(file)]) == 0
    answerer = serve("--model", "hifuse_tiny", "--checkpoint", file)[0]
    ours = serve("--model", network, "--pretrained")[0].answer("stripes.png", images[0].read_bytes())
    assert not answerer.layers
    for (name, prob), (our_name, our_prob) in zip(
        answerer.answer("stripes.png", images[0].read_bytes()).probs, ours.probs, strict=True
    ):
        assert name == our_name and prob == pytest.approx(our_prob, abs=1e-4)


def test_other_models_of_timm_offer_their_stages(serve, images):
    answerer = serve("--model", "test_vit", "--checkpoint", save_checkpoint("test_vit", images[0].parent))[0]
    answer = answerer.answer("stripes.png", images[0].read_bytes(), answerer.layers)
    assert len(answer.heat_maps) > 1 and {reason for *_, reason in answer.heat_maps} == {None}
    assert answer.probs[0][0].startswith("class ")


def save_checkpoint(name: str, folder: Path) -> Path:
    path = folder / f"{name}.pth.tar"
    torch.save(dict(state_dict=timm.create_model(name, num_classes=3).state_dict()), path)
    return path
