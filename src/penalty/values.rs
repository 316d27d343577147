//! The λs of a penalty group at one step, and what a penalty amounts to.

use std::fmt;

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::form::{Penalty, StepRates};
use super::{FORMS, KEYS, PenaltySpec};
use crate::libtorch::optim as kernels;

/// λ of every form of the table, 0 where it does not act.
#[derive(Clone, Copy)]
pub struct LambdaValues {
    forms: [&'static dyn Penalty; FORMS],
    lambdas: [f64; FORMS],
}

impl LambdaValues {
    /// One form and its λ for each row of the table.
    pub(super) fn new(forms: [&'static dyn Penalty; FORMS], lambdas: [f64; FORMS]) -> Self {
        Self { forms, lambdas }
    }

    /// λ of the form `key`; 0 where it does not act.
    pub fn get(&self, key: &str) -> f64 {
        KEYS.iter().position(|own| *own == key).map_or(0.0, |at| self.lambdas[at])
    }

    /// The same with another λ of the form `key`.
    pub fn with(mut self, key: &str, lambda: f64) -> Self {
        if let Some(at) = KEYS.iter().position(|own| *own == key) {
            self.lambdas[at] = lambda;
        }
        self
    }

    /// The same forms with every λ 0.
    pub fn cleared(self) -> Self {
        Self { lambdas: [0.0; FORMS], ..self }
    }

    /// Sets λ of row `at` of the table.
    pub(super) fn set(&mut self, at: usize, lambda: f64) {
        self.lambdas[at] = lambda;
    }

    /// The forms whose λ is above 0, with their rows in the table.
    pub fn active(
        &self,
    ) -> impl DoubleEndedIterator<Item = (usize, &'static dyn Penalty, f64)> + Clone + use<> {
        let Self { forms, lambdas } = *self;
        (0..FORMS).map(move |at| (at, forms[at], lambdas[at])).filter(|(.., lambda)| *lambda > 0.0)
    }

    /// Whether none is above 0.
    pub fn is_empty(&self) -> bool {
        self.active().next().is_none()
    }

    /// Whether the same forms act, with whatever λs.
    pub fn acts_alike(&self, other: &Self) -> bool {
        let acting = |values: &Self| values.active().map(|(at, form, _)| (at, form.mode()));
        acting(self).eq(acting(other))
    }

    /// The form that is `weight_decay` in `torch.optim`, or comes close to it, with its λ.
    pub fn weight_decay(&self) -> Option<(&'static dyn Penalty, f64)> {
        self.active().find(|(_, form, _)| form.torch().is_some()).map(|(_, form, lambda)| (form, lambda))
    }

    /// The objective's Σ over the forms for `ws`, as a 0-dim float64 tensor on their device; nothing waits for the
    /// device.
    pub fn value(&self, ws: &[&Tensor], peak: f64) -> Result<Tensor> {
        self.value_from(ws, &vec![None; ws.len()], peak)
    }

    /// The same, with the weights that training began with where they are known.
    pub fn value_from(&self, ws: &[&Tensor], initial: &[Option<&Tensor>], peak: f64) -> Result<Tensor> {
        let device = ws.first().map_or(Device::Cpu, |w| w.device());
        let mut total = Tensor::f_zeros([0; 0], (Kind::Double, device))?;
        if ws.is_empty() {
            return Ok(total);
        }
        let rates = StepRates { lr: peak, peak, steady_state: None };
        for (_, form, lambda) in self.active() {
            total = total.f_add(&form.value_from(ws, initial, lambda, &rates)?)?;
        }
        Ok(total)
    }
}

impl Default for LambdaValues {
    fn default() -> Self {
        Self::new(PenaltySpec::default().declared().map(|declared| declared.form), [0.0; FORMS])
    }
}

impl PartialEq for LambdaValues {
    /// Equal λs of forms in equal modes.
    fn eq(&self, other: &Self) -> bool {
        let modes = |values: &Self| values.forms.map(|form| form.mode());
        self.lambdas == other.lambdas && modes(self) == modes(other)
    }
}

impl fmt::Debug for LambdaValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.active().map(|(_, form, lambda)| (form, lambda))).finish()
    }
}

/// ‖w‖₂ over all of `ws`, as a 0-dim float64 tensor on their device; nothing waits for the device.
pub fn norm(ws: &[&Tensor]) -> Result<Tensor> {
    if ws.is_empty() {
        return Ok(Tensor::f_zeros([0; 0], (Kind::Double, Device::Cpu))?);
    }
    Ok(kernels::norms(ws, 2.0, true)?.f_norm()?)
}

/// The share of exact zeros in all of `ws`, in [0, 1], as a 0-dim float64 tensor; nothing waits for the device.
pub fn zeros(ws: &[&Tensor]) -> Result<Tensor> {
    if ws.is_empty() {
        return Ok(Tensor::f_zeros([0; 0], (Kind::Double, Device::Cpu))?);
    }
    let all: usize = ws.iter().map(|w| w.numel()).sum();
    Ok(kernels::zeros(ws)?.f_to_kind(Kind::Double)?.f_div_scalar(all.max(1) as f64)?)
}
