//! Bringing cells level: invites and peers, rounds in which each side gives the other what it should hold, answers to
//! peers, and the way back from a recovery phrase. This file decides; the others touch sockets, disks and databases.
//!
//! Knows nothing of files and folders: chunks, segments and heads only.
//!
//! Promise: a chunk counts as copied only after its holder said that it is durable; nobody is given, shown or made to
//! delete what is not his; bytes from peers never panic and never take more than bounded memory.

mod ai;
mod attach;
mod audit;
#[cfg(test)]
mod audit_tests;
mod bearers;
mod books;
mod bounty;
#[cfg(test)]
mod bounty_tests;
mod chat;
#[cfg(test)]
mod chat_tests;
mod connect;
mod digest;
mod drill;
mod driver;
mod due;
mod fetch;
mod friends;
mod gate;
mod heal;
pub mod health;
mod keep;
mod kept;
mod ledger;
mod link;
mod newer;
mod offer;
mod outlook;
mod part;
mod permits;
mod places;
mod prove;
mod received;
mod recover;
mod relays;
mod round;
mod serve;
mod share;
mod shares;
mod strangers;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::catalog::Head;
use crate::config::HEADS_S;
use crate::id::BodyHash;
use crate::order;

pub use ai::{Answered as AiAnswered, Asked as AiAsked, Models};
pub use attach::Attached;
pub use audit::ProofView;
pub use books::{Books, InviteRow, InviteState, PeerRow};
pub use bounty::{BountyView, Dispute, QuotaThere};
pub use chat::{Lookup, Said, TalkView, chat_named, talks_at_rest};
pub use connect::{PeerRoutes, RouteView, Wired};
pub use drill::Got;
pub use driver::{Fetched, Introduction, JoinError, PeerRound, PeerView, RoundReport, Sync};
pub use due::Proved;
pub use fetch::{FeedEntry, FetchedFile};
pub use friends::Decided;
pub use keep::KeptShare;
pub(crate) use ledger::{HeardAt, PeerBook};
pub use newer::Release;
pub use outlook::fleet_at_rest;
pub use received::ReceivedRow;
pub(crate) use recover::{Others, bring_back};
pub use recover::{RecoverError, RecoverReport, fetch_catalog};
pub use relays::RelayView;
pub use round::Moved;
pub use serve::{OWNERS_LOG, adopt_heads};
pub use share::{Shared, Told, Unshared};
pub use shares::ShareRow;

/// The first wait after a failed dial.
const DIAL_PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest.
const DIAL_PAUSE_MAX: Duration = Duration::from_secs(300);
/// Heads kept for one owner.
const HEADS_MAX: usize = 256;
/// Their bytes together: what one reply carries.
const HEADS_BYTES_MAX: usize = 8 << 20;
const DAY_S: u64 = 86_400;

/// How long to wait after `failures` failed dials in a row; `dice` from 0 to 255 spreads cells out.
fn dial_pause(failures: u32, dice: u8) -> Duration {
    let pause = DIAL_PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(DIAL_PAUSE_MAX);
    pause.mul_f64(0.75 + f64::from(dice) / 512.0).max(DIAL_PAUSE_MIN)
}

/// When the next round is due: every `every_s` seconds, by up to a fifth sooner or later.
fn round_pause(every_s: u64, dice: u8) -> Duration {
    Duration::from_secs(every_s.max(1)).mul_f64(0.8 + 0.4 * f64::from(dice) / 255.0)
}

/// What is to be known of a head in order to keep or drop it.
#[derive(Debug, Clone)]
struct HeadFacts {
    hash: BodyHash,
    life: u32,
    seq: u64,
    run: [u8; 16],
    parents: Vec<BodyHash>,
    at: u64,
    bytes: usize,
}

impl HeadFacts {
    fn new(hash: BodyHash, head: &Head, at: u64, bytes: usize) -> Self {
        Self { hash, life: head.life, seq: head.seq, run: head.run, parents: head.parents.clone(), at, bytes }
    }
}

/// Heads that no other one contains: those that are nobody's parent, and of one run in one life the last.
fn tips(heads: &[HeadFacts]) -> HashSet<BodyHash> {
    let parents: HashSet<&BodyHash> = heads.iter().flat_map(|head| &head.parents).collect();
    let mut newest: HashMap<(u32, [u8; 16]), u64> = HashMap::new();
    for head in heads {
        let seq = newest.entry((head.life, head.run)).or_default();
        *seq = head.seq.max(*seq);
    }
    let is_tip = |head: &&HeadFacts| {
        !parents.contains(&head.hash) && newest.get(&(head.life, head.run)) == Some(&head.seq)
    };
    heads.iter().filter(is_tip).map(|head| head.hash).collect()
}

/// Which heads to keep: the tips, and one a day for 30 days, within 256 heads and 8 MiB; the oldest tips go first.
fn heads_to_keep(heads: &[HeadFacts], now: u64) -> HashSet<BodyHash> {
    let tips = tips(heads);
    let mut sorted: Vec<&HeadFacts> = heads.iter().collect();
    order::sort_by_key(&mut sorted, |head| {
        std::cmp::Reverse((tips.contains(&head.hash), head.life, head.seq))
    });
    let mut days = HashSet::new();
    let mut kept = HashSet::new();
    let mut bytes = 0;
    for head in sorted {
        let is_tip = tips.contains(&head.hash);
        let is_young = head.at + HEADS_S >= now;
        let is_first_of_day = days.insert((head.life, head.at / DAY_S));
        let fits = kept.len() < HEADS_MAX && bytes + head.bytes <= HEADS_BYTES_MAX;
        if fits && (is_tip || (is_young && is_first_of_day)) {
            bytes += head.bytes;
            kept.insert(head.hash);
        }
    }
    kept
}

/// How much of what was asked of a peer it can still take: the quota if there is one, and the disk.
fn room(usage: &crate::wire::message::Usage) -> u64 {
    match usage.quota {
        0 => usage.free,
        quota => quota.saturating_sub(usage.used).min(usage.free),
    }
}
