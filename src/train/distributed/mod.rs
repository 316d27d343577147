//! Data-parallel training: several processes, ranks, that share each step (torch.distributed's process group).
//!
//! Gradients and numbers go by gloo. What is decided by one rank, or has to succeed on all, goes by the job's store,
//! where a rank that fails leaves its error: the others then end too, with an error that names it.

mod env;
mod launcher;

use std::cell::{Cell, OnceCell};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use crate::libtorch::device::{DeviceSpec, cores};
use crate::libtorch::distributed::{Gloo, Reducer, Store, StoreOptions, Work};
use crate::util::exit_code::{self, ExitCode, fail};

pub use env::DistributedEnv;
pub use launcher::launch;

/// How long ranks wait for each other, as in PyTorch, where TIKHONOV_DIST_TIMEOUT does not say other seconds.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// How long a rank whose partners are lost looks for the reason.
const INQUEST: Duration = Duration::from_secs(2);
/// The key under which the first rank that fails says why.
const FAILURE: &str = "failure";

/// This process among those of the job.
pub struct ProcessGroup {
    env: DistributedEnv,
    timeout: Duration,
    store: Store,
    gloo: OnceCell<Gloo>,
    /// Decisions so far: each has a key of its own.
    decisions: Cell<u64>,
}

/// What a failed rank leaves for the others.
#[derive(Debug, Serialize, Deserialize)]
struct FailedRank {
    rank: usize,
    code: u8,
    message: String,
}

impl ProcessGroup {
    /// Joins the job that the environment describes; None where there is none. Exit 8 where the others do not come.
    pub fn from_env() -> Result<Option<Self>> {
        DistributedEnv::read()?.map(Self::join).transpose()
    }

    fn join(env: DistributedEnv) -> Result<Self> {
        let timeout = match std::env::var("TIKHONOV_DIST_TIMEOUT") {
            Ok(text) => {
                let seconds = text.parse().ok().filter(|seconds| *seconds > 0).ok_or_else(|| {
                    let message = format!("TIKHONOV_DIST_TIMEOUT is `{text}`: it takes whole seconds");
                    fail(ExitCode::Usage, message)
                })?;
                Duration::from_secs(seconds)
            }
            Err(_) => TIMEOUT,
        };
        let prefix = format!("tikhonov/{}", env.restarts);
        let options = StoreOptions {
            host: &env.master_addr,
            port: env.master_port,
            serves: env.rank == 0 && !env.agent_store,
            // The agent's store counts the agents too.
            workers: (!env.agent_store).then_some(env.world_size),
            timeout_ms: timeout.as_millis() as u64,
            prefix: &prefix,
        };
        let store = Store::open(options).map_err(|error| {
            let text = exit_code::plain(&format!("{error:#}"));
            let joined = text.find("clients joined").and_then(|end| text[..end].split_whitespace().last());
            let came = joined.map_or_else(String::new, |came| format!(" ({came} ranks came)"));
            let message = format!(
                "rank {} of {} could not join the job at {}:{} within {} s{came}: {text}",
                env.rank,
                env.world_size,
                env.master_addr,
                env.master_port,
                timeout.as_secs()
            );
            fail(ExitCode::Distributed, message)
        })?;
        Ok(Self { env, timeout, store, gloo: OnceCell::new(), decisions: Cell::new(0) })
    }

    pub fn env(&self) -> &DistributedEnv {
        &self.env
    }

    pub fn rank(&self) -> usize {
        self.env.rank
    }

    pub fn size(&self) -> usize {
        self.env.world_size
    }

    /// Whether this is the rank that writes and judges.
    pub fn is_first(&self) -> bool {
        self.env.rank == 0
    }

    /// Shares the cores of the machine between its ranks, where neither the config nor the environment says how many
    /// threads each has; torchrun's OMP_NUM_THREADS=1 is its own default.
    pub fn settle_threads(&self, threads: &mut Option<usize>) {
        let said =
            std::env::var("OMP_NUM_THREADS").ok().filter(|said| !(said == "1" && self.env.is_torchrun));
        if threads.is_none() && said.is_none() {
            *threads = Some((cores() / self.env.local_world_size).max(1));
        }
    }

    /// This rank's device: of several GPUs the one of its number on this machine. Exit 2 where there are too few.
    pub fn device(&self, spec: DeviceSpec) -> Result<Device> {
        match spec.resolve()? {
            Device::Cuda(_) => Err(fail(
                ExitCode::Usage,
                "several processes share a run on the CPU only (`--device cpu`): NCCL, which GPUs need, is not linked",
            )),
            device => Ok(device),
        }
    }

    fn decision(&self) -> String {
        self.decisions.set(self.decisions.get() + 1);
        format!("decision/{}", self.decisions.get())
    }

    /// Has rank 0 run `f`, and gives its value to all ranks; all of them must call this. Where it fails on rank 0
    /// the others fail with the same exit code.
    pub fn first<T: Serialize + DeserializeOwned>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        /// A value, or an error that all ranks share.
        #[derive(Serialize, Deserialize)]
        enum Decided<T> {
            Value(T),
            Error(FailedRank),
        }
        let key = self.decision();
        if self.is_first() {
            let value = f();
            let decided = match &value {
                Ok(value) => serde_json::to_vec(&Decided::Value(value))?,
                Err(error) => serde_json::to_vec(&Decided::<()>::Error(self.failed(error)))?,
            };
            self.set(&key, &decided)?;
            return value;
        }
        match serde_json::from_slice(&self.wait(&key, 0)?)? {
            Decided::Value(value) => Ok(value),
            Decided::Error(FailedRank { rank, code, message }) => {
                let exit = ExitCode::from_code(Some(code.into())).unwrap_or(ExitCode::Distributed);
                Err(fail(exit, format!("rank {rank}: {message}")))
            }
        }
    }

    /// Goes on where `outcome` is good on all ranks; all of them must call this.
    pub fn agree<T>(&self, outcome: Result<T>) -> Result<T> {
        let key = self.decision();
        let value = outcome?;
        self.set(&format!("{key}/{}", self.rank()), &[])?;
        for rank in 0..self.size() {
            self.wait(&format!("{key}/{rank}"), rank)?;
        }
        Ok(value)
    }

    /// Compares what must be the same on all ranks with rank 0's; `differs(rank 0's, own)` names differences.
    pub fn same(&self, own: Value, differs: impl FnOnce(&Value, &Value) -> Vec<String>) -> Result<()> {
        let first = self.first(|| Ok(own.clone()))?;
        let differences = differs(&first, &own);
        let outcome = match differences.is_empty() {
            true => Ok(()),
            false => {
                let message =
                    format!("rank {} is not as rank 0:\n  {}", self.rank(), differences.join("\n  "));
                Err(fail(ExitCode::Distributed, message))
            }
        };
        self.agree(outcome)
    }

    /// Makes the connections between all ranks; all of them must call this.
    pub fn connect(&self) -> Result<()> {
        let interface = std::env::var("GLOO_SOCKET_IFNAME").ok();
        let gloo = Gloo::join(
            &self.store,
            self.rank(),
            self.size(),
            self.timeout.as_millis() as u64,
            interface.as_deref(),
        )
        .context("connecting the ranks by gloo (GLOO_SOCKET_IFNAME chooses the network)")?;
        self.gloo.set(gloo).map_err(|_| anyhow!("the ranks are connected already"))
    }

    fn gloo(&self) -> Result<&Gloo> {
        self.gloo.get().context("the ranks are not connected yet")
    }

    /// Starts to add up `tensor`, of the CPU, over all ranks.
    pub fn start_sum(&self, tensor: &Tensor) -> Result<Work> {
        self.gloo()?.all_reduce(tensor)
    }

    /// Σ over all ranks, in place. A tensor of another device is copied here and back.
    pub fn sum(&self, tensor: &Tensor) -> Result<()> {
        let here = tensor.detach().to_device(Device::Cpu);
        self.start_sum(&here)?.wait()?;
        if tensor.device() != Device::Cpu {
            tensor.detach().f_copy_(&here)?;
        }
        Ok(())
    }

    /// The mean of a number over all ranks.
    pub fn mean(&self, value: f64) -> Result<f64> {
        let sum = Tensor::from_slice(&[value]);
        self.start_sum(&sum)?.wait()?;
        Ok(sum.double_value(&[0]) / self.size() as f64)
    }

    /// Overwrites the tensors with those of rank 0.
    pub fn broadcast(&self, tensors: &[&Tensor]) -> Result<()> {
        self.gloo()?.broadcast(tensors)
    }

    /// Averages the gradients of `params` over all ranks in the backward passes that it is prepared for.
    pub fn reducer(&self, params: &[&Tensor], bucket_bytes: i64, bf16: bool) -> Result<Reducer> {
        Reducer::new(self.gloo()?, params, bucket_bytes, bf16)
    }

    fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        self.store.set(key, value).map_err(|error| self.storeless(error))
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.store.get(key).map_err(|error| self.storeless(error))
    }

    fn storeless(&self, error: anyhow::Error) -> anyhow::Error {
        let text = exit_code::plain(&format!("{error:#}"));
        let host = if self.env.agent_store { "the launcher" } else { "rank 0" };
        let message = format!(
            "{host}, which holds the store of the job at {}:{}, does not answer: {text}",
            self.env.master_addr, self.env.master_port
        );
        fail(ExitCode::Distributed, message)
    }

    /// The value of a key that the rank `of` sets. Exit 8 where a rank has failed, or the time is over.
    fn wait(&self, key: &str, of: usize) -> Result<Vec<u8>> {
        let began = Instant::now();
        let mut pause = Duration::from_micros(100);
        loop {
            if let Some(value) = self.get(key)? {
                return Ok(value);
            }
            if let Some(failed) = self.failure()? {
                return Err(failed);
            }
            if began.elapsed() > self.timeout {
                let seconds = self.timeout.as_secs();
                let message = format!("no answer from rank {of} within {seconds} s (TIKHONOV_DIST_TIMEOUT)");
                return Err(fail(ExitCode::Distributed, message));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// The error of another rank that has failed, as this one reports it.
    fn failure(&self) -> Result<Option<anyhow::Error>> {
        let Some(bytes) = self.get(FAILURE)? else { return Ok(None) };
        let FailedRank { rank, message, .. } = serde_json::from_slice(&bytes)?;
        Ok((rank != self.rank())
            .then(|| fail(ExitCode::Distributed, format!("rank {rank} failed, so this one ends: {message}"))))
    }

    fn failed(&self, error: &anyhow::Error) -> FailedRank {
        FailedRank { rank: self.rank(), code: exit_code::code(error), message: format!("{error:#}") }
    }

    /// The error with which this rank ends: its own, which the others then learn of, or where the others are lost,
    /// which of them and why. torchrun's error file says the same.
    pub fn last_words(&self, error: anyhow::Error) -> anyhow::Error {
        let says_why = [ExitCode::Interrupted, ExitCode::Distributed].map(|exit| exit as u8);
        let error = match says_why.contains(&exit_code::code(&error)) || !is_of_partners(&error) {
            true => error,
            false => self.inquest(error),
        };
        if exit_code::code(&error) != ExitCode::Interrupted as u8
            && self.store.claim("failure/claim").unwrap_or(false)
            && let Ok(bytes) = serde_json::to_vec(&self.failed(&error))
        {
            // Where the store is gone too the others find out by themselves.
            let _ = self.store.set(FAILURE, &bytes);
        }
        write_error_file(&error);
        error
    }

    /// Which partners are lost: those that have neither said why they ended nor answer now.
    fn inquest(&self, error: anyhow::Error) -> anyhow::Error {
        let text = exit_code::plain(&format!("{error:#}"));
        let began = Instant::now();
        if let Err(gone) = self.store.set(&format!("alive/{}", self.rank()), &[]) {
            return self.storeless(gone);
        }
        let mut missing: Vec<usize> = (0..self.size()).collect();
        while began.elapsed() < INQUEST && !missing.is_empty() {
            match self.failure() {
                Ok(Some(failed)) => return failed,
                Err(gone) => return gone,
                Ok(None) => {}
            }
            missing.retain(|rank| !matches!(self.store.get(&format!("alive/{rank}")), Ok(Some(_))));
            std::thread::sleep(Duration::from_millis(50));
        }
        let message = match missing.as_slice() {
            [] => format!("the connection between the ranks broke: {text}"),
            [rank] => format!("rank {rank} is lost: it was killed, hangs, or its machine is gone ({text})"),
            ranks => {
                let ranks: Vec<_> = ranks.iter().map(usize::to_string).collect();
                format!(
                    "ranks {} are lost: they were killed, hang, or their machines are gone ({text})",
                    ranks.join(", ")
                )
            }
        };
        fail(ExitCode::Distributed, message)
    }
}

/// Whether a collective failed, as gloo, c10d or the store report it.
fn is_of_partners(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    [
        "gloo",
        "onnection closed by peer",
        "onnection reset by peer",
        "c10d",
        "NCCL",
        "roken pipe",
        "Timed out waiting",
    ]
    .iter()
    .any(|mark| text.contains(mark))
}

/// What torchrun shows as the cause: it takes the earliest of the processes' files.
fn write_error_file(error: &anyhow::Error) {
    let Ok(path) = std::env::var("TORCHELASTIC_ERROR_FILE") else { return };
    let seconds = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let extra = json!({"py_callstack": "", "timestamp": seconds.to_string()});
    let text = json!({"message": {"message": format!("{error:#}"), "extraInfo": extra}});
    // It is for display alone.
    let _ = std::fs::write(path, text.to_string());
}
