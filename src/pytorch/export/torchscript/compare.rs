//! Whether a TorchScript file computes what the network does.

use anyhow::{Result, ensure};
use tch::{Kind, Tensor, no_grad};

use super::{Agreement, Options, Preprocess};
use crate::libtorch::{catch_panics, script};
use crate::nn::model::{Model, Network, Op};
use crate::util::exit_code::{ExitCode, fail};

/// The largest difference that rounding explains, relative to the largest value, where nothing says how far
/// rounding goes in this network.
fn tolerance(kind: Kind, options: &Options) -> f64 {
    let folded = options.freeze || options.optimize;
    match kind {
        Kind::Double => EXACT,
        Kind::Half => 2e-2,
        Kind::BFloat16 => 1e-1,
        _ if folded => 1e-4,
        _ => 1e-5,
    }
}

/// What rounding may do in float64. The batch statistics of a deep network magnify it: those of ResNet-152
/// come out 4e-4 apart in float32 and 1e-12 in float64, where a difference of meaning would stay as large as
/// it is.
const EXACT: f64 = 1e-9;
/// How much farther than the network itself the file may be from the answers in float64.
const SPREAD: f64 = 10.0;

/// Input for the file, and the same as the network takes it, in `kind`.
fn samples(network: &Network, model: &Model, options: &Options) -> Result<(Tensor, Tensor)> {
    let shape = [&[3i64], model.input()].concat();
    let xs = Tensor::f_rand(shape.as_slice(), (Kind::Float, network.device()))?;
    Ok(match &options.preprocess {
        Some(Preprocess { normalize, .. }) => {
            let normalized = normalize.as_ref().map_or_else(|| xs.shallow_clone(), |n| n.apply(&xs));
            (xs, normalized.to_kind(network.kind()))
        }
        None => {
            let xs = (xs * 4.0 - 2.0).to_kind(network.kind());
            (xs.shallow_clone(), xs)
        }
    })
}

/// Compares the file with the network: in the network's own kind in evaluation, as far as its rounding goes,
/// and both in float64, where rounding is no excuse. A frozen file has its weights as constants and cannot be
/// brought to float64.
pub(super) fn compare(
    written: &script::Module,
    model: &Model,
    network: &Network,
    options: &Options,
) -> Result<Agreement> {
    let refuse = |apart: f64, allowed: f64, mode: &str| {
        let message = format!(
            "loaded again, the file answers otherwise than the network: {apart:.1e} apart in {mode}, {allowed:.0e} is rounding; \
             nothing was written"
        );
        match apart <= allowed {
            true => Ok(()),
            false => Err(fail(ExitCode::Checkpoint, message)),
        }
    };
    let answer = |network: &Network, xs: &Tensor, train: bool| {
        catch_panics(|| {
            let ys = no_grad(|| network.forward(xs, train));
            match &options.preprocess {
                _ if options.softmax => ys.softmax(1, None::<Kind>),
                Some(Preprocess { normalize_target: Some(target), .. }) => {
                    target.undo(&ys.to_kind(Kind::Double)).to_kind(ys.kind())
                }
                _ => ys,
            }
        })
    };
    let is_frozen = options.freeze || options.optimize;
    if !is_frozen {
        written.set_training(false)?;
    }
    let (raw, prepared) = samples(network, model, options)?;
    let ours = answer(network, &prepared, false)?;
    let theirs = no_grad(|| written.forward(&raw))?;
    let eval = difference(&ours, &theirs)?;
    let is_script = matches!(model.root().op, Op::Script(_));
    if is_script {
        // The same program on both sides, of which there is no float64 form.
        refuse(eval, tolerance(network.kind(), options), "evaluation")?;
        return Ok(Agreement { eval, train: None });
    }
    let exact = model.build(network.device(), Kind::Double)?;
    exact.load_state(&network.state().into_iter().collect())?;
    let wide = |xs: &Tensor| xs.to_kind(Kind::Double);
    let truth = answer(&exact, &wide(&prepared), false)?;
    let allowed = tolerance(network.kind(), options).max(SPREAD * difference(&truth, &ours)?);
    refuse(difference(&truth, &theirs)?, allowed, "evaluation")?;
    if is_frozen {
        return Ok(Agreement { eval, train: None });
    }
    written.set_kind(Kind::Double)?;
    let raw = if options.preprocess.is_some() { raw } else { wide(&raw) };
    let apart = |train: bool, mode: &str| -> Result<f64> {
        written.set_training(train)?;
        let apart =
            difference(&answer(&exact, &wide(&prepared), train)?, &no_grad(|| written.forward(&raw))?)?;
        refuse(apart, EXACT, mode).map(|()| apart)
    };
    apart(false, "evaluation, in float64")?;
    let is_random = model.root().leaves().iter().any(|leaf| match &leaf.op {
        Op::Layer(spec) => spec.layer().is_random(),
        _ => false,
    });
    let train = (!is_random).then(|| apart(true, "training, in float64")).transpose()?;
    Ok(Agreement { eval, train })
}

/// The largest difference, relative to the largest value.
fn difference(ours: &Tensor, theirs: &Tensor) -> Result<f64> {
    ensure!(
        ours.size() == theirs.size(),
        "its output is {:?}, the network's {:?}",
        theirs.size(),
        ours.size()
    );
    let (ours, theirs) = (ours.to_kind(Kind::Double), theirs.to_kind(Kind::Double));
    let largest = ours.f_nan_to_num(0.0, 0.0, 0.0)?.f_abs()?.f_max()?.double_value(&[]).max(1e-12);
    // Broken weights answer NaN here and there.
    let same =
        ours.f_eq_tensor(&theirs)?.f_logical_or(&ours.f_isnan()?.f_logical_and(&theirs.f_isnan()?)?)?;
    Ok((ours - theirs).f_abs()?.f_masked_fill(&same, 0.0)?.f_max()?.double_value(&[]) / largest)
}
