"""What a run has come to: kept whole by a state, and by a rollback but for what it trained in vain."""

from __future__ import annotations

import torch

from resfit.history import Best, History
from resfit.record import EpochPoint

POINTS = [EpochPoint(epoch=n, train_loss=2.0 - n, train_accuracy=0.1, lr=0.1, seconds=1.0, images=10) for n in (1, 2)]
BEST = Best(accuracy=0.4, epoch=2, weights={"head.weight": torch.ones(2)})


def test_a_state_gives_it_back() -> None:
    history = History(command="train", curve=POINTS, best=BEST, test_scored=2, seconds=9.0, events=["x"], rollbacks=1)
    assert History.from_state({"trainer": {}, **history.state_dict()}) == history


def test_a_rollback_forgets_what_was_trained_and_not_what_happened() -> None:
    history = History(curve=list(POINTS), best=BEST, test_scored=2, seconds=9.0, seconds_saving=0.5, events=["x"])
    history.go_back_to(History(curve=POINTS[:1]))
    assert (history.curve, history.best) == (POINTS[:1], None)
    assert (history.test_scored, history.seconds, history.seconds_saving, history.events) == (2, 9.0, 0.5, ["x"])
    assert history.rollbacks == 1
