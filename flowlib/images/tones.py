"""What is paper and what is ink in a picture: the ground becomes 0 and the ink 1."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Tones:
    """A picture's ground, place by place, its ink, and its noise.

    All are grey values. `reach` says how far the noise reaches from the ground; it has
    the sign of ink minus ground.
    """

    ground: np.ndarray  # (rows, columns)
    ink: float
    reach: float = 0.0

    def normalize(self, picture: np.ndarray) -> np.ndarray:
        """The picture with ground and noise at 0 and ink at 1, (rows, columns)."""
        ground = self.ground + self.reach
        return ((picture - ground) / (self.ink - ground)).clip(0, 1)


@dataclass
class Colors:
    """How a picture's channels follow from its grey values: one linear function each.

    With transparency the last channel is the opacity, and the others are fitted after
    they are multiplied by it: what is laid over paper is linear in these.
    """

    weights: np.ndarray  # (2, channels): offset and slope, beyond the grey value itself
    transparent: bool

    @classmethod
    def fit(cls, channels: np.ndarray, grey: np.ndarray) -> "Colors":
        """Least squares over N pixels: channels (N, C) and grey (N,), in [0, 1].

        Where the pixels do not decide, a channel is the grey value, and opaque.
        """
        transparent = channels.shape[1] in (2, 4)
        beyond = channels - grey[:, None]
        if transparent:
            opacity = channels[:, -1:]
            beyond = channels * opacity - grey[:, None]
            beyond[:, -1:] = opacity - 1

        basis = np.stack([np.ones_like(grey), grey], axis=1)
        return cls(np.linalg.lstsq(basis, beyond, rcond=None)[0], transparent)

    def draw(self, grey: np.ndarray) -> np.ndarray:
        """The channels of grey values (N,), in [0, 1], (N, C)."""
        grey = grey[:, None]
        beyond = self.weights[0] + grey * self.weights[1]
        channels = grey + beyond
        if self.transparent:
            opacity = 1 + beyond[:, -1:]
            channels = channels / np.maximum(opacity, 1e-6)
            channels[:, -1:] = opacity
        return channels.clip(0, 1)


def find_tones(
    picture: np.ndarray,
    seen: np.ndarray,
    ink: str,
) -> tuple[Tones, list[str]]:
    """The tones of a picture (rows, columns), and notes on what they will change.

    Args:
        seen: bool (rows, columns), which pixels are observed.
        ink: "light" or "dark"; "auto" takes the side of the median on which values
            reach further.
    """
    middle, low, high = np.quantile(picture[seen], [0.5, 0.002, 0.998])
    dark = ink == "dark" or (ink == "auto" and middle - low > high - middle)
    notes = []
    if dark:
        how_to_keep = "" if ink == "dark" else " (--ink light keeps it as it is)"
        notes.append(f"dark ink on a light ground: inverted{how_to_keep}")
    paper = float(dark)
    as_it_is = Tones(np.full(picture.shape, paper), 1 - paper)

    # Times the sign, the ink is above the ground.
    sign = -1 if dark else 1
    light = sign * picture
    ground = np.full(picture.shape, np.quantile(light[seen], 0.02))
    noise = 0.0
    plain = (np.abs(light - ground) < 0.02)[seen].mean() > 0.2
    if not plain:
        ground, noise = _fit_ground(light, seen)

    reach = 3 * noise
    above = (light - ground)[seen] - reach
    top = above.max() if len(above) < 1000 else np.quantile(above, 0.999)
    if top < max(0.05, noise):  # nothing stands out: there is no ink, or nothing else
        return as_it_is, notes
    middle = np.median(ground[seen])
    brightest = middle + reach + np.quantile(above[above > top / 2], 0.75)
    if plain and abs(sign * middle - paper) < 0.02 and brightest - middle > 0.9:
        return as_it_is, notes

    shade = "ground" if plain else "shaded or noisy ground"
    notes.append(
        f"{shade} around {sign * middle:.2f} and ink of {sign * brightest:.2f}: "
        "brought to 0 and 1"
    )
    return Tones(sign * ground, sign * brightest, sign * reach), notes


def _fit_ground(light: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, float]:
    """A surface of second order through the ground, and the noise around it."""
    sides = [np.linspace(-1, 1, n) for n in light.shape]
    y, x = np.meshgrid(*sides, indexing="ij")
    basis = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)

    # Some 20,000 places are enough.
    step = max(1, round((light.size / 20_000) ** 0.5))
    some = np.s_[::step, ::step]
    places = basis[some][seen[some]]
    values = light[some][seen[some]]

    # Each time without what is far from the surface: the ink.
    surface = np.median(values)
    noise = 1.0
    for _ in range(8):
        ground = np.abs(values - surface) <= 2.5 * noise
        weights = np.linalg.lstsq(places[ground], values[ground], rcond=None)[0]
        surface = places @ weights
        noise = 1.48 * np.median(np.abs(values - surface)[ground])
    return basis @ weights, noise
