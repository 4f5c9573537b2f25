"""The options by which verbs are given a key or certificates. Used by every verb that connects or listens."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sustain.replication.credentials import CredentialFiles, Credentials


def add_credentials(parser: argparse.ArgumentParser) -> None:
    """Give a verb `--key-file`, `--tls-cert`, `--tls-key`, `--tls-ca`."""
    who = parser.add_argument_group(
        "who may connect (without a key or certificates: this host alone)",
        "certificates that were replaced are used from the next connection on; `sustain keys` makes them",
    )
    who.add_argument(
        "--key-file", metavar="FILE", help="a key that both sides of tcp:// share (closed networks)"
    )
    who.add_argument(
        "--tls-cert", metavar="FILE", help="this host's certificate: TLS 1.3, both sides show one"
    )
    who.add_argument("--tls-key", metavar="FILE", help="the certificate's key")
    who.add_argument("--tls-ca", metavar="FILE", help="the CA that the other side's certificate must be of")


def files_of(args: argparse.Namespace) -> "CredentialFiles":
    """The files that were named."""
    from sustain.replication.credentials import CredentialFiles

    return CredentialFiles(args.key_file, args.tls_cert, args.tls_key, args.tls_ca)


def load(args: argparse.Namespace, say: Callable[[str], None]) -> "Credentials":
    """What they hold. `say` is told, now and later, what the operator should know. Raises ConfigError."""
    return files_of(args).load(say)
