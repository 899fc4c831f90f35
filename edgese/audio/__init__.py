"""Audio files in and out, at any rate, channel count and format; and the two shapes in which sound is handed around."""

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float32]  # (n_samples,) in [-1, 1], one channel
Samples = NDArray[np.float32]  # (n_frames, n_channels) in [-1, 1], a block of a recording
