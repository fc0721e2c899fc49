//! Friendship with peers: told when connected, answered, kept, and shown. What follows from two wishes is decided in
//! `crate::friendship`.

use std::rc::Rc;
use std::time::Duration;

use super::driver::Sync;
use super::link::Link;
use crate::alerts::Alert;
use crate::friendship::{Friendship, Standing};
use crate::id::CellId;
use crate::vault::VaultError;
use crate::wire::message::{AskError, ErrorCode, Reply, Request};
use crate::wire::within;

/// Whoever wishes something waits this long for a peer that is connected; the next round tells it otherwise.
const TELL_TIME_MAX: Duration = Duration::from_secs(5);
/// Names that one alert tells, at most.
const NAMES_TOLD_MAX: usize = 5;

/// How this cell and a peer stand after its user has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decided {
    /// As far as is known here.
    pub standing: Standing,
    /// The peer knows of it already; otherwise it hears when it is next connected.
    pub is_told: bool,
}

impl Sync {
    /// Whether a cell is a friend: both have said so, as far as is known here.
    pub fn is_friend(&self, id: &CellId) -> bool {
        self.gate.peer(id).is_some_and(|peer| peer.friendship.are_friends())
    }

    /// Asks a peer for friendship or accepts it, or (`false`) undoes it, declines or takes back. Kept when this returns.
    pub async fn set_friend(self: &Rc<Self>, id: &CellId, is_friend: bool) -> Result<Decided, VaultError> {
        let wall = self.vault.clock.wall();
        let decided = self.gate.change(id, |peer| {
            let before = peer.friendship;
            peer.friendship.decide(is_friend, wall);
            peer.friendship != before
        });
        let Some(is_changed) = decided.await? else {
            return Err(VaultError::Refused("there is no such peer; see `grove peers`".into()));
        };
        if is_changed {
            if !is_friend {
                self.end_sharing(id).await?;
            }
            self.show_friend_requests();
            self.publish_soon();
            self.wake_talk(id);
        }
        if let Some(link) = self.link(id) {
            let told = within(TELL_TIME_MAX, self.tell_wish(&link)).await;
            if !matches!(told, Some(Ok(()))) {
                link.nudge();
            }
        } else {
            self.wake_dialer(id);
        }
        let friendship = self.gate.peer(id).map(|peer| peer.friendship).unwrap_or_default();
        let told = self.link(id).and_then(|link| link.told_wish.get());
        let is_told = told == Some(friendship.ours) || friendship == Friendship::default();
        Ok(Decided { standing: friendship.standing(), is_told })
    }

    /// Tells a peer what is wished of it, if it has not heard since it was connected, and hears its own wish.
    pub(super) async fn tell_wish(self: &Rc<Self>, link: &Rc<Link>) -> Result<(), AskError> {
        let Some(peer) = self.gate.peer(&link.peer) else { return Ok(()) };
        let now = peer.friendship;
        if now == Friendship::default() || link.told_wish.get() == Some(now.ours) {
            return Ok(());
        }
        match link.ask(&Request::Friendship(now)).await {
            Ok(Reply::Friendship(theirs)) => {
                link.told_wish.set(Some(now.ours));
                if let Err(why) = self.hear_wish(&link.peer, &theirs).await {
                    log::warn!("{}: {why}", peer.name);
                }
                // An invite may have settled what was asked before.
                self.show_friend_requests();
                Ok(())
            }
            Ok(_) => Err(AskError::OutOfTurn),
            // One of an earlier version, or one that has heard enough for now: all else goes on.
            Err(AskError::Refused(why)) if matches!(why.code, ErrorCode::Unsupported | ErrorCode::Busy) => {
                log::info!("{} does not hear of friendship now: {why}", peer.name);
                Ok(())
            }
            Err(why) => Err(why),
        }
    }

    /// A peer tells its wish: what is known here after it; `None`: it has changed it too often.
    pub(super) async fn answer_wish(
        self: &Rc<Self>,
        id: &CellId,
        told: &Friendship,
    ) -> Result<Option<Friendship>, VaultError> {
        let Some(peer) = self.gate.peer(id) else { return Ok(None) };
        let mut after = peer.friendship;
        after.hear(told, self.vault.clock.wall());
        let link = self.link(id);
        let may = |link: &Rc<Link>| link.may_wish(self.vault.clock.steady());
        if after != peer.friendship && !link.as_ref().is_some_and(may) {
            return Ok(None);
        }
        let now = self.hear_wish(id, told).await?;
        if let Some(link) = link {
            // The reply tells it.
            link.told_wish.set(Some(now.ours));
        }
        Ok(Some(now))
    }

    async fn hear_wish(self: &Rc<Self>, id: &CellId, told: &Friendship) -> Result<Friendship, VaultError> {
        let wall = self.vault.clock.wall();
        let heard = self.gate.change(id, |peer| {
            let before = peer.friendship;
            peer.friendship.hear(told, wall);
            (peer.name.clone(), before, peer.friendship)
        });
        let Some((name, before, now)) = heard.await? else { return Ok(Friendship::default()) };
        if before != now {
            match (before.standing(), now.standing()) {
                (before, now) if before == now => {}
                (_, Standing::Friends) => log::info!("{name} is a friend now"),
                (Standing::Friends, _) => {
                    log::info!("{name} is no friend any more");
                    self.end_sharing(id).await?;
                }
                _ => {}
            }
            self.show_friend_requests();
            self.publish_soon();
            self.wake_talk(id);
        }
        Ok(now)
    }

    /// Says who wants to be a friend.
    pub(super) fn show_friend_requests(&self) {
        let peers = self.gate.peers();
        let asking = peers.iter().filter(|peer| peer.friendship.standing() == Standing::Wanted);
        let names: Vec<&str> = asking.map(|peer| peer.name.as_str()).collect();
        match request_alert(&names) {
            Some(alert) => self.vault.raise("friend-request", alert),
            None => self.vault.clear("friend-request"),
        }
    }
}

fn request_alert(names: &[&str]) -> Option<Alert> {
    let told = names.iter().take(NAMES_TOLD_MAX).copied().collect::<Vec<_>>().join(", ");
    let text = match names.len() {
        0 => return None,
        1 => format!("{told} wants to be a friend"),
        2..=NAMES_TOLD_MAX => format!("{told} want to be friends"),
        more => format!("{told} and {} more want to be friends", more - NAMES_TOLD_MAX),
    };
    let remedy = "`grove peer friend NAME` accepts, `grove peer unfriend NAME` declines".into();
    Some(Alert { text, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alert_tells_of_all_requests_and_stays_short() {
        assert_eq!(request_alert(&[]), None);
        assert_eq!(request_alert(&["bob"]).unwrap().text, "bob wants to be a friend");
        assert_eq!(request_alert(&["bob", "cy"]).unwrap().text, "bob, cy want to be friends");
        let many = request_alert(&["x"; 1000]).unwrap().text;
        assert_eq!(many, "x, x, x, x, x and 995 more want to be friends");
    }
}
