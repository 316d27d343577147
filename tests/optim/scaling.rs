//! Steps whose float16 gradients overflowed: they change nothing at all.

use tch::{Device, Kind, Tensor};
use tikhonov::optim::{Ema, EmaSpec, GradScaler, Optimizer, StepOptions};
use tikhonov::penalty::{LambdaValues, PenaltyParam};

use super::{declared, normal};

pub(super) const OPTIMIZERS: [&str; 14] = [
    "sgd: {lr: 0.1}",
    "sgd: {lr: 0.1, momentum: 0.9, nesterov: true}",
    "sgd: {lr: 0.1, momentum: 0.9, dampening: 0.5}",
    "adam: {lr: 0.1}",
    "adam: {lr: 0.1, amsgrad: true}",
    "adamw: {lr: 0.1}",
    "adagrad: {lr: 0.1, lr_decay: 0.01}",
    "rmsprop: {lr: 0.1}",
    "rmsprop: {lr: 0.1, momentum: 0.9, centered: true}",
    "nadam: {lr: 0.1}",
    "radam: {lr: 0.1}",
    "lion: {lr: 0.1}",
    "muon: {lr: 0.1}",
    "schedulefree: {lr: 0.1}",
];

const PENALTIES: [&str; 9] = [
    "{}",
    "{decoupled: 0.1}",
    "{decoupled: 0.1, decoupled_mode: cautious, l1: 0.01}",
    "{decoupled: 0.1, decoupled_mode: relative, l1: 0.01}",
    "{l1: 0.1, l1_mode: subgradient}",
    "{decoupled: 0.002, decoupled_mode: accumulated, l1: 0.001, l1_mode: preconditioned}",
    "{mcp: 0.01, group_lasso: 0.01, max_norm: 2, hoyer_square: 0.1}",
    "{nuclear_norm: 0.01, max_spectral_norm: 3, spectral_norm: 0.1}",
    "{scad: 0.01, unit_norm: 1.5, soft_orthogonality: 0.001}",
];

/// A weight and a bias with their optimiser, the average of both, and a scale that overflows where it is told
/// to.
pub(super) struct Run {
    pub params: Vec<Tensor>,
    pub optimizer: Optimizer,
    pub lambdas: Vec<LambdaValues>,
    pub clip: Option<tikhonov::optim::Clip>,
    pub ema: Ema,
    scale: Option<GradScaler>,
    made: u64,
}

impl Run {
    pub fn new(config: &str, scaled: bool) -> Self {
        let declared = declared(config);
        let params: Vec<Tensor> = [(vec![5i64, 7], 1), (vec![7], 2)]
            .map(|(shape, which)| normal(&shape, 1.0, which).to_kind(Kind::Float).set_requires_grad(true))
            .into();
        let named: Vec<_> = ["w", "b"]
            .into_iter()
            .zip(&params)
            .map(|(name, t)| (name.to_owned(), t.shallow_clone()))
            .collect();
        let targets =
            [("w", true), ("b", false)].map(|(name, decays)| PenaltyParam { name, is_weight: decays });
        let groups = declared.penalty.assign(&targets).unwrap();
        let clock = tikhonov::schedule::ScheduleStep { step: 0, steps_per_epoch: 10, total_steps: 100 };
        let ema = Ema::new(&EmaSpec { decay: 0.9, warmup: true }, &named).unwrap();
        Self {
            lambdas: groups.iter().map(|group| group.lambdas(clock)).collect(),
            optimizer: declared.optimizer.build(named, &groups).unwrap().with_peak(0.2),
            clip: declared.clip,
            params,
            ema,
            scale: scaled.then(|| GradScaler::new(None, Device::Cpu).unwrap()),
            made: 0,
        }
    }

    /// One step with the gradient that the number of steps made decides, or with one that overflows.
    fn step(&mut self, overflows: bool) {
        let wanted =
            |i: usize| normal(&self.params[i].size(), 1.0, 10 * self.made + i as u64).to_kind(Kind::Float);
        let mut loss =
            (&self.params[0] * wanted(0)).sum(Kind::Float) + (&self.params[1] * wanted(1)).sum(Kind::Float);
        if overflows {
            loss *= f64::INFINITY;
        }
        self.scale.as_ref().map_or(loss.shallow_clone(), |scale| scale.scaled(&loss)).backward();
        let (lambdas, clip, scale) = (&self.lambdas, self.clip.as_ref(), self.scale.as_ref());
        let options = StepOptions { lr: 0.05, lambdas, clip, scale, ..StepOptions::default() };
        let step = self.optimizer.step_with(&options).unwrap();
        self.ema.update(&self.named(), step.found_inf.as_ref()).unwrap();
        if let (Some(scale), Some(found_inf)) = (&mut self.scale, &step.found_inf) {
            scale.update(found_inf).unwrap();
            let skipped = scale.was_skipped().unwrap();
            assert_eq!(skipped, overflows);
            assert!(!scale.was_skipped().unwrap(), "one step is skipped once");
            if skipped {
                self.ema.uncount();
                self.optimizer.uncount();
            }
        }
        self.made += u64::from(!overflows);
    }

    pub fn named(&self) -> Vec<(String, Tensor)> {
        ["w", "b"]
            .into_iter()
            .zip(&self.params)
            .map(|(name, t)| (name.to_owned(), t.shallow_clone()))
            .collect()
    }

    /// Everything that a step changes.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let ema = self.ema.state().into_iter().map(|(name, tensor)| (format!("ema.{name}"), tensor));
        let all = self.named().into_iter().chain(self.optimizer.state()).chain(ema);
        all.map(|(name, tensor)| (name, tensor.detach().copy())).collect()
    }
}

/// What a config refuses: steps that are no function of each weight's own gradient have no preconditioner, and an
/// average of the steps is not reached by what acts after them.
pub(super) fn is_refused(optimizer: &str, penalty: &str) -> bool {
    let is_plain = ["{}", "{decoupled: 0.1}", "{l1: 0.1, l1_mode: subgradient}"].contains(&penalty);
    optimizer.starts_with("schedulefree") && !is_plain
        || (optimizer.starts_with("lion") || optimizer.starts_with("muon"))
            && penalty.contains("preconditioned")
}

#[test]
fn a_run_with_overflowing_steps_in_between_is_bitwise_the_run_without_them() {
    for optimizer in OPTIMIZERS {
        for penalty in PENALTIES {
            if is_refused(optimizer, penalty) {
                continue;
            }
            for clip in ["", "clip: {norm: 0.5}", "clip: {norm: 0.5, value: 0.3}"] {
                let config = format!("optimizer: {{{optimizer}}}\npenalty: {penalty}\n{clip}");
                let (mut plain, mut scaled) = (Run::new(&config, false), Run::new(&config, true));
                // The first steps overflow too, as they do with GradScaler's first scale.
                for overflows in [true, true, false, false, true, false, true, true, false] {
                    let before = scaled.state();
                    scaled.step(overflows);
                    if overflows {
                        assert_eq!(scaled.state(), before, "a skipped step changed something: {config}");
                    } else {
                        plain.step(false);
                        let without_ema = |run: &Run| -> Vec<_> {
                            run.state().into_iter().filter(|(name, _)| !name.starts_with("ema.")).collect()
                        };
                        assert_eq!(without_ema(&scaled), without_ema(&plain), "{config}");
                    }
                }
                for ((name, ours), (_, theirs)) in scaled.state().iter().zip(plain.state()) {
                    assert!(ours.allclose(&theirs, 1e-6, 1e-7, false), "{name}: {config}");
                }
                let scaling = scaled.scale.unwrap().state().unwrap();
                assert_eq!((scaling.scale, scaling.growth_tracker), (65536.0 / 32.0, 1), "{config}");
            }
        }
    }
}

#[test]
fn the_scale_moves_as_that_of_gradscaler() {
    let theirs = crate::common::python(
        "import torch
torch.manual_seed(0); scaler = torch.amp.GradScaler('cpu'); w = torch.ones(1, requires_grad=True)
optimizer = torch.optim.SGD([w], lr=0.1)
for step in range(4100):
    optimizer.zero_grad(); scaler.scale(w.sum() * (float('inf') if step in (0, 5, 4000) else 1)).backward()
    scaler.step(optimizer); scaler.update()
    if step in (0, 4, 5, 6, 2003, 2004, 2005, 2006, 3999, 4000, 4001, 4099): print(step, scaler.get_scale(), scaler.state_dict()['_growth_tracker'])",
    );
    let mut run = Run::new("optimizer: {sgd: {lr: 0.0001}}", true);
    let mut ours = String::new();
    for step in 0..4100 {
        run.step([0, 5, 4000].contains(&step));
        if [0, 4, 5, 6, 2003, 2004, 2005, 2006, 3999, 4000, 4001, 4099].contains(&step) {
            let state = run.scale.as_ref().unwrap().state().unwrap();
            ours += &format!("{step} {:?} {}\n", state.scale, state.growth_tracker);
        }
    }
    assert_eq!(ours, theirs);
}
