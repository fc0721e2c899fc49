//! The API in OpenAPI 3.1, made from one table. Touches nothing.
//!
//! Shapes are written as `name:type,name?:type`: `s` text, `i` whole number, `n` number, `b` true or false, `o` object,
//! `a` anything, `[x]` list of x, `x0` x or null. A `?` behind the name: it may be missing.

use std::fmt::Write;
use std::sync::OnceLock;

use crate::dashboard::api::Method;
use crate::order;

/// What a path takes or gives.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// Nothing.
    None,
    /// A JSON object.
    Object(&'static str),
    /// A JSON object of any fields.
    Any,
    /// `{"ok":true}`.
    Ok,
    /// The number of a job, with status 202.
    Job,
    /// Raw bytes of this type.
    Bytes(&'static str),
    /// Bytes of a file: any type, whole or in part.
    File,
}

/// One request that is understood.
#[derive(Debug, Clone, Copy)]
struct Route {
    method: Method,
    /// With names of its parts in braces.
    path: &'static str,
    /// What it is for.
    text: &'static str,
    /// Nothing need be proved.
    is_public: bool,
    /// Parameters of the query: as in shapes, those that must be there without a question mark.
    query: &'static str,
    takes: Shape,
    gives: Shape,
    /// Statuses of errors beside those that every request may meet.
    errors: &'static [u16],
}

const fn get(
    path: &'static str,
    query: &'static str,
    gives: Shape,
    errors: &'static [u16],
    text: &'static str,
) -> Route {
    Route { method: Method::Get, path, text, is_public: false, query, takes: Shape::None, gives, errors }
}

const fn post(
    path: &'static str,
    takes: Shape,
    gives: Shape,
    errors: &'static [u16],
    text: &'static str,
) -> Route {
    Route { method: Method::Post, path, text, is_public: false, query: "", takes, gives, errors }
}

const fn public(route: Route) -> Route {
    Route { is_public: true, ..route }
}

use Shape::{Any, Bytes, File, Job, None as Nothing, Object, Ok as Fine};

/// What the cell refuses for its own reasons.
const CELL: &[u16] = &[404, 409, 500, 507];
/// What the entrance refuses.
const ENTRANCE: &[u16] = &[409, 429, 500];

/// What questions to models may meet.
const MODELS: &[u16] = &[404, 429, 502, 503];

/// Every request that is understood.
const TABLE: &[Route] = &[
    public(get("/healthz", "", Fine, &[], "Whether the cell answers.")),
    get("/metrics", "", Bytes("text/plain; version=0.0.4; charset=utf-8"), &[500], "Numbers for Prometheus."),
    get("/api/openapi.json", "", Any, &[], "This description."),
    // The entrance.
    public(get(
        "/api/v1/session",
        "",
        Object("name:s,set_up:b,signed_in:b,totp:b,secure:b,fingerprint:s,version:s,fresh:b"),
        &[],
        "Who this is, and what it wants of a visitor.",
    )),
    public(post(
        "/api/v1/setup",
        Object("code:s,password:s"),
        Fine,
        ENTRANCE,
        "Sets the first password with the code that is printed at the start; opens a session.",
    )),
    public(post("/api/v1/login", Object("password:s,totp?:s"), Fine, ENTRANCE, "Opens a session.")),
    public(post("/api/v1/logout", Nothing, Fine, &[], "Ends this session.")),
    post(
        "/api/v1/password",
        Object("current?:s,password:s"),
        Fine,
        ENTRANCE,
        "Sets another password and ends all sessions. The cell's secret needs no current one.",
    ),
    get("/api/v1/sessions", "", Object("sessions:[o]"), &[], "Who is signed in."),
    post(
        "/api/v1/sessions/revoke",
        Object("id?:s,others?:b"),
        Fine,
        &[404],
        "Ends a session, or all others.",
    ),
    post(
        "/api/v1/totp/begin",
        Nothing,
        Object("secret:s,uri:s"),
        &[],
        "A new secret for a second factor, to be confirmed by a code.",
    ),
    post(
        "/api/v1/totp/confirm",
        Object("code:s"),
        Fine,
        ENTRANCE,
        "From now on a code is wanted at every sign-in.",
    ),
    post("/api/v1/totp/remove", Object("password?:s"), Fine, ENTRANCE, "No code is wanted any more."),
    post(
        "/api/v1/phrase",
        Object("plain?:b"),
        Object("phrase:s,words:[s],card:s,qr_text:s,addresses:[s],kept:b"),
        &[500],
        "The recovery phrase. Over plain HTTP from another machine only to who says plain.",
    ),
    post(
        "/api/v1/phrase/kept",
        Object("words?:o"),
        Fine,
        &[409, 500, 507],
        "The phrase is written down; a session names three of its words by their numbers.",
    ),
    post(
        "/api/v1/recover",
        Object("phrase:s,peer:s,plain?:b"),
        Job,
        &[409],
        "An empty cell becomes the one that a phrase is of.",
    ),
    post("/api/v1/restart", Nothing, Fine, &[409], "Starts the cell anew."),
    // Live.
    get(
        "/api/v1/events",
        "",
        Bytes("text/event-stream"),
        &[],
        "Changes as they happen, as server-sent events; at most 16 streams.",
    ),
    get(
        "/api/v1/status",
        "",
        Object(
            "name:s,id:s,version:s,newer:o0,uptime_s:i,life:i,home:s,state:s,alerts:[o],files:o,chunks:o,held:o,disk:o,peers:[o],copies:o,bin:i,bin_days:i,brake:o0,drill:o0,job:o0,scan:o",
        ),
        &[409, 500],
        "The state of the cell.",
    ),
    get("/api/v1/alerts", "", Object("alerts:[o]"), &[], "What a person should know of now."),
    get(
        "/api/v1/jobs/{id}",
        "wait_ms?:i",
        Object("id:i,kind:s,state:s,text:s,done:i,total:i,unit:s,error:o0,result:a"),
        &[404],
        "How a job stands.",
    ),
    post("/api/v1/jobs/{id}/cancel", Nothing, Fine, &[404], "Stops a job; what it has done stays."),
    get(
        "/api/v1/history",
        "",
        Object("step_s:i,points:[[i]]"),
        &[],
        "Points of a week: unix second, bytes sent, received, stored, held for peers, free.",
    ),
    get(
        "/api/v1/doctor",
        "",
        Object("sound:b,checks:[o]"),
        &[409, 500],
        "What is checked of cell and machine.",
    ),
    post(
        "/api/v1/doctor/adopt-home",
        Nothing,
        Fine,
        CELL,
        "Takes the folder that is there now as GroveHome.",
    ),
    // Files.
    get(
        "/api/v1/files",
        "folder?:s,sort?:s,order?:s,offset?:i,limit?:i,after?:s",
        Object("entries:[o],more:b,total?:i,offset?:i"),
        &[409, 500],
        "A page of a folder: sorted with sort or offset, else by name after a name.",
    ),
    get(
        "/api/v1/search",
        "q:s,offset?:i,limit?:i",
        Object("entries:[o],more:b"),
        &[409, 500],
        "Files and folders whose names have all words.",
    ),
    get(
        "/api/v1/file",
        "path?:s,id?:s",
        Object("id:s,path:s,versions:[o],copies_on:[o],copies_complete:b"),
        &[404, 500],
        "All there is to say of a file.",
    ),
    get(
        "/api/v1/versions",
        "path?:s,id?:s",
        Object("path:s,id:s,deleted:b,versions:[o]"),
        &[409, 500],
        "The versions of a file.",
    ),
    get(
        "/api/v1/bin",
        "after?:s,limit?:i,newest?:i,offset?:i",
        Object("entries:[o],more:b"),
        &[409, 500],
        "The Recycle Bin, by id; with \"newest\" 1 the newest first, from \"offset\" on.",
    ),
    get(
        "/api/v1/placement",
        "path?:s,after?:s,limit?:i,risky?:i",
        Object("copies_wanted:i,running:b,may_release:b,peers:[o],folders:[o],sums:o,files:[o],next:s0"),
        &[409, 500],
        "Where copies are, and where they should be.",
    ),
    get(
        "/api/v1/copies",
        "",
        Object("copies:i,cells:i,folders:[o],counted:b"),
        &[409, 500],
        "How many copies files want, and the folders that have a number of their own.",
    ),
    post(
        "/api/v1/copies",
        Object("path:s,copies:i"),
        Object("path:s,wanted:o,cells:i"),
        CELL,
        "Gives a folder a number of copies of its own, from 1 to 20; 0 takes it back.",
    ),
    get(
        "/api/v1/content",
        "path?:s,id?:s,version?:i,inline?:i",
        File,
        &[404, 409, 416, 500],
        "The bytes of a file, or a range of them.",
    ),
    get(
        "/api/v1/archive",
        "path?:s",
        Bytes("application/zip"),
        &[404, 409, 500],
        "A folder as a zip archive.",
    ),
    post("/api/v1/folders", Object("path:s"), Object("path:s"), CELL, "Makes a folder."),
    post(
        "/api/v1/move",
        Object("from?:s,paths?:[s],to:s"),
        Object("path?:s,id?:s,results?:[o]"),
        CELL,
        "Gives a file or folder another place, or up to 1,000 paths one in a folder; nothing is overwritten. Each path has its result.",
    ),
    post("/api/v1/add", Object("paths:[s],to?:s"), Job, &[], "Brings paths of this machine into GroveHome."),
    post(
        "/api/v1/rm",
        Object("path?:s,paths?:[s],local?:b,confirmed?:b,files?:i,bytes?:i"),
        Object("files:i,bytes:i,results?:[o]"),
        CELL,
        "Into the Recycle Bin; or only from this disk. One path, or up to 1,000, each with its result. \"confirmed\" with \"files\" \
         and \"bytes\": a person was told that so much goes and meant it, so that the brake does not count it; if there is more now, \
         nothing goes, and the error \"more_files\" has the new numbers. Without numbers nothing counts as confirmed.",
    ),
    post(
        "/api/v1/weigh",
        Object("paths:[s],files?:i,bytes?:i"),
        Object("files:i,bytes:i,all_files:i,pulls_brake:b"),
        CELL,
        "What would go by removing up to 1,000 paths, added to so many files and bytes, and whether that pulls the brake.",
    ),
    post(
        "/api/v1/restore",
        Object("path?:s,id?:s,version?:i,to?:s,paths?:[s],ids?:[s]"),
        Job,
        &[],
        "Brings files back: one, up to 1,000 paths and as many ids, or all.",
    ),
    get(
        "/api/v1/uploads",
        "",
        Object("uploads:[o],keeping:[s],unkept:[o],run:s"),
        &[500],
        "Uploads that are not whole yet; which are being kept; and which lie in GroveHome and could not be kept yet, with why. \
         Whole ones are known to this run of the cell only.",
    ),
    post(
        "/api/v1/uploads",
        Object("path:s,size:i,modified_unix_ms?:i,replace?:b"),
        Object("id:s,offset:i"),
        CELL,
        "Begins an upload.",
    ),
    Route {
        method: Method::Put,
        path: "/api/v1/uploads/{id}",
        text: "The next bytes of an upload, at most 1 MiB.",
        is_public: false,
        query: "offset:i",
        takes: Bytes("application/octet-stream"),
        gives: Object("offset:i"),
        errors: CELL,
    },
    post(
        "/api/v1/uploads/{id}/finish",
        Nothing,
        Object("path:s,size:i,run:s"),
        CELL,
        "Puts a whole upload in place; tries again to keep one that could not be kept.",
    ),
    post("/api/v1/uploads/{id}/cancel", Nothing, Fine, &[404, 500], "Forgets an upload."),
    // Care.
    post(
        "/api/v1/verify",
        Object("deep?:b,peers?:b"),
        Job,
        &[409],
        "Looks whether every chunk is there, reads it, or asks peers for proofs.",
    ),
    post(
        "/api/v1/confirm",
        Object("what?:s,files?:i"),
        Object("was_on:b"),
        CELL,
        "What the brake held up was meant so, and the clock is right; \"what\" says \"brake\" or \"clock\" for one of them. With \
         \"files\" the brake is confirmed only if it holds no more than so many.",
    ),
    post("/api/v1/drill", Nothing, Job, &[409], "Restores a sample from peers alone."),
    post("/api/v1/collect", Nothing, Job, &[], "Removes what nothing needs."),
    get("/api/v1/settings", "", Object("settings:[o]"), CELL, "Every setting, in words."),
    post("/api/v1/settings", Any, Object("changed:[s],restart:b"), CELL, "Writes settings into config.json."),
    get("/api/v1/logs", "after?:i", Object("lines:[o],last:i"), &[], "The last lines of the log."),
    // Peers.
    get("/api/v1/peers", "", Object("peers:[o]"), CELL, "The cells we know."),
    get("/api/v1/peers/health", "", Object("peers:[o]"), &[], "How much of each day each peer was here."),
    get("/api/v1/peers/proofs", "", Object("peers:[o]"), &[409], "What peers proved of what they hold."),
    post(
        "/api/v1/peers/friend",
        Object("peer:s"),
        Object("id:s,friendship:s,told:b"),
        CELL,
        "Asks for friendship, or accepts it.",
    ),
    post(
        "/api/v1/peers/unfriend",
        Object("peer:s"),
        Object("id:s,friendship:s,told:b"),
        CELL,
        "Ends or declines a friendship.",
    ),
    post(
        "/api/v1/peers/{peer}/friend",
        Nothing,
        Object("id:s,friendship:s,told:b"),
        CELL,
        "Asks for friendship, or accepts it.",
    ),
    post(
        "/api/v1/peers/{peer}/unfriend",
        Nothing,
        Object("id:s,friendship:s,told:b"),
        CELL,
        "Ends or declines a friendship.",
    ),
    post("/api/v1/peers/name", Object("peer:s,name:s"), Object("id:s"), CELL, "What a peer is called here."),
    post("/api/v1/peers/remove", Object("peer:s"), Object("name:s,id:s"), CELL, "A peer is none any more."),
    post(
        "/api/v1/peers/quota",
        Object("peer:s,bytes?:i"),
        Object("name:s,id:s"),
        CELL,
        "How much a peer may store here.",
    ),
    post(
        "/api/v1/peers/favorite",
        Object("peer:s,on?:b"),
        Object("name:s,id:s"),
        CELL,
        "Copies go to a favorite first.",
    ),
    get(
        "/api/v1/routes",
        "",
        Object("own_addresses:[s],relays:[o],peers:[o]"),
        &[409],
        "The ways to each peer.",
    ),
    post("/api/v1/routes/bench", Nothing, Job, &[409], "Measures all ways."),
    get("/api/v1/invites", "", Object("invites:[o]"), &[409], "Invites that were made."),
    post(
        "/api/v1/invites",
        Object("role?:s,expires_s?:i"),
        Object("id:s,token:s,addresses:[s]"),
        CELL,
        "Makes an invite.",
    ),
    post("/api/v1/invites/revoke", Object("id:s"), Fine, CELL, "An invite is good no more."),
    post(
        "/api/v1/join",
        Object("token:s"),
        Object("name:s,id:s"),
        CELL,
        "Joins the cell that made an invite.",
    ),
    post("/api/v1/sync", Object("wait?:b"), Job, &[409], "Brings peers level now."),
    // Sharing.
    post(
        "/api/v1/share",
        Object("path:s,peers:[s],until_s?:i,for_s?:i"),
        Object("path:s,until_s:i,peers:[o]"),
        CELL,
        "Shares a file or folder with friends.",
    ),
    post(
        "/api/v1/unshare",
        Object("path?:s,all?:b,peers:[s]"),
        Object("peers:[o],told:[s],waiting:[s],stays:s"),
        CELL,
        "Takes a share back.",
    ),
    post(
        "/api/v1/reseal",
        Object("path:s,confirm?:b"),
        Any,
        CELL,
        "Seals files anew: what it costs, or the work as a job.",
    ),
    get("/api/v1/shares", "", Object("shares:[o]"), CELL, "What is shared with whom."),
    get(
        "/api/v1/feed",
        "before?:i,limit?:i",
        Object("entries:[o],next:i0"),
        CELL,
        "What friends share with us.",
    ),
    post(
        "/api/v1/feed/keep",
        Object("id:s,off?:b"),
        Any,
        CELL,
        "What is new in a share comes by itself, or no more.",
    ),
    post("/api/v1/feed/fetch", Object("id:s,add?:b,to?:s"), Job, CELL, "Fetches a file of the Feed."),
    get(
        "/api/v1/feed/content",
        "id:s,offset?:i,length?:i,inline?:i",
        File,
        &[404, 409, 416, 500],
        "The bytes of a file of the Feed, or a range of them.",
    ),
    // Bounty.
    get(
        "/api/v1/bounty",
        "",
        Object("total:o,peers:[o],advice:[s]"),
        CELL,
        "What this cell and each peer have stored for each other, proven and signed by both.",
    ),
    get(
        "/api/v1/bounty/history",
        "peer?:s",
        Object("days:[[i]],byte_hours:[[i]]"),
        CELL,
        "What was posted, by Unix days: day, earned, spent. In thousandths of leaves, and in byte-hours.",
    ),
    post(
        "/api/v1/bounty/accept",
        Object("peer:s"),
        Object("id:s"),
        CELL,
        "Takes a peer's figure where the two do not agree.",
    ),
    // Chat.
    get("/api/v1/chat", "", Object("conversations:[o]"), CELL, "Conversations."),
    get(
        "/api/v1/chat/search",
        "words:s,peer?:s,before?:i,limit?:i",
        Object("messages:[o],next:i0"),
        CELL,
        "Messages that have all words.",
    ),
    get(
        "/api/v1/chat/messages",
        "peer:s,before?:i,after?:i,limit?:i,change?:i,wait_ms?:i",
        Object("name:s,id:s,friend:b,online:b,messages:[o],more:b,delivered:i,read:i,change:i"),
        CELL,
        "A page of a conversation.",
    ),
    post(
        "/api/v1/chat/send",
        Object("peer:s,text?:s,texts?:[s],attachments?:[s],attach?:[s],key?:s"),
        Object("peer:s,ids:[i],online:b"),
        CELL,
        "Says something.",
    ),
    post("/api/v1/chat/read", Object("peer:s,upto:i"), Fine, CELL, "Messages up to one were read."),
    post(
        "/api/v1/chat/delete",
        Object("peer:s,id?:i,all?:b,upto?:i"),
        Object("deleted:i,upto?:i,more?:b"),
        CELL,
        "Deletes messages here: one, or all. Of very many as far as it gets in seconds; with `more` it is asked again, with that `upto`.",
    ),
    // Models.
    get(
        "/api/v1/ai",
        "",
        Object("configured:b,cell:s,backends:[o],models:[o],offers:[o],keys:[o],models_folder:s"),
        &[409],
        "Model servers, models, what is offered to friends, and keys.",
    ),
    post("/api/v1/ai/backends", Any, Fine, &[403, 404, 409], "Uses a model server, or uses it no more."),
    post(
        "/api/v1/ai/test",
        Object("url:s,key?:s"),
        Object("ok:b,kind:s,models:[s],slots?:i,ms:i,error:s"),
        &[409],
        "What a model server is and has.",
    ),
    post(
        "/api/v1/ai/offer",
        Object("peer:s,on:b,models?:[s],tokens_per_day?:i,from_hour?:i,to_hour?:i,concurrent?:i"),
        Fine,
        &[404, 409],
        "What a friend may use.",
    ),
    post("/api/v1/ai/keys", Object("name:s"), Object("id:s,key:s"), &[409], "A new key for programs."),
    post("/api/v1/ai/keys/revoke", Object("id:s"), Fine, &[404, 409], "Ends a key."),
    get(
        "/api/v1/ai/conversations",
        "",
        Object("conversations:[o]"),
        &[409, 500],
        "Conversations with models.",
    ),
    get(
        "/api/v1/ai/conversations/{id}",
        "",
        Object("id:s,title:s,changed_unix:i,model:s,only_here:b,messages:[o]"),
        &[404, 409, 500],
        "One of them.",
    ),
    post(
        "/api/v1/ai/conversations",
        Object("id?:s,title?:s,model?:s,only_here?:b,messages:[o]"),
        Object("id:s"),
        &[409, 500],
        "Keeps a conversation on this cell.",
    ),
    post("/api/v1/ai/conversations/{id}/delete", Nothing, Fine, &[404, 409, 500], "Deletes a conversation."),
    get("/v1/models", "", Object("object:s,data:[o]"), &[503], "Models, in OpenAI's form."),
    get(
        "/v1/models/{id}",
        "",
        Object("id:s,object:s,created:i,owned_by:s,grove:o"),
        &[404, 503],
        "One of them.",
    ),
    post("/v1/chat/completions", Any, Any, MODELS, "An answer, in OpenAI's form; with `stream` as events."),
    post("/v1/completions", Any, Any, MODELS, "A text that is gone on with."),
    post("/v1/embeddings", Any, Any, MODELS, "Embeddings, where a model server has them."),
];

/// Statuses that every request may meet at the door, and what they mean.
const ERRORS: &[(u16, &str)] = &[
    (400, "The request is malformed, or something in it is missing or of another type."),
    (401, "This needs signing in."),
    (
        403,
        "This is not allowed: a wrong password, a page of another site, or a setting that only the file has.",
    ),
    (404, "There is nothing of that name."),
    (405, "The path is known, and this method is not for it."),
    (408, "The request came too slowly."),
    (409, "It was refused; the message says why."),
    (411, "The body needs a length."),
    (413, "The body is too large."),
    (416, "There are no such bytes in the file."),
    (417, "The expectation is not known."),
    (421, "The cell does not go by that name."),
    (429, "Too many tries; wait as long as Retry-After says."),
    (431, "The head is too large."),
    (500, "The cell failed; see its log."),
    (501, "No other protocol is spoken here."),
    (502, "The dashboard is not ready."),
    (503, "Too much is asked at once; try again."),
    (504, "The cell did not answer in time."),
    (507, "The disk is full."),
];
/// Those of them that need no mention at a request.
const EVERYWHERE: &[u16] = &[400, 405, 408, 411, 413, 417, 421, 431, 501, 502, 503, 504];

fn method_name(method: Method) -> &'static str {
    match method {
        Method::Get => "get",
        Method::Post => "post",
        Method::Put => "put",
        Method::Patch => "patch",
        Method::Delete => "delete",
    }
}

/// Whether a path fits a path of the table.
fn fits(known: &str, path: &[&str]) -> bool {
    let mut words = known.split('/').skip(1);
    let all =
        path.iter().all(|word| words.next().is_some_and(|known| known.starts_with('{') || known == *word));
    all && words.next().is_none()
}

/// The methods that are known for a path; `None`: the path is not known.
pub fn methods_at(path: &[&str]) -> Option<Vec<Method>> {
    let exact: Vec<Method> =
        TABLE.iter().filter(|route| fits(route.path, path)).map(|route| route.method).collect();
    if exact.is_empty() { None } else { Some(exact) }
}

/// `Allow` for a path of these methods.
pub fn allow(methods: &[Method]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for method in methods {
        let name = match method {
            Method::Get => "GET, HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

/// The schema of a type.
fn schema(kind: &str) -> String {
    if let Some(inner) = kind.strip_suffix('0') {
        return format!("{{\"anyOf\":[{},{{\"type\":\"null\"}}]}}", schema(inner));
    }
    if let Some(inner) = kind.strip_prefix('[').and_then(|kind| kind.strip_suffix(']')) {
        return format!("{{\"type\":\"array\",\"items\":{}}}", schema(inner));
    }
    match kind {
        "s" => "{\"type\":\"string\"}".into(),
        "i" => "{\"type\":\"integer\"}".into(),
        "n" => "{\"type\":\"number\"}".into(),
        "b" => "{\"type\":\"boolean\"}".into(),
        "o" => "{\"type\":\"object\"}".into(),
        _ => "{}".into(),
    }
}

/// Names, whether they must be there, and types.
fn fields(shape: &'static str) -> impl Iterator<Item = (&'static str, bool, &'static str)> {
    shape.split(',').filter(|field| !field.is_empty()).map(|field| {
        let (name, kind) = field.split_once(':').unwrap_or((field, "a"));
        match name.strip_suffix('?') {
            Some(name) => (name, false, kind),
            None => (name, true, kind),
        }
    })
}

fn object(shape: &'static str) -> String {
    let properties: Vec<String> =
        fields(shape).map(|(name, _, kind)| format!("\"{name}\":{}", schema(kind))).collect();
    let required: Vec<String> =
        fields(shape).filter(|(_, must, _)| *must).map(|(name, ..)| format!("\"{name}\"")).collect();
    format!(
        "{{\"type\":\"object\",\"properties\":{{{}}},\"required\":[{}]}}",
        properties.join(","),
        required.join(",")
    )
}

fn content(kind: &str, schema: &str) -> String {
    format!("\"content\":{{\"{kind}\":{{\"schema\":{schema}}}}}")
}

const OK_SCHEMA: &str =
    "{\"type\":\"object\",\"properties\":{\"ok\":{\"type\":\"boolean\"}},\"required\":[\"ok\"]}";

/// Status, words and content of what a shape is answered as.
fn answers(shape: Shape) -> Vec<(&'static str, &'static str, String)> {
    let done = "Done.";
    match shape {
        Shape::None => vec![("200", done, content("application/json", "{}"))],
        Shape::Object(shape) => vec![("200", done, content("application/json", &object(shape)))],
        Shape::Any => vec![
            ("200", done, content("application/json", "{\"type\":\"object\"}")),
            ("202", "A job was started.", content("application/json", &object("job:i"))),
        ],
        Shape::Ok => vec![("200", done, content("application/json", OK_SCHEMA))],
        Shape::Job => vec![("202", "A job was started.", content("application/json", &object("job:i")))],
        Shape::Bytes(kind) => vec![("200", done, content(kind, "{}"))],
        Shape::File => vec![
            ("200", "All of it.", content("*/*", "{}")),
            ("206", "The range that was asked for.", content("*/*", "{}")),
            ("304", "The client has it already.", "\"headers\":{}".into()),
        ],
    }
}

fn operation(route: &Route) -> String {
    let mut text = String::new();
    let id: String = format!("{}{}", method_name(route.method), route.path)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    let tag = route.path.split('/').nth(3).unwrap_or("cell");
    let _ =
        write!(text, "{{\"operationId\":\"{id}\",\"tags\":[\"{tag}\"],\"summary\":{},", quoted(route.text));
    let _ = write!(
        text,
        "\"security\":{},",
        if route.is_public { "[]" } else { "[{\"session\":[]},{\"secret\":[]}]" }
    );
    let mut parameters = Vec::new();
    for part in route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
        parameters.push(format!(
            "{{\"name\":\"{part}\",\"in\":\"path\",\"required\":true,\"schema\":{{\"type\":\"string\",\"minLength\":1}}}}"
        ));
    }
    for (name, must, kind) in fields(route.query) {
        parameters.push(format!(
            "{{\"name\":\"{name}\",\"in\":\"query\",\"required\":{must},\"schema\":{}}}",
            schema(kind)
        ));
    }
    let _ = write!(text, "\"parameters\":[{}],", parameters.join(","));
    match route.takes {
        Shape::Object(shape) => {
            let must = fields(shape).any(|(_, must, _)| must);
            let body = content("application/json", &object(shape));
            let _ = write!(text, "\"requestBody\":{{\"required\":{must},{body}}},");
        }
        Shape::Any => {
            let body = content("application/json", "{\"type\":\"object\"}");
            let _ = write!(text, "\"requestBody\":{{\"required\":true,{body}}},");
        }
        Shape::Bytes(kind) => {
            let body = content(kind, "{\"type\":\"string\",\"maxLength\":1048576}");
            let _ = write!(text, "\"requestBody\":{{\"required\":true,{body}}},");
        }
        Shape::None | Shape::Ok | Shape::Job | Shape::File => {}
    }
    // What programs for OpenAI's services ask is answered in their form; the door speaks before it is known who asks.
    let is_openai = route.path.starts_with("/v1/");
    let mut responses: Vec<String> = answers(route.gives)
        .into_iter()
        .filter(|(status, ..)| !is_openai || *status == "200")
        .map(|(status, words, content)| match (is_openai, route.method) {
            (true, Method::Post) => {
                (status, words, content.replacen("{", "{\"text/event-stream\":{\"schema\":{}},", 1))
            }
            _ => (status, words, content),
        })
        .map(|(status, words, content)| format!("\"{status}\":{{\"description\":\"{words}\",{content}}}"))
        .collect();
    let mut errors: Vec<u16> = [EVERYWHERE, route.errors].concat();
    if !route.is_public {
        errors.push(401);
    }
    if route.method != Method::Get {
        errors.push(403);
    }
    order::sort(&mut errors);
    errors.dedup();
    let prefix = if is_openai { "openai_" } else { "" };
    responses.extend(
        errors
            .iter()
            .map(|status| format!("\"{status}\":{{\"$ref\":\"#/components/responses/{prefix}{status}\"}}")),
    );
    let _ = write!(text, "\"responses\":{{{}}}}}", responses.join(","));
    text
}

fn quoted(text: &str) -> String {
    miniserde::json::to_string(&text.to_owned())
}

/// The description, as JSON.
pub fn document() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let mut paths: Vec<(&str, Vec<String>)> = Vec::new();
        for route in TABLE {
            let operation = format!("\"{}\":{}", method_name(route.method), operation(route));
            match paths.iter_mut().find(|(path, _)| *path == route.path) {
                Some((_, operations)) if operations.contains(&operation) => {}
                Some((_, operations)) => operations.push(operation),
                None => paths.push((route.path, vec![operation])),
            }
        }
        let paths: Vec<String> = paths
            .into_iter()
            .map(|(path, operations)| format!("\"{path}\":{{{}}}", operations.join(",")))
            .collect();
        let error = content("application/json", "{\"$ref\":\"#/components/schemas/Error\"}");
        let either = content(
            "application/json",
            "{\"anyOf\":[{\"$ref\":\"#/components/schemas/OpenAiError\"},{\"$ref\":\"#/components/schemas/Error\"}]}",
        );
        let response = |prefix: &str, content: &str| -> Vec<String> {
            let one = |(status, words): &(u16, &str)| {
                format!("\"{prefix}{status}\":{{\"description\":{},{content}}}", quoted(words))
            };
            ERRORS.iter().map(one).collect()
        };
        let responses = [response("", &error), response("openai_", &either)].concat();
        format!(
            "{{\"openapi\":\"3.1.0\",\"info\":{{\"title\":\"Grove\",\"version\":\"{}\",\"description\":{},\
             \"license\":{{\"name\":\"MIT OR Apache-2.0\",\"identifier\":\"MIT OR Apache-2.0\"}}}},\
             \"servers\":[{{\"url\":\"/\"}}],\"paths\":{{{}}},\"components\":{{\"schemas\":{{\"Error\":{},\"OpenAiError\":{}}},\
             \"responses\":{{{}}},\"securitySchemes\":{{\
             \"session\":{{\"type\":\"apiKey\",\"in\":\"cookie\",\"name\":\"grove_5678\",\"description\":{}}},\
             \"secret\":{{\"type\":\"http\",\"scheme\":\"bearer\",\"description\":{}}}}}}}}}",
            env!("CARGO_PKG_VERSION"),
            quoted("What a browser and the command line ask of a cell. Names of files are texts in which bytes that are not UTF-8, controls and % are written as %XX. Paths may get more fields; what is here stays until /api/v2."),
            paths.join(","),
            "{\"type\":\"object\",\"properties\":{\"error\":{\"type\":\"object\",\"properties\":{\"code\":{\"type\":\"string\"},\
             \"message\":{\"type\":\"string\"},\"hint\":{\"type\":\"string\"}},\"required\":[\"code\",\"message\",\"hint\"]}},\
             \"required\":[\"error\"]}",
            "{\"type\":\"object\",\"properties\":{\"error\":{\"type\":\"object\",\"properties\":{\"message\":{\"type\":\"string\"},\
             \"type\":{\"type\":\"string\"},\"param\":{},\"code\":{}},\"required\":[\"message\",\"type\"]}},\"required\":[\"error\"]}",
            responses.join(","),
            quoted("From login or setup; the name ends with the port of the dashboard, and with _tls over TLS."),
            quoted("The cell's own secret, in the file peer_secret of its state folder."),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboard::http::Place;
    use miniserde::json::{self, Value};

    #[test]
    fn document_is_json_and_has_every_route() {
        let Ok(Value::Object(document)) = json::from_str::<Value>(document()) else { panic!("no JSON") };
        let Some(Value::Object(paths)) = document.get("paths") else { panic!("no paths") };
        for route in TABLE {
            let Some(Value::Object(path)) = paths.get(route.path) else { panic!("no {}", route.path) };
            let Some(Value::Object(operation)) = path.get(method_name(route.method)) else { panic!() };
            assert!(matches!(operation.get("responses"), Some(Value::Object(_))));
            for status in route.errors {
                assert!(ERRORS.iter().any(|(known, _)| known == status), "{status}");
            }
        }
    }

    #[test]
    fn paths_are_found_with_their_methods() {
        assert_eq!(methods_at(&["api", "v1", "jobs", "7"]), Some(vec![Method::Get]));
        assert_eq!(methods_at(&["api", "v1", "jobs", "7", "cancel"]), Some(vec![Method::Post]));
        assert_eq!(methods_at(&["api", "v1", "invites"]).unwrap().len(), 2);
        for unknown in [
            &["api", "v1"][..],
            &["api", "v1", "job"],
            &[],
            &["api", "v1", "jobs"],
            &["api", "v1", "status", "x"],
        ] {
            assert_eq!(methods_at(unknown), None, "{unknown:?}");
        }
        assert_eq!(allow(&[Method::Get, Method::Post, Method::Post]), "GET, HEAD, POST");
    }

    /// The patterns of a dispatcher: `(Method::Get, ["jobs", id])` is `GET jobs/{}`.
    fn patterns(source: &str, prefix: &str) -> Vec<(Method, String)> {
        let mut found = Vec::new();
        for part in source.split("(Method::").skip(1) {
            let Some((method, rest)) = part.split_once(", ") else { continue };
            let method = match method {
                "Get" => Method::Get,
                "Post" => Method::Post,
                "Put" => Method::Put,
                "Patch" => Method::Patch,
                "Delete" => Method::Delete,
                _ => continue,
            };
            let rest = rest.trim_start_matches('&');
            let Some(words) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else { continue };
            // Each word: a text, texts of which one, or a name for whatever stands there.
            let mut paths = vec![prefix.to_owned()];
            for word in words.0.split(',').map(str::trim).filter(|word| !word.is_empty()) {
                if word.contains("..") {
                    paths.clear();
                    break;
                }
                let texts: Vec<&str> = word.split('"').skip(1).step_by(2).collect();
                let texts = if texts.is_empty() { vec!["{}"] } else { texts };
                paths = paths
                    .iter()
                    .flat_map(|path| texts.iter().map(move |text| format!("{path}/{text}")))
                    .collect();
            }
            found.extend(paths.into_iter().map(|path| (method, path)));
        }
        found
    }

    #[test]
    fn patterns_of_dispatchers_are_read() {
        let source = r#"(Method::Get, ["a"]) => 1, (Method::Post, ["a", id, what @ ("b" | "c")]) if x => 2,
            (_, ["x", ..]) => 3, (Method::Put, [_]), (Method::Get, []), (Method::Get, &["z"])"#;
        let found: Vec<String> = patterns(source, "/p").into_iter().map(|(_, path)| path).collect();
        assert_eq!(found, ["/p/a", "/p/a/{}/b", "/p/a/{}/c", "/p/{}", "/p", "/p/z"]);
    }

    #[test]
    fn table_knows_every_route_of_the_dispatchers_and_no_other() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cell");
        let mut known: Vec<(Method, String)> = Vec::new();
        for file in std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()) {
            if file.extension().is_none_or(|ending| ending != "rs") {
                continue;
            }
            let source = std::fs::read_to_string(&file).unwrap();
            let prefix = match file.file_stem().and_then(|stem| stem.to_str()) {
                Some("chat") => "/api/v1/chat",
                Some("bounty") => "/api/v1/bounty",
                Some("uploads") => "/api/v1/uploads",
                Some("ai") => "/api/v1/ai",
                Some("openai") => "/v1",
                _ => "/api/v1",
            };
            let source = source.split("#[cfg(test)]").next().unwrap().to_owned();
            known.extend(patterns(&source, prefix));
        }
        for (words, method, _) in Place::ALL {
            known.push((method, format!("/api/v1/{}", words.join("/"))));
        }
        for path in ["/healthz", "/metrics", "/api/openapi.json"] {
            known.push((Method::Get, path.to_owned()));
        }
        let plain = |path: &str| -> String {
            path.split('/')
                .map(|word| if word.starts_with('{') { "{}" } else { word })
                .collect::<Vec<_>>()
                .join("/")
        };
        let table: Vec<(Method, String)> =
            TABLE.iter().map(|route| (route.method, plain(route.path))).collect();
        assert!(known.len() > 60, "the dispatchers were not read");
        for route in &known {
            assert!(table.contains(route), "{route:?} is answered and not in the table of openapi.rs");
        }
        for route in &table {
            assert!(known.contains(route), "{route:?} is in the table of openapi.rs and not answered");
        }
    }
}
