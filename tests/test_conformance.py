"""timm's own test suite passes on our models; `make conformance` runs it on all six."""

from conformance import run


def test_timm_suite_passes_on_hifuse_tiny():
    assert run("hifuse_tiny and not dense and not pretrained") == 0
