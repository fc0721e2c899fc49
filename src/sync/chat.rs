//! Chat with friends: what is said goes at once to whoever is connected, and to others when they are; what comes is kept
//! before it is acknowledged. What is next, new or too much is decided in `crate::chat`.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smol::channel::{self, Receiver, Sender};

use super::driver::Sync;
use super::link::Link;
use super::serve::{Answered, reply};
use crate::alerts::Alert;
use crate::changes::{Changes, Part};
use crate::chat::{self, Draft, Found, Page, Side, Talk, Talks, Took};
use crate::id::{CellId, hex};
use crate::keys::random;
use crate::placement::DbError;
use crate::pool::unblock;
use crate::vault::VaultError;
use crate::wire::message::{self, AskError, BatchHead, ErrorCode, Receipts, Refusal, Reply, Request};
use crate::wire::session::Stream;
use crate::wire::within;

/// The file.
const CHAT_FILE: &str = "chat.db";
/// Is there if the file was found damaged while it was in use.
const DAMAGED_FILE: &str = "chat.db.damaged";
/// After a failure it is tried again after this, and then more seldom.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Batches of one friend that are taken in at once: one, and one over a connection that breaks.
const HEARING_MAX: u32 = 2;
/// A request to delete a conversation goes on for so long, and says then whether there is more.
const DELETE_TIME_MAX: Duration = Duration::from_secs(3);
/// Who waits for news of chat at once; others get their answer after a moment. Each has a handler of the API meanwhile.
const WAITERS_MAX: usize = 6;
const WAITER_PAUSE: Duration = Duration::from_millis(500);

/// What was said, and who waits for news of it.
pub(super) struct Chats {
    talks: Arc<Talks>,
    /// Grows with whatever happens, from a random beginning.
    change: Cell<u64>,
    waiters: RefCell<Vec<Sender<()>>>,
    shown: Arc<Changes>,
}

impl Chats {
    fn new(talks: Talks, shown: Arc<Changes>) -> Self {
        let change = u64::from(u32::from_le_bytes(random()));
        Self { talks: Arc::new(talks), change: Cell::new(change), waiters: RefCell::default(), shown }
    }

    fn ring(&self) {
        self.change.set(self.change.get() + 1);
        self.shown.note(Part::Chat);
        for waiter in self.waiters.borrow_mut().drain(..) {
            let _ = waiter.try_send(());
        }
    }
}

/// What became of something said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Of the messages, in order.
    pub ids: Vec<u64>,
    /// The friend is connected.
    pub online: bool,
}

/// A conversation, for people.
#[derive(Debug, Clone)]
pub struct TalkView {
    /// Unread and queued messages, and the last.
    pub talk: Talk,
    /// Friends now.
    pub is_friend: bool,
    /// Connected now.
    pub online: bool,
}

/// Part of a conversation, and how far the friend is.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// The messages.
    pub page: Page,
    /// The newest of ours that the friend has; 0: none.
    pub delivered: u64,
    /// The newest of ours that the friend has seen; 0: none.
    pub read: u64,
    /// The state of all conversations: another number next time means that something happened.
    pub change: u64,
    /// Friends now.
    pub is_friend: bool,
    /// Connected now.
    pub online: bool,
}

/// Opens chat.db in a state folder. One that is damaged is put aside and a new one begun: history is lost to nobody but its
/// reader, and what friends have said comes again from them.
fn open(dir: &Path) -> Result<(Talks, Option<PathBuf>), DbError> {
    let (path, damaged) = (dir.join(CHAT_FILE), dir.join(DAMAGED_FILE));
    if !damaged.exists() {
        match Talks::open(&path) {
            Err(why) if why.is_damaged() => log::error!("{why}"),
            opened => return Ok((opened?, None)),
        }
    }
    let aside = dir.join(format!("{CHAT_FILE}.set-aside-{}", hex(&random::<4>())));
    log::error!("chat.db is damaged; it is kept as {}", aside.display());
    for suffix in ["", "-wal", "-shm"] {
        let from = dir.join(format!("{CHAT_FILE}{suffix}"));
        let _ = std::fs::rename(from, format!("{}{suffix}", aside.display()));
    }
    let talks = Talks::open(&path)?;
    // Gone last: whatever happens in between, the damaged file is not used again.
    let _ = std::fs::remove_file(damaged);
    Ok((talks, Some(aside)))
}

/// The conversations of a cell that does not run.
pub fn talks_at_rest(dir: &Path) -> Result<Option<Talks>, VaultError> {
    let path = dir.join(CHAT_FILE);
    if path.exists() { Ok(Some(Talks::open(&path)?)) } else { Ok(None) }
}

/// A batch that is being taken in, even if whoever takes it in is dropped half-way.
struct Hearing<'a>(&'a Cell<u32>);

impl<'a> Hearing<'a> {
    fn begin(count: &'a Cell<u32>) -> Option<Self> {
        if count.get() >= HEARING_MAX {
            return None;
        }
        count.set(count.get() + 1);
        Some(Self(count))
    }
}

impl Drop for Hearing<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn refusal(code: ErrorCode, text: &str, hint: &str) -> Reply {
    Reply::Error(Refusal::new(code, text, hint))
}

impl Sync {
    /// Opens the conversations. A cell whose file cannot be opened goes on without chat, and says so.
    pub(super) async fn open_chat(&self) {
        let dir = self.vault.dir.clone();
        match unblock(move || open(&dir)).await {
            Ok((talks, aside)) => {
                *self.chats.borrow_mut() = Some(Rc::new(Chats::new(talks, Arc::clone(&self.vault.changes))));
                // Whoever says too much tries again, and then it is told again.
                self.vault.clear("chat-full");
                if aside.is_none() {
                    self.vault.clear("chat");
                }
                if let Some(aside) = aside {
                    let text =
                        format!("chat.db was damaged and is kept as {}; a new one is begun", aside.display());
                    let remedy =
                        "what friends have said comes again from them; what was said here is in the old file";
                    self.vault.raise("chat", Alert { text, remedy: remedy.into() });
                }
            }
            Err(why) => {
                let remedy = "free some space or look at the file, and start the cell again".into();
                self.vault.raise("chat", Alert { text: format!("there is no chat: {why}"), remedy });
            }
        }
    }

    fn chats(&self) -> Result<Rc<Chats>, VaultError> {
        let chats = self.chats.borrow().clone();
        chats.ok_or_else(|| VaultError::Refused("chat.db could not be opened; see `grove status`".into()))
    }

    /// Work on the conversations, on the pool.
    async fn with_talks<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Talks) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, VaultError> {
        Ok(self.on_talks(&*self.chats()?, work).await?)
    }

    async fn on_talks<T: Send + 'static>(
        &self,
        chats: &Chats,
        work: impl FnOnce(&Talks) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, DbError> {
        let talks = Arc::clone(&chats.talks);
        let done = unblock(move || work(&talks)).await;
        if done.as_ref().is_err_and(|why| why.is_damaged()) {
            self.note_damaged_chat().await;
        }
        done
    }

    /// A part of the file cannot be read. It is in use: the next start puts it aside.
    async fn note_damaged_chat(&self) {
        let marker = self.vault.dir.join(DAMAGED_FILE);
        if let Err(why) = unblock(move || std::fs::write(marker, b"")).await {
            log::warn!("{DAMAGED_FILE}: {why}");
        }
        self.vault.raise("chat", Alert {
            text: "chat.db is damaged: some of what was said cannot be read".into(),
            remedy: "start the cell again: the file is put aside then, and what friends have said comes again from them".into(),
        });
    }

    fn ring_chat(&self) {
        if let Some(chats) = self.chats.borrow().as_ref() {
            chats.ring();
        }
    }

    /// Wakes whoever brings a friend what is said.
    pub(super) fn wake_talk(&self, id: &CellId) {
        if let Some(link) = self.link(id) {
            link.talk();
        }
    }

    // ---- Bringing what is said ----

    /// Brings a peer what is said to it, as long as it is one.
    pub(super) async fn talk_with(self: Rc<Self>, link: Rc<Link>, called: Receiver<()>) {
        let mut failures = 0u32;
        loop {
            let called = called.recv();
            let is_open = match failures {
                0 => called.await.is_ok(),
                _ => {
                    let pause = RETRY_MIN.saturating_mul(1 << failures.min(11)).min(RETRY_MAX);
                    within(pause, called).await.is_none_or(|called| called.is_ok())
                }
            };
            if !is_open || self.is_stopping.get() || link.is_over() {
                return;
            }
            failures = match self.talk(&link).await {
                Ok(()) => 0,
                Err(why) => {
                    log::debug!("chat with {}: {why}", self.name_of(&link.peer));
                    // Who does not know chat learns it by a newer version, and then is connected anew.
                    let is_over =
                        matches!(&why, AskError::Refused(why) if why.code == ErrorCode::Unsupported);
                    if is_over { 0 } else { failures + 1 }
                }
            };
        }
    }

    async fn talk(&self, link: &Link) -> Result<(), AskError> {
        let may = || link.is_alive() && self.is_friend(&link.peer) && !self.vault.is_retired();
        let Ok(chats) = self.chats() else { return Ok(()) };
        let peer = link.peer;
        let mut was_unknown = false;
        while may() {
            let Some(start) = link.level_with.get().filter(|_| link.told_receipts.get()) else {
                self.exchange_receipts(link, &chats).await?;
                continue;
            };
            let next = self.on_talks(&chats, move |talks| talks.next(&peer)).await;
            let Some(out) = next.map_err(failed_here)? else {
                return Ok(());
            };
            let body = chat::batch_bytes(&out.messages);
            let head = BatchHead { start, run: out.run, base: out.base, len: body.len() as u32 };
            let Some(stored) = link.say(head, &body).await? else {
                link.level_with.set(None);
                // It was started since, and is asked. Once: whoever says so again and again is not sent all of it as often.
                if std::mem::replace(&mut was_unknown, true) {
                    return Err(AskError::OutOfTurn);
                }
                continue;
            };
            let run = out.run;
            let heard = self.on_talks(&chats, move |talks| talks.heard(&peer, &run, stored)).await;
            chats.ring();
            if !heard.map_err(failed_here)? {
                // It lacks something before, or takes nothing: what it has is asked for, and not without a pause.
                link.level_with.set(None);
                return Err(AskError::OutOfTurn);
            }
            was_unknown = false;
        }
        Ok(())
    }

    /// Tells how far we are and hears how far the friend is; what it does not have any more is sent again.
    async fn exchange_receipts(&self, link: &Link, chats: &Chats) -> Result<(), AskError> {
        let peer = link.peer;
        // What changes from here on is told once more.
        link.told_receipts.set(true);
        let asked = async {
            let receipts = self.on_talks(chats, move |talks| talks.receipts(&peer)).await;
            let receipts = receipts.map_err(failed_here)?;
            link.ask(&Request::Receipts(Receipts { start: chats.talks.start(), receipts })).await
        };
        let theirs = match asked.await {
            Ok(Reply::Receipts(theirs)) => theirs,
            outcome => {
                link.told_receipts.set(false);
                return Err(outcome.err().unwrap_or(AskError::OutOfTurn));
            }
        };
        let now = self.vault.clock.steady();
        let mut gone_back = link.gone_back.get();
        // An exchange with a start that is known brings nothing back.
        let may_go_back = link.level_with.get() != Some(theirs.start) && gone_back.goes_back(now);
        link.gone_back.set(gone_back);
        let start = theirs.start;
        let hear = move |talks: &Talks| talks.heard_all(&peer, &theirs.receipts, may_go_back);
        let heard = self.on_talks(chats, hear).await;
        if heard.map_err(failed_here)? {
            chats.ring();
        }
        link.level_with.set(Some(start));
        Ok(())
    }

    // ---- Answering ----

    fn answers_chat(&self, owner: &CellId) -> Result<(Rc<Link>, Rc<Chats>), Refusal> {
        if !self.is_friend(owner) {
            self.refusals.note(format_args!("{}: chat, and it is no friend", owner.short()));
            return Err(Refusal::new(ErrorCode::NotAllowed, "only friends chat", ""));
        }
        if self.vault.is_retired() {
            // What it took in would be taken for delivered, and the newer life would never see it.
            return Err(Refusal::new(ErrorCode::NotAllowed, "a newer life of this cell runs elsewhere", ""));
        }
        match (self.link(owner), self.chats()) {
            (Some(link), Ok(chats)) => Ok((link, chats)),
            _ => Err(Refusal::new(ErrorCode::Failed, "there is no chat at this cell now", "try again later")),
        }
    }

    /// A friend tells how far it is.
    pub(super) async fn answer_receipts(&self, owner: CellId, told: Receipts) -> Reply {
        let (link, chats) = match self.answers_chat(&owner) {
            Ok(both) => both,
            Err(why) => return Reply::Error(why),
        };
        let is_level = link.level_with.get() == Some(told.start);
        let work = move |talks: &Talks| -> Result<_, DbError> {
            let is_news = is_level && talks.heard_all(&owner, &told.receipts, false)?;
            Ok((is_news, talks.receipts(&owner)?))
        };
        // The reply tells; what changes from here on is told once more.
        link.told_receipts.set(true);
        match self.on_talks(&chats, work).await {
            Ok((is_news, receipts)) => {
                if is_news {
                    chats.ring();
                }
                if !is_level {
                    // It was started anew, or asks first: it is asked before it is believed.
                    link.level_with.set(None);
                    link.talk();
                }
                Reply::Receipts(Receipts { start: chats.talks.start(), receipts })
            }
            Err(why) => super::serve::failed(&why.into()),
        }
    }

    /// A friend says something.
    pub(super) async fn answer_messages(
        &self,
        owner: CellId,
        head: BatchHead,
        stream: &mut Stream,
    ) -> Answered {
        let (link, chats) = match self.answers_chat(&owner) {
            Ok(both) => both,
            Err(why) => return reply(stream, &Reply::Error(why)).await,
        };
        let Some(hearing) = Hearing::begin(&link.hearing) else {
            let busy = refusal(ErrorCode::Busy, "a batch is being taken in", "try again later");
            return reply(stream, &busy).await;
        };
        let answer = self.hear(&link, &chats, head, stream).await?;
        drop(hearing);
        reply(stream, &answer).await
    }

    async fn hear(
        &self,
        link: &Link,
        chats: &Chats,
        head: BatchHead,
        stream: &mut Stream,
    ) -> Result<Reply, AskError> {
        let owner = link.peer;
        // Read whatever becomes of it, so that the sender hears the answer.
        let mut body = Vec::new();
        message::read_body(stream, head.len as usize, &mut body).await?;
        let mut said = link.said.get();
        let may = said.takes_batch(head.len.into(), self.vault.clock.steady());
        link.said.set(said);
        if !may {
            self.refusals.note(format_args!("{}: a flood of messages", owner.short()));
            return Ok(refusal(ErrorCode::Busy, "enough was said for this hour", "try again later"));
        }
        if head.start != chats.talks.start() {
            return Ok(Reply::Messages(None));
        }
        let messages = match chat::read_batch(head.base, &body) {
            Ok(messages) => messages,
            Err(why) => {
                self.refusals.note(format_args!("{}: {why}", owner.short()));
                return Ok(refusal(ErrorCode::Malformed, why.0, ""));
            }
        };
        let vault = Arc::clone(&self.vault);
        match unblock(move || vault.store.free()).await {
            Ok(space) if space.free > space.reserve => {}
            Ok(_) => return Ok(refusal(ErrorCode::Busy, "the disk is full there", "try again later")),
            Err(why) => return Ok(super::serve::failed(&why.into())),
        }
        let name = self.name_of(&owner);
        let arrived = self.vault.clock.wall().max(0) as u64;
        let take = move |talks: &Talks| talks.take(&owner, &name, &head.run, head.base, &messages, arrived);
        Ok(match self.on_talks(chats, take).await {
            Ok(Took::Level { stored, new }) => {
                // The answer tells it.
                if new > 0 {
                    chats.ring();
                }
                Reply::Messages(Some(stored))
            }
            Ok(Took::Full) => {
                self.refusals.note(format_args!("{}: its history here is full", owner.short()));
                self.show_full_history(&owner);
                refusal(
                    ErrorCode::Busy,
                    "the history with you is full there",
                    "its user must delete some of it",
                )
            }
            Err(why) => super::serve::failed(&why.into()),
        })
    }

    fn show_full_history(&self, peer: &CellId) {
        let name = self.name_of(peer);
        let text = format!(
            "the history with {name} is as long as it may be: what {name} says is not taken any more"
        );
        let remedy = format!("delete some of it: `grove chat {name} --delete NUMBER`, or `--delete all`");
        self.vault.raise("chat-full", Alert { text, remedy });
    }

    // ---- What the user does ----

    /// Says something to a friend: kept when this returns, and on its way if the friend is connected.
    pub async fn say(
        &self,
        id: &CellId,
        drafts: Vec<Draft>,
        key: Option<String>,
    ) -> Result<Said, VaultError> {
        if !self.is_friend(id) {
            let name = self.name_of(id);
            let why = format!("{name} is no friend; `grove peer friend {name}` asks for friendship");
            return Err(VaultError::Refused(why));
        }
        let (peer, name, life) = (*id, self.name_of(id), self.vault.life());
        let at = self.vault.clock.wall().max(0) as u64;
        let kept = self.with_talks(move |talks| talks.say(&peer, &name, life, at, &drafts, key.as_deref()));
        let ids = kept.await?.map_err(|why| VaultError::Refused(why.to_string()))?;
        self.ring_chat();
        let link = self.link(id);
        match &link {
            Some(link) => link.talk(),
            None => self.wake_dialer(id),
        }
        Ok(Said { ids, online: link.is_some() })
    }

    /// The user has seen all up to a message; the friend is told.
    pub async fn mark_read(&self, id: &CellId, upto: u64) -> Result<(), VaultError> {
        let peer = *id;
        if self.with_talks(move |talks| talks.mark_read(&peer, upto)).await? {
            if let Some(link) = self.link(id) {
                link.told_receipts.set(false);
                link.talk();
            }
            self.ring_chat();
        }
        Ok(())
    }

    /// All conversations, the newest first.
    pub async fn talk_views(&self) -> Result<Vec<TalkView>, VaultError> {
        let talks = self.with_talks(Talks::list).await?;
        let view = |talk: Talk| TalkView {
            is_friend: self.is_friend(&talk.peer),
            online: self.link(&talk.peer).is_some(),
            talk: match self.gate.peer(&talk.peer) {
                Some(peer) => Talk { name: peer.name, ..talk },
                None => talk,
            },
        };
        Ok(talks.into_iter().map(view).collect())
    }

    /// Friends with whom nothing was said yet may be talked to as well: the cell of this name, id or beginning of an id,
    /// among peers and conversations.
    pub async fn find_talk(&self, text: &str) -> Result<CellId, VaultError> {
        let found = self.find_peer(text);
        if found.is_ok() || self.chats().is_err() {
            return found;
        }
        let talks = self.with_talks(Talks::list).await?;
        chat_named(&talks, text).map_or(found, Ok)
    }

    /// Part of the history with a cell; waits up to `wait` for something to happen since `seen`.
    pub async fn look_up(
        &self,
        id: &CellId,
        side: Side,
        limit: usize,
        seen: Option<u64>,
        wait: Duration,
    ) -> Result<Lookup, VaultError> {
        let chats = self.chats()?;
        if let Some(seen) = seen {
            within(wait, self.chat_changed(&chats, seen)).await;
        }
        let change = chats.change.get();
        let peer = *id;
        let work = move |talks: &Talks| Ok((talks.page(&peer, side, limit)?, talks.marks(&peer)?));
        let (page, (delivered, read)) = self.with_talks(work).await?;
        let (is_friend, online) = (self.is_friend(id), self.link(id).is_some());
        Ok(Lookup { page, delivered, read, change, is_friend, online })
    }

    async fn chat_changed(&self, chats: &Chats, seen: u64) {
        while chats.change.get() == seen {
            // Whoever has waited long enough is gone.
            chats.waiters.borrow_mut().retain(|waiter| !waiter.is_closed());
            if chats.waiters.borrow().len() >= WAITERS_MAX {
                crate::world::Timer::after(WAITER_PAUSE).await;
                return;
            }
            let (ring, rung) = channel::bounded(1);
            chats.waiters.borrow_mut().push(ring);
            let _ = rung.recv().await;
        }
    }

    /// See `Talks::search`.
    pub async fn search_chat(
        &self,
        words: Vec<String>,
        id: Option<CellId>,
        before: u64,
        limit: usize,
    ) -> Result<Found, VaultError> {
        self.with_talks(move |talks| talks.search(&words, id.as_ref(), before, limit)).await
    }

    /// Deletes one message here; `false` if there is none.
    pub async fn delete_message(&self, id: &CellId, message: u64) -> Result<bool, VaultError> {
        let peer = *id;
        let is_gone = self.with_talks(move |talks| talks.delete(&peer, message)).await?;
        if is_gone {
            self.deleted().await?;
        }
        Ok(is_gone)
    }

    /// Deletes the conversation with a cell up to a message, or up to this moment, as far as it gets in a few seconds.
    pub async fn delete_talk(&self, id: &CellId, upto: Option<u64>) -> Result<DeletedTalk, VaultError> {
        let peer = *id;
        let upto = match upto {
            Some(upto) => upto,
            None => {
                let newest = move |talks: &Talks| {
                    let page = talks.page(&peer, Side::Before(u64::MAX), 1)?;
                    Ok(page.items.last().map_or(0, |last| last.id))
                };
                self.with_talks(newest).await?
            }
        };
        let began = self.vault.clock.steady();
        let mut told = DeletedTalk { count: 0, upto, has_more: true };
        while told.has_more && self.vault.clock.steady().saturating_sub(began) < DELETE_TIME_MAX {
            let some = self.with_talks(move |talks| talks.delete_some(&peer, upto)).await?;
            told.count += some;
            told.has_more = some > 0;
        }
        if told.count > 0 {
            self.deleted().await?;
        }
        Ok(told)
    }

    /// Something was deleted.
    async fn deleted(&self) -> Result<(), VaultError> {
        self.with_talks(Talks::wipe).await?;
        self.vault.clear("chat-full");
        self.ring_chat();
        Ok(())
    }
}

/// How far a conversation was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletedTalk {
    /// Messages that went.
    pub count: u64,
    /// The last message that is to go.
    pub upto: u64,
    /// Whether there are more up to it.
    pub has_more: bool,
}

/// The conversation that a name or the beginning of an id means; `None`: none, or several.
pub fn chat_named(talks: &[Talk], text: &str) -> Option<CellId> {
    let lower = text.to_ascii_lowercase();
    let is_meant =
        |talk: &&Talk| talk.name == text || (text.len() >= 4 && hex(&talk.peer.0).starts_with(&lower));
    let mut meant = talks.iter().filter(is_meant);
    meant.next().filter(|_| meant.next().is_none()).map(|talk| talk.peer)
}

/// A failure of our own while a request was being made.
fn failed_here(why: DbError) -> AskError {
    log::warn!("{why}");
    AskError::Stream(std::io::Error::other(why.to_string()))
}
