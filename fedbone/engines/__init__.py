"""Places where a hospital's part of the training runs."""
