"""What the paper claims, and the figures that were published."""

from dataclasses import dataclass

from metanb.labels import name_of
from metanb.settings import Settings


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        name: "C1" to "C8".
        text: the claim in a few words.
        measure: the measure that the claim is about.
        direction: +1 where the claim says that the measure rises in meta-training or is large, -1
            where it says that the measure falls or is near 0.
    """

    name: str
    text: str
    measure: str
    direction: int


CLAIMS = (
    Claim("C1", "adapted solutions become flatter", "hessian_norm", -1),
    Claim("C2", "adapted solutions become lower in support loss", "support_loss", -1),
    Claim("C3", "adapted solutions lie further from where they began", "distance", +1),
    Claim("C4", "they become flatter even while query accuracy falls", "hessian_norm", -1),
    Claim("C5", "query accuracy goes with trajectory coherence", "trajectory_coherence", +1),
    Claim("C6", "query accuracy goes with gradient coherence", "gradient_coherence", +1),
    Claim("C7", "finetuning's trajectories are nearly orthogonal", "trajectory_coherence", -1),
    Claim("C8", "the coherence regulariser raises query accuracy", "query_accuracy", +1),
)


BY_NAME = {claim.name: claim for claim in CLAIMS}


# the figures that the paper gives: by claim, data set, ways and shots
PAPER = {("C8", "omniglot", 20, 1): "94.05 % to 95.38 %"}


PAPER_GAIN = 95.38 - 94.05  # percentage points


# accuracy in per cent and the half-width of its 95 % interval, Finn et al. 2017, tables 1 and 2:
# by algorithm, data set, ways and shots
PUBLISHED = {
    ("maml", "omniglot", 5, 1): (98.7, 0.4),
    ("maml", "omniglot", 5, 5): (99.9, 0.1),
    ("maml", "omniglot", 20, 1): (95.8, 0.3),
    ("maml", "omniglot", 20, 5): (98.9, 0.2),
    ("maml", "mini-imagenet", 5, 1): (48.70, 1.84),
    ("maml", "mini-imagenet", 5, 5): (63.11, 0.92),
    ("fomaml", "mini-imagenet", 5, 1): (48.07, 1.75),
    ("fomaml", "mini-imagenet", 5, 5): (63.15, 0.91),
}


def published(settings: Settings) -> dict[str, tuple[float, str]]:
    """The published accuracy of an algorithm in a setting, or else MAML's.

    It has the form of the argument `known` of `figures.runs.curves`.

    Returns:
        By measure, the value and its source; empty where no value was published.
    """
    for algorithm in (settings.algorithm, "maml"):
        key = (algorithm, settings.dataset, settings.ways, settings.shots)
        if key in PUBLISHED:
            source = f"{name_of(algorithm)}, Finn et al. 2017"
            return {"query_accuracy": (PUBLISHED[key][0] / 100, source)}
    return {}
