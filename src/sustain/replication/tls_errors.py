"""What a failed TLS handshake means, in words for the people at both ends. No I/O.

Used by `tls`. The end that looks at a certificate has the reason from OpenSSL's verifier; the other end has an alert,
which says less: each gets one sentence and what to do. OpenSSL's names of alerts differ between its versions, so they
are looked for as parts. What is not in the tables is told as OpenSSL tells it.
"""

import ssl

from sustain.errors import AuthenticationFailed, ProtocolError, ReplicationError

_RENEW = "`sustain keys host` makes one; it is read again without a restart"
_CA = "both sides need certificates of one CA, and its file as --tls-ca"
_CLOCK = "check the clocks of both hosts, or wait"

# X509_V_ERR_…: what is wrong with the other side's certificate, what to do there
_VERIFY: dict[int, tuple[str, str]] = {
    9: ("is not valid yet", _CLOCK),
    10: ("has expired", f"renew it: {_RENEW}"),
    18: ("is not of a CA that is trusted here", _CA),
    19: ("is not of a CA that is trusted here", _CA),
    20: ("is not of a CA that is trusted here", _CA),
    21: ("is not of a CA that is trusted here", _CA),
    7: ("was not signed by the CA that is trusted here", _CA),
    23: ("was revoked", f"make another: {_RENEW}"),
    26: ("is not made for both ends of TLS (serverAuth and clientAuth)", f"make another: {_RENEW}"),
    62: (
        "is not for the name that was connected to",
        "connect to a name that is in it, or make another: sustain keys host NAME --address THAT",
    ),
    64: (
        "is not for the address that was connected to",
        "connect to an address that is in it, or make another: sustain keys host NAME --address THAT",
    ),
}
_ALERTS: tuple[tuple[str, str, str], ...] = (
    ("CERTIFICATE_EXPIRED", "the other side finds our certificate expired", f"renew it here: {_RENEW}"),
    ("UNKNOWN_CA", "the other side does not trust the CA of our certificate", _CA),
    (
        "BAD_CERTIFICATE",
        "the other side does not take our certificate: not valid yet, or not for the address it connects to",
        "its own message says which; check the clocks, and the addresses in the certificate (`sustain keys show`)",
    ),
    ("CERTIFICATE_REVOKED", "the other side finds our certificate revoked", f"make another: {_RENEW}"),
    ("UNSUPPORTED_CERTIFICATE", "the other side cannot use our certificate", f"make another: {_RENEW}"),
    ("CERTIFICATE_UNKNOWN", "the other side does not take our certificate", "its own message says why"),
    ("CERTIFICATE_REQUIRED", "the other side asks for a certificate, and got none", f"give it one: {_RENEW}"),
)
_NONE_SHOWN = "DID_NOT_RETURN_A_CERTIFICATE"
_OLD = ("UNSUPPORTED_PROTOCOL", "PROTOCOL_VERSION", "VERSION_TOO_LOW", "NO_PROTOCOLS_AVAILABLE")
_FOREIGN = (
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "HTTPS_PROXY_REQUEST",
    "UNEXPECTED_MESSAGE",
    "RECORD_LAYER",
)


def explain(error: ssl.SSLError, *, server: bool) -> ReplicationError:
    """`error` as the end that is the `server`, or the client, tells it. The peer is "it"."""
    if isinstance(error, ssl.SSLCertVerificationError):
        words, hint = _VERIFY.get(
            error.verify_code, (f"is refused: {error.verify_message}", f"make another: {_RENEW}")
        )
        return AuthenticationFailed(f"its certificate {words}", hint=hint)
    text = str(error).upper().replace(" ", "_")
    if _NONE_SHOWN in text:
        return AuthenticationFailed(
            "it has shown no certificate", hint=f"give that side --tls-cert and --tls-key; {_RENEW}"
        )
    if "ALERT" in text:
        for part, words, hint in _ALERTS:
            if part in text:
                return AuthenticationFailed(words, hint=hint)
    if any(part in text for part in _OLD):
        return ProtocolError(
            "it offers no TLS 1.3, and older ones are not spoken",
            hint="a Sustain peer offers it: check host and port, and OpenSSL there",
        )
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if any(part in text for part in _FOREIGN):
        return ProtocolError(
            f"what {'it' if server else 'the receiver'} sends is not TLS ({reason})",
            hint="check host and port; both sides need --tls-cert, --tls-key and --tls-ca",
        )
    return ProtocolError(
        f"TLS has failed: {reason}", hint="it is tried again; if it stays so, look at both ends"
    )
