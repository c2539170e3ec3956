import numpy as np
import pytest

from hpm.randomness import Purpose, generator

ARGUMENTS = [
    {"purpose": purpose, "seed": seed, "epoch": epoch, "index": index}
    for purpose in Purpose
    for seed in (0, 1, 2**64)
    for epoch in (0, 1)
    for index in (0, 1, 2**63)
]


def _draws(purpose, **key):
    return generator(purpose, **key).integers(0, 2**63, size=64)


def test_generator__is_a_function_of_its_arguments():
    for arguments in ARGUMENTS:
        np.testing.assert_array_equal(_draws(**arguments), _draws(**arguments))


def test_generator__shares_no_number_between_streams():
    draws = np.concatenate([_draws(**arguments) for arguments in ARGUMENTS])
    assert len(np.unique(draws)) == len(draws) == 64 * len(ARGUMENTS)


def test_generator__leaves_the_upper_words_of_the_counter_alone():
    stream = generator(Purpose.MASK, seed=3, epoch=4, index=5)
    stream.random(10_000)
    counter = stream.bit_generator.state["state"]["counter"]
    assert counter[0] > 0
    assert counter[1:].tolist() == [Purpose.MASK, 4, 5]


@pytest.mark.parametrize(
    "arguments",
    [{"seed": -1}, {"seed": 2**128}, {"seed": 0, "epoch": -1}, {"seed": 0, "index": 2**64}],
)
def test_generator__refuses_what_does_not_fit(arguments):
    with pytest.raises(ValueError, match="must be in"):
        generator(Purpose.VIEW, **arguments)
