"""Who a client is: the partition of the data that its node holds."""

from flwr.app import Context


def partition_id(context: Context) -> int:
    """Return the partition that this node was started with.

    Raises:
        RuntimeError: its node config does not say, or not properly.
    """
    node = context.node_config
    if not 0 <= int(node.get("partition-id", -1)) < int(node.get("num-partitions", 0)):
        raise RuntimeError(
            f"this SuperNode's node-config {dict(node)} does not say which partition it holds; "
            'start it with --node-config "partition-id=0 num-partitions=2"'
        )
    return int(node["partition-id"])
