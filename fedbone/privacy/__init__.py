"""Differential privacy: the mechanism and its accounting."""
