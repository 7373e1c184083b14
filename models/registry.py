"""The models that can be trained, by name. Everything else builds a model here and knows no class of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from srsplan.models.config import Configuration
from srsplan.models.sasrec import SASRec
from srsplan.models.sequence_model import SequenceModel

DEFAULT_MODEL = "sasrec"
"""The model that is built where nobody names one."""


def _sasrec(configuration: Configuration) -> SequenceModel:
    return SASRec(configuration.catalog, configuration.seq_len, configuration.architecture)


MODELS: Mapping[str, Callable[[Configuration], SequenceModel]] = MappingProxyType({"sasrec": _sasrec})
"""Functions by a model's name that build it from a configuration, on torch's default device."""


def build_model(configuration: Configuration, name: str = DEFAULT_MODEL) -> SequenceModel:
    """Build the model of that name in the configuration's sizes; KeyError for a name that is not in `MODELS`."""
    return MODELS[name](configuration)
