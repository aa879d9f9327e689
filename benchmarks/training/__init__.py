"""Training with timm's train.py: how it is asked to, what it leaves, and the evaluation of that."""
