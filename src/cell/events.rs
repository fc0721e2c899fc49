//! Changes as they happen, for a browser: server-sent events.

use std::rc::Rc;
use std::time::Duration;

use smol::Timer;
use smol::future::FutureExt;

use super::Cell;
use super::json::{Obj, list, text};
use crate::changes::{Listener, Part};
use crate::dashboard::api::ApiResponse;
use crate::pool;

/// Streams at once.
pub(super) const STREAMS_MAX: usize = 16;
/// A word of no meaning each so often, so that nobody on the way takes the stream for dead.
const WORD_EVERY: Duration = Duration::from_secs(15);
/// Changes are gathered for so long, so that much change is few events.
const GATHER: Duration = Duration::from_millis(250);

fn event(parts: &[Part], count: u64) -> Vec<u8> {
    let data = Obj::new().raw("what", list(parts.iter().map(|part| text(part.as_str())))).num("n", count);
    format!("event: change\ndata: {}\n\n", data.end()).into_bytes()
}

/// Counts a stream for as long as it lives.
struct Seat(Rc<Cell>);

impl Seat {
    fn take(cell: &Rc<Cell>) -> Option<Self> {
        let streams = cell.event_streams.get();
        if streams >= STREAMS_MAX {
            return None;
        }
        cell.event_streams.set(streams + 1);
        Some(Self(Rc::clone(cell)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.event_streams.set(self.0.event_streams.get() - 1);
    }
}

impl Cell {
    /// A stream of changes that lasts until the client is gone.
    pub(super) fn events(self: &Rc<Self>) -> ApiResponse {
        let Some(seat) = Seat::take(self) else {
            let hint = "Close other pages of this cell and try again.";
            return ApiResponse::error(503, "too_many_streams", "Too many pages watch this cell.", hint)
                .with_header("Retry-After", "5");
        };
        let listener = self.vault.changes.listen();
        let (sender, receiver) = smol::channel::bounded(2);
        let cell = Rc::clone(self);
        let telling = async move {
            let _seat = seat;
            let gone = async {
                sender.closed().await;
            };
            let tell = async {
                let _ = tell(&cell, &listener, &sender).await;
            };
            tell.or(gone).await;
        };
        pool::spawn(&self.executor, telling).detach();
        let mut response = ApiResponse::stream(None, receiver);
        response.content_type = "text/event-stream".into();
        // Proxies gather answers otherwise.
        response.with_header("X-Accel-Buffering", "no")
    }
}

type Pieces = smol::channel::Sender<std::io::Result<Vec<u8>>>;

async fn tell(
    cell: &Cell,
    listener: &Listener,
    sender: &Pieces,
) -> Result<(), smol::channel::SendError<std::io::Result<Vec<u8>>>> {
    // The browser comes back by itself after so many ms.
    sender.send(Ok(b"retry: 2000\n\n".to_vec())).await?;
    loop {
        let news = async { Some(listener.next().await) };
        let late = async {
            Timer::after(WORD_EVERY).await;
            None
        };
        match news.or(late).await {
            Some(parts) => sender.send(Ok(event(&parts, cell.vault.changes.count()))).await?,
            None => sender.send(Ok(b": still here\n\n".to_vec())).await?,
        }
        Timer::after(GATHER).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_one_block_of_lines() {
        let text = String::from_utf8(event(&[Part::Files, Part::Jobs], 7)).unwrap();
        assert_eq!(text, "event: change\ndata: {\"what\":[\"files\",\"jobs\"],\"n\":7}\n\n");
    }
}
