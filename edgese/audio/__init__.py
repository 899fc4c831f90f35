"""Reading and writing of audio files, any rate, channels and format; array types of a waveform and of a block."""

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float32]  # (n_samples,) in [-1, 1], one channel
Samples = NDArray[np.float32]  # (n_frames, n_channels) in [-1, 1], a block of a recording
