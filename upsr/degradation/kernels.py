"""Blur kernels of Real-ESRGAN (arXiv 2107.10833, sections 3.2 and 3.4): (size, size) float64 arrays that sum to 1."""

import numpy as np
import torch

Pair = tuple[float, float]

IDENTITY = np.ones((1, 1))


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, rotation: float) -> np.ndarray:
    """exp(-d²/2), d the Mahalanobis distance; isotropic where both sigmas are equal. `rotation` in radians."""
    return generalized_kernel(size, sigma_x, sigma_y, rotation, beta=1)


def generalized_kernel(size: int, sigma_x: float, sigma_y: float, rotation: float, beta: float) -> np.ndarray:
    """Generalised Gaussian exp(-(d²)^β / 2): β > 1 is flatter at its centre, β < 1 more pointed."""
    return _normalised(np.exp(-0.5 * _distance(size, sigma_x, sigma_y, rotation) ** beta))


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, rotation: float, beta: float) -> np.ndarray:
    """1 / (1 + (d²)^β)."""
    return _normalised(1 / (1 + _distance(size, sigma_x, sigma_y, rotation) ** beta))


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """The circular ideal low-pass ω J1(ω r) / (2π r), ω²/4π at r = 0; ω = `cutoff` in radians per pixel, at most π."""
    x, y = _grid(size)
    r = np.hypot(x, y)
    r[size // 2, size // 2] = 1  # any value but 0: the limit is set below
    j1 = torch.special.bessel_j1(torch.from_numpy(cutoff * r)).numpy()
    kernel = cutoff * j1 / (2 * np.pi * r)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return _normalised(kernel)


def random_kernel(
    rng: np.random.Generator,
    *,
    probability: float,
    kernel_size: tuple[int, int],
    kinds: tuple[float, ...],
    sinc: float,
    sigma: Pair,
    generalized_beta: Pair,
    plateau_beta: Pair,
) -> np.ndarray:
    """Draws a kernel by the keys of `config.Blur`, zero-padded to the largest size; without blur, the identity."""
    if rng.random() >= probability:
        return _padded(IDENTITY, kernel_size[1])
    size = _random_size(rng, kernel_size)
    if rng.random() < sinc:
        lowest = np.pi / 3 if size < 13 else np.pi / 5  # a small kernel cannot hold a low frequency
        kernel = sinc_kernel(size, rng.uniform(lowest, np.pi))
    else:
        kernel = _random_bell(rng, size, kinds, sigma, generalized_beta, plateau_beta)
    return _padded(kernel, kernel_size[1])


def random_final_sinc(rng: np.random.Generator, *, probability: float, kernel_size: tuple[int, int]) -> np.ndarray:
    """Draws the final sinc kernel with this probability, else the identity; zero-padded to the largest size."""
    if rng.random() >= probability:
        return _padded(IDENTITY, kernel_size[1])
    kernel = sinc_kernel(_random_size(rng, kernel_size), rng.uniform(np.pi / 3, np.pi))
    return _padded(kernel, kernel_size[1])


def spread(kernel: np.ndarray) -> float:
    """A kernel's root mean squared distance from its centre, per axis, in pixels; 0 for the identity.

    For a Gaussian that fits its window, this is sigma.
    """
    x, y = _grid(len(kernel))
    weights = np.abs(kernel) / np.abs(kernel).sum()
    return float(np.sqrt((weights * (x**2 + y**2)).sum() / 2))


def _random_bell(
    rng: np.random.Generator,
    size: int,
    kinds: tuple[float, ...],
    sigma: Pair,
    generalized_beta: Pair,
    plateau_beta: Pair,
) -> np.ndarray:
    family, anisotropic = divmod(rng.choice(len(kinds), p=np.divide(kinds, sum(kinds))), 2)
    sigma_x = sigma_y = rng.uniform(*sigma)
    rotation = 0.0
    if anisotropic:
        sigma_y, rotation = rng.uniform(*sigma), rng.uniform(-np.pi, np.pi)
    if family == 0:
        return gaussian_kernel(size, sigma_x, sigma_y, rotation)
    if family == 1:
        return generalized_kernel(size, sigma_x, sigma_y, rotation, _random_beta(rng, generalized_beta))
    return plateau_kernel(size, sigma_x, sigma_y, rotation, _random_beta(rng, plateau_beta))


def _random_beta(rng: np.random.Generator, bounds: Pair) -> float:
    """Half of the draws are below 1 and half above, for any bounds."""
    return rng.uniform(bounds[0], 1) if rng.random() < 0.5 else rng.uniform(1, bounds[1])


def _random_size(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.choice(np.arange(bounds[0], bounds[1] + 1, 2)))


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(axis, axis)
    return x, y


def _distance(size: int, sigma_x: float, sigma_y: float, rotation: float) -> np.ndarray:
    """The squared Mahalanobis distance from the centre, for the covariance R diag(σx², σy²) Rᵀ."""
    x, y = _grid(size)
    cos, sin = np.cos(rotation), np.sin(rotation)
    return ((cos * x + sin * y) / sigma_x) ** 2 + ((cos * y - sin * x) / sigma_y) ** 2


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum()


def _padded(kernel: np.ndarray, size: int) -> np.ndarray:
    return np.pad(kernel, (size - len(kernel)) // 2)
