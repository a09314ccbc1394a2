"""Zero-shot classification of videos: which of some class names fits best, put into prompt templates?"""

from __future__ import annotations

from stvl.core.config import config
from stvl.core.errors import ConfigError
from stvl.data.sets.labelled import read_lines
from stvl.eval.classifier import Classifier, TextClassifier
from stvl.eval.embed import Progress
from stvl.eval.encoders import Encoders
from stvl.eval.protocols.recognition import ActionList, recognition_result, score_recognition
from stvl.eval.result import Result
from stvl.eval.views import Views, score_views

#: Prompts that are used where none are given: their choice moves scores by points, so the card holds their hash.
TEMPLATES = ("a video of {}.", "a video of a person {}.", "a person is {}.", "{}")


@config
class ZeroShot:
    """Top-1 and top-5 accuracy of encoders that were not trained on the classes.

    The vector of a class is the mean over templates of the unit embeddings of its prompts, made length 1 again.

    Attributes:
        data: the list of videos and the classes.
        templates: texts with ``{}`` where the class goes.
        templates_file: the same from a file, one a line; it takes the place of `templates`.
        views: how often a clip is looked at.
        lower: write class names in lower case and underscores as spaces.
        batch: views at once.
        threads: that decode.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section 3.1.
    """

    data: ActionList
    templates: tuple[str, ...] = TEMPLATES
    templates_file: str | None = None
    views: Views = Views(averaging="logits")
    lower: bool = False
    batch: int = 32
    threads: int = 2

    def run(self, model: Classifier | Encoders, progress: Progress | None = None) -> Result:
        """Embed prompts and clips, compare, count.

        Raises:
            ConfigError: a model without a text encoder, a template without ``{}``.
            DataError: a damaged clip or annotation.
        """
        if not isinstance(model, Encoders):
            raise ConfigError(
                "zero-shot classification needs a text encoder; use Recognition for a model with a head"
            )
        data = self.data.load()
        templates = tuple(read_lines(self.templates_file)) if self.templates_file else self.templates
        names = [name.replace("_", " ").lower() if self.lower else name for name in data.names]
        scorer = TextClassifier(model, {"label": names}, templates)
        found = score_views(
            scorer, data.table, self.views, batch=self.batch, threads=self.threads, progress=progress
        )
        metrics = score_recognition(found, data, self.views)
        result = recognition_result(
            "zero-shot classification", scorer, self.data, data, (self.views, found, metrics)
        )
        result.extra["templates"] = list(templates)
        return result
