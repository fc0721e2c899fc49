//! The recovery card: the phrase, and where peers are. Written for paper, read back from whatever was typed.
//!
//! Promise: a card's text and the text in its QR code read back as the phrase and addresses they were made of.

use zeroize::Zeroizing;

use crate::card::{is_place, relayed};

/// Addresses read from a text, at most.
const ADDRESSES_MAX: usize = 64;
/// Columns of words on the card.
const COLUMNS: usize = 4;

/// What a recovery card says.
#[derive(Clone)]
pub struct RecoveryCard {
    /// The cell's name.
    pub name: String,
    /// The cell's id, 64 hexadecimal digits.
    pub id: String,
    /// The 24 words.
    pub phrase: Zeroizing<String>,
    /// Peers as (name, `host:port` or `ID@URL` of a relay each, best first).
    pub peers: Vec<(String, Vec<String>)>,
    /// Relays: URLs.
    pub relays: Vec<String>,
}

impl std::fmt::Debug for RecoveryCard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecoveryCard({})", self.name)
    }
}

impl RecoveryCard {
    /// The card to print: words as a numbered block of six rows, then where to find peers.
    pub fn to_text(&self) -> Zeroizing<String> {
        let id = self.id.get(..16).unwrap_or(&self.id);
        let mut text = Zeroizing::new(String::with_capacity(4096));
        text.push_str(&format!("GROVE RECOVERY CARD\n\nCell: {} ({id})\n\n", self.name));
        let words: Vec<&str> = self.phrase.split_whitespace().collect();
        for (row, words) in words.chunks(COLUMNS).enumerate() {
            for (column, word) in words.iter().enumerate() {
                text.push_str(&format!("{:>4}. {word:<8}", row * COLUMNS + column + 1));
            }
            let end = text.trim_end().len();
            text.truncate(end);
            text.push('\n');
        }
        text.push('\n');
        for (name, addresses) in &self.peers {
            for address in addresses {
                text.push_str(&format!("Peer: {address}  ({name})\n"));
            }
        }
        for relay in &self.relays {
            text.push_str(&format!("Relay: {relay}\n"));
        }
        if self.peers.iter().all(|(_, addresses)| addresses.is_empty()) {
            text.push_str("Peers: none yet. Print the card again when there is one.\n");
        }
        text.push_str("\nOn an empty machine: grove recover --peer ADDRESS\n");
        text
    }

    /// What the QR code holds: the phrase on one line, then one address a line. Reads back with `read`.
    pub fn to_qr_payload(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(format!("phrase: {}", *self.phrase));
        let ways = |(_, addresses): &'_ (String, Vec<String>)| {
            let direct = addresses.iter().find(|address| relayed(address).is_none()).cloned();
            let round = addresses.iter().find(|address| relayed(address).is_some()).cloned();
            direct.into_iter().chain(round)
        };
        for address in self.peers.iter().flat_map(ways).take(ADDRESSES_MAX) {
            text.push_str(&format!("\npeer: {address}"));
        }
        for relay in &self.relays {
            text.push_str(&format!("\nrelay: {relay}"));
        }
        text
    }

    /// The QR code in half blocks, two rows of dots a line; empty if the card is too much for one.
    pub fn to_qr_text(&self) -> Zeroizing<String> {
        Zeroizing::new(qr_text(&self.to_qr_payload()))
    }
}

/// `payload` as a QR code in half blocks, dark on light for terminals that are light on dark; empty if it does not fit.
pub fn qr_text(payload: &str) -> String {
    let Ok(code) = qrcodegen::QrCode::encode_text(payload, qrcodegen::QrCodeEcc::Low) else {
        return String::new();
    };
    let size = code.size();
    // Four light dots around it, as the standard asks for.
    let is_light = |x: i32, y: i32| !code.get_module(x, y);
    let mut text = String::new();
    for y in (-4..size + 4).step_by(2) {
        for x in -4..size + 4 {
            text.push(match (is_light(x, y), is_light(x, y + 1)) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            });
        }
        text.push('\n');
    }
    text
}

/// Phrase and addresses as they stand in a text: a card, the payload of its QR code, or 24 words as they were typed.
///
/// The phrase is not checked here; it is empty if the text has none.
pub fn read(text: &str) -> (Zeroizing<String>, Vec<String>) {
    let mut addresses: Vec<String> = Vec::new();
    let mut labelled = None;
    let mut numbered = Zeroizing::new(String::new());
    let mut others = Zeroizing::new(String::new());
    for line in text.lines() {
        let line = line.trim();
        let label =
            line.split_once(':').map(|(label, rest)| (label.trim().to_ascii_lowercase(), rest.trim()));
        match label.as_ref().map(|(label, rest)| (label.as_str(), *rest)) {
            Some(("phrase", rest)) if !rest.is_empty() => labelled = Some(Zeroizing::new(rest.to_owned())),
            Some(("phrase" | "cell" | "relay" | "relays" | "peers" | "on an empty machine", _)) => {}
            _ if line.eq_ignore_ascii_case("grove recovery card") => {}
            _ => {
                let found = line
                    .split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '(' | ')'))
                    .filter(|word| is_place(word))
                    .map(str::to_owned);
                let before = addresses.len();
                for address in found {
                    if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                let has_address = addresses.len() > before || line.split_whitespace().any(is_place);
                let is_peer = label.is_some_and(|(label, _)| label == "peer");
                let to = match () {
                    () if has_address || is_peer => continue,
                    () if is_numbered(line) => &mut numbered,
                    () => &mut others,
                };
                to.push_str(line);
                to.push('\n');
            }
        }
    }
    let phrase = match labelled {
        Some(phrase) => phrase,
        // Beside numbered words, what has no number is somebody's remark.
        None if numbered.lines().map(words).sum::<usize>() >= 12 => numbered,
        None => Zeroizing::new(format!("{}{}", *numbered, *others)),
    };
    (phrase, addresses)
}

/// Whether a line is `1. word 2. word …`.
fn is_numbered(line: &str) -> bool {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    rest.len() < line.len() && words(line) > 0
}

fn words(line: &str) -> usize {
    line.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::MasterKey;

    fn card() -> RecoveryCard {
        RecoveryCard {
            name: "ann: the 1st".into(),
            id: "ab".repeat(32),
            phrase: MasterKey::from_bytes([7; 32]).phrase(),
            peers: vec![
                ("bob of 24 words".into(), vec!["192.168.1.20:5679".into(), "bob.example:5679".into()]),
                ("cy".into(), vec!["[fd00::1]:5679".into(), hidden()]),
            ],
            relays: vec!["wss://relay.example:443/grove".into()],
        }
    }

    /// Behind a router, at a relay.
    fn hidden() -> String {
        format!("{}@wss://relay.example/relay", "cd".repeat(32))
    }

    fn is_phrase(text: &str) -> bool {
        MasterKey::from_phrase(text).is_ok_and(|key| *key.as_bytes() == [7; 32])
    }

    #[test]
    fn card_reads_back() {
        let text = card().to_text();
        assert!(text.contains("\n   1. ") && text.contains("  24. "));
        assert_eq!(text.lines().filter(|line| is_numbered(line.trim())).count(), 6);
        let (phrase, addresses) = read(&text);
        assert!(is_phrase(&phrase), "{}", *phrase);
        assert_eq!(addresses, ["192.168.1.20:5679", "bob.example:5679", "[fd00::1]:5679", &hidden()]);
        assert!(!format!("{:?}", card()).contains(card().phrase.split(' ').next().unwrap()));
    }

    #[test]
    fn payload_of_the_code_reads_back() {
        let (phrase, addresses) = read(&card().to_qr_payload());
        assert!(is_phrase(&phrase));
        assert_eq!(addresses, ["192.168.1.20:5679", "[fd00::1]:5679", &hidden()]);
        let code = card().to_qr_text();
        let widths: Vec<usize> = code.lines().map(|line| line.chars().count()).collect();
        assert!(widths.len() > 20 && widths.iter().all(|width| *width == widths[0]));
        assert_eq!(qr_text(&"a".repeat(5000)), "");
    }

    #[test]
    fn words_as_typed_are_read() {
        let phrase = card().phrase;
        let words: Vec<&str> = phrase.split(' ').collect();
        let lines = words.chunks(5).map(|line| line.join("  ")).collect::<Vec<_>>().join("\n");
        let (read_phrase, addresses) = read(&format!("{lines}\n\nnas.lan:5679, 10.0.0.2:5679\n"));
        assert!(is_phrase(&read_phrase));
        assert_eq!(addresses, ["nas.lan:5679", "10.0.0.2:5679"]);

        let numbered =
            words.iter().enumerate().map(|(at, word)| format!("{}) {}\n", at + 1, word.to_uppercase()));
        let text = format!("My words, kept in the blue box\r\n{}", numbered.collect::<String>());
        assert!(is_phrase(&read(&text).0));

        let shown = format!("{}\nphrase: {}\n", *card().to_text(), *phrase);
        assert!(is_phrase(&read(&shown).0));
    }

    #[test]
    fn odd_texts_are_survived() {
        assert!(read("").0.is_empty());
        let many: String = (1..500).map(|at| format!("10.0.0.1:{at}\n")).collect();
        assert_eq!(read(&many).1.len(), ADDRESSES_MAX);
        // A wrong word stays in the phrase, to be named by whoever reads it.
        assert!(read("abandon abandn ability").0.contains("abandn"));
        assert!(read("phrase:\nabandon ability").0.contains("ability"));
    }
}
