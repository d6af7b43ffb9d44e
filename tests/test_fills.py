import torch

from flowlib.images.glow import load_glow
from flowlib.inpainting.inpainter import dequantised, flow_bank, flow_samples, flow_truth, make_starts, pixel_widths
from flowlib.inpainting.masks import noise_masks


def test_the_flows_samples_follow_their_seed_and_hold_no_graph(tiny_glow_file):
    glow = load_glow(tiny_glow_file)
    samples = flow_samples(glow, 3, 0)
    assert torch.equal(samples, flow_samples(glow, 3, 0))
    assert not torch.equal(samples, flow_samples(glow, 3, 1))
    assert ((samples > 0) & (samples < 1)).all()
    assert not samples.requires_grad  # with the networks' activations, 2,000 of MNIST's size take gigabytes


def test_a_pixel_of_a_level_that_the_density_is_steep_at_may_move_less(tiny_glow_file, digits):
    glow, images = load_glow(tiny_glow_file), digits.train[:16]
    widths = pixel_widths(glow, images)
    assert widths.shape == (digits.levels,)
    v = dequantised(glow, images, range(16)).requires_grad_()
    slope = torch.autograd.grad((glow.log_prob(v) + (v * (1 - v)).log().flatten(1).sum(1)).sum(), v)[0] * v * (1 - v)
    background = slope[images == 0].square()
    torch.testing.assert_close(widths[0], ((background.sum() + 1) / (len(background) + 1)).rsqrt())


def test_the_neighbour_start_is_a_training_image_that_fits_the_known_pixels(tiny_glow_file, digits):
    truth = digits.train[:3]  # their own nearest neighbours
    mask = noise_masks(3, 8, 8, 0.5)
    (start,) = make_starts(["neighbour"], load_glow(tiny_glow_file), digits.train, torch.where(mask, 0, truth), mask, [0, 1, 2])
    assert torch.equal((start * 17).floor().to(torch.uint8), truth)


def test_holes_in_the_flows_own_samples_are_not_filled_from_the_truth(tiny_glow_file):
    """Latents of one seed begin alike, however many are drawn: the start "sample" once had the truth's, and saw what lay under the hole."""
    glow = load_glow(tiny_glow_file)
    truth = flow_truth(glow, 7, 0)
    bank = (flow_bank(glow, 2000, 0) + 0.5) / glow.levels
    for pool in (flow_samples(glow, 250, 0), bank):  # the former is the start's
        same, others = (truth - pool[:7]).abs().mean(), (truth[:, None] - pool[100:200]).abs().mean()
        assert same > 0.75 * others
