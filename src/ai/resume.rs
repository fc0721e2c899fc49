//! Going on with an answer that broke off: another backend is given what was written so far as the beginning of its answer,
//! and what it repeats of that is taken away. Touches nothing.

/// Takes the beginning that a backend repeats off what it writes.
#[derive(Debug, Default, Clone)]
pub struct Strip {
    /// What is still to be repeated.
    echo: String,
    /// What has come and may be a repetition.
    held: String,
}

impl Strip {
    /// Expects `echo` before anything new; nothing if it is empty.
    pub fn new(echo: String) -> Self {
        Self { echo, held: String::new() }
    }

    /// What is new in the next piece of text. A backend that does not repeat the beginning loses nothing: as soon as what it
    /// writes differs, all of it is new.
    pub fn take(&mut self, text: &str) -> String {
        if self.echo.is_empty() {
            return text.to_owned();
        }
        self.held.push_str(text);
        if self.held.len() >= self.echo.len() {
            let held = std::mem::take(&mut self.held);
            let echo = std::mem::take(&mut self.echo);
            return held.strip_prefix(echo.as_str()).map_or(held.clone(), str::to_owned);
        }
        if self.echo.starts_with(&self.held) {
            return String::new();
        }
        self.echo.clear();
        std::mem::take(&mut self.held)
    }

    /// The answer has ended: what was held back is new after all.
    pub fn rest(&mut self) -> String {
        self.echo.clear();
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Dice;

    fn all(echo: &str, pieces: &[&str]) -> String {
        let mut strip = Strip::new(echo.to_owned());
        let mut text: String = pieces.iter().map(|piece| strip.take(piece)).collect();
        text.push_str(&strip.rest());
        text
    }

    #[test]
    fn a_repeated_beginning_goes_and_anything_else_stays() {
        assert_eq!(all(" 1 2", &[" 1 2", " 3"]), " 3");
        assert_eq!(all(" 1 2", &[" 1 2 3"]), " 3");
        assert_eq!(all(" 1 2", &[" ", "1", " 2", " 3"]), " 3");
        assert_eq!(all(" 1 2", &[" 3", " 4"]), " 3 4");
        assert_eq!(all(" 1 2", &[" 1 3"]), " 1 3");
        assert_eq!(all(" 1 2", &[" 1"]), " 1");
        assert_eq!(all("", &["x", "y"]), "xy");
    }

    /// An answer is cut anywhere, gone on with by a server that repeats the beginning in pieces of any size, and is exact.
    #[test]
    fn cut_anywhere_and_gone_on_with_the_text_is_exact() {
        for seed in 0..2000 {
            let mut dice = Dice::new(seed, "resume");
            let whole: String = (1..=dice.below(200) + 2).map(|n| format!(" {n}{}", ["", "é", "\n"][n as usize % 3])).collect();
            let mut at = dice.below(whole.len() as u64) as usize;
            while !whole.is_char_boundary(at) {
                at -= 1;
            }
            let mut text = whole[..at].to_owned();
            let mut strip = Strip::new(text.clone());
            let mut rest = whole.as_str();
            if dice.percent(30) {
                // One that repeats nothing.
                strip = Strip::new(String::new());
                rest = &whole[at..];
            }
            while !rest.is_empty() {
                let mut len = (dice.below(20) as usize + 1).min(rest.len());
                while !rest.is_char_boundary(len) {
                    len += 1;
                }
                text.push_str(&strip.take(&rest[..len]));
                rest = &rest[len..];
            }
            text.push_str(&strip.rest());
            assert_eq!(text, whole, "seed {seed}");
        }
    }
}
