"""fedbone: the shared logic of the federated bone-keypoint workbook. Importing it needs nothing but Python."""

import os

# GNU OpenMP reads it when torch is loaded: threads that wait for each other soon sleep. Spinning as long as they do by
# default, a training step beside other work took twice as long and twice the CPU seconds; alone it is as fast.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__ = "0.1.0"
