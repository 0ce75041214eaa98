# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""The app in one process: messages are copied, exceptions become error replies."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from ..in_process import InProcessGrid, make_nodes, threads_of_a_client
from ..replies import to_numpy, to_record


def grid(answer, count: int = 2) -> InProcessGrid:
    app = ClientApp()
    app.train()(answer)
    return InProcessGrid(app, make_nodes(count, 7, {"a": 1}), 7, threads=1)


def ask(grid: InProcessGrid) -> list[Message]:
    content = RecordDict({"arrays": to_record({"w": np.zeros(2)})})
    return grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])


def test_clients_cannot_change_what_others_are_sent():
    def answer(message, context):
        arrays = message.content.pop("arrays")
        assert to_numpy(arrays)["w"].tolist() == [0, 0]
        return Message(RecordDict({"arrays": to_record({"w": np.ones(2)})}), reply_to=message)

    replies = ask(grid(answer))
    assert [reply.content["arrays"]["w"].numpy().tolist() for reply in replies] == [[1, 1]] * 2


def test_state_stays_with_its_node_and_replies_name_their_message():
    def answer(message, context):
        seen = context.state.get("seen", ArrayRecord())
        context.state["seen"] = to_record({str(len(seen)): np.zeros(1)} | to_numpy(seen))
        return Message(RecordDict({"seen": context.state["seen"]}), reply_to=message)

    nodes = grid(answer)
    for count in (1, 2):
        replies = ask(nodes)
        assert [len(reply.content["seen"]) for reply in replies] == [count] * 2
        assert {reply.metadata.src_node_id for reply in replies} == set(nodes.get_node_ids())


def test_what_a_client_raises_is_an_error_reply():
    def answer(message, context):
        if context.node_config["partition-id"] == 0:
            raise OSError("the disk is full")
        return Message(RecordDict(), reply_to=message)

    broken, whole = ask(grid(answer))
    assert "the disk is full" in broken.error.reason
    assert whole.has_content()


def test_ctrl_c_is_no_reply():
    def answer(message, context):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(grid(answer))


def test_a_client_has_its_federations_threads():
    def answer(message, context):
        threads = to_record({"count": np.array(torch.get_num_threads())})
        return Message(RecordDict({"threads": threads}), reply_to=message)

    before = torch.get_num_threads()
    assert [int(r.content["threads"]["count"].numpy()) for r in ask(grid(answer))] == [1, 1]
    assert torch.get_num_threads() == before
    options = {"backend": {"client-resources": {"num-cpus": 3}}}
    assert threads_of_a_client({"federations": {"default": "a", "a": {"options": options}}}) == 3
    assert threads_of_a_client({}) == 1
