//! Names of relays: `ws://host[:port][/path][#pins]` and `wss://…`. Touches nothing.

use std::fmt;
use std::str::FromStr;

use crate::id::{CellId, hex, unhex};

/// Most bytes of a URL, as in a card.
const URL_BYTES_MAX: usize = 255;
/// Before the hash of a certificate, after `#`.
const CERTIFICATE: &str = "cert:";

/// A relay's URL.
///
/// After `#`, separated by commas: the relay's own id (64 hexadecimal digits), which it must prove, and
/// `cert:` with the SHA-256 of its TLS certificate, which then is the only one that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Url {
    /// `wss`.
    pub is_tls: bool,
    /// A name or an address; of IPv6 without brackets.
    pub host: String,
    /// 80 or 443 if not given.
    pub port: u16,
    /// Begins with a slash; `/relay` if not given.
    pub path: String,
    /// Whom the relay must prove to be.
    pub hub: Option<CellId>,
    /// SHA-256 of the only certificate that is accepted.
    pub certificate: Option<[u8; 32]>,
}

/// What is wrong with a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadUrl(&'static str);

impl fmt::Display for BadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a relay is named like wss://relay.example/relay: {}", self.0)
    }
}

impl std::error::Error for BadUrl {}

impl FromStr for Url {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        if text.len() > URL_BYTES_MAX || !text.bytes().all(|c| c.is_ascii_graphic()) {
            return Err(BadUrl("it has odd letters or is too long"));
        }
        let (scheme, rest) = text.split_once("://").ok_or(BadUrl("it begins with ws:// or wss://"))?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "ws" => false,
            "wss" => true,
            _ => return Err(BadUrl("it begins with ws:// or wss://")),
        };
        let (rest, pins) = rest.split_once('#').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = split_authority(authority, if is_tls { 443 } else { 80 })?;
        let path = if path.is_empty() || path == "/" { super::PATH } else { path };
        let mut url = Self { is_tls, host, port, path: path.to_owned(), hub: None, certificate: None };
        for pin in pins.split(',').filter(|pin| !pin.is_empty()) {
            match pin.strip_prefix(CERTIFICATE) {
                Some(hash) => {
                    let hash = unhex(hash).and_then(|hash| hash.try_into().ok());
                    url.certificate = Some(hash.ok_or(BadUrl("after cert: comes a SHA-256"))?);
                }
                None => url.hub = Some(pin.parse().map_err(|_| BadUrl("after # comes the relay's id"))?),
            }
        }
        Ok(url)
    }
}

fn split_authority(authority: &str, port: u16) -> Result<(String, u16), BadUrl> {
    let bad = BadUrl("its host or port makes no sense");
    let (host, rest) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']').ok_or(bad)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| bad)?;
            (host, rest)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_name = |host: &str| host.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._:".contains(&c));
    if host.is_empty() || !is_name(host) {
        return Err(bad);
    }
    let port = match rest.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|c| c.is_ascii_digit()) => digits.parse().map_err(|_| bad)?,
        None if rest.is_empty() => port,
        _ => return Err(bad),
    };
    Ok((host.to_owned(), port))
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)?;
        let mut pins = Vec::new();
        pins.extend(self.hub.map(|hub| hub.to_string()));
        pins.extend(self.certificate.map(|hash| format!("{CERTIFICATE}{}", hex(&hash))));
        if pins.is_empty() { Ok(()) } else { write!(f, "#{}", pins.join(",")) }
    }
}

impl Url {
    /// `host:port`, the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let port = if self.is_tls { 443 } else { 80 };
        if self.port == port { host } else { format!("{host}:{}", self.port) }
    }

    /// `host:port`, for the resolver.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_reads_back() {
        let id = "ab".repeat(32);
        for (text, again) in [
            ("ws://relay.example", "ws://relay.example/relay"),
            ("WS://10.0.0.1:80/", "ws://10.0.0.1/relay"),
            ("wss://relay.example:8443/a/b", "wss://relay.example:8443/a/b"),
            ("ws://[fd00::1]:5680", "ws://[fd00::1]:5680/relay"),
            (&format!("wss://r/x#{id}"), &format!("wss://r/x#{id}")),
            (&format!("wss://r/x#cert:{id},{id}"), &format!("wss://r/x#{id},cert:{id}")),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(url.to_string(), again);
            assert_eq!(again.parse(), Ok(url));
        }
        let url: Url = "ws://[::1]".parse().unwrap();
        assert_eq!((url.address().as_str(), url.authority().as_str()), ("[::1]:80", "[::1]"));
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for text in [
            "",
            "relay.example",
            "http://relay.example",
            "ws://",
            "ws://:80",
            "ws://a b",
            "ws://a:b",
            "ws://a:70000",
            "ws://a:+1",
            "ws://[::1",
            "ws://[x]",
            "ws://[::1]x",
            "ws://u@h",
            "ws://h#12",
            "ws://h#cert:12",
            "ws://h?\n",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text:?}");
        }
        assert!(format!("ws://{}", "a".repeat(260)).parse::<Url>().is_err());
    }
}
