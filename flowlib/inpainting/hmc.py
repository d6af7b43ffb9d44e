"""Sampling what is missing, with any density: the posterior of the missing entries, how sure it is, and whether the sampler has converged.

The target is p(missing | known) ∝ p(known, missing). Tempered sequential Monte Carlo: particles start near guesses at the missing entries
and are carried along q^(1-β) p^β from q, a mixture around the guesses whose density is known, to p, as β goes from 0 to 1. At each β
they are weighted, resampled, and moved by Hamiltonian Monte Carlo. Several independent runs keep an early favourite from taking all.

A mask is True where an entry is *missing*. What lies there in x is never looked at.

Papers: Del Moral et al. (2006), doi:10.1111/j.1467-9868.2006.00553.x (SMC samplers); Neal (2011), arXiv:1206.1901 (HMC);
Zhou et al. (2016), arXiv:1303.3123 (choosing the temperatures); Gelman and Rubin (1992), doi:10.1214/ss/1177011136 (R-hat).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from flowlib.inpainting.density import Streams, Target, frozen, to_x, to_y

TARGET_ACCEPTANCE = 0.65  # Neal (2011), section 5.4.4


class Posterior(NamedTuple):
    """What `posterior_inpaint` found for B examples of any shape: S samples, of equal weight, by R independent runs."""

    samples: Tensor  # (S, B, ...) completed: known entries as given. The first R come from different runs
    log_prob: Tensor  # (S, B) their log-densities, nats
    log_evidence: Tensor  # (B,) log p(known), nats; log p(missing | known) of a sample is its log_prob minus this
    acceptance: Tensor  # (B,) share of the proposals at β = 1 that were accepted
    ess: Tensor  # (B,) effective number of the particles that are left, by their ancestors: 1 ... particles
    r_hat: Tensor  # (B,) split R-hat over the runs, the larger of that of log p and that of the hole's mean; 1 is converged
    temperatures: Tensor  # (B,) how many values of β there were

    @property
    def mean(self) -> Tensor:
        """(B, ...): of all fills the one with the least expected squared error."""
        return self.samples.mean(0)

    def quantile(self, q: float) -> Tensor:
        """(B, ...), entry by entry: 0.5 is the median, 0.05 and 0.95 bound a 90 % interval."""
        return self.samples.quantile(q, dim=0)


@dataclass
class _Particles:
    """B examples with P particles each, as flat vectors of D entries; particle p belongs to run p % runs."""

    hole: Tensor  # (B, 1, D) bool, True where missing
    known: Tensor  # (B, P, D) known entries, in x's coordinate; 0.5 where missing
    centres: Tensor  # (B, M, D) of the base q, in y; 0 where known
    precision: Tensor  # (B, M, D) of the base q around them: 1 / width²; 0 where known
    scale: Tensor  # (B, P, D) the width around the centre that the particle started from: HMC's steps are in units of it; 0 where known
    y: Tensor  # (B, P, D) the unbounded coordinate; 0 where known
    log_p: Tensor  # (B, P) log p(known, y)
    grad_p: Tensor  # (B, P, D)
    log_q: Tensor  # (B, P)
    grad_q: Tensor  # (B, P, D)
    log_weight: Tensor  # (B, P), normalised within each run
    log_evidence: Tensor  # (B, runs)
    ancestor: Tensor  # (B, P) which of the first particles this one descends from
    beta: Tensor  # (B, 1)
    step: Tensor  # (B, 1) of HMC
    example: Tensor  # (B,) which example of the caller's this is
    rounds: Tensor  # (B,) how many values β has had
    settled: Tensor  # (B,) moves made at β = 1

    def select(self, rows: Tensor) -> "_Particles":
        return _Particles(*(getattr(self, field.name)[rows] for field in fields(self)))


@torch.no_grad()
def posterior_inpaint(
    log_prob: Callable[[Tensor], Tensor],
    x: Tensor,
    mask: Tensor,
    guesses: Tensor,
    *,
    seeds: Sequence[int] | None = None,
    runs: int = 8,
    particles: int = 4,
    leapfrog: int = 4,
    conditional_ess: float = 0.9,
    settle: int = 8,
    keep: int = 1,
    width: float | Tensor = 1.0,
    unit_interval: bool = True,
    chunk: int = 256,
) -> Posterior:
    """Samples of the missing entries given the known ones, by `runs` independent tempered SMC samplers of `particles` particles each.

    The sampler moves in y = logit(x) over the hole, where log p(y) = log p(x) + Σ log x (1 - x), or in x itself on the real line. If
    `log_prob` is a method of a module, the module is in eval mode with frozen parameters meanwhile. Each example is sampled by itself,
    from its own seed: its result does not depend on the others of the batch.

    Args:
        log_prob: (N, ...) -> (N,), nats, differentiable; a density of x itself.
        x: (B, ...) floating point, or (runs, B, ...): what is known, for each run its own, say of the position within a grey level's bin.
            With unit_interval its values are in (0, 1).
        mask: (B, ...) bool, True where missing.
        guesses: (M, B, ...), M guesses at the missing entries: the centres of q. What they hold elsewhere is ignored.
        seeds: (B,), one for each example; 0 ... B-1 if None.
        leapfrog: steps of an HMC trajectory, each one gradient.
        conditional_ess: how much of the effective sample size one step of β may leave; nearer 1 takes more values of β.
        settle: moves at β = 1.
        keep: how many of them count: where all particles are after each of the last `keep` are the samples, S = keep · runs · particles.
        width: standard deviation of q around each guess, in y: one for all, or (M, B, ...). HMC's steps are in proportion to it.
        unit_interval: sample in logit(x), so that no value leaves (0, 1); False samples in x itself.
        chunk: how many points `log_prob` is given at once.
    Raises:
        ValueError: names the argument that cannot be used.
    """
    if mask.dtype != torch.bool or x.shape not in (mask.shape, (runs, *mask.shape)):
        raise ValueError(f"mask must be bool and of x's shape {tuple(x.shape)}, not {mask.dtype} and {tuple(mask.shape)}")
    if guesses.shape[1:] != mask.shape or len(guesses) == 0:
        raise ValueError(f"guesses must be of shape (M, {', '.join(map(str, mask.shape))}), not {tuple(guesses.shape)}")
    if min(runs, particles, leapfrog, settle, chunk) < 1 or not 1 <= keep <= settle:
        raise ValueError(
            "runs, particles, leapfrog, settle and chunk must be at least 1, and keep from 1 to settle; not "
            f"{(runs, particles, leapfrog, settle, chunk, keep)}"
        )
    width = torch.as_tensor(width, dtype=x.dtype, device=x.device)
    if not 0 < conditional_ess < 1 or width.shape not in ((), guesses.shape) or not ((width > 0) & width.isfinite()).all():
        raise ValueError(
            f"conditional_ess must be in (0, 1), not {conditional_ess}, and width positive, a number or of the guesses' shape, "
            f"not {tuple(width.shape)}, {width.aminmax()}"
        )
    streams, count = Streams(seeds, len(mask), x), runs * particles
    log_density = Target(log_prob, mask.shape[1:], unit_interval, chunk)

    def target(state: _Particles, y: Tensor) -> tuple[Tensor, Tensor]:
        """log p(known, y) (B, P) and its gradient in y."""
        return log_density.with_gradient(y, state.known, state.hole)

    def base(state: _Particles, y: Tensor) -> tuple[Tensor, Tensor]:
        """log q(y) (B, P) and its gradient: a mixture of equal weights."""
        pull = state.centres * state.precision
        squared = y.square() @ state.precision.mT - 2 * y @ pull.mT + (state.centres * pull).sum(2)[:, None]
        log_width = -0.5 * torch.where(state.hole, state.precision, 1).log().sum(2)[:, None]
        normaliser = state.hole.sum((1, 2))[:, None] * 0.5 * math.log(2 * math.pi) + math.log(state.centres.shape[1])
        log_terms = -squared / 2 - log_width
        share = log_terms.softmax(2)
        return log_terms.logsumexp(2) - normaliser, share @ pull - y * (share @ state.precision)

    def start() -> _Particles:
        n, everyone = len(mask), torch.arange(len(mask), device=x.device)
        hole = mask.flatten(1)[:, None]
        known = x.expand(runs, *mask.shape).flatten(2).transpose(0, 1).repeat(1, particles, 1)
        known = torch.where(hole, torch.full_like(known, 0.5), known)
        centres = to_y(guesses.flatten(2).transpose(0, 1), hole, unit_interval)
        widths = torch.where(hole, width.expand_as(guesses).flatten(2).transpose(0, 1), 0)
        # every guess is used as often as any other, and those of a run are a random choice of them
        order = streams.rand(everyone, max(count, len(guesses))).argsort(1) % len(guesses)
        first = order[:, :count, None].expand(-1, -1, hole.shape[2])
        scale = widths.gather(1, first)
        y = centres.gather(1, first) + scale * streams.randn(everyone, *known.shape[1:])
        zeros = x.new_zeros(n, count)
        state = _Particles(
            hole, known, centres, torch.where(hole, widths**-2, 0), scale, y, zeros, y, zeros, y, zeros - math.log(particles),
            x.new_zeros(n, runs), torch.arange(count, device=x.device).expand(n, -1), x.new_zeros(n, 1), x.new_full((n, 1), 0.2), everyone,
            torch.zeros_like(everyone), torch.zeros_like(everyone),
        )  # fmt: skip
        state.log_p, state.grad_p = target(state, y)
        state.log_q, state.grad_q = base(state, y)
        return state

    def move(state: _Particles) -> Tensor:
        """One HMC trajectory of each particle, the step size adapted to the example; the acceptance rate (B,)."""
        momentum = streams.randn(state.example, *state.y.shape[1:]) * state.hole
        step = state.step[..., None] * (0.8 + 0.4 * streams.rand(state.example, count, 1)) * state.scale
        beta = state.beta[..., None]
        energy = (1 - state.beta) * state.log_q + state.beta * state.log_p - momentum.square().sum(2) / 2
        y, grad_p, grad_q = state.y, state.grad_p, state.grad_q
        for _ in range(leapfrog):
            momentum = momentum + step / 2 * ((1 - beta) * grad_q + beta * grad_p)
            y = y + step * momentum
            log_p, grad_p = target(state, y)
            log_q, grad_q = base(state, y)
            momentum = momentum + step / 2 * ((1 - beta) * grad_q + beta * grad_p)
        energy = (1 - state.beta) * log_q + state.beta * log_p - momentum.square().sum(2) / 2 - energy
        chance = torch.nan_to_num(energy, nan=-math.inf).clamp(max=0).exp()
        accepted = streams.rand(state.example, count) < chance
        for name, value in dict(y=y, log_p=log_p, grad_p=grad_p, log_q=log_q, grad_q=grad_q).items():
            old = getattr(state, name)
            setattr(state, name, torch.where(accepted.reshape(*accepted.shape, *[1] * (old.ndim - 2)), value, old))
        state.step = (state.step * (chance.mean(1, keepdim=True) - TARGET_ACCEPTANCE).mul(0.5).exp()).clamp(1e-4, 1.5)
        return accepted.to(x.dtype).mean(1)

    def resample(state: _Particles, when: Tensor) -> None:
        """Systematic resampling within the runs (B, runs) in which `when` holds: a particle is copied as often as its weight says."""
        weight = state.log_weight.unflatten(1, (particles, runs)).softmax(1)
        place = (torch.arange(particles, device=x.device)[:, None] + streams.rand(state.example, 1, runs)) / particles
        chosen = (weight.cumsum(1)[:, None] < place[:, :, None]).sum(2).clamp(max=particles - 1)  # (B, particles, runs)
        itself = torch.arange(particles, device=x.device)[:, None].expand_as(chosen)
        chosen = torch.where(when[:, None], chosen, itself)
        index = (chosen * runs + torch.arange(runs, device=x.device)).flatten(1)
        for name in ("y", "log_p", "grad_p", "log_q", "grad_q", "ancestor"):
            old = getattr(state, name)
            setattr(state, name, old.gather(1, index.reshape(*index.shape, *[1] * (old.ndim - 2)).expand_as(old)))
        equal = torch.full_like(state.log_weight, -math.log(particles))
        state.log_weight = torch.where(when.repeat(1, particles), equal, state.log_weight)

    def heat(state: _Particles) -> None:
        """Takes each example to its next β, weighing its particles; those that are at β = 1 stay as they are."""
        gain = torch.nan_to_num(state.log_p - state.log_q, nan=-1e30, posinf=1e30, neginf=-1e30)  # d log(target) / dβ
        step = next_temperature(gain, state.log_weight, conditional_ess, 1 - state.beta)
        state.rounds = state.rounds + (state.beta[:, 0] < 1)
        state.beta = torch.where(step >= 1 - state.beta, torch.ones_like(step), state.beta + step)
        log_weight = (state.log_weight + step * gain).unflatten(1, (particles, runs))
        total = log_weight.logsumexp(1)
        state.log_evidence = state.log_evidence + total
        state.log_weight = (log_weight - total[:, None]).flatten(1)
        ess = 1 / (2 * (log_weight - total[:, None])).exp().sum(1)
        arrived = (state.beta == 1) & (state.settled == 0)[:, None]
        resample(state, (ess < particles / 2) | arrived)

    with frozen(log_prob):
        state, finished = start(), []
        trace: list[dict] = []
        while len(state.example):
            heat(state)
            acceptance = move(state)
            here = state.beta[:, 0] == 1
            state.settled = state.settled + here
            if here.any():
                part = state.select(here)
                trace.append(
                    {
                        "example": part.example,
                        "x": to_x(part.y, part.known, part.hole, unit_interval),
                        "log_p": part.log_p,
                        "acceptance": acceptance[here],
                    }
                )
            done = state.settled >= settle
            if done.any():
                finished.append(state.select(done))
                state = state.select(~done)
    return _collect(finished, trace, mask, runs, settle, keep, unit_interval)


def _collect(
    finished: list[_Particles], trace: list[dict], mask: Tensor, runs: int, settle: int, keep: int, unit_interval: bool
) -> Posterior:
    """Puts the examples back into the caller's order."""
    order = torch.cat([state.example for state in finished]).argsort()
    rounds, log_evidence, ancestor = (
        torch.cat([getattr(state, name) for state in finished])[order] for name in ("rounds", "log_evidence", "ancestor")
    )
    # every example has `settle` entries in the trace; sorted (stably) by example, they stand in the order in which they were made
    by_example = torch.cat([part["example"] for part in trace]).argsort(stable=True)
    xs, log_ps, accepted = (
        torch.cat([part[name] for part in trace])[by_example].unflatten(0, (len(mask), settle)) for name in ("x", "log_p", "acceptance")
    )
    hole = mask.flatten(1)
    ink = (xs * hole[:, None, None]).sum(3) / hole.sum(1).clamp(min=1)[:, None, None]
    samples = xs[:, -keep:].flip(1).flatten(1, 2).transpose(0, 1).reshape(-1, *mask.shape)
    log_p = log_ps[:, -keep:].flip(1).flatten(1, 2).T
    if unit_interval:  # of x again, not of its logit
        safe = torch.where(mask, samples, torch.full_like(samples, 0.5)).flatten(2)
        log_p = log_p - (torch.where(hole, (safe * (1 - safe)).log(), 0)).sum(2)
    families = torch.stack([torch.bincount(row, minlength=ancestor.shape[1]) for row in ancestor]) / ancestor.shape[1]
    return Posterior(
        samples=samples,
        log_prob=log_p,
        log_evidence=log_evidence.logsumexp(1) - math.log(runs),
        acceptance=accepted.mean(1),
        ess=1 / families.square().sum(1),
        r_hat=torch.maximum(split_r_hat(log_ps, runs), split_r_hat(ink, runs)),
        temperatures=rounds,
    )


def next_temperature(gain: Tensor, log_weight: Tensor, conditional_ess: float, most: Tensor) -> Tensor:
    """The largest step of β, up to `most` (B, 1), that leaves this share of the particles' conditional effective sample size.

    With weights W and increments w = exp(step · gain), (B, P) both, that share is (Σ W w)² / Σ W w². By bisection.
    Source: Zhou et al. (2016), arXiv:1303.3123, section 3.3.
    """
    log_weight = log_weight.log_softmax(1)
    gain = gain - gain.amax(1, keepdim=True)  # the share does not change, and nothing overflows

    def share(step: Tensor) -> Tensor:
        log_w = step * gain
        return (2 * (log_weight + log_w).logsumexp(1) - (log_weight + 2 * log_w).logsumexp(1)).exp()[:, None]

    low, high = torch.zeros_like(most), most
    for _ in range(40):
        middle = (low + high) / 2
        enough = share(middle) >= conditional_ess
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(share(most) >= conditional_ess, most, low.clamp(min=1e-6).minimum(most))


def split_r_hat(values: Tensor, runs: int) -> Tensor:
    """Gelman and Rubin's R-hat of a figure (B, moves, P), particle p of run p % runs: its spread over all, against that within half a run.

    √((W (n - 1) / n + var of the halves' means) / W), W the mean variance within the halves, of n values each; 1 where nothing varies.
    """
    moves = values.shape[1]
    if moves < 2:
        values, moves = values.repeat(1, 2, 1), 2
    half = moves // 2
    values = values[:, -2 * half :].unflatten(2, (-1, runs)).unflatten(1, (2, half))  # (B, 2, half, particles, runs)
    groups = values.permute(0, 1, 4, 2, 3).flatten(3).flatten(1, 2)  # (B, 2 · runs, n)
    n = groups.shape[2]
    within = groups.var(2, correction=min(1, n - 1)).mean(1)
    between = groups.mean(2).var(1)
    return torch.where(within + between > 0, ((within * (n - 1) / n + between) / within).sqrt(), 1.0)
