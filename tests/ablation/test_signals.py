from ablation.signals import Signals


def test_signals__a_stop_is_heard_once_it_was_looked_at():
    asked = [False]
    signals = Signals(should_stop=lambda: asked[0], notice=lambda: "")
    signals.look()
    asked[0] = True
    assert not signals.stopped()
    assert signals.look()
    assert signals.stopped()


def test_signals__a_stop_is_heard_at_once_while_something_is_prepared():
    signals = Signals(should_stop=lambda: True, notice=lambda: "")
    assert [signals.stopped() for _ in range(2)] == [False, True]
