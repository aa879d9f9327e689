"""The report: a page with tables, and pictures whose labels can be read."""

import json
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from matplotlib import rc_context  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from benchmarks import complexity, figures  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402

CONDITIONS = dict(device="a processor", cores=2, torch="2.0", date="2026-01-01", command="python -m benchmarks ...")
RATES = {
    "hifuse_tiny": (8.06, 6.2),
    "hifuse_tiny[fuse]": (8.06, 6.4),
    "hifuse_small": (8.76, 6.1),
    "convnext_base": (15.35, 4.0),
    "convnext_base[conv_mlp]": (15.35, 4.02),
    "swin_base_patch4_window7_224": (15.13, 4.1),
    "test_vit": (0.1, 9.0),
}


@pytest.fixture
def results(tmp_path):
    def samples(rates, calls=()):
        return dict(rates=rates, call_seconds=list(calls))

    rows = [
        complexity.Row("ViT-B/16", "at 384", "vit", 384, 86.9, 0, 49.4, 55.5, 49.4, 33.0, 86.9, 33.0, "missed"),
        complexity.Row("HiFuse-Tiny", "as designed", "hifuse_tiny", 224, 54.7, 0, 8.1, 8.2, 8.1, None, 82.5, 8.1),
        complexity.Row("Conformer-B/16", "", "conformer", 224, note="needs mmpretrain"),
    ]
    common = dict(fused_attention=None, peak_memory=10**9, excess_memory=10**8, error=None)
    throughput = dict(
        settings=dict(
            models=list(RATES),
            baseline="convnext_base",
            batch_sizes=[8, 1],
            device="cuda",  # a page is written wherever its results were measured
            image_size=224,
            precision="float32",
            mode="inference",
            channels_last=False,
            compile=False,
            rounds=3,
        ),
        conditions=[CONDITIONS],
        limits=[dict(group=g, matmul=samples([1e11] * 3), copy=samples([1e10] * 3)) for g in (8, 1)],
        rows=[
            dict(model=m, group=g, batch_size=g, macs=1e9 * macs, samples=samples([r, r * 1.02, r * 0.97]), **common)
            for g in (8, 1)
            for m, (macs, r) in RATES.items()
        ],
    )
    points = [
        dict(
            model=model,
            img_size=size,
            macs=1e5 * size**2,
            samples=samples([1e5 / size**2]),
            peak_memory=10**9,
            excess_memory=1000 * size**2,
            error=None,
        )
        for model in ("hifuse_tiny", "vit_base_patch16_224")
        for size in (112, 224, 448)
    ]
    data = dict(
        counts=dict(kind="complexity", conditions=CONDITIONS, rows=[vars(row) for row in rows]),
        inference=dict(kind="throughput", **throughput),
        growth=dict(kind="scaling", conditions=CONDITIONS, points=points),
    )
    paths = [tmp_path / f"{name}.json" for name in data]
    for path, result in zip(paths, data.values(), strict=True):
        path.write_text(json.dumps(result))
    return paths


def test_report_has_a_table_and_a_picture_for_each_result(results, tmp_path):
    out = tmp_path / "out"
    assert not main(["report", *map(str, results), "--out", str(out)])
    page = (out / "report.md").read_text()
    for name in ("counts", "inference", "growth"):
        assert f"]({name}.svg)" in page
        svg = ElementTree.parse(out / f"{name}.svg").getroot()
        assert min(float(svg.get(side).removesuffix("pt")) for side in ("width", "height")) > 150
        background = svg.find(".//{*}g[@id='patch_1']/{*}path")
        assert "fill: #ffffff" in background.get("style")
    for text in ("needs mmpretrain", "Batch size 8", "1.000 ± 0.000", "python -m benchmarks ..."):
        assert text in page
    svg = (out / "inference.svg").read_text()
    assert "ConvNeXt-B[conv_mlp]" in svg and "Swin-B" in svg and "test_vit" in svg
    assert not main(["report", *map(str, results), "--out", str(out)])
    assert (out / "inference.svg").read_text() == svg
    assert sorted(path.suffix for path in out.iterdir()) == [".md", ".svg", ".svg", ".svg"]


@pytest.mark.parametrize("level", [0.2, 5, 9.8])
def test_labels_overlap_neither_each_other_nor_the_axes(level):
    with rc_context(figures.STYLE):
        figure = Figure(figsize=(6, 5), layout="constrained")
        ax = figure.subplots()
        ax.set(xlim=(0, 20), ylim=(0, 10))
        points = {model: (x, level + y / 100) for model, (x, y) in RATES.items()}
        figures.place_labels(ax, points)
        figure.draw_without_rendering()
        assert sorted(text.get_text() for text in ax.texts) == sorted(points)
        boxes = sorted((Text.get_window_extent(text) for text in ax.texts), key=lambda box: box.y0)
        assert all(below.y1 < above.y0 for below, above in zip(boxes, boxes[1:], strict=False))
        assert all(box.x0 >= ax.get_window_extent().x1 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_report_of_an_interrupted_measurement(results, tmp_path):
    _, inference, growth = (json.loads(path.read_text()) for path in results)
    for row in inference["rows"][3:]:
        row["samples"], row["peak_memory"] = dict(rates=[], call_seconds=[]), None
    for i, point in enumerate(growth["points"]):
        point["excess_memory"] = None
        if i > 3:
            point["samples"]["rates"], point["macs"] = [], None
    for path, data in zip(results[1:], (inference, growth), strict=True):
        path.write_text(json.dumps(data))
    out = tmp_path / "out"
    assert not main(["report", *map(str, results[1:]), "--out", str(out)])
    assert "failed" not in (out / "report.md").read_text()
    for row in inference["rows"]:
        row["samples"]["rates"] = []
    results[1].write_text(json.dumps(inference))
    assert "holds no measurement" in main(["report", str(results[1]), "--out", str(out)])


def test_report_names_what_it_cannot_read(results, tmp_path):
    (tmp_path / "other.json").write_text("[]")
    out = ["--out", str(tmp_path / "out")]
    assert "other.json is no result of" in main(["report", str(tmp_path / "other.json"), *out])
    assert "missing.json cannot be read" in main(["report", str(tmp_path / "missing.json"), *out])
    assert "one name" in main(["report", str(results[0]), str(results[0]), *out])
