# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Questions on a whole run: does it end, repeat, resume, whatever the order?"""

from ..exam import Exam, Steps
from ..results import losses, parted_files, parted_models
from ..runs import AT_ONCE
from ..verdict import Verdict, failed, not_asked, passed

ROUNDING = 1e-4
WHOLE = "save model, strategy, round and results together, in one step, after each round"


def ends(exam: Exam) -> Verdict:
    """A run comes to its end, and the loss falls."""
    run = exam.first
    if not run.ended_well:
        return failed(f"it ended with {run.error}", f"read {run.folder.parent / 'log'}")
    where, values = losses(run)
    if not values:
        return not_asked("a metric with 'loss' in its name, of clients or in results.json")
    text = f"loss {values[0]:.4g} to {values[-1]:.4g} in {exam.app.rounds} rounds ({where})"
    if not values[0] - values[-1] > ROUNDING * abs(values[0]):
        return failed(text, "another learning rate, or a fault between training and testing")
    return passed(text, losses=values, seconds=round(run.seconds, 1))


def repeats(exam: Exam) -> Steps:
    """The same seed gives the same run, and another seed another."""
    first, key = exam.good, exam.app.key("seed")
    cases = [exam.case("again", stir=1)]
    if key:
        cases.append(exam.case("another-seed", {key: int(exam.app.config[key]) + 1}))
    again, *others = yield cases
    told = "a second run, the global generators in another state"
    way_out = "seed each random choice by (seed, round, partition), just before it is made"
    if text := again.error or parted_models(first, again, ROUNDING):
        return failed(f"{told}: {text}", way_out)
    for other in others:
        if other.ended_well and not parted_models(first, other):
            return failed(f"{key} + 1 gives the same models: it is not used", way_out)
    another = f"; {key} + 1 gives others" if key else ""
    if text := parted_models(first, again):
        return passed(f"{told}: the same but for rounding ({text}){another}")
    if text := parted_files(first.outputs, again.outputs):
        return failed(f"{told}: {text}", way_out)
    return passed(f"{told}: models and files are equal, bit for bit{another}")


def resumes(exam: Exam) -> Steps:
    """Stopped at any moment and resumed, a run is the same as uninterrupted."""
    first, key = exam.good, exam.app.key("resume")
    if not key:
        return not_asked("a key like resume-from, which takes the folder of an earlier run")
    if not first.snapshots:
        return not_asked("files that a run leaves to be resumed from")
    # What a kill leaves is what the disk holds; moments with the same files are one.
    cases = [
        exam.case(f"resumed-{i}", start=kept) for i, kept in enumerate(first.snapshots, start=1)
    ]
    text = f"stopped at {first.points} moments, which leave {len(cases)} states on disk"
    for i in range(0, len(cases), AT_ONCE):
        for number, run in enumerate((yield cases[i : i + AT_ONCE]), start=i + 1):
            if problem := run.error or parted_files(first.outputs, run.outputs):
                return failed(f"{text}; resumed from number {number}: {problem}", WHOLE)
    return passed(f"{text}; resumed from each: the same files", moments=first.points)


def order(exam: Exam) -> Steps:
    """The order in which replies arrive changes nothing."""
    first = exam.good
    if len(first.trainers()) < 2:
        return not_asked("two clients that train in a round; set nodes in [tool.exam]")
    [other] = yield [exam.case("reversed", reverse=True)]
    way_out = "sort the replies, by partition for instance, before anything is summed"
    if other.error or parted_models(first, other, ROUNDING):
        text = other.error or parted_models(first, other, ROUNDING)
        return failed(f"in reverse order: {text}", way_out)
    if text := parted_models(first, other):
        return passed(f"in reverse order the same but for rounding ({text})")
    if text := parted_files(first.outputs, other.outputs):
        return failed(f"in reverse order: {text}", way_out)
    return passed("in reverse order: equal, bit for bit")
