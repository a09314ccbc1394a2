"""Multiple choice: a text query, some clips, one of them right (EgoMCQ)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from stvl.core.errors import ConfigError, DataError


def mcq_accuracy(
    scores: Float[np.ndarray, "..."],
    answers: Int[np.ndarray, "..."],
    kinds: Sequence[str],
) -> dict[str, float | int]:
    """Share of questions whose right choice scores highest, by kind, in [0, 1].

    A tie for the top shares the credit, 1/m among m, so that constant scores stand at chance and not at the share of
    questions whose first choice is right.

    Args:
        scores: (questions, choices).
        answers: (questions,), index of the right choice.
        kinds: a name for the kind of each question, ``"inter"`` or ``"intra"`` in EgoMCQ.

    Returns:
        the accuracy of each kind that occurs under its name, and the number of its questions under ``count.<kind>``.

    Raises:
        ConfigError: lengths that differ.
        DataError: NaN, an answer that is no choice, no questions.

    Source: EgoVLP, arXiv 2206.01670, section 3.3.
    """
    scores, answers, names = np.asarray(scores), np.asarray(answers), np.asarray(kinds)
    if scores.ndim != 2 or answers.shape != (len(scores),) or names.shape != (len(scores),):
        raise ConfigError(
            f"scores {scores.shape}, answers {answers.shape}, {len(names)} kinds: expected (questions, choices) and one"
            " answer and kind a question"
        )
    if not scores.size:
        raise DataError("there are no questions to score")
    if np.isnan(scores).any():
        raise DataError(f"scores hold NaN, first in question {np.argwhere(np.isnan(scores))[0][0]}")
    wrong = (answers < 0) | (answers >= scores.shape[1])
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(f"question {row}: answer {answers[row]} is not one of its {scores.shape[1]} choices")
    top = scores == scores.max(1, keepdims=True)
    credit = top[np.arange(len(scores)), answers] / top.sum(1)
    out: dict[str, float | int] = {}
    for kind in sorted(set(names.tolist())):
        out[kind] = float(credit[names == kind].mean())
    return out | {f"count.{kind}": int((names == kind).sum()) for kind in sorted(set(names.tolist()))}
