//! What went wrong, as a code for whoever explains it and words for what the code does not say.

use rustls::{AlertDescription, CertificateError, Error};

/// Why a handshake or a session failed.
///
/// `code` is one of: `expired`, `early` (not valid yet), `issuer`, `signature`, `revoked`, `purpose`, `name`, `address`,
/// `certificate` (anything else about the other side's certificate), `none-shown`, `alert` (it ended the session, and
/// `words` is the alert's name), `version`, `alpn`, `endless`, `foreign` (not TLS), `broken`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// For tables.
    pub code: &'static str,
    /// For people, where the code is not enough.
    pub words: String,
}

impl Fault {
    pub(crate) fn new(code: &'static str, words: impl Into<String>) -> Self {
        Self { code, words: words.into() }
    }
}

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        let code = match error {
            Error::InvalidCertificate(found) => of_certificate(found),
            Error::NoCertificatesPresented => "none-shown",
            Error::AlertReceived(AlertDescription::ProtocolVersion) | Error::PeerIncompatible(_) => "version",
            Error::AlertReceived(AlertDescription::NoApplicationProtocol) | Error::NoApplicationProtocol => {
                "alpn"
            }
            Error::AlertReceived(alert) => return Self::new("alert", format!("{alert:?}")),
            Error::InvalidMessage(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. } => "foreign",
            _ => "broken",
        };
        Self::new(code, error.to_string())
    }
}

fn of_certificate(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "early",
        CertificateError::UnknownIssuer => "issuer",
        CertificateError::BadSignature => "signature",
        CertificateError::Revoked => "revoked",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => "purpose",
        CertificateError::NotValidForName => "name",
        CertificateError::NotValidForNameContext { expected, .. } => match expected {
            rustls::pki_types::ServerName::IpAddress(_) => "address",
            _ => "name",
        },
        _ => "certificate",
    }
}

/// Why files cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadFault {
    /// The file of CAs.
    Ca(String),
    /// The certificate, or its key.
    Pair(String),
    /// The certificate is one that no peer with the same CA would take.
    Useless(Fault),
}
