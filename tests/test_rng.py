import torch

from flowlib.rng import Streams, rng


def test_each_seed_and_purpose_has_its_own_numbers():
    draws = [
        torch.rand(1, generator=rng(seed, purpose, *step)).item()
        for seed in range(20)
        for purpose in ("train", "test")
        for step in ((), (0,), (1,), (1, 0))
    ]
    assert len(set(draws)) == len(draws)
    first, again = (torch.rand(3, generator=rng(1, "a", 2)) for _ in range(2))
    assert torch.equal(first, again)


def test_an_examples_random_numbers_depend_on_its_own_seed_alone():
    like = torch.zeros(1, dtype=torch.float64)
    together = Streams([4, 7, 9], "test", like)
    alone = Streams([7], "test", like)
    assert torch.equal(together.randn(6)[1], alone.randn(6)[0])
    assert torch.equal(together.rand(5, 2)[1], alone.rand(5, 2)[0])
    assert together.rand(5).dtype == torch.float64

    other = Streams([7], "other", like).rand(5)
    assert not torch.equal(other, Streams([7], "test", like).rand(5))
