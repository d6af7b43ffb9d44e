"""How good a fill is, and whether samples of it can be trusted.

Everything looks at the missing entries alone; a mask is True where one is *missing*. Grey levels are in [0, 1].
"""

import math

import torch
from torch import Tensor

COVERAGES = (0.5, 0.8, 0.9, 0.95)
CONVERGED = 1.05  # R-hat

# ---------------------------------------------------------------- any fill


def hole_mse(filled: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the missing pixels alone: (B, ...) grey levels in [0, 1] -> (B,); nan where nothing is missing."""
    error = torch.where(mask, (filled - truth).square(), torch.zeros_like(truth))
    return error.flatten(1).sum(1) / mask.flatten(1).sum(1)


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error, dB: 10 log10(1 / mse); 120 at most."""
    return -10 * math.log10(max(mse, 1e-12))


def hole_psnr(filled: Tensor, truth: Tensor, mask: Tensor) -> float:
    """`psnr` over the missing pixels: that of the mean over the images of `hole_mse`."""
    return psnr(hole_mse(filled, truth, mask).nanmean().item())


def ink_ratio(filled: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Sum of the fills over the sum of the truth, over all the missing pixels of all the images: 1 is right, 0 is a black hole."""
    return (filled[mask].sum() / truth[mask].sum()).item()


def crps(samples: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Continuous ranked probability score of the samples, averaged over the missing pixels: (S, B, ...), (B, ...) -> (B,); 0 is perfect.

    E|X - truth| - E|X - X'| / 2, per pixel; of a single sample it is the absolute error. Source: Gneiting and Raftery (2007),
    doi:10.1198/016214506000001437, equation 21.
    """
    count = len(samples)
    error = (samples - truth).abs().mean(0)
    rank = 2 * torch.arange(1, count + 1, dtype=samples.dtype, device=samples.device) - count - 1
    # the mean of |X - X'| over all pairs, from the sorted samples
    spread = 2 * (samples.sort(0).values * rank.reshape(-1, *[1] * truth.ndim)).sum(0) / count**2
    score = torch.where(mask, error - spread / 2, 0)
    return score.flatten(1).sum(1) / mask.flatten(1).sum(1)


def energy_score(samples: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """The score of the samples as one vector, over the missing pixels: (S, B, ...), (B, ...) -> (B,); 0 is perfect.

    E‖X - truth‖ - E‖X - X'‖ / 2; unlike `crps` it sees whether pixels fit together. Source: Gneiting and Raftery (2007), equation 22.
    """
    flat = torch.where(mask, samples - truth, 0).flatten(2).transpose(0, 1)  # (B, S, D)
    return flat.norm(dim=2).mean(1) - torch.cdist(flat, flat).mean((1, 2)) / 2


def ranks(samples: Tensor, truth: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Where the truth stands among the samples, entry by entry, in (0, 1): (S, ...), (...) -> (...).

    Uniform if the truth is one more draw from where the samples are from.
    Source: Talts et al. (2018), arXiv:1804.06788 (simulation-based calibration).
    """
    below = (samples < truth).sum(0) + (torch.rand(truth.shape, generator=generator).to(truth.device) * (1 + (samples == truth).sum(0)))
    return below / (len(samples) + 1)


def inside(rank: Tensor, share: float) -> Tensor:
    """Whether the truth, by its rank, lies in the samples' central interval of this share: bool, of rank's shape."""
    return (rank - 0.5).abs() < share / 2


# ---------------------------------------------------------------- a Glow's fills


def evaluate(result: dict[str, Tensor], levels: int, starts: list[str]) -> dict:
    """How good the fills are, over the missing pixels alone (grey levels in [0, 1]): MAP, each start's maximum, and the posterior."""
    top, mask = levels - 1, result["mask"]
    truth = result["truth"] / top

    def figures(filled: Tensor) -> dict:
        filled = filled / top
        mse = hole_mse(filled, truth, mask).nanmean().item()
        return {"hole_psnr": hole_psnr(filled, truth, mask), "hole_mse": mse, "ink_ratio": ink_ratio(filled, truth, mask)}

    def climbed(filled: Tensor, log_prob: Tensor) -> dict:
        likelier = (log_prob > result["truth_log_prob"]).float().mean().item()
        return figures(filled) | {"log_prob": log_prob.mean().item(), "likelier_than_truth": likelier}

    samples = result["samples"].transpose(0, 1) / top
    rank = result["rank"][mask]
    return {
        "images": len(truth),
        "truth_log_prob": result["truth_log_prob"].mean().item(),
        "map": climbed(result["map"], result["map_log_prob"])
        | {
            "won_by": {name: int((result["map_start"] == i).sum()) for i, name in enumerate(starts)},
            "atypical": result["atypical"].float().mean().item(),
        },
        "starts": {name: climbed(result["map_each"][:, i], result["map_each_log_prob"][:, i]) for i, name in enumerate(starts)},
        "mean": figures(result["samples"].float().mean(1)),
        "median": figures(result["median"]),
        "sample": figures(result["samples"][:, 0]),
        "crps": crps(samples, truth, mask).nanmean().item(),
        "energy_score": energy_score(samples, truth, mask).mean().item(),
        **{f"coverage_{100 * c:.0f}": inside(rank, c).float().mean().item() for c in COVERAGES},
        **{name: result[name].float().mean().item() for name in ("acceptance", "ess", "temperatures")},
        "r_hat": result["r_hat"].median().item(),
        "converged": (result["r_hat"] < CONVERGED).float().mean().item(),
    }


def print_figures(name: str, figures: dict) -> None:
    """A table of one mask kind's fills."""
    print(f"{name}, {figures['images']} images: log p of the truth {figures['truth_log_prob']:,.0f} nats")
    won = ", ".join(f"{start} {count}" for start, count in figures["map"]["won_by"].items() if count)
    rows = {f"MAP (likeliest, from {won})": figures["map"], **{f"  from {start}": row for start, row in figures["starts"].items()}}
    rows |= {"posterior mean": figures["mean"], "posterior median": figures["median"], "one posterior sample": figures["sample"]}
    for label, row in rows.items():
        log_p = f"   log p {row['log_prob']:,.0f}, above the truth's: {row['likelier_than_truth']:.0%}" if "log_prob" in row else ""
        print(f"  {label:42} hole PSNR {row['hole_psnr']:5.1f} dB   MSE {row['hole_mse']:.4f}   ink ratio {row['ink_ratio']:.2f}{log_p}")
    if figures["map"]["atypical"]:
        print(f"  {figures['map']['atypical']:.0%} of the MAP fills are atypical: over three standard deviations above training images")
    covered = ", ".join(f"{c:.0%} intervals {figures[f'coverage_{100 * c:.0f}']:.1%}" for c in COVERAGES)
    print(f"  the posterior covers the truth: {covered}; CRPS {figures['crps']:.4f}, energy score {figures['energy_score']:.2f}")
    print(f"  acceptance {figures['acceptance']:.0%}, median R-hat {figures['r_hat']:.2f}")


def warn(name: str, r_hat: Tensor) -> None:
    """Says which images' runs still disagree."""
    bad = [str(i) for i in range(len(r_hat)) if not r_hat[i] < CONVERGED]
    if bad:
        which = "all" if len(bad) == len(r_hat) else f"images {', '.join(bad)}"
        print(
            f"  {name}, not converged (R-hat above {CONVERGED}): {which}. Independent runs ended in different fills, and how likely each "
            "of them is, is not settled; more --runs find more fills, more --particles weigh them better"
        )
