"""Faults one after another on a study, and what each of them cost."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

from chaos.faults import FAULTS, NoVictimError
from chaos.processes import alive
from chaos.work import Step
from chaos.world import INTERVAL_S, World

__all__ = ["Cost", "afflict", "report"]

_RECOVER_WITHIN_S = 300.0
_QUIET_S = 2.0
"""A process that has done a step so long after a fault was not hit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a fault cost one training that was at work."""

    kind: str
    which: str
    hit: bool
    """Whether it had to go on from a checkpoint."""
    repeated: int
    """Steps that were done again."""
    seconds: float
    """The longest time without a step."""

    def allowed(self, step_s: float, commit_s: float) -> int:
        """The most steps that a fault may cost where a step and a commit take so many seconds."""
        kind = FAULTS[self.kind]
        return round(kind.intervals * ((INTERVAL_S + commit_s) / step_s + 2)) + kind.besides


def afflict(
    world: World, kinds: Sequence[str], count: int, random: Random, *, struck: Counter[str]
) -> Iterator[tuple[str, list[Cost]]]:
    """Up to `count` faults on a world whose driver runs, with the costs of each that is over.

    `struck` counts them as they strike. It ends with the study.
    Raises TimeoutError where a training does not go on.
    """
    queue = deque(kinds)
    for _ in range(count):
        at_work = _next_at_work(world, random)
        if not at_work:
            return
        while at_work:
            kind = queue.popleft()
            queue.append(kind)
            try:
                began = time.time()
                FAULTS[kind].strike(world, at_work, random)
            except NoVictimError:
                at_work = _next_at_work(world, random)
            else:
                struck[kind] += 1
                yield kind, list(_costs(world, kind, at_work, began))
                break


def _next_at_work(world: World, random: Random) -> Mapping[str, Step]:
    """Trainings at work at a random moment of theirs; none when the study has ended."""
    moment, limit = random.randrange(2, 25), time.monotonic() + _RECOVER_WITHIN_S
    while time.monotonic() < limit:
        if world.over():
            return {}
        found = world.at_work()
        steps = world.steps()
        since = {s.which: sum(t.pid == s.pid for t in steps) for s in found.values()}
        if any(done >= moment for done in since.values()):
            return found
        time.sleep(0.05)
    raise TimeoutError(f"No training is at work, and the study has not ended. {_tail(world)}")


def _costs(world: World, kind: str, before: Mapping[str, Step], began: float) -> Iterator[Cost]:
    """Wait until each training that was at work is so again."""
    all_stop = FAULTS[kind].for_all
    for which, lead in before.items():
        known = {s.pid for s in world.steps() if s.which == which and s.at <= began}
        limit = time.monotonic() + _RECOVER_WITHIN_S
        while (cost := _cost(world, lead, known, began, all_stop=all_stop)) is None:
            if time.monotonic() > limit:
                raise TimeoutError(f"{which} did not go on after: {kind}. {_tail(world)}")
            time.sleep(0.05)
        hit, repeated, seconds = cost
        yield Cost(kind=kind, which=which, hit=hit, repeated=repeated, seconds=seconds)


def _cost(
    world: World, lead: Step, known: set[int], began: float, *, all_stop: bool
) -> tuple[bool, int, float] | None:
    """Whether it was hit, steps done again, seconds without a step; None while not known."""
    highest, last, pause = 0, began, 0.0
    for step in world.steps():
        if step.which != lead.which or (step.pid in known and step.pid != lead.pid):
            continue
        if step.at > began and (step.number <= highest or step.pid != lead.pid):
            return True, max(0, highest - step.number + 1), step.at - max(began, last)
        pause = max(pause, step.at - max(began, last))
        highest, last = max(highest, step.number), step.at
    going = not all_stop and alive(lead.pid) and last > began + _QUIET_S
    return (False, 0, pause) if going or highest == world.num_steps else None


def _tail(world: World) -> str:
    lines = world.log.read_text().splitlines()[-15:] if world.log.exists() else []
    return "\n".join(["The log ends:", *lines])


def report(costs: Iterable[Cost], struck: Counter[str], recovered: Counter[str]) -> str:
    """A line for each kind: how many, how many trainings they stopped, what that cost."""
    of: dict[str, list[Cost]] = defaultdict(list)
    for cost in costs:
        of[cost.kind].append(cost)
    head = ("kind of fault", "count", "recovered", "trainings", "hit")
    head += ("steps again", "most", "seconds", "most")
    lines = [head]
    for kind, count in struck.items():
        hit = [cost for cost in of[kind] if cost.hit]
        steps = [cost.repeated for cost in hit or of[kind]] or [0]
        seconds = [cost.seconds for cost in hit or of[kind]] or [0.0]
        numbers = (count, recovered[kind], len(of[kind]), len(hit))
        numbers += (f"{median(steps):g}", max(steps))
        lines.append((kind, *map(str, numbers), f"{median(seconds):.1f}", f"{max(seconds):.1f}"))
    lines.append(("all", str(struck.total()), str(recovered.total()), *[""] * 6))
    return "\n".join(
        f"{line[0]:34}" + "".join(f"{cell:>13}" for cell in line[1:]) for line in lines
    )
