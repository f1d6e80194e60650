"""Mean absolute difference: how much the channel values changed on average, on the 8-bit scale (0 to 255).

The plainest number there is, and the only one here that every person can check by hand.
"""

import numpy as np
from PIL import Image


def measure_mean_difference(image: Image.Image, base: Image.Image) -> float:
    """Return the mean of |image - base| over all pixels and channels: 0 for the same image, 255 at most."""
    first, second = (np.asarray(picture.convert("RGB"), dtype=np.int16) for picture in (image, base))
    return float(np.abs(first - second).mean())
