//! A host's certificate, key and CAs, ready for connections.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, Error, RootCertStore, ServerConfig, SupportedCipherSuite,
};

use crate::ALPN;
use crate::end::End;
use crate::fault::{Fault, LoadFault};

/// What both kinds of ends need.
#[derive(Debug)]
pub struct Identity {
    server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    chain: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Identity {
    /// From the contents of PEM files: the certificate with what leads to the CA, its key, the CAs that are trusted.
    pub fn load(certificate: &[u8], key: &[u8], ca: &[u8]) -> Result<Self, LoadFault> {
        let provider = provider();
        let roots = Arc::new(roots(ca)?);
        let (chain, key) = pair(certificate, key)?;
        let ca_fault = |e: &dyn std::fmt::Display| LoadFault::Ca(e.to_string());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| ca_fault(&e))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| ca_fault(&e))?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|e| pair_fault(&e))?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.enable_secret_extraction = true; // for `records`, which seals and opens with what was agreed on
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| ca_fault(&e))?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), key)
            .map_err(|e| pair_fault(&e))?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_secret_extraction = true;
        Ok(Self { server: Arc::new(server), client: Arc::new(client), chain, roots, verifier })
    }

    /// See that a peer with the same CA would take this certificate, at both ends of a connection; when it ends, in
    /// seconds since 1970.
    pub fn prove(&self) -> Result<u64, LoadFault> {
        let useless = |error: &Error| LoadFault::Useless(Fault::from(error));
        self.verify(UnixTime::now()).map_err(|e| useless(&e))?;
        // The verifier knows when it ends, and says so of one that has ended.
        let never = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX >> 1));
        match self.verify(never) {
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
                Ok(not_after.as_secs())
            }
            Err(error) => Err(useless(&error)),
            Ok(()) => Ok(u64::MAX >> 1),
        }
    }

    fn verify(&self, now: UnixTime) -> Result<(), Error> {
        let (first, rest) = self.chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let parsed = ParsedCertificate::try_from(first)?;
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, rest, now, algorithms.all)?;
        self.verifier.verify_client_cert(first, rest, now).map(|_| ())
    }

    /// The end of whoever was connected to.
    pub fn server(&self) -> Result<End, Fault> {
        End::server(self.server.clone())
    }

    /// The end of whoever connects to `host`, a name or an address, which the other side's certificate must have.
    pub fn client(&self, host: &str) -> Result<End, Fault> {
        End::client(self.client.clone(), host_name(host)?)
    }
}

/// `host` as a certificate can name it.
pub fn host_name(host: &str) -> Result<ServerName<'static>, Fault> {
    ServerName::try_from(host.to_owned()).map_err(|e| Fault::new("name", e.to_string()))
}

/// AES first, the one with the fewest rounds: the processors that this runs on have instructions for it.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    let fastest = |suite: &SupportedCipherSuite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(fastest);
    Arc::new(provider)
}

fn roots(pem: &[u8]) -> Result<RootCertStore, LoadFault> {
    let mut roots = RootCertStore::empty();
    for found in CertificateDer::pem_slice_iter(pem) {
        let found = found.map_err(|e| LoadFault::Ca(e.to_string()))?;
        roots.add(found).map_err(|e| LoadFault::Ca(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(LoadFault::Ca("no certificate is in it".into()));
    }
    Ok(roots)
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn pair(certificate: &[u8], key: &[u8]) -> Result<Pair, LoadFault> {
    let chain = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| LoadFault::Pair(e.to_string()))?;
    if chain.is_empty() {
        return Err(LoadFault::Pair("no certificate is in the first".into()));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| LoadFault::Pair(format!("the key: {e}")))?;
    Ok((chain, key))
}

fn pair_fault(error: &Error) -> LoadFault {
    LoadFault::Pair(match error {
        Error::InconsistentKeys(_) => "they do not belong together".into(),
        other => other.to_string(),
    })
}
