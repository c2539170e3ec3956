"""Word between workers and the driver: what a worker waits for."""

from types import SimpleNamespace
from typing import get_args

import pytest
from ray.exceptions import GetTimeoutError

from ablation.events import Event, EventKind
from ablation.executors import news
from ablation.executors.news import Inbox, Sender


def test_inbox__hands_each_event_over_once_in_their_order():
    inbox, sent = Inbox(), [Event(digest="d", name=str(n), kind="progress") for n in range(3)]
    for event in sent[:2]:
        inbox.put(event)
    assert inbox.take() == sent[:2]
    inbox.put(sent[2])
    assert inbox.take() == sent[2:]
    assert inbox.take() == []


def test_sender__waits_for_an_answer_to_a_last_word_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, sent = [], []

    def answer(kind: str, *, timeout: float) -> None:
        asked.append(kind)
        raise GetTimeoutError  # the inbox's node has just been lost

    def remote(event: Event) -> str:
        sent.append(event.kind)
        return event.kind

    monkeypatch.setattr(news.ray, "get", answer)
    send = Sender(SimpleNamespace(put=SimpleNamespace(remote=remote)))
    for kind in get_args(EventKind):
        send(Event(digest="d", name="train", kind=kind))
    assert sent == list(get_args(EventKind))
    assert asked == ["finished", "failed", "retried", "interrupted", "busy", "found", "skipped"]
