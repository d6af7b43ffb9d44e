"""What goes into an inpainter (`Problem`) and what comes out (`Fill`), batches both."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from flowlib.inpainting import scores
from flowlib.rng import rng

Kind = TypeVar("Kind", bound="Batch")


@dataclass
class Batch:
    """A dataclass whose tensors and lists have one entry an image."""

    def __getitem__(self: Kind, rows: list[int]) -> Kind:
        """The same of some of the images."""

        def part(value: Any) -> Any:
            if isinstance(value, list):
                return [value[i] for i in rows]
            return value[rows] if isinstance(value, Tensor | Batch) else value

        return type(self)(**{name: part(value) for name, value in vars(self).items()})

    def __len__(self) -> int:
        first, *_ = vars(self).values()
        return len(first)

    @classmethod
    def cat(cls: type[Kind], parts: Sequence[Kind]) -> Kind:
        """One batch of several."""

        def joined(values: tuple) -> Any:
            first = values[0]
            if isinstance(first, Batch):
                return first.cat(values)
            if isinstance(first, Tensor):
                return torch.cat(values)
            return sum(values, []) if isinstance(first, list) else first

        # One tuple a field, of what the parts have there.
        columns = zip(*[vars(part).values() for part in parts])
        return cls(*map(joined, columns))


@dataclass
class Truth(Batch):
    """What lies under the mask, where it is known."""

    grey: Tensor  # (B, 1, H, W) in [0, 1]
    v: Tensor  # (B, 1, H, W) in (0, 1): dequantized, as the flow sees it
    log_prob: Tensor  # (B,) log p(v), nats


@dataclass
class Problem(Batch):
    """Images whose missing pixels are set to 0, so that nobody can see the truth.

    Example:
        >>> images = torch.full((2, 1, 8, 8), 9, dtype=torch.uint8)
        >>> mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
        >>> mask[..., :4] = True
        >>> Problem.cut(images, mask, seeds=[0, 1]).masked.unique().tolist()
        [0, 9]
    """

    masked: Tensor  # uint8 (B, 1, H, W)
    mask: Tensor  # bool (B, 1, H, W), True where missing
    seeds: list[int]  # of each image's random numbers
    truth: Truth | None = None
    observed: Tensor | None = None  # (B, 1, H, W), v of the observed pixels, if known

    @classmethod
    def cut(
        cls,
        images: Tensor,
        mask: Tensor,
        seeds: Sequence[int],
        truth: Truth | None = None,
        v: Tensor | None = None,
    ) -> "Problem":
        """Removes the missing pixels of grey levels (B, 1, H, W), and of their v."""
        observed = None if v is None else torch.where(mask, 0.5, v)
        masked = torch.where(mask, 0, images)
        return cls(masked, mask, list(seeds), truth, observed)


@dataclass
class Fill(Batch):
    """A problem's fills: C plausible ones of each image, and the MAP estimate.

    Images are uint8 grey levels; `mean` and `interval` are in grey values, [0, 1].
    Log-densities are log p(v) of whole images, in nats.
    """

    problem: Problem
    levels: int  # of grey
    plausible: Tensor  # uint8 (B, C, 1, H, W)
    plausible_v: Tensor  # (B, C, 1, H, W) in (0, 1), before quantization
    log_prob: Tensor  # (B, C)
    map: Tensor | None = None  # uint8 (B, 1, H, W)
    map_log_prob: Tensor | None = None  # (B,)
    # (B,) likeliest fill's log p minus the reference images' mean, in their σ
    typical: Tensor | None = None
    # int64 (B, C): which class each plausible fill is, for the classifier
    digits: Tensor | None = None

    def grey(self, images: Tensor) -> Tensor:
        """Grey levels as grey values in [0, 1]."""
        return images / (self.levels - 1)

    def mean(self) -> Tensor:
        """(B, 1, H, W): of all fills the one with the least expected squared error."""
        # A mean of equal numbers can be off by a rounding: observed pixels are exact.
        mean = self.grey(self.plausible).mean(1)
        return torch.where(self.problem.mask, mean, self.grey(self.problem.masked))

    def medoid(self) -> Tensor:
        """Which fill of each image is nearest to the others, by squared distance: (B,).

        That is the fill nearest to their mean. Where a single fill is wanted, it is the
        one to take: it is closer to the truth than the likeliest one, and not blurred.
        """
        fills = self.grey(self.plausible)
        away = fills - fills.mean(1, keepdim=True)
        return away.square().flatten(2).sum(2).argmin(1)

    def interval(self, share: float) -> Tensor:
        """Edges of the central interval of the fills, low and high: (2, B, 1, H, W)."""
        edges = torch.tensor([(1 - share) / 2, (1 + share) / 2])
        return self.grey(self.plausible).quantile(edges, dim=1)

    def describe_digits(self, i: int) -> str:
        """The two most frequent digits among image i's fills: "4: 8 of 12, 9: 3"."""
        if self.digits is None:
            return ""
        digits = sorted(self.digits[i].tolist())  # of equal counts, the smaller first
        counts = Counter(digits).most_common(2)
        first, *others = [f"{digit}: {count}" for digit, count in counts]
        return ", ".join([f"{first} of {len(digits)}", *others])

    def numbers(self, i: int) -> dict:
        """Image i's log-densities and digits, as plain numbers."""
        names = ("map_log_prob", "log_prob", "digits")
        values = {name: getattr(self, name) for name in names}
        return {name: v[i].tolist() for name, v in values.items() if v is not None}

    def compare(self, truth: Truth) -> dict:
        """The fills' metrics, over the missing pixels alone."""
        fills = self.grey(self.plausible)
        mask = self.problem.mask
        chosen = (torch.arange(len(self)), self.medoid())
        metrics = {
            "images": len(self),
            "truth_log_prob": truth.log_prob.mean().item(),
            "map": self._metrics(self.grey(self.map), truth, self.map_log_prob),
            "mean": self._metrics(self.mean(), truth),
            "medoid": self._metrics(fills[chosen], truth, self.log_prob[chosen]),
            "fill": self._metrics(fills[:, 0], truth, self.log_prob[:, 0]),
            "crps": scores.crps(fills, truth.grey, mask).mean().item(),
        }

        rank = scores.ranks(self.plausible_v, truth.v, rng(0, "ties"))[mask]
        for share in scores.COVERAGES:
            covered = scores.inside(rank, share).float().mean().item()
            metrics[f"coverage_{100 * share:.0f}"] = covered
        return metrics

    def _metrics(
        self,
        filled: Tensor,
        truth: Truth,
        log_prob: Tensor | None = None,
    ) -> dict:
        mask = self.problem.mask
        mse = scores.hole_mse(filled, truth.grey, mask).mean().item()
        metrics = {
            "hole_psnr": scores.psnr(mse),
            "ink_ratio": scores.ink_ratio(filled, truth.grey, mask),
        }
        if log_prob is not None:
            higher = log_prob > truth.log_prob
            metrics["log_prob"] = log_prob.mean().item()
            metrics["likelier_than_truth"] = higher.float().mean().item()
        return metrics
