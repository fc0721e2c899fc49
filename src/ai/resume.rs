//! Going on with an answer that broke off: another backend is given what was written so far as the beginning of its answer,
//! and where it repeats that, it is taken away. Touches nothing.
//!
//! llama.cpp's server repeats the beginning in some versions, whole and in its first piece of text, and in others not at all.
//! So only a first piece that begins with all of it is taken for a repetition: text that repeats itself by nature is not.

/// Takes the beginning that a backend repeats off what it writes.
#[derive(Debug, Default, Clone)]
pub struct Strip {
    echo: Option<String>,
}

impl Strip {
    /// Expects that `echo`, of so many tokens, may be repeated. A single token that comes twice is no repetition.
    pub fn new(echo: String, tokens: u32) -> Self {
        Self { echo: Some(echo).filter(|echo| tokens > 1 && !echo.is_empty()) }
    }

    /// What is new in the next piece of text.
    pub fn take(&mut self, text: &str) -> String {
        let echo = if text.is_empty() { None } else { self.echo.take() };
        let new = echo.as_deref().and_then(|echo| text.strip_prefix(echo));
        new.unwrap_or(text).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Dice;

    fn all(echo: &str, pieces: &[&str]) -> String {
        let mut strip = Strip::new(echo.to_owned(), 2);
        pieces.iter().map(|piece| strip.take(piece)).collect()
    }

    #[test]
    fn a_repeated_beginning_goes_and_anything_else_stays() {
        assert_eq!(all(" 1 2", &["", " 1 2", " 3"]), " 3");
        assert_eq!(all(" 1 2", &[" 1 2 3"]), " 3");
        assert_eq!(all(" 1 2", &[" 3", " 4"]), " 3 4");
        assert_eq!(all(" 1 2", &[" 1 3"]), " 1 3");
        assert_eq!(all(" 1 2", &[" 3", " 1 2"]), " 3 1 2");
        assert_eq!(all("", &["x", "y"]), "xy");
        // Laughter goes on.
        assert_eq!(all(" ha ha", &[" ha", " ha", " ha"]), " ha ha ha");
        assert_eq!(Strip::new(" ha".into(), 1).take(" ha"), " ha");
    }

    /// An answer is cut anywhere and gone on with by a server that repeats the beginning or does not; the text is exact.
    #[test]
    fn cut_anywhere_and_gone_on_with_the_text_is_exact() {
        for seed in 0..2000 {
            let mut dice = Dice::new(seed, "resume");
            let count = dice.below(200) + 4;
            let word = |n: u64| {
                if seed % 2 == 0 { format!(" {n}{}", ["", "é", "\n"][n as usize % 3]) } else { " ha".into() }
            };
            let words: Vec<String> = (1..=count).map(word).collect();
            let at = dice.below(count - 1) as usize + 1;
            let mut text = words[..at].concat();
            let mut strip = Strip::new(text.clone(), at as u32);
            if at > 1 && dice.percent(50) {
                let first = format!("{text}{}", if dice.percent(50) { words[at].as_str() } else { "" });
                let rest = first.len() > text.len();
                text.push_str(&strip.take(&first));
                words[at + usize::from(rest)..].iter().for_each(|word| text.push_str(&strip.take(word)));
            } else {
                words[at..].iter().for_each(|word| text.push_str(&strip.take(word)));
            }
            assert_eq!(text, words.concat(), "seed {seed}");
        }
    }
}
