"""XLM-RoBERTa (encoder): RoBERTa with the vocabulary of a hundred languages."""

from export.graph.archs.roberta import score_head as score_head
from export.graph.archs.roberta import spec as spec

MODEL_TYPE = "xlm-roberta"
ENCODER = True
