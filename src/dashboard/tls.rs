//! TLS at the front door, with a certificate that the cell makes itself.
//!
//! Nobody vouches for it: who opens the dashboard over TLS for the first time compares its fingerprint with the one that
//! stands beside the set-up code. The certificate stays for as long as it can, addresses of this machine may change, so
//! that browsers which were told to trust it go on to do so. It is made anew, with the same key, a month before its end,
//! and when a name is given to the cell that it does not have.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_rustls::TlsAcceptor;
use futures_rustls::rustls::crypto::ring::sign::any_ecdsa_type;
use futures_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use futures_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use futures_rustls::rustls::{ServerConfig, version};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

use crate::keys::{random, sha256};
use crate::relay::tls::provider;
use crate::vault::write_whole;

/// The key, as PKCS#8.
const KEY_FILE: &str = "tls.key";
/// The certificate, as DER.
const CERTIFICATE_FILE: &str = "tls.crt";
/// Larger files are none of these.
const FILE_BYTES_MAX: u64 = 64 * 1024;
const DAY_S: u64 = 86_400;
/// Apple's systems take no certificate that lasts longer than 825 days.
const LIFE_DAYS: u64 = 800;
/// It is made anew when it has less left.
const RENEW_DAYS: u64 = 30;
/// Clocks before 2025 are not set yet.
const PLAUSIBLE_S: u64 = 1_735_689_600;
/// Names of one certificate.
const NAMES_MAX: usize = 64;

/// What the door needs to speak TLS.
pub(crate) struct Tls {
    /// Does handshakes.
    pub acceptor: TlsAcceptor,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
}

impl Tls {
    /// Reads key and certificate in `folder`, or makes them. `names` are those that it must have, `addresses` those that
    /// it has if it is made anew; `now` in Unix seconds. Touches files.
    pub(crate) fn open(
        folder: &Path,
        title: &str,
        names: &[String],
        addresses: &[IpAddr],
        now: u64,
    ) -> io::Result<Self> {
        let now = now.max(PLAUSIBLE_S);
        let (key_path, certificate_path) = (folder.join(KEY_FILE), folder.join(CERTIFICATE_FILE));
        let key = match read(&key_path)?.filter(|key| pair(key).is_ok()) {
            Some(key) => key,
            None => {
                let made =
                    EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
                        .map_err(|_| io::Error::other("no key could be made"))?;
                write_whole(&key_path, made.as_ref())?;
                made.as_ref().to_vec()
            }
        };
        let pair = pair(&key)?;
        let names = names_of(names);
        let known = read(&certificate_path)?.filter(|known| is_good(known, &pair, &names, now));
        let certificate = match known {
            Some(known) => known,
            None => {
                let made = Draft {
                    title,
                    names: &names,
                    addresses,
                    from: now - DAY_S,
                    until: now + LIFE_DAYS * DAY_S,
                };
                let made = made.sign(&pair)?;
                write_whole(&certificate_path, &made)?;
                made
            }
        };
        let fingerprint = sha256(&certificate);
        let config = config(certificate, key).map_err(io::Error::other)?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), fingerprint })
    }
}

fn read(path: &PathBuf) -> io::Result<Option<Vec<u8>>> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() <= FILE_BYTES_MAX => fs::read(path).map(Some),
        Ok(_) => Ok(None),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(why),
    }
}

fn pair(key: &[u8]) -> io::Result<EcdsaKeyPair> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key, &SystemRandom::new())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the key is damaged"))
}

/// TLS 1.3 only, with the suites that every browser has.
fn config(certificate: Vec<u8>, key: Vec<u8>) -> Result<ServerConfig, futures_rustls::rustls::Error> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    let certified = CertifiedKey::new(vec![CertificateDer::from(certificate)], any_ecdsa_type(&key)?);
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Names that may stand in a certificate, each once.
fn names_of(names: &[String]) -> Vec<String> {
    let is_name = |name: &String| {
        (1..=253).contains(&name.len())
            && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._".contains(&c))
            && name.parse::<IpAddr>().is_err()
    };
    let mut plain: Vec<String> = Vec::new();
    for name in names.iter().map(|name| name.trim().trim_end_matches('.').to_ascii_lowercase()) {
        if is_name(&name) && !plain.contains(&name) && plain.len() < NAMES_MAX {
            plain.push(name);
        }
    }
    plain
}

/// Whether a certificate that we made may be used on: for this key, with all of these names, and for a while yet.
fn is_good(certificate: &[u8], pair: &EcdsaKeyPair, names: &[String], now: u64) -> bool {
    let has = |wanted: &[u8]| certificate.windows(wanted.len()).any(|part| part == wanted);
    // Only what `sign` makes is looked at: it is found again as it was written.
    let has_names = names.iter().all(|name| has(&der(0x82, name.as_bytes())));
    let until = validity_of(certificate);
    let lasts = until.is_some_and(|(from, until)| from <= now && now + RENEW_DAYS * DAY_S < until);
    lasts && has_names && has(pair.public_key().as_ref())
}

/// From when until when, in Unix seconds.
fn validity_of(certificate: &[u8]) -> Option<(u64, u64)> {
    // Two times of 13 letters one after the other in a sequence.
    let at = certificate.windows(4).position(|head| head == [0x30, 30, 0x17, 13])?;
    let time = |at: usize| seconds(std::str::from_utf8(certificate.get(at..at + 13)?).ok()?);
    Some((time(at + 4)?, time(at + 19)?))
}

/// `261123211011Z`, until 2049.
fn utc_time(seconds: u64) -> String {
    let text = crate::logger::time_utc(seconds);
    text.chars().skip(2).filter(|c| c.is_ascii_digit() || *c == 'Z').collect()
}

fn seconds(text: &str) -> Option<u64> {
    let number = |at: usize| text.get(at..at + 2)?.parse::<u64>().ok();
    let (year, month, day) = (2000 + number(0)?, number(2)?, number(4)?);
    // Days from a date (Howard Hinnant), the year beginning in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day.checked_sub(1)? - 719_468;
    Some(days * DAY_S + number(6)? * 3600 + number(8)? * 60 + number(10)?)
}

/// A certificate that is not signed yet.
struct Draft<'a> {
    title: &'a str,
    names: &'a [String],
    addresses: &'a [IpAddr],
    from: u64,
    until: u64,
}

/// A value with its tag and length (X.690).
fn der(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut all = vec![tag];
    match value.len() {
        len @ 0..=127 => all.push(len as u8),
        len @ 128..=255 => all.extend([0x81, len as u8]),
        len => all.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    all.extend_from_slice(value);
    all
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    der(0x30, &parts.concat())
}

/// Object identifiers, as they are written.
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const PRIME256V1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const KEY_ID: &[u8] = &[0x55, 0x1d, 0x0e];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];

fn oid(bytes: &[u8]) -> Vec<u8> {
    der(0x06, bytes)
}

fn bits(bytes: &[u8], unused: u8) -> Vec<u8> {
    der(0x03, &[&[unused], bytes].concat())
}

fn extension(id: &[u8], is_critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if is_critical { der(0x01, &[0xff]) } else { Vec::new() };
    sequence(&[oid(id), critical, der(0x04, value)])
}

impl Draft<'_> {
    /// The certificate (RFC 5280), signed by its own key.
    fn sign(&self, pair: &EcdsaKeyPair) -> io::Result<Vec<u8>> {
        let algorithm = sequence(&[oid(ECDSA_WITH_SHA256)]);
        let title: String = self.title.chars().filter(|c| !c.is_control()).take(40).collect();
        let title = if title.trim().is_empty() { "Grove".to_owned() } else { format!("Grove: {title}") };
        // At most 64 characters (X.520); bytes are counted by some.
        let mut end = title.len().min(64);
        while !title.is_char_boundary(end) {
            end -= 1;
        }
        let name =
            sequence(&[der(0x31, &sequence(&[oid(COMMON_NAME), der(0x0c, &title.as_bytes()[..end])]))]);
        let time = |seconds| der(0x17, utc_time(seconds).as_bytes());
        let mut serial = random::<16>();
        // Positive, and not shorter than it is.
        serial[0] = serial[0] & 0x7f | 0x40;
        let key = pair.public_key().as_ref();
        let names = self.names.iter().map(|name| der(0x82, name.as_bytes()));
        let addresses = self.addresses.iter().take(NAMES_MAX).map(|address| match address {
            IpAddr::V4(v4) => der(0x87, &v4.octets()),
            IpAddr::V6(v6) => der(0x87, &v6.octets()),
        });
        let alternatives: Vec<Vec<u8>> = names.chain(addresses).collect();
        let extensions = sequence(&[
            extension(BASIC_CONSTRAINTS, true, &sequence(&[])),
            extension(KEY_USAGE, true, &bits(&[0x80], 7)),
            extension(EXTENDED_KEY_USAGE, false, &sequence(&[oid(SERVER_AUTH)])),
            extension(KEY_ID, false, &der(0x04, &sha256(key)[..20])),
            extension(ALT_NAME, false, &sequence(&alternatives)),
        ]);
        let body = sequence(&[
            der(0xa0, &der(0x02, &[2])),
            der(0x02, &serial),
            algorithm.clone(),
            name.clone(),
            sequence(&[time(self.from), time(self.until)]),
            name,
            sequence(&[sequence(&[oid(EC_PUBLIC_KEY), oid(PRIME256V1)]), bits(key, 0)]),
            der(0xa3, &extensions),
        ]);
        let signature = pair
            .sign(&SystemRandom::new(), &body)
            .map_err(|_| io::Error::other("the certificate could not be signed"))?;
        Ok(sequence(&[body, algorithm, bits(signature.as_ref(), 0)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::hex;

    const NOW: u64 = 1_795_468_211;

    struct Place(PathBuf);

    impl Place {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("grove-tls-{}", hex(&random::<8>())));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn open(&self, names: &[&str], now: u64) -> [u8; 32] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Tls::open(&self.0, "attic \u{e9}", &names, &["10.0.0.1".parse().unwrap()], now)
                .unwrap()
                .fingerprint
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn certificate_stays_until_it_must_change_and_its_key_longer() {
        use std::os::unix::fs::PermissionsExt;
        let place = Place::new();
        let first = place.open(&["pi.local", "localhost"], NOW);
        let key = fs::read(place.0.join(KEY_FILE)).unwrap();
        let mode = fs::metadata(place.0.join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(place.open(&["localhost", "PI.local."], NOW + 700 * DAY_S), first);
        assert_eq!(place.open(&["localhost", "not a name", "1.2.3.4"], NOW), first);
        let renamed = place.open(&["localhost", "new.example"], NOW);
        assert_ne!(renamed, first);
        let renewed = place.open(&["localhost"], NOW + 771 * DAY_S);
        assert_ne!(renewed, renamed);
        assert_ne!(place.open(&["localhost"], NOW), renewed, "the clock was wrong");
        assert_eq!(fs::read(place.0.join(KEY_FILE)).unwrap(), key);
        // Damage makes a new one, and nothing worse.
        fs::write(place.0.join(CERTIFICATE_FILE), "damaged").unwrap();
        place.open(&[], NOW);
        fs::write(place.0.join(KEY_FILE), "damaged").unwrap();
        place.open(&[], NOW);
        assert_ne!(fs::read(place.0.join(KEY_FILE)).unwrap(), key);
    }

    #[test]
    fn clock_that_is_not_set_makes_a_certificate_all_the_same() {
        let place = Place::new();
        let first = place.open(&["localhost"], 0);
        assert_eq!(place.open(&["localhost"], 5), first);
    }

    #[test]
    fn times_read_back() {
        for now in [951_827_696, NOW, 1_709_164_800, 2_500_000_000] {
            assert_eq!(seconds(&utc_time(now)), Some(now), "{}", utc_time(now));
        }
        assert_eq!(seconds("xx"), None);
    }

    #[test]
    fn lengths_are_as_short_as_they_may_be() {
        assert_eq!(der(4, &[0; 127])[..2], [4, 127]);
        assert_eq!(der(4, &[0; 128])[..3], [4, 0x81, 128]);
        assert_eq!(der(4, &[0; 256])[..4], [4, 0x82, 1, 0]);
    }
}
