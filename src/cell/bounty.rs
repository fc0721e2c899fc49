//! The API about the bounty: the account with each peer, what was posted day by day, and the user's word in a disagreement.

use std::rc::Rc;

use super::Cell;
use super::api::{json, needs, not_running};
use super::json::{Fields, Obj, list, text};
use crate::bounty::milli_leaves;
use crate::dashboard::api::{ApiRequest, ApiResponse, Method};
use crate::sync::{BountyView, Sync};
use crate::vault::VaultError;

fn signed(byte_hours: u64) -> i64 {
    i64::try_from(byte_hours).unwrap_or(i64::MAX)
}

/// Fields of an account: thousandths of leaves, and the byte-hours that they stand for.
fn account(to: Obj, earned: u64, spent: u64) -> Obj {
    let (earned, spent) = (signed(earned), signed(spent));
    to.num("earned_mleaf", milli_leaves(earned))
        .num("spent_mleaf", milli_leaves(spent))
        .num("balance_mleaf", milli_leaves(earned - spent))
        .num("earned_byte_hours", earned)
        .num("spent_byte_hours", spent)
}

fn view_json(view: &BountyView) -> String {
    let quota = Obj::new()
        .num("used_bytes", view.used_bytes)
        .raw("allowed_bytes", view.allowed.bytes.map_or("null".into(), |bytes| bytes.to_string()))
        .str("why", view.allowed.why.as_str())
        .end();
    let there = view.there.map(|there| {
        Obj::new().num("used_bytes", there.used_bytes).num("allowed_bytes", there.allowed_bytes).end()
    });
    let dispute = view.dispute.map(|dispute| {
        Obj::new()
            .num("ours_byte_hours", dispute.ours)
            .num("theirs_byte_hours", dispute.theirs)
            .str("cause", dispute.cause)
            .bool("our_storage", dispute.is_our_storage)
            .end()
    });
    let statement = view.statement.map(|(seq, until)| {
        Obj::new().num("seq", seq).num("until_unix", until).bool("signed_by_both", true).end()
    });
    let or_null = |value: Option<String>| value.unwrap_or_else(|| "null".into());
    account(Obj::new().str("id", &view.id.to_string()).str("name", &view.name), view.earned, view.spent)
        .num("unsigned_byte_hours", view.unsigned)
        .num("waiting_byte_hours", view.waiting)
        .num("forfeited_byte_hours", view.forfeited)
        .num("proofs_passed", view.proofs_passed)
        .num("proofs_failed", view.proofs_failed)
        .raw("quota", quota)
        .raw("quota_there", or_null(there))
        .str("state", view.state)
        .raw("dispute", or_null(dispute))
        .raw("statement", or_null(statement))
        .raw("forks", list(view.forks.iter().map(u64::to_string)))
        .end()
}

async fn accounts(sync: &Sync) -> Result<String, VaultError> {
    let views = sync.bounty().await?;
    let sum = |figure: fn(&BountyView) -> u64| {
        views.iter().map(figure).fold(0u64, u64::saturating_add).min(i64::MAX as u64)
    };
    let total = account(Obj::new(), sum(|view| view.earned), sum(|view| view.spent)).end();
    let advice = sync.bounty_advice(&views);
    Ok(Obj::new()
        .raw("total", total)
        .raw("peers", list(views.iter().map(view_json)))
        .raw("advice", list(advice.iter().map(|line| text(line))))
        .end())
}

async fn history(sync: &Sync, peer: Option<&str>) -> Result<String, VaultError> {
    let peer = match peer {
        Some(peer) => Some(sync.find_peer(peer)?),
        None => None,
    };
    let days = sync.bounty_days(peer).await?;
    let thousandths = days.iter().map(|(day, earned, spent)| {
        format!("[{day},{},{}]", milli_leaves(signed(*earned)), milli_leaves(signed(*spent)))
    });
    let exact = days.iter().map(|(day, earned, spent)| format!("[{day},{earned},{spent}]"));
    Ok(Obj::new().raw("days", list(thousandths)).raw("byte_hours", list(exact)).end())
}

impl Cell {
    /// Answers `/bounty…`; `rest` is what follows.
    pub(super) async fn answer_about_bounty(
        self: &Rc<Self>,
        request: &ApiRequest,
        rest: &[&str],
        fields: &Fields,
    ) -> ApiResponse {
        let Some(sync) = self.synced() else {
            return not_running();
        };
        match (request.method, rest) {
            (Method::Get, []) => json(accounts(&sync).await),
            (Method::Get, ["history"]) => {
                let peer = request.param("peer").and_then(|peer| std::str::from_utf8(peer).ok());
                json(history(&sync, peer.filter(|peer| !peer.is_empty())).await)
            }
            (Method::Post, ["accept"]) => {
                let Some(peer) = fields.str("peer") else { return needs("peer") };
                let id = match sync.find_peer(peer) {
                    Ok(id) => id,
                    Err(why) => return ApiResponse::error(404, "not_found", &why.to_string(), ""),
                };
                let accepted = sync.accept_figure(&id).await;
                json(accepted.map(|()| Obj::new().str("id", &id.to_string()).end()))
            }
            _ => ApiResponse::error(404, "not_found", "there is nothing at this path", ""),
        }
    }
}
