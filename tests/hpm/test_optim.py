from dataclasses import replace

from hpm.config import Pretrain
from hpm.learner import build_student
from hpm.optim import build_optimizer, set_learning_rate


def test_optimizer__decays_all_but_biases_and_norms(tiny: Pretrain) -> None:
    student = build_student(tiny, 0)
    optimizer = build_optimizer(student, replace(tiny.optim, weight_decay=0.25))
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    named = dict(student.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named)
    for name, parameter in named.items():
        assert decay[id(parameter)] == (0.0 if parameter.ndim == 1 else 0.25), name
    # Officially the tokens, of three dimensions, decay too.
    tokens = [parameter for name, parameter in named.items() if name.endswith("_token")]
    assert [decay[id(token)] for token in tokens] == [0.25, 0.25]


def test_optimizer__has_the_settings_betas_and_a_rate_from_outside(tiny: Pretrain) -> None:
    optimizer = build_optimizer(build_student(tiny, 0), replace(tiny.optim, betas=(0.5, 0.75)))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.75)}
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    set_learning_rate(optimizer, 0.125)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}
