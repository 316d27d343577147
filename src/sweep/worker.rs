//! Workers: processes of ours that run one trial after another, so that libtorch starts once and the data is
//! read once. A line of JSON each way; a worker that dies takes one trial with it and nothing else.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::libtorch::device::DeviceSpec;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::threads::{REFUSED, spawn};

/// The subcommand that is a worker.
pub const COMMAND: &str = "sweep-worker";

/// To a worker: a run to train, on from where its folder says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    pub config: String,
    pub sets: Vec<String>,
    pub output: PathBuf,
    pub threads: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceSpec>,
}

/// To a worker that has reported an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    GoOn,
    Prune,
}

/// From a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The scores on the validation set after so many epochs; it waits for a [`Verdict`].
    Epoch { epoch: u64, scores: Value },
    /// `done` of the `of` steps of the trial are made, in this epoch from 1; it waits for nothing.
    Steps { epoch: u64, done: u64, of: u64 },
    /// The result is in the run folder.
    Done,
    /// It has obeyed.
    Pruned,
    /// With the exit code that a process of its own would have ended with.
    Failed { code: u8, message: String },
}

/// What [`Worker::listen`] received.
pub enum Heard {
    Report(Report),
    Nothing,
    /// It is dead, or about to be.
    End,
}

/// A worker's handle. It ends when this is dropped: after its trial is saved, which is waited for.
pub struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    reports: Receiver<Report>,
    errors: Option<JoinHandle<String>>,
}

impl Worker {
    pub fn start() -> Result<Self> {
        let program = std::env::current_exe().context("finding the program itself")?;
        let mut command = Command::new(program);
        command.arg(COMMAND).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"].iter().all(|name| std::env::var_os(name).is_none()) {
            // libgomp's threads spin for milliseconds before they sleep: beside other workers, and whatever
            // else runs, a step of several threads could take ten times as long.
            command.env("GOMP_SPINCOUNT", "10000");
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => fail(ExitCode::Memory, format!("starting a worker: {REFUSED}")),
            _ => anyhow::Error::new(error).context("starting a worker"),
        })?;
        let (sender, reports) = channel();
        if let Some(stdout) = child.stdout.take() {
            spawn("reports", move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    // Whatever else a library prints is no report.
                    if let Ok(report) = serde_json::from_str(&line)
                        && sender.send(report).is_err()
                    {
                        break;
                    }
                }
            })?;
        }
        let errors = child.stderr.take();
        let errors = errors.map(|mut stderr| spawn("errors", move || last_of(&mut stderr))).transpose()?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, reports, errors })
    }

    /// Hands it a trial. One that has died meanwhile shows when it is listened to.
    pub fn ask(&mut self, request: &Request) -> Result<()> {
        self.say(serde_json::to_string(request)?);
        Ok(())
    }

    pub fn answer(&mut self, verdict: Verdict) -> Result<()> {
        self.say(serde_json::to_string(&verdict)?);
        Ok(())
    }

    fn say(&mut self, line: String) {
        if let Some(stdin) = &mut self.stdin {
            let _ = stdin.write_all((line + "\n").as_bytes()).and_then(|()| stdin.flush());
        }
    }

    /// Waits for a report, but not for longer than `patience`.
    pub fn listen(&mut self, patience: Duration) -> Heard {
        match self.reports.recv_timeout(patience) {
            Ok(report) => Heard::Report(report),
            Err(RecvTimeoutError::Timeout) => Heard::Nothing,
            Err(RecvTimeoutError::Disconnected) => Heard::End,
        }
    }

    /// Closes its stdin, at which it saves and ends.
    pub fn let_go(&mut self) {
        self.stdin = None;
    }

    /// How it ended, and the last that it said on stderr.
    pub fn end(mut self) -> Result<(ExitStatus, String)> {
        self.let_go();
        let status = self.child.wait().context("waiting for a worker")?;
        let errors = self.errors.take().and_then(|reader| reader.join().ok());
        Ok((status, errors.unwrap_or_default()))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.let_go();
        // Its status is of no use any more.
        let _ = self.child.wait();
    }
}

/// The end of a stream, read as it comes: libtorch may warn at every trial.
fn last_of(stream: &mut impl Read) -> String {
    const KEPT: usize = 1 << 14;
    let (mut kept, mut part) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut part) {
        kept.extend_from_slice(&part[..count]);
        if kept.len() > 2 * KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}
