//! Answering audits: proofs of what is kept for others, with bounds on what they may cost.
//!
//! Promise: no proof is given over a chunk of this cell's own, or of bytes that do not hash to their name; nobody can tell a
//! chunk that is held for others from one that is not here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::driver::Sync;
use super::serve::{Answered, GROUP_BYTES, GROUP_CHUNKS, Keeper};
use crate::buffers;
use crate::id::{CellId, ChunkName};
use crate::placement::{CellNumber, ChunkId, DbError, HoldState, Own, Tables};
use crate::proof::{self, Challenge, Nonce, Parties};
use crate::vault::VaultError;
use crate::wire::message::{self, AuditStatus, Reply};
use crate::wire::within;
use crate::world::is_forger;

/// Chunks that are read for one request, in bytes; one is read always.
pub(super) const PROVED_BYTES_MAX: u64 = 64 << 20;
/// A caller whom nothing was proved to for a while may have so much at once.
const ALLOWED_BYTES: u64 = 512 << 20;
/// And so much in the long run: a few hundredths of what a core of a small board hashes.
const ALLOWED_BYTES_PER_S: u64 = 4 << 20;
/// What looking for a chunk and reading a small one costs, in bytes of a large one.
const NAME_COST: u64 = 16 << 10;
/// A caller waits this long for those before it.
const TURN_TIME_MAX: Duration = Duration::from_secs(20);

/// What may still be proved to one caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Allowance {
    bytes: u64,
    at: Duration,
}

impl Allowance {
    fn new(now: Duration) -> Self {
        Self { bytes: ALLOWED_BYTES, at: now }
    }

    /// Bytes allowed at `now`, on a clock that never goes back.
    fn left(&mut self, now: Duration) -> u64 {
        let ms = now.saturating_sub(self.at).as_millis().min(u128::from(u32::MAX)) as u64;
        self.bytes = (self.bytes + ms * ALLOWED_BYTES_PER_S / 1000).min(ALLOWED_BYTES);
        self.at = now;
        self.bytes
    }

    fn spend(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// What was proved to whom lately.
#[derive(Debug, Default)]
pub(super) struct Allowances(RefCell<BTreeMap<CellId, Allowance>>);

impl Allowances {
    fn left(&self, caller: &CellId, now: Duration) -> u64 {
        self.0.borrow_mut().entry(*caller).or_insert_with(|| Allowance::new(now)).left(now)
    }

    fn spend(&self, caller: &CellId, bytes: u64) {
        if let Some(allowance) = self.0.borrow_mut().get_mut(caller) {
            allowance.spend(bytes);
        }
    }
}

#[cfg(test)]
impl Allowances {
    pub(super) fn left_for_tests(&self, caller: &CellId, now: Duration) -> u64 {
        self.left(caller, now)
    }

    pub(super) fn exhaust_for_tests(&self, caller: &CellId, now: Duration) {
        self.spend(caller, self.left(caller, now));
    }
}

type Answer = (AuditStatus, Vec<u8>);

/// Answers to the first names of an audit.
struct Proved {
    answers: Vec<Answer>,
    /// What they took of the allowance.
    cost: u64,
    /// Nothing more may be proved for now.
    is_over: bool,
}

/// How long a chunk is that is held for an owner as part of a file: neither in its trash nor this cell's own. What is not
/// here takes the same steps as what is held for others.
fn provable(t: &Tables<'_>, owner: CellNumber, name: &ChunkName) -> Result<Option<u32>, DbError> {
    let row = t.chunk(name)?.filter(|row| row.place.is_some());
    let id = row.as_ref().map_or(ChunkId(0), |row| row.id);
    let (hold, own) = (t.hold(id, owner)?, t.own(id)?);
    let is_held = matches!(hold, Some((_, HoldState::Held)));
    Ok(row.filter(|_| is_held && own == Own::No).map(|row| row.len))
}

impl Keeper {
    /// Proves the first of `asks` that make one group and cost no more than `allowed`; one is proved always if
    /// `is_first`.
    fn prove(
        &self,
        caller: &CellId,
        nonce: &Nonce,
        asks: &[(ChunkName, Challenge)],
        allowed: u64,
        is_first: bool,
    ) -> Result<Proved, VaultError> {
        let vault = self.vault();
        let parties = Parties { verifier: *caller, prover: vault.id(), owner: *caller };
        let mut proved = Proved { answers: Vec::new(), cost: 0, is_over: false };
        let owner = vault.db.change(|t| t.cell(caller))?;
        let mut read = 0;
        for (name, challenge) in asks.iter().take(GROUP_CHUNKS) {
            let len = vault.db.read(|t| provable(t, owner, name))?;
            let cost = NAME_COST.max(len.unwrap_or(0).into());
            let is_only = is_first && proved.answers.is_empty();
            if !is_only && proved.cost + cost > allowed {
                proved.is_over = true;
                break;
            }
            if read > 0 && read + len.unwrap_or(0) as usize > GROUP_BYTES {
                break;
            }
            proved.cost += cost;
            let Some(len) = len else {
                proved.answers.push((AuditStatus::Missing, Vec::new()));
                continue;
            };
            read += len as usize;
            let answer = match vault.local_chunk(name) {
                Ok(Some(sealed)) => {
                    let proof = match challenge {
                        Challenge::Whole => Some(proof::whole(nonce, &parties, name, &sealed).to_vec()),
                        Challenge::Leaf(index) => proof::leaf(&sealed, *index),
                    };
                    buffers::give(sealed);
                    proof.map_or((AuditStatus::Missing, Vec::new()), |proof| (AuditStatus::Proof, proof))
                }
                Ok(None) if is_forger(&vault.id()) => (AuditStatus::Proof, vec![0; 32]),
                Ok(None) => (AuditStatus::Damaged, Vec::new()),
                // The disk may answer again in a while.
                Err(why) => {
                    log::warn!("a chunk cannot be proved now: {why}");
                    (AuditStatus::Busy, Vec::new())
                }
            };
            proved.answers.push(answer);
        }
        Ok(proved)
    }
}

/// Answers an audit, one name after the other.
pub(super) async fn answer_audit(
    sync: &Rc<Sync>,
    caller: CellId,
    nonce: Nonce,
    asks: Vec<(ChunkName, Challenge)>,
    stream: &mut crate::wire::session::Stream,
) -> Answered {
    message::write_reply(stream, &Reply::Audit { count: asks.len() as u32 }).await?;
    // One proves at a time: a place of its own, for those that give chunks out may be taken for hours.
    let permit = within(TURN_TIME_MAX, sync.permits.proving.acquire()).await;
    let mut left = if permit.is_some() { PROVED_BYTES_MAX } else { 0 };
    let asks = Arc::new(asks);
    let mut at = 0;
    while at < asks.len() && left > 0 {
        let allowed = left.min(sync.allowances.left(&caller, sync.vault.clock.steady()));
        if allowed == 0 {
            break;
        }
        let (keeper, all) = (Arc::clone(&sync.keeper), Arc::clone(&asks));
        let work = move || keeper.prove(&caller, &nonce, &all[at..], allowed, at == 0);
        let proved = match crate::pool::unblock(work).await {
            Ok(proved) => proved,
            // The head of the reply is out: the rest is said to be for later.
            Err(why) => {
                log::warn!("an audit cannot be answered: {why}");
                break;
            }
        };
        sync.allowances.spend(&caller, proved.cost);
        left = if proved.is_over { 0 } else { left.saturating_sub(proved.cost) };
        at += proved.answers.len();
        for (status, proof) in proved.answers {
            message::write_proof(stream, status, &proof).await?;
        }
    }
    drop(permit);
    for _ in at..asks.len() {
        message::write_proof(stream, AuditStatus::Busy, &[]).await?;
    }
    Ok(message::finish(stream).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_proved_to_one_caller_comes_back_with_time_up_to_a_limit() {
        let s = Duration::from_secs;
        let mut allowance = Allowance::new(s(100));
        assert_eq!(allowance.left(s(100)), ALLOWED_BYTES);
        allowance.spend(ALLOWED_BYTES);
        assert_eq!(allowance.left(s(100)), 0);
        allowance.spend(1);
        assert_eq!(allowance.left(s(101)), ALLOWED_BYTES_PER_S);
        assert_eq!(allowance.left(s(0)), ALLOWED_BYTES_PER_S, "a clock that went back gives nothing");
        assert_eq!(allowance.left(s(1_000_000)), ALLOWED_BYTES);
        assert_eq!(allowance.left(Duration::MAX), ALLOWED_BYTES);
        // An audit of every chunk in 20 days goes far below it, for 5 TiB with one peer.
        let bytes_in_20_days = 20 * 86_400 * ALLOWED_BYTES_PER_S;
        assert!(bytes_in_20_days > 5 << 40, "{bytes_in_20_days}");
    }
}
