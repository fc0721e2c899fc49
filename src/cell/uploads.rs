//! Files that come in pieces over HTTP: begun, gone on with after any break, put in place when whole.
//!
//! An upload is a file with a name of its own in GroveHome, which scans leave alone, and a note beside the database. What
//! has come is what the file has; after a power cut it is what was made durable, for what came later may be zeros.

use std::cell::{Cell as Slot, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use smol::lock::Mutex;

use super::Cell;
use super::browse::{NoPlace, new_place};
use super::json::{Fields, Obj, list};
use crate::dashboard::api::{ApiRequest, ApiResponse, Method};
use crate::files::marker;
use crate::files::unix::{Folder, UPLOAD_PREFIX, UPLOADS_FOLDER, from_wire, show, to_wire};
use crate::id::{hex, unhex};
use crate::keys::random;
use crate::manifest::FileTime;
use crate::placement::NodeState;
use crate::pool;
use crate::vault::{Vault, VaultError, write_whole};

/// Uploads that are not whole, at once.
const UPLOADS_MAX: usize = 256;
/// One that nobody went on with for so long goes. Observed s.
const UPLOAD_S: u64 = 7 * 86_400;
/// Largest file.
const FILE_BYTES_MAX: u64 = 1 << 46;
/// Made durable each so many bytes.
const SYNC_BYTES: u64 = 64 * 1024 * 1024;
/// What stays free on the disk beside an upload.
const SPARE_BYTES: u64 = 32 * 1024 * 1024;
/// Longest note of an upload.
const NOTE_BYTES_MAX: u64 = 16 * 1024;
/// Uploads that are kept and still told of, to whoever did not hear the answer.
const KEPT_MAX: usize = 1024;

/// What is known of an upload; kept in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    path: Vec<u8>,
    size: u64,
    modified_unix_ms: i64,
    replace: bool,
    /// Bytes that a power cut cannot take.
    synced: u64,
    /// Which start of this machine wrote them.
    boot: String,
    /// Observed second at which it last went on.
    touched: u64,
}

impl Note {
    fn to_text(&self) -> String {
        Obj::new()
            .str("path", &to_wire(&self.path))
            .num("size", self.size)
            .num("modified_unix_ms", self.modified_unix_ms)
            .bool("replace", self.replace)
            .num("synced", self.synced)
            .str("boot", &self.boot)
            .num("touched", self.touched)
            .end()
    }

    fn read(text: &[u8]) -> Option<Self> {
        let fields = Fields::read(text).ok()?;
        Some(Self {
            path: from_wire(fields.str("path")?),
            size: fields.num("size")?,
            modified_unix_ms: fields.int("modified_unix_ms")?,
            replace: fields.bool("replace"),
            synced: fields.num("synced")?,
            boot: fields.str("boot")?.to_owned(),
            touched: fields.num("touched")?,
        })
    }
}

/// An upload that is not whole.
struct Upload {
    note: Note,
    offset: u64,
    file: Arc<File>,
}

/// A whole upload, which lies in GroveHome.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Whole {
    id: [u8; 16],
    path: Vec<u8>,
    size: u64,
    state: State,
}

/// How far a whole upload is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// It is being sealed.
    Keeping,
    /// It is not kept yet: why, and what to do.
    Unkept(String, &'static str),
    /// It is a version.
    Kept,
}

/// What whole uploads have come to, the oldest first. Of those that are kept only the newest are remembered.
#[derive(Debug, Default)]
struct Wholes(VecDeque<Whole>);

impl Wholes {
    fn get(&mut self, id: &[u8; 16]) -> Option<&mut Whole> {
        self.0.iter_mut().rev().find(|whole| whole.id == *id)
    }

    fn set(&mut self, id: &[u8; 16], state: State) {
        if let Some(whole) = self.get(id) {
            whole.state = state;
        }
        let kept = self.0.iter().filter(|whole| whole.state == State::Kept).count();
        if kept > KEPT_MAX {
            let oldest = self.0.iter().position(|whole| whole.state == State::Kept);
            oldest.map(|at| self.0.remove(at));
        }
    }

    fn unkept(&self) -> impl Iterator<Item = (&Whole, &String, &'static str)> {
        self.0.iter().filter_map(|whole| match &whole.state {
            State::Unkept(why, hint) => Some((whole, why, *hint)),
            State::Keeping | State::Kept => None,
        })
    }
}

/// All uploads of this run.
pub(super) struct Uploads {
    /// Those that are not whole.
    all: RefCell<BTreeMap<[u8; 16], Rc<Mutex<Upload>>>>,
    whole: RefCell<Wholes>,
    /// Tells this run of the cell from others, which know nothing of its whole ones.
    run: String,
    /// What was left by the run before was looked at.
    is_loaded: Slot<bool>,
    loading: Mutex<()>,
}

impl Default for Uploads {
    fn default() -> Self {
        Self {
            all: RefCell::default(),
            whole: RefCell::default(),
            run: hex(&random::<8>()),
            is_loaded: Slot::default(),
            loading: Mutex::default(),
        }
    }
}

/// Where uploads of a cell lie.
#[derive(Clone)]
struct Places {
    notes: PathBuf,
    home: PathBuf,
}

impl Places {
    fn of(vault: &Vault) -> Self {
        Self { notes: vault.dir.join(UPLOADS_FOLDER), home: vault.home.clone() }
    }

    fn note(&self, id: &[u8; 16]) -> PathBuf {
        self.notes.join(hex(id))
    }

    fn file(&self, id: &[u8; 16]) -> PathBuf {
        self.home.join(std::ffi::OsString::from_vec(name_of(id)))
    }

    fn forget(&self, id: &[u8; 16]) {
        let _ = fs::remove_file(self.file(id));
        let _ = fs::remove_file(self.note(id));
    }
}

fn name_of(id: &[u8; 16]) -> Vec<u8> {
    [UPLOAD_PREFIX, hex(id).as_bytes()].concat()
}

/// Which start of this machine this is.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn read_note(path: &Path) -> Option<Note> {
    let is_small = fs::metadata(path).is_ok_and(|meta| meta.len() <= NOTE_BYTES_MAX);
    if is_small { Note::read(&fs::read(path).ok()?) } else { None }
}

/// What earlier runs left, but for what is too old or damaged, which goes.
fn load(places: &Places, now: u64) -> BTreeMap<[u8; 16], Upload> {
    let mut all = BTreeMap::new();
    let Ok(entries) = fs::read_dir(&places.notes) else { return all };
    for entry in entries.flatten() {
        let id = entry.file_name().to_str().and_then(unhex).and_then(|id| <[u8; 16]>::try_from(id).ok());
        let Some(id) = id else {
            let _ = fs::remove_file(entry.path());
            continue;
        };
        let note = read_note(&entry.path()).filter(|note| now.saturating_sub(note.touched) <= UPLOAD_S);
        match note.and_then(|note| reopen(places, &id, note).ok()) {
            Some(upload) if all.len() < UPLOADS_MAX => drop(all.insert(id, upload)),
            _ => places.forget(&id),
        }
    }
    all
}

fn reopen(places: &Places, id: &[u8; 16], note: Note) -> io::Result<Upload> {
    let file = open(&places.file(id), false)?;
    let len = file.metadata()?.len();
    // The machine may have lost what was not made durable.
    let offset = if note.boot == boot() { len } else { len.min(note.synced) }.min(note.size);
    file.set_len(offset)?;
    Ok(Upload { note, offset, file: Arc::new(file) })
}

fn open(path: &Path, is_new: bool) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    OpenOptions::new().read(true).write(true).create_new(is_new).mode(0o600).custom_flags(flags).open(path)
}

/// What a person asks for.
struct Begin {
    path: Vec<u8>,
    size: u64,
    modified_unix_ms: i64,
    replace: bool,
}

/// Begins an upload; `promised` bytes of others are still to come.
fn begin(vault: &Vault, asked: Begin, promised: u64) -> Result<([u8; 16], Upload), NoPlace> {
    let root = Folder::open_root(&vault.home).map_err(VaultError::io("cannot open GroveHome"))?;
    marker::check(vault, &root)?;
    let names = new_place(vault, &root, &asked.path, false)?;
    if asked.size > FILE_BYTES_MAX {
        return Err(NoPlace::Bad("no file is that large".into()));
    }
    let there = vault.db.read(|t| t.node_at(&names))?;
    if there.as_ref().is_some_and(|node| !asked.replace || node.kind == crate::manifest::Kind::Folder) {
        return Err(NoPlace::Exists(show(&names)));
    }
    let wanted = asked.size.saturating_add(promised);
    if let Some(why) = lacks_space(vault, &root, wanted)? {
        return Err(NoPlace::Full(why));
    }
    let places = Places::of(vault);
    let other = |why: io::Error| NoPlace::io(&names, why);
    fs::create_dir_all(&places.notes).map_err(other)?;
    let id = random::<16>();
    let note = Note {
        path: asked.path,
        size: asked.size,
        modified_unix_ms: asked.modified_unix_ms,
        replace: asked.replace,
        synced: 0,
        boot: boot(),
        touched: vault.expiry_now(),
    };
    let file = open(&places.file(&id), true).map_err(other)?;
    write_whole(&places.note(&id), note.to_text().as_bytes()).map_err(|why| {
        places.forget(&id);
        other(why)
    })?;
    Ok((id, Upload { note, offset: 0, file: Arc::new(file) }))
}

/// Why so many bytes more do not fit. Where chunks lie on the same disk, each byte is there twice: as the file, and sealed.
fn lacks_space(vault: &Vault, root: &Folder, bytes: u64) -> Result<Option<String>, VaultError> {
    let stat = rustix::fs::fstatvfs(root.fd()).map_err(|why| VaultError::Io {
        doing: "cannot look at the disk of GroveHome".into(),
        why: why.into(),
    })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let is_one_disk = match (Folder::open_root(&vault.dir).and_then(|dir| dir.stat_self()), root.stat_self())
    {
        (Ok(state), Ok(home)) => state.dev == home.dev,
        _ => true,
    };
    let space = vault.store.free()?;
    let (wanted, reserve) =
        if is_one_disk { (bytes.saturating_mul(2), space.reserve) } else { (bytes, SPARE_BYTES) };
    let fits_sealed = is_one_disk || space.free >= bytes.saturating_add(space.reserve);
    if free >= wanted.saturating_add(reserve) && fits_sealed {
        return Ok(None);
    }
    Ok(Some(format!(
        "the disk has {} MiB free, and this needs {} MiB beside the reserve",
        free >> 20,
        wanted >> 20
    )))
}

/// Puts a whole upload in place.
fn finish(vault: &Vault, id: &[u8; 16], note: &Note, file: &File) -> Result<(), NoPlace> {
    let root = Folder::open_root(&vault.home).map_err(VaultError::io("cannot open GroveHome"))?;
    marker::check(vault, &root)?;
    let names = new_place(vault, &root, &note.path, false)?;
    let other = |why: io::Error| NoPlace::io(&names, why);
    let mtime = FileTime {
        s: note.modified_unix_ms.div_euclid(1000),
        ns: note.modified_unix_ms.rem_euclid(1000) as u32 * 1_000_000,
    };
    let (name, above) = names.split_last().expect("a path has a name");
    let folder = root.walk_or_create(above).map_err(other)?;
    let there = folder.stat_if_there(name).map_err(other)?;
    let is_folder = there.as_ref().is_some_and(|stat| stat.kind == Some(crate::manifest::Kind::Folder));
    let is_known = vault.db.read(|t| t.node_at(&names))?.is_some();
    if is_folder || ((there.is_some() || is_known) && !note.replace) {
        return Err(NoPlace::Exists(show(&names)));
    }
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(other)?;
    root.set_mtime(&name_of(id), mtime).map_err(other)?;
    file.sync_all().map_err(other)?;
    root.rename_into(&name_of(id), &folder, name, note.replace).map_err(other)?;
    let mut at = root.again().map_err(other)?;
    at.sync().map_err(other)?;
    for name in above {
        at = at.open(name).map_err(other)?;
        at.sync().map_err(other)?;
    }
    let _ = fs::remove_file(Places::of(vault).note(id));
    Ok(())
}

/// Why what lies at a path is not kept as it lies there; `None`: it is.
fn why_unkept(vault: &Vault, path: &[u8]) -> Result<Option<&'static str>, VaultError> {
    let names: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    let (name, above) = names.split_last().expect("a path has a name");
    let root = Folder::open_root(&vault.home).map_err(VaultError::io("cannot open GroveHome"))?;
    let stat = match root.walk(above).and_then(|folder| folder.stat_if_there(name)) {
        Ok(Some(stat)) => stat,
        Ok(None) => return Ok(Some("it is not in GroveHome any more")),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            return Ok(Some("it is not in GroveHome any more"));
        }
        Err(why) => return Err(VaultError::Io { doing: "cannot look at the upload".into(), why }),
    };
    let is_kept = vault.db.read(|t| t.node_at(&names))?.is_some_and(|node| {
        node.state == NodeState::Present
            && Some(node.kind) == stat.kind
            && (node.size, node.mtime) == (stat.size, stat.mtime)
    });
    Ok((!is_kept).then_some("it could not be read whole"))
}

/// `age_s`: so long ago it went on; `wall`: Unix time.
fn upload_json(id: &[u8; 16], upload: &Upload, age_s: u64, wall: i64) -> Obj {
    Obj::new()
        .str("id", &hex(id))
        .str("path", &to_wire(&upload.note.path))
        .num("size", upload.note.size)
        .num("offset", upload.offset)
        .num("touched_unix", wall.saturating_sub(age_s as i64))
}

fn wrong_offset(offset: u64) -> ApiResponse {
    let error = Obj::new()
        .str("code", "wrong_offset")
        .str("message", &format!("the upload goes on at byte {offset}"))
        .str("hint", "send what follows there");
    ApiResponse::json_text(409, Obj::new().raw("error", error.end()).num("offset", offset).end())
}

fn no_upload() -> ApiResponse {
    ApiResponse::error(404, "not_found", "there is no such upload", "begin it anew")
}

impl Cell {
    /// Answers `/uploads…`; `rest` is what follows.
    pub(super) async fn answer_about_uploads(
        self: &Rc<Self>,
        request: &ApiRequest,
        rest: &[&str],
    ) -> ApiResponse {
        if let Err(why) = self.load_uploads().await {
            return super::api::failure(&why);
        }
        let id = rest.first().and_then(|id| unhex(id)).and_then(|id| <[u8; 16]>::try_from(id).ok());
        let known = |id: Option<[u8; 16]>| -> Option<([u8; 16], Rc<Mutex<Upload>>)> {
            let id = id?;
            self.uploads.all.borrow().get(&id).map(|upload| (id, Rc::clone(upload)))
        };
        match (request.method, rest) {
            (Method::Get, []) => self.uploads_json().await,
            (Method::Post, []) => self.begin_upload(&request.body).await,
            (Method::Put, [_]) => match known(id) {
                Some((id, upload)) => {
                    let Some(offset) = super::api::number_param(request, "offset") else {
                        return ApiResponse::error(
                            400,
                            "bad_request",
                            "the parameter \"offset\" is missing",
                            "",
                        );
                    };
                    self.go_on(&id, &upload, offset, request.body.clone()).await
                }
                None => no_upload(),
            },
            (Method::Post, [_, "finish"]) => match known(id) {
                Some((id, upload)) => self.finish_upload(&id, &upload).await,
                None => id.map_or_else(no_upload, |id| self.finish_again(&id)),
            },
            (Method::Post, [_, "cancel"]) => match known(id) {
                Some((id, upload)) => {
                    let _one = upload.lock().await;
                    self.uploads.all.borrow_mut().remove(&id);
                    let places = Places::of(&self.vault);
                    pool::unblock(move || places.forget(&id)).await;
                    ApiResponse::ok()
                }
                None => no_upload(),
            },
            _ => ApiResponse::error(404, "not_found", "there is nothing at this path", ""),
        }
    }

    async fn load_uploads(&self) -> Result<(), VaultError> {
        let _one = self.uploads.loading.lock().await;
        if self.uploads.is_loaded.get() {
            return Ok(());
        }
        let (places, now) = (Places::of(&self.vault), self.vault.expiry_now());
        let all = pool::unblock(move || load(&places, now)).await;
        let all = all.into_iter().map(|(id, upload)| (id, Rc::new(Mutex::new(upload))));
        self.uploads.all.borrow_mut().extend(all);
        self.uploads.is_loaded.set(true);
        Ok(())
    }

    /// Removes uploads that nobody went on with for a week.
    pub(super) async fn drop_old_uploads(&self) -> Result<(), VaultError> {
        self.load_uploads().await?;
        let now = self.vault.expiry_now();
        let all: Vec<_> =
            self.uploads.all.borrow().iter().map(|(id, upload)| (*id, Rc::clone(upload))).collect();
        for (id, upload) in all {
            let Some(upload) = upload.try_lock() else { continue };
            if now.saturating_sub(upload.note.touched) > UPLOAD_S {
                self.uploads.all.borrow_mut().remove(&id);
                let places = Places::of(&self.vault);
                pool::unblock(move || places.forget(&id)).await;
            }
        }
        Ok(())
    }

    async fn uploads_json(&self) -> ApiResponse {
        let all: Vec<_> =
            self.uploads.all.borrow().iter().map(|(id, upload)| (*id, Rc::clone(upload))).collect();
        let mut items = Vec::new();
        for (id, upload) in all {
            let upload = upload.lock().await;
            let age_s = self.vault.expiry_now().saturating_sub(upload.note.touched);
            items.push(upload_json(&id, &upload, age_s, self.vault.clock.wall()).end());
        }
        self.look_at_unkept().await;
        let whole = self.uploads.whole.borrow();
        let keeping = whole.0.iter().filter(|whole| whole.state == State::Keeping);
        let keeping = list(keeping.map(|whole| super::json::text(&hex(&whole.id))));
        let unkept = list(whole.unkept().map(|(whole, why, hint)| {
            Obj::new()
                .str("id", &hex(&whole.id))
                .str("path", &to_wire(&whole.path))
                .str("why", why)
                .str("hint", hint)
                .end()
        }));
        let answer = Obj::new().raw("uploads", list(items)).raw("keeping", keeping).raw("unkept", unkept);
        ApiResponse::json_text(200, answer.str("run", &self.uploads.run).end())
    }

    /// What was not kept may be by now: scans and the watch on GroveHome try again.
    async fn look_at_unkept(&self) {
        let unkept: Vec<_> =
            self.uploads.whole.borrow().unkept().map(|(whole, ..)| (whole.id, whole.path.clone())).collect();
        if unkept.is_empty() {
            return;
        }
        let vault = Arc::clone(&self.vault);
        let kept: Vec<[u8; 16]> = pool::unblock(move || {
            let is_kept = |path: &[u8]| matches!(why_unkept(&vault, path), Ok(None));
            unkept.into_iter().filter(|(_, path)| is_kept(path)).map(|(id, _)| id).collect()
        })
        .await;
        let mut whole = self.uploads.whole.borrow_mut();
        kept.iter().for_each(|id| whole.set(id, State::Kept));
    }

    async fn begin_upload(&self, body: &[u8]) -> ApiResponse {
        let fields = match Fields::read(body) {
            Ok(fields) => fields,
            Err(why) => return ApiResponse::error(400, "bad_request", why, ""),
        };
        let (Some(path), Some(size)) = (fields.str("path"), fields.num("size")) else {
            return super::api::needs(if fields.str("path").is_none() { "path" } else { "size" });
        };
        let modified_unix_ms = fields.int("modified_unix_ms").unwrap_or(self.vault.clock.wall() * 1000);
        let begun = Begin { path: from_wire(path), size, modified_unix_ms, replace: fields.bool("replace") };
        if let Err(why) = self.drop_old_uploads().await {
            return super::api::failure(&why);
        }
        let others: Vec<_> = self.uploads.all.borrow().values().cloned().collect();
        if others.len() >= UPLOADS_MAX {
            let hint = "finish or cancel some; they go by themselves after a week";
            return ApiResponse::error(409, "too_many_uploads", "too many uploads are not whole yet", hint);
        }
        let mut promised = 0u64;
        for other in others {
            let other = other.lock().await;
            promised = promised.saturating_add(other.note.size - other.offset.min(other.note.size));
        }
        let vault = Arc::clone(&self.vault);
        match pool::unblock(move || begin(&vault, begun, promised)).await {
            Ok((id, upload)) => {
                let answer = Obj::new().str("id", &hex(&id)).num("offset", 0).end();
                self.uploads.all.borrow_mut().insert(id, Rc::new(Mutex::new(upload)));
                ApiResponse::json_text(200, answer)
            }
            Err(why) => why.answer(),
        }
    }

    async fn go_on(
        &self,
        id: &[u8; 16],
        upload: &Rc<Mutex<Upload>>,
        offset: u64,
        bytes: Vec<u8>,
    ) -> ApiResponse {
        let mut upload = upload.lock().await;
        if offset != upload.offset {
            return wrong_offset(upload.offset);
        }
        let end = offset + bytes.len() as u64;
        if end > upload.note.size {
            let why = "this is more than the upload said it would have";
            return ApiResponse::error(409, "too_long", why, "begin it anew with its size");
        }
        let file = Arc::clone(&upload.file);
        let is_due = end - upload.note.synced.min(end) >= SYNC_BYTES;
        let written = pool::unblock(move || -> io::Result<()> {
            file.write_all_at(&bytes, offset)?;
            if is_due { file.sync_data() } else { Ok(()) }
        })
        .await;
        if let Err(why) = written {
            let why = VaultError::Io { doing: "cannot write the upload".into(), why };
            return super::api::failure(&why);
        }
        upload.offset = end;
        let now = self.vault.expiry_now();
        let is_stale = now.saturating_sub(upload.note.touched) > 60;
        if is_due || is_stale {
            upload.note.touched = now;
            if is_due {
                upload.note.synced = end;
            }
            let (path, text) = (Places::of(&self.vault).note(id), upload.note.to_text());
            let noted = pool::unblock(move || write_whole(&path, text.as_bytes())).await;
            if let Err(why) = noted {
                log::warn!("the note of an upload cannot be written: {why}");
            }
        }
        ApiResponse::json_text(200, Obj::new().num("offset", end).end())
    }

    async fn finish_upload(self: &Rc<Self>, id: &[u8; 16], upload: &Rc<Mutex<Upload>>) -> ApiResponse {
        let upload = upload.lock().await;
        if !self.uploads.all.borrow().contains_key(id) {
            return self.finish_again(id);
        }
        if upload.offset != upload.note.size {
            return wrong_offset(upload.offset);
        }
        let names: Vec<Vec<u8>> = upload.note.path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
        if upload.note.replace {
            // What is there is kept first, so that nothing that is replaced is lost.
            if let Err(why) = self.keep_at(names.clone()).await {
                return super::api::failure(&why);
            }
        }
        let (vault, note, file, of) =
            (Arc::clone(&self.vault), upload.note.clone(), Arc::clone(&upload.file), *id);
        if let Err(why) = pool::unblock(move || finish(&vault, &of, &note, &file)).await {
            return why.answer();
        }
        self.uploads.all.borrow_mut().remove(id);
        let (path, size) = (upload.note.path.clone(), upload.note.size);
        let whole = Whole { id: *id, path, size, state: State::Keeping };
        let answer = self.whole_answer(&whole);
        self.uploads.whole.borrow_mut().0.push_back(whole);
        // A large file takes a while to be sealed; whoever uploaded it need not wait for that.
        self.keep_upload(*id, names);
        answer
    }

    /// Whoever did not hear the first answer asks again; what was not kept then is tried anew.
    fn finish_again(self: &Rc<Self>, id: &[u8; 16]) -> ApiResponse {
        let Some(whole) = self.uploads.whole.borrow_mut().get(id).cloned() else { return no_upload() };
        if matches!(whole.state, State::Unkept(..)) {
            self.uploads.whole.borrow_mut().set(id, State::Keeping);
            let names = whole.path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
            self.keep_upload(*id, names);
        }
        self.whole_answer(&whole)
    }

    fn whole_answer(&self, whole: &Whole) -> ApiResponse {
        let answer = Obj::new().str("path", &to_wire(&whole.path)).num("size", whole.size);
        ApiResponse::json_text(200, answer.str("run", &self.uploads.run).end())
    }

    /// Keeps a whole upload in the background, and notes what came of it.
    fn keep_upload(self: &Rc<Self>, id: [u8; 16], names: Vec<Vec<u8>>) {
        let cell = Rc::clone(self);
        let keeping = async move {
            let state = match cell.try_to_keep(names).await {
                Ok(None) => State::Kept,
                Ok(Some(why)) => State::Unkept(why, "The cell tries again by itself."),
                Err(why) => State::Unkept(
                    why.to_string(),
                    if why.is_full() {
                        "Free some space; the cell tries again by itself."
                    } else {
                        "The cell tries again by itself; its log says more."
                    },
                ),
            };
            if let State::Unkept(why, _) = &state {
                log::warn!("an upload is not kept yet: {why}");
            }
            cell.uploads.whole.borrow_mut().set(&id, state);
        };
        pool::spawn(&self.executor, keeping).detach();
    }

    /// Keeps what lies at a path. Why it is not kept after all, if so.
    async fn try_to_keep(self: &Rc<Self>, names: Vec<Vec<u8>>) -> Result<Option<String>, VaultError> {
        let path = names.join(&b'/');
        let kept = self.keep_at(names).await?;
        let vault = Arc::clone(&self.vault);
        let why = pool::unblock(move || why_unkept(&vault, &path)).await?;
        let told = kept.problems.into_iter().next().map(|problem| problem.why);
        Ok(why.map(|why| told.unwrap_or_else(|| why.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        Note {
            path: b"a b/\xffc".to_vec(),
            size: 9,
            modified_unix_ms: -5,
            replace: true,
            synced: 4,
            boot: "one".into(),
            touched: UPLOAD_S + 1000,
        }
    }

    #[test]
    fn note_reads_back_and_damaged_ones_do_not() {
        assert_eq!(Note::read(note().to_text().as_bytes()), Some(note()));
        for bad in [&b""[..], b"{}", b"[]", b"{\"path\":\"a\"}", b"\xff"] {
            assert_eq!(Note::read(bad), None);
        }
    }

    #[test]
    fn what_is_not_kept_is_told_of_however_many_are_kept_after_it() {
        let mut wholes = Wholes::default();
        let id = |n: usize| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            id
        };
        for n in 0..KEPT_MAX + 10 {
            wholes.0.push_back(Whole { id: id(n), path: b"a".to_vec(), size: 1, state: State::Keeping });
            let state = if n == 3 { State::Unkept("full".into(), "") } else { State::Kept };
            wholes.set(&id(n), state);
        }
        assert_eq!(wholes.0.len(), KEPT_MAX + 1);
        assert!(wholes.get(&id(0)).is_none() && wholes.get(&id(KEPT_MAX + 9)).is_some());
        assert_eq!(
            wholes.unkept().map(|(whole, why, _)| (whole.id, why.as_str())).collect::<Vec<_>>(),
            [(id(3), "full")]
        );
        wholes.set(&id(3), State::Kept);
        assert_eq!((wholes.unkept().count(), wholes.0.len()), (0, KEPT_MAX));
    }

    #[test]
    fn after_a_power_cut_only_what_was_made_durable_is_there() {
        let folder = std::env::temp_dir().join(format!("grove-uploads-{}", hex(&random::<8>())));
        let places = Places { notes: folder.join("notes"), home: folder.join("home") };
        fs::create_dir_all(&places.notes).unwrap();
        fs::create_dir_all(&places.home).unwrap();
        let put = |id: u8, note: &Note, bytes: &[u8]| {
            fs::write(places.note(&[id; 16]), note.to_text()).unwrap();
            fs::write(places.file(&[id; 16]), bytes).unwrap();
        };
        put(1, &note(), b"1234567");
        put(2, &Note { boot: boot(), ..note() }, b"1234567");
        put(3, &Note { touched: 999, ..note() }, b"1");
        fs::write(places.note(&[4; 16]), "damaged").unwrap();
        fs::write(places.notes.join("odd"), "").unwrap();
        let all = load(&places, UPLOAD_S + 1000);
        let offsets: Vec<_> = all.iter().map(|(id, upload)| (id[0], upload.offset)).collect();
        assert_eq!(offsets, [(1, 4), (2, 7)]);
        assert_eq!(fs::metadata(places.file(&[1; 16])).unwrap().len(), 4);
        assert_eq!(fs::read_dir(&places.notes).unwrap().count(), 2);
        assert_eq!(fs::read_dir(&places.home).unwrap().count(), 2);
        fs::remove_dir_all(&folder).unwrap();
    }
}
