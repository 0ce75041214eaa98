# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""The questions of an exam, in their order. Each is a function: its docstring is the question."""

from ..exam import Question
from .clients import bad_client, too_few
from .data import cache, held_out, leaves
from .model import centralised, keeps_model
from .outside import bundle, engines, settings
from .rounds import ends, order, repeats, resumes

QUESTIONS: dict[str, Question] = {
    question.__name__.replace("_", "-"): question
    for question in (
        *(ends, repeats, resumes, bad_client, too_few, order),
        *(centralised, keeps_model, held_out, leaves, cache),
        *(settings, bundle, engines),
    )
}
