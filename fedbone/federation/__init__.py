"""Hospitals, strategies, rounds and the comparison with pooled and local-only training."""
