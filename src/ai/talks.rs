//! Conversations with models, kept on this cell and nowhere else: one file each below `ai/`, mode 0600. The first line says
//! what a list needs, the second is the conversation.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use miniserde::json::Value;

use super::json::{self, Members, quoted};
use crate::id::{hex, unhex};
use crate::keys::random;
use crate::order;
use crate::vault::write_whole;

/// The folder's name in the state folder.
pub const TALKS: &str = "ai";
/// Conversations.
const TALKS_MAX: usize = 2000;
/// One of them, in bytes.
const TALK_BYTES_MAX: usize = 1 << 20;
/// A first line, in bytes.
const HEAD_BYTES_MAX: u64 = 4096;
/// A title, in bytes.
const TITLE_BYTES_MAX: usize = 200;

/// What a list tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TalkHead {
    /// 16 hexadecimal digits.
    pub id: String,
    /// For people.
    pub title: String,
    /// Unix time.
    pub changed: i64,
}

fn path(dir: &Path, id: &str) -> Option<PathBuf> {
    let is_id = id.len() == 16 && unhex(id).is_some();
    is_id.then(|| dir.join(TALKS).join(format!("{}.json", id.to_ascii_lowercase())))
}

/// All conversations, the newest first. Blocks.
pub fn list(dir: &Path) -> io::Result<Vec<TalkHead>> {
    let entries = match fs::read_dir(dir.join(TALKS)) {
        Ok(entries) => entries,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(why) => return Err(why),
    };
    let mut heads: Vec<TalkHead> = entries.flatten().filter_map(|entry| read_head(&entry.path())).collect();
    order::sort_by(&mut heads, |a, b| b.changed.cmp(&a.changed).then(a.id.cmp(&b.id)));
    Ok(heads)
}

fn read_head(path: &Path) -> Option<TalkHead> {
    let id = path.file_name()?.to_str()?.strip_suffix(".json").filter(|id| unhex(id).is_some())?;
    let mut line = String::new();
    BufReader::new(fs::File::open(path).ok()?.take(HEAD_BYTES_MAX)).read_line(&mut line).ok()?;
    let head = json::read_object(&line).ok()?;
    let title = json::text(&head, "title")?.to_owned();
    Some(TalkHead { id: id.to_owned(), title, changed: json::number(&head, "changed_unix")? as i64 })
}

/// A conversation's JSON; `None`: there is none of this id. Blocks.
pub fn load(dir: &Path, id: &str) -> io::Result<Option<String>> {
    let Some(path) = path(dir, id) else { return Ok(None) };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(why),
    };
    Ok(text.split_once('\n').map(|(_, talk)| talk.trim_end().to_owned()))
}

/// Keeps a conversation as `body` gives it, under its id or a new one; gives the id. Blocks.
pub fn save(dir: &Path, body: &str, now: i64) -> io::Result<Result<String, &'static str>> {
    let Ok((members, object)) = json::read(body) else { return Ok(Err("the body is not a JSON object")) };
    let id = match json::text(&object, "id") {
        Some(id) if !id.is_empty() => id.to_ascii_lowercase(),
        _ => hex(&random::<8>()),
    };
    let Some(path) = path(dir, &id) else { return Ok(Err("the id has 16 hexadecimal digits")) };
    let is_message = |item: &Value| match item {
        Value::Object(message) => {
            json::text(message, "role").is_some() && json::text(message, "content").is_some()
        }
        _ => false,
    };
    if !json::items(&object, "messages").is_some_and(|items| items.iter().all(is_message)) {
        return Ok(Err("\"messages\" is a list of objects with \"role\" and \"content\""));
    }
    if body.len() > TALK_BYTES_MAX {
        return Ok(Err("a conversation has at most 1 MiB; begin a new one"));
    }
    let folder = dir.join(TALKS);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    if !path.exists() && fs::read_dir(&folder)?.count() >= TALKS_MAX {
        return Ok(Err("there are 2,000 conversations already; delete some"));
    }
    let title = super::form::cut(json::text(&object, "title").unwrap_or_default(), TITLE_BYTES_MAX);
    let head = format!("{{\"title\":{},\"changed_unix\":{}}}", quoted(&title), now.max(0));
    let mut talk = Members::default();
    talk.set("id", &quoted(&id));
    talk.set("title", &quoted(&title));
    talk.set("changed_unix", &now.max(0).to_string());
    talk.set("model", &quoted(json::text(&object, "model").unwrap_or_default()));
    talk.set("only_here", if json::is(&object, "only_here") { "true" } else { "false" });
    // Lines are what divides the file.
    let messages = members.get("messages").unwrap_or("[]").replace(['\n', '\r'], " ");
    talk.set("messages", &messages);
    write_whole(&path, format!("{head}\n{}\n", talk.to_text()).as_bytes())?;
    Ok(Ok(id))
}

/// Deletes a conversation; `false`: there was none. Blocks.
pub fn delete(dir: &Path, id: &str) -> io::Result<bool> {
    let Some(path) = path(dir, id) else { return Ok(false) };
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn conversations_are_kept_listed_and_deleted() {
        let dir = crate::cli::testing::TempDir::new();
        assert_eq!(list(dir.path()).unwrap(), []);
        let body = "{\"title\":\"a\\nb\",\"model\":\"m\",\"only_here\":true,\n\"messages\":[{\"role\":\"user\",\n\"content\":\"x\\ny\"}]}";
        let id = save(dir.path(), body, 5).unwrap().unwrap();
        let talk = load(dir.path(), &id).unwrap().unwrap();
        let object = json::read_object(&talk).unwrap();
        assert_eq!((json::text(&object, "title"), json::is(&object, "only_here")), (Some("a b"), true));
        assert!(talk.contains("\"x\\ny\""), "{talk}");
        let again = format!("{{\"id\":\"{id}\",\"title\":\"c\",\"messages\":[]}}");
        assert_eq!(save(dir.path(), &again, 6).unwrap().unwrap(), id);
        let other = save(dir.path(), "{\"messages\":[]}", 7).unwrap().unwrap();
        let heads = list(dir.path()).unwrap();
        assert_eq!(
            heads.iter().map(|head| head.id.as_str()).collect::<Vec<_>>(),
            [other.as_str(), id.as_str()]
        );
        let mode = |name: &str| {
            fs::metadata(dir.path().join(TALKS).join(name)).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode(""), mode(&format!("{id}.json"))), (0o700, 0o600));
        assert!(delete(dir.path(), &id).unwrap() && !delete(dir.path(), &id).unwrap());
        assert_eq!(load(dir.path(), &id).unwrap(), None);
    }

    #[test]
    fn ids_lead_nowhere_else_and_odd_bodies_are_refused() {
        let dir = crate::cli::testing::TempDir::new();
        for id in ["../../etc/passwd", "", "0123456789abcde", "0123456789abcdeg"] {
            assert_eq!(load(dir.path(), id).unwrap(), None);
            assert!(!delete(dir.path(), id).unwrap());
        }
        for body in [
            "[]",
            "{}",
            "{\"messages\":[1]}",
            "{\"messages\":[{\"role\":\"user\"}]}",
            "{\"id\":\"../x\",\"messages\":[]}",
        ] {
            assert!(save(dir.path(), body, 1).unwrap().is_err(), "{body}");
        }
        let long = format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{}\"}}]}}",
            "x".repeat(TALK_BYTES_MAX)
        );
        assert!(save(dir.path(), &long, 1).unwrap().is_err());
    }
}
