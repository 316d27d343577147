//! Muon: momentum, orthogonalised (Jordan et al. 2024), as `torch.optim.Muon` writes it, for weights as matrices; AdamW
//! for the rest.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use wildmatch::WildMatch;

use super::{
    AdamSpec, Argument, GroupTensors, KernelDecay, RefusedWeightDecay, StateTensor, TorchClass, UpdateRule,
};
use crate::libtorch::optim::{Control, add_scaled, addmm};
use crate::penalty::TorchDecay;
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// `torch.optim.Muon` for the tensors of two dimensions and more, convolutions as `[out, the rest]`; AdamW for all others
/// and for those that `adamw_for` names.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MuonSpec {
    /// The learning rate η of the matrices.
    #[schemars(range(min = 0))]
    pub lr: f64,
    /// Momentum factor of the running mean.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub momentum: f64,
    /// Nesterov momentum.
    pub nesterov: bool,
    /// Coefficients of the Newton–Schulz iteration.
    pub ns_coefficients: (f64, f64, f64),
    /// The least norm that a momentum is divided by.
    #[schemars(range(min = 0))]
    pub eps: f64,
    /// Iterations of Newton–Schulz.
    #[schemars(range(min = 1, max = 99))]
    pub ns_steps: u32,
    /// How η depends on a matrix's shape.
    pub adjust_lr_fn: AdjustLr,
    /// Names of further tensors for AdamW, such as `fc.*`: the authors keep the first and the last layer out of Muon.
    /// `*` is any text, `?` any one character.
    pub adamw_for: Vec<String>,
    /// AdamW for the rest; the schedule scales its rate as that of the matrices.
    pub adamw: AdamSpec,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub weight_decay: RefusedWeightDecay,
}

/// How η depends on the shape `[A, B]` of a matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdjustLr {
    /// η·√max(1, A/B).
    #[default]
    Original,
    /// η·0.2·√max(A, B): steps as large as AdamW's (Liu et al. 2025).
    MatchRmsAdamw,
}

impl Default for MuonSpec {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            momentum: 0.95,
            nesterov: true,
            ns_coefficients: (3.4445, -4.7750, 2.0315),
            eps: 1e-7,
            ns_steps: 5,
            adjust_lr_fn: AdjustLr::Original,
            adamw_for: Vec::new(),
            adamw: AdamSpec::default(),
            weight_decay: RefusedWeightDecay,
        }
    }
}

/// The part of the parameters that AdamW moves.
const ADAMW: usize = 1;

impl MuonSpec {
    /// About UVᵀ of G = USVᵀ, by Newton–Schulz in bfloat16.
    fn orthogonalized(&self, matrix: &Tensor) -> Result<Tensor> {
        let (a, b, c) = self.ns_coefficients;
        let is_tall = matrix.size()[0] > matrix.size()[1];
        let low = matrix.f_to_kind(Kind::BFloat16)?;
        let low = if is_tall { low.f_tr()? } else { low };
        let mut x = low.f_div(&low.f_norm()?.f_clamp_min(self.eps)?)?;
        for _ in 0..self.ns_steps {
            let gram = x.f_matmul(&x.f_tr()?)?;
            let update = addmm(&gram, &gram, &gram, b, c)?;
            x = addmm(&x, &update, &x, a, 1.0)?;
        }
        Ok(if is_tall { x.f_tr()? } else { x })
    }

    fn adjusted(&self, rows: f64, columns: f64) -> f64 {
        match self.adjust_lr_fn {
            AdjustLr::Original => (rows / columns).max(1.0).sqrt(),
            AdjustLr::MatchRmsAdamw => 0.2 * rows.max(columns).sqrt(),
        }
    }
}

impl UpdateRule for MuonSpec {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("lr", self.lr, self.lr >= 0.0, "at least 0")?;
        check("momentum", self.momentum, (0.0..1.0).contains(&self.momentum), "in [0, 1)")?;
        check("eps", self.eps, self.eps >= 0.0, "at least 0")?;
        check("ns_steps", f64::from(self.ns_steps), (1..100).contains(&self.ns_steps), "in 1..99")?;
        self.adamw.validate().map_err(|invalid| invalid.under("adamw"))
    }

    fn torch_class(&self) -> TorchClass {
        TorchClass { is_in_torch: false, ..TorchClass::named("Muon", &[]) }
    }

    fn arguments(&self) -> Vec<(&'static str, Argument)> {
        vec![("momentum", Argument::Number(self.momentum)), ("nesterov", Argument::Flag(self.nesterov))]
    }

    fn state_spec(&self) -> Vec<StateTensor> {
        vec![StateTensor::zeros("momentum_buffer")]
    }

    fn part(&self, name: &str, param: &Tensor) -> usize {
        let is_named = self.adamw_for.iter().any(|pattern| WildMatch::new(pattern).matches(name));
        if param.dim() < 2 || is_named { ADAMW } else { 0 }
    }

    fn has_parts(&self) -> bool {
        true
    }

    fn part_lr(&self, part: usize) -> f64 {
        if part == ADAMW && self.lr > 0.0 { self.adamw.lr / self.lr } else { 1.0 }
    }

    fn part_state_spec(&self, part: usize) -> Vec<StateTensor> {
        if part == ADAMW { self.adamw.state_spec() } else { self.state_spec() }
    }

    fn fuses(&self, _: TorchDecay) -> bool {
        false
    }

    fn supports_found_inf(&self) -> bool {
        false
    }

    fn graph_obstacle(&self) -> Option<&'static str> {
        Some("muon's two parts have a learning rate each")
    }

    fn indifferentiable(&self) -> Option<&'static str> {
        Some("muon moves a matrix as a whole")
    }

    fn update(&self, batch: &GroupTensors, control: &Control, decay: KernelDecay) -> Result<()> {
        if batch.part == ADAMW {
            return self.adamw.update(batch, control, decay);
        }
        for (i, (w, g)) in batch.params.iter().zip(&batch.grads).enumerate() {
            let mut buffer = batch.slot(0)[i].shallow_clone();
            let _ = buffer.f_lerp_(g, 1.0 - self.momentum)?;
            let update = if self.nesterov { g.f_lerp(&buffer, self.momentum)? } else { buffer };
            let matrix = update.f_reshape([update.size()[0], -1])?;
            let (rows, columns) = (matrix.size()[0] as f64, matrix.size()[1] as f64);
            let step = self.orthogonalized(&matrix)?.f_reshape(w.size())?;
            add_scaled(&[w], &[&step], -control.lr * self.adjusted(rows, columns))?;
        }
        Ok(())
    }

    fn update_grad_derivative(&self, _: &GroupTensors, grads: &[Tensor], _: f64) -> Result<Vec<Tensor>> {
        grads.iter().map(|g| Ok(g.f_zeros_like()?)).collect()
    }
}
