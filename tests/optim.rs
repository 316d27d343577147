//! The optimisers against Python's `torch.optim`.

use tch::{Device, Kind, Tensor};
use tikhonov::optim::{OptimizerSpec, SgdSpec};
use tikhonov::penalty::{PenaltySpec, Rates, Target};

#[test]
fn a_step_of_sgd_with_l2_and_momentum_moves_as_written() {
    let w = Tensor::from_slice(&[1.0f64, -2.0]).set_requires_grad(true);
    let spec = OptimizerSpec::Sgd(SgdSpec { lr: 0.1, momentum: 0.5, ..Default::default() });
    let groups = PenaltySpec::default().assign(&[Target { name: "w", decays: true }]).unwrap();
    let mut optimizer = spec.build(vec![("w".into(), w.shallow_clone())], &groups).unwrap();
    let rates = [Rates { l2: 0.5, ..Default::default() }];
    // f = 3·Σw: g = 3 + 0.5w = [3.5, 2], then b = 0.5b + g.
    (&w * 3.0).sum(Kind::Double).backward();
    let step = optimizer.step(0.1, &rates, None).unwrap();
    assert!((step.grad_norm.double_value(&[]) - 18f64.sqrt()).abs() < 1e-12);
    assert!(!w.grad().defined());
    let expected = Tensor::from_slice(&[0.65f64, -2.2]);
    assert!(f64::try_from((&w - expected).abs().max()).unwrap() < 1e-15);
    (&w * 3.0).sum(Kind::Double).backward();
    optimizer.step(0.1, &rates, None).unwrap();
    let expected = Tensor::from_slice(&[0.65 - 0.1 * (1.75 + 3.325), -2.2 - 0.1 * (1.0 + 1.9)]);
    assert!(f64::try_from((&w - expected).abs().max()).unwrap() < 1e-15);
    assert_eq!(w.device(), Device::Cpu);
}
