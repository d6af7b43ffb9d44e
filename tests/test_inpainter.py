import pytest
import torch

from flowlib.images.glow import load_glow
from flowlib.inpainting.fill import Problem
from flowlib.inpainting.inpainter import FIRST_STEPS, FillSettings, Inpainter
from flowlib.inpainting.masks import draw_masks
from flowlib.rng import rng

QUICK = FillSettings(3, fills=4, rounds=2, crossovers=4, ascent=2, last_ascent=2)


@pytest.fixture
def glow(tiny_glow_file):
    return load_glow(tiny_glow_file)


def problem_of(images, kind="square:4", seeds=None):
    n = len(images)
    seeds = seeds or list(range(n))
    mask = draw_masks(kind, n, tuple(images.shape[1:]), 0)
    return Problem.cut(images, mask, seeds)


@pytest.fixture
def problem(digits):
    return problem_of(digits.test[:4])


def test_fills_keep_observed_pixels_and_the_same_seed_gives_the_same_fills(
    glow, digits, problem
):
    fill = Inpainter(glow, digits.train, settings=QUICK).fill(problem)
    seen = ~problem.mask
    assert torch.equal(fill.map[seen], problem.masked[seen])
    assert fill.plausible.shape == (4, 4, 1, 8, 8)
    for one in fill.plausible.unbind(1):
        assert torch.equal(one[seen], problem.masked[seen])
    assert ((fill.plausible_v > 0) & (fill.plausible_v < 1)).all()
    again = Inpainter(glow, digits.train, settings=QUICK).fill(problem)
    for name, value in vars(fill).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(again, name)), name


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_log_probs_are_those_of_the_fills_in_float32(glow, digits, problem, precision):
    for parameter in glow.parameters():
        # so that rounding would show
        parameter.data += 0.05 * torch.randn_like(parameter)
    glow.set_precision(precision)
    fill = Inpainter(glow, digits.train, settings=QUICK).fill(problem)
    assert glow.precision == precision
    v = fill.plausible_v.flatten(0, 1)
    with torch.no_grad():
        rounded, exact = glow.log_prob(v), glow.set_precision(torch.float32).log_prob(v)
    assert torch.equal(rounded, exact) == (precision == torch.float32)
    torch.testing.assert_close(fill.log_prob.flatten(), exact, rtol=1e-6, atol=1e-4)


def test_what_is_typical_comes_from_the_checkpoint_or_else_from_the_references(
    glow, digits
):
    measured = Inpainter(glow, digits.train).typical_log_prob
    log_p = Inpainter(glow, digits.train).truth(digits.train[:500], range(500)).log_prob
    assert measured == pytest.approx((log_p.mean().item(), log_p.std().item()))
    glow.metrics = {"held_out_log_prob": [5.0, 2.0]}
    assert Inpainter(glow, digits.train).typical_log_prob == (5.0, 2.0)


def test_an_image_is_filled_alike_alone_and_in_a_batch(glow, digits, problem):
    inpainter = Inpainter(glow, digits.train, settings=QUICK)
    together = inpainter.find_fills(problem)
    alone = inpainter.find_fills(problem[[2]])
    torch.testing.assert_close(
        alone.plausible_v[0], together.plausible_v[2], rtol=0, atol=1e-3
    )


def test_the_model_comes_back_as_it_was(glow, digits, problem):
    glow.train()
    before = {name: value.clone() for name, value in glow.state_dict().items()}
    Inpainter(glow, digits.train, settings=QUICK).fill(problem)
    assert glow.training
    assert all(p.requires_grad and p.grad is None for p in glow.parameters())
    assert all(
        torch.equal(value, before[name]) for name, value in glow.state_dict().items()
    )


def test_a_bar_ends_full_and_changes_no_fill(glow, digits, problem, capsys):
    inpainter = Inpainter(glow, digits.train, settings=QUICK)
    fill = inpainter.fill(problem)
    assert capsys.readouterr().err == ""
    again = inpainter.fill(problem, "some label")
    assert torch.equal(again.plausible_v, fill.plausible_v)
    assert "some label: 100%" in capsys.readouterr().err


def test_observed_pixels_that_are_known_exactly_are_taken_as_they_are(
    glow, digits, problem
):
    v = glow.dequantize(digits.test[:4])
    problem.observed = v
    found = Inpainter(glow, digits.train, settings=QUICK).find_fills(problem)
    for one in found.plausible_v.unbind(1):
        assert torch.equal(one[~problem.mask], v[~problem.mask])
    problem.observed = None  # otherwise each fill draws its own
    found = Inpainter(glow, digits.train, settings=QUICK).find_fills(problem)
    seen = ~problem.mask[:, None].expand_as(found.plausible_v)
    observed = found.plausible_v[seen]
    assert len(observed.unique()) > 0.9 * len(observed)


def test_a_pixel_of_a_level_that_the_density_is_steep_at_may_move_less(glow, digits):
    inpainter = Inpainter(glow, digits.train)
    widths = inpainter.pixel_widths
    assert widths.shape == (digits.levels,)
    images = digits.train[:64]
    v = inpainter._dequantize(images[:, None], range(64), "widths")[:, 0]
    v.requires_grad_()
    log_p = glow.log_prob(v) + (v * (1 - v)).log().flatten(1).sum(1)
    slope = torch.autograd.grad(log_p.sum(), v)[0] * v * (1 - v)
    background = slope[images == 0].square()
    expected = ((background.sum() + 1) / (len(background) + 1)).rsqrt()
    torch.testing.assert_close(widths[0], expected)


def test_what_lies_under_the_hole_changes_no_fill(glow, digits, problem):
    mask, fills = problem.mask, []
    for under_the_hole in (0, 15):
        grey = torch.where(mask, under_the_hole, digits.test[:4])
        cut = Problem.cut(grey, mask, range(4), v=(grey + 0.5) / glow.levels)
        fills.append(Inpainter(glow, digits.train, settings=QUICK).fill(cut))
    assert torch.equal(fills[0].map, fills[1].map)
    assert torch.equal(fills[0].plausible_v, fills[1].plausible_v)


def test_the_ascent_starts_from_black_and_from_the_likeliest_fill(
    glow, digits, problem
):
    inpainter = Inpainter(glow, digits.train, settings=QUICK)
    found = inpainter.find_fills(problem)
    starts = inpainter.starts(found)
    assert starts.shape == (4, 2, 1, 8, 8)
    assert ((starts > 0) & (starts < 1)).all()
    assert torch.equal(starts, inpainter.starts(inpainter.find_fills(problem)))
    black, likeliest = starts.unbind(1)  # (B, 1, H, W) each
    assert (glow.quantize(black) == 0).all()
    for i, chosen in enumerate(found.log_prob.tolist()):
        assert torch.equal(
            likeliest[i], found.plausible_v[i, chosen.index(max(chosen))]
        )


def test_the_likeliest_ascent_goes_on(glow, digits, problem):
    for steps in (0, FIRST_STEPS):  # the ascents end before one would go on alone
        inpainter = Inpainter(
            glow, digits.train, settings=FillSettings(map_steps=steps)
        )
        starts = inpainter.starts(inpainter.find_fills(problem))
        found = inpainter.log_prob(inpainter.find_map(problem, starts))
        alone = [inpainter.find_map(problem, start) for start in starts.split(1, 1)]
        likelier = torch.stack([inpainter.log_prob(v) for v in alone]).amax(0)
        torch.testing.assert_close(found, likelier, rtol=0, atol=1e-2)
        if steps == 0:  # the starts themselves
            for v, start in zip(alone, starts.unbind(1)):
                torch.testing.assert_close(v[problem.mask], start[problem.mask])
    longer = Inpainter(
        glow, digits.train, settings=FillSettings(map_steps=FIRST_STEPS + 20)
    )
    assert (longer.log_prob(longer.find_map(problem, starts)) > found).all()


def test_samples_with_holes_are_not_among_the_samples_that_fill_them(glow):
    """Latents of one generator begin alike, so each use has its own."""
    purposes = ("samples with holes", "reference images", "samples for a start")
    truth, *pools = (glow.sample(7, rng(0, purpose)) for purpose in purposes)
    for pool in pools:
        same, others = (
            (truth - pool).abs().mean(),
            (truth - pool.roll(3, 0)).abs().mean(),
        )
        assert same > 0.75 * others


def test_everything_missing(glow, digits):
    problem = problem_of(digits.test[:2], "noise:1")
    fill = Inpainter(glow, digits.train, settings=QUICK).fill(problem)
    assert fill.log_prob.isfinite().all()
