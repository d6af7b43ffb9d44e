"""What inpainting_table.py compares with: similar images, biharmonic, mixture, U-Net.

Every method takes masked images in [0, 1], (B, 1, H, W) with the missing pixels 0, and
the mask, True where missing. What a method returns for observed pixels does not count.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from tqdm import tqdm

from flowlib.images.glow import precision_for
from flowlib.inpainting.masks import make_masks
from flowlib.inpainting.refine import nearest_images
from flowlib.rng import rng

# ---------------------------------------------------------------- without a model


def nearest_mean(masked: Tensor, mask: Tensor, references: Tensor, k: int) -> Tensor:
    """The mean of the k training images that are nearest in the observed pixels."""
    return nearest_images(masked, mask, references, k).mean(1)


def biharmonic(masked: Tensor, mask: Tensor) -> Tensor:
    """Damelin and Hoang (2018), doi:10.1155/2018/3950312, as in scikit-image."""
    from skimage.restoration import inpaint_biharmonic

    filled = []
    for image, hole in zip(masked.double().numpy(), mask.numpy()):
        filled.append(inpaint_biharmonic(image[0], hole[0]))
    return torch.from_numpy(np.stack(filled)).float()[:, None].clamp(0, 1)


# ---------------------------------------------------------------- a Gaussian mixture


class Mixture:
    """A Gaussian mixture on principal components, plus noise in all directions.

    The noise is equal in each direction. Conditionals have a closed form.

    x = W z + μ + ε,   z ~ Σ_k w_k N(m_k, C_k),   ε ~ N(0, σ² I)
    """

    def __init__(
        self,
        basis: Tensor,
        mean: Tensor,
        noise: float,
        log_weights: Tensor,
        means: Tensor,
        covariances: Tensor,
    ):
        self.basis = basis  # (D, d)
        self.mean = mean  # (D,)
        self.noise = noise  # σ²
        self.log_weights = log_weights  # (K,)
        self.means = means  # (K, d)
        self.covariances = covariances  # (K, d, d)

    @classmethod
    def fit(
        cls, images: Tensor, components: int = 30, dimensions: int = 64, seed: int = 0
    ) -> "Mixture":
        """Expectation maximisation on the principal components of images in [0, 1]."""
        from sklearn.decomposition import PCA
        from sklearn.mixture import GaussianMixture

        flat = images.flatten(1).double().numpy()
        pca = PCA(dimensions, random_state=seed).fit(flat)
        mixture = GaussianMixture(
            components, reg_covar=1e-4, random_state=seed, max_iter=60
        )
        mixture.fit(pca.transform(flat))
        return cls(
            basis=torch.from_numpy(pca.components_.T.copy()),
            mean=torch.from_numpy(pca.mean_),
            noise=float(pca.noise_variance_),
            log_weights=torch.from_numpy(mixture.weights_).log(),
            means=torch.from_numpy(mixture.means_),
            covariances=torch.from_numpy(mixture.covariances_),
        )

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log of w_k N(x; component k), nats: images (N, 1, H, W) -> (N, K).

        The basis is orthonormal, so a component is a Gaussian with covariance C_k + σ²
        I along the basis, and N(0, σ²) in each of the other directions.
        """
        flat = x.flatten(1) - self.mean
        z = flat @ self.basis  # (N, d)

        # Along the basis.
        noise = self.noise
        spread = self.covariances + noise * torch.eye(z.shape[1], dtype=z.dtype)
        inside = MultivariateNormal(self.means, spread).log_prob(z[:, None])  # (N, K)

        # In the other directions: by the squared length of what is left.
        rest = flat.square().sum(1) - z.square().sum(1)
        left = flat.shape[1] - z.shape[1]
        outside = -0.5 * (rest / noise + left * math.log(2 * math.pi * noise))
        return self.log_weights + inside + outside[:, None]

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density, nats: (N, 1, H, W) -> (N,)."""
        return self.component_log_prob(x).logsumexp(1)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n images, (n, D), not cut off at 0 and 1, and the component of each, (n,)."""
        chosen = torch.multinomial(self.log_weights.exp(), n, True, generator=generator)
        return self._images(self.means, self.covariances, chosen, generator), chosen

    def given(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p(component | observed), (K,), and each component's latent distribution.

        That is its mean, (K, d), and covariance, (K, d, d), given the observed pixels.
        """
        basis = self.basis[~hole]
        # (K, observed)
        residual = image[~hole] - self.mean[~hole] - self.means @ basis.T

        precision = torch.linalg.inv(self.covariances) + basis.T @ basis / self.noise
        covariance = torch.linalg.inv(precision)
        projected = residual @ basis / self.noise
        shift = torch.einsum("kij,kj->ki", covariance, projected)

        # log N(observed; component) up to a constant: the squared length by Woodbury's
        # identity, the determinant by the determinant lemma.
        length = residual.square().sum(1) / self.noise - (projected * shift).sum(1)
        log_det = torch.linalg.slogdet(precision)[1]
        log_det = log_det + torch.linalg.slogdet(self.covariances)[1]
        log_p = -0.5 * length - 0.5 * log_det
        return (self.log_weights + log_p).softmax(0), self.means + shift, covariance

    def draw(
        self, image: Tensor, hole: Tensor, n: int, generator: torch.Generator
    ) -> Tensor:
        """n exact draws given the observed pixels: (D,), (D,) bool -> (n, D)."""
        weights, z, covariance = self.given(image, hole)
        chosen = torch.multinomial(weights, n, replacement=True, generator=generator)
        return torch.where(hole, self._images(z, covariance, chosen, generator), image)

    def _images(
        self,
        means: Tensor,
        covariances: Tensor,
        chosen: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """An image of each chosen component k, z ~ N(m_k, C_k): (n,) -> (n, D)."""
        noise = {"dtype": means.dtype, "generator": generator}
        n = len(chosen)
        spread = torch.linalg.cholesky(covariances)[chosen]  # (n, d, d)
        standard = torch.randn(n, means.shape[1], 1, **noise)
        z = means[chosen] + (spread @ standard)[..., 0]  # (n, d)
        pixels = torch.randn(n, len(self.mean), **noise)
        return z @ self.basis.T + self.mean + math.sqrt(self.noise) * pixels

    def fill(
        self, masked: Tensor, mask: Tensor, samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Conditional mean (B, 1, H, W) and samples (S, B, 1, H, W), in [0, 1]."""
        means = []
        drawn = []
        for image, hole in zip(masked.flatten(1).double(), mask.flatten(1)):
            weights, z, _ = self.given(image, hole)
            mean = self.basis @ (weights @ z) + self.mean
            means.append(torch.where(hole, mean, image))
            drawn.append(self.draw(image, hole, samples, generator))

        mean = torch.stack(means).float().clamp(0, 1)  # (B, D)
        sample = torch.stack(drawn, 1).float().clamp(0, 1)  # (S, B, D)
        return mean.reshape(masked.shape), sample.reshape(samples, *masked.shape)


# ---------------------------------------------------------------- trained for the task


class UNet(nn.Module):
    """A supervised reference: a small U-Net, trained on 192,000 of the table's holes.

    It minimizes the squared error over the hole, so it gives a mean, as blurred as the
    posterior's.
    """

    def __init__(self, width: int = 24):
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for channels in (inputs, outputs):
                layers += [
                    nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
            return nn.Sequential(*layers)

        wide = 2 * width
        wider = 4 * width
        down = [block(2, width), block(width, wide), block(wide, wider)]
        up = [block(wider + wide, wide), block(wide + width, width)]
        self.down = nn.ModuleList(down)
        self.up = nn.ModuleList(up)
        self.last = nn.Conv2d(width, 1, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, masked: Tensor, mask: Tensor) -> Tensor:
        """Images in [0, 1], (B, 1, H, W), and masks -> images, not cut off at 0 and 1.

        Height and width must be multiples of 4.
        """
        h = torch.cat([masked, mask.to(masked.dtype)], 1)
        levels = []
        for i, block in enumerate(self.down):
            h = block(h if i == 0 else nn.functional.max_pool2d(h, 2))
            levels.append(h)

        for block, skip in zip(self.up, levels[-2::-1]):
            larger = nn.functional.interpolate(h, scale_factor=2)
            h = block(torch.cat([larger, skip], 1))
        return self.last(h)

    @torch.no_grad()
    def fill(self, masked: Tensor, mask: Tensor) -> Tensor:
        """Likewise, cut off."""
        return self(masked, mask).clamp(0, 1)


def train_unet(
    images: Tensor,
    masks: Sequence[str],
    steps: int = 3000,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
) -> UNet:
    """Adam, one-cycle schedule, holes of all the kinds at once; images in [0, 1]."""
    torch.manual_seed(seed)
    model = UNet()
    generator = rng(seed, "U-Net")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.1
    )
    # Emulated bfloat16 is slow.
    native = precision_for("auto", torch.device("cpu")) == torch.bfloat16
    shares = [chunk.numel() for chunk in torch.arange(batch).tensor_split(len(masks))]

    for _ in tqdm(range(steps), desc="U-Net", mininterval=10):
        truth = images[torch.randint(len(images), (batch,), generator=generator)]
        parts = []
        for spec, n in zip(masks, shares):
            parts.append(make_masks(spec, n, *images.shape[2:], generator))
        mask = torch.cat(parts)
        masked = torch.where(mask, 0, truth)

        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            filled = model(masked.contiguous(memory_format=torch.channels_last), mask)
        loss = ((filled.float() - truth)[mask]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()
