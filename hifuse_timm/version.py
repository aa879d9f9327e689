__version__ = "0.2.0"

REPOSITORY = "https://github.com/hifuse-timm/hifuse-timm"
