"""mode=train: what each stage trains. How a training begins and ends is the same for all (trainer/training.py)."""
