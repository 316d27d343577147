//! RMSprop (Tieleman and Hinton 2012), centred after Graves 2013, as `torch.optim.RMSprop` writes it.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Argument, GroupTensors, KernelDecay, RefusedWeightDecay, StateTensor, TorchClass, UpdateRule};
use crate::libtorch::optim::{Control, ForeachRmsProp, RmsPropState};
use crate::optim::lambda_gradient::over_root;
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// `torch.optim.RMSprop`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RmsPropSpec {
    /// The learning rate η.
    #[schemars(range(min = 0))]
    pub lr: f64,
    /// Smoothing constant of the mean squared gradient.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub alpha: f64,
    /// Added to the denominator.
    #[schemars(range(min = 0))]
    pub eps: f64,
    /// Momentum factor.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub momentum: f64,
    /// Divide by the standard deviation of the gradient instead of its root mean square.
    pub centered: bool,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub weight_decay: RefusedWeightDecay,
}

impl Default for RmsPropSpec {
    fn default() -> Self {
        Self {
            lr: 1e-2,
            alpha: 0.99,
            eps: 1e-8,
            momentum: 0.0,
            centered: false,
            weight_decay: RefusedWeightDecay,
        }
    }
}

impl UpdateRule for RmsPropSpec {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("lr", self.lr, self.lr >= 0.0, "at least 0")?;
        check("alpha", self.alpha, (0.0..1.0).contains(&self.alpha), "in [0, 1)")?;
        check("eps", self.eps, self.eps >= 0.0, "at least 0")?;
        check("momentum", self.momentum, (0.0..1.0).contains(&self.momentum), "in [0, 1)")
    }

    fn torch_class(&self) -> TorchClass {
        TorchClass { capturable: true, ..TorchClass::named("RMSprop", &["alpha", "centered"]) }
    }

    fn arguments(&self) -> Vec<(&'static str, Argument)> {
        vec![
            ("momentum", Argument::Number(self.momentum)),
            ("alpha", Argument::Number(self.alpha)),
            ("eps", Argument::Number(self.eps)),
            ("centered", Argument::Flag(self.centered)),
        ]
    }

    fn state_spec(&self) -> Vec<StateTensor> {
        let mut slots = vec![StateTensor::step(), StateTensor::zeros("square_avg")];
        if self.momentum > 0.0 {
            slots.push(StateTensor::optional_zeros("momentum_buffer"));
        }
        if self.centered {
            slots.push(StateTensor::optional_zeros("grad_avg"));
        }
        slots
    }

    fn supports_found_inf(&self) -> bool {
        false
    }

    fn update(&self, batch: &GroupTensors, control: &Control, decay: KernelDecay) -> Result<()> {
        let kernel = ForeachRmsProp {
            alpha: self.alpha,
            eps: self.eps,
            weight_decay: decay.l2,
            momentum: self.momentum,
        };
        let with_momentum = usize::from(self.momentum > 0.0);
        let state = RmsPropState {
            steps: batch.slot(0),
            square_avgs: batch.slot(1),
            momentum_buffers: if self.momentum > 0.0 { batch.slot(2) } else { &[] },
            grad_avgs: batch.slot(2 + with_momentum),
        };
        kernel.step(&batch.params, &batch.grads, &state, control)
    }

    /// 1/(r + ε)/(1 − m), r the root mean square (centred: the deviation).
    fn preconditioner(&self, batch: &GroupTensors) -> Result<Option<Vec<Tensor>>> {
        let one = |i: usize| -> Result<Tensor> {
            let square = batch.slot(1)[i];
            let square = match self.centered {
                true => square.f_sub(&batch.slot(2 + usize::from(self.momentum > 0.0))[i].f_square()?)?,
                false => square.shallow_clone(),
            };
            let denominator = square.f_sqrt()?.f_add_scalar(self.eps)?;
            Ok(denominator.f_mul_scalar(1.0 - self.momentum)?.f_reciprocal()?)
        };
        (0..batch.params.len()).map(one).collect::<Result<_>>().map(Some)
    }

    /// −η·[1/d − g·r′/d²] with d = r + ε, r the root mean square (centred: the deviation) and r′ = (1 − α)·(g
    /// − mean)/r.
    fn update_grad_derivative(&self, batch: &GroupTensors, grads: &[Tensor], lr: f64) -> Result<Vec<Tensor>> {
        let means = self.centered.then(|| batch.slot(2 + usize::from(self.momentum > 0.0)));
        let one = |i: usize| -> Result<Tensor> {
            let (g, square) = (&grads[i], batch.slot(1)[i]);
            let (root, around) = match means {
                Some(means) => (square.f_sub(&means[i].f_square()?)?.f_sqrt()?, g.f_sub(means[i])?),
                None => (square.f_sqrt()?, g.shallow_clone()),
            };
            let slope = over_root(&around.f_mul_scalar(1.0 - self.alpha)?, &root)?;
            let denominator = root.f_add_scalar(self.eps)?;
            let through_root = g.f_mul(&slope)?.f_div(&denominator.f_square()?)?;
            Ok(denominator.f_reciprocal()?.f_sub(&through_root)?.f_mul_scalar(-lr)?)
        };
        (0..grads.len()).map(one).collect()
    }
}
