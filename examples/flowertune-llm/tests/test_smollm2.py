"""The offline model is converted once, and again after a change of the code or a package."""

from pathlib import Path

from flowertune_llm import smollm2


def test_other_code_converts_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "find_gguf", Path)
    calls = []

    def older(gguf: Path, folder: Path) -> None:
        calls.append("older")
        folder.mkdir()

    def newer(gguf: Path, folder: Path) -> None:
        calls.append("newer")
        folder.mkdir()

    found = []
    for convert in (older, older, newer, older):
        monkeypatch.setattr(smollm2, "convert", convert)
        found.append(smollm2.model_folder())
    assert calls == ["older", "newer"]
    assert found[0] == found[1] == found[3] != found[2]
    assert all(folder.is_dir() for folder in found)
