//! JSON out, by hand: the API's answers are small and flat. And the few fields that requests have, in.

use std::fmt::Write;

use miniserde::json::{self, Number, Value};

use crate::logger::is_odd;

/// A JSON text of a string. What would move a cursor or turn text where it is printed as it stands is written as `\u202e`,
/// which reads back as the same.
pub fn text(value: &str) -> String {
    let plain = json::to_string(&value.to_owned());
    if !plain.chars().any(is_odd) {
        return plain;
    }
    let mut text = String::with_capacity(plain.len() + 64);
    for c in plain.chars() {
        if is_odd(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        } else {
            text.push(c);
        }
    }
    text
}

/// An object that is being written.
#[derive(Debug, Default)]
pub struct Obj(String);

impl Obj {
    /// Without fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// A field that is JSON already.
    pub fn raw(mut self, key: &str, value: impl AsRef<str>) -> Self {
        let comma = if self.0.is_empty() { "" } else { "," };
        let _ = write!(self.0, "{comma}\"{key}\":{}", value.as_ref());
        self
    }

    /// A text.
    pub fn str(self, key: &str, value: &str) -> Self {
        self.raw(key, text(value))
    }

    /// A number.
    pub fn num(self, key: &str, value: impl std::fmt::Display) -> Self {
        self.raw(key, value.to_string())
    }

    /// True or false.
    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, if value { "true" } else { "false" })
    }

    /// The text of the object.
    pub fn end(self) -> String {
        format!("{{{}}}", self.0)
    }
}

/// A list of JSON texts.
pub fn list(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(","))
}

/// The fields of a request's body.
pub struct Fields(Option<json::Object>);

impl Fields {
    /// Reads a body; an empty one has no fields.
    pub fn read(body: &[u8]) -> Result<Self, &'static str> {
        if body.is_empty() {
            return Ok(Self(None));
        }
        let text = std::str::from_utf8(body).map_err(|_| "the body is not UTF-8")?;
        match json::from_str::<Value>(text) {
            Ok(Value::Object(object)) => Ok(Self(Some(object))),
            _ => Err("the body is not a JSON object"),
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0.as_ref()?.get(key)
    }

    /// Whether there is anything of this name, `null` aside.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !matches!(value, Value::Null))
    }

    /// A text.
    pub fn str(&self, key: &str) -> Option<&str> {
        if let Some(Value::String(text)) = self.get(key) { Some(text) } else { None }
    }

    /// A whole number, 0 or more.
    pub fn num(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::Number(Number::U64(n)) => Some(*n),
            Value::Number(Number::I64(n)) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A whole number.
    pub fn int(&self, key: &str) -> Option<i64> {
        match self.get(key)? {
            Value::Number(Number::U64(n)) => i64::try_from(*n).ok(),
            Value::Number(Number::I64(n)) => Some(*n),
            _ => None,
        }
    }

    /// True or false; false if it is not there.
    pub fn bool(&self, key: &str) -> bool {
        matches!(self.get(key), Some(Value::Bool(true)))
    }

    /// Texts by their names.
    pub fn texts(&self, key: &str) -> Option<Vec<(String, String)>> {
        let Some(Value::Object(object)) = self.get(key) else { return None };
        let pair = |(key, value): (&String, &Value)| match value {
            Value::String(text) => Some((key.clone(), text.clone())),
            _ => None,
        };
        object.iter().map(pair).collect()
    }

    /// A list of texts.
    pub fn strs(&self, key: &str) -> Option<Vec<String>> {
        let Some(Value::Array(items)) = self.get(key) else { return None };
        items
            .iter()
            .map(|item| if let Value::String(text) = item { Some(text.clone()) } else { None })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_letters_are_never_raw_and_read_back() {
        let hostile = "a\u{1b}[2J\u{9b}31m\u{202e}\u{e0041}\u{7f}\0\n\"\\</script>é";
        let json = text(hostile);
        assert!(!json.chars().any(is_odd), "{json}");
        assert_eq!(json::from_str::<String>(&json).unwrap(), hostile);
        assert_eq!(text("plain é"), "\"plain é\"");
    }
}
