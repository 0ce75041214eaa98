# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Questions on clients that misbehave."""

from ..exam import Exam, Steps
from ..results import parted_files, parted_models
from ..runs import Outcome
from ..verdict import failed, not_asked, passed
from ..witness import FAULTS

ROUNDING = 1e-3  # sums of other numbers of equal updates
CHECK = "check each reply before it is aggregated: error, names, shapes, NaN, length of the update"


def bad_client(exam: Exam) -> Steps:
    """A client that fails in training costs its own contribution only.

    All other clients send the same update, so that whatever their number, their average is the
    same: the run must give the models of one in which nobody fails.
    """
    if len(exam.good.trainers()) < 3:
        return not_asked("three clients that train in a round; set nodes in [tool.exam]")
    whose, victim = exam.good.trainers()[0], exam.victim
    cases = [exam.case(f"it-{fault}", faults={victim: fault}, echo=whose) for fault in FAULTS]
    echo, *runs = yield [exam.case("echo", echo=whose), *cases]
    if not echo.ended_well:
        return failed(f"all clients send the same update: {echo.error}", CHECK)
    # What rounding does to the first average, Adam can make full steps of in the next round.
    first_average = [kind for kind, _, _ in echo.models].index("train") + 2
    log, problems = {}, []
    for (fault, text), run in zip(FAULTS.items(), runs, strict=True):
        log[fault] = named_in_log(run, victim, echo, exam.good)
        if run.error:
            problems.append(f"{text}: the run ends with {run.error}")
        elif parting := parted_models(echo, run, ROUNDING, first_average):
            problems.append(f"{text}: {parting}")
        elif not log[fault]:
            problems.append(f"{text}: the log does not name it")
    told = f"client {victim} of {exam.app.nodes} sends"
    if problems:
        return failed(f"{told} {'; '.join(problems)}", CHECK, log=log)
    return passed(f"{told} {', '.join(FAULTS.values())}: the others' model, and a line", log=log)


def named_in_log(run: Outcome, partition: int, *others: Outcome) -> str:
    """Return the first line on a client that the logs of other runs have not."""
    names = (f"artition {partition} ", f"artition {partition}:", str(run.nodes[partition]))
    known = {line for other in others for line in other.log.splitlines()}
    lines = (line for line in run.log.splitlines() if any(name in line for name in names))
    return next((line.strip() for line in lines if line not in known), "")


def too_few(exam: Exam) -> Steps:
    """Too few replies end the run with a clear error, and nothing is lost."""
    first, app = exam.good, exam.app
    least = int(app.config[key]) if (key := app.key("replies")) else 1
    if app.rounds < 2 or len(first.trainers()) < least:
        return not_asked("two rounds, and min-replies clients that train in each")
    failing = first.trainers(2)[least - 1 :]
    faults = dict.fromkeys(failing, "raises")
    [run] = yield [exam.case("too-few", faults=faults, since=2)]
    told = f"{len(failing)} of {len(first.trainers(2))} clients fail in round 2"
    if not run.error:
        way_out = "count the replies of each round, and end the run where there are too few"
        return failed(f"{told}, and the run goes on as if all were well", way_out)
    if not app.key("resume"):
        return passed(f"{told}: {run.error}")
    [resumed] = yield [exam.case("after-too-few", start=run.folder)]
    if text := resumed.error or parted_files(first.outputs, resumed.outputs):
        way_out = "save each round as soon as it is whole; leave its files alone afterwards"
        return failed(f"{told}; resumed with all clients: {text}", way_out)
    return passed(f"{told}: {run.error}; resumed with all: the same files")
