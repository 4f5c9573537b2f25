"""How this host proves to its peers who it is: a shared key, certificates, or both; and the files they come from.

Used by whoever listens or connects (`listener`, `dial`), and passed through by all between them and the command line.
With certificates the connection is TLS, both ways, and nothing else is needed. A key beside them says which of a CA's
hosts belong together, for a CA that has more hosts than one workload's. With neither, only the loopback interface is
served.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sustain.errors import ConfigError
from sustain.replication.auth import NO_KEY, load_key
from sustain.replication.tls import Tls, TlsFiles

HINT = "give both sides a --key-file, or certificates: --tls-cert, --tls-key, --tls-ca (`sustain keys`)"


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Credentials:
    """What is proved at the beginning of a connection."""

    key: bytes = NO_KEY
    tls: Tls | None = None

    @property
    def none(self) -> bool:
        """Whether nothing is proved, so that only this host may be talked to."""
        return not self.key and self.tls is None


NO_CREDENTIALS = Credentials()


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """Paths, None where there is none."""

    key: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None

    def load(self, report: Callable[[str], None] = _silent) -> Credentials:
        """Raises ConfigError. `report` takes a line for the operator, also later, when files have changed."""
        key = load_key(self.key) if self.key else NO_KEY
        if self.tls_cert and self.tls_key and self.tls_ca:
            return Credentials(key, Tls(TlsFiles(self.tls_cert, self.tls_key, self.tls_ca), report))
        if self.tls_cert or self.tls_key or self.tls_ca:
            missing = [option for option, name in self._tls().items() if not name]
            raise ConfigError(
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
                hint="the certificate, its key and the CA go together; `sustain keys` makes them",
            )
        return Credentials(key)

    def words(self) -> list[str]:
        """The options that name these files, for another verb."""
        named = {"--key-file": self.key} | self._tls()
        return [word for option, name in named.items() if name for word in (option, name)]

    def _tls(self) -> dict[str, str | None]:
        return {"--tls-cert": self.tls_cert, "--tls-key": self.tls_key, "--tls-ca": self.tls_ca}


NO_FILES = CredentialFiles()
