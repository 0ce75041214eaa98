# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""An exam for an app: does it resume, repeat, survive a bad client, keep its data to itself?

    python -m <package>.kit.exam

Each question is a function; its verdict says what was seen and, where it failed, the way out. Runs
are made in forks of this process, in folders of their own: nothing in the app's folder changes.

    app         what an app says of itself: its settings, and the table [tool.exam]
    runs        runs of the app, each in a process of its own
    witness     what sits between server and clients in a run: notes what passes, makes faults
    inputs      which examples a model saw, and what functions were called
    results     what two runs have to have in common
    questions   one module for each kind of them
    report      the table, and exam.json
"""
