//! Dynamic loss scaling for float16 gradients (Micikevicius et al. 2018), as `torch.amp.GradScaler` does it.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::libtorch::optim as kernels;
use crate::libtorch::stream::AsyncScalar;

/// GradScaler's defaults.
const INITIAL: f64 = 65536.0;
const GROWTH: f64 = 2.0;
const BACKOFF: f64 = 0.5;
const INTERVAL: i64 = 2000;

/// The smallest float16: below it no gradient is left that the scale could save.
const NOTHING: f64 = 1.0 / (1 << 24) as f64;

/// What a checkpoint keeps of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScalingState {
    pub scale: f64,
    /// Steps since the scale last changed.
    pub growth_tracker: i64,
}

/// The factor that keeps float16 gradients away from 0: doubled after 2000 steps in a row that were made,
/// halved by one that overflowed, which is skipped. On the device throughout.
pub struct GradScaler {
    /// 0-dim float32.
    scale: Tensor,
    /// 0-dim int32.
    growth_tracker: Tensor,
    /// Whether the last step was skipped, where that is not looked at yet.
    unread: Option<AsyncScalar>,
}

impl GradScaler {
    /// As saved, else as GradScaler starts.
    pub fn new(saved: Option<ScalingState>, device: Device) -> Result<Self> {
        let ScalingState { scale, growth_tracker } =
            saved.unwrap_or(ScalingState { scale: INITIAL, growth_tracker: 0 });
        Ok(Self {
            scale: Tensor::f_full([0i64; 0], scale, (Kind::Float, device))?,
            growth_tracker: Tensor::f_full([0i64; 0], growth_tracker, (Kind::Int, device))?,
            unread: None,
        })
    }

    /// The loss to call `backward` on.
    pub fn scaled(&self, loss: &Tensor) -> Tensor {
        loss * &self.scale
    }

    /// Brings the gradients back to their own size. 0-dim float32: 1 where one of them is NaN or infinite,
    /// else 0.
    pub(super) fn unscale(&self, grads: &[&Tensor]) -> Result<Tensor> {
        let found_inf = self.scale.f_zeros_like()?;
        // By way of float64, as GradScaler does it.
        let inverse = self.scale.f_to_kind(Kind::Double)?.f_reciprocal()?.f_to_kind(Kind::Float)?;
        kernels::unscale(grads, &found_inf, &inverse)?;
        Ok(found_inf)
    }

    /// Moves the scale after the step that `found_inf` was found in. Nothing waits for the device.
    pub fn update(&mut self, found_inf: &Tensor) -> Result<()> {
        self.adapt(found_inf)?;
        self.observe(found_inf)
    }

    /// Moves the scale alone, which can be recorded.
    pub fn adapt(&self, found_inf: &Tensor) -> Result<()> {
        let mut scale = self.scale.shallow_clone();
        let tracker = &self.growth_tracker;
        let _ = scale.f_internal_amp_update_scale_(tracker, found_inf, GROWTH, BACKOFF, INTERVAL)?;
        Ok(())
    }

    /// Takes note of a step whose scale was moved, for [`was_skipped`](Self::was_skipped).
    pub fn observe(&mut self, found_inf: &Tensor) -> Result<()> {
        self.unread = Some(AsyncScalar::start(found_inf)?);
        Ok(())
    }

    /// Whether the step of the last [`update`](Self::update) was skipped; false when asked again. Waits for
    /// that step's gradients, not for what the device was asked for since.
    pub fn was_skipped(&mut self) -> Result<bool> {
        self.unread.take().map_or(Ok(false), |unread| Ok(unread.value()? != 0.0))
    }

    /// Waits for the device.
    pub fn state(&self) -> Result<ScalingState> {
        let growth_tracker = self.growth_tracker.f_int64_value(&[])?;
        Ok(ScalingState { scale: self.scale.f_double_value(&[])?, growth_tracker })
    }
}

impl ScalingState {
    /// Whether the scale has fallen so far that no gradient is left.
    pub fn is_exhausted(&self) -> bool {
        self.scale < NOTHING
    }
}
