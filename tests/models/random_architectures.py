"""The weights and metadata that each test architecture needs, as pure data.

One entry of `ARCHITECTURES` per kind of model; a new one is a function that lists `Weight`s, built
from `random_parts`, and a dictionary of metadata, in the file of its family. Nothing is drawn or
written here.
"""

from tests.models.random_altup import ALTUP
from tests.models.random_decoders import DECODERS as GATED
from tests.models.random_encoders import ENCODERS
from tests.models.random_hybrid import HYBRIDS
from tests.models.random_mixtures import MIXTURES as PLAINLY_ROUTED
from tests.models.random_parts import (
    LOGIT_SPREAD,
    Architecture,
    Shape,
    Value,
    Weight,
    common_metadata,
)
from tests.models.random_plain import PLAIN
from tests.models.random_routed import ROUTED

DECODERS: dict[str, Architecture] = GATED | PLAIN | ALTUP
MIXTURES: dict[str, Architecture] = PLAINLY_ROUTED | ROUTED | HYBRIDS

__all__ = [
    "ARCHITECTURES",
    "BLOCKS",
    "DECODERS",
    "ENCODERS",
    "LOGIT_SPREAD",
    "MIXTURES",
    "Architecture",
    "Shape",
    "Value",
    "Weight",
    "common_metadata",
]

# How many blocks show all that an architecture has, where that is more than two.
BLOCKS = {
    "afmoe": 4,
    "smollm3": 4,
    "nemotron_h": 5,
    "nemotron_h_moe": 5,
    "nemotron_h_moe-latent": 5,
}
ARCHITECTURES: dict[str, Architecture] = DECODERS | MIXTURES | ENCODERS
