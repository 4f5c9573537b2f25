"""What a failed TLS handshake means, in words for the people at both ends. No I/O.

Used by `tls`. The end that looks at a certificate has the verifier's reason; the other end has an alert, which says
less: each gets one sentence and what to do. What is not in the tables is told as the native module tells it.
"""

from sustain.errors import AuthenticationFailed, ProtocolError, ReplicationError

_RENEW = "`sustain keys host` makes one; it is read again without a restart"
_CA = "both sides need certificates of one CA, and its file as --tls-ca"
_CLOCK = "check the clocks of both hosts, or wait"
_THREE = "--tls-cert, --tls-key and --tls-ca"


class TlsFault(Exception):
    """Raised by the native module: a code for the tables below, and words for what it does not say."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(code, words)
        self.code = code
        self.words = words


# What is wrong with the other side's certificate, what to do there.
_CERTIFICATE: dict[str, tuple[str, str]] = {
    "early": ("is not valid yet", _CLOCK),
    "expired": ("has expired", f"renew it: {_RENEW}"),
    "issuer": ("is not of a CA that is trusted here", _CA),
    "signature": ("was not signed by the CA that is trusted here", _CA),
    "revoked": ("was revoked", f"make another: {_RENEW}"),
    "purpose": ("is not made for both ends of TLS (serverAuth and clientAuth)", f"make another: {_RENEW}"),
    "name": (
        "is not for the name that was connected to",
        "connect to a name that is in it, or make another: sustain keys host NAME --address THAT",
    ),
    "address": (
        "is not for the address that was connected to",
        "connect to an address that is in it, or make another: sustain keys host NAME --address THAT",
    ),
}
# Alerts by their names in RFC 8446, without underscores. Other peers' TLS may use another for the same.
_ALERTS: dict[str, tuple[str, str]] = {
    "CertificateExpired": (
        "the other side finds our certificate expired, or not valid yet",
        f"check the clocks, or renew it here: {_RENEW}",
    ),
    "UnknownCA": ("the other side does not trust the CA of our certificate", _CA),
    "BadCertificate": (
        "the other side does not take our certificate: not valid yet, or not for the address it connects to",
        "its own message says which; check the clocks, and the addresses in the certificate (`sustain keys show`)",
    ),
    "CertificateRevoked": ("the other side finds our certificate revoked", f"make another: {_RENEW}"),
    "UnsupportedCertificate": ("the other side cannot use our certificate", f"make another: {_RENEW}"),
    "CertificateUnknown": ("the other side does not take our certificate", "its own message says why"),
    "DecryptError": ("the other side does not believe the signature of our certificate", _CA),
    "AccessDenied": ("the other side does not take our certificate", "its own message says why"),
    "CertificateRequired": (
        "the other side asks for a certificate, and got none",
        f"give it one: {_RENEW}",
    ),
}


def explain(fault: TlsFault, *, server: bool) -> ReplicationError:
    """`fault` as the end that is the `server`, or the client, tells it. The peer is "it"."""
    if fault.code in _CERTIFICATE:
        words, hint = _CERTIFICATE[fault.code]
        return AuthenticationFailed(f"its certificate {words}", hint=hint)
    if fault.code == "certificate":
        return AuthenticationFailed(
            f"its certificate is refused: {fault.words}", hint=f"make another: {_RENEW}"
        )
    if fault.code == "none-shown":
        return AuthenticationFailed(
            "it has shown no certificate", hint=f"give that side --tls-cert and --tls-key; {_RENEW}"
        )
    if fault.code == "alert" and fault.words in _ALERTS:
        words, hint = _ALERTS[fault.words]
        return AuthenticationFailed(words, hint=hint)
    return _protocol(fault, server)


def _protocol(fault: TlsFault, server: bool) -> ProtocolError:
    if fault.code == "plain" and server:
        return ProtocolError(
            "it does not speak TLS, which this host asks for",
            hint="give it a certificate: --tls-cert, --tls-key, --tls-ca (`sustain keys` makes them)",
        )
    if fault.code == "plain":
        return ProtocolError(
            "it does not speak TLS, and this host does",
            hint=f"start `sustain receive` there with {_THREE}; and check the port",
        )
    if fault.code == "endless":
        return ProtocolError("a handshake without end", hint="the other side is not a Sustain peer")
    if fault.code == "alpn":
        return ProtocolError(
            "it speaks TLS, but not for Sustain", hint="check host and port: is that `sustain receive`?"
        )
    if fault.code == "version":
        return ProtocolError(
            f"it offers no TLS 1.3 that is spoken here, and older ones are not spoken ({fault.words})",
            hint="a Sustain peer offers it: check host and port, and which TLS is there",
        )
    if fault.code == "foreign":
        return ProtocolError(
            f"what {'it' if server else 'the receiver'} sends is not TLS ({fault.words})",
            hint=f"check host and port; both sides need {_THREE}",
        )
    reason = f"alert {fault.words}" if fault.code == "alert" else fault.words
    return ProtocolError(
        f"TLS has failed: {reason}", hint="it is tried again; if it stays so, look at both ends"
    )
