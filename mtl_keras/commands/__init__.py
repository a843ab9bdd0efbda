"""What `train.py` and `evaluate.py` do, here, so that a wheel can do it, too."""
