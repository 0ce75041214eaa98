"""Server momentum: the global model rolls on towards the clients' averages."""

from vit_finetune.checkpoint import Arrays


def step(
    model: Arrays, average: Arrays, velocities: Arrays, momentum: float, learning_rate: float = 1.0
) -> Arrays:
    """Return the model, moved towards the average of the clients' models (Hsu et al. 2019).

    velocity = momentum * velocity + (average - model)
    model    = model + learning_rate * velocity

    Source: https://arxiv.org/abs/1909.06335

    Args:
        model, average: arrays of the same names and shapes.
        velocities: of the round before, empty at first; filled with this round's.
        momentum: in [0, 1); 0 is plain FedAvg.
        learning_rate: the server's; at 1 and without momentum the result is the average.
    """
    moved = {}
    for name, value in model.items():
        velocity = average[name] - value
        if name in velocities:
            velocity += momentum * velocities[name]
        velocities[name] = velocity
        moved[name] = (value + learning_rate * velocity).astype(value.dtype)
    return moved
