//! Steps that read their rates on the device, as a recorded step does.

use tch::{Device, Kind};
use tikhonov::optim::{GraphScalars, StepNumbers, StepOptions};

use super::normal;
use super::scaling::{OPTIMIZERS, Run, is_refused};

const PENALTIES: [&str; 11] = [
    "{}",
    "{l2: 0.1, l1: 0.01}",
    "{decoupled: 0.1}",
    "{decoupled: 0.1, decoupled_mode: relative, l1: 0.01, groups: [{match: b, l2: 0.2}]}",
    "{decoupled: 0.1, l1: 0.01, groups: [{match: b, lr: 0.1}]}",
    "{l1: 0.1, l1_mode: subgradient}",
    "{l1: 0.001, l1_mode: preconditioned}",
    "{group_lasso: 0.01, max_norm: 2}",
    "{mcp: 0.02, unit_norm: 1.5}",
    "{scad: 0.02, soft_orthogonality: 0.001}",
    "{hoyer_square: 0.1, groups: [{match: b, hoyer_square: 0.1, hoyer_square_mode: filters}]}",
];

#[test]
fn a_step_by_numbers_on_the_device_is_the_step_by_those_of_the_host() {
    for optimizer in OPTIMIZERS {
        for penalty in PENALTIES {
            // Steps of Muon and schedule-free ones are not recorded.
            let is_recorded = !["muon", "schedulefree"].iter().any(|name| optimizer.starts_with(name))
                && !is_refused(optimizer, penalty);
            if !is_recorded || optimizer.starts_with("adamw") && penalty.contains("l2") {
                continue;
            }
            let config = format!("optimizer: {{{optimizer}}}\npenalty: {penalty}\nclip: {{norm: 0.5}}");
            let (mut host, mut device) = (Run::new(&config, false), Run::new(&config, false));
            let mut scalars = GraphScalars::new(device.lambdas.len(), Device::Cpu).unwrap();
            for step in 0..8u64 {
                // Everything moves, as under a schedule: a dial that is not read shows.
                let lr = 0.05 / (1 + step) as f64;
                for run in [&mut host, &mut device] {
                    for lambdas in &mut run.lambdas {
                        for (key, factor) in [
                            ("l2", 1.3),
                            ("decoupled", 1.3),
                            ("l1", 0.7),
                            ("group_lasso", 0.8),
                            ("mcp", 1.1),
                            ("max_norm", 0.9),
                        ] {
                            *lambdas = lambdas.with(key, factor * lambdas.get(key));
                        }
                    }
                }
                for run in [&host, &device] {
                    let wanted = |i: usize| {
                        normal(&run.params[i].size(), 1.0, 10 * step + i as u64).to_kind(Kind::Float)
                    };
                    let loss = (&run.params[0] * wanted(0)).sum(Kind::Float)
                        + (&run.params[1] * wanted(1)).sum(Kind::Float);
                    loss.backward();
                }
                let (lambdas, clip) = (&host.lambdas, host.clip.as_ref());
                host.optimizer
                    .step_with(&StepOptions { lr, lambdas, clip, ..StepOptions::default() })
                    .unwrap();
                let named = host.named();
                host.ema.update(&named, None).unwrap();

                let numbers = StepNumbers { average: device.ema.weight(), loss: 0.0 };
                scalars.set(&device.optimizer, lr, &device.lambdas, numbers).unwrap();
                // What the recorded step was given when it was recorded does not count.
                let (lambdas, clip) = (&device.lambdas, device.clip.as_ref());
                let options = StepOptions {
                    lr: 7.0,
                    lambdas,
                    clip,
                    graph_scalars: Some(&scalars),
                    ..StepOptions::default()
                };
                device.optimizer.step_with(&options).unwrap();
                device.ema.blend(&device.named(), None, scalars.average()).unwrap();
                device.ema.count();
            }
            for ((name, ours), (_, theirs)) in device.state().iter().zip(host.state()) {
                assert!(ours.allclose(&theirs, 1e-5, 1e-6, false), "{name} {ours} {theirs}: {config}");
            }
        }
    }
}
