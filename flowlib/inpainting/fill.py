"""What goes into an inpainter (`Problem`) and what comes out (`Fill`), a batch of images each."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from flowlib.images.user_images import Picture
from flowlib.inpainting import scores
from flowlib.rng import rng


@dataclass
class Batch:
    """A dataclass whose tensors and lists all have one entry an image."""

    def __getitem__(self, rows: Sequence[int] | slice) -> "Batch":
        """The same of some of the images."""
        rows = list(range(len(self)))[rows] if isinstance(rows, slice) else list(rows)

        def part(value):
            if value is None:
                return None
            return (
                value[rows]
                if isinstance(value, Tensor | Batch)
                else [value[i] for i in rows]
            )

        return type(self)(
            **{field.name: part(getattr(self, field.name)) for field in fields(self)}
        )

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    @classmethod
    def cat(cls, parts: Sequence["Batch"]) -> "Batch":
        """One batch of several."""

        def joined(values: list):
            first = values[0]
            if isinstance(first, Batch):
                return type(first).cat(values)
            if isinstance(first, Tensor):
                return torch.cat(values)
            return None if first is None else sum(values, [])

        names = [field.name for field in fields(cls)]
        return cls(
            **{name: joined([getattr(part, name) for part in parts]) for name in names}
        )


@dataclass
class Truth(Batch):
    """What lies under the holes, where it is known."""

    grey: Tensor  # (B, 1, H, W) in [0, 1]
    v: Tensor  # (B, 1, H, W) in (0, 1): dequantized, as the flow sees it
    log_prob: Tensor  # (B,) log p(v), nats


@dataclass
class Problem(Batch):
    """Images with holes. What is missing has been set to 0, so nobody can see the truth there."""

    masked: Tensor  # uint8 (B, 1, H, W)
    mask: Tensor  # bool (B, 1, H, W), True where missing
    names: list[str]  # of the images
    seeds: list[int]  # of each image's random numbers
    truth: Truth | None = None
    # (B, 1, H, W) v of the observed pixels, if known exactly
    observed: Tensor | None = None
    pictures: list[Picture] | None = None  # the user's, which the images were made from

    @classmethod
    def cut(
        cls, grey, mask, seeds, truth=None, v=None, names=None, pictures=None
    ) -> "Problem":
        """Cuts holes into grey levels (B, 1, H, W), and into their v where it is known exactly."""
        names = names or [f"image {seed}" for seed in seeds]
        observed = None if v is None else torch.where(mask, 0.5, v)
        return cls(
            torch.where(mask, 0, grey),
            mask,
            names,
            list(seeds),
            truth,
            observed,
            pictures,
        )


@dataclass
class Fill(Batch):
    """B filled holes: the MAP estimate, S samples, and what is known of them.

    Images are uint8 grey levels; `mean` and `interval` are in grey values, [0, 1].
    Log-densities are log p(v) of whole images, in nats.
    """

    masked: Tensor  # uint8 (B, 1, H, W), what is missing set to 0
    mask: Tensor  # bool (B, 1, H, W), True where missing
    white: Tensor  # (B,) the highest grey level
    map: Tensor  # uint8 (B, 1, H, W)
    map_log_prob: Tensor  # (B,)
    map_atypical: Tensor  # bool (B,), likelier than nearly all reference images
    # (B,) likeliest sample's log p minus the reference images' mean, in their σ
    typical: Tensor
    samples: Tensor  # uint8 (B, S, 1, H, W)
    samples_v: Tensor  # (B, S, 1, H, W) in (0, 1), before quantization
    log_prob: Tensor  # (B, S)
    acceptance: Tensor  # (B,) of the chains' moves
    travelled: Tensor  # (B,) how far the chains have come, see `scores.travelled`
    # int64 (B, S): which class each sample is, for the classifier
    digits: Tensor | None = None

    def grey(self, images: Tensor) -> Tensor:
        """Grey levels (B, ...) as grey values in [0, 1]."""
        return images / self.white.reshape(-1, *[1] * (images.ndim - 1))

    def mean(self) -> Tensor:
        """(B, 1, H, W): of all fills the one with the least expected squared error."""
        grey = self.grey(self.samples)
        # A mean of equal numbers can be off by a rounding; the observed pixels are
        # exact.
        return torch.where(self.mask, grey.mean(1), self.grey(self.masked))

    def interval(self, share: float) -> tuple[Tensor, Tensor]:
        """The samples' central interval of this share, pixel by pixel: low, high (B, 1, H, W)."""
        edges = torch.tensor([(1 - share) / 2, (1 + share) / 2])
        low, high = self.grey(self.samples).quantile(edges, dim=1)
        return low, high

    def describe_digits(self, i: int, halves: bool = False) -> str:
        """What image i's samples are, the most frequent first: "4: 8 of 12, 9: 3".

        `halves` adds the counts in either half of the samples: "4: 8 of 12 (5 + 3)".
        Where the halves differ, the count itself is uncertain.
        """
        if self.digits is None:
            return ""
        middle, parts = self.digits.shape[1] // 2, []
        classes, counts = self.digits[i].unique(return_counts=True)
        for k in counts.argsort(descending=True, stable=True).tolist():
            first = int((self.digits[i, :middle] == classes[k]).sum())
            both = f" ({first} + {counts[k] - first})" if halves else ""
            of = "" if parts else f" of {self.digits.shape[1]}"
            parts.append(f"{classes[k]}: {counts[k]}{of}{both}")
        return ", ".join(parts if halves else parts[:2])

    def numbers(self, i: int) -> dict:
        """Image i's log-densities, digits and diagnostics, as plain numbers."""
        names = (
            "map_log_prob",
            "map_atypical",
            "log_prob",
            "acceptance",
            "travelled",
            "digits",
        )
        values = {name: getattr(self, name) for name in names}
        return {
            name: value[i].tolist()
            for name, value in values.items()
            if value is not None
        }

    def compare(self, truth: Truth) -> dict:
        """The fills' metrics, over the missing pixels alone."""
        grey = self.grey(self.samples)
        rank = scores.ranks(self.samples_v, truth.v, rng(0, "ties"))[self.mask]
        atypical = {"atypical": self.map_atypical.float().mean().item()}
        covered = {
            c: scores.inside(rank, c).float().mean().item() for c in scores.COVERAGES
        }
        return {
            "images": len(self),
            "truth_log_prob": truth.log_prob.mean().item(),
            "map": self._metrics(self.grey(self.map), truth, self.map_log_prob)
            | atypical,
            "mean": self._metrics(self.mean(), truth),
            "sample": self._metrics(grey[:, 0], truth, self.log_prob[:, 0]),
            "crps": scores.crps(grey, truth.grey, self.mask).mean().item(),
            **{f"coverage_{100 * c:.0f}": share for c, share in covered.items()},
            "acceptance": self.acceptance.mean().item(),
            "travelled": self.travelled.median().item(),
        }

    def _metrics(
        self, filled: Tensor, truth: Truth, log_prob: Tensor | None = None
    ) -> dict:
        mse = scores.hole_mse(filled, truth.grey, self.mask).mean().item()
        ink = scores.ink_ratio(filled, truth.grey, self.mask)
        metrics = {"hole_psnr": scores.psnr(mse), "hole_mse": mse, "ink_ratio": ink}
        if log_prob is not None:
            likelier = (log_prob > truth.log_prob).float().mean().item()
            metrics |= {
                "log_prob": log_prob.mean().item(),
                "likelier_than_truth": likelier,
            }
        return metrics
