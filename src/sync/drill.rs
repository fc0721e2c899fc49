//! Chunks from one peer into memory, for restore drills: nothing is stored, and what a peer cannot give counts like a proof
//! that failed.

use std::rc::Rc;

use super::audit;
use super::driver::Sync;
use super::link::{For, Link};
use super::round::{RoundError, with_vault};
use crate::id::ChunkName;
use crate::keys::sha256;
use crate::placement::{CellNumber, ChunkId};
use crate::pool::unblock;
use crate::wire::message::{self, GetStatus};

/// What came of asking a peer for a chunk.
#[derive(Debug)]
pub enum Got {
    /// Its sealed bytes; they hash to its name.
    Bytes(Vec<u8>),
    /// The peer does not have it.
    Missing,
    /// The peer found it damaged.
    Damaged,
    /// Other bytes.
    Wrong,
    /// It is not reached, or did not answer.
    Nothing,
}

impl Sync {
    /// Peers that are connected now.
    pub fn reached(&self) -> Vec<CellNumber> {
        self.links()
            .iter()
            .filter(|link| link.is_alive() && !link.is_stalled())
            .map(|link| link.cell)
            .collect()
    }

    /// Gets a chunk of ours from a peer into memory. If it is not as noted with that peer, the copy is dropped, and made
    /// anew, as after a proof that failed.
    pub async fn fetch_aside(
        self: &Rc<Self>,
        cell: CellNumber,
        chunk: ChunkId,
        name: ChunkName,
        len: u32,
    ) -> Got {
        let Some(link) = self.links().into_iter().find(|link| link.cell == cell && link.is_alive()) else {
            return Got::Nothing;
        };
        let got = match self.get_one(&link, name).await {
            Ok(got) => got,
            Err(why) => {
                log::debug!("drill with {}: {why}", link.peer.short());
                return Got::Nothing;
            }
        };
        let lost = match got {
            Got::Missing => Some(audit::Loss::Missing),
            Got::Damaged => Some(audit::Loss::Damaged),
            Got::Wrong => Some(audit::Loss::Wrong),
            Got::Bytes(_) | Got::Nothing => None,
        };
        if let Some(loss) = lost {
            // It may have been let go meanwhile, as too many.
            let counts = with_vault(&self.vault, move |vault| vault.db.read(|t| t.copies_of(chunk))).await;
            if !counts.is_ok_and(|cells| cells.contains(&cell)) {
                return Got::Nothing;
            }
            if let Err(why) = audit::note_loss(self, &link, (chunk, name, len), loss).await {
                log::warn!("{why}");
            }
            link.nudge();
        }
        got
    }

    async fn get_one(&self, link: &Rc<Link>, name: ChunkName) -> Result<Got, RoundError> {
        let _place = self.permits.pulling.acquire().await;
        let line = link.line(For::Chunks).await?;
        let mut getting = message::get(&line.session, vec![name]).await?;
        let mut sealed = Vec::new();
        let Some((_, status)) = getting.next(&mut sealed).await? else { return Ok(Got::Nothing) };
        Ok(match status {
            GetStatus::Found => {
                unblock(move || if sha256(&sealed) == name.0 { Got::Bytes(sealed) } else { Got::Wrong }).await
            }
            GetStatus::Missing => Got::Missing,
            GetStatus::Damaged => Got::Damaged,
            GetStatus::Other(_) => Got::Nothing,
        })
    }
}
