//! `train.distributed`: how the processes of a job share gradients.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the processes of a job share gradients; the names are those of PyTorch's DistributedDataParallel. Without effect
/// on one process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DistributedSpec {
    /// Megabytes of gradients that cross the network in one piece, while the backward pass computes others.
    #[schemars(range(min = 1))]
    pub bucket_cap_mb: u32,
    /// What is done to gradients on their way.
    #[serde(skip_serializing_if = "CommHook::is_none")]
    pub comm_hook: CommHook,
}

impl Default for DistributedSpec {
    fn default() -> Self {
        Self { bucket_cap_mb: 25, comm_hook: CommHook::None }
    }
}

impl DistributedSpec {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `torch.distributed.algorithms.ddp_comm_hooks`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommHook {
    /// They cross in their own precision.
    #[default]
    None,
    /// They cross as bfloat16: half the bytes, eight bits of each number.
    Bf16Compress,
}

impl CommHook {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}
