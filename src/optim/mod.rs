//! Optimisers on libtorch's fused and foreach kernels, with the penalty applied exactly where
//! [`crate::penalty`] says, and their state as named tensors.
//!
//! An optimiser is a file that holds its spec and implements [`UpdateRule`], and a line in the table below.

mod adagrad;
mod adam;
mod adamw;
mod clip;
mod ema;
mod graph_scalars;
mod group_step;
mod lambda_gradient;
mod lion;
mod moments;
mod muon;
mod nadam;
mod optimizer;
mod radam;
mod rmsprop;
mod sam;
mod scaling;
mod schedule_free;
mod sgd;
mod state;
mod update_rule;

use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error};
use tch::Tensor;

use crate::penalty::{Declared, PenaltySpec, TorchDecay};
use crate::util::tagged_enum::{self, Tagged};
use crate::util::yaml::Invalid;

pub use adagrad::AdagradSpec;
pub use adam::AdamSpec;
pub use adamw::AdamWSpec;
pub use clip::Clip;
pub use ema::{Ema, EmaSpec, keep_zeros};
pub use graph_scalars::{GraphScalars, StepNumbers};
pub use lambda_gradient::LambdaGradient;
pub use lion::LionSpec;
pub use muon::{AdjustLr, MuonSpec};
pub use nadam::NAdamSpec;
pub use optimizer::{Optimizer, StepOptions, StepOutput};
pub use radam::RAdamSpec;
pub use rmsprop::RmsPropSpec;
pub use sam::SamSpec;
pub use scaling::{GradScaler, ScalingState};
pub use schedule_free::ScheduleFreeSpec;
pub use sgd::SgdSpec;
use state::refuse;
pub use update_rule::{
    Argument, GroupTensors, KernelDecay, RefusedWeightDecay, StateTensor, TorchClass, UpdateRule,
};

/// The table of optimisers: `name: Variant(Spec);`.
macro_rules! optimizers {
    ($($(#[$doc:meta])* $name:ident: $variant:ident($spec:ty);)*) => {
        /// `optimizer: adam`, or `optimizer: {adam: {lr: 3e-4}}`. Names and defaults are
        /// those of `torch.optim`, except that the penalty is declared in `penalty`, never here.
        #[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum OptimizerSpec {
            $($(#[$doc])* $variant($spec),)*
        }

        impl OptimizerSpec {
            /// Its name in YAML.
            fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => stringify!($name),)*
                }
            }

            fn rule(&self) -> &dyn UpdateRule {
                match self {
                    $(Self::$variant(spec) => spec,)*
                }
            }

            fn boxed_rule(&self) -> Box<dyn UpdateRule> {
                match self {
                    $(Self::$variant(spec) => Box::new(spec.clone()),)*
                }
            }

            /// The classes of `torch.optim` that are known, one per optimiser.
            pub fn torch_classes() -> Vec<TorchClass> {
                vec![$(<$spec>::default().torch_class()),*]
            }
        }

        impl Tagged for OptimizerSpec {
            const WHAT: &'static str = "an optimizer";
            const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            fn body<'de, D: Deserializer<'de>>(name: &str, body: D) -> Result<Self, D::Error> {
                Ok(match name {
                    $(stringify!($name) => Self::$variant(tagged_enum::spec(body)?),)*
                    _ => return Err(D::Error::unknown_variant(name, Self::NAMES)),
                })
            }
        }
    };
}

optimizers! {
    sgd: Sgd(SgdSpec);
    adam: Adam(AdamSpec);
    /// Adam that refuses `l2`. PyTorch's default decay of 0.01 is not implied: say `penalty: {decoupled:
    /// 0.01}`.
    adamw: AdamW(AdamWSpec);
    adagrad: Adagrad(AdagradSpec);
    rmsprop: RmsProp(RmsPropSpec);
    nadam: NAdam(NAdamSpec);
    radam: RAdam(RAdamSpec);
    lion: Lion(LionSpec);
    muon: Muon(MuonSpec);
    schedulefree: ScheduleFree(ScheduleFreeSpec);
}

impl OptimizerSpec {
    /// η₀, which the schedule scales.
    pub fn lr(&self) -> f64 {
        self.rule().lr()
    }

    /// Refuses values out of range; paths are relative to `optimizer`.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.rule().validate().map_err(|invalid| invalid.under(self.name()))
    }

    /// Refuses a penalty that contradicts the optimiser; paths are relative to `penalty`.
    pub fn accepts(&self, penalty: &PenaltySpec) -> Result<(), Invalid> {
        for (path, form) in penalty.paths().filter(|(_, form)| form.acts()) {
            if let Some(message) = self.unfit(&form) {
                return Err(Invalid::new(path, message));
            }
        }
        let Some((refused, remedy)) = self.rule().refuses() else { return Ok(()) };
        let is_refused = |form: &Declared| form.form.torch() == Some(refused) && form.acts();
        match penalty.paths().find(|(_, form)| is_refused(form)) {
            Some((path, _)) => Err(Invalid::new(path, remedy)),
            None => Ok(()),
        }
    }

    /// Why a form cannot act, or be tuned, beside the optimiser.
    fn unfit(&self, form: &Declared) -> Option<String> {
        let (rule, key) = (self.rule(), form.key);
        if form.form.accumulates() && rule.has_parts() {
            let name = self.name();
            return Some(format!(
                "{name}'s two parts have a learning rate each: take another mode than accumulated"
            ));
        }
        let is_tuned = form.lambda.is_some_and(|lambda| lambda.auto().is_some());
        if rule.averages() && (form.form.follows_update() || form.form.accumulates() || is_tuned) {
            let what =
                if is_tuned { "`auto`" } else { "what acts on the weights after a step, or apart from it," };
            return Some(format!(
                "{}'s weights are an average of those that it steps, which {what} does not reach: take `adamw`, or \
                 another form",
                self.name()
            ));
        }
        let reason = rule.indifferentiable()?;
        if is_tuned && form.form.torch() != Some(TorchDecay::Decoupled) {
            return Some(format!("{reason}, which `auto` cannot follow: give `{key}` a number"));
        }
        let needs = form.form.needs_preconditioner();
        needs.then(|| format!("{reason}, which has no preconditioner: leave `{key}_mode` out"))
    }

    /// Why a step of it cannot be recorded as a CUDA graph.
    pub fn graph_obstacle(&self) -> Option<&'static str> {
        self.rule().graph_obstacle()
    }

    /// Whether a step on a GPU skips itself where its float16 gradients overflowed.
    pub fn supports_found_inf(&self) -> bool {
        self.rule().supports_found_inf()
    }

    /// Whether what is judged is an average that the optimiser keeps itself.
    pub fn averages(&self) -> bool {
        self.rule().averages()
    }

    /// The class in `torch.optim`.
    pub fn torch_class(&self) -> TorchClass {
        self.rule().torch_class()
    }

    /// Whether its kernel has decay of this kind, as its class in `torch.optim` has.
    pub fn fuses(&self, decay: TorchDecay) -> bool {
        self.rule().fuses(decay)
    }

    /// Whether it refuses forms of the penalty that are this kind of decay.
    pub fn refuses(&self, decay: TorchDecay) -> bool {
        self.rule().refuses().is_some_and(|(refused, _)| refused == decay)
    }

    /// Whether its steps are proportional to the gradient.
    pub fn is_linear(&self) -> bool {
        self.rule().steady_state_lr(1.0).is_some()
    }

    /// The values beside `lr` and `weight_decay`, by the names that PyTorch has for them.
    pub fn arguments(&self) -> Vec<(&'static str, Argument)> {
        self.rule().arguments()
    }

    /// What the state of a parameter consists of: PyTorch's names, in PyTorch's order.
    pub fn state_names(&self) -> Vec<&'static str> {
        self.state_spec().iter().map(|slot| slot.name).collect()
    }

    /// The tensors of a parameter's state, in PyTorch's order.
    pub fn state_spec(&self) -> Vec<StateTensor> {
        self.rule().state_spec()
    }

    /// The state named `slot` of `param` before its first step; None where the optimiser has no such state.
    pub fn initial_state(&self, slot: &str, param: &Tensor) -> Result<Option<Tensor>> {
        let slots = self.state_spec();
        slots.iter().find(|own| own.name == slot).map(|own| own.start(param)).transpose()
    }
}

impl<'de> Deserialize<'de> for OptimizerSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        tagged_enum::deserialize(deserializer)
    }
}
