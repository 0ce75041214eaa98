"""W&B writes a real offline run without an account, and is not imported when disabled."""

import subprocess
import sys
from dataclasses import replace

import pytest
from pytorch_example import tracking
from pytorch_example.config import Config
from pytorch_example.kit.run import Run

ENTRY = {
    "round": 1,
    "train_metrics": {"train_loss": 1.5},
    "evaluate_metrics_clientapp": {"eval_loss": 1.25, "eval_acc": 0.5, "personal_eval_acc": 0.75},
    "evaluate_metrics_serverapp": {"accuracy": 0.625, "loss": 1.125},
}


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_auto_without_a_login_is_a_real_offline_run(no_login, run_config, tmp_path, caplog):
    config = Config.from_run_config(run_config)
    run = Run(config, run_config)
    run.folder = tmp_path / "2026-01-31" / "12-00-00"
    run.folder.mkdir(parents=True)
    caplog.set_level("INFO")
    with tracking.tracker(config, run) as log_round:
        log_round(ENTRY)
    [file] = run.folder.glob("wandb/offline-run-*/*.wandb")
    assert file.stat().st_size > 0
    assert "no login found" in caplog.text
    assert f"wandb sync {file.parent}" in caplog.text


def test_a_run_has_one_id_of_its_own(run_config, tmp_path):
    """Runs of the same second in different folders differ; a resumed run keeps its id."""
    ids = []
    for folder in ("here", "there", "here"):
        run = Run(Config.from_run_config(run_config), run_config)
        run.folder = tmp_path / folder / "2026-01-31" / "12-00-00"
        run.folder.mkdir(parents=True, exist_ok=True)
        settings = replace(run.config, wandb_mode="offline")
        with tracking.tracker(settings, run) as log_round:
            log_round(ENTRY)
        files = run.folder.glob("wandb/offline-run-*/*.wandb")
        ids.append(max(files, key=lambda path: path.stat().st_mtime).stem)
    assert ids[0] == ids[2] != ids[1]


def test_names_say_who_measured():
    assert tracking.named_metrics(ENTRY) == {
        "train_loss": 1.5,
        "federated_evaluate_loss": 1.25,
        "federated_evaluate_accuracy": 0.5,
        "federated_evaluate_personal_accuracy": 0.75,
        "centralized_accuracy": 0.625,
        "centralized_loss": 1.125,
    }


def test_login_is_found_where_wandb_leaves_it(no_login, monkeypatch, tmp_path):
    assert not tracking.has_login()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    assert tracking.has_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com:8080")
    assert not tracking.has_login()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert tracking.has_login()


def test_login_without_a_network_is_offline(no_login, run_config, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    assert tracking.choose_mode(Config.from_run_config(run_config)) == "offline"
    assert "127.0.0.1 cannot be reached" in caplog.text


def test_disabled_does_not_import_wandb(run_config):
    script = (
        "import sys\n"
        "from pytorch_example import config, tracking\n"
        f"settings = config.Config.from_run_config({run_config | {'wandb.mode': 'disabled'}})\n"
        "with tracking.tracker(settings, None) as log_round: log_round({})\n"
        "assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
