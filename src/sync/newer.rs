//! Whether a peer runs a newer version than this cell: told, and nothing more. Nothing is fetched or run from a peer.

use std::collections::HashMap;
use std::fmt;

use super::Sync;
use crate::alerts::Alert;
use crate::id::CellId;

/// The alert that names the newest version.
const CODE: &str = "older";

/// A version of the program: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release([u16; 3]);

impl Release {
    /// Reads `1.2.3`; what follows a `-` or `+` counts for nothing. `None` for all else.
    pub fn read(text: &str) -> Option<Self> {
        let numbers = text.split(['-', '+']).next()?;
        let mut parts = numbers.split('.').map(|part| {
            let is_number = !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit());
            is_number.then(|| part.parse().ok()).flatten()
        });
        let release = Self([parts.next()??, parts.next()??, parts.next()??]);
        parts.next().is_none().then_some(release)
    }

    /// This program's.
    pub fn own() -> Self {
        Self::read(env!("CARGO_PKG_VERSION")).unwrap_or(Self([0; 3]))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0[0], self.0[1], self.0[2])
    }
}

/// The newest of these, if it is newer than `own`; of equal ones any.
fn newest(told: &HashMap<CellId, Release>, own: Release) -> Option<(CellId, Release)> {
    let newer = told.iter().filter(|(_, release)| **release > own);
    newer.max_by_key(|(id, release)| (**release, **id)).map(|(id, release)| (*id, *release))
}

impl Sync {
    /// Hears which version a peer says that it runs.
    pub(super) fn hear_version(&self, peer: &CellId, text: &str) {
        {
            let mut versions = self.versions.borrow_mut();
            match Release::read(text) {
                Some(release) => versions.insert(*peer, release),
                None => versions.remove(peer),
            };
            versions.retain(|id, _| self.gate.peer(id).is_some());
        }
        match self.newer_version() {
            Some((name, release)) => {
                let own = Release::own();
                let text = format!("{name} runs Grove {release}, and this cell runs {own}");
                let remedy = "update this cell: by your system's updates where Grove came as a package, else from where you \
                              got it; nothing is taken from a peer"
                    .into();
                self.vault.raise(CODE, Alert { text, remedy });
            }
            None => self.vault.clear(CODE),
        }
    }

    /// The peer that says it runs the newest version, by name, if that is newer than this cell's.
    pub fn newer_version(&self) -> Option<(String, Release)> {
        let (id, release) = newest(&self.versions.borrow(), Release::own())?;
        Some((self.name_of(&id), release))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_three_numbers_in_order() {
        let read = |text| Release::read(text).unwrap();
        assert!(
            read("0.10.0") > read("0.9.9") && read("1.0.0") > read("0.10.0") && read("0.1.1") > read("0.1.0")
        );
        assert_eq!(read("1.2.3-rc.1+deb"), read("1.2.3"));
        assert_eq!(read("1.2.3").to_string(), "1.2.3");
        for no in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "a.b.c",
            "1..3",
            "-1.2.3",
            "1.2.+3",
            "1.2.65536",
            "1.2.3 ",
            "\u{202e}1.2.3",
        ] {
            assert_eq!(Release::read(no), None, "{no:?}");
        }
    }

    #[test]
    fn the_newest_peer_is_named_only_if_it_is_newer() {
        let at = |text| Release::read(text).unwrap();
        let told = HashMap::from([(CellId([1; 32]), at("0.2.0")), (CellId([2; 32]), at("0.3.0"))]);
        assert_eq!(newest(&told, at("0.1.0")), Some((CellId([2; 32]), at("0.3.0"))));
        assert_eq!(newest(&told, at("0.3.0")), None);
        assert_eq!(newest(&HashMap::new(), at("0.0.1")), None);
    }
}
