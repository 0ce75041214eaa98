# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Questions on the model: does all of it survive, and is it the one that was trained before?"""

import numpy as np

from ..exam import Exam, Steps
from ..results import parted
from ..runs import Outcome
from ..verdict import Verdict, failed, not_asked, passed
from ..witness import Arrays

ROUNDING = 1e-3


def keeps_model(exam: Exam) -> Verdict:
    """Every buffer, counter and single number of the model survives a round."""
    first = exam.first  # which such a fault may have ended
    if len(first.models) < 2:
        return not_asked("a model that the server sends in two phases")
    start = first.models[0][2]
    buffers = {name for name in start if sort_of(name, first) == "buffer"}
    counters = {name for name, value in start.items() if value.dtype.kind != "f"}
    lost = [
        name
        for name, (sort, _, _) in first.entries.items()
        if sort == "buffer" and not any(ends_alike(name, sent) for sent in start)
    ]
    if lost and any(ends_alike(name, sent) for name in first.entries for sent in start):
        way_out = "send the whole state_dict, buffers and counters, too"
        return failed(f"{', '.join(lost[:3])}: never sent, {len(lost)} in all", way_out)
    for i, (kind, number, arrays) in enumerate(first.models[1:], start=1):
        where = f"sent to {kind} in round {number}"
        if text := other_form(start, arrays):
            return failed(f"{where}: {text}", "give each array back its dtype and shape")
        before = first.models[i - 1]
        replies = [
            reply["arrays"]
            for reply in first.replies
            if before[0] == reply["kind"] == "train" and reply["round"] == before[1]
        ]
        for name in sorted(buffers | counters):
            sent = [reply[name] for reply in replies if name in reply]
            if sent and (text := unlike(arrays[name], before[2][name], sent)):
                way_out = "average buffers, and keep the largest of counters; no momentum on either"
                return failed(f"{where}: {name} {text}", way_out)
    text = f"{len(start)} arrays: names, shapes and dtypes are kept"
    if beside := sorted(buffers | counters):
        text += f"; {len(beside)} buffers or counters ({beside[0]}, …) follow what clients sent"
    else:
        text += "; none is a buffer or counter"
    return passed(text)


def ends_alike(name: str, sent: str) -> bool:
    return f".{sent}".endswith(f".{name}") or f".{name}".endswith(f".{sent}")


def sort_of(sent: str, run: Outcome) -> str:
    """Return whether an array that is sent is trained, a buffer, or unknown."""
    sorts = {sort for name, (sort, _, _) in run.entries.items() if ends_alike(name, sent)}
    return sorts.pop() if len(sorts) == 1 else ""


def other_form(start: Arrays, arrays: Arrays) -> str:
    if start.keys() != arrays.keys():
        return f"other names: {', '.join(sorted(start.keys() ^ arrays.keys())[:3])}"
    for name, value in arrays.items():
        if (value.dtype, value.shape) != (start[name].dtype, start[name].shape):
            was = f"{start[name].dtype} {start[name].shape}"
            return f"{name} is {value.dtype} {value.shape}, and was {was}"
        if not np.isfinite(value).all() and np.isfinite(start[name]).all():
            return f"{name} holds NaN or infinity"
    return ""


def unlike(new: np.ndarray, old: np.ndarray, sent: list[np.ndarray]) -> str:
    """Return what is wrong with a buffer or counter after a round; empty: nothing."""
    low, high = np.min(sent, axis=0), np.max(sent, axis=0)
    room = 1e-5 * (np.abs(high) + np.abs(low)) if new.dtype.kind == "f" else 0
    if (new < low - room).any() or (new > high + room).any():
        return f"is {some(new)}, outside of what clients sent, {some(low)} to {some(high)}"
    if all((value != old).any() for value in sent) and (new == old).all():
        return f"is still {some(old)}, although every client moved it"
    return ""


def some(value: np.ndarray) -> str:
    return f"{value.ravel()[0]:.6g}"


def centralised(exam: Exam) -> Steps:
    """One client with all the data is centralised training."""
    app = exam.app
    about = app.exam.get("centralised")
    if not about:
        return not_asked('[tool.exam] centralised = "module:function", which trains without Flower')
    about = about if isinstance(about, dict) else {"function": about}
    settings = app.one_client | about.get("settings", {})
    case = exam.case("one-client", settings, nodes=1)
    central = exam.case("centralised", settings, nodes=1, central=about["function"])
    federated, alone = yield [case, central]
    if text := federated.error or alone.error:
        return failed(text, "let both train with the same settings")
    [(_, _, expected)] = alone.models
    sent = [reply["arrays"] for reply in federated.replies if reply["kind"] == "train"]
    sent += [arrays for kind, _, arrays in federated.models if kind == "evaluate"]
    start, (client, server) = federated.models[0][2], (sent[0], sent[-1])
    told = f"{about['function']} and one client"
    if parted(expected, client, start, ROUNDING) or parted(expected, server, start, ROUNDING):
        text = parted(expected, client, start) or f"averaged, {parted(expected, server, start)}"
        way_out = "the same first weights, order of examples, steps and seed in both"
        return failed(f"{told}: {text}", way_out)
    if text := parted(expected, client, start):
        return passed(f"{told}, after one round: the same but for rounding ({text})")
    how = "the average is, too" if not parted(expected, server, start) else "its average rounds"
    return passed(f"{told}, after one round: the same weights, bit for bit; {how}")
