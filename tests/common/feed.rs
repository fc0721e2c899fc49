//! The Feed as tests look at it, and files fetched out of it.

use std::path::Path;

use miniserde::json::{self, Object, Value};

use super::{Cell, Said, items, number, object, text, wait_for};

/// Of the large file. `GROVE_TEST_BIG_MIB=1024` for the real thing, with a program that was built to be fast.
pub fn big_bytes() -> usize {
    std::env::var("GROVE_TEST_BIG_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(64) << 20
}

pub fn objects(list: &[Value]) -> Vec<Object> {
    list.iter().map(|item| object(&json::to_string(item))).collect()
}

/// All entries, page by page.
pub fn feed(cell: &Cell) -> Vec<Object> {
    let (mut entries, mut path) = (Vec::new(), "/feed".to_owned());
    loop {
        let page = cell.get(&path);
        entries.extend(objects(items(&page, "entries")));
        let Some(Value::Number(_)) = page.get("next") else { return entries };
        path = format!("/feed?before={}", number(&page, "next"));
    }
}

/// Waits for a file in the Feed of which something holds.
pub fn appears(cell: &Cell, name: &str, holds: impl Fn(&Object) -> bool) -> Object {
    wait_for(&format!("{name} in the Feed"), || {
        feed(cell).into_iter().find(|entry| text(entry, "name") == name && holds(entry))
    })
}

pub fn fetch(cell: &Cell, entry: &Object, to: &Path) -> Said {
    cell.cli(["fetch", &text(entry, "id"), "--to", to.to_str().unwrap()])
}
