"""The classes of the models. Everything else builds a model here and knows no class of one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from srsplan.models.bert4rec import BERT4Rec
from srsplan.models.config import Architecture, Configuration
from srsplan.models.esasrec import ESASRec
from srsplan.models.kinds import BERT4REC, ESASREC, SASREC
from srsplan.models.sasrec import SASRec
from srsplan.models.sequence_model import SequenceModel


class Build(Protocol):
    """A model's class: it is built of the number of items, the longest sequence and the sizes."""

    def __call__(self, catalog: int, seq_len: int, sizes: Architecture) -> SequenceModel:
        """Return the model on torch's default device."""
        ...


MODELS: Mapping[str, Build] = MappingProxyType({SASREC.name: SASRec, BERT4REC.name: BERT4Rec, ESASREC.name: ESASRec})
"""By name: the only place where the registry of `models.kinds` meets code."""


def build_model(configuration: Configuration) -> SequenceModel:
    """Build the configuration's model in its sizes, on torch's default device."""
    return MODELS[configuration.model](configuration.catalog, configuration.seq_len, configuration.architecture)
