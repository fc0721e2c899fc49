//! Friends who offer their models: what they tell of themselves every few seconds, and their answers, part by part. All of it
//! is taken for what it may be: claims of speed are bounded and soon measured, and an answer makes sense or is broken off.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::{FutureExt, LocalBoxFuture};

use super::book::CONCURRENT_MAX;
use super::desk::{Backend, Load, Offer, Resumes, Source};
use super::form::{Ask, Failure, Kind, MODEL_BYTES_MAX, Part};
use super::router::{CLAIM_MAX, Facts};
use super::server::MODELS_MAX;
use crate::codec::{BadBytes, Reader, Writer};
use crate::id::{CellId, hex};
use crate::world::instant;

/// A beat, in bytes.
pub const BEAT_BYTES_MAX: usize = 16 * 1024;
/// Whoever misses so many beats is not asked any more.
const MISSED_MAX: u32 = 3;
/// A question that one cell sends to another, in bytes.
pub const QUESTION_BYTES_MAX: usize = 1 << 20;
/// A part of an answer, in bytes.
pub const PART_BYTES_MAX: usize = 256 * 1024;
/// An answer that comes whole, in bytes.
pub const WHOLE_BYTES_MAX: usize = 2 << 20;

/// A model that a friend's cell offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedModel {
    /// Its name there.
    pub name: String,
    /// Million parameters; 0: not known.
    pub params_m: u32,
    /// Tokens of prompt and answer together; 0: not known.
    pub context: u32,
    /// Writing, in hundredths of a token a second; 0: not known.
    pub decode_centi: u32,
    /// Reading, likewise.
    pub prefill_centi: u32,
    /// Until it is in memory. s.
    pub load_s: u16,
}

/// What a cell tells a friend of its models, every few seconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Beat {
    /// The next one comes after this. s; at least 1.
    pub every_s: u8,
    /// Answers at once.
    pub slots: u16,
    /// Under way or waiting.
    pub busy: u16,
    /// Answers at once for this friend.
    pub concurrent: u8,
    /// Tokens that are left for it today.
    pub tokens_left: u64,
    /// What it may use; at most 64.
    pub models: Vec<OfferedModel>,
}

impl Beat {
    /// Nothing is offered any more.
    pub fn nothing() -> Self {
        Self { every_s: 60, ..Self::default() }
    }

    /// The form on the wire.
    ///
    /// # Panics
    /// If there are more than 64 models, or one's name has more than 128 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        assert!(self.models.len() <= MODELS_MAX, "a beat tells of at most 64 models");
        let mut to = Writer::new();
        to.u8(1).u8(self.every_s).u16(self.slots).u16(self.busy).u8(self.concurrent).u64(self.tokens_left);
        to.u8(self.models.len() as u8);
        for model in &self.models {
            assert!(model.name.len() <= MODEL_BYTES_MAX, "names of models are bounded");
            to.u8(model.name.len() as u8).raw(model.name.as_bytes());
            to.u32(model.params_m).u32(model.context).u32(model.decode_centi).u32(model.prefill_centi);
            to.u16(model.load_s);
        }
        to.finish()
    }

    /// Reads one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadBytes> {
        let mut from = Reader::new(bytes);
        if from.u8()? != 1 {
            return Err(BadBytes("a beat of a later version"));
        }
        let mut beat = Self {
            every_s: from.u8()?,
            slots: from.u16()?,
            busy: from.u16()?,
            concurrent: from.u8()?,
            tokens_left: from.u64()?,
            models: Vec::new(),
        };
        let count = from.u8()?;
        if beat.every_s == 0 || usize::from(count) > MODELS_MAX {
            return Err(BadBytes("a beat makes no sense"));
        }
        for _ in 0..count {
            let len = from.u8()?;
            let name = std::str::from_utf8(from.raw(len.into())?).map_err(|_| BadBytes("a model's name"))?;
            if name.is_empty() || name.len() > MODEL_BYTES_MAX || name.chars().any(char::is_control) {
                return Err(BadBytes("a model's name"));
            }
            beat.models.push(OfferedModel {
                name: name.to_owned(),
                params_m: from.u32()?,
                context: from.u32()?,
                decode_centi: from.u32()?,
                prefill_centi: from.u32()?,
                load_s: from.u16()?,
            });
        }
        from.end()?;
        Ok(beat)
    }
}

/// What a frame of an answer between cells is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// A chunk of OpenAI's form.
    Part = 1,
    /// The whole answer.
    Whole = 2,
    /// The answer is whole; nothing is in it.
    End = 3,
    /// It is not, and why: OpenAI's form, with `status`.
    Error = 4,
}

impl Frame {
    /// What the byte means.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Part, Self::Whole, Self::End, Self::Error].into_iter().find(|frame| *frame as u8 == byte)
    }

    /// Bytes that it may have.
    pub fn bytes_max(self) -> usize {
        match self {
            Self::Part => PART_BYTES_MAX,
            Self::Whole => WHOLE_BYTES_MAX,
            Self::End => 0,
            Self::Error => 16 * 1024,
        }
    }
}

/// Frames as they come from a friend's cell. Dropping them stops it.
pub trait Frames {
    /// The next: its byte and what is in it.
    fn next(&mut self) -> LocalBoxFuture<'_, Result<(u8, Vec<u8>), String>>;
}

/// What friends' models need of the cell.
pub trait Peers {
    /// A friend's name.
    fn name(&self, peer: &CellId) -> String;
    /// It is a friend and connected.
    fn is_reached(&self, peer: &CellId) -> bool;
    /// There and back, as measured. s.
    fn round_trip_s(&self, peer: &CellId) -> f64;
    /// It answers at all.
    fn ping(&self, peer: CellId) -> LocalBoxFuture<'static, bool>;
    /// Asks it a question.
    fn ask(
        &self,
        peer: CellId,
        question: Vec<u8>,
    ) -> LocalBoxFuture<'static, Result<Box<dyn Frames>, Failure>>;
}

/// A friend who offers models, or did.
pub struct Friend {
    /// Whose cell.
    pub peer: CellId,
    peers: Rc<dyn Peers>,
    beat: RefCell<Option<(Instant, Beat)>>,
    load: Load,
}

impl Friend {
    /// One of whom nothing is known yet.
    pub fn new(peer: CellId, peers: Rc<dyn Peers>) -> Self {
        Self { peer, peers, beat: RefCell::default(), load: Load::default() }
    }

    /// It has told of itself.
    pub fn hear(&self, beat: Beat) {
        let now = instant();
        // What was lately given up is tried again only in time.
        self.load.note_seen(now);
        *self.beat.borrow_mut() = Some((now, beat));
    }

    /// What it last told, if that still holds.
    pub fn beat(&self) -> Option<Beat> {
        let beat = self.beat.borrow();
        let (at, beat) = beat.as_ref()?;
        let holds = Duration::from_secs(u64::from(beat.every_s) * u64::from(MISSED_MAX) + 1);
        (crate::world::since(*at) < holds && self.peers.is_reached(&self.peer)).then(|| beat.clone())
    }
}

fn centi(rate: u32) -> Option<f64> {
    (rate > 0).then(|| (f64::from(rate) / 100.0).min(CLAIM_MAX))
}

impl Backend for Friend {
    fn id(&self) -> u64 {
        u64::from_le_bytes(self.peer.0[..8].try_into().expect("8 bytes")) | 1
    }

    fn label(&self) -> String {
        self.peers.name(&self.peer)
    }

    fn cell(&self) -> String {
        self.peers.name(&self.peer)
    }

    fn is_at(&self, cell: &str) -> bool {
        let lower = cell.to_ascii_lowercase();
        cell == self.peers.name(&self.peer) || (cell.len() >= 4 && hex(&self.peer.0).starts_with(&lower))
    }

    fn is_own(&self) -> bool {
        false
    }

    fn load(&self) -> &Load {
        &self.load
    }

    fn offer(&self, ask: &Ask) -> Option<Offer> {
        let beat = self.beat()?;
        let assigned = self.load.in_flight.get();
        // Whatever it says: other things need the connection, too.
        let slots = u32::from(beat.slots).min(u32::from(beat.concurrent)).min(CONCURRENT_MAX);
        if slots == 0 || assigned >= slots || beat.tokens_left < u64::from(ask.prompt_tokens) {
            return None;
        }
        let params = |model: &OfferedModel| (model.params_m > 0).then(|| f64::from(model.params_m) / 1000.0);
        let fitting = beat.models.iter().filter(|model| ask.wanted.fits(&model.name, params(model)));
        let model = fitting.max_by_key(|model| (model.load_s == 0, model.params_m))?;
        let facts = Facts {
            slots: u32::from(beat.slots),
            busy: u32::from(beat.busy).max(assigned),
            load_s: f64::from(model.load_s),
            prefill_tps: self.load.prefill.get().get().or(centi(model.prefill_centi)),
            decode_tps: self.load.decode.get().get().or(centi(model.decode_centi)),
            round_trip_s: self.peers.round_trip_s(&self.peer),
            context: model.context,
            params: params(model),
            late: 1.0,
            is_down: false,
            has_cache: false,
        };
        Some(Offer { model: model.name.clone(), facts })
    }

    fn resumes(&self) -> Resumes {
        // Its cell takes off what its model repeats.
        Resumes::Silently
    }

    fn start(
        self: Rc<Self>,
        ask: Rc<Ask>,
        model: String,
        written: Option<(String, u32)>,
    ) -> LocalBoxFuture<'static, Result<Box<dyn Source>, Failure>> {
        async move {
            let written = written.as_ref().map(|(text, tokens)| (text.as_str(), *tokens));
            let question = ask.to_peer(&model, written).into_bytes();
            if question.len() > QUESTION_BYTES_MAX {
                return Err(Failure::Busy("the question is too long to be sent".into()));
            }
            let frames = self.peers.ask(self.peer, question).await?;
            Ok(Box::new(FromFriend { kind: ask.kind, is_whole: ask.is_whole, frames }) as Box<dyn Source>)
        }
        .boxed_local()
    }

    fn check(self: Rc<Self>) -> LocalBoxFuture<'static, bool> {
        self.peers.ping(self.peer)
    }
}

/// A friend's answer.
struct FromFriend {
    kind: Kind,
    /// It comes in one piece.
    is_whole: bool,
    frames: Box<dyn Frames>,
}

impl Source for FromFriend {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<Part>, Failure>> {
        async {
            let (byte, bytes) = self.frames.next().await.map_err(Failure::Broken)?;
            let odd = || Failure::Broken("it sent what is not understood".into());
            let frame = Frame::from_byte(byte).ok_or_else(odd)?;
            let text = String::from_utf8(bytes).map_err(|_| odd())?;
            match frame {
                Frame::End => Ok(None),
                Frame::Whole if self.is_whole => Part::whole(self.kind, text).map(Some),
                Frame::Whole => Err(odd()),
                Frame::Part if self.is_whole => Err(odd()),
                Frame::Part => match Part::from_openai(self.kind, &text)? {
                    Some(part) => Ok(Some(part)),
                    None => Err(odd()),
                },
                Frame::Error => {
                    let object = super::json::read_object(&text).unwrap_or_default();
                    let status = super::json::number(&object, "status").unwrap_or(502);
                    Err(Failure::from_answer(status.clamp(400, 599) as u16, &text))
                }
            }
        }
        .boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ai::answer::{Answer, Event};
    use crate::ai::desk::Desk;
    use crate::world::Dice;

    fn beat() -> Beat {
        let model = OfferedModel {
            name: "m:7b".into(),
            params_m: 7000,
            context: 8192,
            decode_centi: 5000,
            prefill_centi: 0,
            load_s: 0,
        };
        Beat { every_s: 4, slots: 2, busy: 1, concurrent: 2, tokens_left: u64::MAX, models: vec![model; 2] }
    }

    #[test]
    fn beats_read_back_and_odd_ones_are_refused() {
        let bytes = beat().to_bytes();
        assert_eq!(Beat::from_bytes(&bytes).unwrap(), beat());
        assert!((0..bytes.len()).all(|at| Beat::from_bytes(&bytes[..at]).is_err()));
        let mut dice = Dice::new(1, "beats");
        for _ in 0..5000 {
            let mut changed = bytes.clone();
            for _ in 0..=dice.below(4) {
                let at = dice.below(changed.len() as u64) as usize;
                changed[at] = dice.below(256) as u8;
            }
            if let Ok(beat) = Beat::from_bytes(&changed) {
                assert_eq!(beat.to_bytes(), changed);
            }
        }
        let most = OfferedModel { name: "x".repeat(MODEL_BYTES_MAX), ..beat().models[0].clone() };
        assert!(Beat { models: vec![most; MODELS_MAX], ..beat() }.to_bytes().len() <= BEAT_BYTES_MAX);
    }

    /// A friend whose cell sends what a test says.
    struct Sends(Vec<(u8, Vec<u8>)>);

    struct Sent(std::vec::IntoIter<(u8, Vec<u8>)>);

    impl Frames for Sent {
        fn next(&mut self) -> LocalBoxFuture<'_, Result<(u8, Vec<u8>), String>> {
            async { self.0.next().ok_or_else(|| "the line broke".to_owned()) }.boxed_local()
        }
    }

    impl Peers for Sends {
        fn name(&self, _: &CellId) -> String {
            "pc".into()
        }
        fn is_reached(&self, _: &CellId) -> bool {
            true
        }
        fn round_trip_s(&self, _: &CellId) -> f64 {
            0.01
        }
        fn ping(&self, _: CellId) -> LocalBoxFuture<'static, bool> {
            async { true }.boxed_local()
        }
        fn ask(&self, _: CellId, _: Vec<u8>) -> LocalBoxFuture<'static, Result<Box<dyn Frames>, Failure>> {
            let sent = Sent(self.0.clone().into_iter());
            async { Ok(Box::new(sent) as Box<dyn Frames>) }.boxed_local()
        }
    }

    fn hear(frames: Vec<(u8, Vec<u8>)>) -> Result<String, String> {
        let desk = Rc::new(Desk::default());
        let friend = Friend::new(CellId([7; 32]), Rc::new(Sends(frames)));
        friend.hear(beat());
        desk.add(Rc::new(friend));
        let ask = Ask::read(Kind::Chat, br#"{"messages":[{"role":"user","content":"q"}]}"#).unwrap();
        let mut answer = Answer::new(&desk, ask, 0);
        smol::block_on(async {
            let mut text = String::new();
            loop {
                match answer.next().await {
                    Ok(Event::Part(part)) => {
                        assert!(part.to_client(Kind::Chat, answer.name(), None).contains(&answer.name().id));
                        text.push_str(&part.text);
                    }
                    Ok(Event::End) => return Ok(text),
                    Err(why) => return Err(why.message),
                }
            }
        })
    }

    fn part(text: &str, finish: &str) -> (u8, Vec<u8>) {
        let text = format!(
            "{{\"id\":\"theirs\",\"model\":\"theirs\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":{finish}}}]}}"
        );
        (1, text.into_bytes())
    }

    #[test]
    fn a_friends_answer_is_whole_or_one_clean_error() {
        let (a, end, over) = (part("a", "null"), part("b", "\"stop\""), (3, Vec::new()));
        assert_eq!(hear(vec![a.clone(), end.clone(), over.clone()]), Ok("ab".into()));
        // Tokens behind the end are not said.
        assert_eq!(hear(vec![a.clone(), end.clone(), a.clone(), over.clone()]), Ok("ab".into()));
        // An end that was not announced is none.
        let hostile = [
            vec![a.clone(), over.clone()],
            vec![a.clone()],
            vec![over.clone()],
            vec![a.clone(), (9, vec![]), end.clone()],
            vec![a.clone(), (1, b"{".to_vec()), end.clone()],
            vec![a.clone(), (1, vec![0xff]), end.clone()],
            vec![a.clone(), (1, b"[DONE]".to_vec()), end.clone()],
            vec![a.clone(), (4, b"{\"status\":503,\"error\":{\"message\":\"gone\"}}".to_vec())],
            vec![(1, " ".repeat(PART_BYTES_MAX).into_bytes())],
            vec![(1, format!("{{\"choices\":{}", "[".repeat(100_000)).into_bytes())],
            // A whole where parts were asked for.
            vec![(2, b"{\"choices\":[{\"message\":{\"content\":\"x\"}}]}".to_vec()), over.clone()],
        ];
        for frames in hostile {
            let why = hear(frames).unwrap_err();
            assert!(why.len() < 1000 && !why.contains('\n'), "{why}");
        }
    }

    #[test]
    fn claims_are_bounded_and_what_was_measured_is_believed() {
        let friend = Friend::new(CellId([7; 32]), Rc::new(Sends(Vec::new())));
        let ask = Ask::read(Kind::Chat, br#"{"messages":[{"role":"user","content":"q"}]}"#).unwrap();
        assert!(friend.offer(&ask).is_none());
        let mut boast = beat();
        boast.models[1].decode_centi = u32::MAX;
        boast.models[0] = boast.models[1].clone();
        friend.hear(boast);
        assert_eq!(friend.offer(&ask).unwrap().facts.decode_tps, Some(CLAIM_MAX));
        let mut measured = friend.load.decode.get();
        measured.add(3.0);
        friend.load.decode.set(measured);
        assert_eq!(friend.offer(&ask).unwrap().facts.decode_tps, Some(3.0));
        friend.hear(Beat { tokens_left: 0, ..beat() });
        assert!(friend.offer(&ask).is_none());
        friend.hear(Beat { concurrent: 0, ..beat() });
        assert!(friend.offer(&ask).is_none());
        friend.hear(Beat::nothing());
        assert!(friend.offer(&ask).is_none());
    }
}
