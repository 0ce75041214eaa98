# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Parts of a federation that can be tested without starting one."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from .. import processes
from ..federation import Federation, FederationError
from ..federation.__main__ import main, settings
from ..federation.certificates import make_certificates, make_node_key, public_key_path
from ..federation.federation import modules
from ..federation.releases import RELEASE, Newest, Pinned
from ..settings import as_run_config

APP = """
[project]
name = "an-app"
dependencies = ["flwr[simulation]==1.25.0", "NumPy>=1"]
[tool.flwr.app.components]
serverapp = "an_app:app"
[tool.flwr.app.config]
min-replies = 2
model.name = "small"
"""

posix_only = pytest.mark.skipif(os.name == "nt", reason="POSIX: file modes, groups of processes")


@pytest.fixture
def app(tmp_path):
    folder = tmp_path / "my app"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(APP)
    (folder / "offline.toml").write_text('model.name = "tiny"\n')
    return folder


def mode(path):
    return path.stat().st_mode & 0o777


@posix_only
def test_certificates_are_valid_and_keys_private(tmp_path):
    folder, key = tmp_path / "certificates", tmp_path / "keys" / "site-a"
    make_certificates(folder, ["server.example.org", "127.0.0.1"])
    make_node_key(key)
    assert [mode(path) for path in (folder, key.parent)] == [0o700] * 2
    assert [mode(path) for path in (folder / "ca.key", folder / "server.key", key)] == [0o600] * 3
    ca, server = (
        x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())
        for name in ("ca", "server")
    )
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["server.example.org", "127.0.0.1"]
    private = serialization.load_ssh_private_key(key.read_bytes(), None)
    public = serialization.load_ssh_public_key(public_key_path(key).read_bytes())
    assert private.public_key() == public
    assert public.curve.name == "secp384r1"


@posix_only
@pytest.mark.parametrize("release", [Pinned(), Newest()])
def test_federation_is_where_flower_looks_for_it(release, app, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[Federation.__module__], "RELEASE", release)
    (app / "outputs").mkdir()
    for _ in range(2):  # the second time, with the files of the first
        federation = Federation(app, tmp_path / "a [folder]", database=False)
    assert not (federation.app / "outputs").exists()
    found = tomllib.loads((federation.app / "pyproject.toml").read_text())["tool"]["flwr"]
    if type(release) is Newest:
        found["federations"] = tomllib.loads((federation.home("cli") / "config.toml").read_text())
        found["federations"] = found["federations"]["superlink"]
    assert found["federations"]["this-machine"] == {
        "address": federation.apis["control"],
        "root-certificates": str(federation.certificates / "ca.crt"),
    }
    assert (app / "pyproject.toml").read_text() == APP
    assert len(set(federation.apis.values())) == (1 if type(release) is Newest else 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere holds no pyproject.toml"),
        (["plain"], "pyproject.toml is not that of a Flower app"),
        (["my app", "--num-supernodes", "0"], "--num-supernodes 0: at least 1 is needed"),
        (["my app", "--num-supernodes", "1"], "this run waits for min-replies = 2"),
        (["my app", "--folder", "my app/x"], "is inside the app"),
        (["my app", "--folder", "plain"], "holds files that are not a federation's"),
        (["my app", "--run-config", "no.toml"], "--run-config 'no.toml' cannot be read"),
        (["my app", "--run-config", "a=b"], "--run-config 'a=b' cannot be read"),
    ],
)
def test_bad_arguments_are_named(words, message, app, tmp_path, monkeypatch, capsys):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "pyproject.toml").write_text("[project]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_settings_are_those_given_over_offline_toml(app):
    changes = settings(app, True, "min-replies=1 lr=0.1")
    assert changes == {"model.name": "tiny", "min-replies": 1, "lr": 0.1}
    assert as_run_config(changes) == 'model.name="tiny" min-replies=1 lr=0.1'


def test_modules_of_the_dependencies_are_found(app):
    found = modules(app)
    assert {"flwr", "numpy"} <= set(found)
    assert "cryptography" not in found


@posix_only
def test_part_that_ends_at_its_start_is_named_and_nothing_is_left(app, tmp_path):
    federation = Federation(app, tmp_path / "federation", secure=False, verbose=False)
    parent = "import subprocess; subprocess.Popen(['sleep', '100']); print('why', flush=True)"
    part = federation.start("superlink", [sys.executable, "-c", parent])
    with pytest.raises(FederationError, match=r"superlink ended; .*superlink\.log ends with\nwhy"):
        federation.wait([part], lambda _: False)
    assert part.signal(0)
    federation.stop()
    assert not part.signal(0)


@posix_only
def test_process_ends_with_its_parent(tmp_path):
    child = (
        f"import os, runpy, time; f = runpy.run_path({processes.__file__!r})['end_with_parent']; "
    )
    child += "f(os.getppid()); print('up', os.getpid(), flush=True); time.sleep(100)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("up ")
        began = time.monotonic()
        process.send_signal(signal.SIGKILL)
        assert process.stdout.read() == ""  # closed by the end of the child
        assert time.monotonic() - began < 10


@pytest.mark.skipif(type(RELEASE) is Newest, reason="mended in the newest Flower")
@pytest.mark.parametrize("kind", ["InMemoryLinkState", "SqliteLinkState"])
def test_content_that_is_still_on_its_way_is_no_error(kind):
    from flwr.server.superlink import linkstate
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.superlink.federation import NoOpFederationManager

    from ..federation.superlink import without_empty

    parts = (NoOpFederationManager(), ObjectStoreFactory().store())
    kind = getattr(linkstate, kind)
    state = kind(*([":memory:"] if kind is linkstate.SqliteLinkState else []), *parts)
    nothing = {"bytes_sent": 0, "bytes_recv": 0}
    with pytest.raises(ValueError, match="cannot be zero"):  # once this fails, the mending can go
        state.store_traffic(1, **nothing)
    mended = without_empty(kind.store_traffic)
    mended(state, 1, **nothing)
    with pytest.raises(ValueError, match="Negative traffic"):
        mended(state, 1, bytes_sent=-1, bytes_recv=0)


@posix_only
def test_warm_clientapp_is_forked_and_else_starts_as_ever(tmp_path):
    """A shell stands in for the SuperNode; it asks twice, the second time without the server."""
    warm = Path(__file__).parents[1] / "federation" / "warm_clientapp.py"
    asks = "flwr-clientapp --help; kill $(pgrep -P $$ -f warm_clientapp); sleep 0.3; "
    asks += "flwr-clientapp --help; echo done"
    temporary = tmp_path / "a folder" / ("x" * 100)  # too long for a socket's path
    temporary.mkdir(parents=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-P", warm, "--preload", "json,no_such_module", "sh", "-c", asks],
        env=os.environ | {"TMPDIR": str(temporary), "PATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.count("usage: flwr-clientapp") == 2, done.stderr
    assert done.stdout.endswith("done\n")
    assert list(temporary.iterdir()) == []
