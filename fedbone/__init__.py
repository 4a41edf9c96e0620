"""fedbone: the shared logic of the federated bone-keypoint workbook. Importing it needs nothing but Python."""

__version__ = "0.1.0"
