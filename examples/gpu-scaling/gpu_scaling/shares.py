"""Rows of each client: divided, by a column's values, or drawn by the client."""

import numpy as np

Shares = tuple[np.ndarray, np.ndarray]  # all rows, in the order of groups; where each group ends


def evenly(rows: np.ndarray, clients: int) -> Shares:
    """Divide rows, which are in a random order; the first clients get one more if need be."""
    each, more = divmod(len(rows), clients)
    numbers = np.arange(1, clients + 1)
    return rows, numbers * each + np.minimum(numbers, more)


def by_value(values: np.ndarray, groups: int) -> Shares:
    """Group rows by a column's values, sorted; of the values the first `groups`."""
    rows = np.argsort(values, kind="stable")
    _, counts = np.unique(values, return_counts=True)
    ends = np.cumsum(counts)[:groups]
    return rows[: ends[-1]], ends


def drawn(classes: Shares, count: int, alpha: float, seed: tuple[int, ...]) -> np.ndarray:
    """Return the rows that a client draws for itself, whatever others draw.

    Args:
        classes: rows by their class.
        count: of rows.
        alpha: of the Dirichlet distribution from which the client's shares of the classes come
            (Hsu et al. 2019, https://arxiv.org/abs/1909.06335); 0 for any rows alike. A class of
            which it wants more than there are gives some rows twice.
        seed: of the client.
    """
    rows, ends = classes
    generator = np.random.default_rng(seed)
    if not alpha:
        return rows[generator.choice(len(rows), count, replace=False)]
    sizes = np.diff(ends, prepend=0)
    wanted = generator.multinomial(count, generator.dirichlet(np.full(len(ends), alpha)))
    picks = [
        end - size + generator.choice(size, want, replace=bool(want > size))
        for end, size, want in zip(ends, sizes, wanted, strict=True)
        if want
    ]
    return rows[generator.permutation(np.concatenate(picks))]
