//! Answers of language models: this machine's own, those of servers that the user has named, and those of friends who offer
//! theirs, behind one desk. Knows nothing of peers, pages and the database: the cell hands it what it needs of them.
//!
//! ```text
//! json.rs form.rs lines.rs router.rs resume.rs    decide: objects, forms, events, who answers, going on
//! desk.rs answer.rs                               who there is; one answer, over as many backends as it takes
//! http.rs server.rs managed.rs friend.rs book.rs  touch: sockets, model servers, a child, friends, ai.json
//! ```
//!
//! Promise: an answer that looks whole is whole; whoever asked goes away and nobody works on; bytes of servers and friends
//! never panic and never take more than bounded memory.

pub mod answer;
pub mod book;
pub mod desk;
pub mod form;
pub mod friend;
pub mod http;
pub mod json;
pub mod lines;
pub mod managed;
pub mod resume;
pub mod router;
pub mod server;
pub mod service;
pub mod talks;
