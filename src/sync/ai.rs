//! Friends' models: beats and questions go out, and those of friends come in. Knows nothing of what is in them: `Models`, which
//! the cell hands over, does.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use smol::channel::Sender;

use super::driver::Sync;
use super::link::For;
use super::serve::{Answered as Done, reply};
use crate::id::CellId;
use crate::wire::message::{
    self, Answering, AskError, ErrorCode, QUESTION_BYTES_MAX, Refusal, Reply, Request,
};
use crate::wire::session::Stream;
use crate::wire::within;

/// Frames that wait to be sent.
const FRAMES_MAX: usize = 16;
/// A friend hears a beat within this, or not at all.
const BEAT_TIME_MAX: Duration = Duration::from_secs(5);
/// A refusal of a question is heard within this.
const BUSY_TEXT: &str = "its models are busy";

/// A frame of an answer: its kind and what is in it.
pub type Answered = (u8, Vec<u8>);

/// An answer under way for a friend, frame by frame. Dropping it stops whoever works on it.
pub type Asked = smol::channel::Receiver<Answered>;

/// What friends ask of this cell's models.
pub trait Models {
    /// A friend tells what it offers. The error is for its log.
    fn hear(&self, from: CellId, beat: &[u8]) -> Result<(), &'static str>;
    /// A friend asks; frames go into `frames` until the work is done or the receiver is gone. An error is why it is not
    /// answered at all.
    fn answer(
        &self,
        from: CellId,
        question: Vec<u8>,
        frames: Sender<Answered>,
    ) -> Result<LocalBoxFuture<'static, ()>, String>;
}

impl Sync {
    /// From now on, these answer what friends ask of this cell's models.
    pub fn set_models(&self, models: Rc<dyn Models>) {
        *self.models.borrow_mut() = Some(models);
    }

    /// Whether a cell is a friend that is connected.
    pub fn is_friend_reached(&self, id: &CellId) -> bool {
        self.is_friend(id) && self.link(id).is_some()
    }

    /// There and back by the quickest connection, as measured. s.
    pub fn round_trip_s(&self, id: &CellId) -> f64 {
        let line = self.link(id).and_then(|link| link.best(For::Small));
        line.map_or(0.05, |line| line.speed.get().rtt_us as f64 / 1e6)
    }

    /// Whether a peer answers.
    pub async fn ping_friend(&self, id: &CellId) -> bool {
        match self.link(id) {
            Some(link) => matches!(link.ask(&Request::Ping).await, Ok(Reply::Pong)),
            None => false,
        }
    }

    /// Tells a friend what it may use. `false`: it has not heard.
    pub async fn send_beat(&self, id: &CellId, bytes: Vec<u8>) -> bool {
        let Some(link) = self.link(id).filter(|_| self.is_friend(id)) else { return false };
        let told = within(BEAT_TIME_MAX, link.ask(&Request::Beat { bytes })).await;
        matches!(told, Some(Ok(Reply::Done)))
    }

    /// Asks a friend's models.
    pub async fn ask_friend(&self, id: &CellId, question: &[u8]) -> Result<Answering, AskError> {
        let not_now = || AskError::Session(crate::wire::session::SessionError::Closed);
        let link = self.link(id).filter(|_| self.is_friend(id)).ok_or_else(not_now)?;
        let line = link.line(For::Small).await?;
        message::question(&line.session, question).await
    }

    /// A friend tells what this cell may use.
    pub(super) async fn answer_beat(&self, owner: CellId, bytes: &[u8], stream: &mut Stream) -> Done {
        let models = self.models.borrow().clone();
        if !self.is_friend(&owner) {
            let refusal = Refusal::new(ErrorCode::NotAllowed, "only friends offer models", "");
            return reply(stream, &Reply::Error(refusal)).await;
        }
        if let Some(Err(why)) = models.map(|models| models.hear(owner, bytes)) {
            self.refusals.note(format_args!("{}: {why}", owner.short()));
            return reply(stream, &Reply::Error(Refusal::new(ErrorCode::Malformed, why, ""))).await;
        }
        reply(stream, &Reply::Done).await
    }

    /// A friend asks this cell's models. Nothing of it is kept.
    pub(super) async fn answer_question(&self, owner: CellId, len: u32, stream: &mut Stream) -> Done {
        assert!(len as usize <= QUESTION_BYTES_MAX, "longer ones are refused when they are read");
        let Some(_place) = self.link(&owner).and_then(|link| link.body()) else {
            return reply(stream, &super::serve::too_much_at_once()).await;
        };
        // Read whatever becomes of it, so that the asker hears the answer.
        let mut question = Vec::new();
        message::read_body(stream, len as usize, &mut question).await?;
        let models = self.models.borrow().clone();
        let models = match models {
            Some(models) if self.is_friend(&owner) && !self.vault.is_retired() => models,
            _ => {
                self.refusals.note(format_args!("{}: a question, and it may not ask", owner.short()));
                let refusal = Refusal::new(ErrorCode::NotAllowed, "no models are offered here", "");
                return reply(stream, &Reply::Error(refusal)).await;
            }
        };
        let (give, frames) = smol::channel::bounded(FRAMES_MAX);
        let work = match models.answer(owner, question, give) {
            Ok(work) => work,
            Err(why) => {
                let refusal = Refusal::new(ErrorCode::Busy, &why, BUSY_TEXT);
                return reply(stream, &Reply::Error(refusal)).await;
            }
        };
        message::write_reply(stream, &Reply::Answering).await?;
        // The asker gone, the work is dropped and its model stops.
        let _work = self.spawn(work);
        loop {
            let next = smol::future::or(async { Some(frames.recv().await) }, async {
                message::asker_gone(stream).await;
                None
            });
            match next.await {
                Some(Ok((kind, bytes))) => message::write_frame(stream, kind, &bytes).await?,
                Some(Err(_)) => break,
                None => return Ok(()),
            }
        }
        Ok(message::finish(stream).await?)
    }
}
