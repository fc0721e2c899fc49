//! TLS towards relays (`wss://`): who is believed to be the relay's server.
//!
//! What a circuit carries is encrypted end to end anyway; TLS hides the client's id from the line, and passes where
//! only TLS passes. A certificate is accepted if the system's roots or Mozilla's vouch for it and its name, or if its
//! hash is pinned. A hash in the URL is the only one that is accepted there.

use std::io;
use std::sync::Arc;

use futures_rustls::TlsConnector;
use futures_rustls::rustls::client::WebPkiServerVerifier;
use futures_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use futures_rustls::rustls::crypto::{
    CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, ring, verify_tls13_signature,
};
use futures_rustls::rustls::pki_types::pem::PemObject;
use futures_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use futures_rustls::rustls::sign::SigningKey;
use futures_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use smol::net::TcpStream;

use super::Url;
use super::client::Options;
use crate::id::hex;
use crate::keys::sha256;
use crate::pool;
use crate::wire::BoxStream;

/// Where Debian, Alpine, Arch and Nix keep the system's roots.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// A larger file is no list of roots.
const SYSTEM_ROOTS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A TLS connection over `stream`; the error is for people.
pub(super) async fn wrap(stream: TcpStream, url: &Url, options: &Options) -> Result<BoxStream, String> {
    let name = ServerName::try_from(url.host.clone()).map_err(|_| "the host is no name".to_owned())?;
    let pins = match url.certificate {
        Some(pin) => Trust::Only(pin),
        None => Trust::Also(options.pins.clone()),
    };
    // Roots come from a file, and parsing them takes milliseconds.
    let config = pool::unblock(move || config(pins)).await.map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    stream.map(|stream| Box::new(stream) as BoxStream).map_err(|error| in_words(&error))
}

/// A TLS connection to a web server over `stream`: it has the certificate of this SHA-256, or roots and name vouch for it. The
/// error is for people.
pub(crate) async fn over_tls(
    stream: TcpStream,
    host: &str,
    certificate: Option<[u8; 32]>,
) -> Result<BoxStream, String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| "the host is no name".to_owned())?;
    let trust = certificate.map_or(Trust::Also(Vec::new()), Trust::Only);
    let config = pool::unblock(move || config(trust)).await.map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    stream.map(|stream| Box::new(stream) as BoxStream).map_err(|error| in_words(&error))
}

/// What is wrong with a server's certificate is said in our own words.
fn in_words(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(Error::General(words)) => words.clone(),
        _ => error.to_string(),
    }
}

/// What a client needs that takes the certificate of this SHA-256 and no other.
#[cfg(test)]
pub(crate) fn pinned(fingerprint: [u8; 32]) -> ClientConfig {
    config(Trust::Only(fingerprint)).expect("the provider has what TLS 1.3 needs")
}

enum Trust {
    /// This certificate and no other.
    Only([u8; 32]),
    /// What the roots vouch for, and these.
    Also(Vec<[u8; 32]>),
}

fn config(trust: Trust) -> Result<ClientConfig, Error> {
    let provider = Arc::new(provider());
    let (pins, roots) = match trust {
        Trust::Only(pin) => (vec![pin], None),
        Trust::Also(pins) => {
            let roots = Arc::new(roots());
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
            (pins, Some(verifier.map_err(|error| Error::General(error.to_string()))?))
        }
    };
    let verifier = Verifier { pins, roots, provider: Arc::clone(&provider) };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// ring, with the suites that every browser and server has, and without what reads private keys of every kind: that
/// would be a tenth of a megabyte of the program.
pub(crate) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![ring::kx_group::X25519, ring::kx_group::SECP256R1],
        signature_verification_algorithms: ring::default_provider().signature_verification_algorithms,
        secure_random: &Kernel,
        key_provider: &NoKeys,
    }
}

/// Randomness from the kernel.
#[derive(Debug)]
struct Kernel;

impl SecureRandom for Kernel {
    fn fill(&self, buf: &mut [u8]) -> Result<(), GetRandomFailed> {
        getrandom::fill(buf).map_err(|_| GetRandomFailed)
    }
}

/// Private keys by their own way only: a client proves itself inside, by its own id, and the dashboard hands its key over.
#[derive(Debug)]
struct NoKeys;

impl KeyProvider for NoKeys {
    fn load_private_key(&self, _: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        Err(Error::General("private keys are not read from files".into()))
    }
}

/// Mozilla's roots, and the system's where there are any.
fn roots() -> RootCertStore {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let is_small = std::fs::metadata(SYSTEM_ROOTS).is_ok_and(|meta| meta.len() <= SYSTEM_ROOTS_BYTES_MAX);
    if let (true, Ok(system)) = (is_small, CertificateDer::pem_file_iter(SYSTEM_ROOTS)) {
        roots.add_parsable_certificates(system.flatten());
    }
    roots
}

#[derive(Debug)]
struct Verifier {
    pins: Vec<[u8; 32]>,
    roots: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.pins.contains(&sha256(end_entity)) {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.roots {
            Some(roots) => {
                let verified =
                    roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
                verified.map_err(|why| {
                    let hash = hex(&sha256(end_entity));
                    Error::General(format!(
                        "nobody known here vouches for its certificate ({why}); if it is the right one, put #cert:{hash} \
                         behind the address"
                    ))
                })
            }
            None => Err(Error::General(
                "its certificate is not the one that #cert: names: it has changed, or somebody else answers there".into(),
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
