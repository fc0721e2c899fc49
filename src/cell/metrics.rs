//! `/metrics` in Prometheus' text form, version 0.0.4. Needs the cell's secret like everything but `/healthz`.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{Cell, VERSION};
use crate::cycle::Cycle;
use crate::dashboard::api::{ApiResponse, Body};
use crate::placement::DbError;
use crate::placement::explain::Standing;
use crate::pool;
use crate::vault::VaultError;

/// Sums over whole tables are made anew after this.
const SUMS_FRESH: Duration = Duration::from_secs(60);

/// Metrics that are being written.
#[derive(Debug, Default)]
pub(super) struct Text {
    text: String,
    named: BTreeSet<&'static str>,
}

/// A label's value: backslash, quote and line feed are escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Text {
    /// A value of a family; the family's name, kind and help are written before its first.
    fn value(
        &mut self,
        kind: &str,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        value: impl Display,
    ) {
        if self.named.insert(name) {
            let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }

    pub(super) fn gauge(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        value: impl Display,
    ) {
        self.value("gauge", name, help, labels, value);
    }

    pub(super) fn counter(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        value: impl Display,
    ) {
        self.value("counter", name, help, labels, value);
    }
}

/// The text of sums, and when it was made.
pub(super) type Sums = std::cell::RefCell<Option<(Duration, String)>>;

impl Cell {
    /// Answers `/metrics`.
    pub(super) async fn metrics(self: &Rc<Self>) -> ApiResponse {
        match self.metrics_text().await {
            Ok(text) => ApiResponse {
                status: 200,
                content_type: "text/plain; version=0.0.4; charset=utf-8".into(),
                headers: Vec::new(),
                body: Body::Bytes(text.into_bytes()),
            },
            Err(why) => ApiResponse::error(500, "failed", &why.to_string(), "run `grove doctor`"),
        }
    }

    async fn metrics_text(self: &Rc<Self>) -> Result<String, VaultError> {
        let mut text = Text::default();
        let vault = Arc::clone(&self.vault);
        let space = pool::unblock(move || vault.space()).await;
        let steady = self.vault.clock.steady().as_secs();
        text.gauge("grove_up", "The cell runs.", &[], 1);
        let info = [("version", VERSION), ("name", &self.name)];
        text.gauge("grove_info", "Version and name of the cell.", &info, 1);
        text.gauge("grove_uptime_seconds", "Seconds since the start.", &[], steady);
        text.gauge("grove_life", "Which life of this cell.", &[], self.vault.life());
        if let Some(space) = space {
            text.gauge(
                "grove_disk_total_bytes",
                "Size of the disk under the state folder.",
                &[],
                space.total,
            );
            text.gauge("grove_disk_free_bytes", "Bytes free for this user.", &[], space.free);
            text.gauge("grove_disk_reserve_bytes", "Bytes that are never used.", &[], space.reserve);
        }
        for raised in self.vault.alerts() {
            let labels = [("code", raised.code.as_str()), ("level", raised.level.as_str())];
            text.gauge("grove_alert", "Conditions that a person should know of.", &labels, 1);
        }
        self.drill_metrics(&mut text);
        self.ai_metrics(&mut text);
        self.peer_metrics(&mut text).await?;
        let mut all = text.text;
        all.push_str(&self.sums().await?);
        if let Some(hub) = self.hub.borrow().upgrade() {
            all.push_str(&hub.metrics());
        }
        Ok(all)
    }

    async fn peer_metrics(&self, text: &mut Text) -> Result<(), VaultError> {
        let fleet = self.fleet().await?;
        let states = [Standing::Here, Standing::Silent, Standing::Away, Standing::Settling];
        for state in states {
            let count = fleet.peers.iter().filter(|peer| peer.standing == state).count();
            text.gauge("grove_peers", "Peers by how they stand.", &[("state", state.as_str())], count);
        }
        let ids: Vec<String> = fleet.peers.iter().map(|peer| peer.id.short()).collect();
        for (peer, id) in fleet.peers.iter().zip(&ids) {
            let labels = [("peer", peer.name.as_str()), ("id", id.as_str())];
            let is_up = u8::from(peer.is_connected());
            text.gauge("grove_peer_up", "The peer is connected.", &labels, is_up);
        }
        for (peer, id) in fleet.peers.iter().zip(&ids) {
            let labels = [("peer", peer.name.as_str()), ("id", id.as_str())];
            let help = "Seconds of the peer's silence, as far as they count.";
            text.gauge("grove_peer_silent_seconds", help, &labels, peer.silent_s);
        }
        for (peer, id) in fleet.peers.iter().zip(&ids) {
            let labels = [("peer", peer.name.as_str()), ("id", id.as_str())];
            if let Some(part) = peer.uptime {
                let help = "Part of the last 30 days in which the peer was here.";
                text.gauge("grove_peer_uptime_ratio", help, &labels, part as f64 / 1000.0);
            }
        }
        let Some(sync) = self.synced() else { return Ok(()) };
        let moved = sync.moved_totals();
        let help = "Sealed bytes given to peers and got from them in rounds since the start.";
        let (up, down) = ([("direction", "pushed")], [("direction", "pulled")]);
        text.counter("grove_moved_bytes_total", help, &up, moved.pushed_bytes);
        text.counter("grove_moved_bytes_total", help, &down, moved.pulled_bytes);
        let help = "Chunks given to peers and got from them in rounds since the start.";
        text.counter("grove_moved_chunks_total", help, &up, moved.pushed_chunks);
        text.counter("grove_moved_chunks_total", help, &down, moved.pulled_chunks);
        let proofs = sync.proofs();
        for proof in &proofs {
            let id = proof.id.short();
            let outcomes = [
                ("proven", proof.proved.proven),
                ("missing", proof.proved.missing),
                ("damaged", proof.proved.damaged),
                ("false", proof.proved.wrong),
                ("silent", proof.proved.silent),
            ];
            for (outcome, count) in outcomes {
                let labels = [("peer", proof.name.as_str()), ("id", id.as_str()), ("outcome", outcome)];
                let help = "Proofs of copies that peers were asked for, by how they ended.";
                text.counter("grove_proofs_total", help, &labels, count);
            }
        }
        let accounts = sync.bounty().await?;
        let ids: Vec<String> = accounts.iter().map(|account| account.id.short()).collect();
        for (account, id) in accounts.iter().zip(&ids) {
            for (direction, figure) in [("earned", account.earned), ("spent", account.spent)] {
                let labels = [("peer", account.name.as_str()), ("id", id.as_str()), ("direction", direction)];
                let help = "Byte-hours stored and proven, as both have signed: earned by this cell, spent with the peer.";
                text.counter("grove_bounty_byte_hours_total", help, &labels, figure);
            }
        }
        for (account, id) in accounts.iter().zip(&ids) {
            let labels = [("peer", account.name.as_str()), ("id", id.as_str())];
            if let Some(bytes) = account.allowed.bytes {
                text.gauge("grove_bounty_quota_bytes", "Bytes that the peer may store here.", &labels, bytes);
            }
        }
        for (account, id) in accounts.iter().zip(&ids) {
            let labels = [("peer", account.name.as_str()), ("id", id.as_str())];
            let help = "The figures of the two cells differ.";
            text.gauge("grove_bounty_disputed", help, &labels, u8::from(account.dispute.is_some()));
        }
        let damaged = self.vault.damage_count();
        let help = "Chunks found damaged on this disk since the start.";
        text.counter("grove_damaged_chunks_total", help, &[], damaged);
        Ok(())
    }

    /// What takes a look at whole tables.
    async fn sums(&self) -> Result<String, VaultError> {
        let now = self.vault.clock.steady();
        if let Some((at, text)) = &*self.metric_sums.borrow() {
            if now.saturating_sub(*at) < SUMS_FRESH {
                return Ok(text.clone());
            }
        }
        let wanted = self.vault.config.copies;
        let vault = Arc::clone(&self.vault);
        let (nodes, chunks, own, bin, scrubbed) = pool::unblock(move || {
            vault.db.read(|t| -> Result<_, DbError> {
                let own = t.own_totals(wanted)?;
                let walk = t.meta(super::scrub::CYCLE_KEY)?.map(|bytes| Cycle::from_bytes(&bytes));
                let scrubbed = match walk {
                    Some(walk) => Some(walk.cursor as f64 / t.chunk_id_max()?.0.max(1) as f64),
                    None => None,
                };
                Ok((t.node_totals()?, t.chunk_totals()?, own, t.bin_count()?, scrubbed))
            })
        })
        .await?;
        let peers = self.peer_views().await?;
        let mut text = Text::default();
        text.gauge("grove_files", "Files in the folder.", &[], nodes.files);
        text.gauge("grove_files_bytes", "Bytes of them.", &[], nodes.bytes);
        text.gauge(
            "grove_files_waiting",
            "Files whose bytes are still to be brought back.",
            &[],
            nodes.awaiting,
        );
        text.gauge("grove_bin_files", "Deleted files that can be restored.", &[], bin);
        text.gauge(
            "grove_store_chunks",
            "Chunks in the store, those kept for peers among them.",
            &[],
            chunks.0,
        );
        text.gauge("grove_store_bytes", "Sealed bytes of them.", &[], chunks.1);
        text.gauge("grove_own_chunks", "Chunks of this cell's files, wherever they lie.", &[], own.chunks);
        text.gauge("grove_own_bytes", "Sealed bytes of them.", &[], own.bytes);
        text.gauge(
            "grove_copies_wanted",
            "Copies wanted of each chunk, this cell's among them.",
            &[],
            wanted,
        );
        text.gauge("grove_copies_short_chunks", "Chunks with fewer copies than wanted.", &[], own.short);
        if let Some(part) = scrubbed {
            let help = "Part of the chunks that the present walk over the store has read.";
            text.gauge("grove_scrub_progress_ratio", help, &[], part.min(1.0));
        }
        for peer in &peers {
            let id = peer.id.short();
            let labels = [("peer", peer.name.as_str()), ("id", id.as_str())];
            let help = "Sealed bytes that are kept here for the peer.";
            text.gauge("grove_held_for_peer_bytes", help, &labels, peer.held_for_them_bytes);
        }
        for peer in &peers {
            let id = peer.id.short();
            let labels = [("peer", peer.name.as_str()), ("id", id.as_str())];
            let help = "Sealed bytes that the peer keeps for this cell.";
            text.gauge("grove_held_by_peer_bytes", help, &labels, peer.held_for_us_bytes);
        }
        *self.metric_sums.borrow_mut() = Some((now, text.text.clone()));
        Ok(text.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_named_once_and_labels_are_escaped() {
        let mut text = Text::default();
        text.gauge("grove_up", "It runs.", &[], 1);
        text.counter("grove_x_total", "Some.", &[("peer", "a\"b\\c\nd")], 2);
        text.counter("grove_x_total", "Some.", &[("peer", "e")], 3);
        assert_eq!(
            text.text,
            "# HELP grove_up It runs.\n# TYPE grove_up gauge\ngrove_up 1\n# HELP grove_x_total Some.\n# TYPE grove_x_total \
             counter\ngrove_x_total{peer=\"a\\\"b\\\\c\\nd\"} 2\ngrove_x_total{peer=\"e\"} 3\n"
        );
    }
}
