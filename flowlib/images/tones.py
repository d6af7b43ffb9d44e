"""What is paper and what is ink in a picture, so that the ground becomes 0 and the ink 1."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Tones:
    """A picture's ground, place by place, its ink, and how far its noise reaches from the ground.

    All are grey values; `reach` has the sign of ink minus ground.
    """

    ground: np.ndarray  # (rows, columns)
    ink: float
    reach: float = 0.0

    def normalize(self, picture: np.ndarray) -> np.ndarray:
        """The picture with ground and noise at 0 and ink at 1, (rows, columns)."""
        ground = self.ground + self.reach
        return ((picture - ground) / (self.ink - ground)).clip(0, 1)

    def draw(self, values: np.ndarray) -> np.ndarray:
        """Values in [0, 1] as the picture would show them, (rows, columns)."""
        return self.ground + values * (self.ink - self.ground)


def find_tones(picture: np.ndarray, seen: np.ndarray, ink: str, notes: list[str]) -> Tones:
    """The tones of a picture (rows, columns), from its observed pixels; notes what will change.

    Args:
        seen: bool (rows, columns), which pixels are observed.
        ink: "light" or "dark"; "auto" takes the side of the median on which values reach further.
    """
    middle, low, high = np.quantile(picture[seen], [0.5, 0.002, 0.998])
    dark = ink == "dark" or (ink == "auto" and middle - low > high - middle)
    if dark:
        how_to_keep = "" if ink == "dark" else " (--ink light keeps it as it is)"
        notes.append(f"dark ink on a light ground: inverted{how_to_keep}")
    sign, paper = (-1, 1.0) if dark else (1, 0.0)
    as_it_is = Tones(np.full(picture.shape, paper), 1 - paper)
    light = sign * picture  # in this the ink is above the ground
    ground, noise = np.full(picture.shape, np.quantile(light[seen], 0.02)), 0.0
    plain = (np.abs(light - ground) < 0.02)[seen].mean() > 0.2
    if not plain:
        ground, noise = _fit_ground(light, seen)
    above = (light - ground)[seen] - 3 * noise
    top = above.max() if len(above) < 1000 else np.quantile(above, 0.999)
    if top < max(0.05, noise):  # nothing stands out: there is no ink, or nothing else
        return as_it_is
    middle = np.median(ground[seen])
    brightest = middle + 3 * noise + np.quantile(above[above > top / 2], 0.75)
    if plain and abs(sign * middle - paper) < 0.02 and brightest - middle > 0.9:
        return as_it_is
    shade = "ground" if plain else "shaded or noisy ground"
    found = f"{shade} around {sign * middle:.2f} and ink of {sign * brightest:.2f}"
    notes.append(f"{found}: brought to 0 and 1")
    return Tones(sign * ground, sign * brightest, sign * 3 * noise)


def _fit_ground(light: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, float]:
    """A surface of second order through the ground, (rows, columns), and the noise around it."""
    rows, columns = light.shape
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    basis = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    some, step = np.zeros(light.shape, bool), max(1, round((rows * columns / 20_000) ** 0.5))
    some[::step, ::step] = True  # some 20,000 places are enough
    places, values = basis[some & seen], light[some & seen]
    surface, noise = np.median(values), 1.0
    for _ in range(8):  # each time without what is far from the surface: the ink
        ground = np.abs(values - surface) <= 2.5 * noise
        weights = np.linalg.lstsq(places[ground], values[ground], rcond=None)[0]
        surface = places @ weights
        noise = 1.48 * float(np.median(np.abs(values - surface)[ground]))
    return basis @ weights, noise
