//! `train --devices`: the processes of a job on one machine, started and watched by one more, as torchrun does it.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::libtorch::device::DeviceSpec;
use crate::libtorch::distributed::{Store, StoreOptions};
use crate::util::console::print_err;
use crate::util::exit_code::ExitCode;
use crate::util::signals::Stop;

/// How long the others may take to end by themselves after one has failed.
const GRACE: Duration = Duration::from_secs(10);

/// Runs this program with `args` once for each of `devices`. The exit code is that of the rank that failed first, which
/// has said why.
pub fn launch(devices: &[DeviceSpec], args: &[String]) -> Result<u8> {
    let stop = Stop::on_signals()?;
    let options = StoreOptions {
        host: "127.0.0.1",
        port: 0,
        serves: true,
        workers: None,
        timeout_ms: 30_000,
        prefix: "",
    };
    let store = Store::open(options).context("the store of the job")?;
    let program = std::env::current_exe().context("the path of this program")?;
    let (size, port) = (devices.len().to_string(), store.port().to_string());
    let start = |rank: usize| {
        let rank = rank.to_string();
        let variables = [
            ("RANK", rank.as_str()),
            ("LOCAL_RANK", &rank),
            ("WORLD_SIZE", &size),
            ("LOCAL_WORLD_SIZE", &size),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", &port),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ];
        // A process group of its own: Ctrl-C reaches it through this process alone, once.
        let mut command = Command::new(&program);
        command.args(args).envs(variables).stdin(Stdio::null()).process_group(0);
        command.args(["--device", if devices[0] == DeviceSpec::Cpu { "cpu" } else { "cuda" }]);
        if devices[0] != DeviceSpec::Cpu {
            command.env("CUDA_VISIBLE_DEVICES", visible(devices));
        }
        command.spawn().with_context(|| format!("starting rank {rank}"))
    };
    let mut ranks = Ranks(Vec::new());
    for rank in 0..devices.len() {
        ranks.0.push(start(rank)?);
    }
    ranks.watch(&stop)
}

/// The GPUs' numbers, as CUDA_VISIBLE_DEVICES takes them.
fn visible(devices: &[DeviceSpec]) -> String {
    let number = |device: &DeviceSpec| match device {
        DeviceSpec::Cuda(index) => index.to_string(),
        _ => "0".into(),
    };
    devices.iter().map(number).collect::<Vec<_>>().join(",")
}

/// The processes; those that still run are killed in the end.
struct Ranks(Vec<Child>);

impl Ranks {
    fn watch(&mut self, stop: &Stop) -> Result<u8> {
        let mut failed: Option<(i32, Instant)> = None;
        let mut is_forwarded = false;
        loop {
            let mut running = 0;
            for (rank, child) in self.0.iter_mut().enumerate() {
                match child.try_wait().with_context(|| format!("waiting for rank {rank}"))? {
                    None => running += 1,
                    Some(status) if !status.success() => {
                        let code = status.code().unwrap_or(ExitCode::Distributed as i32);
                        if let (Some(signal), None) = (status.signal(), &failed) {
                            print_err!("error: rank {rank} was ended by signal {signal}");
                        }
                        // A rank that only lost its partner is not the cause.
                        if failed.as_ref().is_none_or(|(first, _)| *first == ExitCode::Distributed as i32) {
                            let since = failed.map_or_else(Instant::now, |(_, since)| since);
                            failed = Some((code, since));
                        }
                    }
                    Some(_) => {}
                }
            }
            if running == 0 {
                break;
            }
            if stop.is_requested() && !is_forwarded {
                is_forwarded = true;
                self.signal(Signal::TERM);
            }
            if failed.is_some_and(|(_, since)| since.elapsed() > GRACE) {
                self.signal(Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(failed.map_or(0, |(code, _)| code as u8))
    }

    fn signal(&self, signal: Signal) {
        for child in &self.0 {
            if let Some(pid) = Pid::from_raw(child.id() as i32) {
                // One that has ended needs none.
                let _ = kill_process(pid, signal);
            }
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
