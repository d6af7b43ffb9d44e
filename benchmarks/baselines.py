"""What inpainting_table.py compares with: nearest neighbours, a Gaussian mixture, classical image processing, and a trained U-Net.

Every method takes masked images in [0, 1], (B, 1, H, W) with the missing pixels 0, and the mask, True where missing.
"""

import math
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from skimage.restoration import inpaint_biharmonic
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from inpainting import make_masks, nearest_neighbours
from training import batches, generator_for

# ---------------------------------------------------------------- without a model


def nearest_mean(masked: Tensor, mask: Tensor, bank: Tensor, k: int) -> Tensor:
    """The mean of the k training images that are nearest in the known pixels."""
    return torch.where(mask, bank[nearest_neighbours(masked, mask, bank, k)].mean(1), masked)


def biharmonic(masked: Tensor, mask: Tensor) -> Tensor:
    """Damelin and Hoang (2018), doi:10.1155/2018/3950312, as in scikit-image."""
    filled = [inpaint_biharmonic(image[0].numpy(), hole[0].numpy()) for image, hole in zip(masked.double(), mask)]
    return torch.from_numpy(np.stack(filled)).float()[:, None].clamp(0, 1)


def opencv(masked: Tensor, mask: Tensor, flag: int) -> Tensor:
    """OpenCV's inpainting, cv2.INPAINT_TELEA (Telea, 2004) or cv2.INPAINT_NS (Bertalmio et al., 2001), radius 3."""
    images, holes = (masked * 255).round().to(torch.uint8).numpy(), mask.to(torch.uint8).numpy()
    return (
        torch.from_numpy(np.stack([cv2.inpaint(image[0], hole[0], 3, flag) for image, hole in zip(images, holes)])).float()[:, None] / 255
    )


# ---------------------------------------------------------------- a Gaussian mixture


class Mixture:
    """A mixture of Gaussians on the first principal components, with equal noise in all other directions; conditionals in closed form.

    x = W z + μ + ε,   z ~ Σ_k w_k N(m_k, C_k),   ε ~ N(0, σ² I)
    """

    def __init__(self, basis: Tensor, mean: Tensor, noise: float, log_weights: Tensor, means: Tensor, covariances: Tensor):
        self.basis, self.mean, self.noise = basis, mean, noise  # (D, d), (D,), σ²
        self.log_weights, self.means, self.covariances = log_weights, means, covariances  # (K,), (K, d), (K, d, d)

    @classmethod
    def fit(cls, images: Tensor, components: int = 30, dimensions: int = 64, seed: int = 0) -> "Mixture":
        """By expectation maximisation on the principal components of images in [0, 1]."""
        flat = images.flatten(1).double().numpy()
        pca = PCA(dimensions, random_state=seed).fit(flat)
        mixture = GaussianMixture(components, reg_covar=1e-4, random_state=seed, max_iter=60).fit(pca.transform(flat))
        arrays = (mixture.weights_, mixture.means_, mixture.covariances_)
        weights, means, covariances = (torch.from_numpy(array) for array in arrays)
        basis, mean = torch.from_numpy(pca.components_.T.copy()), torch.from_numpy(pca.mean_)
        return cls(basis, mean, float(pca.noise_variance_), weights.log(), means, covariances)

    def _given(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p(component | known), and the latent's mean and covariance given the known pixels, for each component."""
        basis = self.basis[~hole]
        residual = image[~hole] - self.mean[~hole] - self.means @ basis.T  # (K, known)
        precision = torch.linalg.inv(self.covariances) + basis.T @ basis / self.noise
        covariance = torch.linalg.inv(precision)
        projected = residual @ basis / self.noise
        shift = torch.einsum("kij,kj->ki", covariance, projected)
        # log N(known; component), by the determinant lemma and Woodbury's identity, up to a constant
        log_p = -0.5 * (residual.square().sum(1) / self.noise - (projected * shift).sum(1))
        log_p = log_p - 0.5 * (torch.linalg.slogdet(precision)[1] + torch.linalg.slogdet(self.covariances)[1])
        return (self.log_weights + log_p).softmax(0), self.means + shift, covariance

    def fill(self, masked: Tensor, mask: Tensor, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The conditional mean, (B, 1, H, W), and samples, (S, B, 1, H, W), cut off at 0 and 1."""
        means, drawn = [], []
        for image, hole in zip(masked.flatten(1).double(), mask.flatten(1)):
            weights, z, covariance = self._given(image, hole)
            means.append(torch.where(hole, self.basis @ (weights @ z) + self.mean, image))
            chosen = torch.multinomial(weights, samples, replacement=True, generator=generator)
            noise = torch.randn(samples, z.shape[1], 1, dtype=z.dtype, generator=generator)
            latent = z[chosen] + (torch.linalg.cholesky(covariance)[chosen] @ noise)[..., 0]
            pixel_noise = math.sqrt(self.noise) * torch.randn(samples, len(image), dtype=z.dtype, generator=generator)
            drawn.append(torch.where(hole, latent @ self.basis.T + self.mean + pixel_noise, image))
        mean, sample = torch.stack(means), torch.stack(drawn, 1)
        return mean.float().clamp(0, 1).reshape(masked.shape), sample.float().clamp(0, 1).reshape(samples, *masked.shape)


# ---------------------------------------------------------------- a network trained for the task


class UNet(nn.Module):
    """Two levels down and up; sees the masked image and the mask, gives the expected grey level of every pixel."""

    def __init__(self, width: int = 24):
        super().__init__()

        def stage(inputs: int, outputs: int) -> nn.Module:
            layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()]
            return nn.Sequential(*layers)

        self.first, self.second, self.third = stage(2, width), stage(width, 2 * width), stage(2 * width, 4 * width)
        self.up_second, self.up_first = stage(6 * width, 2 * width), stage(3 * width, width)
        self.last = nn.Conv2d(width, 1, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, masked: Tensor, mask: Tensor) -> Tensor:
        first = self.first(torch.cat([2 * masked - 1, mask.to(masked)], 1))
        second = self.second(nn.functional.max_pool2d(first, 2))
        third = self.third(nn.functional.max_pool2d(second, 2))
        up = self.up_second(torch.cat([second, nn.functional.interpolate(third, scale_factor=2)], 1))
        up = self.up_first(torch.cat([first, nn.functional.interpolate(up, scale_factor=2)], 1))
        return torch.where(mask, self.last(up).sigmoid(), masked)


def train_unet(model: UNet, images: Tensor, specs: list[str], *, steps: int, batch: int = 64, lr: float = 2e-3) -> Iterator[dict]:
    """Minimises the squared error over the missing pixels of training images in [0, 1], a random kind of mask each step."""
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    for step, chosen in zip(range(1, steps + 1), batches(len(images), batch, 0, 0)):
        generator = generator_for(0, step)
        spec = specs[torch.randint(len(specs), (1,), generator=generator).item()]
        mask, truth = make_masks(spec, batch, *images.shape[2:], generator), images[chosen]
        error = (model(torch.where(mask, 0, truth), mask) - truth).square().sum() / mask.sum()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        schedule.step()
        yield {"step": step, "loss": error.item()}
