"""The whole app before its exam: bad clients, stops at any moment, seeds, settings, what leaks."""

from gpu_scaling.kit.testing import passes_the_exam, posix_only


@posix_only
def test_it_passes(tmp_path):
    passes_the_exam(tmp_path)
