# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""The tests of the kit, on an app of a few numbers."""

from ..in_process import sign_messages

sign_messages(1)  # tests make messages where no run does
