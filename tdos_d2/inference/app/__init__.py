"""A page to try models on: what it does in ``trial.py``, what it looks like in ``page.py``."""
