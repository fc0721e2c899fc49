//! How each peer stands as a holder of copies, for those who explain, count and warn.

use std::rc::Rc;
use std::sync::Arc;

use super::books::{Books, PeerRow};
use super::driver::Sync;
use super::health::{Health, HealthBook};
use super::round;
use crate::id::CellId;
use crate::placement::explain::{Fleet, Peer, Standing};
use crate::placement::planner::{Pace, Site};
use crate::placement::{CellNumber, DbError};
use crate::pool::unblock;
use crate::routes::Kind;
use crate::vault::{Vault, VaultError};

/// The time for which a peer is waited, and the part of the last 30 days in which it was here.
fn habits(health: Option<&Health>, set_s: u64, now: u64) -> (u64, Option<u64>) {
    let by_habit = health.map_or(super::health::GRACE_UNKNOWN_S, |health| health.grace(now));
    (if set_s == 0 { by_habit } else { set_s }, health.and_then(Health::uptime))
}

fn seen_s(row: &PeerRow, wall: i64, is_here: bool) -> Option<u64> {
    if is_here { Some(0) } else { row.last_seen.map(|at| wall.saturating_sub(at).max(0) as u64) }
}

impl Sync {
    /// Where a peer is, as far as is known, also of one that was not here since the start.
    fn place_of(&self, id: &CellId) -> Option<Site> {
        if let Some(link) = self.links.borrow().get(id) {
            return self.site_of(link);
        }
        let was_near = |route: &crate::routes::Route| route.kind == Kind::Lan && route.succeeded_at.is_some();
        self.routes.borrow().ranked(id).iter().any(was_near).then_some(Site::HERE)
    }

    /// A peer as a holder of copies.
    fn stands(&self, row: &PeerRow, cell: CellNumber) -> Peer {
        let now = self.vault.now();
        let links = self.links.borrow();
        let link = links.get(&row.id);
        let is_here = link.is_some_and(|link| link.is_alive());
        let health = self.health.borrow();
        let health = health.of(&row.id);
        let is_away = self.away.borrow().contains(&row.id);
        let settles_until = health
            .and_then(|health| health.back_at)
            .map_or(0, |at| at.saturating_add(self.vault.config.heal_settle_s));
        let (grace_s, uptime) = habits(health, self.vault.config.heal_grace_s, now);
        Peer {
            cell,
            id: row.id,
            name: row.name.clone(),
            is_favorite: row.is_favorite,
            standing: match () {
                () if is_here && (is_away || now < settles_until) => Standing::Settling,
                () if is_here => Standing::Here,
                () if is_away => Standing::Away,
                () => Standing::Silent,
            },
            seen_s: seen_s(row, self.vault.clock.wall(), is_here),
            silent_s: if is_here { 0 } else { health.map_or(0, |health| health.silent) },
            grace_s,
            settle_left_s: if is_here { settles_until.saturating_sub(now) } else { 0 },
            uptime,
            watched_s: health.map_or(0, Health::watched),
            is_full: link.is_some_and(|link| link.has_no_room()),
            is_suspended: self.is_suspended(&row.id),
            site: None,
            pace: link.map_or(Pace(u8::MAX), |link| link.pace()),
        }
    }

    /// All that decides where copies go, at this moment.
    pub async fn fleet(self: &Rc<Self>) -> Result<Fleet, VaultError> {
        let rows = self.gate.peers();
        let ids: Vec<CellId> = rows.iter().map(|row| row.id).collect();
        let vault = Arc::clone(&self.vault);
        let cells = unblock(move || numbers(&vault, &ids)).await?;
        let may_release = round::may_release(self).await?;
        let peers = rows.iter().zip(cells).map(|(row, cell)| {
            let site = self.place_of(&row.id);
            Peer { site, ..self.stands(row, cell) }
        });
        Ok(Fleet {
            peers: peers.collect(),
            candidates: self.candidates(),
            sites: self.sites(),
            in_flight: self.in_flight.borrow().clone(),
            copies: self.vault.config.copies,
            today: self.vault.today(),
            is_running: true,
            may_release,
        })
    }
}

fn numbers(vault: &Vault, ids: &[CellId]) -> Result<Vec<CellNumber>, DbError> {
    vault.db.change(|t| ids.iter().map(|id| t.cell(id)).collect())
}

/// The same of a cell that does not run: nobody is connected, and nothing is planned.
pub fn fleet_at_rest(vault: &Vault) -> Result<Fleet, VaultError> {
    let path = vault.dir.join("books.db");
    let rows = if path.exists() { Books::open(&path)?.peers()? } else { Vec::new() };
    let rows: Vec<PeerRow> = rows.into_iter().filter(|row| row.removed_at.is_none()).collect();
    let ids: Vec<CellId> = rows.iter().map(|row| row.id).collect();
    let text = vault.files.read(super::heal::FILE).ok().flatten().unwrap_or_default();
    let book = HealthBook::from_json(&String::from_utf8_lossy(&text));
    let now = vault.now();
    let mut peers = Vec::new();
    for (row, cell) in rows.into_iter().zip(numbers(vault, &ids)?) {
        let health = book.of(&row.id);
        let (grace_s, uptime) = habits(health, vault.config.heal_grace_s, now);
        peers.push(Peer {
            cell,
            id: row.id,
            is_favorite: row.is_favorite,
            standing: match super::heal::is_marked_away(vault, &row.id)? {
                true => Standing::Away,
                false => Standing::Silent,
            },
            seen_s: seen_s(&row, vault.clock.wall(), false),
            silent_s: health.map_or(0, |health| health.silent),
            grace_s,
            settle_left_s: 0,
            uptime,
            watched_s: health.map_or(0, Health::watched),
            is_full: false,
            is_suspended: false,
            site: None,
            pace: Pace(u8::MAX),
            name: row.name,
        });
    }
    let (copies, today) = (vault.config.copies, vault.today());
    Ok(Fleet { peers, copies, today, ..Fleet::default() })
}
