"""The losses that an experiment can name."""

from __future__ import annotations

from stvl.losses.egonce import EgoNCE
from stvl.losses.infonce import InfoNCE
from stvl.losses.margin import MIMM, AdaptiveMIMM, RelevanceMargin
from stvl.losses.multi_similarity import MultiSimilarity
from stvl.losses.siglip import SigLIP
from stvl.losses.sms import SMS, SMSHard

#: A loss is called with ``(video, text, temperature, bias=..., labels=...)`` and returns the loss and its metrics.
#: `temperature` and `bias` are None where the model learns none; `labels` holds the arrays of the batch that are named
#: in `stvl.losses.relevancy.LABELS`, as far as the batch has them.
AnyLoss = InfoNCE | EgoNCE | SigLIP | MIMM | AdaptiveMIMM | RelevanceMargin | MultiSimilarity | SMS | SMSHard
