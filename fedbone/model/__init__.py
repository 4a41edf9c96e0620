"""HRNet, its losses, decoding, metrics and the one training loop."""
