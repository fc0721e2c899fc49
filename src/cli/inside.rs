//! Cells in this process, for the command line.

use std::fmt;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};

use miniserde::json;

use super::ask::{Answer, Cell, CliError, Method, target};
use super::{House, Made, Options, Paths, RecoverProgress, RecoverWish, Recovered};
use crate::cell;
use crate::config::Config;
use crate::dashboard::api::{ApiRequest, ApiResponse, Body, ErrorBody, Via, read_target};
use crate::logger;

/// Opens, makes, runs and recovers cells in this process.
#[derive(Debug, Clone, Copy)]
pub struct Inside;

impl From<cell::CellError> for CliError {
    fn from(error: cell::CellError) -> Self {
        Self::new(error.to_string(), "")
    }
}

impl House for Inside {
    fn open(&self, paths: &Paths, options: &Options) -> Result<Box<dyn Cell>, CliError> {
        // Only what matters: a person reads it between the lines of an answer.
        logger::start(log::LevelFilter::Warn);
        Ok(Box::new(Opened(cell::Local::open(&places(paths), &choices(options))?)))
    }

    fn create(&self, paths: &Paths, name: Option<&str>, phrase: Option<&str>) -> Result<Made, CliError> {
        let made = cell::create(&places(paths), name, phrase)?;
        Ok(Made { name: made.name, id: made.id.to_string() })
    }

    fn run(&self, paths: &Paths, options: &Options) -> Result<(), CliError> {
        let config = Config::load(&paths.dir.join("config.json"))
            .map_err(CliError::io("reading config.json"))?
            .map_err(|why| CliError::new(why.to_string(), ""))?;
        logger::start(config.log_level.parse().unwrap_or(log::LevelFilter::Info));
        Ok(cell::run(&places(paths), &choices(options))?)
    }

    fn recover(
        &self,
        paths: &Paths,
        options: &Options,
        wish: RecoverWish<'_>,
        progress: &mut dyn FnMut(&RecoverProgress),
    ) -> Result<Recovered, CliError> {
        logger::start(log::LevelFilter::Warn);
        let mut tell = |told: &cell::RecoverProgress| {
            progress(&RecoverProgress {
                text: told.text.clone(),
                done: told.bytes,
                total: told.bytes_total,
                unit: "bytes".into(),
            });
        };
        let done = cell::recover(
            &places(paths),
            &choices(options),
            Some(wish.phrase),
            wish.addresses,
            wish.with_files,
            &mut tell,
        )?;
        Ok(Recovered {
            name: done.name,
            id: done.id,
            life: u64::from(done.life),
            files_known: done.files,
            files: done.files.saturating_sub(done.waiting),
            bytes: done.bytes.saturating_sub(done.waiting_bytes),
            peers: done.peers,
            peers_missing: done.silent,
            problems: done.problems.into_iter().map(|problem| (problem.path, problem.why)).collect(),
        })
    }
}

fn places(paths: &Paths) -> cell::Paths {
    cell::Paths { dir: paths.dir.clone(), home: paths.home.clone() }
}

fn choices(options: &Options) -> cell::Options {
    cell::Options { http_port: options.http_port, peer_port: options.peer_port }
}

/// The cell that this process has opened.
struct Opened(cell::Local);

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened")
    }
}

impl Opened {
    /// The answer, if it is no refusal.
    fn call(
        &mut self,
        method: Method,
        path: &str,
        query: &[(&str, Vec<u8>)],
        body: Option<String>,
    ) -> Result<ApiResponse, CliError> {
        // Through the same reading as over HTTP, so that both ways understand the same.
        let (path, query) =
            read_target(&target(path, query)).map_err(|why| CliError::Usage(why.to_string()))?;
        let response = self.0.call(ApiRequest {
            method,
            path,
            query,
            content_type: body.as_ref().map(|_| "application/json".to_owned()),
            body: body.unwrap_or_default().into_bytes(),
            authorized: true,
            via: Via::Secret,
            is_private: true,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
            ..ApiRequest::default()
        });
        if (200..300).contains(&response.status) {
            return Ok(response);
        }
        let told = match &response.body {
            Body::Bytes(bytes) => std::str::from_utf8(bytes).ok().and_then(|text| json::from_str(text).ok()),
            Body::Stream { .. } | Body::File(_) => None,
        };
        Err(match told.map(|body: ErrorBody| body.error) {
            Some(error) => CliError::new(error.message, error.hint),
            None => CliError::new(format!("the cell answered with status {}", response.status), ""),
        })
    }
}

impl Cell for Opened {
    fn ask(
        &mut self,
        method: Method,
        path: &str,
        query: &[(&str, Vec<u8>)],
        body: Option<String>,
    ) -> Result<Answer, CliError> {
        match self.call(method, path, query, body)?.body {
            Body::Bytes(bytes) => Answer::read(String::from_utf8_lossy(&bytes).into_owned()),
            Body::Stream { .. } | Body::File(_) => {
                Err(CliError::new("the cell's answer is no JSON object", ""))
            }
        }
    }

    fn stream(
        &mut self,
        path: &str,
        query: &[(&str, Vec<u8>)],
        out: &mut dyn Write,
    ) -> Result<u64, CliError> {
        let (length, receiver) = match self.call(Method::Get, path, query, None)?.body {
            Body::Bytes(bytes) => {
                out.write_all(&bytes)?;
                return Ok(bytes.len() as u64);
            }
            Body::Stream { length, receiver } => (length, receiver),
            Body::File(_) => return Err(CliError::new("the cell's answer is no stream", "")),
        };
        let mut total = 0;
        while let Some(piece) = self.0.receive(&receiver) {
            let piece = piece.map_err(CliError::io("reading the file's content"))?;
            out.write_all(&piece)?;
            total += piece.len() as u64;
        }
        match length.is_some_and(|length| length != total) {
            true => Err(CliError::new("the cell broke off; what came so far is not the whole file", "")),
            false => Ok(total),
        }
    }

    fn is_running(&self) -> bool {
        false
    }
}
