//! A friend played by hand over the real Noise session: it offers models, and answers questions as a test says, to the byte.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_util::AsyncWriteExt;
use smol::channel::{Receiver, Sender};
use smol::net::TcpStream;
use smol::{LocalExecutor, Timer};

use grove::ai::friend::{Beat, OfferedModel};
use grove::card::{Card, CardBody, Invite};
use grove::friendship::Friendship;
use grove::keys::{Identity, MasterKey, random};
use grove::wire::Transport;
use grove::wire::handshake::{Approach, initiate};
use grove::wire::message::{self, ErrorCode, Refusal, Reply, Request};
use grove::wire::session::{self, Limits, Session, Stream};

use super::{Cell, text, wait_for};

/// What it does with a question, one after the other. Behind the last it ends the stream in order.
#[derive(Clone)]
pub enum Step {
    /// Says that it answers.
    Answering,
    /// Says something else.
    Reply(Reply),
    /// The head of a reply, whatever is in it.
    Head(Vec<u8>),
    /// A frame of this kind.
    Frame(u8, Vec<u8>),
    /// Bytes, whatever they are.
    Raw(Vec<u8>),
    /// The step again and again, so often, with a pause between.
    Again(Box<Step>, usize, Duration),
    /// Nothing, as long as the asker waits; a minute at most.
    Hang,
    /// Resets the stream.
    Reset,
    /// Ends the session at once, and comes back.
    Leave,
}

/// A chunk of OpenAI's form that says `text`.
pub fn chunk(text: &str, finish: Option<&str>) -> Vec<u8> {
    let finish = finish.map_or("null".to_owned(), |finish| format!("\"{finish}\""));
    format!(
        "{{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":{finish}}}]}}"
    )
    .into_bytes()
}

/// A part that says `text`.
pub fn part(text: &str) -> Step {
    Step::Frame(1, chunk(text, None))
}

/// The proper end of an answer.
pub fn end() -> [Step; 2] {
    [Step::Frame(1, chunk("", Some("stop"))), Step::Frame(3, Vec::new())]
}

/// What is known of it and what it is to do, seen from both threads.
#[derive(Default)]
struct Shared {
    /// By a word that stands in the question.
    plays: Mutex<BTreeMap<String, Vec<Step>>>,
    beat: Mutex<Vec<u8>>,
    asked: Mutex<Vec<String>>,
    is_over: AtomicBool,
    /// Sessions that began.
    sessions: AtomicUsize,
}

type Work = Box<dyn FnOnce(Session) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The friend. It is gone when dropped.
pub struct Rogue {
    shared: Arc<Shared>,
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

/// What it boasts of: a model that writes faster than any.
pub fn boast(decode_tps: u32) -> Beat {
    let model = OfferedModel {
        name: "grove-tiny".into(),
        params_m: 1,
        context: 4096,
        decode_centi: decode_tps * 100,
        prefill_centi: decode_tps * 100,
        load_s: 0,
    };
    Beat { every_s: 20, slots: 1024, busy: 0, concurrent: 255, tokens_left: u64::MAX, models: vec![model] }
}

impl Rogue {
    /// Becomes a friend of this cell's, called `name`, and tells of models.
    pub fn befriends(cell: &Cell, name: &str) -> Self {
        let token = text(&cell.post("/invites", r#"{"role":"friend"}"#), "token");
        let invite: Invite = token.parse().unwrap();
        let (port, name) = (cell.peer_port, name.to_owned());
        let shared = Arc::new(Shared { beat: Mutex::new(boast(2000).to_bytes()), ..Shared::default() });
        let (work, todo) = smol::channel::unbounded();
        let inner = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let executor = Rc::new(LocalExecutor::new());
            smol::block_on(executor.run(live(Rc::clone(&executor), inner, todo, invite, port, name)));
        });
        let rogue = Self { shared, work: Some(work), thread: Some(thread) };
        rogue.ready(1);
        rogue
    }

    /// Waits until it has told of its models in so many sessions.
    pub fn ready(&self, sessions: usize) {
        wait_for("the friend is connected", || (self.sessions() >= sessions).then_some(()));
    }

    /// Sessions in which it has told of its models.
    pub fn sessions(&self) -> usize {
        self.shared.sessions.load(Ordering::SeqCst)
    }

    /// What it does with questions in which this word stands.
    pub fn plays(&self, word: &str, steps: impl IntoIterator<Item = Step>) {
        let steps = steps.into_iter().collect();
        self.shared.plays.lock().unwrap().insert(word.to_owned(), steps);
    }

    /// How many questions with this word in them have come.
    pub fn asked(&self, word: &str) -> usize {
        self.shared.asked.lock().unwrap().iter().filter(|question| question.contains(word)).count()
    }

    /// Does something with the session as it is now, and gives what came of it.
    pub fn with<T, F>(&self, work: impl FnOnce(Session) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (tell, told) = mpsc::channel();
        let work: Work = Box::new(move |session| {
            Box::pin(async move {
                let _ = tell.send(work(session).await);
            })
        });
        self.work.as_ref().expect("it is here").try_send(work).unwrap();
        told.recv_timeout(super::DEADLINE).expect("the friend does it")
    }

    /// Tells of its models, and goes on telling this.
    pub fn tells(&self, beat: &Beat) -> Result<Reply, String> {
        let bytes = beat.to_bytes();
        self.shared.beat.lock().unwrap().clone_from(&bytes);
        self.says(bytes)
    }

    /// Says this once in place of what it offers.
    pub fn says(&self, bytes: Vec<u8>) -> Result<Reply, String> {
        self.with(|session| async move { tell(&session, bytes).await })
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn tell(session: &Session, bytes: Vec<u8>) -> Result<Reply, String> {
    message::ask(session, &Request::Beat { bytes }).await.map_err(|why| why.to_string())
}

fn card(identity: &Identity, name: String) -> Vec<u8> {
    let body = CardBody {
        id: identity.id(),
        x25519: *identity.x_public(),
        name,
        addresses: vec![],
        relays: vec![],
        sequence: 1,
        successor: None,
        extensions: vec![],
    };
    Card::sign(identity, body).unwrap().to_bytes()
}

/// Connects, and again whenever the session has ended, until the test is over.
async fn live(
    executor: Rc<LocalExecutor<'static>>,
    shared: Arc<Shared>,
    todo: Receiver<Work>,
    invite: Invite,
    port: u16,
    name: String,
) {
    let identity = MasterKey::from_bytes(random()).identity(0, 0);
    let card = card(&identity, name);
    let known = Approach::Known { id: invite.inviter, x25519: invite.x25519 };
    let mut approach = Approach::from(&invite);
    while !shared.is_over.load(Ordering::SeqCst) {
        let greeted = async {
            let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
            stream.set_nodelay(true).ok()?;
            initiate(stream, Transport::Tcp, &identity, &card, &approach).await.ok()
        };
        let Some(shaken) = greeted.await else {
            Timer::after(Duration::from_millis(100)).await;
            continue;
        };
        approach = known.clone();
        // It breaks the rules on purpose.
        let limits = Limits { streams_out: 2000, streams_in: 2000, ..Limits::default() };
        let (session, driver) = session::start(shaken.stream, true, &limits);
        let driving = executor.spawn(driver);
        let serving = executor.spawn(serve(Rc::clone(&executor), Arc::clone(&shared), session.clone()));
        let beat = shared.beat.lock().unwrap().clone();
        if tell(&session, beat).await.is_ok() {
            shared.sessions.fetch_add(1, Ordering::SeqCst);
        }
        loop {
            let next = smol::future::or(async { todo.recv().await.ok() }, async {
                session.ended().await;
                None
            });
            match next.await {
                Some(work) => executor.spawn(work(session.clone())).detach(),
                None => break,
            }
        }
        session.abort();
        drop((serving, driving.await));
    }
}

async fn serve(executor: Rc<LocalExecutor<'static>>, shared: Arc<Shared>, session: Session) {
    while let Some(stream) = session.accept().await {
        let (shared, session) = (Arc::clone(&shared), session.clone());
        executor.spawn(async move { drop(answer(&shared, &session, stream).await) }).detach();
    }
}

async fn answer(shared: &Shared, session: &Session, mut stream: Stream) -> Result<(), message::AskError> {
    let reply = match message::read_request(&mut stream).await? {
        Request::Question { len } => {
            let mut question = Vec::new();
            message::read_body(&mut stream, len as usize, &mut question).await?;
            let question = String::from_utf8(question).unwrap();
            let steps = {
                let plays = shared.plays.lock().unwrap();
                let play = plays.iter().find(|(word, _)| question.contains(word.as_str()));
                play.map(|(_, steps)| steps.clone()).unwrap_or_default()
            };
            shared.asked.lock().unwrap().push(question);
            for step in steps {
                if !take(session, &mut stream, step).await? {
                    return Ok(());
                }
            }
            return Ok(message::finish(&mut stream).await?);
        }
        Request::Ping => Reply::Pong,
        Request::RecoverySecret { .. } | Request::Card { .. } | Request::Beat { .. } => Reply::Done,
        // As the asker wishes.
        Request::Friendship(told) => Reply::Friendship(Friendship { ours: told.theirs, theirs: told.ours }),
        _ => Reply::Error(Refusal::new(ErrorCode::Unsupported, "not here", "")),
    };
    message::write_reply(&mut stream, &reply).await?;
    Ok(message::finish(&mut stream).await?)
}

/// `false`: the stream is to be dropped as it is.
async fn take(session: &Session, stream: &mut Stream, step: Step) -> Result<bool, message::AskError> {
    match step {
        Step::Answering => message::write_reply(stream, &Reply::Answering).await?,
        Step::Reply(reply) => message::write_reply(stream, &reply).await?,
        Step::Head(bytes) => message::write_head(stream, &bytes).await?,
        Step::Frame(kind, bytes) => message::write_frame(stream, kind, &bytes).await?,
        Step::Raw(bytes) => {
            stream.write_all(&bytes).await?;
            stream.flush().await?;
        }
        Step::Again(step, count, pause) => {
            for _ in 0..count {
                if !Box::pin(take(session, stream, (*step).clone())).await? {
                    return Ok(false);
                }
                if !pause.is_zero() {
                    Timer::after(pause).await;
                }
            }
        }
        Step::Hang => {
            let gone = message::asker_gone(stream);
            smol::future::or(gone, async {
                Timer::after(Duration::from_secs(60)).await;
            })
            .await;
        }
        Step::Reset => return Ok(false),
        Step::Leave => {
            session.abort();
            return Ok(false);
        }
    }
    Ok(true)
}
