//! What the cell has to do with its peers: the running `Sync`, the API about it, and the way back.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Cell;
use super::api::{needs, not_running};
use super::json::{Fields, Obj, list, text};
use super::open::CellError;
use crate::card::Role;
use crate::catalog::RecordKind;
use crate::dashboard::api::{ApiResponse, Method};
use crate::files::restore::{Fetch, Lacking};
use crate::id::{CellId, ChunkName, hex};
use crate::placement::DbError;
use crate::placement::explain::{Fleet, Peer};
use crate::pool;
use crate::routes::Speed;
use crate::sync::{Books, PeerView, ProofView, RoundReport, RouteView, Sync, fetch_catalog, fleet_at_rest};
use crate::vault::{Vault, VaultError, write_whole};

/// An invite lasts a week, where nothing else is said.
const INVITE_S: u64 = 7 * 86_400;

/// Gets chunks for a restore from whichever peers are reached.
pub(super) struct FromPeers(pub(super) Rc<Cell>);

impl Fetch for FromPeers {
    fn fetch(&self, names: Vec<ChunkName>) -> Pin<Box<dyn Future<Output = Lacking> + '_>> {
        Box::pin(self.0.fetch(names))
    }
}

fn role_text(role: Role) -> &'static str {
    match role {
        Role::Peer => "peer",
        Role::Friend => "friend",
    }
}

fn peer_json(peer: &PeerView, fleet: &Fleet, proofs: &[ProofView]) -> String {
    let head = Obj::new()
        .str("name", &peer.name)
        .str("id", &peer.id.to_string())
        .str("own_name", &peer.own_name)
        .str("role", role_text(peer.role))
        .str("friendship", peer.standing.as_str())
        .bool("online", peer.online)
        .str("address", &peer.address)
        .raw("last_seen_s", peer.last_seen_s.map_or("null".into(), |s| s.to_string()))
        .num("held_for_us_bytes", peer.held_for_us_bytes)
        .num("held_for_us_chunks", peer.held_for_us_chunks)
        .num("held_for_them_bytes", peer.held_for_them_bytes)
        .num("quota_bytes", peer.quota_bytes)
        .bool("quota_by_rules", peer.quota_by_rules)
        .bool("favorite", peer.favorite)
        .raw("addresses", list(peer.addresses.iter().map(|address| text(address))))
        .str("error", &peer.error);
    let stands: Option<&Peer> = fleet.peers.iter().find(|known| known.id == peer.id);
    let to = match stands {
        Some(stands) => super::placement::standing_fields(stands, head),
        None => head,
    };
    match proofs.iter().find(|proof| proof.id == peer.id) {
        Some(proof) => to.raw("proofs", proof_counts(&proof.proved)).end(),
        None => to.end(),
    }
}

fn proof_counts(proved: &crate::sync::Proved) -> String {
    Obj::new()
        .num("proven", proved.proven)
        .num("missing", proved.missing)
        .num("damaged", proved.damaged)
        .num("false", proved.wrong)
        .num("silent", proved.silent)
        .end()
}

/// Routes of every peer, best first.
fn routes_json(sync: &Sync, wall: i64) -> String {
    let route = |route: &RouteView| {
        let speed = |number: fn(&Speed) -> u64| {
            route.speed.as_ref().map_or("null".into(), |speed| number(speed).to_string())
        };
        let ago = route.succeeded_at.map(|at| wall.saturating_sub(at).max(0));
        Obj::new()
            .str("address", &route.address)
            .str("kind", route.kind.as_str())
            .bool("in_use", route.in_use)
            .bool("incoming", route.is_incoming)
            .raw("rtt_us", speed(|speed| speed.rtt_us))
            .raw("up_bytes_per_s", speed(|speed| speed.up_bytes_per_s))
            .raw("down_bytes_per_s", speed(|speed| speed.down_bytes_per_s))
            .raw("last_success_s", ago.map_or("null".into(), |s| s.to_string()))
            .str("last_error", &route.error)
            .str("why", &route.why)
            .end()
    };
    let peers = sync.routes().into_iter().map(|peer| {
        Obj::new()
            .str("name", &peer.name)
            .str("id", &peer.id.to_string())
            .raw("routes", list(peer.routes.iter().map(route)))
            .end()
    });
    let relays = sync.relays().into_iter().map(|relay| {
        Obj::new().str("url", &relay.url).bool("connected", relay.is_connected).str("why", &relay.why).end()
    });
    Obj::new()
        .raw("own_addresses", list(sync.own_addresses().iter().map(|address| text(address))))
        .raw("relays", list(relays))
        .raw("peers", list(peers))
        .end()
}

fn report_json(report: &RoundReport) -> String {
    let peers = report.peers.iter().map(|peer| {
        Obj::new()
            .str("name", &peer.name)
            .bool("reached", peer.reached)
            .num("pushed_chunks", peer.pushed_chunks)
            .num("pushed_bytes", peer.pushed_bytes)
            .num("pulled_chunks", peer.pulled_chunks)
            .num("pulled_bytes", peer.pulled_bytes)
            .str("why", &peer.why)
            .end()
    });
    Obj::new().raw("peers", list(peers)).num("waiting_chunks", report.waiting_chunks).end()
}

fn proofs_json(view: &ProofView) -> String {
    let proved = &view.proved;
    Obj::new()
        .str("name", &view.name)
        .bool("reached", view.is_reached)
        .num("proven", proved.proven)
        .num("missing", proved.missing)
        .num("damaged", proved.damaged)
        .num("false", proved.wrong)
        .num("given_up", proved.silent)
        .num("unanswered", proved.unanswered)
        .bool("suspended", view.is_suspended)
        .end()
}

fn ok<E: std::fmt::Display>(outcome: Result<String, E>) -> ApiResponse {
    match outcome {
        Ok(json) => ApiResponse::json_text(200, json),
        Err(why) => ApiResponse::error(409, "refused", &why.to_string(), ""),
    }
}

/// Asks for friendship, accepts it, or ends it.
async fn befriend(sync: &Rc<Sync>, peer: &str, is_friend: bool) -> ApiResponse {
    let id = match sync.find_peer(peer) {
        Ok(id) => id,
        Err(why) => return ApiResponse::error(404, "not_found", &why.to_string(), ""),
    };
    ok(sync.set_friend(&id, is_friend).await.map(|decided| {
        Obj::new()
            .str("id", &id.to_string())
            .str("friendship", decided.standing.as_str())
            .bool("told", decided.is_told)
            .end()
    }))
}

impl Cell {
    /// Asks every peer that is connected for proofs of everything.
    pub(super) fn verify_peers(self: &Rc<Self>) -> ApiResponse {
        let Some(sync) = self.synced() else { return not_running() };
        self.jobs.start(&self.executor, "verify", |job| async move {
            job.say("peers prove what they hold");
            let views = sync.prove_all(&|done, total| job.progress(done, total, "chunks")).await?;
            Ok(Obj::new().raw("peers", list(views.iter().map(proofs_json))).end())
        })
    }

    pub(super) fn synced(&self) -> Option<Rc<Sync>> {
        self.sync.borrow().clone()
    }

    /// Listens for peers and begins rounds.
    pub(super) async fn start_sync(self: &Rc<Self>, listen: SocketAddr) -> std::io::Result<()> {
        let (path, vault) = (self.vault.dir.join("books.db"), Arc::clone(&self.vault));
        let books = pool::unblock(move || open_books(&path, &vault))
            .await
            .map_err(|why| std::io::Error::other(why.to_string()))?;
        let sync =
            Sync::start(Rc::clone(&self.executor), Arc::clone(&self.vault), Arc::new(books), listen).await?;
        *self.sync.borrow_mut() = Some(sync);
        Ok(())
    }

    pub(super) async fn stop_sync(&self) {
        if let Some(sync) = self.synced() {
            sync.stop().await;
        }
    }

    /// Whether this cell, as a relay, serves the cell of this id.
    pub(super) fn serves_as_relay(&self, id: &CellId) -> bool {
        let text = id.to_string();
        let is_peer =
            || self.synced().is_some_and(|sync| sync.find_peer(&text).is_ok_and(|peer| peer == *id));
        self.vault.config.relay_allow.iter().any(|allowed| match allowed.as_str() {
            "all" => true,
            "peers" => *id == self.vault.identity.id() || is_peer(),
            allowed => allowed.eq_ignore_ascii_case(&text),
        })
    }

    pub(super) fn peer_port(&self) -> u16 {
        self.synced().map_or(0, |sync| sync.port())
    }

    pub(super) async fn wait_for_peers(&self, limit: Duration) {
        if let Some(sync) = self.synced() {
            sync.wait_connected(limit).await;
        }
    }

    pub(super) async fn peer_views(&self) -> Result<Vec<PeerView>, VaultError> {
        match self.synced() {
            Some(sync) => sync.peers().await,
            None => {
                let vault = Arc::clone(&self.vault);
                pool::unblock(move || peers_at_rest(&vault)).await
            }
        }
    }

    /// Peers as JSON, and what is held for them in all.
    pub(super) async fn peers_json(&self) -> Result<(String, String), VaultError> {
        let peers = self.peer_views().await?;
        let bytes: u64 = peers.iter().map(|peer| peer.held_for_them_bytes).sum();
        let vault = Arc::clone(&self.vault);
        let chunks = pool::unblock(move || vault.db.read(|t| t.claim_count())).await?;
        let held = Obj::new().num("count", chunks).num("bytes", bytes).end();
        let fleet = self.fleet().await?;
        let proofs = self.synced().map_or(Vec::new(), |sync| sync.proofs());
        Ok((list(peers.iter().map(|peer| peer_json(peer, &fleet, &proofs))), held))
    }

    /// All that decides where copies go, at this moment.
    pub(super) async fn fleet(&self) -> Result<Fleet, VaultError> {
        match self.synced() {
            Some(sync) => sync.fleet().await,
            None => {
                let vault = Arc::clone(&self.vault);
                pool::unblock(move || fleet_at_rest(&vault)).await
            }
        }
    }

    /// Names of peers and where they may be reached, for a cell that has nothing but its phrase.
    pub(super) async fn peer_addresses(&self) -> Result<Vec<(String, Vec<String>)>, VaultError> {
        Ok(self.peer_views().await?.into_iter().map(|peer| (peer.name, peer.places)).collect())
    }

    /// Names of peers who are not connected now.
    pub(super) async fn silent_peers(&self) -> Vec<String> {
        let peers = self.peer_views().await.unwrap_or_default();
        peers.into_iter().filter(|peer| !peer.online).map(|peer| peer.name).collect()
    }

    /// How much of each day each peer was here, as far as it could be told.
    pub(super) fn peer_health_json(&self) -> String {
        let offset = self.vault.clock.wall() - self.vault.now() as i64;
        let days = self.synced().map_or(Vec::new(), |sync| sync.health_days());
        let peers = days.into_iter().map(|(id, days)| {
            let days = days.into_iter().filter(|day| day.watched > 0).map(|day| {
                let unix_day = (offset + (day.day as i64 - 1) * 86_400).div_euclid(86_400);
                format!("[{unix_day},{}]", day.here * 100 / day.watched)
            });
            Obj::new().str("id", &id.to_string()).raw("days", list(days)).end()
        });
        Obj::new().raw("peers", list(peers)).end()
    }

    pub(super) async fn answer_about_peers(
        self: &Rc<Self>,
        method: Method,
        rest: &[&str],
        fields: &Fields,
    ) -> ApiResponse {
        if (method, rest) == (Method::Get, &["peers"]) {
            let peers = self.peers_json().await.map(|(peers, _)| Obj::new().raw("peers", peers).end());
            return ok(peers);
        }
        let is_known = matches!(rest, ["peers" | "invites" | "routes", ..] | ["join"] | ["sync"]);
        let Some(sync) = self.synced().filter(|_| is_known) else {
            return if is_known {
                not_running()
            } else {
                ApiResponse::error(404, "not_found", "there is nothing at this path", "")
            };
        };
        match (method, rest) {
            (Method::Post, ["peers", what @ ("friend" | "unfriend")]) => {
                let Some(peer) = fields.str("peer") else { return needs("peer") };
                befriend(&sync, peer, *what == "friend").await
            }
            (Method::Post, ["peers", peer, what @ ("friend" | "unfriend")]) => {
                befriend(&sync, peer, *what == "friend").await
            }
            (Method::Post, ["peers", "name"]) => {
                let Some(peer) = fields.str("peer") else { return needs("peer") };
                let Some(label) = fields.str("name") else { return needs("name") };
                let id = match sync.find_peer(peer) {
                    Ok(id) => id,
                    Err(why) => return ApiResponse::error(404, "not_found", &why.to_string(), ""),
                };
                ok(sync.set_label(&id, label).await.map(|()| Obj::new().str("id", &id.to_string()).end()))
            }
            (Method::Post, ["peers", what @ ("remove" | "quota" | "favorite")]) => {
                let Some(peer) = fields.str("peer") else { return needs("peer") };
                let id = match sync.find_peer(peer) {
                    Ok(id) => id,
                    Err(why) => return ApiResponse::error(404, "not_found", &why.to_string(), ""),
                };
                let done = match *what {
                    "remove" => sync.remove_peer(&id).await.map(|gone| (gone.name, gone.id)),
                    "quota" => sync.set_quota(&id, fields.num("bytes")).await.map(|()| (peer.to_owned(), id)),
                    _ => sync.set_favorite(&id, fields.bool("on")).await.map(|()| (peer.to_owned(), id)),
                };
                self.publish_soon();
                ok(done.map(|(name, id)| Obj::new().str("name", &name).str("id", &id.to_string()).end()))
            }
            (Method::Get, ["peers", "proofs"]) => {
                let views = sync.proofs();
                ApiResponse::json_text(
                    200,
                    Obj::new().raw("peers", list(views.iter().map(proofs_json))).end(),
                )
            }
            (Method::Get, ["routes"]) => {
                ApiResponse::json_text(200, routes_json(&sync, self.vault.clock.wall()))
            }
            (Method::Post, ["routes", "bench"]) => {
                let vault = Arc::clone(&self.vault);
                self.jobs.start(&self.executor, "bench", |job| async move {
                    sync.bench(|name| job.say(format!("measuring the routes to {name}"))).await;
                    Ok(routes_json(&sync, vault.clock.wall()))
                })
            }
            (Method::Get, ["invites"]) => {
                let invites = sync.invites().into_iter().map(|row| {
                    Obj::new()
                        .str("id", &hex(&row.id))
                        .str("role", role_text(row.role))
                        .num("expires_s", row.expires)
                        .str("state", row.state.as_str())
                        .str("used_by", &row.used_by.map_or(String::new(), |id| id.to_string()))
                        .end()
                });
                ApiResponse::json_text(200, Obj::new().raw("invites", list(invites)).end())
            }
            (Method::Post, ["invites"]) => {
                let role = match fields.str("role").unwrap_or("peer") {
                    "peer" => Role::Peer,
                    "friend" => Role::Friend,
                    _ => return needs("role"),
                };
                let made = sync.invite(role, fields.num("expires_s").unwrap_or(INVITE_S)).await;
                ok(made.map(|(id, invite)| {
                    Obj::new()
                        .str("id", &hex(&id))
                        .str("token", &invite.to_string())
                        .raw("addresses", list(invite.addresses.iter().map(|address| text(address))))
                        .end()
                }))
            }
            (Method::Post, ["invites", "revoke"]) => {
                let Some(id) = fields.str("id") else { return needs("id") };
                ok(sync.revoke_invite(id).await.map(|()| "{\"ok\":true}".to_owned()))
            }
            (Method::Post, ["join"]) => {
                let Some(token) = fields.str("token") else { return needs("token") };
                let joined = sync.join(token).await;
                self.publish_soon();
                ok(joined
                    .map(|peer| Obj::new().str("name", &peer.name).str("id", &peer.id.to_string()).end()))
            }
            (Method::Post, ["sync"]) => {
                let wait = fields.bool("wait");
                let cell = Rc::clone(self);
                self.jobs.start(&self.executor, "sync", |job| async move {
                    job.say("bringing peers level");
                    cell.keeper.publish().await?;
                    if !wait {
                        sync.poke();
                        return Ok(report_json(&RoundReport::default()));
                    }
                    Ok(report_json(&sync.round().await))
                })
            }
            _ => ApiResponse::error(404, "not_found", "there is nothing at this path", ""),
        }
    }

    /// Records of peers have changed: they belong into the catalog.
    fn publish_soon(self: &Rc<Self>) {
        let cell = Rc::clone(self);
        pool::spawn(&self.executor, async move {
            match cell.keeper.publish().await {
                Ok(_) => cell.after_change(),
                Err(why) => log::warn!("the catalog waits: {why}"),
            }
        })
        .detach();
    }
}

/// The books. Those that are lost are made again from the catalog: otherwise the cell would know none of its peers, and take an
/// older statement of theirs for the newest.
fn open_books(path: &Path, vault: &Vault) -> Result<Books, VaultError> {
    let books = Books::open(path)?;
    if books.peers()?.is_empty() {
        let peers = books.restore(vault)?;
        if peers > 0 {
            log::warn!(
                "books.db is new, and the catalog is not: {peers} peers are taken from the catalog, and what was signed with them"
            );
        }
    }
    Ok(books)
}

/// Peers as the books have them, while nobody dials or listens.
fn peers_at_rest(vault: &Vault) -> Result<Vec<PeerView>, VaultError> {
    let path = vault.dir.join("books.db");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let wall = vault.clock.wall();
    let mut views = Vec::new();
    for peer in Books::open(&path)?.peers()?.into_iter().filter(|peer| peer.removed_at.is_none()) {
        let (for_us, for_them) = vault.db.change(|t| -> Result<_, DbError> {
            let cell = t.cell(&peer.id)?;
            Ok((t.copy_totals(cell)?, t.held_totals(cell)?))
        })?;
        views.push(PeerView {
            name: peer.name.clone(),
            id: peer.id,
            own_name: peer.own_name(),
            role: peer.role(),
            standing: peer.friendship.standing(),
            online: false,
            address: String::new(),
            last_seen_s: peer.last_seen.map(|at| wall.saturating_sub(at).max(0) as u64),
            held_for_us_bytes: for_us.1,
            held_for_us_chunks: for_us.0,
            held_for_them_bytes: for_them.bytes,
            quota_bytes: peer.quota_bytes.unwrap_or(vault.config.quota_bytes),
            quota_by_rules: peer.quota_bytes.is_none() && vault.config.quota_bytes == 0,
            favorite: peer.is_favorite,
            addresses: peer.addresses(),
            places: peer.places(),
            error: "this cell is not running".into(),
        });
    }
    Ok(views)
}

/// Gets the catalog and the peers from any one peer.
pub(super) async fn recover_catalog(vault: &Arc<Vault>, addresses: &[String]) -> Result<(), CellError> {
    let path = vault.dir.join("books.db");
    let books = pool::unblock(move || Books::open(&path)).await?;
    let report = fetch_catalog(vault, &Arc::new(books), addresses).await;
    report.map(drop).map_err(|why| CellError::Other(why.to_string()))
}

/// Writes the settings of the catalog into config.json.
pub(super) fn adopt_settings(vault: &Arc<Vault>) -> Result<(), CellError> {
    let records = vault.db.read(|t| t.records_with_prefix(&[RecordKind::Setting as u8], 1000))?;
    let mut config = vault.config.clone();
    for (seq, key) in records {
        let Some(body) = vault.db.read(|t| t.record_at(seq))? else { continue };
        if let (Ok(key), Ok(value)) = (std::str::from_utf8(&key[1..]), std::str::from_utf8(&body)) {
            config.adopt(key, value);
        }
    }
    let path = vault.dir.join("config.json");
    write_whole(&path, config.to_text().as_bytes())
        .map_err(|why| CellError::Other(format!("cannot write {}: {why}", path.display())))
}

/// Puts settings that differ from what the catalog says into it.
pub(super) fn record_settings(vault: &Vault) -> Result<(), VaultError> {
    vault.db.change(|t| {
        for (key, value) in vault.config.records() {
            let key = crate::catalog::record_key(RecordKind::Setting, key.as_bytes());
            let known = t.record(&key)?;
            if known.as_deref() != Some(value.as_bytes()) {
                t.put_record(&key, value.as_bytes())?;
            }
        }
        Ok(())
    })
}
