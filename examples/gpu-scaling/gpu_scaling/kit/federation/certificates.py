# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Certificates and keys of a federation: its own CA, a server certificate, a key for each node.

Elliptic curve P-384 throughout, which is what Flower's authentication of SuperNodes asks for.
Private keys are readable by their owner alone.
"""

import argparse
import datetime
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_DAYS = 365
NAMES = ("localhost", "127.0.0.1", "::1")


def make_certificates(folder: Path, names: Iterable[str] = NAMES) -> None:
    """Write ca.crt, ca.key, server.crt and server.key into a new folder.

    Args:
        folder: created, readable by its owner alone.
        names: host names and addresses under which clients reach the server.
    """
    folder.mkdir(mode=0o700, parents=True)
    ca_key, server_key = (
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP384R1()),
    )
    ca_name = common_name("Federation CA")
    ca = (
        certificate(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False)
        .sign(ca_key, hashes.SHA384())
    )
    server = (
        certificate(common_name("SuperLink"), ca_name, server_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False
        )
        .sign(ca_key, hashes.SHA384())
    )
    for name, made, key in (("ca", ca, ca_key), ("server", server, server_key)):
        (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        write_private(folder / f"{name}.key", key, serialization.PrivateFormat.PKCS8)


def make_node_key(path: Path) -> None:
    """Write a SuperNode's private key to `path`, and its public key to `path` with `.pub` added."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(path, key, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    with public_key_path(path).open("xb") as file:
        file.write(public)


def public_key_path(path: Path) -> Path:
    """Return the path of the public key that belongs to a private key: `.pub` is added."""
    return path.with_name(f"{path.name}.pub")


def write_private(
    path: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat
) -> None:
    content = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks differ a little
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("server", help="ca.crt, ca.key, server.crt and server.key")
    server.add_argument("path", type=Path, help="a new folder for them")
    server.add_argument(
        "--name", action="append", help="how clients reach the server; several times for several"
    )
    node = commands.add_parser("node", help="a SuperNode's private key, and its public key")
    node.add_argument("path", type=Path, help="of the private key; .pub is added for the other")
    arguments = parser.parse_args()
    for path in (arguments.path, public_key_path(arguments.path)):
        if path.exists():
            parser.error(f"{path} exists and is left as it is; name another path")
    if arguments.command == "server":
        make_certificates(arguments.path, arguments.name or NAMES)
    else:
        make_node_key(arguments.path)
    print(arguments.path.resolve())


if __name__ == "__main__":
    main()
