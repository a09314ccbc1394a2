"""Text-video retrieval on caption lists such as MSR-VTT's 1k-A: recall, median rank and mean rank, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from stvl.core.config import config
from stvl.core.errors import ConfigError, DataError
from stvl.data.sets.msrvtt import Captions, read_caption_list, read_msrvtt
from stvl.eval.card import Split, protocol_card
from stvl.eval.embed import Progress, embed_table, embed_texts
from stvl.eval.encoders import Encoders
from stvl.eval.metrics.accuracy import softmax
from stvl.eval.metrics.recall import Ties, rank_metrics, recall_chance, tied_ranks
from stvl.eval.result import Result

_KS = (1, 5, 10)


@config
class TextVideoRetrieval:
    """Each caption looks for its video (``t2v``), each video for one of its captions (``v2t``).

    MSR-VTT's 1k-A list (a CSV, 1,000 videos with a caption each) and its full test split (the JSON file, 2,990 videos
    with 20 captions each) give different numbers; the card holds counts and hashes.

    Attributes:
        annotations: a CSV with ``video_id,sentence``, or ``MSRVTT_data.json``.
        videos: the folder of video files.
        split: of the JSON file.
        pattern: a video's file in `videos`, with field names in braces.
        ties: rank of a right answer among equals, see `stvl.eval.metrics.recall.tied_ranks`.
        dual_softmax: inverse temperature of the dual softmax; None, as in an honest comparison, does without. It looks
            at all queries of the test at once, so a score with it is another quantity, and the card says so.
        batch: clips at once.
        threads: that decode.

    Source: Yu et al., "A Joint Sequence Fusion Model for Video Question Answering and Retrieval", 2018 (1k-A).
    """

    annotations: str
    videos: str
    split: str = "test"
    pattern: str = "{video_id}.mp4"
    ties: Ties = "average"
    dual_softmax: float | None = None
    batch: int = 32
    threads: int = 2

    def run(self, encoders: Encoders, progress: Progress | None = None) -> Result:
        """Embed, rank, count.

        Raises:
            DataError: a damaged clip or annotation.
        """
        if self.annotations.endswith(".json"):
            data = read_msrvtt(self.annotations, self.videos, self.split, self.pattern)
        else:
            data = read_caption_list(self.annotations, self.videos, self.pattern)
        videos = embed_table(encoders, data.table, self.batch, self.threads, progress)
        similarity = embed_texts(encoders, data.texts) @ videos.embeddings.T
        metrics, extra, baseline = score_retrieval(similarity, data, self.ties, self.dual_softmax)
        name = Path(self.annotations).stem
        split = Split(
            name=f"{name} {self.split}" if self.annotations.endswith(".json") else name,
            table=data.table,
            annotations=(self.annotations,),
            texts=data.texts,
        )
        done = (
            "none"
            if self.dual_softmax is None
            else f"dual softmax, inverse temperature {self.dual_softmax:g}"
        )
        card = protocol_card(
            encoders, "text-video retrieval", split, post_processing=done, ties=self.ties, batch=self.batch
        )
        return Result(metrics=metrics, baseline=baseline, card=card, extra=extra)


def score_retrieval(
    similarity: Float[np.ndarray, "..."],
    data: Captions,
    ties: Ties = "average",
    dual_softmax: float | None = None,
) -> tuple[dict[str, float], dict[str, Any], dict[str, float]]:
    """Recall at 1, 5 and 10 both ways; median and mean ranks; chance.

    Args:
        similarity: (texts, videos).
        data: which text is whose.
        ties: see `TextVideoRetrieval`.
        dual_softmax: see `TextVideoRetrieval`.

    Returns:
        metrics ``r@k.t2v`` and ``r@k.v2t`` in [0, 1]; extra ``median_rank.*`` and ``mean_rank.*`` from 1; chance of the
        metrics.

    Raises:
        ConfigError: another shape than (texts, videos).
        DataError: NaN.
    """
    similarity = np.asarray(similarity)
    right = right_answers(data)
    if similarity.shape != right.shape:
        hint = " (it looks transposed)" if similarity.shape == right.shape[::-1] else ""
        raise ConfigError(f"similarity is {similarity.shape}, expected (texts, videos) {right.shape}{hint}")
    if np.isnan(similarity).any():
        row, column = np.argwhere(np.isnan(similarity))[0]
        raise DataError(f"similarity holds NaN, first in row {row}, column {column}")
    metrics: dict[str, float] = {}
    extra: dict[str, Any] = {"videos": len(data.table), "captions": len(data.texts)}
    baseline: dict[str, float] = {}
    for way, scores, mask in (("t2v", similarity, right), ("v2t", similarity.T, right.T)):
        if dual_softmax is not None:
            scores = dual_softmax_scores(scores, dual_softmax)
        found = rank_metrics(tied_ranks(scores, mask, ties), _KS)
        extra |= {f"{name}.{way}": found.pop(name) for name in ("median_rank", "mean_rank")}
        metrics |= {f"{name}.{way}": value for name, value in found.items()}
        baseline |= {f"r@{k}.{way}": recall_chance(mask, k) for k in _KS}
    return metrics, extra, baseline


def dual_softmax_scores(
    scores: Float[np.ndarray, "queries items"], inverse_temperature: float
) -> Float[np.ndarray, "queries items"]:
    """``s_qi * softmax_q(inverse_temperature * s_qi)``: an item that fits many queries counts less for each.

    Raises:
        ConfigError: an inverse temperature that is not above 0.

    Source: Cheng et al., "Improving Video-Text Retrieval by Multi-Stream Corpus Alignment and Dual Softmax Loss", 2021.
    """
    if not inverse_temperature > 0:
        raise ConfigError(f"the inverse temperature is above 0, found {inverse_temperature}")
    return scores * softmax(inverse_temperature * scores.T).T


def right_answers(data: Captions) -> Bool[np.ndarray, "texts videos"]:
    """True where a text was written for a video."""
    out = np.zeros((len(data.texts), len(data.table)), bool)
    out[np.arange(len(data.texts)), list(data.video)] = True
    return out
