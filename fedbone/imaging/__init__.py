"""Films: DICOM in, tensors out, and the simulator that draws the sample hospitals."""
