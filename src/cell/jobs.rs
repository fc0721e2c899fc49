//! Long work that was asked for: what it is, how far it is, how it ended.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smol::{LocalExecutor, Task, Timer};

use super::json::{Obj, list};
use crate::changes::{Changes, Part};
use crate::dashboard::api::ApiResponse;
use crate::pool;
use crate::vault::VaultError;

/// Jobs remembered after their end.
const JOBS_KEPT: usize = 32;

/// How far a job is.
#[derive(Debug, Clone, Default)]
pub struct JobState {
    kind: &'static str,
    text: String,
    done: u64,
    total: u64,
    unit: &'static str,
    outcome: Option<Result<String, (String, String, String)>>,
    changes: u64,
}

/// A job's end to write its progress to.
#[derive(Debug, Clone)]
pub struct JobHandle(Rc<RefCell<JobState>>, Arc<Changes>);

impl JobHandle {
    /// Tells how far it is. `total` 0: not known.
    pub fn progress(&self, done: u64, total: u64, unit: &'static str) {
        let mut state = self.0.borrow_mut();
        (state.done, state.total, state.unit) = (done, total, unit);
        state.changes += 1;
        self.1.note(Part::Jobs);
    }

    /// Tells what it is doing.
    pub fn say(&self, text: impl Into<String>) {
        let mut state = self.0.borrow_mut();
        state.text = text.into();
        state.changes += 1;
        self.1.note(Part::Jobs);
    }
}

/// A job's state, and its task while it may be stopped.
type Job = (Rc<RefCell<JobState>>, Option<Task<()>>);

/// All jobs.
pub struct Jobs {
    changes: Arc<Changes>,
    next: RefCell<u64>,
    jobs: RefCell<BTreeMap<u64, Job>>,
}

impl Jobs {
    /// None yet; `changes` is told of all that happens to them.
    pub fn new(changes: Arc<Changes>) -> Self {
        Self { changes, next: RefCell::default(), jobs: RefCell::default() }
    }

    /// Starts a job and answers with its number.
    pub fn start<F>(
        self: &Rc<Self>,
        executor: &LocalExecutor<'static>,
        kind: &'static str,
        work: impl FnOnce(JobHandle) -> F,
    ) -> ApiResponse
    where
        F: Future<Output = Result<String, VaultError>> + 'static,
    {
        let state = Rc::new(RefCell::new(JobState { kind, unit: "files", ..JobState::default() }));
        let id = {
            let mut next = self.next.borrow_mut();
            *next += 1;
            *next
        };
        let work = work(JobHandle(Rc::clone(&state), Arc::clone(&self.changes)));
        let (ended, changes) = (Rc::clone(&state), Arc::clone(&self.changes));
        let task = pool::spawn(executor, async move {
            let outcome = work.await;
            let mut state = ended.borrow_mut();
            state.outcome = Some(outcome.map_err(|why| {
                let code = if why.is_full() { "disk_full" } else { "failed" };
                let hint = if why.is_full() {
                    "free some space, for example with `grove rm`, and try again"
                } else {
                    ""
                };
                (code.to_owned(), why.to_string(), hint.to_owned())
            }));
            state.changes += 1;
            changes.note(Part::Jobs);
            changes.note(Part::Status);
        });
        self.changes.note(Part::Jobs);
        let mut jobs = self.jobs.borrow_mut();
        jobs.insert(id, (state, Some(task)));
        while jobs.len() > JOBS_KEPT {
            let Some(over) = jobs.iter().find(|(_, (s, _))| s.borrow().outcome.is_some()).map(|(id, _)| *id)
            else {
                break;
            };
            jobs.remove(&over);
        }
        ApiResponse::json_text(202, Obj::new().num("job", id).end())
    }

    /// How a job stands, at the latest after `wait`, sooner when it changes.
    pub async fn wait(&self, id: u64, wait: Duration) -> Option<String> {
        let state = Rc::clone(&self.jobs.borrow().get(&id)?.0);
        let before = state.borrow().changes;
        let mut waited = Duration::ZERO;
        let tick = Duration::from_millis(20);
        while waited < wait
            && state.borrow().outcome.is_none()
            && (waited < wait / 2 || state.borrow().changes == before)
        {
            Timer::after(tick).await;
            waited += tick;
        }
        let json = to_json(id, &state.borrow());
        Some(json)
    }

    /// Stops a job. What it has done stays done.
    pub async fn cancel(&self, id: u64) -> bool {
        let Some((state, task)) = self.jobs.borrow_mut().get_mut(&id).map(|(s, t)| (Rc::clone(s), t.take()))
        else {
            return false;
        };
        if let Some(task) = task {
            if state.borrow().outcome.is_none() {
                task.cancel().await;
                state.borrow_mut().outcome =
                    Some(Err(("cancelled".into(), "cancelled; what was done stays".into(), String::new())));
                self.changes.note(Part::Jobs);
            }
        }
        true
    }

    /// The newest job that runs, as JSON, or `null`.
    pub fn running(&self) -> String {
        let jobs = self.jobs.borrow();
        let running = jobs.iter().rev().find(|(_, (state, _))| state.borrow().outcome.is_none());
        running.map_or("null".into(), |(_, (state, _))| {
            let s = state.borrow();
            Obj::new()
                .str("kind", s.kind)
                .str("text", &s.text)
                .num("done", s.done)
                .num("total", s.total)
                .str("unit", s.unit)
                .end()
        })
    }
}

fn to_json(id: u64, s: &JobState) -> String {
    let (state, error, result) = match &s.outcome {
        None => ("running", "null".into(), "null".into()),
        Some(Ok(result)) => ("done", "null".into(), result.clone()),
        Some(Err((code, message, hint))) => (
            "failed",
            Obj::new().str("code", code).str("message", message).str("hint", hint).end(),
            "null".into(),
        ),
    };
    Obj::new()
        .num("id", id)
        .str("kind", s.kind)
        .str("state", state)
        .str("text", &s.text)
        .num("done", s.done)
        .num("total", s.total)
        .str("unit", s.unit)
        .raw("error", error)
        .raw("result", result)
        .end()
}

/// Problems as JSON.
pub fn problems(problems: &[crate::files::walk::Problem]) -> String {
    list(problems.iter().map(|p| Obj::new().str("path", &p.path).str("why", &p.why).end()))
}
