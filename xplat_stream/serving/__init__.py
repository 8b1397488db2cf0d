"""Everything that concerns models at serving time: features, scorer protocol, Triton, releases."""

from xplat_stream.serving.breaker import CircuitBreaker
from xplat_stream.serving.features import HeadInputs, TextFeatures, head_inputs
from xplat_stream.serving.releases import Manifest, ModelRepository, Release
from xplat_stream.serving.scorer import Scorer
from xplat_stream.serving.triton import TritonScorer

__all__ = [
    "CircuitBreaker",
    "HeadInputs",
    "Manifest",
    "ModelRepository",
    "Release",
    "Scorer",
    "TextFeatures",
    "TritonScorer",
    "head_inputs",
]
