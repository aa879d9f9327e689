"""ONNX files give what the network gives, fused and not, at any batch size (extra export)."""

import pytest
import torch

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def check(path, model, batch_sizes):
    session = onnxruntime.InferenceSession(path)
    for batch in batch_sizes:
        x = torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(1))
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fuse", [False, True])
def test_dynamo_export_takes_any_batch(narrow, tmp_path, fuse):
    model = narrow(depths=(1, 2, 1, 1))
    if fuse:
        model.fuse()
    batch = {"x": {0: torch.export.Dim("batch", max=64)}}
    program = torch.onnx.export(model, (torch.randn(2, 3, 64, 96),), dynamo=True, dynamic_shapes=batch, verbose=False)
    program.save(tmp_path / "hifuse.onnx")
    check(tmp_path / "hifuse.onnx", model, (1, 3))


@pytest.mark.parametrize("fuse", [False, True])
def test_export_by_tracing(narrow, tmp_path, fuse):
    """The way of timm's onnx_export.py without --dynamo."""
    model = narrow(depths=(1, 2, 1, 1), exportable=True)
    if fuse:
        model.fuse()
    torch.onnx.export(model, (torch.randn(1, 3, 64, 96),), tmp_path / "hifuse.onnx", dynamo=False, opset_version=17)
    check(tmp_path / "hifuse.onnx", model, (1,))
