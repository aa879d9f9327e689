"""A HiFuse learns from real images through timm's loader, optimizer and scheduler."""

import pytest
import timm
import torch
from digits import load
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import accuracy
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset


class Digits(Dataset):
    """Samples with a transform, which timm's create_loader sets."""

    def __init__(self, samples):
        self.samples = samples
        self.transform = None

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        image, digit = self.samples[index]
        return self.transform(image), digit


@pytest.mark.long
def test_narrow_network_reads_held_out_digits():
    torch.manual_seed(0)
    model = timm.create_model(
        "hifuse_tiny", num_classes=10, img_size=32, dims=(24, 48, 96, 192), num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1)
    )
    data = timm.data.resolve_model_data_config(model) | dict(input_size=(3, 32, 32), crop_pct=1.0)
    train, held_out = (Digits(samples) for samples in load(32))
    settings = dict(batch_size=64, device=torch.device("cpu"), use_prefetcher=False, num_workers=0)
    settings |= {key: data[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")}
    train_loader = create_loader(train, is_training=True, no_aug=True, **settings)
    test_loader = create_loader(held_out, **settings)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05)
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=8, warmup_epochs=1, warmup_lr=1e-4)

    model.train()
    for epoch in range(epochs):
        for images, digits in train_loader:
            optimizer.zero_grad()
            cross_entropy(model(images), digits).backward()
            optimizer.step()
        scheduler.step(epoch + 1)

    model.eval()
    with torch.inference_mode():
        logits, digits = zip(*((model(images), digits) for images, digits in test_loader), strict=True)
    assert accuracy(torch.cat(logits), torch.cat(digits))[0] >= 95
