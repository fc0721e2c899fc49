//! How much was sent, received and stored over time, for plots: a point each few minutes, for a week, kept over restarts.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Cell;
use super::files::read_note;
use super::json::{Obj, list};
use crate::pool;
use crate::vault::{VaultError, write_whole};

/// Between two points. s.
pub(super) const STEP_S: u64 = 300;
/// A week of them.
const POINTS_MAX: usize = 2016;
/// Points that a power cut may take.
const KEPT_EVERY: usize = 12;
/// In the state folder.
const FILE: &str = "history";
const NUMBERS: usize = 6;

/// Unix second; bytes sent and received since the point before; bytes of our chunks here, of peers' chunks here, and free.
type Point = [u64; NUMBERS];

/// The points, the oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    points: RefCell<VecDeque<Point>>,
    /// What was sent and received since the start, at the last point.
    moved: std::cell::Cell<(u64, u64)>,
}

fn read(text: &str) -> VecDeque<Point> {
    let point = |line: &str| -> Option<Point> {
        let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().ok()).collect::<Option<_>>()?;
        numbers.try_into().ok()
    };
    let mut points: VecDeque<Point> = text.lines().filter_map(point).collect();
    while points.len() > POINTS_MAX {
        points.pop_front();
    }
    points
}

fn to_text(points: &VecDeque<Point>) -> String {
    points.iter().map(|point| point.map(|n| n.to_string()).join(" ") + "\n").collect()
}

/// Adds a point. Those of a clock that was ahead, and has gone back, go.
fn push(points: &mut VecDeque<Point>, point: Point) {
    while points.back().is_some_and(|last| last[0] > point[0] + 2 * STEP_S) {
        points.pop_back();
    }
    points.push_back(point);
    while points.len() > POINTS_MAX {
        points.pop_front();
    }
}

impl Cell {
    pub(super) fn history_json(&self) -> String {
        let points = self.history.points.borrow();
        let items = points.iter().map(|point| list(point.iter().map(u64::to_string)));
        Obj::new().num("step_s", STEP_S).raw("points", list(items)).end()
    }

    async fn look(&self) -> Result<Point, VaultError> {
        let vault = Arc::clone(&self.vault);
        let (stored, free) = pool::unblock(move || -> Result<_, VaultError> {
            let stored = vault.db.read(|t| t.chunk_totals())?;
            Ok((stored, vault.store.free()?))
        })
        .await?;
        let held: u64 = self.peer_views().await?.iter().map(|peer| peer.held_for_them_bytes).sum();
        let moved = self.synced().map(|sync| sync.moved_totals());
        let moved = moved.map_or((0, 0), |moved| (moved.pushed_bytes, moved.pulled_bytes));
        let before = self.history.moved.replace(moved);
        let since = |now: u64, before: u64| now.saturating_sub(before);
        let wall = self.vault.clock.wall().max(0) as u64;
        Ok([
            wall,
            since(moved.0, before.0),
            since(moved.1, before.1),
            stored.1.saturating_sub(held),
            held,
            free.free,
        ])
    }

    async fn save_history(&self) {
        let (text, path) = (to_text(&self.history.points.borrow()), self.vault.dir.join(FILE));
        if let Err(why) = pool::unblock(move || write_whole(&path, text.as_bytes())).await {
            log::warn!("the history for plots is not kept: {why}");
        }
    }
}

/// Adds points for ever.
pub(super) async fn keep(cell: Rc<Cell>) {
    let path = cell.vault.dir.join(FILE);
    let text = pool::unblock(move || read_note(&path)).await;
    *cell.history.points.borrow_mut() = read(&text);
    let mut count: usize = 0;
    loop {
        match cell.look().await {
            Ok(point) => push(&mut cell.history.points.borrow_mut(), point),
            Err(why) => log::debug!("no point of the history: {why}"),
        }
        if count % KEPT_EVERY == 0 {
            cell.save_history().await;
        }
        count += 1;
        smol::Timer::after(Duration::from_secs(STEP_S)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_bounded_and_read_back() {
        let mut points = VecDeque::new();
        for n in 0..POINTS_MAX as u64 + 10 {
            push(&mut points, [n * STEP_S, 1, 2, 3, 4, n]);
        }
        assert_eq!((points.len(), points[0][5]), (POINTS_MAX, 10));
        assert_eq!(read(&to_text(&points)), points);
        assert_eq!(read("damaged\n1 2 3\n1 2 3 4 5 6\n1 2 3 4 5 6 7\n-1 2 3 4 5 6\n"), [[1, 2, 3, 4, 5, 6]]);
    }

    #[test]
    fn points_of_a_clock_that_was_ahead_go() {
        let mut points = VecDeque::new();
        push(&mut points, [1_000, 0, 0, 0, 0, 0]);
        push(&mut points, [9_000_000, 0, 0, 0, 0, 0]);
        push(&mut points, [1_300, 0, 0, 0, 0, 0]);
        assert_eq!(points.iter().map(|point| point[0]).collect::<Vec<_>>(), [1_000, 1_300]);
    }
}
