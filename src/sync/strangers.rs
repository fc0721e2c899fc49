//! Cells of which one side knows nothing any more. Whoever became a peer after the catalog was written that a recovery brought back
//! asks in vain to be let in, and may hold what is newer than that catalog: so a person is told, here that somebody asks, and
//! there that a peer refuses. On the wire a stranger hears nothing, and only who knows this cell's key gets far enough to count.

use super::DAY_S;
use super::driver::Sync;
use super::health::SILENCE_S;
use super::round::{is_waited_out, with_vault};
use crate::alerts::{Alert, rough_time};
use crate::catalog::{RecordKind, record_key};
use crate::id::CellId;
use crate::vault::VaultError;

/// Strangers that are told apart, at most.
const ASKING_MAX: usize = 8;
/// Of so many the ids are told.
const IDS_TOLD_MAX: usize = 3;
/// A stranger that asks no more is forgotten after this. Observed seconds.
const QUIET_S: u64 = 7 * DAY_S;

/// Who asks to be let in and is not known, and who refuses. In memory: both come again. Times are observed seconds.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    /// When this cell was brought back, if it ever was.
    recovered_at: Option<u64>,
    /// When each last asked.
    asking: Vec<(CellId, u64)>,
    /// Peers that answered and refused, and since when they have done nothing else.
    refusing: Vec<(CellId, u64)>,
}

impl Strangers {
    /// Whether a stranger may be a peer that was forgotten: for as long as peers are waited for after a recovery.
    fn may_be_forgotten(&self, expiry_now: u64) -> bool {
        self.recovered_at.is_some_and(|at| !is_waited_out(at, expiry_now))
    }

    /// One asks again; `false` where it is new.
    fn renew(&mut self, id: &CellId, now: u64) -> bool {
        let known = self.asking.iter_mut().find(|(known, _)| known == id);
        known.map(|(_, at)| *at = now).is_some()
    }

    fn is_full(&self) -> bool {
        self.asking.len() >= ASKING_MAX
    }

    /// One asks, perhaps for the first time.
    fn add(&mut self, id: CellId, now: u64) {
        if !self.renew(&id, now) && !self.is_full() {
            self.asking.push((id, now));
        }
    }

    /// Forgets who is known by now, or has long not asked, and all once it is too late for them.
    fn settle(&mut self, now: u64, expiry_now: u64, is_known: impl Fn(&CellId) -> bool) {
        let is_time = self.may_be_forgotten(expiry_now);
        self.asking.retain(|(id, at)| is_time && !is_known(id) && now < at.saturating_add(QUIET_S));
    }

    /// A peer was dialled in vain; `is_refused`: it answered, and did not let this cell in.
    pub(super) fn note_failure(&mut self, peer: &CellId, is_refused: bool, now: u64) {
        if !is_refused {
            self.forget(peer);
        } else if self.refusing.iter().all(|(known, _)| known != peer) {
            self.refusing.push((*peer, now));
        }
    }

    /// A peer is connected, or none any more.
    pub(super) fn forget(&mut self, peer: &CellId) {
        self.refusing.retain(|(known, _)| known != peer);
    }

    /// Peers that have refused for so long that a person is told, and for how long. s.
    pub(super) fn refusing(&self, now: u64) -> Vec<(CellId, u64)> {
        let long = self.refusing.iter().map(|(id, since)| (*id, now.saturating_sub(*since)));
        long.filter(|(_, seconds)| *seconds >= SILENCE_S).collect()
    }
}

/// What is said of those who ask.
fn asking_alert(ids: &[CellId]) -> Option<Alert> {
    let told: Vec<String> = ids.iter().take(IDS_TOLD_MAX).map(CellId::short).collect();
    let (told, more) = (told.join(", "), if ids.len() > IDS_TOLD_MAX { ", …" } else { "" });
    let who = match ids.len() {
        0 => return None,
        1 => format!(
            "a cell that this one does not know asks to be let in ({told}): it may be a peer that was"
        ),
        count => {
            let or_more = if count >= ASKING_MAX { " or more" } else { "" };
            format!(
                "{count}{or_more} cells that this one does not know ask to be let in ({told}{more}): they may be peers that were"
            )
        }
    };
    Some(Alert {
        text: format!(
            "{who} invited after the catalog that this cell was brought back from, and may hold newer files of yours"
        ),
        remedy: "if you know whose it is, make an invite with `grove invite` and give it to that person; nobody else is let in".into(),
    })
}

/// What is said of a peer that answers and has let this cell in no more for so long; `is_away`: its copies are not counted on.
fn refusing_words(name: &str, seconds: u64, is_away: bool) -> String {
    let away = if is_away { "; what it held is copied to other peers" } else { "" };
    format!(
        "{name} answers and has not let this cell in for {}: it does not know it any more, for it was brought back from an older \
         catalog, or has removed this cell{away}",
        rough_time(seconds)
    )
}

impl Sync {
    /// Reads when this cell was brought back.
    pub(super) async fn load_recovered(&self) -> Result<(), VaultError> {
        let read = with_vault(&self.vault, |vault| vault.db.read(|t| t.meta_u64("recovered_at")));
        self.strangers.borrow_mut().recovered_at = read.await?;
        Ok(())
    }

    /// A cell was refused that is not in the books.
    pub(super) async fn hear_stranger(&self, id: CellId) {
        let now = self.vault.now();
        {
            let mut strangers = self.strangers.borrow_mut();
            let is_new = !strangers.renew(&id, now);
            let is_told = strangers.may_be_forgotten(self.vault.expiry_now());
            if !is_told || !is_new || strangers.is_full() {
                return;
            }
        }
        let key = record_key(RecordKind::Peer, &id.0);
        match with_vault(&self.vault, move |vault| vault.db.read(|t| t.record(&key))).await {
            // What is left of a peer that was removed before.
            Ok(Some(body)) if body.is_empty() => return,
            Ok(_) => self.strangers.borrow_mut().add(id, now),
            Err(why) => return log::warn!("{why}"),
        }
        self.show_strangers();
    }

    /// Tells who asks to be let in.
    pub(super) fn show_strangers(&self) {
        let (now, expiry_now) = (self.vault.now(), self.vault.expiry_now());
        let ids: Vec<CellId> = {
            let mut strangers = self.strangers.borrow_mut();
            strangers.settle(now, expiry_now, |id| self.gate.is_in_books(id));
            strangers.asking.iter().map(|(id, _)| *id).collect()
        };
        self.show("stranger", asking_alert(&ids));
    }

    /// Tells which peers refuse.
    pub(super) fn show_refusing(&self, refusing: &[(CellId, u64)]) {
        let words = |(id, seconds): &(CellId, u64)| {
            refusing_words(&self.name_of(id), *seconds, self.away.borrow().contains(id))
        };
        let told: Vec<String> = refusing.iter().map(words).collect();
        let alert = (!told.is_empty()).then(|| Alert {
            text: told.join("; "),
            remedy: "ask its owner for an invite, and use it here with `grove join`; if it is gone for good, run `grove peer remove \
                     NAME`"
                .into(),
        });
        self.show("peer-refuses", alert);
    }

    /// An alert that is found out anew after each start: until then, one of before may still hold.
    fn show(&self, code: &'static str, alert: Option<Alert>) {
        match alert {
            Some(alert) => self.vault.raise(code, alert),
            None if self.vault.is_alert_remembered(code) => {}
            None => self.vault.clear(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> CellId {
        CellId([n; 32])
    }

    #[test]
    fn strangers_count_after_a_recovery_only_and_for_as_long_as_peers_are_waited_for() {
        let never = Strangers::default();
        assert!(!never.may_be_forgotten(1000));
        let back = Strangers { recovered_at: Some(1000), ..Strangers::default() };
        assert!(back.may_be_forgotten(1000) && back.may_be_forgotten(1000 + 90 * DAY_S - 1));
        assert!(!back.may_be_forgotten(1000 + 90 * DAY_S));
    }

    #[test]
    fn who_is_let_in_or_has_long_not_asked_is_told_no_more() {
        let mut strangers = Strangers { recovered_at: Some(0), ..Strangers::default() };
        assert!(!strangers.renew(&id(1), 100));
        strangers.add(id(1), 100);
        strangers.add(id(2), 100);
        assert!(strangers.renew(&id(1), 200));
        strangers.settle(100 + QUIET_S - 1, 100, |_| false);
        assert_eq!(strangers.asking.len(), 2);
        strangers.settle(100 + QUIET_S, 100, |_| false);
        assert_eq!(strangers.asking, [(id(1), 200)]);
        strangers.settle(200, 100, |known| *known == id(1));
        assert!(strangers.asking.is_empty());
        strangers.add(id(1), 200);
        strangers.settle(200, 90 * DAY_S, |_| false);
        assert!(strangers.asking.is_empty(), "too late");
    }

    #[test]
    fn however_many_ask_one_alert_stays_short() {
        let mut strangers = Strangers::default();
        assert_eq!(asking_alert(&[]), None);
        for n in 0..100 {
            strangers.add(id(n), 1);
        }
        let ids: Vec<CellId> = strangers.asking.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids.len(), ASKING_MAX);
        let text = asking_alert(&ids[1..2]).unwrap().text;
        assert!(
            text.starts_with("a cell that this one does not know asks to be let in (01010101): it may"),
            "{text}"
        );
        let text = asking_alert(&ids[..2]).unwrap().text;
        assert!(text.starts_with("2 cells that this one does not know ask"), "{text}");
        let text = asking_alert(&ids).unwrap().text;
        assert!(text.starts_with("8 or more cells") && text.contains("02020202, …)"), "{text}");
    }

    #[test]
    fn a_peer_that_refuses_is_told_after_an_hour_of_nothing_else() {
        let mut strangers = Strangers::default();
        strangers.note_failure(&id(1), true, 100);
        strangers.note_failure(&id(1), true, 2000);
        assert!(strangers.refusing(100 + SILENCE_S - 1).is_empty());
        assert_eq!(strangers.refusing(100 + SILENCE_S), [(id(1), SILENCE_S)]);
        // One that is switched off says nothing of whom it knows.
        strangers.note_failure(&id(1), false, 2100);
        strangers.note_failure(&id(1), true, 2200);
        assert!(strangers.refusing(2100 + SILENCE_S).is_empty());
        strangers.forget(&id(1));
        assert!(strangers.refusing(u64::MAX).is_empty());
        let words = refusing_words("ann", 2 * 3600, true);
        assert!(
            words.starts_with(
                "ann answers and has not let this cell in for over 2 hours: it does not know it any more"
            ),
            "{words}"
        );
        assert!(words.ends_with("; what it held is copied to other peers"), "{words}");
    }
}
