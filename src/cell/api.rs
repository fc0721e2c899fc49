//! Answers of the cell: one function for each path of `/api/v1`.

use std::collections::HashSet;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::files::{self as doing, BinFrom, Removed, Weight};
use super::jobs::problems;
use super::json::{Fields, Obj, list};
use super::keeper::{Progress, Scope};
use super::placement::{self, Wish};
use super::{Cell, VERSION};
use crate::alerts::Raised;
use crate::changes::Part;
use crate::dashboard::api::{ApiRequest, ApiResponse, Body, Method, Via};
use crate::dashboard::openapi;
use crate::files::brake;
use crate::files::import::EntryCursor;
use crate::files::restore::{Restored, Target};
use crate::files::unix::{from_wire, to_wire};
use crate::gc;
use crate::id::{ChunkName, FileId};
use crate::manifest::Kind;
use crate::order;
use crate::placement::{ChunkId, DbError, NodeId, NodeTotals, Own, OwnTotals, Sort};
use crate::pool;
use crate::vault::{Vault, VaultError};

/// Words of the phrase that are asked for, to see that it was written down.
const WORDS_TOLD: usize = 3;
/// Entries of one page.
const PAGE_MAX: usize = 1000;

pub(super) fn failure(why: &VaultError) -> ApiResponse {
    match why {
        VaultError::Refused(text) | VaultError::Home(text) => ApiResponse::error(409, "refused", text, ""),
        _ if why.is_full() => ApiResponse::error(
            507,
            "disk_full",
            &why.to_string(),
            "free some space, for example with `grove rm`, and try again",
        ),
        _ => ApiResponse::error(500, "failed", &why.to_string(), "run `grove doctor`"),
    }
}

/// Paths that one request may name.
const PATHS_MAX: usize = 1000;

/// The list `paths`, where there is one.
fn several(fields: &Fields) -> Result<Option<Vec<String>>, ApiResponse> {
    several_of(fields, "paths")
}

/// A list of what one request may name, where there is one.
fn several_of(fields: &Fields, name: &str) -> Result<Option<Vec<String>>, ApiResponse> {
    if !fields.has(name) {
        return Ok(None);
    }
    match fields.strs(name) {
        Some(some) if (1..=PATHS_MAX).contains(&some.len()) => Ok(Some(some)),
        _ => {
            let why = format!("\"{name}\" is a list of 1 to {PATHS_MAX} texts");
            Err(ApiResponse::error(400, "bad_request", &why, "ask several times for more"))
        }
    }
}

/// What is to be brought back.
enum Asked {
    Path(String),
    Id(String),
}

impl Asked {
    fn want_back(&self, vault: &Vault) -> Result<Vec<NodeId>, VaultError> {
        match self {
            Self::Path(path) => doing::want_back(vault, Some(&from_wire(path)), None, None),
            Self::Id(id) => match id.parse() {
                Ok(id) => doing::want_back(vault, None, Some(id), None),
                Err(_) => Err(VaultError::Refused(format!("{id} is no id of a file"))),
            },
        }
    }

    /// Folders come before what lies in them, which they bring along.
    fn depth(&self, vault: &Vault) -> usize {
        match self {
            Self::Path(_) => 0,
            Self::Id(id) => id.parse().ok().and_then(|id| doing::bin_depth(vault, id).ok()).unwrap_or(0),
        }
    }

    fn refused(&self, why: &VaultError) -> String {
        match self {
            Self::Path(path) => one_of_several("path", path, &failure(why)),
            Self::Id(id) => one_of_several("id", id, &failure(why)),
        }
    }
}

/// One of several answers: what would be answered to it alone, and what was asked.
pub(super) fn one_of_several(key: &str, asked: &str, answer: &ApiResponse) -> String {
    let rest = match &answer.body {
        Body::Bytes(bytes) => bytes.get(1..).and_then(|rest| std::str::from_utf8(rest).ok()),
        Body::Stream { .. } | Body::File(_) => None,
    };
    // Every answer about files is an object with at least one member.
    format!("{{\"{key}\":{},{}", super::json::text(asked), rest.unwrap_or("\"ok\":true}"))
}

pub(super) fn json(outcome: Result<String, VaultError>) -> ApiResponse {
    match outcome {
        Ok(text) => ApiResponse::json_text(200, text),
        Err(why) => failure(&why),
    }
}

/// What only a running cell does was asked of one that does not run.
pub(super) fn not_running() -> ApiResponse {
    ApiResponse::error(409, "not_running", "this needs the running cell", "start it with `grove run`")
}

pub(super) fn wire_param(request: &ApiRequest, name: &str) -> Option<Vec<u8>> {
    request.param(name).map(|value| match std::str::from_utf8(value) {
        Ok(text) => from_wire(text),
        Err(_) => value.to_vec(),
    })
}

pub(super) fn number_param(request: &ApiRequest, name: &str) -> Option<u64> {
    std::str::from_utf8(request.param(name)?).ok()?.parse().ok()
}

pub(super) fn id_param(request: &ApiRequest) -> Option<FileId> {
    std::str::from_utf8(request.param("id")?).ok()?.parse().ok()
}

/// What stands where a file's id should.
fn no_id() -> ApiResponse {
    let why = "a file's id has 32 hexadecimal digits";
    ApiResponse::error(400, "bad_request", why, "`grove bin` shows those of deleted files")
}

/// Entries of a page.
fn limit_param(request: &ApiRequest, default: u64) -> usize {
    number_param(request, "limit").unwrap_or(default).clamp(1, PAGE_MAX as u64) as usize
}

fn page_wish(request: &ApiRequest) -> Result<super::browse::Wish, ApiResponse> {
    let word = |name| request.param(name).and_then(|value| std::str::from_utf8(value).ok());
    let bad = |why| ApiResponse::error(400, "bad_request", why, "");
    let sort = match word("sort").unwrap_or("name") {
        "name" => Sort::Name,
        "size" => Sort::Size,
        "modified" => Sort::Modified,
        "kind" => Sort::Kind,
        _ => return Err(bad("\"sort\" is name, size, modified or kind")),
    };
    let is_down = match word("order").unwrap_or("up") {
        "up" => false,
        "down" => true,
        _ => return Err(bad("\"order\" is up or down")),
    };
    Ok(super::browse::Wish {
        folder: wire_param(request, "folder").unwrap_or_default(),
        sort,
        is_down,
        offset: number_param(request, "offset").unwrap_or(0),
        limit: limit_param(request, 200),
    })
}

/// What was found, or 404 for what is not there.
fn found(outcome: Result<String, VaultError>) -> ApiResponse {
    match outcome {
        Err(VaultError::Refused(why)) => ApiResponse::error(404, "not_found", &why, ""),
        outcome => json(outcome),
    }
}

/// A place of this machine. One that is not whole would begin wherever this program was started.
fn path_of(text: &str) -> Result<PathBuf, ApiResponse> {
    let path = PathBuf::from(std::ffi::OsString::from_vec(from_wire(text)));
    if path.is_absolute() {
        return Ok(path);
    }
    let why = format!("{text:?} is not a whole path");
    Err(ApiResponse::error(400, "bad_request", &why, "begin it with /"))
}

pub(super) fn needs(field: &str) -> ApiResponse {
    ApiResponse::error(
        400,
        "bad_request",
        &format!("the field \"{field}\" is missing or of another type"),
        "",
    )
}

/// How much a person was told would go, and meant: `confirmed` with the numbers. Without them nobody knows what was meant, and the
/// brake counts as if nobody had been asked.
fn meant_of(fields: &Fields) -> Result<Option<Weight>, ApiResponse> {
    for name in ["files", "bytes"] {
        if fields.has(name) && fields.num(name).is_none() {
            return Err(needs(name));
        }
    }
    let told = fields.num("files").zip(fields.num("bytes")).filter(|_| fields.bool("confirmed"));
    Ok(told.map(|(files, bytes)| Weight { files, bytes }))
}

/// Nothing was done: there is more than a person was told.
fn more_than_meant(now: Weight) -> ApiResponse {
    let files = if now.files == 1 { "1 file".to_owned() } else { format!("{} files", now.files) };
    let error = Obj::new()
        .str("code", "more_files")
        .str("message", &format!("there is more now than was confirmed: {files}, {} bytes", now.bytes))
        .str("hint", "nothing of it was done; look at the number, and confirm it anew if it is meant");
    let answer = Obj::new().raw("error", error.end()).num("files", now.files).num("bytes", now.bytes);
    ApiResponse::json_text(409, answer.end())
}

/// A secret would go where others may read along.
fn in_plain_sight() -> ApiResponse {
    let why = "the recovery phrase would go over the network in plain sight";
    let hint = "open the dashboard with https:// or on the cell itself; who wants it all the same says \"plain\": true";
    ApiResponse::error(403, "plain", why, hint)
}

/// The path is known, and this is not done with it.
fn bad_method(methods: &[Method]) -> ApiResponse {
    ApiResponse::error(405, "bad_method", "this is not done with what is at this path", "")
        .with_header("Allow", &openapi::allow(methods))
}

/// What a request that changes something changes, by the first word after `/api/v1`.
fn changed_by(word: Option<&Vec<u8>>) -> &'static [Part] {
    match word.map_or(&b""[..], Vec::as_slice) {
        b"share" | b"unshare" | b"feed" => &[Part::Feed, Part::Files],
        b"peers" | b"invites" | b"join" => &[Part::Peers, Part::Status],
        b"chat" => &[Part::Chat],
        b"rm" | b"folders" | b"move" | b"copies" => &[Part::Files, Part::Status],
        b"phrase" | b"confirm" | b"doctor" | b"settings" => &[Part::Status, Part::Alerts],
        _ => &[],
    }
}

/// Runs a short job on the pool.
async fn pool<T: Send + 'static>(
    vault: &Arc<Vault>,
    work: impl FnOnce(&Vault) -> Result<T, VaultError> + Send + 'static,
) -> Result<T, VaultError> {
    let vault = Arc::clone(vault);
    pool::unblock(move || work(&vault)).await
}

impl Cell {
    /// Answers one request. Long work goes on as a job.
    pub async fn answer(self: &Rc<Self>, request: ApiRequest) -> ApiResponse {
        let parts = if request.method == Method::Get { &[][..] } else { changed_by(request.path.get(2)) };
        let response = self.answer_inner(request).await;
        if response.status < 400 {
            parts.iter().for_each(|part| self.vault.changes.note(*part));
        }
        response
    }

    async fn answer_inner(self: &Rc<Self>, request: ApiRequest) -> ApiResponse {
        let path = request.path_text();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        if let Some(methods) = openapi::methods_at(&path).filter(|methods| !methods.contains(&request.method))
        {
            return bad_method(&methods);
        }
        if path == ["healthz"] {
            return ApiResponse::ok();
        }
        if path == ["api", "openapi.json"] && request.authorized {
            return ApiResponse::json_text(200, openapi::document().to_owned());
        }
        if path == ["metrics"] && request.authorized && request.method == Method::Get {
            return self.metrics().await;
        }
        if let (["v1", rest @ ..], true) = (&path[..], request.authorized) {
            return self.answer_openai(&request, rest).await;
        }
        let Some(["api", "v1", rest @ ..]) =
            path.get(..).filter(|_| request.authorized || path == ["healthz"])
        else {
            return ApiResponse::error(404, "not_found", "there is nothing at this path", "");
        };
        if let ["uploads", rest @ ..] = rest {
            // Their bodies need not be JSON.
            return self.answer_about_uploads(&request, rest).await;
        }
        let fields = match Fields::read(&request.body) {
            Ok(fields) => fields,
            Err(why) => return ApiResponse::error(400, "bad_request", why, ""),
        };
        let vault = &self.vault;
        match (request.method, rest) {
            (Method::Get, ["events"]) if request.is_direct => self.events(),
            (Method::Get, ["status"]) => json(self.status().await),
            (Method::Get, ["alerts"]) => {
                let now = vault.now();
                let alerts = list(vault.alerts().iter().map(|raised| alert_json(raised, now)));
                ApiResponse::json_text(200, Obj::new().raw("alerts", alerts).end())
            }
            (Method::Get, ["jobs", id]) => {
                let wait = number_param(&request, "wait_ms").unwrap_or(0).min(20_000);
                let id = id.parse().unwrap_or(0);
                match self.jobs.wait(id, Duration::from_millis(wait)).await {
                    Some(text) => ApiResponse::json_text(200, text),
                    None => ApiResponse::error(404, "not_found", "there is no such job", ""),
                }
            }
            (Method::Post, ["jobs", id, "cancel"]) => {
                if self.jobs.cancel(id.parse().unwrap_or(0)).await {
                    ApiResponse::ok()
                } else {
                    ApiResponse::error(404, "not_found", "there is no such job", "")
                }
            }
            (Method::Post, ["add"]) => self.add(&fields),
            (Method::Get, ["files"])
                if request.param("sort").is_some() || request.param("offset").is_some() =>
            {
                match page_wish(&request) {
                    Ok(wish) => json(self.folder_page(wish).await),
                    Err(answer) => answer,
                }
            }
            (Method::Get, ["search"]) => {
                let query = request.param("q").and_then(|q| std::str::from_utf8(q).ok()).unwrap_or_default();
                let (offset, limit) =
                    (number_param(&request, "offset").unwrap_or(0), limit_param(&request, 100));
                match super::browse::words_of(query) {
                    Ok(words) => json(self.search_names(words, offset, limit).await),
                    Err(why) => ApiResponse::error(400, "bad_request", why, ""),
                }
            }
            (Method::Get, ["file"]) => {
                found(self.file_json(wire_param(&request, "path"), id_param(&request)).await)
            }
            (Method::Post, ["folders"]) => match fields.str("path") {
                Some(path) => self.make_folder(path).await,
                None => needs("path"),
            },
            (Method::Post, ["move"]) => match (several(&fields), fields.str("from"), fields.str("to")) {
                (Err(answer), ..) => answer,
                (Ok(Some(paths)), None, Some(to)) => self.move_into(&paths, to).await,
                (Ok(None), Some(from), Some(to)) => self.move_file(from, to).await,
                (Ok(_), _, None) => needs("to"),
                (Ok(_), ..) => {
                    let why = "name one place in \"from\", or a list of them in \"paths\"";
                    ApiResponse::error(400, "bad_request", why, "")
                }
            },
            (Method::Get, ["files"]) => {
                let folder = wire_param(&request, "folder").unwrap_or_default();
                let after = wire_param(&request, "after").unwrap_or_default();
                let limit = number_param(&request, "limit").unwrap_or(500).clamp(1, PAGE_MAX as u64) as usize;
                json(pool(vault, move |v| doing::list_folder(v, &folder, &after, limit)).await)
            }
            (Method::Get, ["versions"]) => {
                let (path, id) = (wire_param(&request, "path"), id_param(&request));
                if id.is_none() && request.param("id").is_some() {
                    return no_id();
                }
                json(pool(vault, move |v| doing::list_versions(v, path.as_deref(), id)).await)
            }
            (Method::Get, ["bin"]) => {
                let after = request.param("after").and_then(|v| std::str::from_utf8(v).ok()?.parse().ok());
                let limit = number_param(&request, "limit").unwrap_or(500).clamp(1, PAGE_MAX as u64) as usize;
                let offset = number_param(&request, "offset").unwrap_or(0).min(u64::from(u32::MAX)) as usize;
                let from = match number_param(&request, "newest") {
                    Some(1) => BinFrom::Newest(offset),
                    _ => BinFrom::After(after.unwrap_or(FileId::ROOT)),
                };
                json(pool(vault, move |v| doing::list_bin(v, from, limit)).await)
            }
            (Method::Get, ["placement"]) => {
                let wish = Wish {
                    path: wire_param(&request, "path").unwrap_or_default(),
                    after: wire_param(&request, "after").filter(|after| !after.is_empty()),
                    limit: number_param(&request, "limit").unwrap_or(500).clamp(1, PAGE_MAX as u64) as usize,
                    only_risky: number_param(&request, "risky") == Some(1),
                };
                json(self.placement(wish).await)
            }
            (Method::Get, ["copies"]) => json(self.copies().await),
            (Method::Post, ["copies"]) => self.set_copies(&fields).await,
            (Method::Get, ["archive"]) if request.is_direct => self.archive(&request).await,
            (Method::Get, ["content"]) => self.content(&request).await,
            (Method::Post, ["rm"]) => self.rm(&fields).await,
            (Method::Post, ["weigh"]) => match several(&fields) {
                Err(answer) => answer,
                Ok(None) => needs("paths"),
                Ok(Some(paths)) => {
                    let already = Weight {
                        files: fields.num("files").unwrap_or(0),
                        bytes: fields.num("bytes").unwrap_or(0),
                    };
                    let places: Vec<Vec<u8>> = paths.iter().map(|path| from_wire(path)).collect();
                    json(pool(vault, move |v| doing::weigh_removal(v, &places, already)).await)
                }
            },
            (Method::Post, ["restore"]) => self.restore(&fields),
            (Method::Post, ["verify"]) if fields.bool("peers") => self.verify_peers(),
            (Method::Post, ["verify"]) => self.verify(fields.bool("deep")),
            (Method::Post, ["confirm"]) => self.confirm(&fields).await,
            (Method::Post, ["drill"]) => self.drill(),
            (Method::Post, ["collect"]) => self.collect(),
            (Method::Post, ["phrase"]) if !request.is_private && !fields.bool("plain") => in_plain_sight(),
            (Method::Post, ["phrase"]) => json(self.phrase().await),
            (Method::Post, ["restart"]) => self.restart(),
            (Method::Post, ["recover"]) if !request.is_private && !fields.bool("plain") => in_plain_sight(),
            (Method::Post, ["recover"]) => self.recover(&fields).await,
            (Method::Post, ["phrase", "kept"])
                if request.via != Via::Secret && !self.knows_words(&fields) =>
            {
                let hint = "look at the card again; words are counted from 1";
                ApiResponse::error(403, "wrong_words", "these are not the words of the phrase", hint)
            }
            (Method::Post, ["phrase", "kept"]) => {
                let kept =
                    pool(vault, |v| Ok(v.db.change_durably(|t| t.set_meta_u64("phrase_kept", 1))?)).await;
                vault.clear("phrase");
                self.fresh.store(false, std::sync::atomic::Ordering::Relaxed);
                json(kept.map(|()| "{\"ok\":true}".into()))
            }
            (Method::Get, ["settings"]) => self.settings().await,
            (Method::Post, ["settings"]) => self.change_settings(request.body.clone()).await,
            (Method::Get, ["logs"]) => {
                let after = number_param(&request, "after").unwrap_or(0);
                ApiResponse::json_text(200, super::settings::logs_json(after))
            }
            (Method::Get, ["history"]) => ApiResponse::json_text(200, self.history_json()),
            (Method::Get, ["peers", "health"]) => ApiResponse::json_text(200, self.peer_health_json()),
            (Method::Get, ["doctor"]) => json(self.doctor().await),
            (Method::Post, ["doctor", "adopt-home"]) => {
                json(pool(vault, crate::files::marker::adopt).await.map(|()| "{\"ok\":true}".into()))
            }
            (_, ["share" | "unshare" | "shares" | "feed" | "reseal", ..]) => {
                self.answer_about_shares(&request, rest, &fields).await
            }
            (_, ["ai", rest @ ..]) => self.answer_about_ai(&request, rest, &fields).await,
            (_, ["bounty", rest @ ..]) => self.answer_about_bounty(&request, rest, &fields).await,
            (_, ["chat", rest @ ..]) => self.answer_about_chat(&request, rest, &fields).await,
            (method, rest) => self.answer_about_peers(method, rest, &fields).await,
        }
    }

    /// Whether a person has read at least three words of the phrase from somewhere: `{"words":{"3":"…",…}}`.
    fn knows_words(&self, fields: &Fields) -> bool {
        let Some(told) = fields.texts("words") else { return false };
        let phrase = zeroize::Zeroizing::new(self.vault.master.phrase());
        let words: Vec<&str> = phrase.split_whitespace().collect();
        let fits = |(at, word): &(String, String)| {
            let at: Option<usize> = at.parse().ok();
            let right = at.and_then(|at| words.get(at.checked_sub(1)?));
            right.is_some_and(|right| right.eq_ignore_ascii_case(word.trim()))
        };
        told.len() >= WORDS_TOLD && told.len() <= words.len() && told.iter().all(fits)
    }

    async fn placement(&self, wish: Wish) -> Result<String, VaultError> {
        let fleet = self.fleet().await?;
        pool(&self.vault, move |v| Ok(placement::page_json(&placement::page(v, &fleet, &wish)?, &fleet)))
            .await
    }

    fn add(self: &Rc<Self>, fields: &Fields) -> ApiResponse {
        let Some(paths) = fields.strs("paths") else { return needs("paths") };
        let paths: Vec<PathBuf> = match paths.iter().map(|path| path_of(path)).collect() {
            Ok(paths) => paths,
            Err(answer) => return answer,
        };
        let to = from_wire(fields.str("to").unwrap_or(""));
        let cell = Rc::clone(self);
        self.jobs.start(&self.executor, "add", |job| async move {
            job.say("looking through the files");
            let vault = Arc::clone(&cell.vault);
            let added = pool::unblock(move || doing::bring_in(&vault, &paths, &to)).await?;
            let scope = cell.scope_of(added.inside).await?;
            let progress = Rc::new(Progress::default());
            let watched = Rc::clone(&progress);
            let work = cell.keeper.keep(scope, true, true, &progress);
            let kept = cell.watched(work, || job.progress(watched.bytes.get(), 0, "bytes")).await?;
            cell.release_brake().await?;
            cell.after_change();
            let mut all = added.problems;
            all.extend(kept.problems);
            Ok(Obj::new()
                .num("files", kept.files)
                .num("bytes", kept.bytes)
                .num("unchanged", kept.unchanged)
                .num("folders", kept.folders)
                .num("deleted", kept.deleted)
                .raw("problems", problems(&all))
                .end())
        })
    }

    /// Turns paths below GroveHome into what a pass looks at; new folders above them are found on the way.
    pub(super) async fn scope_of(&self, inside: Vec<Vec<Vec<u8>>>) -> Result<Scope, VaultError> {
        if inside.iter().any(Vec::is_empty) {
            return Ok(Scope::Whole);
        }
        let vault = Arc::clone(&self.vault);
        pool::unblock(move || {
            vault.db.read(|t| -> Result<Scope, VaultError> {
                let (mut names, mut folders) = (Vec::new(), Vec::new());
                for path in inside {
                    let mut at = NodeId::ROOT;
                    for (n, name) in path.iter().enumerate() {
                        match t.child(at, name)? {
                            Some(node) if node.kind == Kind::Folder && n + 1 < path.len() => at = node.id,
                            known => {
                                names.push((at, name.clone()));
                                folders.extend(
                                    known
                                        .filter(|node| node.kind == Kind::Folder)
                                        .map(|node| (node.id, true)),
                                );
                                break;
                            }
                        }
                    }
                }
                Ok(Scope::Some(names, folders))
            })
        })
        .await
    }

    async fn rm(self: &Rc<Self>, fields: &Fields) -> ApiResponse {
        let (paths, is_one) = match (several(fields), fields.str("path")) {
            (Err(answer), _) => return answer,
            (Ok(Some(paths)), None) => (paths, false),
            (Ok(None), Some(path)) => (vec![path.to_owned()], true),
            (Ok(_), _) => {
                let why = "name one \"path\", or a list of them in \"paths\"";
                return ApiResponse::error(400, "bad_request", why, "");
            }
        };
        let places: Vec<Vec<u8>> = paths.iter().map(|path| from_wire(path)).collect();
        let meant = match meant_of(fields) {
            Ok(meant) => meant,
            Err(answer) => return answer,
        };
        let local = fields.bool("local");
        let peers = self.sync.borrow().as_ref().map_or(u64::MAX, |sync| sync.peer_count());
        // A scan in between would find on disk what the tree has no more, and keep it anew.
        let held = self.keeper.hold().await;
        let outcome = pool(&self.vault, move |v| match local {
            true => {
                Ok(Removed::Each(places.iter().map(|path| doing::free_locally(v, path, peers)).collect()))
            }
            false => doing::remove(v, &places, meant),
        })
        .await;
        drop(held);
        self.after_change();
        let outcomes: Vec<doing::Removal> = match outcome {
            Ok(Removed::Each(outcomes)) => outcomes,
            Ok(Removed::More(now)) => return more_than_meant(now),
            Err(why) => return failure(&why),
        };
        let done = outcomes.iter().flatten();
        let (files, bytes) = done.fold((0, 0), |sum, one| (sum.0 + one.files, sum.1 + one.bytes));
        let answer = |outcome: doing::Removal| {
            json(outcome.map(|one| Obj::new().num("files", one.files).num("bytes", one.bytes).end()))
        };
        let mut answers = outcomes.into_iter().map(answer);
        if is_one {
            return answers.next().unwrap_or_else(ApiResponse::ok);
        }
        let each = list(paths.iter().zip(answers).map(|(path, told)| one_of_several("path", path, &told)));
        ApiResponse::json_text(
            200,
            Obj::new().num("files", files).num("bytes", bytes).raw("results", each).end(),
        )
    }

    fn restore(self: &Rc<Self>, fields: &Fields) -> ApiResponse {
        let path = fields.str("path").map(from_wire);
        let id = fields.str("id").and_then(|text| text.parse::<FileId>().ok());
        let to = match fields.str("to").map(path_of).transpose() {
            Ok(to) => to,
            Err(answer) => return answer,
        };
        let version = fields.num("version");
        let cell = Rc::clone(self);
        // What cannot be understood must not be taken for a wish for everything.
        for (name, is_read) in [
            ("path", path.is_some()),
            ("id", id.is_some()),
            ("to", to.is_some()),
            ("version", version.is_some()),
        ] {
            if fields.has(name) && !is_read {
                let is_no_id = name == "id" && fields.str("id").is_some();
                return if is_no_id { no_id() } else { needs(name) };
            }
        }
        let several = several(fields).and_then(|paths| Ok((paths, several_of(fields, "ids")?)));
        match several {
            Err(answer) => return answer,
            Ok((Some(_), _) | (_, Some(_)))
                if path.is_some() || id.is_some() || to.is_some() || version.is_some() =>
            {
                let why = "\"paths\" and \"ids\" go with nothing else";
                return ApiResponse::error(400, "bad_request", why, "");
            }
            Ok((paths, ids)) if paths.is_some() || ids.is_some() => {
                let paths = paths.into_iter().flatten().map(Asked::Path);
                let asked = paths.chain(ids.into_iter().flatten().map(Asked::Id)).collect();
                return self.jobs.start(&self.executor, "restore", |job| async move {
                    job.say("bringing files back");
                    let told = |_files: u64, bytes: u64| job.progress(bytes, 0, "bytes");
                    let (restored, refused) = cell.restore_each(asked, &told).await?;
                    cell.after_change();
                    let told = restored_json(&restored);
                    // One member more.
                    Ok(format!("{},\"refused\":{}}}", &told[..told.len() - 1], list(refused)))
                });
            }
            Ok(_) => {}
        }
        self.jobs.start(&self.executor, "restore", |job| async move {
            job.say("bringing files back");
            let total = {
                let vault = Arc::clone(&cell.vault);
                let all = path.is_none() && id.is_none();
                pool::unblock(move || vault.db.read(|t| t.node_totals()))
                    .await
                    .map(|totals| if all { totals.bytes } else { 0 })?
            };
            let told = |_files: u64, bytes: u64| job.progress(bytes, total, "bytes");
            let restored = cell.restore_some(path, id, version, to, &told).await?;
            cell.after_change();
            Ok(restored_json(&restored))
        })
    }

    async fn restore_some(
        self: &Rc<Self>,
        path: Option<Vec<u8>>,
        id: Option<FileId>,
        version: Option<u64>,
        to: Option<PathBuf>,
        told: &dyn Fn(u64, u64),
    ) -> Result<Restored, VaultError> {
        let _one = match &to {
            None => Some(self.restoring.lock().await),
            Some(_) => None,
        };
        let restorer = self.restorer();
        let all = path.is_none() && id.is_none();
        match (to, all) {
            (Some(to), true) => restorer.run(&Target::Folder(to), NodeId::ROOT, told).await,
            (None, true) => restorer.run(&Target::Home, NodeId::ROOT, told).await,
            (Some(to), false) => {
                let (p, folder) = (path.clone(), to.clone());
                let picked = pool(&self.vault, move |v| {
                    let node = v.db.read(|t| -> Result<_, VaultError> {
                        Ok(doing::find_versions(t, p.as_deref(), id)?.1)
                    })?;
                    let manifest = doing::pick_version(v, p.as_deref(), id, version)?;
                    Ok((node.filter(|node| node.kind == Kind::Folder), manifest))
                })
                .await?;
                match picked {
                    (Some(node), _) => {
                        let name = std::ffi::OsString::from_vec(node.name.clone());
                        restorer.run(&Target::Folder(folder.join(name)), node.id, told).await
                    }
                    (None, manifest) => restorer.version_to(manifest, folder).await,
                }
            }
            (None, false) => {
                // What is there is kept first, so that nothing that is replaced is lost.
                self.keeper.keep(Scope::Whole, true, false, &Progress::default()).await?;
                let nodes =
                    pool(&self.vault, move |v| doing::want_back(v, path.as_deref(), id, version)).await?;
                self.release_brake().await?;
                self.keeper.publish().await?;
                self.bring(nodes, told).await
            }
        }
    }

    /// Brings back what was asked for and is awaited now.
    async fn bring(
        self: &Rc<Self>,
        nodes: Vec<NodeId>,
        told: &dyn Fn(u64, u64),
    ) -> Result<Restored, VaultError> {
        let restorer = self.restorer();
        if nodes.len() > 200 {
            return restorer.run(&Target::Home, NodeId::ROOT, told).await;
        }
        let mut restored = Restored::default();
        for node in nodes {
            restored.absorb(restorer.one(node, told).await?);
            told(restored.files, restored.bytes);
        }
        Ok(restored)
    }

    /// Brings back files and folders; and which are refused, as JSON.
    async fn restore_each(
        self: &Rc<Self>,
        mut asked: Vec<Asked>,
        told: &dyn Fn(u64, u64),
    ) -> Result<(Restored, Vec<String>), VaultError> {
        let _one = self.restoring.lock().await;
        // What is there is kept first, so that nothing that is replaced is lost.
        self.keeper.keep(Scope::Whole, true, false, &Progress::default()).await?;
        let (nodes, refused) = pool(&self.vault, move |v| {
            let (mut nodes, mut refused) = (Vec::new(), Vec::new());
            asked.sort_by_cached_key(|one| one.depth(v));
            for one in &asked {
                match one.want_back(v) {
                    Ok(wanted) => nodes.extend(wanted),
                    Err(why) => refused.push(one.refused(&why)),
                }
            }
            Ok((nodes, refused))
        })
        .await?;
        self.release_brake().await?;
        self.keeper.publish().await?;
        Ok((self.bring(nodes, told).await?, refused))
    }

    /// What was deleted may be back.
    pub(super) async fn release_brake(self: &Rc<Self>) -> Result<(), VaultError> {
        if pool(&self.vault, doing::release_brake).await? {
            self.catch_up_sharing();
        }
        Ok(())
    }

    /// What the brake held back goes on.
    fn catch_up_sharing(&self) {
        if let Some(sync) = self.synced() {
            sync.catch_up_sharing();
        }
    }

    fn verify(self: &Rc<Self>, deep: bool) -> ApiResponse {
        let cell = Rc::clone(self);
        self.jobs.start(&self.executor, "verify", |job| async move {
            job.say(if deep { "reading every chunk" } else { "looking for every chunk" });
            let vault = Arc::clone(&cell.vault);
            let total = pool::unblock(move || vault.db.read(|t| t.chunk_totals())).await?.0;
            let (mut after, mut chunks, mut bytes) = (ChunkId(0), 0, 0);
            let mut damaged = Vec::new();
            loop {
                let vault = Arc::clone(&cell.vault);
                let permit = cell.permits.acquire_arc().await;
                let found = pool::unblock(move || {
                    let _permit = permit;
                    gc::verify_slice(&vault, after, deep)
                })
                .await?;
                (after, chunks, bytes) = (found.after, chunks + found.chunks, bytes + found.bytes);
                damaged.extend(found.damaged);
                damaged.truncate(100_000);
                job.progress(chunks, total, "chunks");
                if found.is_done {
                    break;
                }
            }
            // Chunks that files need and that were known to be gone before count too.
            let absent = cell.absent_chunks().await?;
            let mut wanted = damaged.clone();
            wanted.extend(absent);
            order::sort(&mut wanted);
            wanted.dedup();
            let count = wanted.len();
            let missing = cell.mend_chunks(wanted).await?;
            if missing.is_empty() {
                cell.vault.note_healed(&[], true);
            }
            let (missing, affected) = cell.make_again(missing).await?;
            Ok(Obj::new()
                .num("chunks", chunks)
                .num("bytes", bytes)
                .num("damaged", damaged.len())
                .num("repaired", count - missing.len())
                .num("missing", missing.len())
                .raw("files", list(affected.iter().map(|path| super::json::text(path))))
                .end())
        })
    }

    /// Has files in GroveHome read again whose chunks nobody has any more, for they are the last copy, and what the catalog lost written
    /// anew. Gives the chunks that are missing after that, and paths of files that need them.
    async fn make_again(&self, missing: Vec<ChunkName>) -> Result<(Vec<ChunkName>, Vec<String>), VaultError> {
        let vault = Arc::clone(&self.vault);
        let (missing, mine, affected) = pool::unblock(move || -> Result<_, VaultError> {
            let mine = owned(&vault, &missing)?;
            let affected = files_with(&vault, &missing, true)?;
            Ok((missing, mine, affected))
        })
        .await?;
        if mine.is_empty() {
            return Ok((missing, affected));
        }
        // With patience: a file that was changed just now is read once it has settled.
        if let Err(why) = self.keeper.keep(Scope::Whole, true, true, &Progress::default()).await {
            log::warn!("files whose chunks are missing are not read again: {why}");
        }
        let vault = Arc::clone(&self.vault);
        pool::unblock(move || {
            let absent: HashSet<ChunkName> = vault.absent(missing.clone())?.into_iter().collect();
            // A part of the catalog that was written anew has another name, and nobody needs the old one.
            let needed = owned(&vault, &missing)?;
            let is_missing =
                |name: &ChunkName| absent.contains(name) && (needed.contains(name) || !mine.contains(name));
            let (missing, healed): (Vec<_>, Vec<_>) = missing.into_iter().partition(is_missing);
            vault.note_healed(&healed, missing.is_empty());
            let affected = files_with(&vault, &missing, false)?;
            Ok((missing, affected))
        })
        .await
    }

    /// What was lost is meant, and the clock is right; `what` says which of the two alone. With `files` what was lost is meant only as
    /// long as it is no more than so many.
    async fn confirm(&self, fields: &Fields) -> ApiResponse {
        let (is_brake, is_clock) = match fields.str("what") {
            None if !fields.has("what") => (true, true),
            Some("brake") => (true, false),
            Some("clock") => (false, true),
            _ => return ApiResponse::error(400, "bad_request", "\"what\" is brake or clock", ""),
        };
        let most = fields.num("files");
        if fields.has("files") && most.is_none() {
            return needs("files");
        }
        let outcome = pool(&self.vault, move |v| {
            Ok(v.db.change_durably(|t| -> Result<Result<bool, Weight>, DbError> {
                let mut brake = brake::load(t)?;
                let was_on = brake.is_on();
                if !is_brake {
                    return Ok(Ok(was_on));
                }
                let (files, bytes) = brake.lost();
                if was_on && most.is_some_and(|most| files > most) {
                    return Ok(Err(Weight { files, bytes }));
                }
                brake.confirm();
                brake::save(t, &brake)?;
                Ok(Ok(was_on))
            })?)
        })
        .await;
        let was_on = match outcome {
            Ok(Ok(was_on)) => was_on,
            Ok(Err(now)) => return more_than_meant(now),
            Err(why) => return failure(&why),
        };
        if is_brake {
            self.vault.clear("brake");
            self.catch_up_sharing();
        }
        let accepted = match is_clock {
            true => pool(&self.vault, |v| Ok(v.accept_clock()?)).await,
            false => Ok(()),
        };
        json(accepted.map(|()| Obj::new().bool("was_on", was_on).end()))
    }

    fn collect(self: &Rc<Self>) -> ApiResponse {
        let cell = Rc::clone(self);
        self.jobs.start(&self.executor, "collect", |job| async move {
            job.say("removing what nothing needs");
            let collected = cell.tidy().await?;
            Ok(Obj::new().num("chunks", collected.chunks).num("bytes", collected.bytes).end())
        })
    }

    /// Keeps a job's progress told while it works.
    async fn watched<T>(&self, work: impl std::future::Future<Output = T>, tell: impl Fn()) -> T {
        smol::future::or(work, async {
            loop {
                smol::Timer::after(Duration::from_millis(100)).await;
                tell();
            }
        })
        .await
    }

    async fn status(&self) -> Result<String, VaultError> {
        let wanted = self.vault.config.copies;
        let began = self.vault.clock.steady();
        let count = self.vault.changes.count();
        let known = self.status_sums.get(&(), began, count).map(|(sums, later)| {
            if let Some(pause) = later {
                // Who shows them asks again when the newest can be had.
                let changes = Arc::clone(&self.vault.changes);
                pool::spawn(&self.executor, changes.note_after(Part::Status, pause)).detach();
            }
            sums
        });
        let (sums, bin, brake) = pool(&self.vault, move |v| {
            Ok(v.db.read(|t| -> Result<_, DbError> {
                let sums = match known {
                    Some(known) => known,
                    None => StatusSums {
                        totals: t.node_totals()?,
                        chunks: t.chunk_totals()?,
                        own: t.own_totals(wanted)?,
                        is_varied: t.wants()?.len() > 1,
                    },
                };
                let brake = brake::load(t)?;
                // While the database is held: whoever lets it go clears the alert after this.
                if brake.is_on() {
                    brake::raise(v, &brake);
                }
                Ok((sums, t.bin_count()?, brake))
            })?)
        })
        .await?;
        if known.is_none() {
            self.status_sums.put((), sums, (began, count), self.vault.clock.steady());
        }
        let StatusSums { totals, chunks, own, is_varied } = sums;
        let vault = Arc::clone(&self.vault);
        // Before the alerts: it may raise one.
        let space = pool::unblock(move || vault.space()).await;
        let disk = space.map_or("null".into(), |space| {
            let disk = Obj::new().num("total", space.total).num("free", space.free);
            disk.num("reserve", space.reserve).end()
        });
        let alerts = self.vault.alerts();
        let newer = self.synced().and_then(|sync| sync.newer_version());
        let newer = newer.map_or("null".into(), |(peer, release)| {
            Obj::new().str("peer", &peer).str("version", &release.to_string()).end()
        });
        let (peers, held) = self.peers_json().await?;
        let last =
            self.keeper.scanned_at.get().map(|at| self.vault.clock.steady().saturating_sub(at).as_secs());
        let (watched, is_full) = self.keeper.watched();
        Ok(Obj::new()
            .str("name", &self.name)
            .str("id", &self.vault.id().to_string())
            .str("version", VERSION)
            .raw("newer", newer)
            .num("uptime_s", self.vault.clock.steady().as_secs())
            .num("life", self.vault.life())
            .str("home", &to_wire(self.vault.home.as_os_str().as_encoded_bytes()))
            .str("state", if alerts.is_empty() { "ok" } else { "attention" })
            .raw("alerts", list(alerts.iter().map(|raised| alert_json(raised, self.vault.now()))))
            .raw(
                "files",
                Obj::new()
                    .num("count", totals.files)
                    .num("bytes", totals.bytes)
                    .num("waiting", totals.awaiting)
                    .end(),
            )
            .raw("chunks", Obj::new().num("count", chunks.0).num("bytes", chunks.1).end())
            .raw("held", held)
            .raw("disk", disk)
            .raw("peers", peers)
            .raw(
                "copies",
                Obj::new()
                    .num("wanted", wanted)
                    .num("full", own.chunks - own.short)
                    .num("short", own.short)
                    .bool("varied", is_varied)
                    .num("alone", own.alone)
                    .end(),
            )
            .num("bin", bin)
            .num("bin_days", self.vault.config.bin_days)
            .raw("brake", braked_json(&brake))
            .raw("drill", self.drill_json())
            .raw("job", self.jobs.running())
            .raw(
                "scan",
                Obj::new()
                    .bool("running", self.keeper.scanning.get())
                    .raw("last_s", last.map_or("null".into(), |s| s.to_string()))
                    .num("watched_folders", watched)
                    .bool("watches_full", is_full)
                    .end(),
            )
            .end())
    }
}

/// What was lost while the brake is on, else `null`.
fn braked_json(brake: &brake::Brake) -> String {
    if !brake.is_on() {
        return "null".into();
    }
    let (files, bytes) = brake.lost();
    Obj::new().num("files", files).num("bytes", bytes).end()
}

/// What is added up over all files and chunks.
#[derive(Debug, Clone, Copy)]
pub(super) struct StatusSums {
    totals: NodeTotals,
    chunks: (u64, u64),
    own: OwnTotals,
    /// Folders want other numbers of copies than the setting says.
    is_varied: bool,
}

/// An alert as JSON; `now` is the observed second.
pub(super) fn alert_json(raised: &Raised, now: u64) -> String {
    Obj::new()
        .str("code", &raised.code)
        .str("level", raised.level.as_str())
        .str("text", &raised.alert.text)
        .str("remedy", &raised.alert.remedy)
        .num("since_s", now.saturating_sub(raised.since))
        .num("since_unix", raised.since_wall)
        .end()
}

/// What a restore did, as JSON.
pub fn restored_json(restored: &Restored) -> String {
    Obj::new()
        .num("files", restored.files)
        .num("folders", restored.folders)
        .num("bytes", restored.bytes)
        .num("unchanged", restored.unchanged)
        .raw("set_aside", list(restored.set_aside.iter().map(|text| super::json::text(text))))
        .num("missing_count", restored.missing_count)
        .raw("missing", problems(&restored.missing))
        .end()
}

/// Of these chunks those that are this cell's own.
fn owned(vault: &Vault, names: &[ChunkName]) -> Result<HashSet<ChunkName>, DbError> {
    vault.db.read(|t| {
        let mut owned = HashSet::new();
        for name in names {
            if let Some(row) = t.chunk(name)? {
                if t.own(row.id)? != Own::No {
                    owned.insert(*name);
                }
            }
        }
        Ok(owned)
    })
}

/// Paths of the newest versions that need one of these chunks; at most 1,000. With `again` all that are in GroveHome are read again by
/// the next scan.
fn files_with(vault: &Vault, names: &[ChunkName], again: bool) -> Result<Vec<String>, VaultError> {
    let mut paths = Vec::new();
    if names.is_empty() {
        return Ok(paths);
    }
    let names: HashSet<_> = names.iter().copied().collect();
    let mut after = NodeId(0);
    loop {
        let page = vault.db.read(|t| t.nodes_after(after, 500))?;
        let Some(last) = page.last() else { return Ok(paths) };
        after = last.id;
        for node in page.into_iter().filter(|node| node.kind == Kind::File) {
            let Some((manifest, _)) = vault.db.read(|t| doing::manifest_at(vault, t, node.seq))? else {
                continue;
            };
            let mut needs = false;
            for entry in EntryCursor::new(vault, &manifest) {
                match entry {
                    Ok(entry) => needs |= entry.chunk().is_some_and(|name| names.contains(&name)),
                    Err(_) => needs = true,
                }
                if needs {
                    break;
                }
            }
            if needs && again {
                vault.db.change(|t| t.look_again(node.id))?;
            }
            if needs && paths.len() < 1000 {
                let path = vault.db.read(|t| t.path(node.id))?.unwrap_or_default();
                paths.push(to_wire(&path.join(&b'/')));
            }
        }
    }
}
