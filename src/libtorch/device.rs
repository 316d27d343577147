//! Where tensors live (`cpu`, `cuda`, `cuda:N`, `auto`), the seed and the number of threads.

use std::str::FromStr;
use std::sync::Once;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::libtorch::{self, cuda, or_panic, stream};
use crate::util::console::print_err;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::threads::{REFUSED, available};

/// `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^(auto|cpu|cuda(:[0-9]+)?)$"))]
pub enum DeviceSpec {
    Cpu,
    Cuda(usize),
    /// The first GPU if there is one, else the CPU.
    #[default]
    Auto,
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "auto" => Ok(Self::Auto),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("`{text}` is no device: expected cpu, cuda, cuda:N or auto")),
        }
    }
}

impl TryFrom<String> for DeviceSpec {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceSpec> for String {
    fn from(spec: DeviceSpec) -> String {
        match spec {
            DeviceSpec::Cpu => "cpu".into(),
            DeviceSpec::Cuda(index) => format!("cuda:{index}"),
            DeviceSpec::Auto => "auto".into(),
        }
    }
}

impl DeviceSpec {
    /// Loads libtorch's CUDA libraries, where they will be wanted: for what computes before it needs the device, because
    /// libtorch looks for them once. That they are missing is for [`resolve`](Self::resolve) to report.
    pub fn prepare(self) {
        let is_wanted = match self {
            Self::Cpu => false,
            Self::Auto => cuda::has_driver(),
            Self::Cuda(_) => true,
        };
        if is_wanted {
            let _ = cuda::load();
        }
    }

    /// The device itself. A GPU that was asked for and is not there is an error; where `auto` finds a driver and no GPU
    /// that can be used, a line on stderr says why.
    pub fn resolve(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if !cuda::has_driver() => Ok(Device::Cpu),
            Self::Auto => {
                let reason = match cuda::count() {
                    Ok(0) => "CUDA has no device".to_owned(),
                    Ok(_) => return Ok(Device::Cuda(0)),
                    Err(reason) => reason,
                };
                static TOLD: Once = Once::new();
                TOLD.call_once(|| {
                    print_err!(
                        "note: `device: auto` takes the CPU: NVIDIA's driver is installed, and no GPU can be used: {reason}"
                    );
                });
                Ok(Device::Cpu)
            }
            Self::Cuda(index) => {
                let count = cuda::count().map_err(|reason| {
                    let message = format!("device cuda:{index} cannot be used: {reason}; use --device cpu");
                    fail(ExitCode::Usage, message)
                })?;
                if index >= count {
                    let message =
                        format!("device cuda:{index} does not exist: this machine has {count} GPU(s)");
                    return Err(fail(ExitCode::Usage, message));
                }
                Ok(Device::Cuda(index))
            }
        }
    }
}

/// Seeds every generator of libtorch, CPU and CUDA.
pub fn seed(seed: u64) {
    tch::manual_seed(seed as i64);
}

/// Lets cuDNN try its algorithms on each new shape of a convolution and keep the fastest. No effect on the
/// CPU.
pub fn autotune(on: bool) {
    tch::Cuda::cudnn_set_benchmark(on);
}

/// A small CPU tensor on `device`; a copy to a GPU is not waited for. Panics as tch does.
pub fn upload(tensor: &Tensor, device: Device) -> Tensor {
    or_panic(stream::upload(tensor, device))
}

/// Sets the number of threads that one libtorch operation uses on the CPU.
pub fn set_threads(threads: usize) {
    libtorch::set_threads(threads);
}

/// Sets the number of threads, where one is given, and no more than the system makes: where they get fewer,
/// libgomp ends the process and libtorch's pool, which a new number starts, waits for ever.
pub fn settle_threads(threads: Option<usize>) {
    let now = tch::get_num_threads().max(1) as usize;
    let wanted = threads.unwrap_or(now);
    // Libgomp's and the pool's; and one to be told by that those of loaders and checkpoints, which can be
    // done without, are refused.
    let needed = if wanted == now { wanted.max(2) } else { 2 * wanted };
    let made = available(needed);
    if made < needed {
        print_err!("{REFUSED}; going on with those that are there");
        set_threads((made / 2).clamp(1, wanted));
    } else if threads.is_some() {
        set_threads(wanted);
    }
}

/// How many threads can run at once.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
