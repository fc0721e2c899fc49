//! JSON objects of others, changed without being made anew: members keep their order and their text, for schemas and numbers
//! of programs that we know nothing of must arrive as they were sent.

use miniserde::json::{self, Array, Number, Object, Value};

/// Objects and lists within each other, at most. Deeper ones are refused.
const DEPTH_MAX: u32 = 64;

/// Members of one object, at most: each is looked for among those before it.
const MEMBERS_MAX: usize = 4096;

/// The members of an object in their order, each value as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members(Vec<(String, String)>);

/// Reads a JSON object twice over: as members in order, and as a value to look at.
pub fn read(text: &str) -> Result<(Members, Object), &'static str> {
    let object = read_object(text)?;
    if object.len() > MEMBERS_MAX {
        return Err("its JSON object has too many members");
    }
    let members = Members::split(text).ok_or("it is not a JSON object")?;
    Ok((members, object))
}

/// Reads a JSON object that is not too deep.
pub fn read_object(text: &str) -> Result<Object, &'static str> {
    if is_deep(text) {
        return Err("its JSON is nested too deeply");
    }
    match json::from_str::<Value>(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("it is not a JSON object"),
        Err(_) => Err("it is not JSON"),
    }
}

fn is_deep(text: &str) -> bool {
    let (mut depth, mut in_text, mut is_escaped) = (0u32, false, false);
    for byte in text.bytes() {
        match (in_text, byte) {
            (true, _) if is_escaped => is_escaped = false,
            (true, b'\\') => is_escaped = true,
            (_, b'"') => in_text = !in_text,
            (false, b'{' | b'[') => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return true;
                }
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// The end of the JSON value that begins at `at`, in text that is JSON.
fn value_end(bytes: &[u8], mut at: usize) -> usize {
    let (mut depth, mut in_text, mut is_escaped) = (0u32, false, false);
    while let Some(byte) = bytes.get(at) {
        match (in_text, byte) {
            (true, _) if is_escaped => is_escaped = false,
            (true, b'\\') => is_escaped = true,
            (_, b'"') => in_text = !in_text,
            (false, b'{' | b'[') => depth += 1,
            (false, b'}' | b']' | b',') if depth == 0 => break,
            (false, b'}' | b']') => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    at
}

impl Members {
    fn split(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let skip = |mut at: usize| {
            while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
                at += 1;
            }
            at
        };
        let mut at = skip(0);
        if bytes.get(at) != Some(&b'{') {
            return None;
        }
        at = skip(at + 1);
        let mut members = Self::default();
        while bytes.get(at) == Some(&b'"') {
            let mut end = at + 1;
            while bytes.get(end).is_some_and(|byte| *byte != b'"') {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            let key: String = json::from_str(text.get(at..=end)?).ok()?;
            at = skip(end + 1);
            if bytes.get(at) != Some(&b':') {
                return None;
            }
            at = skip(at + 1);
            end = value_end(bytes, at);
            members.set(&key, text.get(at..end)?.trim_end());
            at = skip(end);
            match bytes.get(at) {
                Some(b',') => at = skip(at + 1),
                Some(b'}') => return Some(members),
                _ => return None,
            }
        }
        (bytes.get(at) == Some(&b'}')).then_some(members)
    }

    /// The text of a member.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Puts a member in place of the one of this name, or at the end. `value` is JSON.
    pub fn set(&mut self, key: &str, value: &str) {
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((key.to_owned(), value.to_owned())),
        }
    }

    /// Takes a member out.
    pub fn remove(&mut self, key: &str) {
        self.0.retain(|(name, _)| name != key);
    }

    /// The object's text.
    pub fn to_text(&self) -> String {
        let room = self.0.iter().map(|(key, value)| key.len() + value.len() + 4).sum::<usize>() + 2;
        let mut text = String::with_capacity(room);
        text.push('{');
        for (at, (key, value)) in self.0.iter().enumerate() {
            if at > 0 {
                text.push(',');
            }
            text.push_str(&quoted(key));
            text.push(':');
            text.push_str(value);
        }
        text.push('}');
        text
    }
}

/// A JSON text of a string.
pub fn quoted(text: &str) -> String {
    json::to_string(text)
}

/// The text at `key`.
pub fn text<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    if let Some(Value::String(text)) = object.get(key) { Some(text) } else { None }
}

/// The number at `key`, 0 or more, rounded down.
pub fn number(object: &Object, key: &str) -> Option<u64> {
    match object.get(key)? {
        Value::Number(Number::U64(number)) => Some(*number),
        Value::Number(Number::I64(number)) => u64::try_from(*number).ok(),
        Value::Number(Number::F64(number)) if number.is_finite() && *number >= 0.0 => Some(*number as u64),
        _ => None,
    }
}

/// The number at `key`, if it is finite.
pub fn float(object: &Object, key: &str) -> Option<f64> {
    let number = match object.get(key)? {
        Value::Number(Number::U64(number)) => *number as f64,
        Value::Number(Number::I64(number)) => *number as f64,
        Value::Number(Number::F64(number)) => *number,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

/// Whether `key` is true.
pub fn is(object: &Object, key: &str) -> bool {
    matches!(object.get(key), Some(Value::Bool(true)))
}

/// The object at `key`.
pub fn part<'a>(object: &'a Object, key: &str) -> Option<&'a Object> {
    if let Some(Value::Object(part)) = object.get(key) { Some(part) } else { None }
}

/// The list at `key`.
pub fn items<'a>(object: &'a Object, key: &str) -> Option<&'a Array> {
    if let Some(Value::Array(items)) = object.get(key) { Some(items) } else { None }
}

/// The texts of the list at `key`; none if there is no such list.
pub fn texts(object: &Object, key: &str) -> Vec<String> {
    let text = |item: &Value| if let Value::String(text) = item { Some(text.clone()) } else { None };
    items(object, key).map_or(Vec::new(), |items| items.iter().filter_map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_order_and_their_text() {
        let text = r#" { "z" : 1.50, "a\"b":[{"q":",}"},2] ,"s":"x\\\"}" , "o":{ } } "#;
        let (mut members, object) = read(text).unwrap();
        assert_eq!(members.get("z"), Some("1.50"));
        assert_eq!(members.get("a\"b"), Some(r#"[{"q":",}"},2]"#));
        assert_eq!(members.get("s"), Some(r#""x\\\"}""#));
        assert_eq!(object.len(), 4);
        members.set("z", "2");
        members.set("new", "null");
        members.remove("o");
        assert_eq!(members.to_text(), r#"{"z":2,"a\"b":[{"q":",}"},2],"s":"x\\\"}","new":null}"#);
        assert_eq!(read("{}").unwrap().0.to_text(), "{}");
    }

    #[test]
    fn what_is_no_object_or_too_deep_is_refused() {
        for text in ["", "[]", "{", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "nul", "{\"a\":1} x"] {
            assert!(read(text).is_err(), "{text}");
        }
        let deep = |n: usize| format!("{{\"a\":{}1{}}}", "[".repeat(n), "]".repeat(n));
        assert!(read(&deep(60)).is_ok());
        assert!(read(&deep(64)).is_err());
        assert!(read(&deep(1_000_000)).is_err());
    }

    #[test]
    fn object_of_very_many_members_is_refused_before_they_are_compared() {
        let object = |n: usize| {
            let members: Vec<String> = (0..n).map(|at| format!("\"{at}\":1")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert_eq!(read(&object(MEMBERS_MAX)).unwrap().1.len(), MEMBERS_MAX);
        assert!(read(&object(MEMBERS_MAX + 1)).is_err());
    }

    #[test]
    fn whatever_is_cut_anywhere_never_panics() {
        let text = r#"{"a\\":"\u00e9\"","b":[1,{"c":"}"}],"d":-1.5e3}"#;
        for at in 0..text.len() {
            let _ = Members::split(&text[..at]);
            assert!(read(&text[..at]).is_err());
        }
        assert!(read(text).is_ok());
    }
}
