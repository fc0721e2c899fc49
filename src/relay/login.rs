//! What hub and client prove to each other, each message one WebSocket message. Touches nothing.

use crate::codec::{BadBytes, Reader, Writer};
use crate::id::CellId;
use crate::keys::{self, Identity};

const VERSION: u8 = 1;
const CLIENT_LABEL: &str = "grove relay login v1";
const HUB_LABEL: &str = "grove relay hub v1";
/// No message of a login is longer.
pub(super) const LOGIN_BYTES_MAX: usize = 256;

/// What is signed is never used again.
pub(super) type Challenge = [u8; 32];

/// The hub's first word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    pub hub: CellId,
    pub challenge: Challenge,
}

impl Hello {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new();
        to.u8(VERSION).raw(self.hub.as_bytes()).raw(&self.challenge);
        to.finish()
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BadBytes> {
        let mut from = Reader::new(bytes);
        version(&mut from)?;
        let hello = Self { hub: CellId(from.array()?), challenge: from.array()? };
        from.end()?;
        Ok(hello)
    }
}

/// The client's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub client: CellId,
    pub challenge: Challenge,
    signature: [u8; 64],
}

impl Login {
    pub(super) fn new(identity: &Identity, hello: &Hello, challenge: Challenge) -> Self {
        let client = identity.id();
        let signature = identity.sign(&said(CLIENT_LABEL, &hello.hub, &hello.challenge, &client));
        Self { client, challenge, signature }
    }

    /// Whether the client has the key of its id.
    pub(super) fn is_proof(&self, hello: &Hello) -> bool {
        let said = said(CLIENT_LABEL, &hello.hub, &hello.challenge, &self.client);
        keys::verify(&self.client, &said, &self.signature)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new();
        to.u8(VERSION).raw(self.client.as_bytes()).raw(&self.challenge).raw(&self.signature);
        to.finish()
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BadBytes> {
        let mut from = Reader::new(bytes);
        version(&mut from)?;
        let login =
            Self { client: CellId(from.array()?), challenge: from.array()?, signature: from.array()? };
        from.end()?;
        Ok(login)
    }
}

/// The hub lets the client in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Welcome {
    /// Circuits that this client may have at once.
    pub circuits: u16,
    signature: [u8; 64],
}

impl Welcome {
    pub(super) fn new(identity: &Identity, login: &Login, circuits: u16) -> Self {
        let hub = identity.id();
        let signature = identity.sign(&said(HUB_LABEL, &hub, &login.challenge, &login.client));
        Self { circuits, signature }
    }

    /// Whether the hub has the key of its id.
    pub(super) fn is_proof(&self, hub: &CellId, login: &Login) -> bool {
        keys::verify(hub, &said(HUB_LABEL, hub, &login.challenge, &login.client), &self.signature)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new();
        to.u8(VERSION).u16(self.circuits).raw(&self.signature);
        to.finish()
    }

    /// What a later version adds at the end is passed over.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BadBytes> {
        let mut from = Reader::new(bytes);
        version(&mut from)?;
        Ok(Self { circuits: from.u16()?, signature: from.array()? })
    }
}

fn version(from: &mut Reader<'_>) -> Result<(), BadBytes> {
    if from.u8()? == VERSION { Ok(()) } else { Err(BadBytes("another version of the login")) }
}

fn said(label: &str, hub: &CellId, challenge: &Challenge, client: &CellId) -> Vec<u8> {
    let mut said = Writer::with_label(label);
    said.raw(hub.as_bytes()).raw(challenge).raw(client.as_bytes());
    said.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::MasterKey;

    fn identity(seed: u8) -> Identity {
        MasterKey::from_bytes([seed; 32]).identity(0, 0)
    }

    #[test]
    fn both_sides_prove_their_keys() {
        let (hub, ann) = (identity(1), identity(2));
        let hello = Hello { hub: hub.id(), challenge: [7; 32] };
        let hello = Hello::parse(&hello.to_bytes()).unwrap();
        let login = Login::parse(&Login::new(&ann, &hello, [8; 32]).to_bytes()).unwrap();
        assert!(login.is_proof(&hello));
        let welcome = Welcome::parse(&Welcome::new(&hub, &login, 32).to_bytes()).unwrap();
        assert!(welcome.is_proof(&hub.id(), &login) && welcome.circuits == 32);
    }

    #[test]
    fn proof_serves_for_one_login_at_one_hub_only() {
        let (hub, ann, eve) = (identity(1), identity(2), identity(3));
        let hello = Hello { hub: hub.id(), challenge: [7; 32] };
        let login = Login::new(&ann, &hello, [8; 32]);
        assert!(!login.is_proof(&Hello { challenge: [9; 32], ..hello.clone() }), "another connection");
        assert!(!login.is_proof(&Hello { hub: eve.id(), ..hello.clone() }), "another hub");
        assert!(!Login { client: eve.id(), ..login.clone() }.is_proof(&hello), "another client");
        let welcome = Welcome::new(&hub, &login, 1);
        assert!(!welcome.is_proof(&eve.id(), &login));
        assert!(!welcome.is_proof(&hub.id(), &Login { challenge: [9; 32], ..login.clone() }));
        // The two proofs are of different kinds.
        let said_by_client = Login { client: hub.id(), challenge: [0; 32], signature: welcome.signature };
        assert!(!said_by_client.is_proof(&Hello { hub: hub.id(), challenge: [8; 32] }));
    }

    #[test]
    fn cut_and_strange_messages_are_refused() {
        let hello = Hello { hub: identity(1).id(), challenge: [7; 32] };
        let bytes = Login::new(&identity(2), &hello, [8; 32]).to_bytes();
        assert_eq!(bytes.len(), 129);
        for end in 0..bytes.len() {
            assert!(Login::parse(&bytes[..end]).is_err());
        }
        assert!(Hello::parse(&[1; 66]).is_err() && Hello::parse(&[2; 65]).is_err());
    }
}
