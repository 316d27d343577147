//! A number that a step computes on the device, read only when it is needed.

use tch::{Device, Kind, Tensor};

/// On the CPU it is there at once, and a float64 costs less than an operation of libtorch on one.
pub(super) enum DeferredScalar {
    Here(f64),
    /// 0-dim float64.
    OnDevice(Tensor),
}

impl DeferredScalar {
    pub fn new(value: f64, device: Device) -> Self {
        match device {
            Device::Cpu => Self::Here(value),
            _ => Self::OnDevice(Tensor::full([], value, (Kind::Double, device))),
        }
    }

    /// Of a 0-dim tensor.
    pub fn of(tensor: &Tensor) -> Self {
        match tensor.device() {
            Device::Cpu => Self::Here(tensor.double_value(&[])),
            _ => Self::OnDevice(tensor.detach().to_kind(Kind::Double)),
        }
    }

    /// 0 where the 0-dim tensor `skipped` is above 0.
    pub fn unless(&self, skipped: Option<&Tensor>) -> Self {
        match (self, skipped) {
            (Self::Here(value), None) => Self::Here(*value),
            (Self::Here(value), Some(skipped)) => {
                Self::Here(if skipped.double_value(&[]) > 0.0 { 0.0 } else { *value })
            }
            (Self::OnDevice(number), None) => Self::OnDevice(number.shallow_clone()),
            (Self::OnDevice(number), Some(skipped)) => {
                Self::OnDevice(number.masked_fill(&skipped.gt(0.0), 0.0))
            }
        }
    }

    /// Adds `other`, `times` over.
    pub fn add(&mut self, other: &Self, times: f64) {
        match (self, other) {
            (Self::Here(sum), other) => *sum += other.read() * times,
            (Self::OnDevice(sum), Self::Here(value)) => *sum += value * times,
            (Self::OnDevice(sum), Self::OnDevice(number)) => *sum += number * times,
        }
    }

    /// Waits for the device.
    pub fn read(&self) -> f64 {
        match self {
            Self::Here(value) => *value,
            Self::OnDevice(number) => number.double_value(&[]),
        }
    }
}
