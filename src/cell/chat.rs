//! The API about chat: conversations, their messages, search, and what the user says and deletes.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Cell;
use super::api::{json, needs, not_running, number_param};
use super::json::{Fields, Obj, list, text};
use crate::chat::{Draft, Found, Item, Side, Talks};
use crate::dashboard::api::{ApiRequest, ApiResponse, Method};
use crate::files::unix::from_wire;
use crate::id::{CellId, hex, unhex};
use crate::pool;
use crate::sync::{Attached, Lookup, Sync, TalkView, chat_named, talks_at_rest};
use crate::vault::VaultError;

/// Messages of one page.
const PAGE_MAX: u64 = 500;
const PAGE: u64 = 50;
/// How long a request may wait for news.
const WAIT_MS_MAX: u64 = 20_000;
/// Words of one search, and bytes of each.
const WORDS_MAX: usize = 16;
const WORD_BYTES_MAX: usize = 256;
/// Messages said by one request.
const SAID_MAX: usize = 256;

fn attached_json(file: &Attached) -> String {
    Obj::new()
        .str("id", &hex(&file.id))
        .str("name", &file.name)
        .num("size", file.size)
        .str("media", &file.media)
        .str("state", file.state)
        .end()
}

/// A message; `files` is what is known of its attachments, if that was looked up.
fn item_json(item: &Item, files: Option<&[Attached]>) -> String {
    let state = match (item.is_ours, item.is_delivered, item.is_read) {
        (true, _, true) => "read",
        (true, true, _) => "delivered",
        (true, false, _) => "sent",
        (false, _, true) => "seen",
        (false, _, false) => "new",
    };
    Obj::new()
        .num("id", item.id)
        .str("peer", &item.peer.to_string())
        .bool("ours", item.is_ours)
        .num("said_unix", item.at)
        .num("arrived_unix", item.arrived)
        .str("state", state)
        .str("text", &item.text)
        .raw("attachments", list(item.attachments.iter().map(|id| text(&hex(id)))))
        .raw("files", list(files.unwrap_or_default().iter().map(attached_json)))
        .end()
}

fn talk_json(view: &TalkView) -> String {
    let talk = &view.talk;
    Obj::new()
        .str("name", &talk.name)
        .str("id", &talk.peer.to_string())
        .bool("friend", view.is_friend)
        .bool("online", view.online)
        .num("unread", talk.unread)
        .num("queued", talk.queued)
        .raw("last", talk.last.as_ref().map_or("null".into(), |item| item_json(item, None)))
        .end()
}

/// Messages, with what is known of their attachments: none where the cell does not run.
fn items_json(items: &[Item], files: &[Vec<Attached>]) -> String {
    list(items.iter().enumerate().map(|(n, item)| item_json(item, files.get(n).map(Vec::as_slice))))
}

fn lookup_json(id: &CellId, name: &str, found: &Lookup, files: &[Vec<Attached>]) -> String {
    Obj::new()
        .str("name", name)
        .str("id", &id.to_string())
        .bool("friend", found.is_friend)
        .bool("online", found.online)
        .raw("messages", items_json(&found.page.items, files))
        .bool("more", found.page.more)
        .num("delivered", found.delivered)
        .num("read", found.read)
        .num("change", found.change)
        .end()
}

fn found_json(found: &Found, files: &[Vec<Attached>]) -> String {
    Obj::new()
        .raw("messages", items_json(&found.items, files))
        .raw("next", found.next.map_or("null".into(), |next| next.to_string()))
        .end()
}

fn refused(message: &str) -> ApiResponse {
    ApiResponse::error(400, "bad_request", message, "")
}

fn words(request: &ApiRequest) -> Result<Vec<String>, &'static str> {
    let text = request.param("words").and_then(|words| std::str::from_utf8(words).ok());
    let words: Vec<String> = text.unwrap_or("").split_whitespace().map(str::to_owned).collect();
    match words.len() {
        0 => Err("the parameter \"words\" is missing"),
        1..=WORDS_MAX if words.iter().all(|word| word.len() <= WORD_BYTES_MAX) => Ok(words),
        _ => Err("a search has at most 16 words of at most 256 bytes"),
    }
}

/// What a request says: `text` with `attachments` and `attach`, or `texts`.
fn drafts(fields: &Fields) -> Result<Vec<Draft>, &'static str> {
    let plain = |text: String| Draft { text, attachments: Vec::new() };
    match (fields.str("text"), fields.strs("texts"), fields.strs("attachments")) {
        (None, Some(texts), None) if texts.len() <= SAID_MAX => Ok(texts.into_iter().map(plain).collect()),
        (None, Some(_), None) => Err("one request says at most 256 messages"),
        (text, None, ids) if text.is_some() || ids.is_some() || fields.strs("attach").is_some() => {
            let id = |id: &String| unhex(id).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
            let ids = ids.unwrap_or_default();
            let attachments: Option<Vec<[u8; 16]>> = ids.iter().map(id).collect();
            let attachments = attachments.ok_or("an attachment is named by 32 hexadecimal digits")?;
            Ok(vec![Draft { text: text.unwrap_or("").to_owned(), attachments }])
        }
        _ => Err("the field \"text\" is missing or of another type"),
    }
}

impl Cell {
    /// Answers `/chat…`; `rest` is what follows.
    pub(super) async fn answer_about_chat(
        self: &Rc<Self>,
        request: &ApiRequest,
        rest: &[&str],
        fields: &Fields,
    ) -> ApiResponse {
        let Some(sync) = self.synced() else { return self.chat_at_rest(request, rest).await };
        let named = match (request.method, rest) {
            (Method::Get, _) => request.param("peer").and_then(|peer| std::str::from_utf8(peer).ok()),
            _ => fields.str("peer"),
        };
        let id = match named {
            None => None,
            Some(peer) => match sync.find_talk(peer).await {
                Ok(id) => Some(id),
                Err(why) => return ApiResponse::error(404, "not_found", &why.to_string(), ""),
            },
        };
        match (request.method, rest, id) {
            (Method::Get, [], _) => json(
                sync.talk_views()
                    .await
                    .map(|views| Obj::new().raw("conversations", list(views.iter().map(talk_json))).end()),
            ),
            (Method::Get, ["search"], id) => match words(request) {
                Ok(words) => {
                    let (before, limit) =
                        (number_param(request, "before").unwrap_or(u64::MAX), limit(request));
                    json(match sync.search_chat(words, id, before, limit).await {
                        Ok(found) => {
                            let files = sync.attached(&found.items.iter().collect::<Vec<_>>()).await;
                            Ok(found_json(&found, &files))
                        }
                        Err(why) => Err(why),
                    })
                }
                Err(why) => refused(why),
            },
            (Method::Get, ["messages"], Some(id)) => look_up(&sync, request, &id).await,
            (Method::Post, ["send"], Some(id)) => {
                let mut drafts = match drafts(fields) {
                    Ok(drafts) => drafts,
                    Err(why) => return refused(why),
                };
                if let Err(why) = attach(&sync, &id, &mut drafts, fields).await {
                    return json(Err(why));
                }
                let said = sync.say(&id, drafts, fields.str("key").map(str::to_owned)).await;
                json(said.map(|said| {
                    let ids = list(said.ids.iter().map(u64::to_string));
                    Obj::new().str("peer", &id.to_string()).raw("ids", ids).bool("online", said.online).end()
                }))
            }
            (Method::Post, ["read"], Some(id)) => {
                let Some(upto) = fields.num("upto") else {
                    return needs("upto");
                };
                json(sync.mark_read(&id, upto).await.map(|()| "{\"ok\":true}".into()))
            }
            (Method::Post, ["delete"], Some(id)) => {
                let message = fields.num("id");
                if message.is_some() == fields.bool("all") {
                    return refused("name a message by \"id\", or say \"all\"");
                }
                let Some(message) = message else {
                    let told = sync.delete_talk(&id, fields.num("upto")).await;
                    return json(told.map(|told| {
                        Obj::new()
                            .num("deleted", told.count)
                            .num("upto", told.upto)
                            .bool("more", told.has_more)
                            .end()
                    }));
                };
                match sync.delete_message(&id, message).await {
                    Ok(false) => ApiResponse::error(
                        404,
                        "not_found",
                        "there is no such message in this conversation",
                        "",
                    ),
                    outcome => json(outcome.map(|_| Obj::new().num("deleted", 1).end())),
                }
            }
            (Method::Get, ["messages"], None) | (Method::Post, ["send" | "read" | "delete"], None) => {
                refused("\"peer\" is missing: a name, or the beginning of an id")
            }
            _ => ApiResponse::error(404, "not_found", "there is nothing at this path", ""),
        }
    }

    /// What can be read while the cell does not run.
    async fn chat_at_rest(&self, request: &ApiRequest, rest: &[&str]) -> ApiResponse {
        if request.method != Method::Get {
            return not_running();
        }
        let words = match rest {
            ["search"] => match words(request) {
                Ok(words) => words,
                Err(why) => return refused(why),
            },
            [] | ["messages"] => Vec::new(),
            _ => return ApiResponse::error(404, "not_found", "there is nothing at this path", ""),
        };
        let vault = Arc::clone(&self.vault);
        let peer = request.param("peer").map(|peer| String::from_utf8_lossy(peer).into_owned());
        let (side, limit) = (side(request), limit(request));
        let before = number_param(request, "before").unwrap_or(u64::MAX);
        let is_list = rest.is_empty();
        let work = move || -> Result<String, VaultError> {
            let talks = match talks_at_rest(&vault.dir)? {
                Some(talks) => talks,
                None => Talks::in_memory()?,
            };
            let all = talks.list()?;
            let none = |peer: &str| VaultError::Refused(format!("there is no conversation with {peer}"));
            let id = match &peer {
                Some(peer) => Some(chat_named(&all, peer).ok_or_else(|| none(peer))?),
                None => None,
            };
            if is_list {
                let view = |talk| TalkView { talk, is_friend: false, online: false };
                let views = all.into_iter().map(|talk| talk_json(&view(talk)));
                return Ok(Obj::new().raw("conversations", list(views)).end());
            }
            if !words.is_empty() {
                return Ok(found_json(&talks.search(&words, id.as_ref(), before, limit)?, &[]));
            }
            let (id, peer) = id.zip(peer).ok_or_else(|| none("nobody"))?;
            let (delivered, read) = talks.marks(&id)?;
            let page = talks.page(&id, side, limit)?;
            let found = Lookup { page, delivered, read, change: 0, is_friend: false, online: false };
            Ok(lookup_json(&id, &peer, &found, &[]))
        };
        json(pool::unblock(work).await)
    }
}

/// Shares the files that `attach` names by their paths in GroveHome, and looks whether the friend may have the others.
async fn attach(
    sync: &Rc<Sync>,
    peer: &CellId,
    drafts: &mut [Draft],
    fields: &Fields,
) -> Result<(), VaultError> {
    let Some(draft) = drafts.first_mut() else { return Ok(()) };
    if !draft.attachments.is_empty() {
        sync.check_attached(peer, &draft.attachments).await?;
    }
    let paths: Vec<Vec<u8>> =
        fields.strs("attach").unwrap_or_default().iter().map(|path| from_wire(path)).collect();
    for id in sync.attach_files(peer, paths).await? {
        if !draft.attachments.contains(&id) {
            draft.attachments.push(id);
        }
    }
    Ok(())
}

fn limit(request: &ApiRequest) -> usize {
    number_param(request, "limit").unwrap_or(PAGE).clamp(1, PAGE_MAX) as usize
}

fn side(request: &ApiRequest) -> Side {
    match (number_param(request, "before"), number_param(request, "after")) {
        (None, Some(after)) => Side::After(after),
        (before, _) => Side::Before(before.unwrap_or(u64::MAX)),
    }
}

async fn look_up(sync: &Rc<Sync>, request: &ApiRequest, id: &CellId) -> ApiResponse {
    let wait = Duration::from_millis(number_param(request, "wait_ms").unwrap_or(0).min(WAIT_MS_MAX));
    let seen = number_param(request, "change");
    let found = sync.look_up(id, side(request), limit(request), seen, wait).await;
    json(match found {
        Ok(found) => {
            let files = sync.attached(&found.page.items.iter().collect::<Vec<_>>()).await;
            Ok(lookup_json(id, &sync.peer_name(id), &found, &files))
        }
        Err(why) => Err(why),
    })
}
