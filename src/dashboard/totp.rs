//! The second factor: codes that change every 30 s (RFC 6238, with HMAC-SHA-1 and six digits, as every app has it). Pure.

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use subtle::ConstantTimeEq;

/// Bytes of a secret, as RFC 4226 advises.
pub(crate) const SECRET_BYTES: usize = 20;
/// A code is good for so long.
const STEP_S: u64 = 30;
/// Steps before and after now that are good, too: clocks differ.
const SLACK: u64 = 1;
const DIGITS: u32 = 6;

/// The code of a step.
fn code(secret: &[u8], step: u64, digits: u32) -> u32 {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(&step.to_be_bytes());
    let hash = mac.finalize().into_bytes();
    let at = usize::from(hash[19] & 15);
    let word = u32::from_be_bytes([hash[at], hash[at + 1], hash[at + 2], hash[at + 3]]) & 0x7fff_ffff;
    word % 10u32.pow(digits)
}

/// The step for which a code is typed, if it is right now and later than `after`, of which a code was used already.
pub(crate) fn check(secret: &[u8], typed: &str, unix: u64, after: u64) -> Option<u64> {
    let typed: Vec<u8> = typed.bytes().filter(|c| !c.is_ascii_whitespace() && *c != b'-').collect();
    let now = unix / STEP_S;
    let mut found = None;
    // All are looked at, so that the time it takes says nothing.
    for step in now.saturating_sub(SLACK)..=now + SLACK {
        let right = format!("{:06}", code(secret, step, DIGITS));
        let same: bool = typed.ct_eq(right.as_bytes()).into();
        if same && step > after {
            found = found.or(Some(step));
        }
    }
    found
}

/// The code of a step, as a person types it.
#[cfg(test)]
pub(crate) fn code_at(secret: &[u8], step: u64) -> String {
    format!("{:06}", code(secret, step, DIGITS))
}

/// Base 32 (RFC 4648) without padding, as apps take secrets.
pub(crate) fn base32(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let (mut text, mut word, mut bits) = (String::new(), 0u32, 0);
    for byte in bytes {
        word = word << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(LETTERS[(word >> bits & 31) as usize]));
        }
    }
    if bits > 0 {
        text.push(char::from(LETTERS[(word << (5 - bits) & 31) as usize]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_rfc_6238() {
        let secret = b"12345678901234567890";
        for (unix, right) in [
            (59, 94_287_082),
            (1_111_111_109, 7_081_804),
            (1_111_111_111, 14_050_471),
            (1_234_567_890, 89_005_924),
            (2_000_000_000, 69_279_037),
            (20_000_000_000, 65_353_130),
        ] {
            assert_eq!(code(secret, unix / STEP_S, 8), right, "{unix}");
        }
        // RFC 4226, appendix D.
        let hotp = [755_224, 287_082, 359_152, 969_429, 338_314, 254_676, 287_922, 162_583, 399_871, 520_489];
        for (step, right) in hotp.into_iter().enumerate() {
            assert_eq!(code(secret, step as u64, 6), right);
        }
    }

    #[test]
    fn base32_is_that_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "MY"),
            ("fo", "MZXQ"),
            ("foo", "MZXW6"),
            ("foob", "MZXW6YQ"),
            ("fooba", "MZXW6YTB"),
            ("foobar", "MZXW6YTBOI"),
        ] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn code_is_good_around_its_time_and_once() {
        let secret = b"12345678901234567890";
        let typed = format!("{:06}", code(secret, 100, 6));
        for (unix, is_good) in [(2969, false), (2970, true), (3000, true), (3059, true), (3060, false)] {
            assert_eq!(check(secret, &typed, unix, 0).is_some(), is_good, "{unix}");
        }
        assert_eq!(check(secret, &format!("{} {}", &typed[..3], &typed[3..]), 3000, 0), Some(100));
        assert_eq!(check(secret, &typed, 3000, 100), None, "used already");
        for wrong in ["", "000000", "12345", "1234567", "abcdef", &typed[..5]] {
            assert_eq!(check(secret, wrong, 3000, 0), None, "{wrong}");
        }
    }
}
