"""Losses worked by hand on two or three pairs; the numbers in comments are the work."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.eval.metrics import mir
from stvl.losses.egonce import EgoNCE, Scene, egonce
from stvl.losses.infonce import infonce
from stvl.losses.margin import MIMM, AdaptiveMIMM, RelevanceMargin
from stvl.losses.multi_similarity import MultiSimilarity
from stvl.losses.queue import Queue, empty_queue, push
from stvl.losses.relevancy import SharedLabel, VerbNoun, codes_of, relevancy_matrix
from stvl.losses.siglip import SigLIP
from stvl.losses.sms import SMS, AdaptiveTau, SMSHard, SMSRelease
from tests.losses.worked import features, labels

#: Clip 0: verb 0, nouns {0, 1}. Clip 1: verb 0, nouns {1}. Clip 2: verb 1, nouns {2}.
#: c = [[1, .5 + .5/2, 0], [.75, 1, 0], [0, 0, 1]].
CODES = labels([0, 0, 1], [[0, 1], [1, -1], [2, -1]])

#: Rows are clips. Own similarities .9, .5, .8.
SIMILARITIES = [[0.9, 0.7, 0.1], [0.6, 0.5, 0.4], [0.0, 0.5, 0.8]]


def value(loss: Any, similarities: Any = SIMILARITIES, codes: Any = CODES) -> float:
    return float(loss(*features(similarities), labels=codes)[0])


def metrics(loss: Any, similarities: Any = SIMILARITIES, codes: Any = CODES) -> dict[str, float]:
    found = loss(*features(similarities), labels=codes)[1]
    return {name: float(x) for name, x in found.items()}


def test_relevancy():
    c = relevancy_matrix(*codes_of(CODES))
    np.testing.assert_allclose(c, [[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]], rtol=1e-6)
    # 0.2 of the verb and 0.8 of the nouns.
    heavier = relevancy_matrix(*codes_of(CODES), VerbNoun(verb=0.2))
    assert float(heavier[0, 1]) == pytest.approx(0.2 + 0.8 / 2)
    shared = relevancy_matrix(*codes_of(CODES), SharedLabel())
    assert np.array_equal(shared, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    verbs = relevancy_matrix(*codes_of(CODES), SharedLabel(of="verbs"))
    assert np.array_equal(verbs, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])


def test_relevancy_of_repeated_unknown_and_several_codes():
    # Verbs {1, 2} and {2}: IoU 1/2. Nouns {5} (twice in the list) and {5, 6}: IoU 1/2. An unknown verb matches none.
    clips = {"verb": [[1, 2], [-1, -1]], "nouns": [[5, 5, -1], [-1, -1, -1]]}
    codes = {name: jnp.asarray(x) for name, x in clips.items()}
    texts = {"text_verb": jnp.asarray([[2, -1], [-1, -1]]), "text_nouns": jnp.asarray([[5, 6], [-1, -1]])}
    c = relevancy_matrix(*codes_of(codes | texts))
    assert np.array_equal(c, [[0.5, 0], [0, 0]])


def test_mimm():
    # g = .2. Clips: [.2 - .9 + .7] = 0, 0; [.2 - .5 + .6] = .3, [.2 - .5 + .4] = .1; 0, 0.
    # Texts: 0, 0; [.2 - .5 + .7] = .4, [.2 - .5 + .5] = .2; 0, 0. In all 1.0 over 12 terms, 4 of them active.
    assert value(MIMM()) == pytest.approx(1.0 / 12, rel=1e-5)
    found = metrics(MIMM(margin=0.19))
    assert found["active"] == pytest.approx(4 / 12)
    assert found["positive_similarity"] == pytest.approx(2.2 / 3, rel=1e-6)
    assert found["negative_similarity"] == pytest.approx(2.3 / 6, rel=1e-6)


def test_adaptive_mimm_asks_less_of_a_partial_match():
    # Text 1 has verb 0 and noun {0}: c_11 = .5. So clip and text 1 ask for .5 * .4 = .2, the others for .4.
    # Clips: [.4 - .2] = .2, 0; [.2 + .1] = .3, [.2 - .1] = .1; 0, [.4 - .3] = .1.
    # Texts: [.4 - .3] = .1, 0; [.2 + .2] = .4, .2; 0, [.4 - .4] = 0. In all 1.4.
    codes = CODES | labels([0, 0, 1], [], text_verb=[0, 0, 1], text_nouns=[[0, 1], [0, -1], [2, -1]])
    codes["nouns"] = CODES["nouns"]
    assert value(AdaptiveMIMM(), codes=codes) == pytest.approx(1.4 / 12, rel=1e-5)


def test_relevance_margin_asks_less_against_a_relevant_one():
    # g = .4: .1 against the other of {0, 1}, .4 against the rest.
    # Clips: [.1 - .2] = 0, 0; [.1 + .1] = .2, [.4 - .1] = .3; 0, [.4 - .3] = .1.
    # Texts: [.1 - .3] = 0, 0; [.1 + .2] = .3, [.4 + 0] = .4; 0, [.4 - .4] = 0. In all 1.3.
    assert value(RelevanceMargin(margin=0.4)) == pytest.approx(1.3 / 12, rel=1e-5)


def test_sms_with_own_pairs_that_are_the_best():
    # R: .25 against the other of {0, 1}, 1 against the rest. g = .6: margins .15 and .6.
    # Clips: [.15 - .2] = 0, [.6 - .8] = 0; [.15 + .1] = .25, [.6 - .1] = .5; [.6 - .8] = 0, [.6 - .3] = .3.
    # Texts: [.15 - .3] = 0, [.6 - .9] = 0; [.15 + .2] = .35, [.6 - 0] = .6; [.6 - .7] = 0, [.6 - .4] = .2.
    assert value(SMS()) == pytest.approx(2.2 / 12, rel=1e-5)
    found = metrics(SMS())
    assert (found["higher"], found["lower"], found["equal"]) == (1, 0, 0)
    assert found["violation"] == pytest.approx(2.2 / 12, rel=1e-5)


#: Clip 0 (verb 0, noun 0) drew a text of verb 1, noun 0: c_00 = .5, while text 1 is its own narration: c_01 = 1.
MINED = labels([0, 1], [[0], [5]], text_verb=[1, 0], text_nouns=[[0], [0]])


def test_sms_turns_round_where_another_is_more_relevant():
    # c = [[.5, 1], [.5, 0]]. Clips: R = .5 - 1 = -.5: [.3 + (.8 - .4)] = .7; R = 0 - .5: [.3 + (.1 - .3)] = .1.
    # Texts: text 0: R = .5 - .5 = 0: [|.8 - .3| - .1] = .4; text 1: R = 0 - 1: [.6 + (.1 - .4)] = .3.
    found, said = (
        value(SMS(), [[0.8, 0.4], [0.3, 0.1]], MINED),
        metrics(SMS(), [[0.8, 0.4], [0.3, 0.1]], MINED),
    )
    assert found == pytest.approx(1.5 / 4, rel=1e-5)
    assert (said["higher"], said["lower"], said["equal"]) == (0, 0.75, 0.25)
    assert said["violation"] == pytest.approx(1.1 / 3, rel=1e-5)
    assert said["equal_violation"] == pytest.approx(0.4, rel=1e-5)
    # Without tau the equal pair costs .5.
    assert value(SMS(tau=0.0), [[0.8, 0.4], [0.3, 0.1]], MINED) == pytest.approx(1.6 / 4, rel=1e-5)


def test_sms_threshold_belongs_to_the_graded_cases():
    # Nouns {0 .. 4} and {0}: IoU .2, c = .5 + .1 = .6, R = .4 ... and a threshold of just that.
    codes = labels([0, 0], [[0, 1, 2, 3, 4], [0, -1, -1, -1, -1]])
    assert metrics(SMS(variant=SMS().variant.__class__(threshold=0.4)), np.eye(2), codes)["higher"] == 1
    assert metrics(SMS(variant=SMS().variant.__class__(threshold=0.41)), np.eye(2), codes)["equal"] == 1


def test_paper_and_release_differ_between_the_thresholds():
    # Nouns {0} .. against {0 .. 9} and verbs alike: c = .5 + .05. Own text of clip 0 is a verb match alone, c_00 = .5:
    # R = -.05 for clip 0. Paper: below .1, so equal: [|.6 - .5| - .1] = 0. Release: |R| > 1.1/240, graded:
    # 240 * .55 = 132 is whole, so [.6 * .05 + (.6 - .5)] = .13.
    codes = labels([0, 0], [[0] + [-1] * 9, list(range(10))], text_nouns=[[20] + [-1] * 9, list(range(10))])
    similarities = [[0.6, 0.5], [0.5, 0.9]]
    # Clip 1: c_11 = 1, c_10 = .5: [.3 - .4] = 0. Text 0: c_00 - c_10 = 0: paper and release [|.1| - .1] = 0.
    # Text 1: 1 - .55: [.27 - .4] = 0.
    assert value(SMS(), similarities, codes) == pytest.approx(0, abs=1e-7)
    assert value(SMS(variant=SMSRelease()), similarities, codes) == pytest.approx(0.13 / 4, rel=1e-4)


def test_release_keeps_the_remainder_of_a_cut_relevancy():
    # Both clips have nouns {0 .. 6} of which both texts have {0}: every c = .5 + .5/7 = .571428; 240 c = 137.14, cut to
    # 137/240 = .570833. R = .000595 counts as equal, and the middle case is [|.6 R - ahead| - tau].
    nouns = [list(range(7))] * 2
    codes = labels([0, 0], nouns, text_verb=[0, 0], text_nouns=[[0], [0]])
    rest = 0.5 + 0.5 / 7 - 137 / 240
    # Every `ahead` is .5 or -.5; two of each sign would cancel the remainder, so take .5 for all four.
    expected = abs(0.6 * rest - 0.5) - 0.1
    assert value(SMS(variant=SMSRelease()), [[0.9, 0.4], [0.4, 0.9]], codes) == pytest.approx(
        expected, rel=1e-5
    )
    assert value(SMS(), [[0.9, 0.4], [0.4, 0.9]], codes) == pytest.approx(0.4, rel=1e-5)


def test_adaptive_tau():
    # MINED: |R| = .5, .5, 1 in the graded terms: mean 2/3. tau = 1/3 * .6 * 2/3 = .1333; the equal term [.5 - tau].
    found = SMS(adaptive_tau=AdaptiveTau())
    assert metrics(found, [[0.8, 0.4], [0.3, 0.1]], MINED)["tau"] == pytest.approx(0.4 / 3, rel=1e-5)
    expected = (0.7 + 0.1 + 0.3 + 0.5 - 0.4 / 3) / 4
    assert value(found, [[0.8, 0.4], [0.3, 0.1]], MINED) == pytest.approx(expected, rel=1e-5)
    # One label for all: no gap, so the constant.
    assert metrics(found, np.eye(2), labels([0, 0], [[0], [0]]))["tau"] == pytest.approx(0.1)


def test_sms_hard():
    # Clip 0 shows actions 3 and 4, clip 1 shows 4. Texts are actions 3 and 4. c = [[1, 1], [0, 1]]. g = .3.
    # Clip 0 with text 1: [|.6 - .2| - .1] = .3. Clip 1 with text 0: [.3 - (.7 - .5)] = .1.
    # Text 0 with clip 1: [.3 - (.6 - .5)] = .2. Text 1 with clip 0: [|.7 - .2| - .1] = .4.
    codes = labels([-1, -1], [[3, 4], [4, -1]], text_verb=[-1, -1], text_nouns=[[3], [4]])
    assert value(SMSHard(), [[0.6, 0.2], [0.5, 0.7]], codes) == pytest.approx(1.0 / 4, rel=1e-5)
    assert metrics(SMSHard(), [[0.6, 0.2], [0.5, 0.7]], codes)["equal"] == 0.5


def test_egonce_counts_every_pair_with_the_same_verb_and_a_shared_noun():
    # Clips 0 and 1 are positives of each other. All similarities 0: each softmax is 1/3, so rows cost log(3/2), log(3/2)
    # and log 3, and so do columns.
    expected = 2 * (2 * math.log(1.5) + math.log(3)) / 3
    assert value(EgoNCE(), np.zeros((3, 3))) == pytest.approx(expected, rel=1e-6)
    assert value(EgoNCE(directions="mean"), np.zeros((3, 3))) == pytest.approx(expected / 2, rel=1e-6)
    assert metrics(EgoNCE(), np.zeros((3, 3)))["positives"] == pytest.approx(5 / 3)
    # A shared verb alone, or a shared noun alone, is none: InfoNCE's log 2 a direction.
    for codes in (labels([0, 0], [[0], [1]]), labels([0, 1], [[0], [0]])):
        assert value(EgoNCE(), np.zeros((2, 2)), codes) == pytest.approx(2 * math.log(2), rel=1e-6)


def test_egonce_of_a_scene_is_that_of_the_joined_batch():
    rng = np.random.default_rng(0)
    video, text = jnp.asarray(rng.standard_normal((2, 4, 3)), jnp.float32)
    codes = codes_of(labels([0, 1, 0, 2], [[0], [1], [0], [0]]))
    whole, _ = egonce(video, text, codes, 2.0)
    half = [jax.tree.map(lambda x, at=at: x[at], codes) for at in (slice(0, 2), slice(2, 4))]
    scene = Scene(video[2:], text[2:], *half[1])
    joined, _ = egonce(video[:2], text[:2], half[0], 2.0, scene=scene)
    assert float(joined) == pytest.approx(float(whole), rel=1e-6)
    assert float(joined) > float(egonce(video[:2], text[:2], half[0], 2.0)[0])


def test_siglip():
    # All similarities 0: bias 0 costs B log 2; bias -10 costs softplus(10) + (B - 1) softplus(-10).
    assert value(SigLIP(bias=0.0), np.zeros((4, 4)), None) == pytest.approx(4 * math.log(2), rel=1e-6)
    expected = math.log1p(math.exp(10)) + 3 * math.log1p(math.exp(-10))
    assert value(SigLIP(), np.zeros((4, 4)), None) == pytest.approx(expected, rel=1e-6)
    # t = 10, b = -5, similarities .8 and .2: own logits 3, others -3: 2 softplus(-3) a row.
    found, said = SigLIP(bias=-5.0)(*features([[0.8, 0.2], [0.2, 0.8]]))
    assert float(found) == pytest.approx(2 * math.log1p(math.exp(-3)), rel=1e-5)
    assert float(said["matched"]) == pytest.approx(1 / (1 + math.exp(-3)), rel=1e-5)


def test_siglip_takes_scale_and_bias_of_the_model_and_gives_them_gradients():
    video, text = features([[0.8, 0.2], [0.2, 0.8]])

    def loss(temperature: jax.Array, bias: jax.Array) -> jax.Array:
        return SigLIP()(video, text, temperature, bias=bias)[0]

    found, slopes = jax.value_and_grad(loss, argnums=(0, 1))(jnp.float32(0.1), jnp.float32(-5.0))
    assert float(found) == pytest.approx(2 * math.log1p(math.exp(-3)), rel=1e-5)
    # p = sigmoid(-3) pushes own pairs up and others down as hard, so the bias has no slope; that of t is p (.2 - .8),
    # and dt/dT = -1 / T^2.
    p = 1 / (1 + math.exp(3))
    assert float(slopes[0]) == pytest.approx(-100 * p * (0.2 - 0.8), rel=1e-4)
    assert float(slopes[1]) == pytest.approx(0, abs=1e-6)


def test_multi_similarity():
    # Clips 0 and 1 show the same: P = {0, 1}, N = {2}. a = 2, b = 10, g = .5; similarities .5 everywhere: all exponents
    # are 1, so 1/2 log(1 + |P|) + 1/10 log(1 + |N|).
    codes = labels([0, 0, 1], [[1], [1], [2]])
    loss = MultiSimilarity(beta=10.0)
    expected = (2 * (math.log(3) / 2 + math.log(2) / 10) + math.log(2) / 2 + math.log(3) / 10) / 3
    assert value(loss, np.full((3, 3), 0.5), codes) == pytest.approx(expected, rel=1e-6)
    # From a relevancy of .75 on, CODES gives the same sets.
    loss = MultiSimilarity(beta=10.0, positive=0.75)
    assert value(loss, np.full((3, 3), 0.5)) == pytest.approx(expected, rel=1e-6)
    # One pair: no negative, and exp(-2 (.8 - .5)) for the positive.
    one = value(MultiSimilarity(), [[0.8]], labels([0], [[0]]))
    assert one == pytest.approx(math.log1p(math.exp(-0.6)) / 2, rel=1e-6)


def test_queue_joins_the_denominators():
    # Similarities all 0 at scale 1: log 2 without a queue, log 5 with three past texts and clips.
    video, text = features([[0.0, 0.0], [0.0, 0.0]])
    queue = empty_queue(4, 2)
    assert float(infonce(video, text, 1.0, queue=queue)[0]) == pytest.approx(math.log(2), rel=1e-6)
    past = jnp.zeros((3, 2))
    found = infonce(video, text, 1.0, queue=push(queue, past, past))[0]
    assert float(found) == pytest.approx(math.log(5), rel=1e-6)


def test_queue_keeps_the_newest_and_has_no_gradient():
    queue = empty_queue(3, 1)
    for number in (1.0, 2.0):
        queue = push(queue, jnp.full((2, 1), number), jnp.full((2, 1), -number))
    assert int(queue.filled) == 3
    assert np.array_equal(queue.video[:, 0], [2, 2, 1])
    assert np.array_equal(queue.text[:, 0], [-2, -2, -1])
    video = jnp.asarray([[1.0], [0.5]])
    slope = jax.grad(lambda past: infonce(video, video, 2.0, queue=Queue(past, past, queue.filled))[0])(
        queue.video
    )
    assert np.array_equal(slope, np.zeros((3, 1)))
    with pytest.raises(ValueError, match="at least one place, found size = 0"):
        empty_queue(0, 4)


def test_relevancy_on_the_device_is_that_of_the_evaluation():
    rng = np.random.default_rng(0)
    verbs, nouns = rng.integers(-1, 4, (2, 40)), rng.integers(-1, 6, (2, 40, 3))
    codes = labels(verbs[0], nouns[0], text_verb=verbs[1], text_nouns=nouns[1])
    found = jax.jit(lambda codes: relevancy_matrix(*codes_of(codes)))(codes)
    np.testing.assert_allclose(found, mir.relevancy(verbs[0], nouns[0], verbs[1], nouns[1]), atol=1e-6)
    assert len(np.unique(found)) > 5
