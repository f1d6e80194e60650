"""Structural similarity (SSIM): how much of the base image's local structure is still there.

Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity",
IEEE TIP 13(4), 2004, doi:10.1109/TIP.2003.819861, equation 13, with the paper's 11 x 11 Gaussian window and constants,
on RGB, averaged over pixels and channels; borders are mirrored.

Written here, not called from torchmetrics: the same numbers in float64 (in float32 an image is only 0.9999 like itself
where it is flat), from two passes of 11 taps instead of one of 121. And a sweep without local weights needs no torch.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import correlate1d

SIGMA = 1.5
RADIUS = 5
C1, C2 = 0.01**2, 0.03**2
"""The paper's (K1 L)^2 and (K2 L)^2, for values in 0..1."""

Values = npt.NDArray[np.float64]


def measure_ssim(image: Image.Image, base: Image.Image) -> float:
    """Return the SSIM of two images of the same size: 1 for the same image, lower for less alike, at least -1."""
    x, y = (np.asarray(picture.convert("RGB"), dtype=np.float64) / 255 for picture in (image, base))
    mean_x, mean_y = _blur(x), _blur(y)
    variances = _blur(x * x) - mean_x**2 + _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variances + C2)
    return float((luminance * structure).mean())


def _blur(values: Values) -> Values:
    """The local mean: (H, W, 3) float64 under the Gaussian window."""
    window = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * SIGMA**2))
    window /= window.sum()
    for axis in (0, 1):
        values = correlate1d(values, window, axis=axis, mode="mirror")
    return values
